"""What stays in a node's memory and what makes way: extents that are sent from, and copies.

What    The real store with a small segment and a real directory of a node among others. Spilling
        itself is tests/brokers/test_spill.py's, and tests/sim's.
Never   sends anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zray.brokers.allocator import Extent
from zray.brokers.directory import Directory
from zray.brokers.sharing import FreeExtent
from zray.brokers.store import Store
from zray.protocol.ids import node_id, object_id, process_id

OWN, OTHER = node_id(b"ours"), node_id(b"them")
READER = process_id(OWN, b"read")
MB = 1 << 20


class Memory:
    """A store of 4 MB, and what its directory has commanded."""

    def __init__(self, folder: Path) -> None:
        self.directory = Directory(OWN)
        self.directory.process_joined(READER)
        self.directory.node_joined(OTHER)
        self.asked: list[dict[bytes, list[bytes]]] = []
        self.store = Store(
            4 * MB,
            self.directory,
            str(folder),
            ask_clients=lambda: None,
            unpin=self.asked.append,
            wake=lambda: None,
        )

    def allocate(self) -> list[Extent | None]:
        """Ask for 1 MB; what is returned has the extent as soon as it is there."""
        got: list[Extent | None] = []
        self.store.allocate(OWN, MB, 0.0, lambda extent, _error: got.append(extent))
        return got

    def copy(self, number: int) -> bytes:
        """Pull an object of the other node, for a process that has it mapped."""
        identity = object_id(process_id(OTHER, b"made"), number)
        directory = self.directory
        directory.hold(READER, [identity])
        directory.locate(READER, [identity])
        directory.found(identity, None, MB, [OTHER])
        (extent,) = self.allocate()
        assert extent is not None
        self.store.registered(extent.offset)
        directory.pulled(identity, extent.offset, MB)
        return identity

    def perform(self) -> None:
        """Free what the directory says is free."""
        commands, self.directory.commands = self.directory.commands, []
        for command in commands:
            if isinstance(command, FreeExtent):
                self.store.free_extent(command.offset)
        self.store.serve(0.0)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = Memory(tmp_path)
    yield made
    made.directory.check()
    made.store.close()


def test_an_extent_that_is_sent_from_outlives_its_object(memory: Memory) -> None:
    identity = memory.copy(1)
    offset = memory.directory.entries[identity].offset
    memory.store.pin(offset)
    memory.store.pin(offset)
    memory.directory.release(READER, [(identity, 1)], [])
    memory.perform()
    used = memory.store.allocator.used_bytes
    assert used == MB
    memory.store.unpin(offset)
    assert memory.store.allocator.used_bytes == used, "it is pinned twice"
    memory.store.unpin(offset)
    assert not memory.store.allocator.used_bytes


def test_copies_make_way_without_being_written(memory: Memory) -> None:
    copies = [memory.copy(number) for number in range(4)]
    got = memory.allocate()
    assert memory.asked == [{READER: copies}], "all of them are mapped"
    memory.directory.unpinned(READER, copies)
    memory.store.serve(1.0)
    memory.perform()
    assert got
    assert not memory.store.spilling
    assert [each for each in copies if memory.directory.entries[each].offset < 0] == copies[:1]


def test_a_copy_that_is_sent_on_does_not_make_way(memory: Memory) -> None:
    copies = [memory.copy(number) for number in range(4)]
    memory.directory.unpinned(READER, copies)
    memory.store.pin(memory.directory.entries[copies[0]].offset)
    got = memory.allocate()
    memory.perform()
    assert got
    assert [each for each in copies if memory.directory.entries[each].offset < 0] == [copies[1]]
    memory.store.unpin(memory.directory.entries[copies[0]].offset)
