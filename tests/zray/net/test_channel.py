"""A stream to the node: whatever is readable is read, whole messages come out, nothing is kept.

What    Channel.drain() against messages cut anywhere, of sizes about that of one read; descriptors
        that nobody asked for.
Never   starts a process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zray.errors import RemoteProtocolError
from zray.net.channel import Channel

READ_BYTES = 256 * 1024


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    one, two = socket.socketpair()
    for each in (one, two):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    two.setblocking(False)
    made = Channel(two, takes_descriptors=False)
    yield one, made
    one.close()
    made.close()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "little") + message


@given(st.lists(st.binary(max_size=20), max_size=5), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_messages_come_whole_wherever_they_are_cut(ends, messages, data):
    sock, channel = ends
    stream = b"".join(map(framed, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            sock.sendall(stream[start:end])
            received, alive = channel.drain()
            assert alive
            found += received
    assert found == messages
    assert channel.inbound_bytes == 0


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_all_that_is_readable_is_read_where_a_message_is_as_long_as_one_read(ends, beside):
    sock, channel = ends
    large = bytes(READ_BYTES - 4 + beside)
    sock.sendall(framed(large) + framed(b"behind it"))
    received, alive = channel.drain()
    assert alive
    assert received == [large, b"behind it"]


def test_one_message_longer_than_may_be_is_refused(ends):
    sock, channel = ends
    channel.message_bytes_max = 10
    sock.sendall(framed(bytes(10)))
    assert channel.drain() == ([bytes(10)], True)
    sock.sendall(framed(bytes(11)))
    with pytest.raises(RemoteProtocolError, match="11 bytes"):
        channel.drain()


def test_the_end_of_a_stream_is_told_behind_its_last_message(ends):
    sock, channel = ends
    sock.sendall(framed(b"last"))
    sock.close()
    messages, alive = channel.drain()
    while alive:
        more, alive = channel.drain()
        messages += more
    assert messages == [b"last"]


def test_descriptors_that_nobody_asked_for_are_closed(ends):
    sock, channel = ends
    reading, writing = os.pipe()
    try:
        socket.send_fds(sock, [framed(b"take this")], [writing])
        os.close(writing)
        assert channel.drain()[0] == [b"take this"]
        assert os.read(reading, 1) == b"", "somebody still has the other end"
    finally:
        os.close(reading)


def test_descriptors_for_a_peer_that_is_dead_are_dropped_with_their_message():
    """A worker killed between its HELLO and the WELCOME ended the node."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    its.close()
    ours.setblocking(False)
    stream = Channel(ours)
    with open(os.devnull, "rb") as file:
        stream.queue(b"welcome", (file.fileno(),))
    assert stream.drain() == ([], False)
    stream.close()
