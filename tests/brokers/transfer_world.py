"""Several transfer machines on a network of queues.

What    World: nodes, their memory and one queue from each to each, which a test carries, cuts or
        ends. A chunk is the pair (object, number), read from the source's memory when it is
        delivered, as ZeroMQ does: memory that was given back too early is noticed.
Caller  tests/brokers/test_transfer.py, tests/property/test_transfer_machine.py.
Never   opens a socket.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zray.brokers.transfer import Transfer
from zray.brokers.transferring import (
    Allocate,
    Arrived,
    Failed,
    FreeExtent,
    Locate,
    Priority,
    Send,
    SendChunk,
    Unpin,
)
from zray.protocol.chunks import CHUNK_BYTES, Ask, pack, unpack

MIB = CHUNK_BYTES
SPACE = 1 << 40
"""Extents of the model lie this far apart."""


def name_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Node:
    """One node of the model: its machine, its memory and what it owes its machine."""

    def __init__(self, world: World, name: bytes, budget_bytes: int) -> None:
        self.world = world
        self.name = name
        self.transfer = Transfer(name, budget_bytes)
        self.memory: dict[int, dict[int, Any]] = {}
        """Extents that are handed out: offset -> chunk -> value."""
        self.stored: dict[bytes, tuple[int, int]] = {}
        """Complete objects: (offset, bytes)."""
        self.pins: dict[int, int] = {}
        self.wanted: set[bytes] = set()
        self.ended: list[Arrived | Failed] = []
        self.allocating: list[Allocate] = []
        self.locating: list[Locate] = []
        self.next_extent = 1

    def extent(self) -> int:
        offset = self.next_extent * SPACE
        self.next_extent += 1
        self.memory[offset] = {}
        return offset

    def store(self, identity: bytes, nbytes: int) -> None:
        offset = self.extent()
        for chunk in range(-(-nbytes // MIB)):
            self.memory[offset][chunk] = (identity, chunk)
        self.stored[identity] = offset, nbytes

    def want(
        self, identity: bytes, nbytes: int, sources: list[bytes], priority: Priority = Priority.GET
    ) -> None:
        self.settle()  # The end of an earlier want comes before this one, as in bulk.py.
        self.wanted.add(identity)
        self.transfer.want(identity, nbytes, sources, priority, self.world.now)

    def settle(self) -> None:
        for command in self.transfer.take(self.world.now):
            match command:
                case Allocate():
                    self.allocating.append(command)
                case FreeExtent(offset):
                    del self.memory[offset]
                case Arrived(identity, offset, nbytes, pinned):
                    self.arrived(command)
                    if identity in self.stored:
                        assert not pinned
                        del self.memory[offset]  # Never in a node; harmless in the model.
                        continue
                    self.stored[identity] = offset, nbytes
                    if pinned:
                        self.pins[offset] = self.pins.get(offset, 0) + 1
                case Failed(identity):
                    self.wanted.remove(identity)
                    self.ended.append(command)
                case Locate():
                    self.locating.append(command)
                case Unpin(_, offset):
                    self.pins[offset] -= 1
                    assert self.pins[offset] >= 0
                case Send(peer, message):
                    self.world.post(self.name, peer, unpack(pack(message)))
                case SendChunk():
                    self.world.post(self.name, command.peer, command)
        self.transfer.check()

    def arrived(self, command: Arrived) -> None:
        self.wanted.remove(command.object)
        self.ended.append(command)
        count = -(-command.nbytes // MIB)
        expected = {chunk: (command.object, chunk) for chunk in range(count)}
        assert self.memory[command.offset] == expected

    def answer_allocate(self, *, refuse: bool = False) -> None:
        asked = self.allocating.pop(0)
        if refuse:
            self.transfer.refused(asked.pull, "the store is full")
        else:
            self.transfer.allocated(asked.pull, self.extent(), False, self.world.now)

    def answer_locate(self) -> None:
        asked = self.locating.pop(0)
        found = self.stored.get(asked.object)
        if found is None:
            self.transfer.absent(asked.object, "it is not here")
            return
        self.pins[found[0]] = self.pins.get(found[0], 0) + 1
        self.transfer.located(asked.object, *found)

    def receive(self, sender: bytes, message: Any) -> None:
        if isinstance(message, tuple):
            pull, chunk, value = message
            place = self.transfer.destination(pull, chunk)
            if place is not None:
                offset, nbytes, _fresh = place
                extent = self.memory[offset // SPACE * SPACE]
                assert chunk not in extent, "bytes that may be read elsewhere were written again"
                assert (offset % SPACE, value[1]) == (chunk * MIB, chunk)
                assert 0 < nbytes <= MIB
                extent[chunk] = value
            self.transfer.chunk(sender, pull, chunk, self.world.now)
        else:
            self.transfer.received(sender, message, self.world.now)


class World:
    """Nodes, and one queue from each to each."""

    def __init__(self, count: int = 2, budget_bytes: int = 100 * MIB) -> None:
        self.now = 100.0
        self.nodes = {
            name: Node(self, name, budget_bytes)
            for name in (b"node-%03d" % number for number in range(count))
        }
        self.links: dict[tuple[bytes, bytes], deque[Any]] = {}
        self.late: list[tuple[bytes, bytes, Any]] = []
        self.carried: list[tuple[bytes, bytes, Any]] = []

    def __getitem__(self, number: int) -> Node:
        return self.nodes[b"node-%03d" % number]

    def post(self, sender: bytes, receiver: bytes, message: Any) -> None:
        if receiver in self.nodes:
            self.links.setdefault((sender, receiver), deque()).append(message)
        elif isinstance(message, SendChunk):
            self.nodes[sender].transfer.sent(message.serial)

    def deliver(self, sender: bytes, receiver: bytes) -> None:
        message = self.links[sender, receiver].popleft()
        self.carried.append((sender, receiver, message))
        node = self.nodes[sender]
        if isinstance(message, SendChunk):
            extent = node.memory[message.offset // SPACE * SPACE]
            chunk = message.offset % SPACE // MIB
            arrived = message.pull, message.chunk, extent[chunk]
            node.transfer.sent(message.serial)
            self.late.append((sender, receiver, arrived))
            self.nodes[receiver].receive(sender, arrived)
        else:
            self.nodes[receiver].receive(sender, message)

    def cut(self, sender: bytes, receiver: bytes) -> None:
        """A connection breaks: what is on its way in one direction is lost."""
        for message in self.links.pop((sender, receiver), ()):
            if isinstance(message, SendChunk) and sender in self.nodes:
                self.nodes[sender].transfer.sent(message.serial)

    def kill(self, name: bytes) -> None:
        del self.nodes[name]
        for sender, receiver in list(self.links):
            if name in (sender, receiver):
                self.cut(sender, receiver)
        for node in self.nodes.values():
            node.transfer.node_died(name)

    def busy_links(self) -> list[tuple[bytes, bytes]]:
        return [link for link, queue in sorted(self.links.items()) if queue]

    def step(self) -> bool:
        """Let every node answer, and every queue carry one message; returns whether any did."""
        moved = False
        for node in list(self.nodes.values()):
            node.settle()
            while node.allocating:
                node.answer_allocate()
                moved = True
            while node.locating:
                node.answer_locate()
                moved = True
            node.settle()
        for link in self.busy_links():
            self.deliver(*link)
            moved = True
        return moved

    def step_by_uplink(self, turn: int) -> None:
        """As step(), but each node sends one chunk at the most, as one wire does."""
        for node in list(self.nodes.values()):
            node.settle()
            while node.allocating:
                node.answer_allocate()
            while node.locating:
                node.answer_locate()
            node.settle()
        links = self.busy_links()
        first = turn % max(1, len(links))
        busy: set[bytes] = set()
        for link in links[first:] + links[:first]:
            queue = self.links[link]
            while queue and not isinstance(queue[0], SendChunk):
                self.deliver(*link)
            if queue and link[0] not in busy:
                busy.add(link[0])
                self.deliver(*link)

    def run(self, limit: int = 10_000) -> None:
        while self.step():
            limit -= 1
            assert limit, "the nodes never come to rest"

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            for node in self.nodes.values():
                node.transfer.tick(self.now)
            self.run()

    def asks(self, reader: Node) -> list[tuple[bytes, Ask]]:
        """Return the ASKs that were carried from this node."""
        return [
            (receiver, message)
            for sender, receiver, message in self.carried
            if sender == reader.name and isinstance(message, Ask)
        ]
