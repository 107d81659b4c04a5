"""Work taken back from workers that do not get to it.

What    A worker gets several tasks ahead. Where one of them turns out long, where the worker waits
        in get, is stopped, or its own node wants it back, what it has not begun goes to others.
Caller  brokers/scheduler.py.
Never   takes a task that has begun, unless it may run twice.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from zray.protocol.limits import RECLAIM_TIMEOUT_S

from .scheduling import Range, Reclaim, Shape, Suspect, WorkerState

if TYPE_CHECKING:
    from .scheduler import Scheduler

_STUCK_S = 0.005
"""A worker that has not reported for this long is inside a task longer than its estimate."""
LONG_STUCK_S = 4 * _STUCK_S
"""Then it gets nothing new, and other nodes are asked to help."""


class Rebalancing:
    """What is being taken back at one node."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    @property
    def needs_tick(self) -> bool:
        """Whether a worker has tasks behind its running one while others could run them."""
        return any(
            len(worker.outstanding) > 1
            or (worker.outstanding and worker.outstanding[0].high - worker.outstanding[0].low > 1)
            for worker in self.scheduler.workers.values()
            if worker.pooled
        )

    def run(self, now: float) -> None:
        """Take tasks back from workers that don't get to them while resources are free."""
        scheduler = self.scheduler
        for shape, workers in scheduler.running.items():
            queue_is_empty = not scheduler.queues.counts.get(shape)
            spare = queue_is_empty and (
                scheduler.fits_here(shape) or any(_is_free(worker) for worker in workers.values())
            )
            for worker in workers.values():
                waiting = _behind(worker)
                if waiting < 1:
                    continue
                if worker.reclaiming:
                    self._suspect(worker, now)
                    continue
                if worker.blocked:
                    self._again(worker, now)
                    continue
                stuck = now - worker.reported > _STUCK_S
                if spare and (stuck or worker.backlog_us > scheduler.backlog_us_max):
                    self.reclaim(worker, None if stuck else waiting // 2)
                elif queue_is_empty and self._others_could_help(shape, worker, now):
                    self.reclaim(worker, None)

    def _others_could_help(self, shape: Shape, worker: WorkerState, now: float) -> bool:
        return now - worker.reported > LONG_STUCK_S and self.scheduler.borrowing.has_room(
            shape, now
        )

    def _suspect(self, worker: WorkerState, now: float) -> None:
        if now - worker.reclaiming_since > RECLAIM_TIMEOUT_S:
            worker.reclaiming_since = now
            self.scheduler.commands.append(Suspect(worker.process))

    def _again(self, worker: WorkerState, now: float) -> None:
        """A blocked worker has kept tasks: they reached it after the word that took them back.

        What it waits for may be behind one of them, so nobody else would ever ask.
        """
        if now >= worker.reclaim_at:
            worker.reclaim_at = now + worker.patience_s
            worker.patience_s = min(1.0, worker.patience_s * 2)
            self.reclaim(worker, None)

    def reclaim(self, worker: WorkerState, count: int | None) -> None:
        """Ask a worker for what it has not begun; None: all."""
        worker.reclaiming = True
        worker.reclaiming_since = self.scheduler.now
        self.scheduler.commands.append(Reclaim(worker.process, count))

    def reclaim_rest(self, worker: WorkerState) -> None:
        """The same of all that is behind the task it runs, where there is any."""
        if _behind(worker) >= 1:
            self.reclaim(worker, None)

    def blocked(self, worker: WorkerState) -> None:
        """The task it runs waits: what is behind it goes to others."""
        worker.reclaim_at, worker.patience_s = 0.0, _STUCK_S
        self.reclaim_rest(worker)

    def seize(self, worker: WorkerState) -> list[Range]:
        """A worker has been stopped (SIGSTOP, a debugger): others run what it has not begun.

        It runs them as well if it goes on, so only those are seized that may run twice. Returns
        them, the last one first.
        """
        seized: list[Range] = []
        kept: deque[Range] = deque()
        for position, work in reversed(list(enumerate(worker.outstanding))):
            begun = 1 if position == 0 else 0
            if work.retries == 0 or work.high - work.low <= begun:
                kept.appendleft(work)
                continue
            seized.append(work.tail(work.low + begun))
            if begun:
                work.high = work.low + 1
                kept.appendleft(work)
        worker.outstanding = kept
        return seized

    def given_back(self, worker: WorkerState, rows: list[list[Any]]) -> list[Range]:
        """Take what the worker says it has not begun off its account, the last one first."""
        worker.reclaiming = False
        found: list[Range] = []
        for client, first, low, high in reversed(rows):
            for work in list(worker.outstanding):
                if (
                    work.first == first
                    and work.task_class.client == client
                    and work.low <= low
                    and work.high == high
                ):
                    found.append(self._take(worker, work, low, high))
                    break
        return found

    def _take(self, worker: WorkerState, work: Range, low: int, high: int) -> Range:
        back = work.tail(low)
        work.high = low
        if work.low >= work.high:
            worker.outstanding.remove(work)
        task_class = work.task_class
        worker.backlog_us = max(0.0, worker.backlog_us - (high - low) * task_class.estimate_us)
        if task_class.max_calls:
            worker.calls[task_class.key] -= high - low
            worker.retiring = False
        return back


def _behind(worker: WorkerState) -> int:
    """Return how many tasks wait behind the one that a worker runs; -1 where it runs none."""
    return sum(work.high - work.low for work in worker.outstanding) - 1


def _is_free(worker: WorkerState) -> bool:
    """Whether it is a borrowed worker that waits for work."""
    return (
        worker.lender is not None
        and not worker.outstanding
        and not worker.recalled
        and not worker.blameless
    )
