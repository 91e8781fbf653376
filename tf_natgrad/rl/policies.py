"""Policies: Keras models whose outputs are the parameters of a distribution over actions."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_natgrad import _checks, _keras
from tf_natgrad._typing import TensorLike
from tf_natgrad.distributions import CategoricalPd, DiagGaussianPd, Distribution


class Policy(keras.Model):
    """A network from observations to the parameters of a distribution over actions.

    Args:
        network: a Keras model with one output.
        name: of the model.
    """

    distribution_class: type[Distribution]

    def __init__(self, network: keras.Model, name: str | None = None):
        _checks.check_model("network", network)
        super().__init__(name=name)
        self.network = network

    def call(self, observations: tf.Tensor) -> tf.Tensor:
        """Computes the distribution's parameters, `[..., C]`."""
        return self.network(observations)

    def distribution(self, observations: TensorLike) -> Distribution:
        """Computes the distribution over actions at each observation.

        Args:
            observations: `[M, ...]`.

        Returns:
            M distributions.
        """
        return self.distribution_class(self(self._observed(observations)))

    def log_prob(self, observations: TensorLike, actions: TensorLike) -> tf.Tensor:
        """Computes the log-probability (or log-density) of each action.

        Args:
            observations: `[M, ...]`.
            actions: `[M]` or `[M, D]`.

        Returns:
            `[M]`.
        """
        pd = self.distribution(observations)
        expected = "one action for each observation, [M] or [M, D]"
        actions = _checks.as_tensor("actions", actions, expected=expected)
        shape = self._shape_of_actions(pd.parameters.shape)
        if shape is not None and not actions.shape.is_compatible_with(shape):
            raise ValueError(_checks.message("actions", f"shape {actions.shape}", f"{expected}: shape {shape}"))
        return pd.log_prob(actions)

    def _shape_of_actions(self, parameters: tf.TensorShape) -> tf.TensorShape | None:
        """The shape of actions, from that of the distribution's parameters, or `None` where it is not known."""
        return None

    def sample(self, observations: TensorLike, seed: TensorLike) -> tf.Tensor:
        """Draws one action per observation, with TensorFlow Probability.

        Args:
            observations: `[M, ...]`.
            seed: `[2]` integers that determine the draw.

        Returns:
            `[M]` or `[M, D]`.
        """
        _checks.check_words("seed", seed)
        return self.as_tensorflow_probability(self(self._observed(observations))).sample(seed=seed)

    def _observed(self, observations: TensorLike) -> tf.Tensor:
        """Observations as a tensor of the shape that the network was made for."""
        observations = _checks.as_tensor("observations", observations, expected="numbers [M, ...]")
        shape = self.network.input_shape if self.network.built else None
        if isinstance(shape, tuple) and not observations.shape.is_compatible_with((None, *shape[1:])):
            raise ValueError(
                _checks.message("observations", f"shape {observations.shape}", f"shape [M, ...] of {shape[1:]} each")
            )
        return observations

    def as_tensorflow_probability(self, parameters: tf.Tensor) -> Any:
        """Returns the distribution as an object of TensorFlow Probability."""
        raise NotImplementedError

    def check_action_space(self, space: Any) -> None:
        """Raises an error if the outputs do not fit the actions of an environment.

        Args:
            space: a Gymnasium space of single actions.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the serialised network."""
        return {"network": keras.saving.serialize_keras_object(self.network), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Policy:
        """Makes a policy from what `get_config` returned."""
        return cls(**config | {"network": keras.saving.deserialize_keras_object(config["network"])})


@keras.saving.register_keras_serializable(package="tf_natgrad")
class CategoricalPolicy(Policy):
    """A policy over a finite set of actions; the network's outputs are logits.

    >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> CategoricalPolicy(network).log_prob(tf.zeros([3, 4]), [0, 1, 1]).shape
    TensorShape([3])

    Args:
        network: a Keras model from observations to logits `[..., actions]`.
        name: of the model.
    """

    distribution_class = CategoricalPd

    def _shape_of_actions(self, parameters: tf.TensorShape) -> tf.TensorShape:
        return parameters[:-1]

    def as_tensorflow_probability(self, parameters: tf.Tensor) -> Any:
        import tensorflow_probability as tfp

        return tfp.distributions.Categorical(logits=parameters)

    def check_action_space(self, space: Any) -> None:
        import gymnasium as gym

        outputs = _outputs("policy", self.network)
        if not isinstance(space, gym.spaces.Discrete) or space.n != outputs:
            raise ValueError(
                _checks.message(
                    "policy",
                    f"CategoricalPolicy with {outputs} outputs for the action space {space}",
                    "a Discrete space of as many actions",
                    "For a Box of continuous actions use `GaussianPolicy`.",
                )
            )


@keras.saving.register_keras_serializable(package="tf_natgrad")
class GaussianPolicy(Policy):
    """A policy over continuous actions; the network's outputs are means, `log_std` is a variable of the policy.

    >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> [v.name for v in GaussianPolicy(network).trainable_variables]
    ['log_std', 'kernel', 'bias']

    Args:
        network: a Keras model from observations to means `[..., D]`.
        initial_log_std: the initial log of the standard deviation.
        name: of the model.
    """

    distribution_class = DiagGaussianPd

    def __init__(self, network: keras.Model, initial_log_std: float = 0.0, name: str | None = None):
        super().__init__(network, name=name)
        _checks.check_number("initial_log_std", initial_log_std)
        _outputs("network", network)
        self.initial_log_std = float(initial_log_std)
        self.log_std = self.add_weight(
            shape=(network.output_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_log_std),
            name="log_std",
        )

    def call(self, observations: tf.Tensor) -> tf.Tensor:
        mean = self.network(observations)
        return tf.concat([mean, tf.broadcast_to(self.log_std, tf.shape(mean))], -1)

    def _shape_of_actions(self, parameters: tf.TensorShape) -> tf.TensorShape:
        return parameters[:-1].concatenate(parameters[-1] // 2)

    def as_tensorflow_probability(self, parameters: tf.Tensor) -> Any:
        import tensorflow_probability as tfp

        mean, log_std = tf.split(parameters, 2, -1)
        return tfp.distributions.MultivariateNormalDiag(mean, tf.exp(log_std))

    def check_action_space(self, space: Any) -> None:
        import gymnasium as gym

        outputs = _outputs("policy", self.network)
        if not isinstance(space, gym.spaces.Box) or space.shape != (outputs,):
            raise ValueError(
                _checks.message(
                    "policy",
                    f"GaussianPolicy with {outputs} means for the action space {space}",
                    "a Box of as many dimensions",
                    "For a Discrete space use `CategoricalPolicy`.",
                )
            )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"initial_log_std": self.initial_log_std}


def _outputs(argument: str, network: keras.Model) -> int:
    """The number of a network's outputs."""
    shape = getattr(network, "output_shape", None) if network.built else None
    if not isinstance(shape, tuple) or not shape or shape[-1] is None:
        raise ValueError(
            _checks.message(
                argument,
                f"{type(network).__name__} whose number of outputs is not known",
                "a Functional or Sequential model with one output",
                "Begin it with `keras.Input(shape)`.",
            )
        )
    return shape[-1]


def check_policy(policy: Any) -> None:
    """Refuses what is no `Policy`.

    Args:
        policy: what the user gave.

    Raises:
        TypeError: if it is something else, such as a plain Keras model.
    """
    if not isinstance(policy, Policy):
        raise TypeError(
            _checks.message(
                "policy",
                type(policy).__name__,
                "a `rl.CategoricalPolicy` or `rl.GaussianPolicy`",
                "Wrap your Keras model: `rl.CategoricalPolicy(model)`.",
            )
        )


def has_kinks(policy: keras.Model) -> bool:
    """Whether a layer's activation is piecewise linear, so that second derivatives miss its kinks.

    Args:
        policy: a Keras model.

    Returns:
        `True` or `False`.
    """
    names = {"relu", "relu6", "leaky_relu", "hard_sigmoid", "hard_tanh", "hard_silu"}
    kinds = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU)
    return any(
        isinstance(layer, kinds) or getattr(getattr(layer, "activation", None), "__name__", "") in names
        for layer in _keras.all_layers(policy)
    )


__all__ = ["CategoricalPolicy", "GaussianPolicy", "Policy", "check_policy", "has_kinks"]
