"""Streams to a node's processes: what was said while there was no descriptor for one arrives."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from zray.net.deliveries import Deliveries
from zray.net.descriptors import is_scarce

NODE, PROCESS = b"nodenode", b"process1"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(tmp_path / "p.e"))
        made.listen()
        made.settimeout(10)
        yield made


def test_messages_wait_for_a_descriptor_in_their_order(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ways = Deliveries(NODE, b"secret")
    endpoint = f"ipc://{tmp_path / 'p'}"
    with monkeypatch.context() as patched:
        patched.setattr("zray.net.deliveries.socket.socket", none_left)
        assert ways.send(PROCESS, endpoint, b"first", ())
        ways.retry()
        assert ways.send(PROCESS, endpoint, b"second", ())
    waiting = ways.backlog_bytes(PROCESS)
    assert waiting
    ways.retry()
    assert ways.backlog_bytes(PROCESS) == 0
    stream, _address = listener.accept()
    with stream:
        stream.settimeout(10)
        received = b""
        while len(received) < waiting:
            received += stream.recv(4096)
        assert received.index(b"first") < received.index(b"second")
    ways.close()


def test_a_process_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    ways = Deliveries(NODE, b"secret")
    assert not ways.send(PROCESS, f"ipc://{tmp_path / 'nobody'}", b"first", ())
    ways.close()


def test_the_last_descriptors_of_a_table_are_known_by_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit, reserve, last in ((20_000, 256, 19_743), (256, 256, 191), (256, 64, 239)):
        monkeypatch.setattr("resource.getrlimit", lambda _what, limit=limit: (limit, limit))
        assert not is_scarce(last, reserve)
        assert is_scarce(last + 1, reserve)
