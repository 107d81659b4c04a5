"""Workers of other nodes that run this node's tasks and actors.

What    What waits here for longer than a moment, or could never run here, asks another node for a
        worker. From then on this scheduler hands it ranges as to its own, the lender only counts
        its resources and brings the messages. So a task moves where there is a worker free for
        it, never into another queue: nothing is lost with a node but what it was running.
Caller  brokers/scheduler.py, brokers/cluster.py.
Never   sends; chooses among nodes by anything but the rows of the load table it is given.
Spec    Ray paper, section 4.2.2 (bottom-up scheduling); docs/explanation/architecture.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .scheduling import RUNNING, Borrow, Claimed, GiveBack, Shape, WorkerState

if TYPE_CHECKING:
    from .scheduler import Scheduler

PATIENCE_S = 0.005
"""What waits here for longer looks elsewhere."""
_REFUSED_S = 0.05
"""A node that had no worker to spare is not asked again before this."""
_IDLE_S = 0.2
"""A borrowed worker without work is given back after this."""
_ASK_MAX = 64


@dataclass(slots=True)
class Elsewhere:
    """What this node knows of another one."""

    node: bytes
    total: dict[str, int]
    available: dict[str, int]
    queued: int = 0
    refused_until: float = 0.0


@dataclass(slots=True)
class _Request:
    node: bytes
    shape: Shape
    actor: bytes | None


@dataclass(slots=True)
class _Need:
    """A shape, or an actor's claim, that lacks workers."""

    shape: Shape
    count: int
    actor: bytes | None
    since: float = field(default=0.0)


class Borrowing:
    """What this scheduler has borrowed, and asks for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.nodes: dict[bytes, Elsewhere] = {}
        self.requests: dict[int, _Request] = {}
        self.wanted_back: set[bytes] = set()
        self._waiting_since: dict[Shape | bytes, float] = {}
        self._next = 1

    # -- other nodes -----------------------------------------------------------------------------

    def node_joined(self, node: bytes, total: dict[str, int]) -> None:
        """Another node is there, and lends."""
        self.nodes[node] = Elsewhere(node, dict(total), dict(total))

    def node_reports(self, node: bytes, available: dict[str, int], queued: int) -> None:
        """What is free there now."""
        known = self.nodes.get(node)
        if known is not None:
            known.available, known.queued = dict(available), queued

    def node_lost(self, node: bytes) -> list[bytes]:
        """It is gone, with the workers it had lent: returns those, whose death is to be told."""
        self.nodes.pop(node, None)
        self.requests = {
            number: request for number, request in self.requests.items() if request.node != node
        }
        return [
            worker.process for worker in self.scheduler.workers.values() if worker.lender == node
        ]

    def can_ever_meet(self, amounts: dict[str, int]) -> bool:
        """Return whether some other node has as much in all."""
        return any(_covers(each.total, amounts) for each in self.nodes.values())

    # -- asking ----------------------------------------------------------------------------------

    def seek(self, now: float) -> None:
        """Ask for workers for what waits too long."""
        if not self.nodes:
            return
        needs = list(self._needs(now))
        asked: dict[Shape, int] = {}
        for request in self.requests.values():
            if request.actor is None:
                asked[request.shape] = asked.get(request.shape, 0) + 1
        claims = {request.actor for request in self.requests.values()}
        for need in needs:
            if need.actor is not None:
                if need.actor not in claims:
                    self._ask(need, 1, now)
                continue
            self._ask(need, need.count - asked.get(need.shape, 0), now)

    def _needs(self, now: float) -> Iterable[_Need]:
        scheduler = self.scheduler
        waiting: dict[Shape | bytes, float] = {}
        for shape in scheduler.queues.shapes_waiting():
            since = waiting[shape] = self._waiting_since.get(shape, now)
            if now - since >= PATIENCE_S or not self._is_feasible_here(shape.amounts):
                yield _Need(shape, min(scheduler.queues.counts[shape], _ASK_MAX), None, since)
        for claim in scheduler.claims:
            if claim.shared_host is not None:
                continue
            since = waiting[claim.actor] = self._waiting_since.get(claim.actor, now)
            amounts = {**claim.placement, **claim.resources}
            if now - since >= PATIENCE_S or not self._is_feasible_here(amounts):
                yield _Need(Shape(amounts, claim.env), 1, claim.actor, since)
        self._waiting_since = waiting

    def _is_feasible_here(self, amounts: dict[str, int]) -> bool:
        return not self.scheduler.resources.shortage(amounts)

    def _ask(self, need: _Need, count: int, now: float) -> None:
        amounts = need.shape.amounts
        candidates = [
            each
            for each in self.nodes.values()
            if now >= each.refused_until and _covers(each.available, amounts)
        ]
        while count > 0 and candidates:
            # The one with most of what is asked for left: what is lent to us we subtract at once,
            # so that the next one of a burst sees it.
            best = max(candidates, key=lambda each: (each.available.get("CPU", 0), each.node))
            for name, units in amounts.items():
                best.available[name] -= units
            if not amounts or not _covers(best.available, amounts):
                candidates.remove(best)
            number, self._next = self._next, self._next + 1
            self.requests[number] = _Request(best.node, need.shape, need.actor)
            self.scheduler.commands.append(Borrow(best.node, number, amounts, need.shape.env))
            count -= 1

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
        if worker is None:
            known = self.nodes.get(node)
            if known is not None:
                known.refused_until = now + _REFUSED_S
            return
        state = WorkerState(worker, request.shape.env)
        state.state = RUNNING
        state.lender = node
        state.gpu_ids = gpu_ids
        scheduler = self.scheduler
        scheduler.workers[worker] = state
        if request.actor is not None:
            if not scheduler.withdraw(request.actor):
                self._give_back(state)
                return
            state.pooled = False
            scheduler.commands.append(Claimed(request.actor, worker, None))
            return
        state.shape = request.shape
        scheduler.running.setdefault(request.shape, {})[worker] = state
        scheduler.now = now
        self.idle(state)
        scheduler.pump()

    # -- giving back -----------------------------------------------------------------------------

    def idle(self, worker: WorkerState) -> None:
        """A borrowed worker has nothing to do: it waits a moment for more."""
        worker.blocked = False
        worker.idle_since = self.scheduler.now
        if worker.retiring or worker.process in self.wanted_back:
            self._give_back(worker)

    def want_back(self, process: bytes) -> None:
        """WANTED_BACK: its node needs it."""
        worker = self.scheduler.workers.get(process)
        if worker is None or worker.lender is None:
            return
        self.wanted_back.add(process)
        if not worker.outstanding and worker.pooled:
            self._give_back(worker)

    def sweep(self, now: float) -> None:
        """Give back what has had nothing to do for a while."""
        for worker in list(self.scheduler.workers.values()):
            if (
                worker.lender is not None
                and worker.pooled
                and not worker.outstanding
                and now - worker.idle_since > _IDLE_S
            ):
                self._give_back(worker)

    @property
    def needs_tick(self) -> bool:
        """Whether something waits that another node might run."""
        return bool(self.nodes) and (
            bool(self.scheduler.claims) or bool(self.scheduler.queues.task_count)
        )

    def _give_back(self, worker: WorkerState) -> None:
        scheduler = self.scheduler
        self.wanted_back.discard(worker.process)
        del scheduler.workers[worker.process]
        if worker.shape is not None:
            scheduler.running[worker.shape].pop(worker.process, None)
        assert worker.lender is not None
        scheduler.commands.append(GiveBack(worker.process, worker.lender))

    def forget(self, process: bytes) -> None:
        """A borrowed worker has died."""
        self.wanted_back.discard(process)

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for worker in self.scheduler.workers.values():
            if worker.lender is not None:
                assert worker.grant is None, "the lender counts its resources"
                assert worker.state == RUNNING


def _covers(have: dict[str, int], amounts: dict[str, int]) -> bool:
    return all(units <= have.get(name, 0) for name, units in amounts.items())
