"""Whole episodes as flat arrays, with the lengths of the episodes."""

from __future__ import annotations

import dataclasses
import functools
import os
import zipfile
from typing import Any

import numpy as np

from tf_natgrad import _checks

# What each array may hold: NumPy's letters, and words.
_KINDS = {
    "observations": ("biuf", "numbers [M, ...]"),
    "actions": ("biuf", "numbers [M] or [M, D]"),
    "rewards": ("biuf", "numbers [M]"),
    "lengths": ("iu", "integers [N]"),
    "terminated": ("b", "booleans [N]"),
    "final_observations": ("biuf", "numbers [N, ...]"),
    "weights": ("biuf", "numbers [N]"),
}
_ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "final_observations", "weights")


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """N whole episodes with M steps in total, stored one after the other.

    >>> episodes = Episodes.from_arrays(np.zeros((2, 3, 4)), np.zeros((2, 3), int), np.ones((2, 3)), lengths=[3, 2])
    >>> episodes.num_steps, episodes.returns(gamma=0.5).tolist()
    (5, [1.75, 1.5])

    Args:
        observations: `[M, ...]`, the observation before each action.
        actions: `[M]` integers or `[M, D]` numbers, as they were sampled (not clipped).
        rewards: `[M]`.
        lengths: `[N]`, the number of steps of each episode, at least 1.
        terminated: `[N]`, whether the episode reached a terminal state (if not, it was truncated).
        final_observations: `[N, ...]`, the observation after each last step, or `None`.
        weights: `[N]`, episode weights, such as probabilities of an enumeration; `None` for `1 / N` each.

    Raises:
        ValueError: if an episode is empty, a reward or weight is not finite, or shapes do not fit.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    final_observations: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __post_init__(self):
        for name, (kinds, expected) in _KINDS.items():
            if getattr(self, name) is not None or name not in ("terminated", "final_observations", "weights"):
                array = _checks.as_array(name, getattr(self, name), expected, kinds)
                if array.ndim < 1 or (array.ndim > 1 and name in ("lengths", "terminated", "weights")):
                    raise ValueError(_checks.message(name, f"shape {array.shape}", expected))
                object.__setattr__(self, name, array)
        if len(self.lengths) == 0 or np.min(self.lengths) < 1:
            which = "no episodes" if len(self.lengths) == 0 else f"an empty episode (number {np.argmin(self.lengths)})"
            raise ValueError(_checks.message("lengths", which, "at least one step in each episode", "Leave it out."))
        steps = int(np.sum(self.lengths))
        for name in ("observations", "actions", "rewards"):
            if len(getattr(self, name)) != steps:
                raise ValueError(
                    _checks.message(name, f"{len(getattr(self, name))} steps", f"{steps}, the sum of `lengths`")
                )
        if np.ndim(self.rewards) != 1:
            raise ValueError(_checks.message("rewards", f"shape {np.shape(self.rewards)}", "one number per step"))
        for name in ("observations", "actions", "rewards", "final_observations", "weights"):
            expected = f"finite {name.replace('_', ' ')}"
            values = getattr(self, name)
            if values is not None and not np.all(np.isfinite(values)):
                raise ValueError(_checks.message(name, "NaN or infinite values", expected, "Look at the environment."))
        for name in ("terminated", "weights", "final_observations"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.lengths):
                raise ValueError(
                    _checks.message(name, f"{len(values)} entries", f"{len(self.lengths)}, one an episode")
                )
        last = self.final_observations
        if last is not None and last.shape[1:] != self.observations.shape[1:]:
            expected = f"shape [N, ...] of observations {self.observations.shape[1:]}"
            raise ValueError(_checks.message("final_observations", f"shape {last.shape}", expected))

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        lengths: Any = None,
        weights: Any = None,
        terminated: Any = None,
    ) -> Episodes:
        """Makes episodes from padded arrays.

        Args:
            observations: `[N, T, ...]`.
            actions: `[N, T]` or `[N, T, D]`.
            rewards: `[N, T]`.
            lengths: `[N]`, the number of steps in each row; by default T.
            weights: `[N]`, see the class.
            terminated: `[N]`; by default all episodes count as terminated.

        Returns:
            `Episodes`.

        Raises:
            ValueError: if shapes do not fit; see the class.
        """
        rewards = _checks.as_array("rewards", rewards).astype(np.float64)
        if rewards.ndim != 2:
            raise ValueError(_checks.message("rewards", f"shape {rewards.shape}", "shape [episodes, steps]"))
        count, steps = rewards.shape
        lengths = (
            np.full(count, steps) if lengths is None else _checks.as_array("lengths", lengths, "integers [N]", "iu")
        )
        if lengths.shape != (count,) or (count and lengths.max() > steps):
            raise ValueError(
                _checks.message("lengths", f"shape {lengths.shape}", f"[{count}] integers, at most {steps} each")
            )
        used = np.arange(steps) < lengths[:, None]
        flat = []
        for name, values in (("observations", observations), ("actions", actions)):
            values = _checks.as_array(name, values)
            if values.shape[:2] != rewards.shape:
                raise ValueError(
                    _checks.message(
                        name, f"shape {values.shape}", f"shape [{count}, {steps}, ...], as the rewards have"
                    )
                )
            flat.append(values[used])
        terminated = np.ones(count, bool) if terminated is None else as_flags("terminated", terminated)
        weights = None if weights is None else _checks.as_array("weights", weights).astype(np.float64)
        return cls(*flat, rewards[used], lengths, terminated, weights=weights)

    @property
    def num_episodes(self) -> int:
        """The number of episodes, N."""
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """The number of steps, M."""
        return len(self.rewards)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The first step of each episode, `[N]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    @functools.cached_property
    def episode_ids(self) -> np.ndarray:
        """The episode of each step, `[M]`, ascending."""
        return np.repeat(np.arange(self.num_episodes), self.lengths)

    @functools.cached_property
    def times(self) -> np.ndarray:
        """The time within its episode of each step, `[M]`, from 0."""
        return np.arange(self.num_steps) - np.repeat(self.starts, self.lengths)

    @property
    def episode_weights(self) -> np.ndarray:
        """The weights, `1 / N` each by default, `[N]`."""
        return np.full(self.num_episodes, 1.0 / self.num_episodes) if self.weights is None else self.weights

    def rewards_to_go(self, gamma: float) -> np.ndarray:
        """Computes `Psi_t = sum_{u >= t} gamma^u r_u`, discounted from the start of the episode, `[M]`.

        Args:
            gamma: the discount factor, in [0, 1].

        Returns:
            `[M]`.
        """
        check_gamma(gamma)
        discounted = self.rewards * np.power(float(gamma), self.times)
        padded = np.zeros([self.num_episodes, int(self.lengths.max())])
        padded[self.episode_ids, self.times] = discounted
        return np.cumsum(padded[:, ::-1], 1)[:, ::-1][self.episode_ids, self.times]

    def returns(self, gamma: float) -> np.ndarray:
        """Computes the return `R = sum_t gamma^t r_t` of each episode, `[N]`.

        Args:
            gamma: the discount factor, in [0, 1].

        Returns:
            `[N]`.
        """
        return self.rewards_to_go(gamma)[self.starts]

    def select(self, chosen: Any) -> Episodes:
        """Returns some of the episodes, in the order given.

        Args:
            chosen: indices of episodes.

        Returns:
            `Episodes`; their weights, if any, are not changed.

        Raises:
            TypeError: if `chosen` are not integers; `np.flatnonzero` converts a mask to indices.
            ValueError: if `chosen` is empty, or an index is out of range.
        """
        expected = f"indices of episodes, -{self.num_episodes} to {self.num_episodes - 1}, at least one"
        chosen = _checks.as_array("chosen", chosen, expected, "iu")
        if (
            chosen.ndim != 1
            or not chosen.size
            or chosen.min() < -self.num_episodes
            or chosen.max() >= self.num_episodes
        ):
            raise ValueError(_checks.message("chosen", _checks.described(chosen), expected))
        steps = np.concatenate([np.arange(self.starts[e], self.starts[e] + self.lengths[e]) for e in chosen])
        rest = {name: getattr(self, name) for name in ("lengths", "terminated", "final_observations", "weights")}
        rest = {name: None if values is None else values[chosen] for name, values in rest.items()}
        return Episodes(self.observations[steps], self.actions[steps], self.rewards[steps], **rest)

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` file, without pickle.

        Args:
            path: of the file.

        Raises:
            TypeError: if `path` is no path.
        """
        _checks.check_path("path", path)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(path, **{name: values for name, values in arrays.items() if values is not None})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Episodes:
        """Reads what `save` wrote.

        Args:
            path: of the file.

        Returns:
            `Episodes`.

        Raises:
            TypeError: if `path` is no path.
            ValueError: if the file is damaged, or of another kind.
            FileNotFoundError: if the file does not exist.
        """
        _checks.check_path("path", path)
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            raise
        except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise _no_episodes(path, str(error)) from error
        if not set(_ARRAYS[:5]) <= set(arrays) <= set(_ARRAYS):
            raise _no_episodes(path, f"it holds {', '.join(arrays)}")
        return cls(**arrays)


def _no_episodes(path: str | os.PathLike, why: str) -> ValueError:
    return ValueError(
        _checks.message("path", f"{os.fspath(path)!r}, which cannot be read ({why})", "a file that `save` wrote")
    )


def check_episodes(episodes: Any) -> None:
    """Refuses what is no `Episodes`.

    Args:
        episodes: what the user gave.

    Raises:
        TypeError: if it is something else.
    """
    remedy = "Make them by `rl.collect` or `rl.Episodes.from_arrays`."
    _checks.check_instance("episodes", episodes, Episodes, "`rl.Episodes`", remedy)


def as_flags(argument: str, values: Any) -> np.ndarray:
    """An array of booleans, from booleans or from zeros and ones.

    Args:
        argument: its name, for the message.
        values: what the user gave.

    Returns:
        Booleans.

    Raises:
        TypeError: if it holds something else, such as words, which would all count as true.
    """
    expected = "booleans, or zeros and ones"
    array = _checks.as_array(argument, values, expected)
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise TypeError(_checks.message(argument, _checks.described(array), expected))
    return array.astype(bool)


def check_gamma(gamma: float) -> None:
    """Checks a discount factor.

    Args:
        gamma: what the user gave.

    Raises:
        ValueError: if it is not in [0, 1].
    """
    _checks.check_number("gamma", gamma, minimum=0.0)
    if gamma > 1.0:
        raise ValueError(_checks.message("gamma", gamma, "a discount factor in [0, 1]"))


__all__ = ["Episodes", "as_flags", "check_episodes", "check_gamma"]
