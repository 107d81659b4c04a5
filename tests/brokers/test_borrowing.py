"""Borrowing and lending, one event at a time: what is asked for, answered, kept and given back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zray.brokers import scheduling
from zray.brokers.load import NodeLoad
from zray.brokers.placement import Where
from zray.brokers.resources import Grant, ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import Claim, Command
from zray.protocol.units import RESOURCE_UNITS

ONE = RESOURCE_UNITS
OWN, OTHER, THIRD = b"NODE\0\0\0\0", b"OTHR\0\0\0\0", b"THRD\0\0\0\0"
CLIENT = b"NODEclnt"
LENT = b"OTHR0001"


class Home:
    """A scheduler of one CPU with one worker, beside another node of two CPUs."""

    def __init__(
        self, *, others: int = 1, cpus: int = 1, pool: int = 1, runs_work: bool = True
    ) -> None:
        total = {"CPU": cpus * ONE} if cpus else {}
        self.scheduler = Scheduler(
            ResourceSet(total), pool_size=pool, node=OWN, runs_work=runs_work
        )
        self.borrowing = self.scheduler.borrowing
        self.lending = self.scheduler.lending
        self.now = 1.0
        self.next_number = 1
        self.classes = 0
        self.revision = 0
        self.scheduler.start_pool()
        self.take()
        for number in range(pool):
            process = b"NODE%04d" % number
            self.scheduler.worker_forked(process, ())
            self.scheduler.worker_ready(process)
        for node in (OTHER, THIRD)[:others]:
            self.hear(node, {"CPU": 2 * ONE, "disk": ONE})

    def hear(
        self, node: bytes, total: dict[str, int], available: dict[str, int] | None = None
    ) -> None:
        self.revision += 1
        free = total if available is None else available
        self.borrowing.heard(NodeLoad(node, 1, self.revision, total, free, {"zone": "b"}))

    def take(self) -> list[Command]:
        """Return what was commanded since the last call."""
        commands, self.scheduler.commands = self.scheduler.commands, []
        self.scheduler.check()
        return commands

    def submit(self, count: int, where: object = None, **amounts: int) -> int:
        """Submit tasks that need these units, one CPU where none are said."""
        number, self.classes = self.classes, self.classes + 1
        spec = [b"f", "f", amounts or {"CPU": ONE}, 1, 3, None, 0, {}, 0, where]
        self.scheduler.declare(CLIENT, number, spec)
        first, self.next_number = self.next_number, self.next_number + count
        self.scheduler.submit(CLIENT, [[number, first, count, 0, count, 0, 3]], [b""])
        return first

    def seek(self, after_s: float = 0.0) -> list[scheduling.Borrow]:
        """Let time pass, and return what is asked for."""
        self.now += after_s
        self.scheduler.tick(self.now)
        self.borrowing.seek(self.now)
        return [each for each in self.take() if isinstance(each, scheduling.Borrow)]

    def waits(self, count: int, **amounts: int) -> list[scheduling.Borrow]:
        """Return what is asked for once tasks have waited for longer than a moment."""
        self.submit(count, **amounts)
        self.seek()
        return self.seek(0.02)

    def borrow(self, **amounts: int) -> int:
        """Borrow the worker LENT for two tasks; returns their first number."""
        first = self.submit(2, disk=ONE, **amounts)
        (asked,) = self.seek()
        self.borrowing.lent(OTHER, asked.request, LENT, (), self.now)
        return first

    def finish(self, worker: bytes, first: int, low: int, high: int, busy_us: int = 100) -> None:
        self.scheduler.finished(worker, [[CLIENT, first, low, high, busy_us]], self.now)


def kinds(commands: list[Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


# -- asking ----------------------------------------------------------------------------------------


def test_what_may_have_a_worker_here_in_a_moment_is_not_asked_for() -> None:
    home = Home()
    home.submit(1)
    assert home.seek(1.0) == []


def test_what_can_never_run_here_is_asked_for_at_once() -> None:
    home = Home()
    home.submit(1, disk=ONE)
    (asked,) = home.seek()
    assert (asked.node, asked.resources, asked.patient) == (OTHER, {"disk": ONE}, True)


def test_long_tasks_behind_a_busy_worker_are_asked_for_after_a_moment() -> None:
    home = Home()
    asked = home.waits(30)
    assert [each.node for each in asked] == [OTHER, OTHER]


def test_tasks_shorter_than_their_messages_stay_here() -> None:
    home = Home()
    first = home.submit(20_000)
    for _ in range(10):
        for command in home.take():
            if isinstance(command, scheduling.Run):
                busy_us = 10 * (command.high - command.low)
                home.finish(command.worker, first, command.low, command.high, busy_us)
    assert home.scheduler.queues.task_count > 200
    home.seek()
    assert home.seek(0.006) == []
    assert home.seek(0.1) != [], "a worker that does not get on with them needs help"


def test_a_node_that_has_refused_is_not_asked_again_at_once() -> None:
    home = Home()
    home.submit(1, disk=ONE)
    (asked,) = home.seek()
    home.borrowing.lent(OTHER, asked.request, None, (), home.now)
    assert home.seek() == []
    assert [each.node for each in home.seek(0.05)] == [OTHER]


def test_no_more_is_asked_for_than_a_node_has_free() -> None:
    home = Home()
    home.hear(OTHER, {"CPU": 2 * ONE, "disk": ONE}, {"CPU": ONE})
    assert len(home.waits(30)) == 1


def test_one_request_at_a_time_waits_its_turn_at_a_node_that_has_nothing_free() -> None:
    home = Home()
    home.hear(OTHER, {"CPU": 2 * ONE, "disk": ONE}, {})
    home.submit(5, disk=ONE)
    (asked,) = home.seek()
    assert asked.patient
    assert home.seek(0.1) == []


def test_what_a_worker_does_not_get_to_is_taken_back_where_another_node_has_room() -> None:
    home = Home()
    home.submit(5)
    assert kinds(home.take()) == ["Run"]
    home.scheduler.tick(1.05)
    assert "Reclaim" in kinds(home.take())


# -- options ---------------------------------------------------------------------------------------


def test_affinity_asks_the_node_that_is_named_and_nobody_else() -> None:
    home = Home(others=2)
    home.submit(3, where=["DEFAULT", THIRD, False, {}])
    assert {each.node for each in home.seek()} == {THIRD}


def test_affinity_to_a_node_that_is_not_there_ends_the_tasks() -> None:
    home = Home()
    home.submit(2, where=["DEFAULT", THIRD, False, {}])
    (failed,) = home.take()
    assert isinstance(failed, scheduling.Unschedulable)
    assert failed.items == [0, 1]
    assert "not alive" in failed.reason


def test_affinity_to_a_node_that_leaves_ends_what_waits_for_it() -> None:
    home = Home(others=2)
    home.submit(2, where=["DEFAULT", THIRD, False, {}])
    home.scheduler.claim(Claim(b"a", {}, {}, (), where=Where(node=THIRD)))
    home.borrowing.node_lost(THIRD)
    assert set(kinds(home.take())) == {"Unschedulable", "ClaimRefused"}


def test_soft_affinity_falls_back_to_this_node() -> None:
    home = Home()
    home.submit(1, where=["DEFAULT", THIRD, True, {}])
    assert kinds(home.take()) == ["Run"]


def test_a_label_selector_keeps_tasks_off_this_node() -> None:
    home = Home()
    home.submit(1, where=["DEFAULT", b"", False, {"zone": "b"}])
    assert home.take() == []
    assert [each.node for each in home.seek()] == [OTHER]


def test_a_label_that_a_lone_node_lacks_ends_the_tasks() -> None:
    home = Home(others=0)
    home.submit(1, where=["DEFAULT", b"", False, {"zone": "b"}])
    assert kinds(home.take()) == ["Unschedulable"]


def test_spread_deals_a_batch_out_evenly() -> None:
    home = Home(others=2)
    home.submit(9, where=["SPREAD", b"", False, {}])
    queues = home.scheduler.queues.counts
    dealt = {shape.where.node: count for shape, count in queues.items()}
    assert dealt[OTHER] == dealt[THIRD] == 3


def test_what_was_dealt_to_a_node_without_room_goes_elsewhere_in_the_end() -> None:
    home = Home(others=2)
    home.hear(THIRD, {"CPU": ONE}, {})
    home.submit(3, where=["SPREAD", b"", False, {}], CPU=ONE)
    home.seek()
    home.seek(0.3)
    assert not any(
        count and shape.where.node == THIRD for shape, count in home.scheduler.queues.counts.items()
    )


# -- a borrowed worker -----------------------------------------------------------------------------


def test_a_borrowed_worker_is_handed_work_like_an_own_one() -> None:
    home = Home()
    first = home.borrow()
    (run,) = [each for each in home.take() if isinstance(each, scheduling.Run)]
    assert run.worker == LENT
    home.finish(LENT, first, 0, run.high)
    assert not home.scheduler.queues.task_count or kinds(home.take()) == ["Run"]


def test_a_borrowed_worker_without_work_is_given_back_after_a_while() -> None:
    home = Home()
    first = home.borrow()
    home.take()
    home.finish(LENT, first, 0, 2)
    home.borrowing.sweep(home.now + 0.1)
    assert home.take() == []
    home.borrowing.sweep(home.now + 0.3)
    assert home.take() == [scheduling.GiveBack(LENT, OTHER)]


def test_a_worker_that_is_wanted_back_goes_when_it_has_ended_its_task() -> None:
    home = Home()
    first = home.borrow()
    home.take()
    home.borrowing.want_back(LENT)
    assert kinds(home.take()) == ["Reclaim"]
    home.scheduler.reclaimed(LENT, [[CLIENT, first, 1, 2]])
    assert home.take() == []
    home.finish(LENT, first, 0, 1)
    assert home.take() == [scheduling.GiveBack(LENT, OTHER)]
    assert home.scheduler.queues.task_count == 1


def test_a_wish_that_crosses_the_return_of_a_worker_is_nothing() -> None:
    home = Home()
    first = home.borrow()
    home.finish(LENT, first, 0, 2)
    home.borrowing.sweep(home.now + 1)
    home.take()
    home.borrowing.want_back(LENT)
    assert home.take() == []


def test_a_worker_that_comes_too_late_goes_straight_back() -> None:
    home = Home()
    home.scheduler.claim(Claim(b"actor", {"disk": ONE}, {"disk": ONE}, ()))
    (asked,) = home.seek()
    home.scheduler.withdraw(b"actor")
    home.borrowing.lent(OTHER, asked.request, LENT, (), home.now)
    assert home.take() == [scheduling.GiveBack(LENT, OTHER)]
    home.borrowing.lent(OTHER, 99, b"OTHR0002", (), home.now)
    assert home.take() == [scheduling.GiveBack(b"OTHR0002", OTHER)]


def test_a_worker_that_has_had_its_calls_is_given_back_as_spent() -> None:
    home = Home()
    spec = [b"f", "f", {"disk": ONE}, 1, 3, None, 0, {}, 1]
    home.scheduler.declare(CLIENT, 50, spec)
    home.scheduler.submit(CLIENT, [[50, 500, 1, 0, 1, 0, 3]], [b""])
    (asked,) = home.seek()
    home.borrowing.lent(OTHER, asked.request, LENT, (), home.now)
    home.take()
    home.finish(LENT, 500, 0, 1)
    assert home.take() == [scheduling.GiveBack(LENT, OTHER, spent=True)]


def test_tasks_of_a_lost_node_are_queued_again() -> None:
    home = Home()
    home.borrow()
    home.take()
    assert home.borrowing.node_lost(OTHER) == [LENT]
    home.scheduler.worker_died(LENT, "its node is gone")
    assert home.scheduler.queues.task_count == 2
    home.take()


def test_borrowed_workers_of_a_job_go_when_it_ends() -> None:
    home = Home()
    first = home.borrow()
    home.finish(LENT, first, 0, 2)
    home.take()
    home.scheduler.job_ended("")
    assert scheduling.GiveBack(LENT, OTHER, spent=True) in home.take()


# -- lending ---------------------------------------------------------------------------------------


def ask(home: Home, number: int = 1, node: bytes = OTHER, *, patient: bool = False) -> None:
    home.lending.borrow(
        node, number, {"CPU": ONE}, {"CPU": ONE}, (), for_actor=False, patient=patient, now=home.now
    )


def lent(home: Home) -> scheduling.Lend:
    (command,) = [each for each in home.take() if isinstance(each, scheduling.Lend)]
    return command


def test_a_free_worker_is_lent_and_counted() -> None:
    home = Home()
    ask(home)
    assert lent(home).worker == b"NODE0000"
    assert home.scheduler.resources.available == {"CPU": 0}
    home.lending.given_back(OTHER, b"NODE0000", spent=False)
    assert home.scheduler.resources.available == {"CPU": ONE}


def test_a_node_that_is_busy_lends_nothing() -> None:
    home = Home()
    home.submit(1)
    home.take()
    ask(home)
    assert lent(home).worker is None


def test_who_must_wait_here_waits_and_goes_before_the_queue() -> None:
    home = Home()
    first = home.submit(1)
    home.take()
    ask(home, patient=True)
    home.submit(5)
    assert home.take() == []
    home.finish(b"NODE0000", first, 0, 1)
    assert lent(home).worker == b"NODE0000"


def test_a_second_request_of_a_node_does_not_wait_behind_its_first() -> None:
    home = Home()
    home.submit(1)
    home.take()
    ask(home, 1, patient=True)
    ask(home, 2, patient=True)
    assert lent(home) == scheduling.Lend(OTHER, 2, None)
    ask(home, 1, THIRD, patient=True)
    assert home.take() == []


def test_a_request_that_waits_for_too_long_is_refused() -> None:
    home = Home()
    home.submit(1)
    home.take()
    ask(home, patient=True)
    home.lending.tick(home.now + 0.9)
    assert home.take() == []
    home.lending.tick(home.now + 1.1)
    assert lent(home).worker is None
    assert not home.scheduler.claims


def test_what_our_own_tasks_wait_for_is_wanted_back_once() -> None:
    home = Home()
    ask(home)
    home.lending.tick(home.now)
    home.submit(3)
    home.take()
    home.lending.tick(home.now)
    assert home.take() == [scheduling.WantBack(OTHER, b"NODE0000", if_idle=True)], "at once"
    home.lending.tick(home.now + 0.009)
    assert home.take() == [scheduling.WantBack(OTHER, b"NODE0000")]
    home.lending.tick(home.now + 0.02)
    assert home.take() == []


def test_what_others_ask_for_in_vain_is_wanted_back_where_it_lies_idle() -> None:
    home = Home(others=2)
    ask(home)
    home.take()
    home.lending.borrow(
        THIRD, 2, {"CPU": ONE}, {"CPU": ONE}, (), for_actor=False, patient=False, now=home.now
    )
    refused, wanted = home.take()
    assert isinstance(refused, scheduling.Lend)
    assert refused.worker is None
    assert wanted == scheduling.WantBack(OTHER, b"NODE0000", if_idle=True)
    ask(home, number=3)
    assert [type(each) for each in home.take()] == [scheduling.Lend], "not asked of who asks"


def test_who_was_refused_is_told_when_a_worker_is_free_again() -> None:
    home = Home()
    first = home.submit(1)
    home.take()
    ask(home)
    assert lent(home).worker is None
    home.scheduler.offering.tick(home.now)
    assert home.take() == []
    home.finish(b"NODE0000", first, 0, 1)
    home.take()
    home.scheduler.offering.tick(home.now)
    assert home.take() == [scheduling.Offer(OTHER)]
    home.scheduler.offering.tick(home.now)
    assert home.take() == []


def test_a_borrowed_worker_that_is_idle_goes_back_soon_where_others_wait() -> None:
    home = Home(others=2)
    first = home.borrow()
    home.finish(LENT, first, 0, 2)
    home.take()
    home.borrowing.sweep(home.now + 0.01)
    assert home.take() == []
    row = home.borrowing.table.rows[THIRD]
    home.revision += 1
    home.borrowing.heard(replace(row, queue_tasks=5, revision=home.revision))
    home.borrowing.sweep(home.now + 0.01)
    assert kinds(home.take()) == ["GiveBack"]


def test_what_is_wanted_back_where_it_lies_idle_is_kept_where_it_does_not() -> None:
    home = Home()
    first = home.borrow()
    home.take()
    home.borrowing.want_back(LENT, if_idle=True)
    assert home.take() == []
    home.finish(LENT, first, 0, 2)
    home.take()
    home.borrowing.want_back(LENT, if_idle=True)
    assert kinds(home.take()) == ["GiveBack"]


def test_an_actors_worker_is_not_wanted_back() -> None:
    home = Home()
    home.lending.borrow(
        OTHER, 1, {"CPU": ONE}, {"CPU": ONE}, (), for_actor=True, patient=False, now=home.now
    )
    home.submit(3)
    home.take()
    home.lending.tick(home.now)
    home.lending.tick(home.now + 1)
    assert home.take() == []


def test_an_actor_holds_less_than_its_place_needs() -> None:
    home = Home()
    home.lending.borrow(OTHER, 1, {"CPU": ONE}, {}, (), for_actor=True, patient=False, now=home.now)
    assert lent(home).worker is not None
    assert home.scheduler.resources.available == {"CPU": ONE}


def test_the_death_of_a_lent_worker_is_told() -> None:
    home = Home()
    ask(home)
    home.take()
    home.scheduler.worker_died(b"NODE0000", "killed")
    assert scheduling.LoanLost(OTHER, b"NODE0000", "killed") in home.take()
    assert home.scheduler.resources.available == {"CPU": ONE}


def test_workers_of_a_dead_borrower_end_and_its_requests_are_forgotten() -> None:
    home = Home()
    ask(home)
    ask(home, 2, patient=True)
    home.take()
    home.lending.node_lost(OTHER)
    assert kinds(home.take()) == ["Kill"]
    assert not home.scheduler.claims
    home.lending.given_back(OTHER, b"NODE0000", spent=False)
    assert home.scheduler.resources.available == {"CPU": 0}, "it is not free before it is dead"
    home.scheduler.worker_died(b"NODE0000", "killed")
    assert home.scheduler.resources.available == {"CPU": ONE}


def test_a_spent_worker_ends() -> None:
    home = Home()
    ask(home)
    home.take()
    home.lending.given_back(OTHER, b"NODE0000", spent=True)
    assert kinds(home.take()) == ["Kill"]
    assert not home.scheduler.idle.get(())


def test_a_node_speaks_only_to_workers_that_it_has_borrowed() -> None:
    home = Home()
    ask(home)
    home.take()
    assert not home.lending.is_lent_to(THIRD, b"NODE0000")
    home.lending.given_back(THIRD, b"NODE0000", spent=False)
    home.lending.end(THIRD, b"NODE0000")
    assert home.take() == []
    assert home.lending.is_lent_to(OTHER, b"NODE0000")


def test_a_lent_worker_that_waits_lends_its_cpu_here() -> None:
    home = Home()
    ask(home)
    home.take()
    home.scheduler.blocked(b"NODE0000")
    assert home.scheduler.resources.available == {"CPU": ONE}
    home.scheduler.unblocked(b"NODE0000")
    assert home.scheduler.resources.available == {"CPU": 0}


@pytest.mark.parametrize("loses", [True, False])
def test_a_loan_is_not_asked_for_elsewhere_by_its_lender(loses: bool) -> None:
    home = Home(others=2)
    home.submit(1)
    home.take()
    ask(home, patient=True)
    assert home.seek(0.5) == []
    if loses:
        home.lending.node_lost(OTHER)
        assert not home.lending.asked


def test_a_grant_for_another_node_is_of_this_one() -> None:
    home = Home()
    ask(home)
    assert lent(home).worker == b"NODE0000"
    grant = home.scheduler.workers[b"NODE0000"].grant
    assert isinstance(grant, Grant)


# -- a driver's node, which runs no work -----------------------------------------------------------


def driver() -> Home:
    return Home(cpus=0, pool=0, runs_work=False)


def test_a_drivers_node_asks_at_once_for_what_it_would_itself_have_room_for() -> None:
    home = driver()
    home.submit(2, nothing=0)
    (asked, *_more) = home.seek()
    assert asked.node == OTHER
    home.submit(1)
    assert {each.node for each in home.seek()} == {OTHER}


def test_a_drivers_node_forks_nothing_and_keeps_no_actor() -> None:
    home = driver()
    home.scheduler.claim(Claim(b"actor", {}, {}, (), None))
    home.scheduler.start_pool()
    home.scheduler.tick(home.now)
    home.scheduler.retire(home.now, 0.0)
    assert not [each for each in home.take() if isinstance(each, scheduling.Fork)]
    (asked,) = home.seek()
    home.borrowing.lent(OTHER, asked.request, LENT, (), home.now)
    claimed = [each for each in home.take() if isinstance(each, scheduling.Claimed)]
    assert [each.worker for each in claimed] == [LENT]


def test_a_drivers_node_lends_nothing() -> None:
    home = driver()
    for patient in (False, True):
        home.lending.borrow(OTHER, 1, {}, {}, (), for_actor=False, patient=patient, now=home.now)
        (answer,) = home.take()
        assert answer == scheduling.Lend(OTHER, 1, None)


def test_a_drivers_node_is_no_candidate_and_deals_itself_nothing() -> None:
    home = driver()
    assert home.borrowing.table.candidates == [OTHER]
    home.submit(4, ["SPREAD", b"", False, {}])
    assert {each.node for each in home.seek()} == {OTHER}


def test_a_drivers_node_refuses_leases() -> None:
    home = driver()
    home.submit(1, nothing=0)
    home.take()
    home.scheduler.lease(CLIENT, 0)
    (granted,) = home.take()
    assert isinstance(granted, scheduling.Granted)
    assert granted.worker is None
