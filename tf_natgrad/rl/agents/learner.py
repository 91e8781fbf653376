"""One update of an agent: a rollout, advantages, a policy step, a fit of the value function."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_natgrad.rl.advantages import generalized_advantages
from tf_natgrad.rl.agents.critic import Critic
from tf_natgrad.rl.agents.policy_step import PolicyStep
from tf_natgrad.rl.agents.settings import TrustRegionSettings
from tf_natgrad.rl.networks import normalizations
from tf_natgrad.rl.normalization import RewardScaling, RunningMoments
from tf_natgrad.rl.policies import Policy
from tf_natgrad.rl.rollouts import Rollout, rollout

# What is added to the standard deviation of advantages before they are divided by it.
_EPSILON = 1e-8
# What a seed of the agent is combined with, so that its streams are independent of each other.
_ROLLOUT, _SHUFFLES = 1, 2


class Learner:
    """Everything that training changes, and the update that changes it.

    Args:
        policy: is trained in place.
        value_network: is trained in place.
        settings: of the agent.
        observation_shape: of one observation.
    """

    def __init__(
        self,
        policy: Policy,
        value_network: keras.Model,
        settings: TrustRegionSettings,
        observation_shape: tuple[int, ...],
    ):
        self.settings = settings
        self.policy = policy
        self.critic = Critic(value_network, settings.learning_rate, settings.batch_size, settings.n_critic_updates)
        self.policy_step = PolicyStep(
            policy,
            target_kl=settings.target_kl,
            max_iterations=settings.cg_max_steps,
            damping=settings.cg_damping,
            sub_sampling_factor=settings.sub_sampling_factor,
            line_search=settings.line_search,
            max_kl=settings.max_kl,
        )
        self._observation_moments = RunningMoments(observation_shape)
        self._reward_scaling = RewardScaling(settings.gamma)

    def update(self, env: Any, number: int) -> dict[str, Any]:
        """Improves the policy and the value function by one rollout.

        Args:
            env: a vector environment.
            number: how many updates came before; with the seed it determines all random numbers.

        Returns:
            What a `Record` holds of it, by name.
        """
        run = rollout(env, self.policy, self.settings.n_steps, seed=int(self._words(number, _ROLLOUT)[0]))
        observations = run.observations.reshape(-1, *run.observations.shape[2:])
        values = self.critic.values(observations)
        advantages = self._advantages(run, values)
        targets = advantages + values
        scaled = advantages
        if self.settings.normalize_advantage:
            scaled = (advantages - advantages.mean()) / (advantages.std() + _EPSILON)
        actions = run.actions.reshape(-1, *run.actions.shape[2:])
        step = self.policy_step(observations, actions, scaled)
        value_loss = self.critic.fit(observations, targets, self._words(number, _SHUFFLES))
        if self.settings.normalize_observations:
            # Only now: within an update, the policy that acted is the one that is improved.
            self._observation_moments.update(observations)
            self._set_moments()
        returns = run.finished_returns()
        spread = targets.var()
        return {
            "episodes": len(returns),
            "mean_return": float(returns.mean()) if len(returns) else float("nan"),
            **step._asdict(),
            "explained_variance": float(1.0 - advantages.var() / spread) if spread else float("nan"),
            "value_loss": value_loss,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies everything that training changes, by name."""
        arrays = {name: np.array(variable) for name, variable in self._variables().items()}
        for group, moments in self._moments().items():
            arrays |= {f"{group}/{name}": np.array(array) for name, array in moments.arrays().items()}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes back to what `arrays` returned.

        Args:
            arrays: by name.

        Raises:
            KeyError: if one is missing.
            ValueError: if one has another shape.
        """
        for name, variable in self._variables().items():
            variable.assign(arrays[name])
        for group, moments in self._moments().items():
            moments.restore({name: arrays[f"{group}/{name}"] for name in moments.arrays()})

    def _advantages(self, run: Rollout, values: np.ndarray) -> np.ndarray:
        """Advantages of all steps, `[M]`, from the values of their observations, `[M]`."""
        settings = self.settings
        rewards = self._reward_scaling(run.rewards, run.done) if settings.normalize_rewards else run.rewards
        next_values = self.critic.values(run.next_observations.reshape(-1, *run.next_observations.shape[2:]))
        return generalized_advantages(
            rewards,
            values.reshape(rewards.shape),
            next_values.reshape(rewards.shape),
            run.terminated,
            run.truncated,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
        ).reshape(-1)

    def _words(self, number: int, stream: int) -> np.ndarray:
        """The two words of the seed for one update and one purpose."""
        sequence = np.random.SeedSequence([self.settings.seed, number, stream])
        return (sequence.generate_state(2) >> 1).astype(np.int32)

    def _set_moments(self) -> None:
        for layer in (*normalizations(self.policy), *normalizations(self.critic.network)):
            layer.set_moments(self._observation_moments)

    def _variables(self) -> dict[str, keras.Variable]:
        """All variables of the networks and of Adam, by name."""
        groups = {"policy": self.policy.variables, "critic": self.critic.variables}
        return {f"{group}/{i}": v for group, variables in groups.items() for i, v in enumerate(variables)}

    def _moments(self) -> dict[str, RunningMoments]:
        return {"observations": self._observation_moments, "returns": self._reward_scaling.moments}


__all__ = ["Learner"]
