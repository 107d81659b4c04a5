"""Where borrowing goes: to a task's inputs, to nodes that are preferred, into placement groups.

What    One event at a time, with the Home of test_borrowing.
Caller  pytest.
Never   uses a socket.
"""

from __future__ import annotations

from dataclasses import replace

from tests.brokers.test_borrowing import CLIENT, LENT, ONE, OTHER, OWN, THIRD, Home, kinds
from zray.brokers import scheduling
from zray.brokers.bundles import Accounts, in_group
from zray.brokers.directory import Directory
from zray.brokers.locality import inputs_at
from zray.brokers.placement import Locality, Where
from zray.brokers.scheduling import Claim
from zray.brokers.sharing import Entry
from zray.protocol.labels import read_selector

MB = 1_000_000
GROUP = b"g" * 16


def submit(home: Home, locality: Locality | None = None, where: object = None) -> None:
    """Submit one task whose inputs are there."""
    number, home.classes = home.classes, home.classes + 1
    spec = [b"f", "f", {"CPU": ONE}, 1, 3, None, 0, {}, 0, where]
    home.scheduler.declare(CLIENT, number, spec)
    first, home.next_number = home.next_number, home.next_number + 1
    inputs = {} if locality is None else {0: locality}
    home.scheduler.submit(CLIENT, [[number, first, 1, 0, 1, 0, 3]], [b""], inputs)


# -- inputs ----------------------------------------------------------------------------------------


def test_a_task_goes_to_its_inputs_at_once_though_a_worker_is_free_here() -> None:
    home = Home(others=2)
    submit(home, Locality(50 * MB, {THIRD: 50 * MB}))
    (asked,) = home.seek()
    assert (asked.node, asked.resources) == (THIRD, {"CPU": ONE})


def test_a_task_with_its_inputs_here_or_small_ones_elsewhere_stays() -> None:
    for locality in (Locality(50 * MB, {OWN: 50 * MB}), Locality(MB // 10, {THIRD: MB // 10})):
        home = Home(others=2)
        submit(home, locality)
        assert kinds(home.take()) == ["Run"]


def test_a_long_queue_at_the_inputs_is_worse_than_fetching_them() -> None:
    home = Home(others=1)
    home.hear(THIRD, {"CPU": 2 * ONE}, {})
    row = home.borrowing.table.rows[THIRD]
    home.revision += 1
    home.borrowing.heard(replace(row, queue_tasks=9, wait_us=900_000, revision=home.revision))
    submit(home, Locality(50 * MB, {THIRD: 50 * MB}))
    assert kinds(home.take()) == ["Run"], "100 ms of fetching, against 900 ms of waiting"


def test_what_waits_long_for_its_inputs_node_runs_anywhere() -> None:
    home = Home(others=1)
    home.hear(THIRD, {"CPU": 2 * ONE})
    submit(home, Locality(50 * MB, {THIRD: 50 * MB}))
    (asked,) = home.seek()
    home.borrowing.lent(THIRD, asked.request, None, (), home.now)
    home.hear(THIRD, {"CPU": 2 * ONE}, {})
    home.seek(0.3)
    home.scheduler.tick(home.now)
    assert "Run" in kinds(home.take()) or home.scheduler.queues.task_count == 0


def test_the_directory_says_how_much_of_the_inputs_is_where() -> None:
    objects = Directory(OWN)
    mine, theirs = OWN[:4] + bytes(11) + b"\1", OWN[:4] + bytes(11) + b"\2"
    for identity, nbytes in ((mine, 3 * MB), (theirs, 5 * MB)):
        entry = objects.entries[identity] = Entry()
        entry.nbytes = nbytes
    objects.entries[mine].offset = 0
    objects.entries[theirs].places = {OTHER: None, THIRD: None}
    found = inputs_at(objects, [mine, theirs, theirs, bytes(16)], OWN)
    assert found == Locality(8 * MB, {OWN: 3 * MB, OTHER: 5 * MB, THIRD: 5 * MB})
    assert found.fetch_us(OTHER) == found.fetch_us(THIRD) == 3 * MB / 500 < found.fetch_us(OWN)


# -- wishes ----------------------------------------------------------------------------------------

WISH = ["DEFAULT", b"", False, {}, None, {"zone": "b"}]


def test_a_node_that_is_preferred_is_asked_though_a_worker_is_free_here() -> None:
    home = Home()
    home.submit(1, WISH)
    (asked,) = home.seek()
    assert asked.node == OTHER, "it is in zone b"


def test_where_no_node_is_preferred_the_task_runs_here() -> None:
    home = Home()
    home.submit(1, ["DEFAULT", b"", False, {}, None, {"zone": "c"}])
    assert kinds(home.take()) == ["Run"]


def test_preferred_nodes_that_have_no_room_for_long_are_given_up() -> None:
    home = Home()
    home.hear(OTHER, {"CPU": 2 * ONE}, {})
    home.submit(1, WISH)
    home.seek()
    assert not home.scheduler.workers[b"NODE0000"].outstanding
    home.seek(0.3)
    home.seek(0.01)
    assert home.scheduler.workers[b"NODE0000"].outstanding


def test_an_actor_gives_up_its_wish_too() -> None:
    home = Home()
    home.hear(OTHER, {"CPU": 2 * ONE}, {})
    wish = Where(preferred=read_selector({"zone": "b"}))
    home.scheduler.claim(Claim(b"a" * 16, {"CPU": ONE}, {}, (), where=wish))
    home.seek()
    assert home.scheduler.claims
    home.seek(0.3)
    home.scheduler.tick(home.now)
    assert "Claimed" in kinds(home.take())


# -- placement groups ------------------------------------------------------------------------------


def in_a_group(index: int = -1) -> list[object]:
    return ["DEFAULT", b"", False, {}, [GROUP, index, False]]


def test_a_task_of_a_group_asks_who_has_a_bundle_of_it() -> None:
    home = Home(others=2)
    home.submit(1, in_a_group())
    assert home.seek(1.0) == [], "nobody has one yet"
    bundle = in_group({"CPU": ONE}, GROUP, -1)
    home.hear(THIRD, {"CPU": 2 * ONE, **bundle})
    (asked,) = home.seek()
    assert (asked.node, asked.resources) == (THIRD, bundle)


def test_work_of_a_group_that_is_gone_fails_with_its_name() -> None:
    home = Home()
    first = home.submit(2, in_a_group())
    home.scheduler.claim(Claim(b"a" * 16, {}, {}, (), where=Where(group=GROUP)))
    home.take()
    assert home.borrowing.groups.unknown == {GROUP}
    home.borrowing.group_gone(GROUP, "it was removed")
    tasks, actor = home.take()
    assert isinstance(tasks, scheduling.Unschedulable)
    assert (tasks.first, tasks.items, tasks.group) == (first, [0, 1], GROUP)
    assert isinstance(actor, scheduling.ClaimRefused)
    assert actor.group == GROUP
    home.submit(1, in_a_group())
    assert kinds(home.take()) == ["Unschedulable"]


def test_a_task_that_ran_in_a_group_that_is_gone_is_not_blamed_for_its_workers_death() -> None:
    home = Home()
    home.submit(3, in_a_group())
    home.hear(OTHER, {"CPU": 2 * ONE, **in_group({"CPU": ONE}, GROUP, -1)})
    (asked,) = home.seek()
    home.borrowing.lent(OTHER, asked.request, LENT, (), home.now)
    home.take()
    home.borrowing.group_gone(GROUP, "it was removed")
    home.scheduler.worker_died(LENT, "killed")
    assert {type(each).__name__ for each in home.take()} <= {"Unschedulable", "Fork"}
    assert not home.scheduler.queues.task_count


def lender() -> Home:
    """A node of two CPUs, one of which is a bundle, with two workers."""
    home = Home(cpus=2, pool=2)
    accounts = Accounts({"CPU": 2 * ONE})
    home.scheduler.resources = accounts
    grant = accounts.acquire({"CPU": ONE})
    assert grant is not None
    accounts.open(GROUP, 0, grant)
    return home


def ask_for(home: Home, number: int, amounts: dict[str, int]) -> None:
    home.lending.borrow(
        OTHER, number, amounts, amounts, (), for_actor=False, patient=False, now=home.now
    )


def answers(home: Home) -> list[scheduling.Lend]:
    return [each for each in home.take() if isinstance(each, scheduling.Lend)]


def test_a_bundle_is_lent_though_the_nodes_own_work_waits() -> None:
    home = lender()
    home.submit(100)
    home.take()
    assert home.scheduler.queues.task_count
    ask_for(home, 1, in_group({"CPU": ONE}, GROUP, 0))
    (lent,) = answers(home)
    assert lent.worker is not None
    ask_for(home, 2, {"CPU": ONE})
    (refused,) = answers(home)
    assert refused.worker is None


def test_what_is_lent_of_a_bundle_is_not_wanted_back_for_work_outside() -> None:
    home = lender()
    ask_for(home, 1, in_group({"CPU": ONE}, GROUP, 0))
    home.submit(100)
    home.take()
    for _ in range(3):
        home.now += 0.01
        home.lending.tick(home.now)
    assert "WantBack" not in kinds(home.take())
    home.submit(1, in_a_group(0))
    for _ in range(3):
        home.now += 0.01
        home.lending.tick(home.now)
    assert "WantBack" in kinds(home.take())
