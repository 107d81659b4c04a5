"""The streams between the GCS process and who uses it: whole messages, or news of their end.

What    Both ends in this process; a hostile other end is a bare socket.
Caller  pytest.
Never   sleeps: whoever waits polls the descriptors.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from zray.errors import NodeStartError, RemoteProtocolError
from zray.net.gcs_link import FRAME_BYTES_MAX, GcsEndpoint, GcsPeer, Unpacker, packed

MB = 1 << 20


@pytest.fixture
def address(run_folder: Path) -> Iterator[str]:
    path = run_folder / f"gcs-{os.urandom(4).hex()}.sock"
    yield f"ipc://{path}"
    path.unlink(missing_ok=True)


@pytest.fixture
def endpoint(address: str) -> Iterator[GcsEndpoint]:
    made = GcsEndpoint(address)
    yield made
    made.close()


@pytest.fixture
def peer(endpoint: GcsEndpoint) -> Iterator[GcsPeer]:
    made = GcsPeer(endpoint.endpoint, b"peer")
    yield made
    made.close()


def heard(endpoint: GcsEndpoint) -> tuple[bytes, list[bytes]] | None:
    """Return the next message, when the descriptors say that there is one."""
    assert endpoint.has_message() or select.select(endpoint.descriptors, [], [], 0.05)
    assert endpoint.broken() == []
    return endpoint.receive()


def broken(endpoint: GcsEndpoint) -> list[bytes]:
    select.select(endpoint.descriptors, [], [], 0.05)
    return endpoint.broken()


def answered(peer: GcsPeer) -> list[bytes] | None:
    select.select([peer.descriptor], [], [], 0.05)
    return peer.receive()


def passed(endpoint: GcsEndpoint, peer: GcsPeer) -> list[bytes]:
    """Let both ends read and write until one of them has received something."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        select.select([*endpoint.descriptors, peer.descriptor], [], [], 0.05)
        assert endpoint.broken() == []
        received = endpoint.receive()
        found = peer.receive() if received is None else received[1]
        if found is not None:
            return found
    raise AssertionError("nothing has come")


def test_messages_go_both_ways_whole_and_in_order(endpoint: GcsEndpoint, peer: GcsPeer) -> None:
    for number in range(100):
        assert peer.send(b"name", b"%d" % number, b"")
    found: list[object] = []
    while len(found) < 100:
        received = wait_until(lambda: heard(endpoint))
        found.append(received)
    assert found == [(b"peer", [b"name", b"%d" % number, b""]) for number in range(100)]
    assert endpoint.send(b"peer", b"one", b"frame more")
    assert wait_until(lambda: answered(peer)) == [b"one", b"frame more"]
    assert not endpoint.send(b"nobody", b"frame")


def test_a_large_message_passes_by_a_small_buffer(endpoint: GcsEndpoint, peer: GcsPeer) -> None:
    large = os.urandom(1 << 10) * (20 << 10)
    assert peer.send(large)
    assert passed(endpoint, peer) == [large]
    assert endpoint.send(b"peer", large, b"end")
    assert passed(endpoint, peer) == [large, b"end"]


def test_who_does_not_read_is_refused_more_and_nothing_is_lost(
    endpoint: GcsEndpoint, peer: GcsPeer
) -> None:
    peer.send(b"hello")
    wait_until(lambda: heard(endpoint))
    sent = 0
    while endpoint.send(b"peer", sent.to_bytes(4, "big"), bytes(4 * MB)):
        sent += 1
        assert sent < 64, "a peer that does not read takes all"
    found: list[list[bytes]] = []
    while len(found) < sent:
        found.append(passed(endpoint, peer))
    assert [int.from_bytes(frames[0], "big") for frames in found] == list(range(sent))
    assert endpoint.send(b"peer", b"again")


def test_the_end_of_a_connection_is_told_once(endpoint: GcsEndpoint) -> None:
    peer = GcsPeer(endpoint.endpoint, b"short")
    peer.send(b"last word")
    peer.close()
    assert wait_until(lambda: broken(endpoint)) == [b"short"]
    assert endpoint.receive() == (b"short", [b"last word"])
    assert broken(endpoint) == []
    assert not endpoint.send(b"short", b"anything")


def test_who_connects_anew_has_not_ended(endpoint: GcsEndpoint) -> None:
    first, second = (GcsPeer(endpoint.endpoint, b"same") for _ in range(2))
    first.send(b"1")
    assert wait_until(lambda: heard(endpoint)) == (b"same", [b"1"])
    second.send(b"2")
    assert wait_until(lambda: heard(endpoint)) == (b"same", [b"2"])
    endpoint.send(b"same", b"to the younger")
    assert wait_until(lambda: answered(second)) == [b"to the younger"]
    first.close()
    assert broken(endpoint) == []
    second.close()
    assert wait_until(lambda: broken(endpoint)) == [b"same"]


def test_a_peer_finds_the_next_life_of_the_gcs(address: str) -> None:
    peer = GcsPeer(address, b"early")
    assert not peer.send(b"nobody listens"), "it is not kept for somebody who may never come"
    for life in range(3):
        endpoint = GcsEndpoint(address)
        wait_until(lambda: peer.send(b"%d" % life))  # noqa: B023
        assert wait_until(lambda: heard(endpoint)) == (b"early", [b"%d" % life])  # noqa: B023
        endpoint.close()
        wait_until(lambda: answered(peer) is None and not peer.send(b"?"))
    peer.close()


def test_what_waits_has_a_moment_to_leave(address: str) -> None:
    endpoint = GcsEndpoint(address)
    peer = GcsPeer(address, b"peer")
    peer.send(b"hello")
    wait_until(lambda: heard(endpoint))
    endpoint.send(b"peer", bytes(4 * MB))
    endpoint.close(linger_ms=1)
    assert not os.path.exists(address.removeprefix("ipc://"))
    endpoint = GcsEndpoint(address)
    peer.receive()
    wait_until(lambda: peer.send(b"hello"))
    peer.close(linger_ms=100)
    assert wait_until(lambda: (endpoint.broken(), endpoint.receive())[1]) == (b"peer", [b"hello"])
    endpoint.close()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 0),
        struct.pack("<I", 5),
        packed((b"no hello", b"name")),
        packed((b"zray gcs 1", b"")),
        packed((b"zray gcs 1",)),
        packed((b"zray gcs 1", b"name")) + struct.pack("<II", 1, FRAME_BYTES_MAX + 1),
    ],
    ids=repr,
)
def test_who_says_something_else_is_hung_up_on(
    endpoint: GcsEndpoint, peer: GcsPeer, words: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(endpoint.endpoint.removeprefix("ipc://"))
        stranger.sendall(words)
        stranger.setblocking(False)

        def is_over() -> bool:
            endpoint.broken()
            assert endpoint.receive() is None
            try:
                return stranger.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        wait_until(is_over)
    peer.send(b"others go on")
    assert wait_until(lambda: heard(endpoint)) == (b"peer", [b"others go on"])


def test_what_could_be_reached_from_elsewhere_is_not_bound(run_folder: Path) -> None:
    with pytest.raises(NodeStartError, match="nothing but ipc://"):
        GcsEndpoint("tcp://127.0.0.1:0")
    with pytest.raises(NodeStartError, match="shorter"):
        GcsEndpoint(f"ipc://{run_folder}/{'x' * 120}")
    with pytest.raises(NodeStartError, match="exists"):
        GcsEndpoint(f"ipc://{run_folder}/nowhere/gcs.sock")


frames = st.lists(st.binary(max_size=300), min_size=1, max_size=4)


@given(st.lists(frames, max_size=12), st.lists(st.integers(1, 400), max_size=40))
def test_messages_are_the_same_however_they_are_cut(
    messages: list[list[bytes]], cuts: list[int]
) -> None:
    data = b"".join(map(packed, messages))
    unpacker = Unpacker()
    found: list[list[bytes]] = []
    for cut in [*cuts, len(data)]:
        found += unpacker.feed(data[:cut])
        data = data[cut:]
    assert found == messages


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_wait(data: bytes) -> None:
    unpacker = Unpacker()
    try:
        for message in unpacker.feed(data):
            assert all(type(frame) is bytes for frame in message)
    except RemoteProtocolError:
        pass
