"""Trust region policy optimization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras

from tf_natgrad.rl.agents.agent import NaturalPolicyGradient
from tf_natgrad.rl.agents.settings import TRUST_REGION, Preset
from tf_natgrad.rl.policies import Policy


class TRPO(NaturalPolicyGradient):
    """Trust region policy optimization: natural policy gradient with a line search.

    The step of `NaturalPolicyGradient` is shortened until the surrogate rises and the measured `KL(old || new)`, mean
    over all observations of the rollout, is at most `target_kl`. If no length will do, the weights stay bit for bit.

    >>> agent = TRPO("CartPole-v1", n_steps=64, n_envs=2, seed=0)
    >>> agent.learn(total_steps=256, progress=False).log[-1]["kl"] <= 0.01
    True
    >>> agent.predict([0.0, 0.0, 0.0, 0.0]).shape
    ()

    Args:
        env: the name of an environment, or a function that makes one; see `NaturalPolicyGradient`.
        policy: a `Policy`, or `None` for the default one.
        value_network: a Keras model from observations to `[M, 1]`, or `None` for the default one.
        line_search_shrinking_factor: the factor by which a step is shortened, below 1 (default 0.8).
        line_search_max_iter: the largest number of lengths that are tried (10).
        **options: these two, and all other arguments of `NaturalPolicyGradient`.

    Raises:
        ValueError: if an argument is out of range; see `NaturalPolicyGradient`.

    References:
        J. Schulman, S. Levine, P. Moritz, M. Jordan, P. Abbeel, "Trust region policy optimization", ICML (2015),
        section 6 and appendix C.
    """

    _preset: ClassVar[Preset] = TRUST_REGION

    @TRUST_REGION.signed
    def __init__(
        self,
        env: str | Callable[[], Any],
        *,
        policy: Policy | None = None,
        value_network: keras.Model | None = None,
        **options: Any,
    ):
        super().__init__(env, policy=policy, value_network=value_network, **options)


__all__ = ["TRPO"]
