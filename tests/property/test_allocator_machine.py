"""The allocator against a model that knows only which pages are taken.

What    A Hypothesis state machine: no overlap, nothing lost, fresh exactly when untouched.
Never   touches memory.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from zray.brokers.allocator import PAGE_BYTES, Allocator, Extent

CAPACITY_PAGES = 64


class AllocatorMachine(RuleBasedStateMachine):
    """`owner` maps each taken page to its extent; `warm` are the pages that have memory."""

    extents = Bundle("extents")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(CAPACITY_PAGES * PAGE_BYTES)
        self.owner: dict[int, int] = {}
        self.warm: set[int] = set()

    def longest_gap(self) -> int:
        longest = run = 0
        for page in range(CAPACITY_PAGES):
            run = 0 if page in self.owner else run + 1
            longest = max(longest, run)
        return longest

    @rule(target=extents, nbytes=st.integers(1, 20 * PAGE_BYTES))
    def allocate(self, nbytes: int) -> object:
        pages = -(-nbytes // PAGE_BYTES)
        fits = self.longest_gap() >= pages
        extent = self.allocator.allocate(nbytes)
        assert (extent is not None) == fits, "it fails exactly when nothing is large enough"
        if extent is None:
            return multiple()
        taken = range(extent.offset // PAGE_BYTES, extent.offset // PAGE_BYTES + pages)
        assert extent.nbytes == pages * PAGE_BYTES
        assert taken.start >= 0
        assert taken.stop <= CAPACITY_PAGES
        assert not any(page in self.owner for page in taken), "an overlap"
        assert extent.fresh or self.warm.issuperset(taken), "cold memory said to be warm"
        assert not extent.fresh or not self.warm.issuperset(taken), "warm memory said to be cold"
        self.owner.update(dict.fromkeys(taken, extent.offset))
        self.warm.update(taken)
        return extent

    @rule(extent=consumes(extents))
    def free(self, extent: Extent) -> None:
        assert self.allocator.free(extent.offset) == extent.nbytes
        for page in range(
            extent.offset // PAGE_BYTES, (extent.offset + extent.nbytes) // PAGE_BYTES
        ):
            del self.owner[page]
        with pytest.raises(ValueError, match="freed before"):
            self.allocator.free(extent.offset)

    @rule(pages=st.integers(0, CAPACITY_PAGES))
    def prefaulted(self, pages: int) -> None:
        self.allocator.prefaulted(pages * PAGE_BYTES)
        self.warm.update(range(pages))

    @rule()
    def trim(self) -> None:
        extent = self.allocator.trim()
        end = max([page + 1 for page in self.owner], default=0)
        if extent is None:
            assert not any(page >= end for page in self.warm)
            return
        assert extent.offset == end * PAGE_BYTES, "it begins where the last extent ends"
        self.warm.difference_update(range(end, CAPACITY_PAGES))

    @invariant()
    def the_books_agree(self) -> None:
        self.allocator.check()
        assert self.allocator.used_bytes == len(self.owner) * PAGE_BYTES
        assert self.allocator.free_bytes == (CAPACITY_PAGES - len(self.owner)) * PAGE_BYTES

    @rule()
    def largest_free(self) -> None:
        assert self.allocator.largest_free_bytes == self.longest_gap() * PAGE_BYTES


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
