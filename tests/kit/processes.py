"""Processes with several logical devices, or workers on the loopback address: `replica_runs.py` runs in them."""

import json
import os
import socket
import subprocess
import sys

import scripts


def started(replicas, cases, **variables):
    path = os.path.join(scripts.KIT, "replica_runs.py")
    environment = scripts.environment() | {"CUDA_VISIBLE_DEVICES": "-1"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, path, replicas, *cases], env=environment, **pipes)


def finished(process):
    """What a process printed, by case."""
    out, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors[-3000:]
    return {found["case"]: found for found in map(json.loads, out.splitlines())}


def free_addresses(count):
    """Addresses of this machine at which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def tasks(addresses):
    """What `TF_CONFIG` says to each worker of a cluster."""
    cluster = {"worker": addresses}
    return [{"cluster": cluster, "task": {"type": "worker", "index": k}} for k in range(len(addresses))]


def pair(*cases):
    """Two processes on the loopback address, each a worker with one replica."""
    return [started("worker", cases, TF_CONFIG=json.dumps(task)) for task in tasks(free_addresses(2))]
