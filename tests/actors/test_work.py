"""The worker's queue: what is begun, taken back and cancelled, each item by one of them only.

What    WorkQueue, with ranges that wait and one that runs.
"""

from __future__ import annotations

import pytest

from tests.actors.fakes import CALLER, OTHER, task_range
from zray.actors.work import ActorCall, ActorEnd, TaskRange, WorkQueue


@pytest.fixture
def queue() -> WorkQueue:
    return WorkQueue()


def call(number: int, client: bytes = CALLER) -> ActorCall:
    return ActorCall(client, [b"actor", number, "m", 1, b"arguments"], 0)


def claimed(queue: WorkQueue, work: TaskRange) -> list[int]:
    """Return the items that are left to be claimed, one by one."""
    found: list[int] = []
    low, high = queue.claim(work, 1)
    while low < high:
        found.append(low)
        low, high = queue.claim(work, 1)
    return found


# -- claim, unclaim --------------------------------------------------------------------------------


def test_items_are_claimed_in_order_up_to_the_end_of_the_range(queue):
    work = task_range(2, 9)
    assert [queue.claim(work, 3) for _ in range(4)] == [(2, 5), (5, 8), (8, 9), (9, 9)]


def test_unclaimed_items_are_claimed_again(queue):
    work = task_range(0, 8)
    queue.claim(work, 6)
    assert queue.unclaim(work, 4) == 4
    assert claimed(queue, work) == [4, 5, 6, 7]


def test_an_item_that_was_not_claimed_is_not_skipped_by_unclaim(queue):
    work = task_range(0, 8)
    queue.claim(work, 2)
    assert queue.unclaim(work, 5) == 5
    assert queue.claim(work, 1) == (2, 3)


# -- take_back -------------------------------------------------------------------------------------


def test_the_last_items_of_the_last_range_are_taken_back_first(queue):
    first, second = task_range(0, 4), task_range(4, 10)
    queue.items.extend((first, second))
    assert queue.take_back(4) == [[CALLER, 100, 6, 10]]
    assert queue.take_back(3) == [[CALLER, 100, 3, 4], [CALLER, 100, 4, 6]], "in their order"
    assert (claimed(queue, first), claimed(queue, second)) == ([0, 1, 2], [])


def test_of_the_running_range_only_what_has_not_been_claimed_is_taken_back(queue):
    running, waiting = task_range(0, 10), task_range(0, 2, first=200)
    queue.items.append(waiting)
    queue.running = running
    queue.claim(running, 7)
    assert queue.take_back(None) == [[CALLER, 100, 7, 10], [CALLER, 200, 0, 2]]
    assert claimed(queue, running) == []
    assert queue.take_back(None) == [], "nothing is taken back twice"


def test_the_running_range_is_the_last_to_give_items_back(queue):
    queue.running = task_range(0, 5)
    queue.items.append(task_range(0, 5, first=200))
    assert queue.take_back(6) == [[CALLER, 100, 4, 5], [CALLER, 200, 0, 5]]


def test_what_a_lease_holder_sent_is_not_the_nodes_to_take_back(queue):
    leased, queued = task_range(direct=True), task_range(0, 3, first=200)
    queue.items.extend((queued, leased))
    assert queue.take_back(1) == [[CALLER, 200, 2, 3]]
    assert claimed(queue, leased) == list(range(10))


def test_nothing_is_taken_back_where_nothing_is_asked_for(queue):
    work = task_range()
    queue.items.append(work)
    assert queue.take_back(0) == []
    assert claimed(queue, work) == list(range(10))


def test_actor_calls_are_not_taken_back(queue):
    items = [call(1), ActorEnd(b"actor", 0, killed=False)]
    queue.items.extend(items)
    assert queue.take_back(None) == []
    assert list(queue.items) == items


# -- cancel ----------------------------------------------------------------------------------------


def test_a_waiting_task_is_marked_and_the_others_are_not(queue):
    work = task_range()
    queue.items.append(work)
    assert queue.cancel(CALLER, 100, 3, begun=-1) is work
    assert queue.cancel(CALLER, 100, 7, begun=-1) is work
    assert work.cancelled == {3, 7}


@pytest.mark.parametrize(
    ("client", "first", "item"),
    [(OTHER, 100, 5), (CALLER, 200, 5), (CALLER, 100, 10), (CALLER, 100, 1)],
    ids=["of another caller", "of another batch", "behind the range", "before the range"],
)
def test_a_task_that_does_not_wait_here_is_not_marked(queue, client, first, item):
    work = task_range(2, 10)
    queue.items.append(work)
    assert queue.cancel(client, first, item, begun=-1) is None
    assert work.cancelled is None


def test_a_batch_in_two_ranges_has_its_task_marked_in_the_right_one(queue):
    first, second = task_range(0, 5), task_range(5, 10)
    queue.items.extend((first, second))
    assert queue.cancel(CALLER, 100, 6, begun=-1) is second
    assert (first.cancelled, second.cancelled) == (None, {6})


def test_an_item_that_is_claimed_and_has_not_begun_can_still_be_cancelled(queue):
    work = queue.running = task_range()
    queue.claim(work, 8)
    assert queue.cancel(CALLER, 100, 3, begun=3) is None, "it runs"
    assert queue.cancel(CALLER, 100, 4, begun=3) is work
    assert work.cancelled == {4}


def test_how_far_the_running_range_is_says_nothing_of_another_range(queue):
    queue.running = task_range()
    waiting = task_range(first=200)
    queue.claim(waiting, 5)  # Claimed by whoever runs it: not what runs in the main thread.
    queue.items.append(waiting)
    assert queue.cancel(CALLER, 200, 4, begun=0) is None


def test_a_task_that_was_taken_back_is_not_cancelled_here(queue):
    work = task_range()
    queue.items.append(work)
    queue.take_back(5)
    assert queue.cancel(CALLER, 100, 5, begun=-1) is None
    assert queue.cancel(CALLER, 100, 4, begun=-1) is work


# -- find_call -------------------------------------------------------------------------------------


def test_a_waiting_call_is_found_by_its_caller_and_number(queue):
    mine, theirs = call(7), call(7, OTHER)
    queue.items.extend((task_range(first=7), theirs, call(6), mine))
    assert queue.find_call(CALLER, 7) is mine
    assert queue.find_call(OTHER, 7) is theirs
    assert queue.find_call(OTHER, 6) is None
