"""The problems of `races.py`, and the networks that it trains."""

from __future__ import annotations

import dataclasses

import numpy as np

# With sigmoid units and Glorot's initialisation the first hundreds of steps lie on a plateau near 0.265, the loss of
# predicting the mean image: Adam (rate 0.001) leaves it after 10 s and is at 0.19 after 25, the natural gradients that
# were looked at (Monte-Carlo Gram, CG) had not left it by then. A race there would tell no more than that. With tanh
# units all contestants move, and with sigmoid units so they do from Martens's sparse initialisation.
AUTOENCODERS = ("autoencoder", "autoencoder_low", "sigmoid")
AUTOENCODER = (1000, 500, 250)
# Weights of a unit that are not zero at the start (J. Martens, "Deep learning via Hessian-free optimization", 2010).
SPARSE = 15


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be learned, and how far.

    Attributes:
        title: for people.
        metric: what the targets are about; less is better.
        targets: from the loosest to the tightest.
        budget: seconds of training.
        batch_size: examples per iteration; all of them if `None`.
        image_size: of MNIST; no images if `None`.
        test_images: how many test images are looked at.
        evaluations: about how many there are in a run that takes the whole budget (up to twice as many).
        xla: whether XLA compiles the first-order contestants: it does where that is faster on one core.
        precision: Keras's `floatx`.
    """

    title: str
    metric: str
    targets: tuple[float, ...]
    budget: float
    batch_size: int | None
    image_size: int | None
    test_images: int = 10_000
    evaluations: int = 30
    xla: bool = False
    precision: str = "float32"


def network(name: str, shape: tuple[int, ...]):
    """Makes the network of a problem; Keras's global seed decides the weights.

    Args:
        name: of the problem.
        shape: of an input.

    Returns:
        A Keras model and its loss.
    """
    import keras

    dense, inputs = keras.layers.Dense, keras.Input(shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if name == "resnet":
        return _resnet(inputs), loss
    if name == "blog":
        layers = [dense(10, use_bias=False)]
    elif name == "mlp":
        layers = [dense(512, "relu"), dense(512, "relu"), dense(10)]
    elif name == "deep":
        layers = [*(dense(100, "tanh") for _ in range(10)), dense(10)]
    elif name == "conv":
        layers = []
        for channels in (32, 64):
            layers.append(keras.layers.Conv2D(channels, 5, padding="same", activation="relu"))
            layers.append(keras.layers.MaxPooling2D(2))
        layers += [keras.layers.Flatten(), dense(1024, "relu"), dense(10)]
    elif name == "regression":
        layers, loss = [dense(64, "tanh"), dense(64, "tanh"), dense(1)], keras.losses.MeanSquaredError()
    else:
        units, start = ("sigmoid", _sparse) if name == "sigmoid" else ("tanh", "glorot_uniform")
        widths = [*AUTOENCODER, 30, *reversed(AUTOENCODER), shape[-1]]
        linear = (len(AUTOENCODER), len(widths) - 1)
        layers = [dense(w, None if i in linear else units, kernel_initializer=start) for i, w in enumerate(widths)]
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.Sequential([inputs, *layers]), loss


def _sparse(shape, dtype=None):
    """Weights of which each unit has `SPARSE`, drawn from a standard normal distribution."""
    import keras

    rows, columns = shape
    order = np.argsort(np.asarray(keras.random.uniform((columns, rows))), 1)[:, :SPARSE]
    mask = np.zeros((columns, rows), bool)
    np.put_along_axis(mask, order, True, 1)
    return keras.random.normal(shape, dtype=dtype) * keras.ops.cast(mask.T, dtype)


def _resnet(inputs):
    """Three blocks of two convolutions, 16, 32 and 64 channels."""
    import keras
    from keras import layers

    def convolved(x, channels, size=3, strides=1):
        x = layers.Conv2D(channels, size, strides, padding="same", use_bias=False)(x)
        # The averages of Keras's default, 0.99, are those of a race's beginning until late.
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.Activation("relu")(convolved(inputs, 16, strides=2))
    for channels, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.Activation("relu")(convolved(x, channels, strides=strides))
        shortcut = x if strides == 1 else convolved(x, channels, 1, strides)
        x = layers.Activation("relu")(layers.Add()([convolved(y, channels), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))
