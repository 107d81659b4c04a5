"""Workers and jobs: one worker serves one job, and jobs take turns.

What    Which idle worker a job gets, what becomes of them when it ends, fairness between queues.
Never   starts a process: the scheduler is a machine.
"""

from __future__ import annotations

from typing import Any

from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import JOB_VARIABLE, Fork, Kill, Run

A, B = b"client-a", b"client-b"


def _scheduler(pool: int = 2) -> Scheduler:
    scheduler = Scheduler(ResourceSet({"CPU": pool * 10000}, ()), pool_size=pool)
    scheduler.start_pool()
    _start_forked(scheduler)
    return scheduler


def _commands(scheduler: Scheduler, kind: type[Any]) -> list[Any]:
    found = [command for command in scheduler.commands if type(command) is kind]
    scheduler.commands = [command for command in scheduler.commands if type(command) is not kind]
    return found


def _start_forked(scheduler: Scheduler) -> list[bytes]:
    names = []
    for command in _commands(scheduler, Fork):
        for _ in range(command.count):
            name = b"worker%d" % len(scheduler.workers)
            scheduler.worker_forked(name, command.env)
            names.append(name)
    for name in names:
        scheduler.worker_ready(name)
    scheduler.check()
    return names


def _submit(scheduler: Scheduler, client: bytes, first: int = 1, count: int = 1) -> None:
    if (client, 0) not in scheduler.classes:
        spec = [b"f", "f", {"CPU": 10000}, 1, 3, None, 64, {JOB_VARIABLE: client.hex()}, 0]
        scheduler.declare(client, 0, spec)
    scheduler.submit(client, [[0, first, count, 0, count, 0, 3]], [b""])
    scheduler.check()


def _finish(scheduler: Scheduler, run: Run, now: float = 0.0) -> None:
    scheduler.finished(
        run.worker,
        [
            [
                run.work.task_class.client,
                run.work.first,
                run.low,
                run.high,
                5000 * (run.high - run.low),
            ]
        ],
        now,
    )
    scheduler.check()


def test_a_worker_that_has_served_one_job_never_serves_another() -> None:
    scheduler = _scheduler()
    served: dict[bytes, set[bytes]] = {A: set(), B: set()}
    for turn in range(20):
        client = (A, B)[turn % 2]
        _submit(scheduler, client, first=turn + 1)
        _start_forked(scheduler)
        (run,) = _commands(scheduler, Run)
        served[client].add(run.worker)
        _finish(scheduler, run)
    assert served[A]
    assert served[B]
    assert not served[A] & served[B]


def test_fresh_workers_are_taken_before_any_is_forked() -> None:
    scheduler = _scheduler()
    _submit(scheduler, A, count=2)
    assert not _commands(scheduler, Fork)
    assert {run.worker for run in _commands(scheduler, Run)} == {b"worker0", b"worker1"}


def test_the_workers_of_a_job_end_with_it_and_fresh_ones_take_their_place() -> None:
    scheduler = _scheduler()
    _submit(scheduler, A)
    (run,) = _commands(scheduler, Run)
    _finish(scheduler, run)
    scheduler.client_died(A)
    scheduler.job_ended(A.hex())
    assert [kill.worker for kill in _commands(scheduler, Kill)] == [run.worker]
    scheduler.worker_died(run.worker, "")
    assert [(fork.env, fork.count) for fork in scheduler.commands if type(fork) is Fork] == [
        ((), 1)
    ]
    _start_forked(scheduler)
    assert not scheduler.queues.by_shape, "the queues of a job are forgotten with it"


def test_idle_workers_of_a_job_are_kept_up_to_the_size_of_the_pool() -> None:
    scheduler = _scheduler()
    for number in range(2):
        _submit(scheduler, A, first=number + 1)
    for run in _commands(scheduler, Run):
        _finish(scheduler, run)
    scheduler.retire(100.0, 5.0)
    assert not _commands(scheduler, Kill)
    _submit(scheduler, B)
    _start_forked(scheduler)
    (run,) = _commands(scheduler, Run)
    _finish(scheduler, run, now=100.0)
    scheduler.retire(200.0, 5.0)
    ended = [kill.worker for kill in _commands(scheduler, Kill)]
    assert len(scheduler.workers) - len(ended) == 2


def test_jobs_take_turns_while_both_have_queued_work() -> None:
    scheduler = _scheduler(pool=1)
    for number in range(50):
        _submit(scheduler, A, first=1 + 10 * number, count=10)
    _submit(scheduler, B)
    done: list[bytes] = []
    for step in range(40):
        _start_forked(scheduler)
        for run in _commands(scheduler, Run):
            done.append(run.work.task_class.client)
            _finish(scheduler, run, now=step * 0.01)
        if B in done:
            break
    assert B in done
    assert scheduler.queues.task_count, "job A was over: nothing was shown"
