"""Workers of other nodes that run this node's tasks and actors.

What    What waits here for longer than a moment, or may not run here, asks another node for a
        worker. From then on this scheduler hands it ranges as to its own; the lender counts its
        resources and brings the messages (brokers/lending.py). So a task moves when there is a
        worker free for it, never into another queue: nothing is lost with a node but what it was
        running.
Caller  brokers/scheduler.py, brokers/loans.py.
Never   sends; takes a node for anything but what its row of the load table says.
Spec    OSDI'18, section 4.2.2 (bottom-up scheduling); docs/explanation/architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .group_states import GroupStates
from .load import ALIVE, DRAINING, LoadTable, NodeLoad, estimate_wait_us
from .placement import DEFAULT, MOVE_US, SPREAD, Locality, Where, choose
from .scheduling import (
    RUNNING,
    Borrow,
    Claim,
    Claimed,
    ClaimRefused,
    GiveBack,
    MoveActors,
    Range,
    Shape,
    Unschedulable,
    WorkerState,
    job_of,
)

if TYPE_CHECKING:
    from .scheduler import Scheduler

PATIENCE_S = 0.005
"""What waits here for longer looks elsewhere."""
_REFUSED_S = 0.02
"""A node that had no worker to spare is not asked again before this."""
_IDLE_S, _IDLE_IN_NEED_S = 0.2, 0.005
"""A borrowed worker without work is given back after this: sooner where work waits somewhere."""
_STARVED_S = 0.25
"""What was dealt to a node, and has had no worker there for so long, goes to any."""
_WORTH_US = 10_000.0
"""Work for which one more worker is asked for: fewer would spend it asking."""
_TINY_US = 50.0
"""A task that takes less time than its messages would is done here."""
_STALLED_S = 0.01
"""A worker that has not reported for so long is in the middle of a long task."""
_ASK_MAX = 64
"""Workers asked for at once for one shape."""


@dataclass(slots=True)
class _Request:
    node: bytes
    need: _Need
    patient: bool


@dataclass(slots=True)
class _Need:
    """A shape, or an actor's claim, that lacks workers."""

    shape: Shape
    placement: dict[str, int]
    count: int
    here: bool
    """It could run on this node, if that were idle."""
    actor: bytes | None = None


class Borrowing:
    """What this scheduler has borrowed, and asks for.

    Args:
        scheduler: whose queue it is.
        node: this node's id.
        labels: this node's.
    """

    def __init__(self, scheduler: Scheduler, node: bytes, labels: Mapping[str, str]) -> None:
        self.scheduler = scheduler
        self.labels = dict(labels)
        self.table = LoadTable(node)
        self.borrowed: dict[bytes, WorkerState] = {}
        self.requests: dict[int, _Request] = {}
        self.groups = GroupStates()
        self.in_cluster = False
        """Other nodes may come: what can't run here may wait for them."""
        self._refused_until: dict[bytes, float] = {}
        self._waiting_since: dict[Shape | bytes, float] = {}
        self._next = 1
        self._dealt = 0
        self.incarnation = 0
        """Of this node, once the GCS has taken it in: an earlier life's rows are older than any."""
        self._revision = 0
        self.report(0.0)

    # -- this node, and others -------------------------------------------------------------------

    def report(self, now: float) -> NodeLoad:
        """Return this node's row as it is now, a newer one each time."""
        self._revision += 1
        scheduler = self.scheduler
        row = NodeLoad(
            self.table.own,
            self.incarnation,
            self._revision,
            scheduler.resources.offered_total,
            scheduler.resources.offered,
            self.labels,
            scheduler.queues.task_count,
            int(min(1e12, self._wait_us(now))),
            state=ALIVE if scheduler.takes_work else DRAINING,
        )
        self.table.changed_here(row)
        return row

    def _wait_us(self, now: float) -> float:
        scheduler = self.scheduler
        queued_us = 0.0
        for shape in scheduler.queues.shapes_waiting():
            if self.may_run_here(shape.where, shape.amounts):
                queued_us += scheduler.queues.counts[shape] * self._task_us(shape, now)
        if not queued_us:
            return 0.0
        busy = [
            max(worker.backlog_us, (now - worker.reported) * 1e6)
            for worker in scheduler.workers.values()
            if worker.outstanding and worker.grant is not None and not worker.blocked
        ]
        cpus = max(1, scheduler.resources.total.get("CPU", 0) // 10_000)
        return estimate_wait_us(queued_us, busy + [0.0] * (cpus - len(busy)))

    def _task_us(self, shape: Shape, now: float) -> float:
        """Return how long a task of this shape takes: its estimate, or what one takes right now."""
        estimate_us = self.scheduler.queues.by_shape[shape][0].task_class.estimate_us
        for worker in self.scheduler.running.get(shape, {}).values():
            if worker.outstanding and not worker.blocked and now - worker.reported > PATIENCE_S:
                estimate_us = max(estimate_us, (now - worker.reported) * 1e6)
        return estimate_us

    def stays(self, shape: Shape, now: float) -> bool:
        """Return whether tasks of this shape are so short that they are best done here.

        One that takes less time than its messages would, or has not run yet, so that nobody
        knows; as long as those here get on with it.
        """
        head = self.scheduler.queues.by_shape[shape][0].task_class
        if head.has_run and head.estimate_us >= _TINY_US:
            return False
        return self.may_run_here(shape.where, shape.amounts) and any(
            worker.lender is None
            and worker.outstanding
            and not worker.blocked
            and now - worker.reported < _STALLED_S
            for worker in self.scheduler.running.get(shape, {}).values()
        )

    def heard(self, row: NodeLoad) -> None:
        """Another node's row has come from itself; with the first one it is there, and lends."""
        self.in_cluster = True
        self.table.heard(row)

    def offered(self, row: NodeLoad, now: float) -> None:
        """OFFER: a node has workers free that we may not know of; it has not refused those."""
        self._refused_until.pop(row.node, None)
        self.heard(row)
        self.seek(now)

    def node_lost(self, node: bytes) -> list[bytes]:
        """It is gone, with the workers it had lent: returns those, whose death is to be told."""
        self.table.left(node)
        self._refused_until.pop(node, None)
        self.requests = {
            number: request for number, request in self.requests.items() if request.node != node
        }
        self._drop_hopeless()
        return [worker.process for worker in self.borrowed.values() if worker.lender == node]

    def group_gone(self, group: bytes, reason: str) -> None:
        """A placement group was removed: what waits for it fails."""
        self.groups.is_gone(group, reason)
        self._drop_hopeless()

    def _drop_hopeless(self) -> None:
        scheduler = self.scheduler
        for shape in scheduler.queues.shapes_waiting():
            reason = self.why_nowhere(shape.where, shape.amounts)
            if reason:
                for work in scheduler.queues.take(shape):
                    self.refuse(work, reason)
        for claim in list(scheduler.claims):
            reason = self.why_nowhere(claim.where, claim.placement)
            if reason:
                scheduler.claims.remove(claim)
                self.refuse_claim(claim, reason)

    def refuse(self, work: Range, reason: str) -> None:
        """A range can run nowhere, and never will."""
        task_class, items = work.task_class, list(range(work.low, work.high))
        group = self.groups.gone_of(work.shape.where.group)
        self.scheduler.commands.append(
            Unschedulable(task_class.client, work.first, items, task_class.name, reason, group)
        )

    def refuse_claim(self, claim: Claim, reason: str) -> None:
        """The same of an actor."""
        group = self.groups.gone_of(claim.where.group)
        self.scheduler.commands.append(ClaimRefused(claim.actor, reason, group))

    @property
    def nodes(self) -> dict[bytes, NodeLoad]:
        """The rows of the other nodes, by their ids."""
        return {node: row for node, row in self.table.rows.items() if node != self.table.own}

    # -- where something may run -----------------------------------------------------------------

    def may_run_here(self, where: Where, amounts: Mapping[str, int]) -> bool:
        """Return whether this node is one that was asked for, if it were idle."""
        if not self.scheduler.takes_work and (
            not self.scheduler.runs_work or self.table.has_others()
        ):
            return False
        is_elsewhere = where.node not in (b"", self.table.own)
        # Soft affinity to a node that is gone, or is leaving: here is as good as anywhere.
        row = self.table.rows.get(where.node) if is_elsewhere else None
        if is_elsewhere and (not where.soft or (row is not None and row.state == ALIVE)):
            return False
        if where.rules and not all(rule.holds(self.labels) for rule in where.rules):
            return False
        if where.preferred and self._is_preferred_elsewhere(where, amounts):
            return False
        return not self.scheduler.resources.shortage(amounts)

    def _is_preferred_elsewhere(self, where: Where, amounts: Mapping[str, int]) -> bool:
        if all(rule.holds(self.labels) for rule in where.preferred):
            return False
        request, table = where.request(amounts), self.table
        return any(
            request.prefers(table, node) and request.may_run_on(table, node)
            for node in table.candidates
        )

    def why_nowhere(self, where: Where, amounts: Mapping[str, int]) -> str:
        """Return why nothing can come of waiting, "" where something may."""
        if where.group and (reason := self.groups.why_gone(where.group)):
            return reason
        if where.node and not where.soft and where.node not in self.table.rows:
            return f"it is to run on node {where.node.hex()}, which is not alive"
        if not self.in_cluster and where.rules and not self.may_run_here(where, {}):
            return "the node does not have the labels it asks for"
        return ""

    def in_turn(self, where: Where, amounts: Mapping[str, int]) -> Where:
        """Return where something with SPREAD goes: the next node of those that could have it."""
        if where.strategy != SPREAD or not self.table.has_others():
            return where
        self._dealt += 1
        node = choose(where.request(amounts), self.table, seed=self._dealt, now=0.0)
        return where if node is None else replace(where, node=node, soft=True, strategy=DEFAULT)

    def deal(self, work: Range) -> list[Range]:
        """Divide a range with SPREAD among the nodes, in turn."""
        shape = work.shape
        request = shape.where.request(shape.amounts)
        table = self.table
        nodes = [node for node in table.candidates if request.may_run_on(table, node)]
        if not nodes or not table.has_others():
            return [work]
        count = work.high - work.low
        parts: list[Range] = []
        low = work.low
        each, more = divmod(count, len(nodes))
        for step in range(min(count, len(nodes))):
            node = nodes[(self._dealt + step) % len(nodes)]
            high = low + each + (step < more)
            part = work.tail(low).head(high)
            dealt = replace(shape.where, node=node, soft=True, strategy=DEFAULT)
            part.shape = Shape(shape.amounts, shape.env, dealt)
            parts.append(part)
            low = high
        self._dealt += count
        return parts

    def near_inputs(self, work: Range, locality: Locality, now: float) -> Shape:
        """Return the shape of a range whose inputs may be elsewhere: with the node that is best."""
        shape, table = work.shape, self.table
        bound = bool(shape.where.node) or shape.where.strategy == SPREAD
        cheap = locality.fetch_us(table.own) <= MOVE_US
        if bound or cheap or not table.has_others():
            return shape
        self.report(now)
        self._dealt += 1
        request = shape.where.request(shape.amounts)
        node = choose(request, table, locality=locality, seed=self._dealt, now=now)
        if node is None:
            return shape
        table.sent(node, (work.high - work.low) * work.task_class.estimate_us, now)
        where = replace(shape.where, node=node, soft=True, near=True)
        return Shape(shape.amounts, shape.env, where)

    def has_room(self, shape: Shape, now: float) -> bool:
        """Return whether some other node could run a task of this shape at once."""
        table = self.table
        if not table.has_others():
            return False
        request = shape.where.request(shape.amounts)
        return any(
            node != table.own
            and (not request.node or request.node == node)
            and now >= self._refused_until.get(node, 0.0)
            and request.may_run_on(table, node)
            and table.fits_now(node, shape.amounts)
            for node in table.candidates
        )

    # -- asking ----------------------------------------------------------------------------------

    @property
    def needs_tick(self) -> bool:
        """Whether something waits that another node might run."""
        return self.table.has_others() and (
            bool(self.scheduler.claims) or bool(self.scheduler.queues.task_count)
        )

    def seek(self, now: float) -> None:
        """Ask for workers for what waits too long."""
        if not self.table.has_others():
            return
        needs = self._needs(now)
        if not needs:
            return
        self.report(now)
        self._make_way(needs)
        asked: dict[Shape, int] = {}
        claims: set[bytes | None] = set()
        for request in self.requests.values():
            if request.need.actor is None:
                shape = request.need.shape
                asked[shape] = asked.get(shape, 0) + 1
            claims.add(request.need.actor)
        for need in needs:
            if need.actor is None:
                self._ask(need, need.count - asked.get(need.shape, 0), now)
            elif need.actor not in claims:
                self._ask(need, 1, now)

    def _needs(self, now: float) -> list[_Need]:
        scheduler = self.scheduler
        before, self._waiting_since = self._waiting_since, {}
        needs: list[_Need] = []
        starved: list[Shape] = []
        for shape in scheduler.queues.shapes_waiting():
            since = self._waiting_since[shape] = before.get(shape, now)
            here = self.may_run_here(shape.where, shape.amounts)
            if here and (now - since < PATIENCE_S or scheduler.fits_here(shape)):
                continue  # A worker is free in a moment, or on its way.
            task_us = self._task_us(shape, now)
            if here and self.stays(shape, now):
                continue
            if self._is_starved(shape, now - since):
                starved.append(shape)
                continue
            count = scheduler.queues.counts[shape]
            worth = -int(-count * task_us // _WORTH_US)
            count = max(1, min(count, worth, _ASK_MAX))
            needs.append(_Need(shape, shape.amounts, count, here))
        for claim in scheduler.claims:
            if claim.is_loan:
                continue
            since = self._waiting_since[claim.actor] = before.get(claim.actor, now)
            if now - since > _STARVED_S:
                claim.where = claim.where.without_wishes()
            need = self._need_of(claim)
            if need is None or (need.here and now - since < PATIENCE_S):
                continue
            needs.append(need)
        if starved:
            for shape in starved:
                self._free_from_node(shape)
            scheduler.pump()  # This node may have room for them, and no other event need come.
        return needs

    def _need_of(self, claim: Claim) -> _Need | None:
        if self.scheduler.claim_fits_here(claim):
            return None
        placement = dict(claim.placement)
        for name, units in claim.resources.items():
            placement[name] = max(units, placement.get(name, 0))
        shape = Shape(claim.resources, claim.env, claim.where)
        here = self.may_run_here(claim.where, placement)
        return _Need(shape, placement, 1, here, claim.actor)

    def _is_starved(self, shape: Shape, waited_s: float) -> bool:
        where = shape.where
        return (
            where is not where.without_wishes()
            and waited_s > _STARVED_S
            # What was dealt out evenly stays so while each node gets on with its part.
            and (where.near or not self.scheduler.running.get(shape))
        )

    def _free_from_node(self, shape: Shape) -> None:
        """What prefers a node that has no room goes to any."""
        anywhere = Shape(shape.amounts, shape.env, shape.where.without_wishes())
        for work in self.scheduler.queues.take(shape):
            work.shape = anywhere
            self.scheduler.queues.add(work)

    def _make_way(self, needs: list[_Need]) -> None:
        """Something waits: what we have borrowed and have no work for others can use."""
        waiting = {need.shape for need in needs}
        for worker in list(self.borrowed.values()):
            if worker.pooled and not worker.outstanding and worker.shape not in waiting:
                self._give_back(worker)

    def _ask(self, need: _Need, count: int, now: float) -> None:
        table = self.table
        request = need.shape.where.request(need.placement)
        avoid = {node for node, until in self._refused_until.items() if now < until}
        while count > 0:
            node = choose(
                request, table, seed=self._next, now=now, avoid=avoid, free_only=need.here
            )
            if node is None or node == table.own or node in avoid:
                return
            fits = table.fits_now(node, need.placement)
            if not fits and (need.here or self._waits_at(node)):
                avoid.add(node)
                continue
            table.sent(node, 0.0, now, need.placement)
            number, self._next = self._next, self._next + 1
            self.requests[number] = _Request(node, need, not fits)
            self.scheduler.commands.append(
                Borrow(
                    node,
                    number,
                    dict(need.placement),
                    dict(need.shape.amounts),
                    need.shape.env,
                    need.actor is not None,
                    not need.here,
                )
            )
            count -= 1

    def _waits_at(self, node: bytes) -> bool:
        return any(each.patient and each.node == node for each in self.requests.values())

    # -- answers ---------------------------------------------------------------------------------

    def lent(
        self, node: bytes, number: int, worker: bytes | None, gpu_ids: tuple[str, ...], now: float
    ) -> None:
        """LENT: a worker, or word that there is none."""
        request = self.requests.get(number)
        if request is None or request.node != node:
            if worker is not None:
                self.scheduler.commands.append(GiveBack(worker, node))
            return
        del self.requests[number]
        need = request.need
        if worker is None:
            self.table.taken_back(node, need.placement)
            self._refused_until[node] = now + _REFUSED_S
            return
        state = WorkerState(worker, need.shape.env)
        state.state = RUNNING
        state.lender = node
        state.gpu_ids = gpu_ids
        scheduler = self.scheduler
        scheduler.now = now
        scheduler.workers[worker] = self.borrowed[worker] = state
        if need.actor is not None:
            state.pooled = False
            if scheduler.withdraw(need.actor):
                scheduler.commands.append(Claimed(need.actor, worker, None))
            else:
                self._give_back(state)  # It has found a place here, or has ended.
            return
        state.shape = need.shape
        state.idle_since = now
        scheduler.running.setdefault(need.shape, {})[worker] = state
        if job_of(state.env) in scheduler.ended_jobs and not scheduler.queues.task_count:
            self._give_back(state)
        scheduler.pump()
        if not state.outstanding and worker in self.borrowed:
            scheduler.rebalancing.run(now)

    # -- giving back -----------------------------------------------------------------------------

    def idle(self, worker: WorkerState) -> None:
        """A borrowed worker has nothing to do: it waits a moment for more."""
        worker.blocked = False
        worker.idle_since = self.scheduler.now
        if worker.retiring or worker.recalled:
            self._give_back(worker)

    def want_back(self, process: bytes, *, if_idle: bool = False) -> None:
        """WANTED_BACK: its node needs it when it has done what it is at; or only what is idle."""
        worker = self.borrowed.get(process)
        if worker is None:
            return  # It has crossed our GIVE_BACK.
        if not worker.pooled:
            if not if_idle:
                self.scheduler.commands.append(MoveActors(process))
            return
        if if_idle and worker.outstanding:
            return
        worker.recalled = True
        if not worker.outstanding:
            self._give_back(worker)
        elif not worker.reclaiming:
            self.scheduler.rebalancing.reclaim_rest(worker)

    def sweep(self, now: float) -> None:
        """Give back what has had nothing to do for a while: a short one, where others wait."""
        idle = [each for each in self.borrowed.values() if each.pooled and not each.outstanding]
        if not idle:
            return
        others_wait = any(row.queue_tasks for row in self.nodes.values())
        for worker in idle:
            if now - worker.idle_since > (_IDLE_IN_NEED_S if others_wait else _IDLE_S):
                self._give_back(worker)

    def job_ended(self, job: str) -> None:
        """Give back the workers of a job, those that are at work when they have done it."""
        for worker in list(self.borrowed.values()):
            if worker.pooled and job_of(worker.env) == job:
                worker.retiring = True
                if not worker.outstanding:
                    self._give_back(worker)

    def _give_back(self, worker: WorkerState) -> None:
        if worker.blameless:
            return  # It is being killed: its node will say when it is dead.
        scheduler = self.scheduler
        self.forget(worker.process)
        del scheduler.workers[worker.process]
        if worker.shape is not None:
            scheduler.running[worker.shape].pop(worker.process, None)
            worker.shape = None
        assert worker.lender is not None
        # The next borrower would count the calls of max_calls from the beginning.
        spent = worker.retiring or bool(worker.calls)
        scheduler.commands.append(GiveBack(worker.process, worker.lender, spent))

    def forget(self, process: bytes) -> None:
        """A borrowed worker has died."""
        self.borrowed.pop(process, None)

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        self.table.check()
        self.groups.check()
        workers = self.scheduler.workers
        assert self.borrowed.keys() == {
            each.process for each in workers.values() if each.lender is not None
        }
        for worker in self.borrowed.values():
            assert worker.grant is None, "the lender counts its resources"
            assert worker.state == RUNNING
            if worker.recalled and worker.pooled:
                assert worker.outstanding or worker.blameless, "kept for nothing"
