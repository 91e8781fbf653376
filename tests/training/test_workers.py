"""Waiting for workers: all go on together, ports are free again, and who is missing is named."""

import json
import logging
import socket
import threading
import time

import pytest
from processes import free_addresses, tasks

import tf_natgrad as ng
from tf_natgrad.training import workers


def test_three_workers_meet_and_their_ports_are_free_again():
    addresses = {f"worker {k}": address for k, address in enumerate(free_addresses(3))}
    met = {}

    def wait(own):
        met[own] = workers._meet(addresses, own, 60.0)
        # TensorFlow's server will listen here.
        socket.create_server(("", int(addresses[own].rpartition(":")[2]))).close()

    threads = [threading.Thread(target=wait, args=(own,)) for own in addresses]
    for thread in threads:
        thread.start()
        # They do not come at the same time.
        time.sleep(0.3)
    for thread in threads:
        thread.join(60)
    assert met == {own: [a for name, a in addresses.items() if name != own] for own in addresses}


def test_who_is_missing_is_named_and_the_port_freed(monkeypatch, caplog):
    addresses = free_addresses(2)
    monkeypatch.setenv("TF_CONFIG", json.dumps(tasks(addresses)[0]))
    monkeypatch.setattr(workers, "_TELL_EVERY", 0.1)
    with caplog.at_level(logging.WARNING), pytest.raises(TimeoutError, match=f"worker 1 .{addresses[1]}.*TF_CONFIG"):
        ng.wait_for_workers(0.6)
    assert "worker 0 waits for worker 1" in caplog.text
    socket.create_server(("", int(addresses[0].rpartition(":")[2]))).close()


def test_another_program_at_the_address_is_no_worker(monkeypatch):
    addresses = free_addresses(2)
    monkeypatch.setenv("TF_CONFIG", json.dumps(tasks(addresses)[0]))
    with socket.create_server(("", int(addresses[1].rpartition(":")[2]))) as server:
        stranger = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\n"))
        stranger.start()
        with pytest.raises(TimeoutError, match="worker 1"):
            ng.wait_for_workers(0.5)
        stranger.join()


@pytest.mark.parametrize(
    "config",
    [
        "nonsense",
        "[]",
        '{"cluster": {"worker": ["127.0.0.1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["127.0.0.1:1"]}}',
    ],
)
def test_what_is_no_cluster_is_refused(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=r"`TF_CONFIG`: received .*; expected "):
        ng.wait_for_workers()


def test_one_worker_waits_for_nobody(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(tasks(free_addresses(1))[0]))
    assert ng.wait_for_workers(0.1) == []
