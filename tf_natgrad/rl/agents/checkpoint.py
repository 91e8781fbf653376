"""One file that holds an agent: named arrays and a description, written so that a kill leaves no half file."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import Any

import keras
import numpy as np

from tf_natgrad import _checks
from tf_natgrad._files import write_atomically

_DESCRIPTION = "description"
_NETWORKS = ("policy", "value_network")


def write_checkpoint(path: str | os.PathLike, description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz` file without pickle, atomically.

    Args:
        path: of the file.
        description: what JSON can hold.
        arrays: by name.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{_DESCRIPTION: np.array(json.dumps(description))}, **arrays)
    write_atomically(path, buffer.getvalue())


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_checkpoint` wrote.

    Args:
        path: of the file.

    Returns:
        `(description, arrays)`.

    Raises:
        ValueError: if the file is damaged, or no checkpoint.
        FileNotFoundError: if there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return json.loads(str(arrays.pop(_DESCRIPTION))), arrays
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error


def write_agent(
    path: str | os.PathLike,
    description: dict[str, Any],
    networks: dict[str, keras.Model],
    arrays: dict[str, np.ndarray],
) -> None:
    """Writes an agent.

    Args:
        path: of the file.
        description: what JSON can hold, with the name of the agent's class at `"class"`.
        networks: by name.
        arrays: everything that training changes, by name.
    """
    serialized = {name: keras.saving.serialize_keras_object(network) for name, network in networks.items()}
    write_checkpoint(path, description | serialized, arrays)


def read_agent(
    path: str | os.PathLike, name: str
) -> tuple[dict[str, Any], dict[str, keras.Model], dict[str, np.ndarray]]:
    """Reads what `write_agent` wrote.

    Args:
        path: of the file.
        name: of the class that the agent is expected to have.

    Returns:
        `(description, networks, arrays)`.

    Raises:
        ValueError: if the file is damaged, or of an agent of another class.
        FileNotFoundError: if there is none.
    """
    description, arrays = read_checkpoint(path)
    if description.get("class") != name:
        raise ValueError(
            _checks.message("path", f"a checkpoint of {description.get('class')}", f"one of {name}", "Use its `load`.")
        )
    networks = {key: keras.saving.deserialize_keras_object(description.pop(key)) for key in _NETWORKS}
    return description, networks, arrays


def damaged(path: str | os.PathLike, why: Any) -> ValueError:
    """Makes the error for a file that cannot be used.

    Args:
        path: of the file.
        why: what is wrong with it.

    Returns:
        A `ValueError`.
    """
    return ValueError(
        _checks.message(
            "path",
            f"{os.fspath(path)!r}, which cannot be read ({why})",
            "a file that `save` of an agent wrote, whole",
            "It is damaged or something else: take an earlier checkpoint, or train anew.",
        )
    )


__all__ = ["damaged", "read_agent", "read_checkpoint", "write_agent", "write_checkpoint"]
