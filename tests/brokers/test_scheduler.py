"""The scheduler, event by event: what it is told, and what it commands.

What    Handing out, taking back, crashes and whose fault they are, blocked workers, leases,
        cancels, reconciling. Random orders are tests/property/test_scheduler_machine.py's.
Never   starts a worker.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import Command, Fail, Fork, Kill, Recall, Reclaim, Run

ONE = 10_000
CLIENT, OTHER = b"client-1", b"client-2"
W1, W2 = b"worker-1", b"worker-2"


class Node:
    """A scheduler of two CPUs, and what it has commanded since the last look."""

    def __init__(self) -> None:
        self.resources = ResourceSet({"CPU": 2 * ONE, "disk": ONE})
        self.scheduler = Scheduler(self.resources, pool_size=2)
        for client in (CLIENT, OTHER):
            self.declare(client, 0, {"CPU": ONE})

    def declare(self, client: bytes, number: int, resources: dict[str, int]) -> None:
        spec = [b"f", f"f{number}", resources, 1, 3, None, 0, {}, 0]
        self.scheduler.declare(client, number, spec)

    def submit(
        self, first: int, count: int, *, client: bytes = CLIENT, number: int = 0, retries: int = 3
    ) -> None:
        self.scheduler.submit(client, [[number, first, count, 0, count, 0, retries]], [b"payload"])

    def commands(self) -> list[Command]:
        commands, self.scheduler.commands = self.scheduler.commands, []
        return commands

    def runs(self) -> list[tuple[bytes, int, int, int]]:
        """Return (worker, first, low, high) of the Runs since the last look."""
        return [
            (each.worker, each.work.first, each.low, each.high)
            for each in self.commands()
            if isinstance(each, Run)
        ]

    def items(self, worker: bytes) -> list[int]:
        """Return the items that a worker has, in its order."""
        return [
            item
            for work in self.scheduler.workers[worker].outstanding
            for item in range(work.low, work.high)
        ]

    def give_back(self, worker: bytes) -> None:
        """The worker gives back all but the task it runs."""
        rows = []
        for position, work in enumerate(self.scheduler.workers[worker].outstanding):
            low = work.low + (position == 0)
            if low < work.high:
                rows.append([work.task_class.client, work.first, low, work.high])
        self.scheduler.reclaimed(worker, rows)

    def start(self, *workers: bytes) -> None:
        for worker in workers:
            self.scheduler.worker_forked(worker, ())
            self.scheduler.worker_ready(worker)
        self.commands()


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.scheduler.check()


def test_the_first_workers_are_forked_at_once(node: Node) -> None:
    node.scheduler.start_pool()
    assert node.commands() == [Fork((), 2)]


def test_a_task_that_fits_goes_to_an_idle_worker(node: Node) -> None:
    node.start(W1)
    node.submit(1, 1)
    assert node.runs() == [(W1, 1, 0, 1)]
    assert node.resources.available["CPU"] == ONE


def test_a_batch_is_spread_over_the_idle_workers(node: Node) -> None:
    node.start(W1, W2)
    node.submit(1, 10)
    node.commands()
    assert node.items(W1)
    assert node.items(W2)
    assert sorted(node.items(W1) + node.items(W2)) == list(range(10))


def test_a_class_is_introduced_to_each_worker_once(node: Node) -> None:
    node.start(W1)
    node.submit(1, 1)
    (first,) = [each for each in node.commands() if isinstance(each, Run)]
    node.scheduler.finished(W1, [[CLIENT, 1, 0, 1, 10]], 1.0)
    node.submit(2, 1)
    (second,) = [each for each in node.commands() if isinstance(each, Run)]
    assert (first.introduce, second.introduce) == (True, False)


def test_a_worker_is_forked_where_resources_are_free_and_nobody_is_idle(node: Node) -> None:
    node.submit(1, 5)
    assert node.commands() == [Fork((), 2)]
    node.submit(6, 5)
    assert node.commands() == [], "they are on their way"


def test_what_is_done_gives_its_resources_back(node: Node) -> None:
    node.start(W1)
    node.submit(1, 1)
    node.scheduler.finished(W1, [[CLIENT, 1, 0, 1, 10]], 1.0)
    assert node.resources.available == node.resources.total
    assert node.scheduler.statistics()["workers"] == {"idle": 1}


# -- crashes -------------------------------------------------------------------------------------


def test_a_dead_workers_tasks_run_again(node: Node) -> None:
    node.start(W1)
    node.submit(1, 1)
    node.commands()
    node.scheduler.worker_died(W1, "killed")
    node.start(W2)
    assert node.scheduler.workers[W2].outstanding[0].retries == 2


def test_only_the_first_unfinished_task_is_blamed_for_a_crash(node: Node) -> None:
    node.start(W1)
    node.submit(1, 3)
    node.scheduler.worker_died(W1, "killed")
    assert [
        (item, work.retries)
        for work in node.scheduler.queues.all_ranges()
        for item in range(work.low, work.high)
    ] == [(0, 2), (1, 3), (2, 3)]


def test_a_suspect_runs_alone(node: Node) -> None:
    node.start(W1)
    node.submit(1, 4)
    node.scheduler.worker_died(W1, "killed")
    node.commands()
    node.start(W2)
    assert [work.high - work.low for work in node.scheduler.workers[W2].outstanding] == [1]


def test_a_task_without_retries_fails_when_its_worker_dies(node: Node) -> None:
    node.start(W1)
    node.submit(1, 1, retries=0)
    node.commands()
    node.scheduler.worker_died(W1, "killed")
    assert [each for each in node.commands() if isinstance(each, Fail)] == [
        Fail(CLIENT, 1, [0], "f0", "killed")
    ]
    assert not node.scheduler.queues.task_count


def test_a_task_without_retries_shares_its_worker_with_nobody(node: Node) -> None:
    """Else it would run twice: its worker's death could be laid at another task's door."""
    node.start(W1)
    node.declare(CLIENT, 1, {"CPU": ONE})
    node.submit(1, 1)
    node.submit(2, 1, number=1, retries=0)
    assert [first for _worker, first, _low, _high in node.runs()] == [1]


def test_nobody_is_blamed_for_a_worker_that_is_killed_on_purpose(node: Node) -> None:
    node.start(W1)
    node.submit(1, 2, retries=0)
    node.scheduler.forgive(W1, CLIENT, 1, 0)
    node.commands()
    node.scheduler.worker_died(W1, "killed")
    assert not [each for each in node.commands() if isinstance(each, Fail)]
    assert [(work.low, work.high) for work in node.scheduler.queues.all_ranges()] == [(1, 2)]


def test_the_work_of_a_dead_client_ends_with_it(node: Node) -> None:
    node.start(W1)
    node.submit(1, 1)
    node.submit(2, 1, client=OTHER)
    node.commands()
    node.scheduler.client_died(CLIENT)
    assert [each.worker for each in node.commands() if isinstance(each, Kill)] == [W1]
    node.scheduler.worker_died(W1, "killed")
    assert [work.task_class.client for work in node.scheduler.queues.all_ranges()] == [OTHER]


# -- taking back ---------------------------------------------------------------------------------


def test_what_waits_behind_a_long_task_is_taken_back_when_resources_are_free(node: Node) -> None:
    node.start(W1)
    node.submit(1, 4)
    node.commands()
    node.scheduler.tick(1.0)
    assert Reclaim(W1, None) in node.commands()
    node.start(W2)
    node.give_back(W1)
    assert node.items(W1) == [0]
    assert node.items(W2)


def test_a_worker_that_drains_while_its_refill_goes_elsewhere_holds_nothing(node: Node) -> None:
    """Found by simulation (seed 243): it kept its CPU for ever."""
    node.start(W1)
    node.submit(1, 2)
    node.scheduler.tick(1.0)
    node.scheduler.finished(W1, [[CLIENT, 1, 0, 1, 10]], 1.1)
    node.submit(3, 1)
    node.scheduler.finished(W1, [[CLIENT, 1, 1, 2, 10]], 1.2)
    worker = node.scheduler.workers[W1]
    assert (worker.grant is not None) == bool(worker.outstanding)


def test_a_blocked_worker_lends_its_cpu_and_is_asked_for_what_it_has_not_begun(node: Node) -> None:
    node.start(W1)
    node.submit(1, 3)
    node.commands()
    node.scheduler.blocked(W1)
    assert Reclaim(W1, None) in node.commands()
    assert node.resources.available["CPU"] == 2 * ONE
    node.scheduler.unblocked(W1)
    assert node.resources.available["CPU"] == ONE


def test_a_blocked_worker_is_asked_again_for_what_reached_it_late(node: Node) -> None:
    """Found by simulation: RECLAIM overtook RUN, and nested tasks waited for ever."""
    node.start(W1)
    node.submit(1, 3)
    node.scheduler.blocked(W1)
    node.commands()
    node.scheduler.reclaimed(W1, [])
    assert node.scheduler.needs_tick()
    node.scheduler.tick(1.0)
    assert Reclaim(W1, None) in node.commands()
    node.give_back(W1)
    assert node.items(W1) == [0]


# -- leases, cancels, questions ------------------------------------------------------------------


def test_a_lease_is_wanted_back_when_a_task_finds_no_resources(node: Node) -> None:
    node.start(W1, W2)
    node.scheduler.lease(CLIENT, 0)
    node.scheduler.lease(CLIENT, 0)
    node.commands()
    node.submit(1, 1, client=OTHER)
    assert [each for each in node.commands() if isinstance(each, Recall)] == [Recall(CLIENT, W2)]
    node.scheduler.unlease(CLIENT, W2)
    assert node.runs() == [(W2, 1, 0, 1)]


def test_only_its_holder_gives_a_lease_back(node: Node) -> None:
    node.start(W1)
    node.scheduler.lease(CLIENT, 0)
    node.scheduler.unlease(OTHER, W1)
    assert node.resources.available["CPU"] == ONE


def test_a_queued_task_is_cancelled_in_the_queue_and_a_running_one_is_found(node: Node) -> None:
    node.submit(1, 3)
    assert node.scheduler.cancel(CLIENT, 1, 1) == (True, None)
    assert [(work.low, work.high) for work in node.scheduler.queues.all_ranges()] == [
        (0, 1),
        (2, 3),
    ]
    node.start(W1)
    assert node.scheduler.cancel(CLIENT, 1, 0) == (False, W1)


def test_reconciling_names_what_is_neither_queued_nor_handed_out(node: Node) -> None:
    node.start(W1)
    node.submit(1, 10)
    node.scheduler.finished(W1, [[CLIENT, 1, 0, 2, 10]], 1.0)
    assert node.scheduler.unknown(CLIENT, [[1, 0, 10], [50, 0, 2]]) == [[1, 0, 2], [50, 0, 2]]
    assert node.scheduler.unknown(OTHER, [[1, 5, 6]]) == [[1, 5, 6]]


def test_idle_workers_beyond_the_pool_are_ended(node: Node) -> None:
    node.start(W1, W2, b"worker-3")
    node.scheduler.retire(100.0, 5.0)
    assert node.commands() == [Kill(W1, "", graceful=True)]
