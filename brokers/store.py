"""The node's shared memory: who leases which extent, and what to do when it is full.

What    Extents come from the one allocator. When it is full, clients are asked for idle extents
        and private objects, then the oldest objects that nobody has mapped are written to disk by
        a thread; what still does not fit after the wait fails with a table of who holds what.
Caller  brokers/node.py.
Never   reads or unpickles a value.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from zray.errors import ObjectLostError, ObjectStoreFullError, OutOfDiskError
from zray.protocol.limits import STORE_FULL_WAIT_S
from zray.store.segment import Segment

from .allocator import Allocator, Extent
from .directory import Directory
from .spill import SpillStore

_SPARES_MAX = 15
_SPARES_BYTES = 4 << 20
"""Asking for an extent takes 150 us and writing 1 MB into one 50: most writes should not ask. But
each extent costs each process that maps it 400 us at first touch, so few should go round."""
_PREFAULT_BYTES = 64 << 20
_DISK_RETRY_S = 0.2
"""A full disk is not asked again before this."""


@dataclass(slots=True)
class Request:
    """An allocation that waits for room."""

    process: bytes
    nbytes: int
    deadline: float
    done: Callable[[Extent | None, Exception | None], None]


class Store:
    """Memory and spill files of one node.

    Args:
        capacity_bytes: size of the segment.
        directory: the object directory, which knows what may be spilled.
        spill_directory: where spilled objects go.
        spill_shared: other nodes and files may be in that directory.
        ask_clients: called when memory is short: clients give back what they can.
        unpin: called with {process: objects} that the process should forget the place of.
        wake: called from the spill thread when it has finished something.
    """

    def __init__(
        self,
        capacity_bytes: int,
        directory: Directory,
        spill_directory: str,
        *,
        ask_clients: Callable[[], None],
        unpin: Callable[[dict[bytes, list[bytes]]], None],
        wake: Callable[[], None],
        spill_shared: bool = False,
    ) -> None:
        self.segment = Segment.create(capacity_bytes)
        self.allocator = Allocator(self.segment.capacity_bytes)  # In whole pages by now.
        self.directory = directory
        self.spill = SpillStore(spill_directory, shared=spill_shared)
        self.leased: dict[int, tuple[bytes, int, bool]] = {}
        """Extents in a client's hands: offset -> (process, bytes, fresh)."""
        self.waiting: deque[Request] = deque()
        self.spilling: dict[bytes, int] = {}
        self.pins: dict[int, int] = {}
        """Extents that are being sent to other nodes, and how often each: they stay."""
        self._free_later: set[int] = set()
        """Of these, the ones whose object is gone."""
        self.disk_error: OutOfDiskError | None = None
        self.restores = 0
        """Objects read back from disk so far."""
        self._holes: dict[int, int] = {}
        """Extents that came back without memory behind them: offset -> bytes."""
        self._spill_again_at = 0.0
        self._ask_clients = ask_clients
        self._unpin = unpin
        self._wake = wake
        self._asked_at = -1.0
        self._jobs: deque[Callable[[], Callable[[], None]]] = deque()
        self._done: deque[Callable[[], None]] = deque()
        self._signal = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.segment.prefault(min(_PREFAULT_BYTES, capacity_bytes // 4))

    # -- allocating ------------------------------------------------------------------------------

    def allocate(
        self,
        process: bytes,
        nbytes: int,
        now: float,
        done: Callable[[Extent | None, Exception | None], None],
    ) -> None:
        """Lease an extent to a process: done(extent, None), perhaps later, or done(None, error)."""

        def leased(extent: Extent | None, error: Exception | None) -> None:
            if extent is not None:
                if not extent.fresh and self._holes and self._has_hole(extent):
                    extent = replace(extent, fresh=True)
                self.leased[extent.offset] = (process, extent.nbytes, extent.fresh)
            done(extent, error)

        if not self.waiting:
            extent = self.allocator.allocate(nbytes)
            if extent is not None:
                leased(extent, None)
                return
        self.waiting.append(Request(process, nbytes, now + STORE_FULL_WAIT_S, leased))
        self._asked_at = -1.0
        self.serve(now)

    def spares(self, process: bytes, nbytes: int) -> list[int]:
        """Lease a few more warm extents of the same size: who makes one object makes more.

        None where memory is not plentiful, and never fresh pages, which would cost their commit.
        """
        spares: list[int] = []
        allocator = self.allocator
        if self.waiting:
            return spares
        count = min(_SPARES_MAX, _SPARES_BYTES // nbytes)
        while len(spares) < count and allocator.free_bytes * 2 > self.segment.capacity_bytes:
            extent = allocator.allocate(nbytes)
            if extent is None:
                break
            if extent.fresh or self._has_hole(extent):
                allocator.free(extent.offset)
                break
            self.leased[extent.offset] = (process, extent.nbytes, False)
            spares.append(extent.offset)
        return spares

    def serve(self, now: float) -> None:
        """Serve waiting requests in order; make room for the first that does not fit."""
        while self.waiting:
            request = self.waiting[0]
            extent = self.allocator.allocate(request.nbytes)
            if extent is not None:
                self.waiting.popleft()
                request.done(extent, None)
                continue
            self._make_room(now, request.nbytes)
            if now < request.deadline or self.spilling:
                return
            self.waiting.popleft()
            request.done(None, self._full(request.nbytes))

    def _make_room(self, now: float, nbytes: int) -> None:
        if now - self._asked_at > 0.1:
            self._asked_at = now
            self._ask_clients()
        if now < self._spill_again_at:
            return  # The disk was full a moment ago.
        wanted = nbytes - sum(self.spilling.values())
        for identity, entry in self.directory.stored():
            if wanted <= 0:
                return
            # What another node keeps need not be written: it is fetched again.
            if (
                identity not in self.spilling
                and entry.offset not in self.pins
                and self.directory.drop_copy(identity)
            ):
                wanted -= entry.nbytes
        pinned: dict[bytes, list[bytes]] = {}
        for identity, entry in self.directory.stored():
            if wanted <= 0:
                break
            if identity in self.spilling or entry.copies or entry.offset in self.pins:
                continue
            if entry.pinned:
                for process in sorted(entry.pinned):
                    pinned.setdefault(process, []).append(identity)
                continue
            self._spill(identity, entry.offset, entry.nbytes)
            wanted -= entry.nbytes
        if wanted > 0 and pinned and self._asked_at == now:
            self._unpin(pinned)

    def _full(self, nbytes: int) -> Exception:
        held: dict[str, int] = {}
        for process, extent_bytes, _fresh in self.leased.values():
            name = f"private to or cached by process {process.hex()}"
            held[name] = held.get(name, 0) + extent_bytes
        for _identity, entry in self.directory.stored():
            for process in sorted(entry.pinned):
                name = f"mapped by process {process.hex()}"
                held[name] = held.get(name, 0) + entry.nbytes
        rows = "; ".join(
            f"{name}: {amount} bytes"
            for name, amount in sorted(held.items(), key=lambda row: -row[1])[:8]
        )
        text = (
            f"no room for {nbytes} bytes in a store of {self.segment.capacity_bytes} bytes,"
            f" of which {self.allocator.used_bytes} are used ({rows or 'fragmented'})"
        )
        if self.disk_error is not None:
            return OutOfDiskError(f"{text}; spilling failed: {self.disk_error}")
        return ObjectStoreFullError(
            f"{text}. Drop references and arrays you do not need, or start"
            " the node with a larger object_store_memory"
        )

    # -- giving back -----------------------------------------------------------------------------

    def registered(self, offset: int) -> None:
        """A leased extent holds a sealed object now: it is the node's."""
        lease = self.leased.pop(offset, None)
        if lease is not None and lease[2] and self._holes:
            self._fill_holes(offset, lease[1])

    def owns(self, process: bytes, offset: int) -> bool:
        """Return whether this extent is leased to this process."""
        found = self.leased.get(offset)
        return found is not None and found[0] == process

    def freed(self, process: bytes, offsets: list[int]) -> None:
        """FREE: extents that a process gives back; others' are ignored."""
        for offset in offsets:
            if self.owns(process, offset):
                self._take_back(offset)

    def free_extent(self, offset: int) -> None:
        """An object's extent is free, as soon as nothing is sent from it."""
        if offset in self.pins:
            self._free_later.add(offset)
            return
        self.leased.pop(offset, None)
        self.allocator.free(offset)

    def pin(self, offset: int) -> None:
        """An extent is being sent to other nodes: it stays until unpin()."""
        self.pins[offset] = self.pins.get(offset, 0) + 1

    def unpin(self, offset: int) -> None:
        """Give one pin() back."""
        count = self.pins.pop(offset) - 1
        if count:
            self.pins[offset] = count
        elif offset in self._free_later:
            self._free_later.discard(offset)
            self.free_extent(offset)

    def process_died(self, process: bytes) -> None:
        """Free every extent that a dead process had leased, or waits for."""
        if any(request.process == process for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if request.process != process)
        for offset in [offset for offset, lease in self.leased.items() if lease[0] == process]:
            self._take_back(offset)

    def _take_back(self, offset: int) -> None:
        """Free a leased extent; a fresh one may never have been given memory."""
        _process, nbytes, fresh = self.leased.pop(offset)
        if fresh:
            self._fill_holes(offset, nbytes)
            self._holes.update(self.segment.holes(offset, nbytes))
        self.allocator.free(offset)

    def _fill_holes(self, offset: int, nbytes: int) -> None:
        """All of this extent was committed, or is looked at again."""
        for at in [at for at in self._holes if offset <= at < offset + nbytes]:
            del self._holes[at]

    def _has_hole(self, extent: Extent) -> bool:
        end = extent.offset + extent.nbytes
        return any(
            offset < end and extent.offset < offset + nbytes
            for offset, nbytes in self._holes.items()
        )

    # -- spilling and restoring, in the thread -----------------------------------------------------

    def _spill(self, identity: bytes, offset: int, nbytes: int) -> None:
        self.spilling[identity] = nbytes

        def write() -> Callable[[], None]:
            try:
                file = self.spill.write(identity, self.segment.readable(offset, nbytes, _nothing))
            except OutOfDiskError as error:
                failure = error  # The name of an except clause is gone after it.

                def failed() -> None:
                    self.disk_error = failure
                    self._spill_again_at = time.monotonic() + _DISK_RETRY_S
                    self.spilling.pop(identity, None)

                return failed

            def done() -> None:
                self.disk_error = None
                self.spilling.pop(identity, None)
                if not self.directory.spilled(identity, file):
                    self.spill.delete(file)

            return done

        self._submit(write)

    def restore(self, identity: bytes, now: float, failed: Callable[[Exception], None]) -> None:
        """Bring a spilled object back into memory, then tell those who wait."""
        entry = self.directory.entries.get(identity)
        if entry is None or entry.file is None:
            return
        file, nbytes = entry.file, entry.nbytes

        def got(extent: Extent | None, error: Exception | None) -> None:
            if extent is None:
                assert error is not None
                failed(error)
                return

            def read() -> Callable[[], None]:
                try:
                    self.segment.commit(extent.offset, extent.nbytes)
                    self.spill.read_into(file, self.segment.writable(extent.offset, nbytes))
                except (ObjectLostError, ObjectStoreFullError, OSError) as error:
                    failure = error

                    def unread() -> None:
                        self.allocator.free(extent.offset)
                        failed(failure)

                    return unread

                def done() -> None:
                    self.restores += 1
                    if not self.directory.restored(identity, extent.offset):
                        self.allocator.free(extent.offset)

                return done

            self._submit(read)

        self.allocate(b"", nbytes, now, lambda extent, error: got(self._unlease(extent), error))

    def _unlease(self, extent: Extent | None) -> Extent | None:
        if extent is not None:
            self.leased.pop(extent.offset, None)
        return extent

    def _submit(self, job: Callable[[], Callable[[], None]]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="zray-spill", daemon=True)
            self._thread.start()
        self._jobs.append(job)
        self._signal.release()

    def _work(self) -> None:
        while True:
            self._signal.acquire()
            if not self._jobs:
                return
            self._done.append(self._jobs.popleft()())
            self._wake()

    def settle(self) -> None:
        """Apply what the thread has finished (called by the node after a wake)."""
        while self._done:
            self._done.popleft()()

    # -- for people, tests and the end -------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Return sizes for status and metrics."""
        return {
            "capacity_bytes": self.segment.capacity_bytes,
            "used_bytes": self.allocator.used_bytes,
            "leased_bytes": sum(lease[1] for lease in self.leased.values()),
            "waiting_allocations": len(self.waiting),
            "spill_bytes": self.spill.used_bytes,
            "restores": self.restores,
        }

    def close(self) -> None:
        """Stop the thread, delete spill files, unmap."""
        if self._thread is not None:
            self._jobs.clear()
            self._signal.release()
            self._thread.join(5.0)
        self.segment.stop_prefault()
        self.spill.close()
        self.segment.close()


def _nothing() -> None:
    return
