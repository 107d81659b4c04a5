"""The allocator: warm before fresh, no piece lost, every misuse refused.

What    Allocator, one rule a test; tests/property/test_allocator_machine.py does the rest.
Never   touches memory.
"""

from __future__ import annotations

import random

import pytest

from zray.brokers.allocator import PAGE_BYTES, Allocator, Extent

MIB = 1 << 20


def place(extent: Extent | None) -> int:
    assert extent is not None
    return extent.offset


def test_sizes_are_rounded_up_to_pages() -> None:
    allocator = Allocator(16 * PAGE_BYTES)
    assert allocator.allocate(1) == Extent(0, PAGE_BYTES, fresh=True)
    assert allocator.allocate(PAGE_BYTES + 1) == Extent(PAGE_BYTES, 2 * PAGE_BYTES, fresh=True)
    assert (allocator.used_bytes, allocator.free_bytes) == (3 * PAGE_BYTES, 13 * PAGE_BYTES)
    allocator.check()


def test_the_extent_freed_last_is_handed_out_first_and_is_not_fresh() -> None:
    allocator = Allocator(MIB)
    first, second = place(allocator.allocate(8192)), place(allocator.allocate(8192))
    allocator.free(second)
    allocator.free(first)
    assert allocator.allocate(8192) == Extent(first, 8192, fresh=False)
    assert allocator.allocate(8192) == Extent(second, 8192, fresh=False)
    assert allocator.allocate(8192) == Extent(16384, 8192, fresh=True)


def test_used_memory_of_another_size_is_preferred_to_fresh_memory() -> None:
    allocator = Allocator(MIB)
    offsets = [place(allocator.allocate(PAGE_BYTES)) for _ in range(8)]
    for offset in offsets:
        allocator.free(offset)
    assert allocator.allocate(5 * PAGE_BYTES) == Extent(0, 5 * PAGE_BYTES, fresh=False)
    assert allocator.allocate(3 * PAGE_BYTES) == Extent(5 * PAGE_BYTES, 3 * PAGE_BYTES, fresh=False)
    allocator.check()


def test_a_free_piece_at_the_frontier_is_joined_with_fresh_memory() -> None:
    allocator = Allocator(10 * PAGE_BYTES)
    allocator.free(place(allocator.allocate(6 * PAGE_BYTES)))
    assert allocator.allocate(10 * PAGE_BYTES) == Extent(0, 10 * PAGE_BYTES, fresh=True)
    assert allocator.allocate(1) is None
    allocator.check()


def test_after_everything_is_freed_the_whole_is_one_piece() -> None:
    allocator = Allocator(100 * PAGE_BYTES)
    offsets = [place(allocator.allocate(PAGE_BYTES * (1 + n % 3))) for n in range(50)]
    random.Random(1).shuffle(offsets)
    for offset in offsets:
        allocator.free(offset)
    assert allocator.largest_free_bytes == 100 * PAGE_BYTES
    assert allocator.allocate(100 * PAGE_BYTES) is not None


def test_largest_free_bytes_is_what_can_be_allocated() -> None:
    allocator = Allocator(10 * PAGE_BYTES)
    offsets = [place(allocator.allocate(PAGE_BYTES)) for _ in range(10)]
    assert allocator.largest_free_bytes == 0
    for index in (1, 2, 3, 5, 6):
        allocator.free(offsets[index])
    assert allocator.largest_free_bytes == 3 * PAGE_BYTES
    assert allocator.allocate(4 * PAGE_BYTES) is None
    assert place(allocator.allocate(3 * PAGE_BYTES)) == offsets[1]


@pytest.mark.parametrize("offset", [0, 1, PAGE_BYTES, 2 * PAGE_BYTES, -PAGE_BYTES])
def test_what_is_not_handed_out_cannot_be_freed(offset: int) -> None:
    allocator = Allocator(MIB)
    taken = place(allocator.allocate(3 * PAGE_BYTES))
    allocator.free(taken)
    with pytest.raises(ValueError, match="freed before"):
        allocator.free(offset)
    allocator.check()


def test_prefaulted_memory_is_not_fresh() -> None:
    allocator = Allocator(MIB)
    allocator.prefaulted(4 * PAGE_BYTES)
    assert allocator.allocate(3 * PAGE_BYTES) == Extent(0, 3 * PAGE_BYTES, fresh=False)
    assert allocator.allocate(2 * PAGE_BYTES) == Extent(3 * PAGE_BYTES, 2 * PAGE_BYTES, fresh=True)
    allocator.prefaulted(PAGE_BYTES)
    allocator.check()


def test_trimmed_memory_is_fresh_again() -> None:
    allocator = Allocator(MIB)
    kept = place(allocator.allocate(PAGE_BYTES))
    for offset in [place(allocator.allocate(PAGE_BYTES)) for _ in range(3)]:
        allocator.free(offset)
    assert allocator.trim() == Extent(PAGE_BYTES, 3 * PAGE_BYTES, fresh=True)
    assert allocator.trim() is None
    assert allocator.allocate(PAGE_BYTES) == Extent(PAGE_BYTES, PAGE_BYTES, fresh=True)
    allocator.free(kept)
    allocator.check()


@pytest.mark.parametrize("capacity_bytes", [0, -PAGE_BYTES, 5000])
def test_a_capacity_must_be_whole_pages(capacity_bytes: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        Allocator(capacity_bytes)


def test_nothing_is_no_size() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        Allocator(MIB).allocate(0)


def test_random_lifetimes_fill_over_seventy_percent_before_one_fails() -> None:
    allocator = Allocator(1 << 30)
    draw = random.Random(2)
    live: list[Extent] = []
    target = 0.5
    for step in range(100_000):
        nbytes = min(int(draw.lognormvariate(13, 1.5)) + PAGE_BYTES, 16 << 20)
        while allocator.used_bytes + nbytes > target * (1 << 30):
            index = draw.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            allocator.free(live.pop().offset)
        extent = allocator.allocate(nbytes)
        if extent is None:
            break
        live.append(extent)
        if step % 500 == 0:
            target += 0.02
    assert allocator.used_bytes > 0.7 * (1 << 30)
    allocator.check()
