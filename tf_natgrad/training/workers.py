"""Waiting for the other workers of a cluster, with an end and with their names."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time

from tf_natgrad import _checks

_LOGGER = logging.getLogger("tf_natgrad")
# Seconds between two attempts, within an attempt, and between two lines of the log.
_PAUSE, _ATTEMPT, _TELL_EVERY = 0.25, 2.0, 30.0
_GREETING = "tf_natgrad worker {}\n"
# The jobs that train together; others of a cluster, evaluators for one, nobody waits for.
_JOBS = ("chief", "worker")


def wait_for_workers(timeout: float = 600.0) -> list[str]:
    """Waits until all workers that `TF_CONFIG` names have called this function, each at its own address.

    Call it before `tf.distribute.MultiWorkerMirroredStrategy()`, in all workers: that waits for them as well, for long
    and without a word. The log tells every half minute who is missing. Afterwards the ports are free for TensorFlow.

    >>> wait_for_workers()  # without `TF_CONFIG` there is nobody to wait for
    []

    Args:
        timeout: seconds.

    Returns:
        The addresses of the other workers.

    Raises:
        TimeoutError: if some are missing after that time; it names them.
        ValueError: if `TF_CONFIG` is no cluster with this worker in it.
        OSError: if the port of this worker is in use.
    """
    _checks.check_number("timeout", timeout, minimum=0.0, exclusive=True)
    return _meet(*_cluster(), timeout)


def _meet(tasks: dict[str, str], own: str, timeout: float) -> list[str]:
    others = {name: address for name, address in tasks.items() if name != own}
    if not others:
        return []
    meeting = _Meeting(own, tasks[own])
    end, told = time.monotonic() + timeout, time.monotonic()
    try:
        while missing := [name for name in others if not meeting.has_met(name, others[name])]:
            now = time.monotonic()
            listed = ", ".join(f"{name} ({others[name]})" for name in missing)
            if now >= end:
                raise TimeoutError(
                    f"{own} has waited {timeout:g} s for {listed}. Look whether they run, call `wait_for_workers` too, "
                    "and are told the same cluster by `TF_CONFIG`; or pass a longer `timeout`."
                )
            if now - told >= _TELL_EVERY:
                _LOGGER.warning("%s waits for %s, for %.0f s more", own, listed, end - now)
                told = now
            time.sleep(_PAUSE)
    finally:
        meeting.close()
    return list(others.values())


class _Meeting:
    """Two workers have met when each has called on the other and had its answer: then neither needs to stay.

    Args:
        own: the name of this worker.
        address: where it is.
    """

    def __init__(self, own: str, address: str):
        self._own, self._closed = own, False
        self._came: set[str] = set()
        self._answered: set[str] = set()
        self._server = socket.create_server(("", _host_and_port(address)[1]))
        self._server.settimeout(_PAUSE)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def has_met(self, name: str, address: str) -> bool:
        """Calls on a worker that has not answered yet; whether it has, and has called on this one."""
        if name not in self._answered and self._answers(name, address):
            self._answered.add(name)
        return name in self._answered and name in self._came

    def _answers(self, name: str, address: str) -> bool:
        try:
            with socket.create_connection(_host_and_port(address), _ATTEMPT) as connection:
                connection.sendall(_GREETING.format(self._own).encode())
                return _line(connection) == _GREETING.format(name)
        except OSError:
            return False

    def _receive(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._server.accept()
            except OSError:
                continue
            with connection:
                connection.settimeout(_ATTEMPT)
                try:
                    found = re.fullmatch(_GREETING.format("(.+)"), _line(connection))
                    if found:
                        connection.sendall(_GREETING.format(self._own).encode())
                        self._came.add(found[1])
                except OSError:
                    continue

    def close(self) -> None:
        """Frees the port."""
        self._closed = True
        self._thread.join()
        self._server.close()


def _cluster() -> tuple[dict[str, str], str]:
    """The addresses of all tasks that train, by name, and the name of this one; from `TF_CONFIG`."""
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return {"worker 0": ""}, "worker 0"
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        tasks = {f"{job} {k}": address for job in _JOBS for k, address in enumerate(cluster.get(job, []))}
        own = f"{task['type']} {task['index']}"
        for address in tasks.values():
            _host_and_port(address)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = 'JSON like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        raise ValueError(_checks.message("TF_CONFIG", text, expected)) from error
    if own not in tasks:
        raise ValueError(_checks.message("TF_CONFIG", f"the task {own}", f"one of {', '.join(tasks)}"))
    return tasks, own


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _line(connection: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n") and len(found) < 200:
        more = connection.recv(200)
        if not more:
            break
        found += more
    return found.decode(errors="replace")


__all__ = ["wait_for_workers"]
