"""Leases: workers lent to clients that work synchronously, so that their tasks pass no queue.

What    A client asks; it gets an idle worker, or waits for one that is lent to somebody else, or
        is refused where no lease could end for it: then its tasks go through the queue. Queue and
        waiting clients take turns, so that neither starves. Who has a lease that others wait for
        keeps it for a turn of a few milliseconds (zray/session/tasks.py): giving it back after
        each task would cost every task two messages and two wake-ups more.
Caller  brokers/scheduler.py.
Never   takes a worker from its lessee by itself: it asks for it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .placement import ANYWHERE
from .scheduling import LEASED, Granted, Recall, TaskClass, WorkerState, is_plain

if TYPE_CHECKING:
    from .scheduler import Scheduler


class Leases:
    """Who has which worker, and who waits for one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.waiting: deque[TaskClass] = deque()
        """In the order asked; only while somebody has a lease."""
        self.goes_first = False
        """The next worker that is free is for who waits here, not for the queue."""
        self._given = 0

    def ask(self, client: bytes, class_number: int) -> None:
        """LEASE: grant an idle worker, wait for one, or refuse."""
        scheduler = self.scheduler
        task_class = scheduler.classes.get((client, class_number))
        if (
            task_class is None
            or task_class.max_calls
            or scheduler.claims
            or "GPU" in task_class.shape.amounts
            or task_class.shape.where is not ANYWHERE
        ):
            scheduler.commands.append(Granted(client, class_number, None, False))
            return
        self.waiting.append(task_class)
        self.serve()

    def has(self, client: bytes, process: bytes) -> bool:
        """Return whether this worker is lent to this client."""
        worker = self.scheduler.workers.get(process)
        return worker is not None and worker.state == LEASED and worker.lessee == client

    def client_died(self, client: bytes) -> None:
        """Nobody waits for it any more."""
        self.waiting = deque(each for each in self.waiting if each.client != client)

    def serve(self) -> None:
        """Grant what can be granted; who can't be helped by any lease's end is refused."""
        if not self.waiting:
            return
        scheduler = self.scheduler
        if scheduler.claims:
            self._refuse()
            return
        while self.waiting:
            task_class = self.waiting[0]
            worker: WorkerState | None = None
            if scheduler.resources.fits(task_class.shape.amounts):
                worker = scheduler.take_idle(task_class.shape.env)
            if worker is None:
                break
            self.waiting.popleft()
            self._grant(task_class, worker)
            if self.goes_first:
                self.goes_first = False  # Now the queue; what that can't use is for us again.
                return
        if self.waiting and not self._recall_for_waiting():
            self._refuse()

    def _grant(self, task_class: TaskClass, worker: WorkerState) -> None:
        scheduler = self.scheduler
        worker.grant = scheduler.resources.acquire(task_class.shape.amounts)
        worker.state = LEASED
        worker.lessee = task_class.client
        self._given += 1
        worker.lease = self._given
        worker.recalled = len(self.waiting) > self._recalled()
        scheduler.commands.append(Granted(*task_class.key, worker.process, worker.recalled))

    def _recalled(self) -> int:
        """Count the leases whose end is asked for and gives back a CPU.

        A task that waits has lent its CPU, and may wait for the very tasks that wait for a lease.
        """
        return sum(
            worker.recalled and worker.state == LEASED and not worker.blocked
            for worker in self.scheduler.workers.values()
        )

    def _recall_for_waiting(self) -> bool:
        """One recall for each that waits; False: there is no lease that could end for them."""
        scheduler = self.scheduler
        recalled = self._recalled()
        while recalled < len(self.waiting) and self.recall():
            recalled += 1
        head = self.waiting[0].shape
        if scheduler.resources.fits(head.amounts):
            # What it lacks is a process: the queue forks one.
            return bool(scheduler.forking.get(() if is_plain(head.env) else head.env))
        return recalled > 0

    def recall(self) -> bool:
        """Ask for the oldest lease back that is not asked for yet; False: there is none."""
        oldest: WorkerState | None = None
        for worker in self.scheduler.workers.values():
            if (
                worker.state == LEASED
                and not worker.recalled
                and not worker.blocked
                and (oldest is None or worker.lease < oldest.lease)
            ):
                oldest = worker
        if oldest is None:
            return False
        oldest.recalled = True
        assert oldest.lessee is not None
        self.scheduler.commands.append(Recall(oldest.lessee, oldest.process))
        return True

    def _refuse(self) -> None:
        """Their tasks go through the queue."""
        for task_class in self.waiting:
            self.scheduler.commands.append(Granted(*task_class.key, None, False))
        self.waiting.clear()

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert not (self.waiting and self.scheduler.claims), "a lease is waited for beside actors"
