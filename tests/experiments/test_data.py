"""Where the images come from, and how soon it is known that there are none."""

import logging
import socket
import time

import numpy as np
import pytest
import tensorflow as tf

from tf_natgrad import data


@pytest.fixture
def no_mnist(monkeypatch, tmp_path):
    """No prepared MNIST, and a source that refuses at once."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(data, "_source_answers", lambda: False)
    return tmp_path


@pytest.fixture
def made_up_mnist(monkeypatch, tmp_path):
    """Eight images in place of MNIST, prepared."""
    import tensorflow_datasets as tfds

    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(8, dtype=np.int64)
    calls = []

    def load(name, **options):
        calls.append((name, options))
        return [(tf.constant(images[:6]), tf.constant(labels[:6])), (tf.constant(images[6:]), tf.constant(labels[6:]))]

    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds, "load", load)
    return images, calls


def test_digits_are_scaled_and_split_the_same_way_each_time():
    first, again = data.load_images("digits"), data.load_images("digits", 14)
    assert (first.name, first.image_size) == ("digits", 8)
    assert first.x_train.shape == (1437, 64) and first.x_test.shape == (360, 64)
    assert first.x_train.dtype == np.float32 and first.y_train.dtype == np.int32
    assert first.x_train.min() == 0.0 and first.x_train.max() == 1.0
    assert set(first.y_test) == set(range(10))
    for a, b in zip(first[2:], again[2:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_auto_falls_back_on_the_digits_and_says_so(no_mnist, caplog):
    with caplog.at_level(logging.WARNING, logger="tf_natgrad"):
        assert data.load_images("auto", 14).name == "digits"
    assert str(no_mnist) in caplog.text and "TFDS_DATA_DIR" in caplog.text


def test_mnist_without_data_says_how_to_get_it(no_mnist):
    with pytest.raises(ValueError, match=r"mnist/3\.0\.1.*network"):
        data.load_images("mnist")


@pytest.mark.parametrize("silent", ["name server", "host"])
def test_auto_decides_within_five_seconds_on_a_dead_network(monkeypatch, tmp_path, silent):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        if silent == "host":
            monkeypatch.setattr(data, "_PROBE_URL", f"https://127.0.0.1:{server.getsockname()[1]}/")
        else:
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(20))
        start = time.monotonic()
        assert data.load_images("auto").name == "digits"
        assert 1.0 < time.monotonic() - start < 5.0


def test_a_failed_download_is_told(monkeypatch, no_mnist, caplog):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(data, "_source_answers", lambda: True)
    monkeypatch.setattr(tfds, "load", fail)
    with pytest.raises(ValueError, match="disk full"):
        data.load_images("mnist")
    with caplog.at_level(logging.WARNING, logger="tf_natgrad"):
        assert data.load_images("auto").name == "digits"
    assert "disk full" in caplog.text


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_prepared_mnist_is_read_without_asking_the_network(made_up_mnist, monkeypatch, dataset):
    images, calls = made_up_mnist
    monkeypatch.setattr(data, "_source_answers", lambda: pytest.fail("asked the network"))
    loaded = data.load_images(dataset)
    assert (loaded.name, loaded.image_size) == ("mnist", 28)
    assert calls[0][1]["download"] is False
    np.testing.assert_allclose(loaded.x_train, images[:6].reshape(6, -1) / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(loaded.y_test, [6, 7])


def test_small_mnist_is_the_mean_of_two_by_two_pixels(made_up_mnist):
    images, _ = made_up_mnist
    small = data.load_images("mnist", 14)
    assert small.x_train.shape == (6, 196) and small.x_train.dtype == np.float32
    block = images[3, 4:6, 10:12, 0].mean() / 255.0
    np.testing.assert_allclose(small.x_train[3].reshape(14, 14)[2, 5], block, rtol=1e-6)


@pytest.mark.parametrize(("arguments", "name"), [(("fashion", 28), "dataset"), (("auto", 20), "image_size")])
def test_arguments_are_checked(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`: received"):
        data.load_images(*arguments)
