"""Handwritten digits for experiments: MNIST if it is available, else scikit-learn's small digits."""

from __future__ import annotations

import logging
import os
import pathlib
import threading
from typing import NamedTuple

import numpy as np

from tf_natgrad import _checks

_LOGGER = logging.getLogger("tf_natgrad")

_DATASETS = ("auto", "mnist", "digits")
_IMAGE_SIZES = (28, 14)
_DIGITS_SIZE = 8
_DIGITS_TEST_EXAMPLES = 360
# TFDS keeps trying an unreachable host for minutes, so one file of its source is asked for first.
_PROBE_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz"
_PROBE_SECONDS = 2.0
_REMEDY = (
    "To have it, set TFDS_DATA_DIR to a folder that holds mnist/3.0.1 as tensorflow_datasets prepares it, or connect "
    "to a network."
)


class ImageData(NamedTuple):
    """Images of handwritten digits, flattened, with their labels 0 to 9.

    Attributes:
        name: `"mnist"` or `"digits"`.
        image_size: height and width of an image.
        x_train: `[N, image_size ** 2]` float32 in [0, 1].
        y_train: `[N]` int32.
        x_test: `[M, image_size ** 2]` float32 in [0, 1].
        y_test: `[M]` int32.
    """

    name: str
    image_size: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_images(dataset: str = "auto", image_size: int = 28) -> ImageData:
    """Loads MNIST, or the 1,797 digits of 8x8 pixels that come with scikit-learn.

    MNIST is read by `tensorflow_datasets` from the folder TFDS_DATA_DIR (by default `~/tensorflow_datasets`), and
    downloaded into it once if there is a network. If there is neither, this is found out in about two seconds.

    >>> data = load_images("digits")
    >>> data.name, data.image_size, data.x_train.shape, data.x_test.shape
    ('digits', 8, (1437, 64), (360, 64))

    Args:
        dataset: `"mnist"`; `"digits"`; or `"auto"`, which loads MNIST if it is prepared or can be downloaded, else the
            digits with a logged warning.
        image_size: 28, or 14 for the means of 2x2 pixels. The digits are always 8x8.

    Returns:
        An `ImageData`: the same images in the same order at each call.

    Raises:
        ValueError: if an argument is out of its range, or `"mnist"` is not available.
    """
    _checks.check_choice("dataset", dataset, _DATASETS)
    if image_size not in _IMAGE_SIZES:
        raise ValueError(_checks.message("image_size", image_size, "28 or 14"))
    if dataset == "digits":
        return _digits()
    folder = _data_folder()
    if _is_prepared(folder):
        return _mnist(folder, image_size, download=False)
    reason = f"MNIST is not prepared in {folder}, and its source cannot be reached"
    if _source_answers():
        _LOGGER.info("downloading MNIST into %s", folder)
        try:
            return _mnist(folder, image_size, download=True)
        except Exception as error:  # whatever a network, a proxy or a disk may come up with
            reason = f"MNIST could not be downloaded into {folder} ({type(error).__name__}: {error})"
    if dataset == "mnist":
        raise ValueError(_checks.message("dataset", "'mnist'", f"data that can be had, but {reason}", _REMEDY))
    _LOGGER.warning("%s: taking scikit-learn's digits of 8x8 pixels instead. %s", reason, _REMEDY)
    return _digits()


def _data_folder() -> pathlib.Path:
    # Read at each call, while tensorflow_datasets reads the variable once, at its import.
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _is_prepared(folder: pathlib.Path) -> bool:
    """Whether TFDS finished preparing MNIST here: it moves a folder into place when all of it is written."""
    return any(folder.glob("mnist/3.*/dataset_info.json"))


def _source_answers() -> bool:
    """Whether the source of MNIST answers, found out in two seconds or a little more."""
    answers: list[bool] = []

    def ask():
        import requests  # what TFDS downloads with, so that both see the same proxies and certificates

        try:
            answers.append(requests.head(_PROBE_URL, timeout=_PROBE_SECONDS).ok)
        except requests.RequestException:
            answers.append(False)

    # A name server that does not answer is not covered by the timeout; the thread is left to itself then.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS + 0.5)
    return bool(answers) and answers[0]


def _mnist(folder: pathlib.Path, image_size: int, *, download: bool) -> ImageData:
    import tensorflow_datasets as tfds

    splits = tfds.load(
        "mnist", split=["train", "test"], data_dir=folder, download=download, batch_size=-1, as_supervised=True
    )
    (x_train, y_train), (x_test, y_test) = tfds.as_numpy(splits)
    block = 28 // image_size

    def pixels(images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(-1, image_size, block, image_size, block).astype(np.float32)
        return blocks.mean((2, 4)).reshape(len(images), -1) / np.float32(255)

    return ImageData(
        "mnist", image_size, pixels(x_train), y_train.astype(np.int32), pixels(x_test), y_test.astype(np.int32)
    )


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16.0).astype(np.float32), y.astype(np.int32)
    # The file goes writer by writer: a plain cut would train and test on different people.
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[:_DIGITS_TEST_EXAMPLES], order[_DIGITS_TEST_EXAMPLES:]
    return ImageData("digits", _DIGITS_SIZE, x[train], y[train], x[test], y[test])


__all__ = ["ImageData", "load_images"]
