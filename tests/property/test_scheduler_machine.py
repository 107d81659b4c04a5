"""The scheduler against a model that knows only where each task is.

What    A Hypothesis state machine plays clients and workers: whatever happens in whatever order, a
        task is queued once, or at one worker, or over; resources are never held twice; and what
        fits is handed out, or a worker for it is on its way.
Never   sleeps: time is a number that rules move.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zray.brokers import scheduling
from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import Claim

ONE = 10_000
CLIENTS = (b"client-1", b"client-2")
KINDS: list[tuple[dict[str, int], int]] = [
    ({"CPU": ONE}, 3),
    ({"CPU": ONE // 2}, 3),
    ({}, -1),
    ({"CPU": ONE, "disk": ONE}, 0),
]
Task = tuple[bytes, int, int]


class Worker:
    """What a worker would do: run ranges in order, one item at a time."""

    def __init__(self) -> None:
        self.ranges: list[list[Any]] = []
        self.ready = False
        self.blocked = False
        self.lessee: bytes | None = None
        self.actor = False

    def tasks(self) -> list[Task]:
        return [
            (client, first, item)
            for client, first, low, high in self.ranges
            for item in range(low, high)
        ]


class SchedulerMachine(RuleBasedStateMachine):
    """``open`` holds every task that has neither ended nor failed."""

    def __init__(self) -> None:
        super().__init__()
        self.resources = ResourceSet({"CPU": 2 * ONE, "disk": ONE})
        self.scheduler = Scheduler(self.resources, pool_size=2)
        self.workers: dict[bytes, Worker] = {}
        self.clients = list(CLIENTS)
        self.open: set[Task] = set()
        self.next_number = 1
        self.next_worker = 0
        self.now = 0.0
        self.reclaims: list[tuple[bytes, int | None]] = []
        self.recalls: list[tuple[bytes, bytes]] = []
        self.doomed: list[bytes] = []
        self.claimed: dict[bytes, Any] = {}
        for client in self.clients:
            for number, (resources, retries) in enumerate(KINDS):
                self.scheduler.declare(
                    client, number, [b"f", f"f{number}", resources, 1, retries, None, 0, {}, 0]
                )
        self.scheduler.start_pool()
        self.perform()

    def perform(self) -> None:
        """Do what the scheduler commands."""
        while self.scheduler.commands:
            commands, self.scheduler.commands = self.scheduler.commands, []
            for command in commands:
                self._perform(command)

    def _perform(self, command: scheduling.Command) -> None:
        if isinstance(command, scheduling.Fork):
            for _ in range(command.count):
                self.next_worker += 1
                process = b"wk%06d" % self.next_worker
                self.workers[process] = Worker()
                self.scheduler.worker_forked(process, command.env)
        elif isinstance(command, scheduling.Run):
            worker = self.workers[command.worker]
            assert worker.ready
            assert not worker.actor, "a task for an actor's worker"
            assert not worker.blocked, "work for a worker that waits"
            work = command.work
            worker.ranges.append([work.task_class.client, work.first, command.low, command.high])
        elif isinstance(command, scheduling.Reclaim):
            self.reclaims.append((command.worker, command.count))
        elif isinstance(command, scheduling.Recall):
            self.recalls.append((command.client, command.worker))
        elif isinstance(command, scheduling.Granted):
            if command.worker is not None:
                self.workers[command.worker].lessee = command.client
        elif isinstance(command, scheduling.Kill):
            self.doomed.append(command.worker)
        elif isinstance(command, scheduling.Fail | scheduling.Cancelled):
            for item in command.items:
                self.open.remove((command.client, command.first, item))
        elif isinstance(command, scheduling.Claimed):
            self.claimed[command.actor] = command.grant
            self.workers[command.worker].actor = True

    def some_worker(self, data: st.DataObject, condition: Any) -> bytes | None:
        found = [process for process, worker in self.workers.items() if condition(worker)]
        return data.draw(st.sampled_from(found)) if found else None

    # -- clients ----------------------------------------------------------------------------------

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), kind=st.integers(0, len(KINDS) - 1), count=st.integers(1, 20))
    def submit(self, data: st.DataObject, kind: int, count: int) -> None:
        client = data.draw(st.sampled_from(self.clients))
        first, self.next_number = self.next_number, self.next_number + count
        self.open.update((client, first, item) for item in range(count))
        self.scheduler.submit(client, [[kind, first, count, 0, count, 0, KINDS[kind][1]]], [b""])
        self.perform()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        client, first, item = data.draw(st.sampled_from(sorted(self.open)))
        queued = not any(
            (client, first, item) in worker.tasks() for worker in self.workers.values()
        )
        removed, where = self.scheduler.cancel(client, first, item)
        assert removed == queued
        if removed:
            self.open.remove((client, first, item))
        else:
            assert where is not None
            assert (client, first, item) in self.workers[where].tasks()
        self.perform()

    @precondition(lambda self: len(self.clients) > 1)
    @rule(data=st.data())
    def client_dies(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        self.open = {task for task in self.open if task[0] != client}
        self.scheduler.client_died(client)
        self.perform()
        for process, worker in self.workers.items():
            if any(task[0] == client for task in worker.tasks()) or worker.lessee == client:
                assert process in self.doomed, "its work for the dead goes on"
                worker.ranges = [each for each in worker.ranges if each[0] != client]

    # -- workers ----------------------------------------------------------------------------------

    @rule(data=st.data())
    def worker_says_hello(self, data: st.DataObject) -> None:
        process = self.some_worker(data, lambda worker: not worker.ready)
        if process is not None:
            self.workers[process].ready = True
            self.scheduler.worker_ready(process)
            self.perform()

    @rule(data=st.data(), busy_us=st.sampled_from((1, 100, 10_000)), count=st.integers(1, 30))
    def worker_finishes(self, data: st.DataObject, busy_us: int, count: int) -> None:
        process = self.some_worker(data, lambda worker: worker.ranges and not worker.blocked)
        if process is None:
            return
        client, first, low, high = self.workers[process].ranges[0]
        done = min(high, low + count)
        self.workers[process].ranges[0][2] = done
        if done == high:
            del self.workers[process].ranges[0]
        self.open.difference_update((client, first, item) for item in range(low, done))
        self.now += busy_us / 1e6
        self.scheduler.finished(process, [[client, first, low, done, busy_us]], self.now)
        self.perform()

    @rule(data=st.data())
    def worker_blocks_or_goes_on(self, data: st.DataObject) -> None:
        process = self.some_worker(data, lambda worker: worker.ranges)
        if process is None:
            return
        worker = self.workers[process]
        worker.blocked = not worker.blocked
        if worker.blocked:
            self.scheduler.blocked(process)
        else:
            self.scheduler.unblocked(process)
        self.perform()

    @precondition(lambda self: self.reclaims)
    @rule(hurry=st.booleans())
    def worker_gives_back(self, hurry: bool) -> None:
        process, count = self.reclaims.pop(0)
        worker = self.workers.get(process)
        if worker is None:
            return
        rows: list[list[Any]] = []
        left = 1 << 30 if count is None else count
        for position, work in reversed(list(enumerate(worker.ranges))):
            begun = work[2] + (1 if position == 0 else 0)
            low = max(begun, work[3] - left)
            if low < work[3] and not hurry:
                rows.insert(0, [work[0], work[1], low, work[3]])
                left -= work[3] - low
                work[3] = low
        worker.ranges = [work for work in worker.ranges if work[2] < work[3]]
        self.scheduler.reclaimed(process, rows)
        self.perform()

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        process = self.some_worker(data, lambda worker: True)
        if process is not None:
            self.end(process)

    @precondition(lambda self: self.doomed)
    @rule()
    def killed_worker_dies(self) -> None:
        process = self.doomed.pop(0)
        if process in self.workers:
            self.end(process)

    def end(self, process: bytes) -> None:
        del self.workers[process]
        self.scheduler.worker_died(process, "test")
        self.perform()

    @rule(seconds=st.sampled_from((0.001, 0.02, 10.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.tick(self.now)
        self.perform()
        self.scheduler.retire(self.now, 5.0)
        self.perform()

    # -- leases and actors ------------------------------------------------------------------------

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), kind=st.integers(0, len(KINDS) - 1))
    def lease(self, data: st.DataObject, kind: int) -> None:
        self.scheduler.lease(data.draw(st.sampled_from(self.clients)), kind)
        self.perform()

    @rule(data=st.data())
    def unlease(self, data: st.DataObject) -> None:
        process = self.some_worker(data, lambda worker: worker.lessee is not None)
        if process is None:
            return
        worker = self.workers[process]
        client, worker.lessee = worker.lessee, None
        assert client is not None
        self.scheduler.unlease(client, process)
        self.perform()

    @rule(number=st.integers(1, 5), cpus=st.integers(0, 2))
    def claim(self, number: int, cpus: int) -> None:
        actor = b"actor%011d" % number
        if actor in self.claimed or any(each.actor == actor for each in self.scheduler.claims):
            return
        amounts = {"CPU": cpus * ONE} if cpus else {}
        self.scheduler.claim(Claim(actor, {"CPU": ONE, **amounts}, amounts, ()))
        self.scheduler.pump()
        self.perform()

    @rule(number=st.integers(1, 5))
    def withdraw(self, number: int) -> None:
        self.scheduler.withdraw(b"actor%011d" % number)

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def the_machine_is_sound(self) -> None:
        self.scheduler.check()

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        queued = [
            (work.task_class.client, work.first, item)
            for work in self.scheduler.queues.all_ranges()
            for item in range(work.low, work.high)
        ]
        placed = [task for worker in self.workers.values() for task in worker.tasks()]
        everywhere = queued + placed
        assert len(everywhere) == len(set(everywhere)), "a task in two places"
        assert set(everywhere) == self.open, "a task was lost, or runs after its end"

    @invariant()
    def the_scheduler_knows_what_each_worker_has(self) -> None:
        for process, worker in self.workers.items():
            state = self.scheduler.workers[process]
            assert worker.tasks() == [
                (work.task_class.client, work.first, item)
                for work in state.outstanding
                for item in range(work.low, work.high)
            ]

    @invariant()
    def what_fits_is_handed_out_or_a_worker_is_on_its_way(self) -> None:
        for shape, queue in self.scheduler.queues.by_shape.items():
            if queue and self.resources.fits(shape.amounts):
                assert not self.scheduler.idle.get(()), "an idle worker and a task that fits"
                # After workers that died before they were ready the next ones come later.
                assert self.scheduler.forking.get((), 0) > 0 or self.scheduler.failed_starts, (
                    "nobody comes for a task that fits"
                )


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
