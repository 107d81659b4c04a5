"""Until when actors may run: one page that a node writes and its zygote reads.

What    A memory file of slots, each the end of a lease in monotonic seconds. The node moves ends
        forward; the zygote, which goes on when the node process stands still, looks at them and
        stops what has none left.
Caller  brokers/hosting.py (create), actors/guards.py (attach).
Never   knows who has which slot; blocks.
"""

from __future__ import annotations

import mmap
import os

from .segment import memory_file, reopen_read_only

SLOTS = 4096
"""One for each node that actors here have their home at."""

_SLOT_BYTES = 8


class LeaseTable:
    """The table in one process.

    Args:
        descriptor: of the memory file; closed here, since a mapping keeps its own.
        writable: False maps it for reading, and not into forked children.
    """

    def __init__(self, descriptor: int, *, writable: bool) -> None:
        self.read_only_fd = reopen_read_only(descriptor) if writable else -1
        """To be passed on to who only reads it, and then closed."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._mapping = mmap.mmap(descriptor, SLOTS * _SLOT_BYTES, mmap.MAP_SHARED, protection)
        os.close(descriptor)
        if not writable and hasattr(mmap, "MADV_DONTFORK"):
            self._mapping.madvise(mmap.MADV_DONTFORK)
        # Aligned to its size: no reader ever sees one half of a new value.
        self._ends = memoryview(self._mapping).cast("d")

    @classmethod
    def create(cls) -> LeaseTable:
        """Make a table in which no lease stands."""
        descriptor = memory_file()
        os.ftruncate(descriptor, SLOTS * _SLOT_BYTES)
        return cls(descriptor, writable=True)

    def set_end(self, slot: int, end: float) -> None:
        """Say until when what is under a slot may run, in monotonic seconds."""
        self._ends[slot] = end

    def end(self, slot: int) -> float:
        """Return until when what is under a slot may run."""
        return self._ends[slot]

    def close(self) -> None:
        """Unmap it."""
        self._ends.release()
        self._mapping.close()
        if self.read_only_fd >= 0:
            os.close(self.read_only_fd)
            self.read_only_fd = -1
