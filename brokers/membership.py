"""Who is a member of the cluster: the GCS's table of nodes, the links, and this node's own lease.

What    The table names living nodes, each with an incarnation: those without a link are dialled,
        and a dead one is lost whatever its link says. What a dead incarnation says is refused.
        A node whose own lease is over lets its actors stand still (host_leases.py): others may
        be about to put successors in their places. When it has been over for long, or the GCS
        says that this life is dead, it is at an end. Without a GCS, links alone say who is there.
Caller  brokers/gcs_connection.py, brokers/cluster.py.
Never   opens a socket, reads a clock or the tables.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zray.protocol.ids import NodeId
from zray.protocol.roles import Role

from .host_leases import LEASE_MARGIN_S

FENCE_S = 10.0
"""A lease may be over for so long before its node gives up what stands still: the GCS process, or
the head, may be starting again meanwhile, and a node that the GCS has declared dead hears so with
its next beat."""

REDIAL_S = 1.0
"""Between two attempts to reach a living node."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Reach a node that the table names."""

    node: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Dial this address no more: its node is dead."""

    address: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A member is dead, whatever its link says."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """This life is dead to all others: end its actors and workers, and begin another one."""

    reason: str


Command = Dial | Forget | Lost | End


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What the table says of a node.

    Args:
        node: its id.
        incarnation: counts its lives, from 1.
        address: of its links, "tcp://HOST:PORT".
        alive: False: this incarnation, and all before it, are dead for ever.
        role: a client or gateway is not dialled: it comes by itself, to nodes alone.
    """

    node: NodeId
    incarnation: int
    address: str
    alive: bool
    role: Role = Role.NODE


class Membership:
    """The members as one node sees them.

    Args:
        own: this node's id.
        fence_s: seconds; see FENCE_S.
    """

    def __init__(self, own: NodeId, *, fence_s: float = FENCE_S) -> None:
        self.own = own
        self.fence_s = fence_s
        """Set from the settings of the cluster."""
        self.living: dict[NodeId, NodeRow] = {}
        """As the table has them, this node among them."""
        self.ended: dict[NodeId, int] = {}
        """Incarnations that are dead, and with each all before it."""
        self.linked: dict[NodeId, int] = {}
        """Nodes with a link, and the incarnation they gave (0: they had none yet)."""
        self._addresses: dict[NodeId, str] = {}
        """Of the linked nodes: one listens at each, so who was named there before is dead."""
        self.commands: list[Command] = []
        self.incarnation = 0
        self.lease_until = float("inf")
        """Until when nobody puts another one into this node's place. Before the first JOIN nobody
        knows of it."""
        self._has_lease = False
        self._dial_at: dict[NodeId, float] = {}
        self.is_over = False
        """Whether this node has to end."""

    # -- the table -------------------------------------------------------------------------------

    def table_read(self, rows: Iterable[NodeRow], now: float) -> None:
        """The whole table; a node that is not in it is unknown, and not dead."""
        self.living.clear()
        self.ended.clear()
        for row in rows:
            self.table_changed(row, now)
        self._dial_at = {node: at for node, at in self._dial_at.items() if node in self.living}

    def table_changed(self, row: NodeRow, now: float) -> None:
        """A node has joined, or joined again, or is dead."""
        if row.incarnation <= self.ended.get(row.node, 0):
            return
        if row.alive:
            self.living[row.node] = row
            self._dial_at.setdefault(row.node, now)
            self._dial(row.node, now)
            return
        self.ended[row.node] = row.incarnation
        before = self.living.pop(row.node, None)
        self._dial_at.pop(row.node, None)
        if row.node == self.own:
            if row.incarnation == self.incarnation:
                self._end("the GCS has declared it dead")
            return
        if before is not None and row.node not in self.linked:
            self._forget(before.address)
        if self.linked.get(row.node, row.incarnation + 1) <= row.incarnation:
            self.commands.append(Lost(row.node, "the GCS has declared it dead"))

    def table_forgot(self, node: NodeId) -> None:
        """The row of a node that ended long ago is gone; its id is never used again."""
        self.living.pop(node, None)
        self._dial_at.pop(node, None)

    # -- links -----------------------------------------------------------------------------------

    def admits(self, node: NodeId, incarnation: int) -> bool:
        """Return whether a node that greets us is one to listen to."""
        return node != self.own and (node not in self.ended or incarnation > self.ended[node])

    def linked_to(self, node: NodeId, incarnation: int, address: str) -> None:
        """A node has greeted us and was let in."""
        self.linked[node] = incarnation
        self._addresses[node] = address

    def link_lost(self, node: NodeId, now: float) -> None:
        """A node that was let in is lost; where it is not dead, it is dialled again."""
        self.linked.pop(node, None)
        self._addresses.pop(node, None)
        if node in self.living:
            self._dial_at[node] = now + REDIAL_S

    @property
    def is_whole(self) -> bool:
        """Whether every node that is alive has a link to this one."""
        nodes = {node for node, row in self.living.items() if row.role is Role.NODE}
        return nodes - {self.own} <= self.linked.keys()

    def is_on_its_way(self, node: NodeId) -> bool:
        """Return whether a node is alive, and only the link to it is missing."""
        return node in self.living and node not in self.linked

    def _dial(self, node: NodeId, now: float) -> None:
        row = self.living[node]
        if node == self.own or node in self.linked or now < self._dial_at[node]:
            return
        if row.role is not Role.NODE or row.address in self._addresses.values():
            return
        self._dial_at[node] = now + REDIAL_S
        self.commands.append(Dial(node, row.address))

    def _forget(self, address: str) -> None:
        """Dial no more whom we have not reached, unless another life of it listens there."""
        awaited = any(row.address == address for row in self.living.values())
        if not awaited and address not in self._addresses.values():
            self.commands.append(Forget(address))

    # -- this node's lease -----------------------------------------------------------------------

    def joined(self, incarnation: int) -> None:
        """The GCS has taken this node in."""
        self.incarnation = incarnation

    def fenced(self, reason: str) -> None:
        """The GCS does nothing for this node any more."""
        self._end(reason)

    def tick(self, now: float, lease_expires_at: float) -> None:
        """A few times a second, with the end of the lease as the last answered beat left it."""
        for node in list(self.living):
            self._dial(node, now)
        if not self.incarnation:
            return
        before = self.lease_until if self._has_lease else float("-inf")
        self.lease_until = max(before, lease_expires_at - LEASE_MARGIN_S)
        self._has_lease = True
        over_s = now - self.lease_until
        if over_s > self.fence_s:
            self._end(f"its lease at the GCS has been over for {over_s:.1f} s")

    def _end(self, reason: str) -> None:
        if not self.is_over:
            self.is_over = True
            self.commands.append(End(reason))

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for node, row in self.living.items():
            assert row.alive
            assert row.node == node
            assert row.incarnation > self.ended.get(node, 0), "a dead incarnation lives"
        assert self._dial_at.keys() == self.living.keys()
        assert self.own not in self.linked
        assert self._addresses.keys() == self.linked.keys()
        lost = {command.node for command in self.commands if isinstance(command, Lost)}
        for node, incarnation in self.linked.items():
            # One that joined anew under a link of its former life has told us nothing of it yet.
            assert node in lost or incarnation == 0 or incarnation > self.ended.get(node, 0)
