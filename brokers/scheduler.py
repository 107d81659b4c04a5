"""The local scheduler: which worker runs what, and when.

What    Ranges of submitted batches wait in one queue per shape (resources + environment). Workers
        take as much as keeps them busy for a few milliseconds by the function's estimate; what a
        worker has not begun can be taken back, so nothing waits behind a long task while another
        worker is idle. A worker that waits in get lends its CPU out. A caller that works
        synchronously leases an idle worker.
Caller  brokers/node.py, tests/sim.
Never   opens a socket or reads a clock: time comes as an argument, commands go to ``commands``.
Spec    OSDI'18, section 4.2.2 (bottom-up scheduling); docs/explanation/architecture.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from zray.protocol.limits import (
    WORKER_BACKLOG_TASKS_MAX,
    WORKER_BACKLOG_US,
    WORKERS_MAX,
)

from . import scheduler_account
from .borrowing import Borrowing
from .leases import Leases
from .lending import Lending
from .offering import Offering
from .placement import ANYWHERE, SPREAD, Locality
from .rebalancing import LONG_STUCK_S, Rebalancing
from .resources import ResourceSet
from .scheduling import (
    IDLE,
    LEASED,
    RUNNING,
    STARTING,
    Cancelled,
    Claim,
    Claimed,
    Command,
    Fail,
    Fork,
    Kill,
    Range,
    Run,
    Shape,
    TaskClass,
    WorkerState,
    is_plain,
    job_of,
)
from .task_queues import TaskQueues, missing_ranges

NO_INPUTS: Mapping[int, Locality] = {}


class Scheduler:
    """All tasks and workers of one node."""

    backlog_us_max = WORKER_BACKLOG_US

    def __init__(
        self,
        resources: ResourceSet,
        *,
        pool_size: int,
        node: bytes = bytes(8),
        labels: Mapping[str, str] | None = None,
        runs_work: bool = True,
    ) -> None:
        self.runs_work = runs_work
        """False on a driver's node: all that is submitted there runs elsewhere."""
        self.resources = resources
        self.pool_size = pool_size
        self.commands: list[Command] = []
        self.classes: dict[tuple[bytes, int], TaskClass] = {}
        self.queues = TaskQueues()
        self.workers: dict[bytes, WorkerState] = {}
        self.idle: dict[tuple[tuple[str, str], ...], list[WorkerState]] = {}
        self.running: dict[Shape, dict[bytes, WorkerState]] = {}
        self.claims: deque[Claim] = deque()
        self.forking: dict[tuple[tuple[str, str], ...], int] = {}
        self.leases = Leases(self)
        self.lending = Lending(self)
        self.offering = Offering(self)
        self.borrowing = Borrowing(self, node, labels or {})
        self.rebalancing = Rebalancing(self)
        self.ended_jobs: set[str] = set()
        self.is_stopping = False
        self.now = 0.0
        self.failed_starts = 0
        """Workers in a row that died before they were ready; the next one waits longer."""
        self.fork_again_at = 0.0
        """Items of batches (client, first) that must not be queued (again)."""

    # -- clients ---------------------------------------------------------------------------------

    def declare(self, client: bytes, number: int, spec: list[Any]) -> None:
        """DECLARE_CLASS: remember a client's function and options."""
        self.classes[(client, number)] = TaskClass(client, number, spec)

    def submit(
        self,
        client: bytes,
        rows: list[list[Any]],
        payloads: list[bytes],
        inputs: Mapping[int, Locality] = NO_INPUTS,
    ) -> None:
        """SUBMIT: queue batches, then hand out what fits; inputs: where those of some rows are."""
        for at, (row, payload) in enumerate(zip(rows, payloads, strict=True)):
            class_number, first, count, low, high, mode, retries = row[:7]
            task_class = self.classes[(client, class_number)]
            work = Range(task_class, first, count, low, high, mode, payload, retries)
            work.alone = retries == 0
            if at in inputs:
                work.shape = self.borrowing.near_inputs(work, inputs[at], self.now)
            is_spread = work.shape.where.strategy == SPREAD
            for part in self.borrowing.deal(work) if is_spread else (work,):
                self._queue(part)
        self.pump()

    def _queue(self, work: Range, *, front: bool = False) -> None:
        if work.shape.where is not ANYWHERE:
            reason = self.borrowing.why_nowhere(work.shape.where, work.shape.amounts)
            if reason:
                self.borrowing.refuse(work, reason)
                return
        cancelled = self.queues.add(work, front=front)
        if cancelled:
            self.commands.append(Cancelled(work.task_class.client, work.first, cancelled))

    def client_died(self, client: bytes) -> None:
        """Drop what a dead process had submitted; end the workers that still run it."""
        self.queues.drop_client(client)
        self.leases.client_died(client)
        for worker in list(self.workers.values()):
            if any(work.task_class.client == client for work in worker.outstanding):
                worker.outstanding = deque(
                    work for work in worker.outstanding if work.task_class.client != client
                )
                worker.blameless = worker.retiring = True
                self.commands.append(Kill(worker.process, "its caller is gone"))
            elif worker.state == LEASED and worker.lessee == client:
                worker.blameless = worker.retiring = True
                self.commands.append(Kill(worker.process, "its caller is gone"))
        for key in [key for key in self.classes if key[0] == client]:
            del self.classes[key]
        self.pump()

    # -- workers ---------------------------------------------------------------------------------

    def start_pool(self) -> None:
        """Fork the first workers."""
        self._fork((), self.pool_size)

    @property
    def takes_work(self) -> bool:
        """Whether work may come here: it is no driver's node, and is not leaving."""
        return self.runs_work and not self.lending.is_leaving

    def stop_forking(self) -> None:
        """The node ends: no worker is replaced any more."""
        self.is_stopping = True
        self.fork_again_at = float("inf")

    def _fork(self, env: tuple[tuple[str, str], ...], count: int) -> None:
        if self.now < self.fork_again_at or not self.runs_work:
            return
        have = len(self.workers) - len(self.borrowing.borrowed) + sum(self.forking.values())
        count = min(count, WORKERS_MAX - have)
        if count > 0:
            self.forking[env] = self.forking.get(env, 0) + count
            self.commands.append(Fork(env, count))

    def worker_forked(self, process: bytes, env: tuple[tuple[str, str], ...]) -> None:
        """A worker process exists and is starting."""
        self.workers[process] = WorkerState(process, env)

    def worker_ready(self, process: bytes) -> None:
        """HELLO: a worker takes work from here on."""
        worker = self.workers[process]
        if worker.state == STARTING:
            if self.failed_starts:
                self.failed_starts, self.fork_again_at = 0, 0.0
            self._started(worker)
            self._to_idle(worker)
            self.pump()

    def _started(self, worker: WorkerState) -> None:
        left = self.forking.get(worker.env, 0) - 1
        if left > 0:
            self.forking[worker.env] = left
        else:
            self.forking.pop(worker.env, None)

    def _to_idle(self, worker: WorkerState) -> None:
        worker.state = IDLE
        worker.shape = None
        worker.lessee = None
        worker.recalled = False
        worker.idle_since = self.now
        self.idle.setdefault(worker.env, []).append(worker)

    def worker_died(self, process: bytes, reason: str) -> WorkerState | None:
        """A worker is gone: what it had runs again, or fails where retries are used up."""
        worker = self.workers.pop(process, None)
        if worker is None:
            return None
        self.lending.worker_died(process, reason)
        self.borrowing.forget(process)
        if worker.state == STARTING:
            self._started(worker)
            if not worker.blameless:
                self.failed_starts += 1
                self.fork_again_at = self.now + min(5.0, 0.05 * 2**self.failed_starts)
        pool = self.idle.get(worker.env)
        if pool is not None and worker in pool:
            pool.remove(worker)
        if worker.shape is not None:
            self.running.get(worker.shape, {}).pop(process, None)
        if worker.grant is not None:
            self.resources.release(worker.grant)
            worker.grant = None
        outstanding, worker.outstanding = list(worker.outstanding), deque()
        for position, work in reversed(list(enumerate(outstanding))):
            self._after_crash(work, blamed=position == 0 and not worker.blameless, reason=reason)
        self._keep_pool()
        self.pump()
        return worker

    def _after_crash(self, work: Range, *, blamed: bool, reason: str) -> None:
        """The first unfinished task was running when its worker died; the others had not begun."""
        if not blamed or self.borrowing.groups.gone_of(work.shape.where.group):
            self._queue(work.tail(work.low), front=True)
            return
        if work.low + 1 < work.high:
            rest = work.tail(work.low + 1)
            rest.alone = True
            self._queue(rest, front=True)
        if work.retries == 0:
            self.commands.append(
                Fail(work.task_class.client, work.first, [work.low], work.task_class.name, reason)
            )
            return
        again = work.head(work.low + 1)
        again.alone = True
        again.retries -= 1 if again.retries > 0 else 0
        self._queue(again, front=True)

    def _keep_pool(self) -> None:
        have = sum(worker.pooled and worker.lender is None for worker in self.workers.values())
        self._fork((), self.pool_size - have - self.forking.get((), 0))

    def retire(self, now: float, idle_s: float) -> None:
        """End workers that have been idle for long beyond the pool's size."""
        self.now = now
        if self.failed_starts and now >= self.fork_again_at:
            self._keep_pool()
            self.pump()
        spare = sum(len(pool) for env, pool in self.idle.items() if is_plain(env)) - self.pool_size
        # Of an ended job only detached actors give work still; its last workers go by and by.
        self.ended_jobs &= {job_of(worker.env) for worker in self.workers.values()}
        for env, pool in list(self.idle.items()):
            plain = is_plain(env) and job_of(env) not in self.ended_jobs
            while pool and now - pool[0].idle_since > idle_s and (spare > 0 or not plain):
                self._end_idle(pool)
                spare -= plain
            if not pool:
                del self.idle[env]

    def _end_idle(self, pool: list[WorkerState]) -> None:
        worker = pool.pop(0)
        worker.blameless = True
        self.commands.append(Kill(worker.process, "", graceful=True))

    def job_ended(self, job: str) -> None:
        """End the idle workers of a job: nobody else may use what they have imported."""
        self.ended_jobs.add(job)
        for env in [env for env in self.idle if job_of(env) == job]:
            pool = self.idle.pop(env)
            while pool:
                self._end_idle(pool)
        self.borrowing.job_ended(job)
        self.queues.drop_shapes(job)
        for shape in [
            shape
            for shape, workers in self.running.items()
            if not workers and job_of(shape.env) == job
        ]:
            del self.running[shape]

    # -- claims of the dispatcher ----------------------------------------------------------------

    def claim(self, claim: Claim) -> None:
        """An actor needs a worker of its own and its resources."""
        if claim.where is not ANYWHERE:
            claim.where = self.borrowing.in_turn(claim.where, claim.placement)
            reason = self.borrowing.why_nowhere(claim.where, claim.placement)
            if reason:
                self.borrowing.refuse_claim(claim, reason)
                return
        self.claims.append(claim)

    def withdraw(self, actor: bytes) -> bool:
        """Take back a claim that was not served; returns whether there was one."""
        for claim in self.claims:
            if claim.actor == actor:
                self.claims.remove(claim)
                return True
        return False

    def _serve_claims(self) -> None:
        for _ in range(len(self.claims)):
            claim = self.claims.popleft()
            if not self.claim_fits_here(claim):
                self.claims.append(claim)
                continue
            if claim.shared_host is not None:
                grant = self.resources.acquire(claim.resources)
                assert grant is not None
                self.commands.append(Claimed(claim.actor, claim.shared_host, grant, in_host=True))
                continue
            worker = self.take_idle(claim.env)
            if worker is None:
                self.claims.append(claim)
                continue
            grant = self.resources.acquire(claim.resources)
            worker.state = RUNNING
            worker.pooled = False
            worker.grant = grant
            assert grant is not None
            if claim.is_loan:
                self.lending.lend(claim, worker.process, grant)
            else:
                self.commands.append(Claimed(claim.actor, worker.process, grant))
        self._fork_for_claims()
        self._keep_pool()

    def claim_fits_here(self, claim: Claim) -> bool:
        """Return whether what an actor needs is free, and it may live here."""
        return (
            self.resources.fits(claim.placement)
            and self.resources.fits(claim.resources)
            and self.borrowing.may_run_here(claim.where, claim.placement)
        )

    def _fork_for_claims(self) -> None:
        wanted: dict[tuple[tuple[str, str], ...], int] = {}
        for claim in self.claims:
            if claim.shared_host is None and self.claim_fits_here(claim):
                env = () if is_plain(claim.env) else claim.env
                wanted[env] = wanted.get(env, 0) + 1
        for env, count in wanted.items():
            self._fork(env, count - self.forking.get(env, 0))

    def take_idle(self, env: tuple[tuple[str, str], ...]) -> WorkerState | None:
        """Take an idle worker of this environment, or one that has served nobody yet."""
        pool = self.idle.get(env)
        if pool:
            return pool.pop()
        fresh = self.idle.get(())
        if not fresh or not is_plain(env):
            return None
        worker = fresh.pop()
        worker.env = env
        return worker

    # -- handing out -----------------------------------------------------------------------------

    def pump(self) -> None:
        """Hand out all that can be handed out now."""
        if self.claims:
            self._serve_claims()
        if self.leases.goes_first:
            self.leases.serve()
        for shape in self.queues.shapes_waiting():
            queue = self.queues.by_shape[shape]
            served = False
            while queue:
                worker = self._place(shape)
                if worker is None:
                    self._make_room(shape)
                    break
                self._hand(worker, shape, queue)
                served = self.leases.goes_first = True
            if served and queue:
                self.queues.rotate(shape)
        self.leases.serve()

    def _place(self, shape: Shape) -> WorkerState | None:
        """Return the worker that should get the next range: an idle one, else the least busy."""
        worker = self.take_idle(shape.env) if self.fits_here(shape) else None
        if worker is not None:
            worker.grant = self.resources.acquire(shape.amounts)
            worker.state = RUNNING
            worker.shape = shape
            worker.backlog_us = 0.0
            self.running.setdefault(shape, {})[worker.process] = worker
            return worker
        others_wait = self._others_wait(shape)
        if others_wait and not self.borrowing.borrowed:
            return None  # A worker that is refilled before it is idle never makes room for them.
        stays = bool(self.borrowing.borrowed) and self.borrowing.stays(shape, self.now)
        best = None
        for worker in self.running.get(shape, {}).values():
            if worker.lender is not None and stays:
                continue
            if worker.blocked or worker.reclaiming or worker.backlog_us > WORKER_BACKLOG_US / 2:
                continue
            if worker.retiring or worker.recalled or worker.blameless:
                continue
            if others_wait and (worker.outstanding or worker.lender is None):
                continue
            if worker.outstanding and (
                worker.outstanding[0].alone
                or self.queues.by_shape[shape][0].alone
                or self.now - worker.reported > LONG_STUCK_S
            ):
                continue
            if best is None or worker.backlog_us < best.backlog_us:
                best = worker
        return best

    def _others_wait(self, shape: Shape) -> bool:
        return (
            self.queues.others_wait(shape) or bool(self.leases.waiting) or bool(self.lending.asked)
        )

    def _hand(self, worker: WorkerState, shape: Shape, queue: deque[Range]) -> None:
        work = queue[0]
        task_class = work.task_class
        estimate = task_class.estimate_us
        room = int((WORKER_BACKLOG_US - worker.backlog_us) / estimate)
        slots = len(self.running[shape]) + self._more_slots(shape)
        share = -(-self.queues.counts[shape] // max(1, slots))
        count = max(1, min(room, share, WORKER_BACKLOG_TASKS_MAX, work.high - work.low))
        if work.alone:
            count = 1
        if task_class.max_calls:
            count = self._within_max_calls(worker, task_class, count)
        if count < work.high - work.low:
            part = work.head(work.low + count)
            work.low += count
        else:
            part = queue.popleft()
        part.alone = work.alone
        self.queues.counts[shape] -= count
        if not worker.outstanding:
            worker.reported = self.now
        worker.outstanding.append(part)
        worker.backlog_us += count * estimate
        known = task_class.key in worker.known
        worker.known.add(task_class.key)
        self.commands.append(
            Run(
                worker.process,
                part,
                part.low,
                part.high,
                not known,
                worker.grant.gpu_ids if worker.grant else worker.gpu_ids,
            )
        )

    def _within_max_calls(self, worker: WorkerState, task_class: TaskClass, count: int) -> int:
        """Return how many calls a worker may still be given; after the last one it retires."""
        given = worker.calls.get(task_class.key, 0)
        count = min(count, task_class.max_calls - given)
        worker.calls[task_class.key] = given + count
        worker.retiring = given + count >= task_class.max_calls
        return count

    def _more_slots(self, shape: Shape) -> int:
        """Return how many more workers of this shape the free resources allow (at most 8)."""
        if not self.borrowing.may_run_here(shape.where, shape.amounts):
            return 0
        free = self.resources.offered
        slots = 8
        for name, units in shape.amounts.items():
            slots = min(slots, free.get(name, 0) // units)
        return slots

    def fits_here(self, shape: Shape) -> bool:
        """Return whether a task of this shape may begin here now, if there is a worker."""
        return self.resources.fits(shape.amounts) and (
            shape.where is ANYWHERE or self.borrowing.may_run_here(shape.where, shape.amounts)
        )

    def _make_room(self, shape: Shape) -> None:
        """Nothing can take the next range: fork where resources are free, else recall leases."""
        if self.fits_here(shape):
            wanted = min(self.queues.counts[shape], self._more_slots(shape))
            env = () if is_plain(shape.env) else shape.env
            self._fork(env, wanted - self.forking.get(env, 0))
        elif not shape.where.group and self.borrowing.may_run_here(shape.where, shape.amounts):
            self.leases.recall()

    # -- reports ---------------------------------------------------------------------------------

    def finished(self, process: bytes, reports: Iterable[list[Any]], now: float) -> None:
        """FINISHED: items are done; [client, first, low, high, busy_us, …] each."""
        self.now = now
        worker = self.workers.get(process)
        if worker is None:
            return
        worker.reported = now
        for client, first, low, high, busy_us, *_failed in reports:
            self._progress(worker, client, first, low, high, busy_us)
        if not worker.outstanding:
            self._drained(worker)
        self.pump()
        self._let_go(worker)
        if self.idle and not self.queues.task_count:
            self.rebalancing.run(now)

    def _progress(
        self, worker: WorkerState, client: bytes, first: int, low: int, high: int, busy_us: int
    ) -> None:
        for work in worker.outstanding:
            if work.first == first and work.low == low and work.task_class.client == client:
                break
        else:
            return
        count = high - low
        task_class = work.task_class
        worker.backlog_us = max(0.0, worker.backlog_us - count * task_class.estimate_us)
        task_class.observe(busy_us / count, count)
        work.low = high
        if work.low >= work.high:
            worker.outstanding.remove(work)

    def _drained(self, worker: WorkerState) -> None:
        worker.backlog_us = 0.0
        if worker.state != RUNNING or not worker.pooled or worker.shape is None:
            return
        if worker.retiring or worker.recalled:
            self._free(worker)
            return
        more = bool(self.queues.counts.get(worker.shape)) and not worker.blocked
        if more and not self.queues.others_wait(worker.shape) and not self.lending.asked:
            return  # pump() refills it without giving the resources back in between.
        self._free(worker)

    def _let_go(self, worker: WorkerState) -> None:
        """What was to refill a drained worker went elsewhere: it gives its resources back."""
        if (
            not worker.outstanding
            and worker.state == RUNNING
            and worker.pooled
            and worker.shape is not None
        ):
            self._free(worker)
            self.pump()

    def _free(self, worker: WorkerState) -> None:
        if worker.lender is not None:
            self.borrowing.idle(worker)
            return
        if worker.shape is not None:
            self.running[worker.shape].pop(worker.process, None)
        if worker.grant is not None:
            self.resources.release(worker.grant)
            worker.grant = None
        worker.blocked = False
        if worker.retiring:
            worker.state = IDLE  # And in no pool: nobody finds it any more.
            worker.shape = None
            worker.pooled = False
            worker.blameless = True
            self.commands.append(Kill(worker.process, "max_calls", graceful=True))
            self._keep_pool()
            return
        self._to_idle(worker)

    def returned(self, process: bytes, *, spent: bool) -> None:
        """A worker that was lent to another node is back, with nothing to do."""
        worker = self.workers.get(process)
        if worker is None or worker.pooled or worker.grant is None:
            return
        worker.pooled = True
        worker.retiring = spent or job_of(worker.env) in self.ended_jobs
        self._free(worker)
        self.pump()

    def tick(self, now: float) -> None:
        """Time has passed: take work back from workers stuck in a long task."""
        self.now = now
        self.rebalancing.run(now)
        self.pump()

    def needs_tick(self) -> bool:
        """Whether a worker has tasks behind its running one while others could run them."""
        return self.rebalancing.needs_tick

    def seize(self, process: bytes) -> None:
        """A worker has been stopped: others run what it has not begun."""
        worker = self.workers.get(process)
        if worker is None:
            return
        for work in self.rebalancing.seize(worker):
            self._queue(work, front=True)
        self.pump()

    def reclaimed(self, process: bytes, rows: list[list[Any]]) -> None:
        """RECLAIMED: the worker has not begun these ranges [client, first, low, high]."""
        worker = self.workers.get(process)
        if worker is None:
            return
        for work in self.rebalancing.given_back(worker, rows):
            self._queue(work, front=True)
        if not worker.outstanding:
            self._drained(worker)
        self.pump()
        self._let_go(worker)

    def blocked(self, process: bytes) -> None:
        """BLOCKED: the task waits; its CPU and what is queued behind it go to others."""
        worker = self.workers.get(process)
        if worker is None or worker.blocked:
            return
        worker.blocked = True
        if worker.grant is not None:
            self.resources.lend(worker.grant)
        self.rebalancing.blocked(worker)
        self.pump()
        self._fork((), scheduler_account.forks_wanted(self, worker.env))

    def unblocked(self, process: bytes) -> None:
        """UNBLOCKED: the task runs on, at once; new work waits until the CPU is paid back."""
        worker = self.workers.get(process)
        if worker is None or not worker.blocked:
            return
        worker.blocked = False
        if worker.grant is not None:
            self.resources.reclaim(worker.grant)

    # -- leases and cancels ----------------------------------------------------------------------

    def lease(self, client: bytes, class_number: int) -> None:
        """LEASE: lend a worker, now or in turn, or refuse."""
        self.leases.ask(client, class_number)

    def unlease(self, client: bytes, process: bytes) -> None:
        """UNLEASE: the worker is idle again."""
        if self.leases.has(client, process):
            self._free(self.workers[process])
            self.pump()

    def cancel(self, client: bytes, first: int, item: int) -> tuple[bool, bytes | None]:
        """Remove a queued task: (removed, None), or (False, the worker that has it or None).

        One that is not here is remembered: its batch may be on its way, or come back unrun.
        """
        if self.queues.remove(client, first, item):
            return True, None
        for worker in self.workers.values():
            for work in worker.outstanding:
                if work.holds(client, first, item):
                    self.queues.remember_cancel(client, first, item)
                    return False, worker.process
        self.queues.remember_cancel(client, first, item)
        return False, None

    def forgive(self, process: bytes, client: bytes, first: int, item: int) -> None:
        """A worker is about to be killed for this task: it must not run again."""
        worker = self.workers.get(process)
        if worker is None:
            return
        worker.blameless = True
        for work in list(worker.outstanding):
            if work.holds(client, first, item):
                worker.outstanding.remove(work)
                worker.outstanding.extend(work.without([item]))

    def unknown(self, client: bytes, rows: list[list[int]]) -> list[list[int]]:
        """RECONCILE: the ranges [first, low, high] that are neither queued nor handed out."""
        return missing_ranges(scheduler_account.ranges_of(self, client), rows)

    # -- for people and tests --------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Return counts for status and metrics."""
        return scheduler_account.statistics(self)

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        scheduler_account.check(self)
