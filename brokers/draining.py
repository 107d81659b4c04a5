"""A node that is to leave without anybody's loss: what it lets go of, and what it waits for.

What    While it drains, a node takes no work, its own queue looks for workers elsewhere, what it
        has lent comes back, actors that may restart move to other nodes, and what it keeps of
        others' objects goes to their homes. When nothing is left that would be lost with it, it
        ends. Where that does not happen in time it goes on as before, or (force) ends all the same.
Caller  brokers/cluster.py, link_rules.py and node_calls.py.
Never   ends what somebody still needs, unless it was told to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from zray import errors
from zray.protocol import link_messages
from zray.protocol.ids import NodeId, node_of

from .node_outcomes import error_outcome

if TYPE_CHECKING:
    from .cluster import Cluster

TOLD_S = 0.5
"""What is waited for is told to the others this often."""


def moved_cause() -> bytes:
    """Return what the calls under way of an actor fail with that moves."""
    return error_outcome(errors.ActorDiedError("its node is leaving: it starts again elsewhere"))


class Draining:
    """The leaving of one node, and what it knows of that of others.

    Args:
        cluster: of the node.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._until: float | None = None
        self._force = False
        self._told_at = 0.0
        self._told: list[str] | None = None
        self.others: dict[NodeId, list[str]] = {}
        """Other nodes that are leaving, and what each waits for."""

    @property
    def is_under_way(self) -> bool:
        """Whether this node is leaving."""
        return self._until is not None

    @property
    def waits_for(self) -> list[str] | None:
        """What this node waits for; None: it is not leaving."""
        return self.blockers() if self.is_under_way else None

    # -- this node -------------------------------------------------------------------------------

    def begin(self, timeout_s: float, *, force: bool) -> None:
        """DRAIN: leave, once nothing would be lost; again: with another limit.

        Args:
            timeout_s: after this the node goes on as before.
            force: after this it ends whatever is lost.
        """
        print(f"this node is leaving, in {timeout_s:g} s at the latest", flush=True)
        self._until = self._node.now + timeout_s
        self._force = force
        self._node.scheduler.lending.leave(leaving=True)
        self.sweep()

    def _cancel(self) -> None:
        print(f"this node stays: it still has {'; '.join(self.blockers())}", flush=True)
        self._until = None
        self._node.scheduler.lending.leave(leaving=False)
        self._tell(None)

    def sweep(self) -> None:
        """A few times a second: go on leaving, if that is under way."""
        if self._until is None:
            return
        node = self._node
        node.scheduler.lending.recall_all()
        self._move_actors()
        blockers = self.blockers()
        if not blockers:
            node.stop("drained")
        elif node.now >= self._until:
            if self._force:
                node.stop(f"drained by force, with {'; '.join(blockers)}")
            else:
                self._cancel()
        elif node.now - self._told_at >= TOLD_S or self._told is None:
            self._cluster.objects.move_out()
            self._tell(blockers)

    def _move_actors(self) -> None:
        for worker in list(self._node.dispatcher.by_worker):
            if node_of(worker) == self._node.process:
                self._node.dispatcher.move(worker, moved_cause())

    def blockers(self) -> list[str]:
        """Return what would be lost with this node, each with its number, for people."""
        return [f"{what}: {count}" for what, count in self._blockers() if count]

    def _blockers(self) -> Iterator[tuple[str, int]]:
        node = self._node
        loans = list(node.scheduler.lending.loans.values())
        detached = [each for each in node.dispatcher.actors.values() if each.details["detached"]]
        yield "drivers connected to it", len(node.processes.drivers)
        yield "detached actors made there", len(detached)
        yield "actors of others without restarts", sum(loan.for_actor for loan in loans)
        yield "workers at work for others", sum(not loan.for_actor for loan in loans)
        yield "objects on their way home", self._cluster.objects.kept_for_others

    def _tell(self, blockers: list[str] | None) -> None:
        self._told, self._told_at = blockers, self._node.now
        for member in list(self._cluster.members):
            self._cluster.send(member, link_messages.LEAVING, blockers)

    # -- other nodes -----------------------------------------------------------------------------

    def told(self, node: NodeId, blockers: list[str] | None) -> None:
        """LEAVING: another node is leaving, and waits for this; None: it stays."""
        if blockers is None:
            self.others.pop(node, None)
        else:
            self.others[node] = blockers

    def node_lost(self, node: NodeId) -> None:
        """A node is gone."""
        self.others.pop(node, None)
