"""What the role of a key may ask of the GCS, as the head's node names it beside each frame.

What    A GCS process and one connection that brings the frames of several peers.
Caller  pytest.
Never   opens a port.
"""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.gcs.gcs_process import GcsProcess
from zray.brokers.gcs.client import GcsSession
from zray.brokers.gcs.commands import Command
from zray.brokers.gcs.relayed import DEAD, news
from zray.brokers.gcs.tables import NodeRecord
from zray.brokers.gcs.wire import COMMANDS, pack
from zray.errors import GcsError
from zray.net.gcs_link import GcsPeer
from zray.protocol.packing import packb
from zray.protocol.roles import Role

NODE = b"n" * 4 + bytes(4)
JOIN: tuple[Any, ...] = (NODE, {}, {}, {}, "", 1, "node")


class Head:
    """A connection as the head's node has it, with the sessions of others behind it."""

    def __init__(self, endpoint: str) -> None:
        self.link = GcsPeer(endpoint, b"head" + bytes(4))
        self.sessions: dict[bytes, GcsSession] = {}

    def brings(self, peer: bytes, role: Role) -> GcsSession:
        """Begin a session of somebody else."""
        session = self.sessions[peer] = GcsSession(
            send=lambda frame: self.link.send(peer, role.value.encode(), frame),
            new_id=lambda: os.urandom(16),
            now=time.monotonic(),
        )
        return session

    def step(self) -> None:
        """One turn of a poll loop."""
        for session in self.sessions.values():
            session.tick(time.monotonic())
        if not self.link.has_message():
            select.select([self.link.descriptor], [], [], 0.02)
        while (frames := self.link.receive()) is not None:
            peer, frame = frames
            if peer in self.sessions:  # Else it was said before the GCS heard of its end.
                self.sessions[peer].received(frame, time.monotonic())

    def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            self.step()

    def ask(self, session: GcsSession, name: str, *fields: Any) -> Any:
        """Ask and wait; raises the error."""
        got: list[Any] = []
        session.ask(Command(name, fields), lambda *done: got.append(done))
        self.until(lambda: got)
        result, error = got[0]
        if error is not None:
            raise error
        return result


@pytest.fixture
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="gcs") as folder:
        process = GcsProcess(Path(folder))
        made = Head(process.endpoint)
        yield made
        made.link.close()
        process.close()


def test_a_client_reads_and_writes_key_values_and_nothing_else(head: Head) -> None:
    client, node = head.brings(b"client", Role.CLIENT), head.brings(NODE, Role.NODE)
    assert head.ask(client, "KV_PUT", "", b"k", b"v", True) is True
    assert head.ask(client, "NAME_LIST", None, 10, b"") == [[], None]
    with pytest.raises(GcsError, match="refused to a client"):
        head.ask(client, "JOIN", *JOIN)
    assert head.ask(node, "KV_GET", "", b"k") == b"v"
    assert head.ask(node, "NODE_LIST", 10, b"") == [[], None]


def test_a_client_cannot_speak_in_the_session_of_a_node(head: Head) -> None:
    node = head.brings(NODE, Role.NODE)
    assert head.ask(node, "JOIN", *JOIN) == 1
    client = head.brings(b"client", Role.CLIENT)
    assert head.ask(client, "KV_EXISTS", "", b"k") is False
    leave = pack(COMMANDS, node.session, 1, 3, [packb(("LEAVE", (NODE, 1)))])
    for role in Role:
        assert head.link.send(b"client", role.value.encode(), leave)
    assert head.ask(client, "KV_EXISTS", "", b"k") is False
    (packed,), _more = head.ask(node, "NODE_LIST", 10, b"")
    assert NodeRecord.unpack(packed).state == "alive"


def test_a_node_that_is_not_there_any_more_is_dead_at_once(head: Head) -> None:
    head.brings(NODE, Role.NODE)
    other = head.brings(b"othr" + bytes(4), Role.NODE)
    assert head.ask(head.sessions[NODE], "JOIN", *JOIN) == 1
    del head.sessions[NODE]
    began = time.monotonic()
    assert head.link.send(b"", news(DEAD, NODE))

    def is_dead() -> bool:
        (packed,), _more = head.ask(other, "NODE_LIST", 10, b"")
        return bool(NodeRecord.unpack(packed).state == "dead")

    head.until(is_dead)
    assert time.monotonic() - began < 1.5, "its lease would have lasted longer"
