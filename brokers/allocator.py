"""Which extent of the segment is whose: allocation without waste and without waiting.

What    Pages of 4 KiB. In front, a last-in-first-out list for each exact size: the block freed last
        is the warmest. Behind it a coalescing allocator, into which the lists are emptied when it
        cannot serve. Memory that was never handed out is taken last, because its first touch
        costs ten times a reuse.
Caller  brokers/store.py.
Never   touches the memory itself, or moves a block.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of the segment.

    Attributes:
        offset: where it begins, in bytes.
        nbytes: its length, whole pages.
        fresh: some page of it may have no memory behind it yet and has to be committed.
    """

    offset: int
    nbytes: int
    fresh: bool


class Allocator:
    """The only allocator of a segment. Offsets and sizes inside are in pages."""

    def __init__(self, capacity_bytes: int) -> None:
        """Begin with an empty segment of `capacity_bytes`, whole pages, none of them touched."""
        if capacity_bytes <= 0 or capacity_bytes % PAGE_BYTES:
            raise ValueError(f"the capacity must be whole pages of {PAGE_BYTES} bytes")
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._capacity = capacity_bytes // PAGE_BYTES
        self._used: dict[int, int] = {}
        self._quick: dict[int, list[int]] = {}
        self._blocks = _FreeBlocks()
        # Pages from _frontier on were never handed out; those below _committed have memory.
        self._frontier = 0
        self._committed = 0

    @property
    def free_bytes(self) -> int:
        """Bytes that are not handed out, in however many pieces."""
        return self.capacity_bytes - self.used_bytes

    @property
    def largest_free_bytes(self) -> int:
        """The largest size that allocate() would serve now."""
        self._empty_quick_lists()
        tail = self._blocks.ending_at(self._frontier)
        return max(self._blocks.largest(), tail + self._capacity - self._frontier) * PAGE_BYTES

    def allocate(self, nbytes: int) -> Extent | None:
        """Hand out at least `nbytes`; None where no free piece is that large."""
        if nbytes <= 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        pages = -(-nbytes // PAGE_BYTES)
        quick = self._quick.get(pages)
        if quick:
            return self._hand_out(quick.pop(), pages)
        start = self._blocks.take(pages)
        if start is None and self._quick:
            self._empty_quick_lists()
            start = self._blocks.take(pages)
        if start is None:
            start = self._take_frontier(pages)
        return None if start is None else self._hand_out(start, pages)

    def free(self, offset: int) -> int:
        """Take an extent back; returns its length in bytes.

        Raises:
            ValueError: nothing is handed out at `offset`: a double free, or no offset at all.
        """
        start, within = divmod(offset, PAGE_BYTES)
        pages = 0 if within else self._used.pop(start, 0)
        if not pages:
            raise ValueError(f"no extent is handed out at {offset}: it was freed before")
        self.used_bytes -= pages * PAGE_BYTES
        self._quick.setdefault(pages, []).append(start)
        return pages * PAGE_BYTES

    def prefaulted(self, nbytes: int) -> None:
        """Learn that the first `nbytes` have memory behind them: extents there are not fresh."""
        self._committed = max(self._committed, min(nbytes // PAGE_BYTES, self._capacity))

    def trim(self) -> Extent | None:
        """Give up the free memory at the end of what was ever used, so that it can be punched.

        Returns:
            The extent that counts as never handed out from now on; None where the end is in use.
        """
        self._empty_quick_lists()
        pages = self._blocks.ending_at(self._frontier)
        start = self._frontier - pages
        end = max(self._frontier, self._committed)
        if start == end:
            return None
        if pages:
            self._blocks.remove(start, pages)
        self._frontier = self._committed = start
        return Extent(start * PAGE_BYTES, (end - start) * PAGE_BYTES, fresh=True)

    def check(self) -> None:
        """Assert that every page below the frontier is used, in a list or free, exactly once."""
        self._blocks.check()
        pieces = [(start, pages, "used") for start, pages in self._used.items()]
        for pages, starts in self._quick.items():
            pieces += [(start, pages, "quick") for start in starts]
        pieces += [(start, pages, "free") for start, pages in self._blocks.items()]
        end, before = 0, ""
        for start, pages, kind in sorted(pieces):
            assert start == end, f"pages {end} to {start} are lost or in two pieces"
            assert pages > 0, f"an empty piece at {start}"
            assert (kind, before) != ("free", "free"), f"free blocks meet at {start}"
            end, before = start + pages, kind
        assert end == self._frontier <= self._capacity
        assert self.used_bytes == sum(self._used.values()) * PAGE_BYTES
        assert 0 <= self._committed <= self._capacity

    # -- inside ------------------------------------------------------------------------------

    def _hand_out(self, start: int, pages: int) -> Extent:
        self._used[start] = pages
        nbytes = pages * PAGE_BYTES
        self.used_bytes += nbytes
        fresh = start + pages > self._committed
        if fresh:
            self._committed = start + pages
        return Extent(start * PAGE_BYTES, nbytes, fresh)

    def _take_frontier(self, pages: int) -> int | None:
        """Take memory never handed out, together with the free block that ends where it begins."""
        tail = self._blocks.ending_at(self._frontier)
        start = self._frontier - tail
        if start + pages > self._capacity:
            return None
        if tail:
            self._blocks.remove(start, tail)
        self._frontier = start + pages
        return start

    def _empty_quick_lists(self) -> None:
        """Coalesce what lies in the lists. Each free pays for at most one of these steps."""
        for pages, starts in self._quick.items():
            for start in starts:
                self._blocks.add(start, pages)
        self._quick.clear()


class _FreeBlocks:
    """Free blocks, no two of them neighbours, in bins by size: four bins for each doubling."""

    def __init__(self) -> None:
        self._pages_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}
        self._bins: dict[int, dict[int, int]] = {}
        self._filled = 0  # Bit b is set where bin b has a block.

    def items(self) -> list[tuple[int, int]]:
        """All blocks: (start, pages)."""
        return list(self._pages_at.items())

    def ending_at(self, end: int) -> int:
        """Pages of the block that ends at `end`; 0 where none does."""
        start = self._start_before.get(end)
        return 0 if start is None else end - start

    def largest(self) -> int:
        """Pages of the largest block; 0 where there is none."""
        if not self._filled:
            return 0
        return max(self._bins[self._filled.bit_length() - 1].values())

    def add(self, start: int, pages: int) -> None:
        """Add a block, joined with its free neighbours."""
        after = self._pages_at.get(start + pages)
        if after is not None:
            self.remove(start + pages, after)
            pages += after
        before = self._start_before.get(start)
        if before is not None:
            self.remove(before, start - before)
            pages += start - before
            start = before
        self._pages_at[start] = pages
        self._start_before[start + pages] = start
        index = _bin_of(pages)
        self._bins.setdefault(index, {})[start] = pages
        self._filled |= 1 << index

    def remove(self, start: int, pages: int) -> None:
        """Remove exactly this block."""
        del self._pages_at[start]
        del self._start_before[start + pages]
        index = _bin_of(pages)
        blocks = self._bins[index]
        del blocks[start]
        if not blocks:
            self._filled &= ~(1 << index)

    def take(self, pages: int) -> int | None:
        """Take `pages` out of a block that is not much larger if there is one."""
        found = self._find(pages)
        if found is None:
            return None
        start, size = found
        self.remove(start, size)
        if size > pages:
            self.add(start + pages, size - pages)
        return start

    def _find(self, pages: int) -> tuple[int, int] | None:
        index = _bin_of(pages)
        for start, size in reversed(self._bins.get(index, {}).items()):
            if size >= pages:  # Blocks of one bin differ by a quarter at most.
                return start, size
        larger = self._filled >> (index + 1)
        if not larger:
            return None
        index += (larger & -larger).bit_length()
        return next(reversed(self._bins[index].items()))

    def check(self) -> None:
        """Assert that the three views of the blocks agree."""
        seen = 0
        for index, blocks in self._bins.items():
            assert bool(blocks) == bool(self._filled >> index & 1), f"bin {index} and its bit"
            for start, pages in blocks.items():
                assert _bin_of(pages) == index, f"a block of {pages} pages in bin {index}"
                assert self._pages_at[start] == pages, f"the block at {start}"
                assert self._start_before[start + pages] == start, f"the end of {start}"
                seen += 1
        assert seen == len(self._pages_at) == len(self._start_before)


def _bin_of(pages: int) -> int:
    """Number of the bin: the two bits below the highest one choose among four."""
    magnitude = pages.bit_length() - 1
    quarter = (pages >> magnitude - 2) & 3 if magnitude >= 2 else (pages << 2 - magnitude) & 3
    return magnitude << 2 | quarter
