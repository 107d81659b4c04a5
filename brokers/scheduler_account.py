"""The scheduler's books: counts for people, invariants for tests.

What    statistics() and check() of a Scheduler; who has what, each worker and range once; how many
        workers a chain of waiting tasks should find ready.
Caller  brokers/scheduler.py.
Never   changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from .scheduling import IDLE, LEASED, RUNNING, STARTING, Environment, Range, is_plain

if TYPE_CHECKING:
    from .scheduler import Scheduler

_FEW_WAIT, _AHEAD_OF_FEW = 2, 2
_MANY_WAIT, _AHEAD_OF_MANY = 6, 4
"""From so many waiting workers on, so many are idle or on their way."""


def ranges_of(scheduler: Scheduler, client: bytes) -> list[Range]:
    """Return what a client has queued here or handed out from here."""
    handed_out = (worker.outstanding for worker in scheduler.workers.values())
    return [
        work
        for work in chain(scheduler.queues.all_ranges(), *handed_out)
        if work.task_class.client == client
    ]


def forks_wanted(scheduler: Scheduler, env: Environment) -> int:
    """Return how many workers to start ahead of a chain of tasks that wait for tasks.

    Where several wait already more will come to: starting a worker takes 10 ms, handing a task to
    one that is there 0.3 ms. The more wait, the longer the chain is likely to go on.
    """
    waiting = scheduler.resources.lent_count
    if waiting < _FEW_WAIT or not is_plain(env):
        return 0
    ahead = _AHEAD_OF_FEW if waiting < _MANY_WAIT else _AHEAD_OF_MANY
    idle = sum(len(scheduler.idle.get(each, ())) for each in {(), env})
    return ahead - idle - scheduler.forking.get((), 0)


def function_names(scheduler: Scheduler, process: bytes, reports: Iterable[list[Any]]) -> list[str]:
    """Return what a worker ran, for the events: a name a report, "" where it is not known."""
    worker = scheduler.workers.get(process)
    outstanding = () if worker is None else worker.outstanding
    running = {(work.task_class.client, work.first): work.task_class.name for work in outstanding}
    return [running.get((report[0], report[1]), "") for report in reports]


def statistics(scheduler: Scheduler) -> dict[str, Any]:
    """Return counts for status and metrics."""
    states: dict[str, int] = {}
    for worker in scheduler.workers.values():
        name = "blocked" if worker.blocked else worker.state.lower()
        states[name] = states.get(name, 0) + 1
    return {
        "queued_tasks": scheduler.queues.task_count,
        "workers": states,
        "pending_actors": len(scheduler.claims),
        "running_tasks": sum(
            bool(worker.outstanding) or worker.state == LEASED
            for worker in scheduler.workers.values()
        ),
    }


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError where an invariant is broken."""
    scheduler.resources.check()
    scheduler.queues.check()
    scheduler.borrowing.check()
    scheduler.lending.check()
    idle = [worker for pool in scheduler.idle.values() for worker in pool]
    assert len({worker.process for worker in idle}) == len(idle), "idle twice"
    for worker in idle:
        assert worker.state == IDLE
        assert worker.grant is None
        assert not worker.outstanding
    for worker in scheduler.workers.values():
        counted = worker.lender is None and worker.state not in (IDLE, STARTING)
        assert (worker.grant is not None) == counted, worker.state
    for shape, workers in scheduler.running.items():
        for worker in workers.values():
            assert worker.shape == shape
            assert worker.state == RUNNING
            assert worker.outstanding or worker.blameless or worker.lender, "held for nothing"
