"""Offers of idle nodes: who is told, how often, and what the one that waits makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.brokers.test_borrowing import ONE, OTHER, Home
from zray.brokers.load import LoadTable, NodeLoad
from zray.brokers.offering import whom_to_help
from zray.brokers.scheduling import Borrow, Claim, Offer

BUSY_US = 50_000


def is_loaded(home: Home, node: bytes, tasks: int, wait_us: int = BUSY_US) -> None:
    """Another node reports a queue."""
    home.hear(node, {"CPU": 2 * ONE}, {})
    row = home.borrowing.table.rows[node]
    home.revision += 1
    home.borrowing.heard(replace(row, queue_tasks=tasks, wait_us=wait_us, revision=home.revision))


def offers(home: Home, after_s: float = 0.0) -> list[bytes]:
    home.now += after_s
    home.scheduler.offering.tick(home.now)
    return [each.node for each in home.take() if isinstance(each, Offer)]


def test_an_idle_node_tells_one_that_waits_and_then_less_and_less_often() -> None:
    home = Home()
    is_loaded(home, OTHER, 20)
    assert offers(home) == [OTHER]
    assert offers(home, 0.005) == []
    told = sum(len(offers(home, 0.005)) for _ in range(400))
    assert 3 < told < 12, "every half a second at last, in two seconds"


def test_what_was_taken_makes_the_next_offer_come_soon() -> None:
    home = Home()
    is_loaded(home, OTHER, 20)
    for _ in range(400):
        offers(home, 0.005)
    home.lending.given += 1
    assert offers(home, 0.6) == [OTHER]
    assert offers(home, 0.02) == [OTHER]


def test_who_has_work_or_no_room_or_is_alone_offers_nothing() -> None:
    busy = Home()
    is_loaded(busy, OTHER, 20)
    busy.submit(100)
    assert offers(busy) == []
    wanted = Home()
    is_loaded(wanted, OTHER, 20)
    wanted.scheduler.claim(Claim(b"a" * 16, {"CPU": 9 * ONE}, {}, ()))
    assert offers(wanted) == []
    full = Home()
    is_loaded(full, OTHER, 20)
    assert full.scheduler.resources.acquire({"CPU": ONE})
    assert offers(full) == []
    assert offers(Home(others=0)) == []


def test_nobody_is_told_where_nobody_waits_long() -> None:
    home = Home()
    is_loaded(home, OTHER, 3, wait_us=500)
    assert offers(home) == []
    assert home.scheduler.offering.due_s(home.now) > 0.01


def test_a_loaded_node_asks_who_has_offered_though_that_one_has_just_refused() -> None:
    home = Home()
    (asked, *_more) = home.waits(30)
    home.borrowing.lent(OTHER, asked.request, None, (), home.now)
    home.borrowing.requests.clear()
    assert home.seek(0.001) == []
    row = home.borrowing.table.rows[OTHER]
    home.revision += 1
    home.borrowing.offered(replace(row, revision=home.revision), home.now)
    found = [each.node for each in home.take() if isinstance(each, Borrow)]
    assert found
    assert set(found) == {OTHER}


def test_an_offer_changes_nothing_where_nothing_waits() -> None:
    home = Home()
    home.borrowing.offered(home.borrowing.table.rows[OTHER], home.now)
    assert home.take() == []


# -- many nodes ------------------------------------------------------------------------------------


def node(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(4)


def table(own: int, queues: dict[int, int], count: int) -> LoadTable:
    """Return the table of one of so many nodes, of which these have tasks that wait."""
    made = LoadTable(node(own))
    for number in range(1, count + 1):
        tasks = queues.get(number, 0)
        total = {"CPU": 4 * ONE}
        row = NodeLoad(node(number), 1, 1, total, total, {}, tasks, tasks * 1_000)
        made.heard(row)
        if number == own:
            made.changed_here(row)
    return made


def test_the_longest_queue_is_helped_most_often() -> None:
    mine = table(1, {2: 90, 4: 30, 5: 1}, 5)
    told = Counter(whom_to_help(mine, seed=seed) for seed in range(400))
    assert told.keys() == {node(2), node(4)}
    assert told[node(2)] > 2 * told[node(4)]


@pytest.mark.parametrize("tasks", [4, 12])
def test_a_hundred_idle_nodes_do_not_all_help_with_a_few_tasks(tasks: int) -> None:
    told = [whom_to_help(table(own, {1: tasks}, 100), seed=7) for own in range(2, 101)]
    helpers = sum(each is not None for each in told)
    assert helpers <= 4 * tasks
    assert whom_to_help(table(2, {}, 100), seed=1) is None
