"""Two processes that train one model, as two machines would: started by one command, on this machine.

Each worker runs this file, with `TF_CONFIG` telling it who it is. The step is that of the global batch, so that two
workers end at the weights of one, but for rounding. On several machines start the file once on each, with `TF_CONFIG`
set as below and the machines' addresses in place of 127.0.0.1.

    python examples/two_workers.py
"""

import json
import os
import socket
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
EPOCHS, BATCH = (1 if "--smoke" in sys.argv else 5), 64


def train(strategy):
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_natgrad as ng
    from tf_natgrad.data import load_images

    data = load_images("digits")
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inner = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(10)]
        model = ng.NaturalGradientSequential([keras.Input((data.x_train.shape[1],)), *inner])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(ng.NaturalGradient(), loss, metrics=["accuracy"])
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train)).batch(BATCH).with_options(options)
    history = model.fit(batches, epochs=EPOCHS, verbose=0).history
    size = sum(float(np.sum(np.square(w))) for w in model.get_weights()) ** 0.5
    return f"loss {history['loss'][-1]:.6f}, accuracy {history['accuracy'][-1]:.1%}, norm of the weights {size:.6f}"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_workers(count=2):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    for index in range(count):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        yield subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "TF_CONFIG": config})


if "TF_CONFIG" in os.environ:
    import tensorflow as tf

    import tf_natgrad

    tf_natgrad.wait_for_workers(timeout=60)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything is computed
    print(f"worker {strategy.cluster_resolver.task_id}: {train(strategy)}", flush=True)
else:
    sys.exit(max(worker.wait() for worker in list(start_workers())))
