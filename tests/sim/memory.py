"""A simulated node's memory and disk under the real store and allocator.

What    Extents are entries of a dict, spill files of another; the spill thread is an event.
Caller  tests/sim/node.py, tests/sim/bulk.py.
Never   decides what is freed, spilled or brought back: the store does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

from zray import errors
from zray.brokers import store
from zray.brokers.allocator import Allocator
from zray.brokers.store import Store
from zray.store.segment import Segment

if TYPE_CHECKING:
    from tests.sim.node import SimNode


@dataclass(frozen=True, slots=True)
class View:
    """Part of a node's memory, as the bulk thread reads and writes it."""

    memory: dict[int, bytes]
    offset: int
    nbytes: int

    def toreadonly(self) -> View:
        return self


class SimSegment:
    """Extents as entries of the node's memory."""

    def __init__(self, node: SimNode, capacity_bytes: int) -> None:
        self.memory = node.memory
        self.capacity_bytes = capacity_bytes

    def fds(self) -> tuple[int, int]:
        return (0, 0)

    def readable(self, offset: int, _nbytes: int, _gone: Callable[[], None]) -> int:
        return offset

    def writable(self, offset: int, nbytes: int) -> View:
        return View(self.memory, offset, nbytes)

    def commit(self, _offset: int, _nbytes: int) -> None:
        return None

    def prefault(self, _nbytes: int) -> None:
        return None

    def holes(self, _offset: int, _nbytes: int) -> list[tuple[int, int]]:
        """Return no part without memory: there is none here."""
        return []


class SimSpill:
    """Spill files in a dict."""

    def __init__(self, memory: dict[int, bytes]) -> None:
        self.memory = memory
        self.files: dict[int, bytes] = {}
        self.count = 0

    def write(self, _identity: bytes, offset: int) -> int:
        self.count += 1
        # Freed meanwhile: what is read then is thrown away.
        self.files[self.count] = self.memory.get(offset, b"")
        return self.count

    def read_into(self, file: int, view: View) -> None:
        if file not in self.files:
            raise errors.ObjectLostError("the spill file is gone")
        self.memory[view.offset] = self.files[file]

    def delete(self, file: int) -> None:
        self.files.pop(file, None)


class SimAllocator(Allocator):
    """The real allocator; what it frees is gone from memory."""

    memory: dict[int, bytes]

    def free(self, offset: int) -> int:
        self.memory.pop(offset, None)
        return super().free(offset)


class SimStore(Store):
    """The real store over simulated memory; its thread is an event of the world."""

    def __init__(self, capacity_bytes: int, node: SimNode) -> None:
        self.node = node
        segment = SimSegment(node, capacity_bytes)
        spill = SimSpill(node.memory)
        with (
            patch.object(Segment, "create", lambda _capacity: segment),
            patch.object(store, "SpillStore", lambda *_arguments, **_named: spill),
        ):
            super().__init__(
                capacity_bytes,
                node.objects,
                "",
                ask_clients=node._ask_clients,
                unpin=node._unpin,
                wake=node.wake_soon,
            )
        self.files = spill.files
        self.allocator = SimAllocator(capacity_bytes)
        self.allocator.memory = node.memory

    def _submit(self, job: Callable[[], Callable[[], None]]) -> None:
        def run() -> None:
            self._done.append(job())
            self.node.wake_soon()

        world = self.node.world
        world.after(world.rng.uniform(0.0001, 0.003), "disk", run)
