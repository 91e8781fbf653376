"""Vector environments from Gymnasium, of the one kind whose every step is a real transition."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from tf_natgrad import _checks


@contextlib.contextmanager
def vector_environment(env: Any, num_envs: int) -> Iterator[Any]:
    """A vector environment with `autoreset_mode` SAME_STEP; closed at the end if it was made here.

    >>> with vector_environment("CartPole-v1", 2) as env:
    ...     env.num_envs, env.single_action_space
    (2, Discrete(2))

    Args:
        env: the name of an environment, a function without arguments that makes one, or a vector environment.
        num_envs: how many are made, where they are made here.

    Yields:
        A `gymnasium.vector.VectorEnv`.

    Raises:
        ValueError: if `env` is something else, or resets in a step of its own (NEXT_STEP) or not at all (DISABLED).
        ImportError: if Gymnasium is not installed.
    """
    gym = gymnasium()
    same_step = gym.vector.AutoresetMode.SAME_STEP
    made = isinstance(env, str) or (callable(env) and not isinstance(env, gym.Env | gym.vector.VectorEnv))
    if made:
        name = env
        make = (lambda: gym.make(name)) if isinstance(name, str) else name
        env = _made(gym, make, num_envs)
    try:
        if not isinstance(env, gym.vector.VectorEnv):
            raise ValueError(
                _checks.message(
                    "env",
                    type(env).__name__,
                    "the name of an environment or a vector environment, or a function that makes an environment",
                    "Use `gymnasium.make_vec(..., vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP})`.",
                )
            )
        if env.metadata.get("autoreset_mode") != same_step:
            raise ValueError(
                _checks.message(
                    "env",
                    f"a vector environment with autoreset_mode {env.metadata.get('autoreset_mode')}",
                    "SAME_STEP, where every step is a real transition",
                    "Use `make_vec(..., vectorization_mode='sync', "
                    "vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP})`.",
                )
            )
        yield env
    finally:
        if made and isinstance(env, gym.vector.VectorEnv):
            env.close()


@contextlib.contextmanager
def final_observations_kept(env: Any) -> Iterator[None]:
    """Makes the environments of a `SyncVectorEnv` return copies of final observations, until the block is left.

    A `SyncVectorEnv` resets an environment before it returns: where an environment writes all observations into one
    array, the final one is lost by then. Other vector environments are left as they are.

    Args:
        env: a vector environment.

    Yields:
        Nothing.
    """
    base = env.unwrapped
    if not isinstance(base, gymnasium().vector.SyncVectorEnv):
        yield
        return
    own = base.envs
    base.envs = [_CopiesFinalObservations(one) for one in own]
    try:
        yield
    finally:
        base.envs = own


class _CopiesFinalObservations:
    """An environment whose last observation of an episode is an array of its own."""

    def __init__(self, env: Any):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, action: Any) -> tuple:
        observation, reward, terminated, truncated, info = self._env.step(action)
        if terminated or truncated:
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info


def _made(gym: Any, make: Any, num_envs: int) -> Any:
    """A vector environment of several that are made here."""
    expected = "the name of a registered environment, or a function that makes one"

    def checked() -> Any:
        try:
            env = make()
        except gym.error.Error as error:
            raise ValueError(_checks.message("env", str(error), expected)) from error
        # What has these is good enough, whatever its class.
        if not all(hasattr(env, name) for name in ("reset", "step", "observation_space", "action_space")):
            raise TypeError(_checks.message("env", f"a function that returned {_checks.described(env)}", expected))
        return env

    return gym.vector.SyncVectorEnv([checked] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def check_maker(env: Any) -> None:
    """Refuses what cannot make several environments, such as a single environment.

    Args:
        env: what the user gave.

    Raises:
        ValueError: if it is neither a name nor a function.
    """
    if not isinstance(env, str | type) and (not callable(env) or hasattr(env, "step")):
        raise ValueError(
            _checks.message(
                "env",
                type(env).__name__,
                "the name of an environment, or a function that makes one",
                "Pass `env=lambda: gymnasium.make(...)`: an agent runs several at a time.",
            )
        )


def check_spaces(observations: Any, actions: Any) -> None:
    """Refuses spaces that the agents do not know.

    Args:
        observations: the space of single observations.
        actions: the space of single actions.

    Raises:
        ValueError: if observations are no Box, or actions neither Discrete from 0 on nor a Box of rank one.
    """
    spaces = gymnasium().spaces
    if not isinstance(observations, spaces.Box):
        raise ValueError(
            _checks.message(
                "env",
                f"the observation space {observations}",
                "a Box",
                "Pass `env=lambda: gymnasium.wrappers.FlattenObservation(gymnasium.make(...))`, which turns Discrete, "
                "Tuple and Dict spaces into a Box.",
            )
        )
    discrete = isinstance(actions, spaces.Discrete) and actions.start == 0
    if not discrete and not (isinstance(actions, spaces.Box) and len(actions.shape) == 1):
        raise ValueError(
            _checks.message(
                "env",
                f"the action space {actions}",
                "Discrete actions from 0 on, or a Box of shape [D]",
                "Wrap the environment with `gymnasium.wrappers.TransformAction`.",
            )
        )


def gymnasium() -> Any:
    """Gymnasium, imported where it is used.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("`tf_natgrad.rl` needs Gymnasium here: python -m pip install 'tf-natgrad[rl]'") from error
    return gymnasium


__all__ = ["check_maker", "check_spaces", "final_observations_kept", "gymnasium", "vector_environment"]
