"""The bulk thread over real sockets: bytes arrive as they were, whoever dies on the way.

What    Nodes as thin as can be in one process, each with a segment and a bulk thread: several
        sources, a broadcast, a source that dies in the middle in a process of its own, memory
        that stays while it is sent, strangers, and what a wrong peer sends.
Caller  pytest.
Never   starts a node.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from tests.waiting import wait_until
from zray.brokers.bulk import Bulk
from zray.brokers.transfer_serving import SEND_BYTES
from zray.brokers.transferring import (
    Allocate,
    Arrived,
    Failed,
    FreeExtent,
    Locate,
    Priority,
    Unpin,
)
from zray.errors import InternalError, SecurityError
from zray.net import bulk_link
from zray.net.bulk_link import BulkLink
from zray.net.curve import ClusterKeys, KeyPair, Role, make_pair, secure_client
from zray.net.guarded_port import announce
from zray.net.wake import Wake
from zray.protocol.chunks import CHUNK_BYTES, Ask, Chunk, chunk_count, chunk_span, pack, unpack
from zray.store.segment import Segment

MIB = CHUNK_BYTES
OBJECT = b"o" * 16


class End:
    """A node's end: extents are handed out one after the other, objects stay for ever."""

    def __init__(
        self, name: bytes, keys: ClusterKeys | None = None, *, capacity_bytes: int = 200 * MIB
    ) -> None:
        self.name = name
        self.segment = Segment.create(capacity_bytes)
        self.wake = Wake()
        self.bulk = Bulk(self.segment, name, keys, budget_bytes=capacity_bytes, wake=self.wake.set)
        self.objects: dict[bytes, tuple[int, int]] = {}
        self.next_offset = 0
        self.pins = 0
        self.freed: list[int] = []
        self.ended: dict[bytes, Arrived | Failed] = {}
        self.keeps_locates: list[Locate] | None = None

    def close(self) -> None:
        self.bulk.close()
        self.segment.close()
        self.wake.close()

    def extent(self, nbytes: int) -> int:
        offset = self.next_offset
        self.next_offset += chunk_count(nbytes) * MIB
        return offset

    def store(self, identity: bytes, nbytes: int) -> np.ndarray[Any, Any]:
        offset = self.extent(nbytes)
        self.segment.commit(offset, nbytes)
        view = np.frombuffer(self.segment.writable(offset, nbytes), np.uint8)
        view[:] = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
        self.objects[identity] = offset, nbytes
        return view

    def bytes_of(self, identity: bytes) -> memoryview:
        return self.segment.writable(*self.objects[identity])

    def serve(self) -> None:
        for event in self.bulk.events():
            match event:
                case Allocate(pull, _, nbytes):
                    self.bulk.allocated(pull, self.extent(nbytes), fresh=True)
                case FreeExtent(offset):
                    self.freed.append(offset)
                case Arrived(identity, offset, nbytes, pinned):
                    self.objects[identity] = offset, nbytes
                    self.ended[identity] = event
                    self.pins += pinned
                case Failed(identity):
                    self.ended[identity] = event
                case Locate() if self.keeps_locates is not None:
                    self.keeps_locates.append(event)
                case Locate(identity):
                    self.locate(identity)
                case Unpin():
                    self.pins -= 1

    def locate(self, identity: bytes) -> None:
        if identity in self.objects:
            self.pins += 1
            self.bulk.located(identity, *self.objects[identity])
        else:
            self.bulk.absent(identity, "it is not here")


def settle(
    ends: list[End], condition: Callable[[], Any], what: str, timeout_s: float = 20.0
) -> Any:
    """Let all ends serve whenever one of them is told something, until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while True:
        for end in ends:
            end.wake.clear()
            end.serve()
        if seen := condition():
            return seen
        assert time.monotonic() < deadline, f"still waiting for {what}"
        select.select([end.wake for end in ends], [], [], 0.02)


Ends = Callable[[int], list[End]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    made: list[End] = []

    def make(count: int) -> list[End]:
        made.extend(End(b"end-%d" % number) for number in range(count))
        for end in made:
            for other in made:
                if end is not other:
                    end.bulk.connect(other.name, other.bulk.endpoint)
        return made

    yield make
    for end in made:
        end.close()


def test_64_mib_arrive_identical_and_the_source_is_let_go_of(ends):
    source, puller = ends(2)
    source.store(OBJECT, 64 * MIB - 3)
    puller.bulk.want(OBJECT, 64 * MIB - 3, [source.name], Priority.GET)
    settle([source, puller], lambda: OBJECT in puller.ended, "the object")
    assert isinstance(puller.ended[OBJECT], Arrived)
    assert puller.bytes_of(OBJECT) == source.bytes_of(OBJECT)
    settle([source, puller], lambda: not source.pins, "the pin to go")


def test_small_objects_arrive_too(ends):
    source, puller = ends(2)
    sizes = {number.to_bytes(16, "big"): 1 + number * 40_000 for number in range(60)}
    for identity, nbytes in sizes.items():
        source.store(identity, nbytes)
    for identity, nbytes in sizes.items():
        puller.bulk.want(identity, nbytes, [source.name], Priority.ARGUMENT)
    settle([source, puller], lambda: len(puller.ended) == len(sizes), "all objects")
    for identity in sizes:
        assert puller.bytes_of(identity) == source.bytes_of(identity)
    settle([source, puller], lambda: not source.pins, "the pins to go")


def test_several_sources_each_send_a_share(ends):
    one, two, puller = ends(3)
    one.store(OBJECT, 64 * MIB)
    two.store(OBJECT, 64 * MIB)
    puller.bulk.want(OBJECT, 64 * MIB, [one.name, two.name], Priority.GET)
    settle([one, two, puller], lambda: OBJECT in puller.ended, "the object")
    assert puller.bytes_of(OBJECT) == one.bytes_of(OBJECT)
    shares = [end.bulk.statistics()["sent_bytes"] for end in (one, two)]
    assert sum(shares) == 64 * MIB
    assert min(shares) >= 4 * MIB


def test_a_broadcast_is_a_pipeline(ends):
    """Each node has the next one as its only source, and passes on what it does not yet have."""
    everyone = ends(4)
    everyone[0].store(OBJECT, 64 * MIB)
    for before, end in itertools.pairwise(everyone):
        end.bulk.want(OBJECT, 64 * MIB, [before.name], Priority.GET)
    settle(everyone, lambda: OBJECT in everyone[1].ended, "the first node to have it")
    last = everyone[3].bulk.statistics()["received_bytes"]
    assert last > 0, "the last node got nothing before the first had everything"
    settle(everyone, lambda: all(OBJECT in end.ended for end in everyone[1:]), "the broadcast")
    for end in everyone[1:]:
        assert isinstance(end.ended[OBJECT], Arrived)
        assert end.bytes_of(OBJECT) == everyone[0].bytes_of(OBJECT)
        assert end.bulk.statistics()["received_bytes"] == 64 * MIB
    settle(everyone, lambda: not any(end.pins for end in everyone), "the pins to go")


SOURCE_PROGRAM = """
import sys
from tests.brokers.test_bulk import End, OBJECT
end = End(b"mortal")
end.store(OBJECT, int(sys.argv[1]))
end.bulk.connect(b"end-1", sys.argv[2])
print(end.bulk.endpoint, flush=True)
while True:
    end.serve()
"""


def test_a_source_that_is_killed_in_the_middle_is_replaced_by_the_other(ends):
    other, puller = ends(2)
    nbytes = 128 * MIB
    other.store(OBJECT, nbytes)
    other.keeps_locates = []  # It does not answer yet: all chunks come from the mortal one.
    program = subprocess.Popen(
        [sys.executable, "-c", SOURCE_PROGRAM, str(nbytes), puller.bulk.endpoint],
        stdout=subprocess.PIPE,
    )
    try:
        assert program.stdout is not None
        puller.bulk.connect(b"mortal", program.stdout.readline().decode().strip())
        puller.bulk.want(OBJECT, nbytes, [b"mortal", other.name], Priority.GET)
        received = puller.bulk.statistics
        settle([other, puller], lambda: received()["received_bytes"] > 8 * MIB, "some chunks")
        program.send_signal(signal.SIGKILL)
        program.wait()
        assert OBJECT not in puller.ended
        puller.bulk.disconnect(b"mortal")
        for asked in other.keeps_locates:
            other.locate(asked.object)
        settle([other, puller], lambda: OBJECT in puller.ended, "the rest")
    finally:
        program.kill()
        program.communicate()
    assert isinstance(puller.ended[OBJECT], Arrived)
    assert puller.bytes_of(OBJECT) == other.bytes_of(OBJECT)
    assert other.bulk.statistics()["sent_bytes"] < nbytes


def test_the_last_source_that_dies_fails_the_pull_and_frees_its_extent(ends):
    source, puller = ends(2)
    source.keeps_locates = []
    source.store(OBJECT, 5 * MIB)
    puller.bulk.want(OBJECT, 5 * MIB, [source.name], Priority.GET)
    settle([source, puller], lambda: source.keeps_locates, "the question")
    puller.bulk.disconnect(source.name)
    settle([source, puller], lambda: OBJECT in puller.ended, "the end")
    failed = puller.ended[OBJECT]
    assert isinstance(failed, Failed)
    assert "died" in failed.reason
    assert puller.freed == [0]


def test_a_cancel_and_a_new_want_end_in_one_event(ends):
    source, puller = ends(2)
    source.store(OBJECT, 20 * MIB)
    for _ in range(3):
        puller.bulk.want(OBJECT, 20 * MIB, [source.name], Priority.PREFETCH)
        puller.bulk.cancel(OBJECT)
    puller.bulk.want(OBJECT, 20 * MIB, [source.name], Priority.GET)
    settle([source, puller], lambda: OBJECT in puller.ended, "the object")
    assert isinstance(puller.ended[OBJECT], Arrived)
    assert puller.bytes_of(OBJECT) == source.bytes_of(OBJECT)
    assert puller.bulk.statistics()["wanted"] == 0


def test_memory_stays_until_zeromq_has_let_go_of_it(ends):
    """A reader that takes nothing: chunks wait in ZeroMQ, and the object stays pinned."""
    (source,) = ends(1)
    source.store(OBJECT, 30 * MIB)
    link = BulkLink(b"reader")
    try:
        link.connect(source.name, source.bulk.endpoint)
        # Nothing listens there: what is sent to it waits in ZeroMQ.
        source.bulk.connect(b"reader", "tcp://127.0.0.1:1")
        sent = source.bulk.statistics

        def ask_till_sent() -> bool:
            # The first may come before the source knows who the reader is.
            link.send(source.name, pack(Ask(1, OBJECT, 30 * MIB, 0, list(range(8)))))
            return bool(sent()["sent_bytes"] == SEND_BYTES)

        settle([source], ask_till_sent, "as much as one node may have")
        assert source.pins == 1
        source.bulk.disconnect(b"reader")
        settle([source], lambda: not source.pins, "the pin to go")
        assert sent()["sent_bytes"] == SEND_BYTES
    finally:
        link.close()


def test_a_released_chunk_is_told_of_once_and_only_after_it_was_read():
    data = bytearray(b"x" * (4 * MIB))
    one, two = BulkLink(b"one"), BulkLink(b"two")
    released: list[int] = []
    try:
        one.connect(b"two", two.endpoint)
        two.connect(b"one", one.endpoint)
        for chunk in range(4):
            view = memoryview(data)[chunk * MIB : (chunk + 1) * MIB]
            one.send_chunk(b"two", b"head", view, lambda chunk=chunk: released.append(chunk))
            del view
        one.send_chunk(b"nobody", b"head", memoryview(bytes(MIB)), lambda: released.append(9))
        assert released.count(9) == 1
        got = 0
        target = bytearray(MIB)

        def receive() -> bool:
            nonlocal got
            found = two.receive()
            if found is not None:
                assert found == (b"one", b"head", True)
                assert two.receive_into(memoryview(target)) == MIB
                assert target == b"x" * MIB
                got += 1
            return got == 4

        wait_until(receive)
        wait_until(lambda: sorted(released) == [0, 1, 2, 3, 9])
    finally:
        one.close()
        two.close()


def test_strangers_and_nonsense_are_counted_and_change_nothing(ends):
    source, puller = ends(2)
    source.store(OBJECT, 9 * MIB)
    context = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        announce(socket, b"stranger", b"1")
        socket.connect(source.bulk.endpoint)
        socket.send(pack(Ask(1, OBJECT, 9 * MIB, 0, [0])))
        socket.send_multipart([pack(Chunk(1, 0)), b"y", b"z"])
        known = context.socket(zmq.DEALER)
        announce(known, b"known", b"1")
        source.bulk.connect(b"known", "tcp://127.0.0.1:1")
        known.connect(source.bulk.endpoint)
        for frames in (
            [b"\xc1"],
            [pack(Chunk(1, 0))],
            [b"", os.urandom(5), b""],
            [pack(Ask(1, OBJECT, 9 * MIB, 0, [0])), b"more"],
        ):
            known.send_multipart(frames)
        refused = source.bulk.statistics
        settle([source], lambda: refused()["refused_messages"] == 6, "all to be refused")
        puller.bulk.want(OBJECT, 9 * MIB, [source.name], Priority.GET)
        settle([source, puller], lambda: OBJECT in puller.ended, "the object")
        assert puller.bytes_of(OBJECT) == source.bytes_of(OBJECT)
    finally:
        context.destroy(0)


@pytest.mark.parametrize("is_source", [True, False])
def test_no_chunk_is_taken_from_who_is_no_source(ends, is_source):
    """A gateway's chunk could be of a pickle, and it need not be asked to send one."""
    source, puller = ends(2)
    source.store(OBJECT, 2 * MIB)
    source.keeps_locates = []
    puller.bulk.want(OBJECT, 2 * MIB, [source.name], Priority.GET)
    settle([source, puller], lambda: source.keeps_locates, "the question")
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        announce(socket, b"gateway", b"1")
        puller.bulk.connect(b"gateway", "tcp://127.0.0.1:1", is_source=is_source)
        socket.connect(puller.bulk.endpoint)
        socket.send_multipart([pack(Chunk(1, 0)), bytes(MIB)])
        counts = puller.bulk.statistics
        counted = "received_bytes" if is_source else "refused_messages"
        settle([source, puller], lambda: counts()[counted], "the chunk")
    source.locate(OBJECT)
    settle([source, puller], lambda: OBJECT in puller.ended, "the object")
    if not is_source:
        assert counts()["received_bytes"] == 2 * MIB
        assert puller.bytes_of(OBJECT) == source.bytes_of(OBJECT)


@pytest.mark.parametrize("payload", [[b"short"], [bytes(MIB + 1)], [bytes(MIB), b"third"]])
def test_a_source_that_sends_a_chunk_of_another_length_is_left(ends, payload):
    source, puller = ends(2)
    source.store(OBJECT, 3 * MIB)
    liar = BulkLink(b"liar")
    context = zmq.Context()
    try:
        puller.bulk.connect(b"liar", liar.endpoint)
        liar.connect(puller.name, puller.bulk.endpoint)
        puller.bulk.want(OBJECT, 3 * MIB, [b"liar"], Priority.GET)

        def asked() -> Any:
            puller.serve()
            return liar.receive()

        _, header, _ = wait_until(asked)
        ask = unpack(header)
        assert isinstance(ask, Ask)
        puller.bulk.want(OBJECT, 3 * MIB, [source.name], Priority.GET)
        wait_until(lambda: not puller.bulk._queues.orders)  # The lie must not come before it.
        socket = context.socket(zmq.DEALER)
        announce(socket, b"liar", b"1")
        socket.connect(puller.bulk.endpoint)
        socket.send_multipart([pack(Chunk(ask.pull, ask.chunks[0])), *payload])
        settle([source, puller], lambda: OBJECT in puller.ended, "the object")
        assert isinstance(puller.ended[OBJECT], Arrived)
        assert puller.bytes_of(OBJECT) == source.bytes_of(OBJECT)
    finally:
        liar.close()
        context.destroy(0)


def test_no_memory_behind_the_extent_fails_the_pull(ends, monkeypatch):
    from zray.errors import ObjectStoreFullError

    source, puller = ends(2)
    source.store(OBJECT, 3 * MIB)

    def full(offset: int, nbytes: int) -> None:
        raise ObjectStoreFullError("the machine has no memory left")

    monkeypatch.setattr(puller.segment, "commit", full)
    puller.bulk.want(OBJECT, 3 * MIB, [source.name], Priority.GET)
    settle([source, puller], lambda: OBJECT in puller.ended, "the end")
    failed = puller.ended[OBJECT]
    assert isinstance(failed, Failed)
    assert "no memory left" in failed.reason
    assert puller.freed == [0]


@pytest.fixture
def members(tmp_path):
    """Return the keys of a cluster of three: the head's, and those of nodes "two" and "three"."""
    keys = ClusterKeys.create(str(tmp_path / "keys"))
    issued = [keys.issue(name, Role.NODE, str(tmp_path / name)) for name in ("two", "three")]
    return keys, *issued


def _hostile(name: bytes, pair: KeyPair | None, end: End, server_key: bytes) -> zmq.Socket[bytes]:
    """Return a DEALER that calls itself ``name`` and asks this end for an object."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    announce(socket, name, os.urandom(4))
    if pair is not None:
        secure_client(socket, pair, server_key)
    socket.connect(end.bulk.endpoint)
    socket.send(pack(Ask(1, OBJECT, 5 * MIB, 0, [0])))
    return socket


def test_only_members_are_let_in_and_only_under_their_own_name(members):
    """The real keys and the real guard, served by the bulk thread."""
    head, second, third = members
    shown = head.pair(Role.NODE).public
    one, two = End(b"1", head), End(b"2", second)
    hostile: list[zmq.Socket[bytes]] = []
    try:
        one.store(OBJECT, 5 * MIB)
        one.bulk.connect(b"2", two.bulk.endpoint, second.pair(Role.NODE).public)
        hostile += [
            _hostile(b"2", head.pair(Role.CLIENT), one, shown),  # A driver.
            _hostile(b"2", third.pair(Role.NODE), one, shown),  # Another node.
            _hostile(b"2", make_pair(), one, shown),  # A stranger who knows the key of the port.
            _hostile(b"2", None, one, shown),  # One without keys.
        ]

        def all_are_refused() -> bool:
            one.bulk.sweep()
            found = one.bulk.refused_connections
            return found.get("unknown key", 0) > 0 and found.get("name of another", 0) > 1

        settle([one], all_are_refused, "all of them to be refused")
        two.bulk.connect(b"1", one.bulk.endpoint, shown)
        two.bulk.want(OBJECT, 5 * MIB, [b"1"], Priority.GET)
        settle([one, two], lambda: OBJECT in two.ended, "the object")
        assert two.bytes_of(OBJECT) == one.bytes_of(OBJECT)
        assert one.bulk.statistics()["sent_bytes"] == 5 * MIB
    finally:
        for each in hostile:
            each.close()
        for end in (one, two):
            end.close()


def test_a_member_whose_key_is_revoked_is_cut_in_the_middle(members):
    head, second, _third = members
    one, two = End(b"1", head), End(b"2", second)
    try:
        one.store(OBJECT, 5 * MIB)
        one.bulk.connect(b"2", two.bulk.endpoint, second.pair(Role.NODE).public)
        two.bulk.connect(b"1", one.bulk.endpoint, head.pair(Role.NODE).public)
        two.bulk.want(OBJECT, 5 * MIB, [b"1"], Priority.GET)
        settle([one, two], lambda: OBJECT in two.ended, "the object")
        head.revoke("two")

        def cut() -> bool:
            one.bulk.sweep()
            return one.bulk.refused_connections.get("revoked key", 0) > 0

        settle([one, two], cut, "the connection to be cut")
        asked = b"p" * 16
        one.store(asked, 2 * MIB)
        two.bulk.want(asked, 2 * MIB, [b"1"], Priority.GET)

        def refusals() -> bool:
            for end in (one, two):
                end.bulk.sweep()
            return one.bulk.refused_connections.get("key that counts no more", 0) > 0

        # It dials again, is refused, and comes to no harm by what it can't send any more.
        settle([one, two], refusals, "a refusal")
        settle([one, two], lambda: two.bulk._loop.link._given_up, "what is not sent")
        assert asked not in two.ended
    finally:
        one.close()
        two.close()


def test_objects_go_on_moving_while_keys_are_changed(members):
    head, second, _third = members
    elsewhere = ClusterKeys.load(head.directory)
    one, two = End(b"1", head), End(b"2", second)
    wanted = itertools.count(1)

    def move() -> None:
        identity = next(wanted).to_bytes(16, "big")
        one.next_offset = two.next_offset = 0
        one.store(identity, 6 * MIB)
        two.bulk.want(identity, 6 * MIB, [b"1"], Priority.GET)
        settle([one, two], lambda: identity in two.ended, "the object")
        assert isinstance(two.ended[identity], Arrived)
        assert two.bytes_of(identity) == one.bytes_of(identity)

    def tell() -> None:
        """Do what links do for nodes: bring the list to the other member."""
        for end in (one, two):
            head.reload()
            second.adopt(head.roster.plain(), head.pair(Role.NODE).public)
            end.bulk.sweep()

    try:
        one.bulk.connect(b"2", two.bulk.endpoint, second.pair(Role.NODE).public)
        two.bulk.connect(b"1", one.bulk.endpoint, head.pair(Role.NODE).public)
        move()
        for step in (elsewhere.add, elsewhere.activate, elsewhere.retire):
            step(Role.NODE)
            tell()
            move()
        old = elsewhere.pair(Role.NODE).public
        for step in (elsewhere.add, elsewhere.activate):
            step(Role.NODE)
            tell()
        elsewhere.revoke(old)
        tell()
        move()
    finally:
        one.close()
        two.close()


def test_the_bulk_port_has_the_limits_of_the_control_port(members, monkeypatch):
    monkeypatch.setattr(bulk_link, "HELLO_TIMEOUT_S", 2.0)
    head = members[0]
    end = End(b"1", head)
    hostile: list[socket.socket] = []
    try:
        for number in range(300):
            made = socket.create_connection(("127.0.0.1", end.bulk.port), timeout=10)
            with contextlib.suppress(OSError):  # It may be cut already.
                made.sendall(os.urandom(number // 250 * number))
            hostile.append(made)

        def seen() -> bool:
            end.bulk.sweep()
            return end.bulk.refused_connections.get("too many handshakes from one address", 0) > 50

        settle([end], seen, "the limit of handshakes to hold")
        end.bulk.sweep()
        settle(
            [end], lambda: end.bulk.sweep() or not len(end.bulk._loop.link._port), "all to be cut"
        )
    finally:
        for each in hostile:
            each.close()
        end.close()


def test_no_bulk_port_is_opened_to_others_without_keys(no_leaks):
    with pytest.raises(SecurityError, match="can be reached from other machines"):
        BulkLink(b"open", host="0.0.0.0")


def test_a_port_that_is_taken_is_an_error_that_names_it():
    link = BulkLink(b"one")
    try:
        with pytest.raises(OSError, match=re.escape(link.endpoint)):
            BulkLink(b"two", port=link.port)
    finally:
        link.close()


def test_a_bug_in_the_bulk_thread_ends_the_node(ends):
    (end,) = ends(1)
    end.bulk._order(lambda: 1 // 0)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        wait_until(end.bulk.events)


def test_close_gives_everything_back(no_leaks):
    one, two = End(b"one"), End(b"two")
    one.bulk.connect(b"two", two.bulk.endpoint)
    two.bulk.connect(b"one", one.bulk.endpoint)
    one.store(OBJECT, 60 * MIB)
    two.bulk.want(OBJECT, 60 * MIB, [b"one"], Priority.GET)
    settle([one, two], lambda: two.bulk.statistics()["received_bytes"], "the first chunk")
    for end in (two, one):
        end.close()
    gc.collect()


def test_chunks_cover_an_object_without_gap():
    for nbytes in (1, MIB, MIB + 1, 5 * MIB - 1):
        spans = [chunk_span(nbytes, chunk) for chunk in range(chunk_count(nbytes))]
        assert [start for start, _ in spans] == list(range(0, nbytes, MIB))
        assert sum(length for _, length in spans) == nbytes
