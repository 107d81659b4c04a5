"""Who coordinates the placement groups of a cluster, and what that node does for all.

What    One node has the term, which is a row of the table: the first living node takes it when
        nobody has it, or who has it is dead. It drives brokers/groups.py, writes what that decides
        and sends the nodes what it asks. Each write compares the term, so a node that has lost it
        without knowing decides nothing.
Caller  brokers/placement_groups.py.
Never   keeps anything that is not in the table: who comes next goes on from there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from zray.protocol import link_messages
from zray.protocol.ids import NodeId, node_of

from . import group_transactions, groups
from .group_table import Term
from .groups import Groups

if TYPE_CHECKING:
    from .placement_groups import PlacementGroups


class Coordination:
    """This node's part in it.

    Args:
        owner: of the node.
    """

    def __init__(self, owner: PlacementGroups) -> None:
        self.owner = owner
        self.node = owner.node
        self.table = owner.table
        self.machine: Groups | None = None
        """While this node has the term."""
        self._term: Term | None = None
        """Of this node, where it has one or has just won it."""
        self._seeks_term = False

    def tick(self, now: float) -> None:
        """Time has passed, or the table has changed."""
        self._seek()
        if self.machine is not None:
            self._take_in(self.machine)
            self.node.scheduler.borrowing.report(now)
            self.machine.tick(now)

    def perform(self) -> None:
        """Do what the machine commands, until it has nothing more to say."""
        while self.machine is not None and self.machine.commands:
            machine = self.machine
            commands, machine.commands = machine.commands, []
            for command in commands:
                self._obey(machine, command)

    # -- the term --------------------------------------------------------------------------------

    def _seek(self) -> None:
        term, own = self.table.term, self.node.process
        if not self.table.is_read or self.owner.store is None:
            return
        if term is not None and term.node == own and term == self._term:
            if self.machine is None and not self._seeks_term:
                self._begin(term)
            return
        self.machine = None
        if self._term is not None and (term is None or term.epoch < self._term.epoch):
            return  # It is ours; the table has not told us yet.
        if self._seeks_term or not self.table.specs or not self._is_next():
            return
        mine, transaction = group_transactions.succession(term, own)

        def took(holds: Any, _error: Exception | None) -> None:
            self._seeks_term = False
            self._term = mine if holds else None
            self.owner.is_due = self.owner.is_due or bool(holds)

        self._seeks_term = True
        self.owner.store.transact(transaction, took)

    def _is_next(self) -> bool:
        """Whether the term falls to this node: nobody living has it, and it is the first one."""
        term = self.table.term
        if term is not None and term.node != self.node.process and not self._is_dead(term.node):
            return False
        cluster = self.node.cluster
        living = [] if cluster is None else list(cluster.membership.living)
        return self.node.process <= min(living, default=self.node.process)

    def _is_dead(self, node: NodeId) -> bool:
        """Return whether a node is dead to all, not just not reached from here."""
        cluster = self.node.cluster
        if node == self.node.process:
            return False
        if cluster is None:
            return True
        membership = cluster.membership
        if node in membership.living or node in cluster.members:
            return False
        return bool(membership.living)

    def _begin(self, term: Term) -> None:
        table = self.node.scheduler.borrowing.table
        self.machine = Groups(table, epoch=term.epoch, records=self.table.records())
        print(f"this node coordinates placement groups, in term {term.epoch}", flush=True)

    def _lost_term(self) -> None:
        """Somebody else has it, or nobody knows what became of a decision: begin anew, or not."""
        self.machine = self._term = None
        self.owner.is_due = True

    # -- coordinating ----------------------------------------------------------------------------

    def _take_in(self, machine: Groups) -> None:
        now, table = self.node.now, self.table
        for group, spec in table.specs.items():
            if group not in table.decided and not machine.knows(group):
                machine.create(spec.record(), now)
            if group in table.removals:
                machine.remove(group, now)
            elif spec.job and self._is_dead(node_of(spec.job)):
                self.owner.end(group, "its driver's node is gone")
        for node, incarnation in machine.lives_expected():
            if self._is_dead(node):
                machine.node_died(node, incarnation, now)

    def said(self, peer: NodeId, what: str, group: bytes, attempt: int, ok: bool) -> None:
        """GROUP_SAID: a node answers, or asks."""
        machine, now = self.machine, self.node.now
        if machine is None:
            return
        if what == "PREPARED":
            machine.prepared(peer, group, attempt, ok, now)
        elif what == "COMMITTED":
            machine.committed(peer, group, attempt, ok, now)
        elif what == "RELEASED":
            machine.released(peer, group, now)
        else:
            machine.inquired(peer, group, attempt, now)
        self.owner.is_due = True

    def _obey(self, machine: Groups, command: groups.GroupCommand) -> None:
        assert self._term is not None
        assert self.owner.store is not None
        if isinstance(command, groups.Ask):
            self._send(command)
        elif isinstance(command, groups.Save):
            record, version = command.record, command.version
            if not record.attempt and not record.removed:
                # What was asked for says it already.
                machine.saved(record.group, version, self.node.now)
                return
            self.owner.store.transact(
                group_transactions.decision(self._term, record),
                partial(self._saved, machine, record.group, version),
                patient=True,
            )
        elif isinstance(command, groups.Forget):
            forgotten = group_transactions.forgetting(self._term, command.group)
            self.owner.store.transact(
                forgotten, partial(self._saved, machine, b"", 0), patient=True
            )

    def _saved(
        self, machine: Groups, group: bytes, version: int, holds: Any, error: Exception | None
    ) -> None:
        if machine is not self.machine:
            return
        if not holds or error is not None:
            self._lost_term()
        elif group:
            machine.saved(group, version, self.node.now)
        self.owner.is_due = True

    def _send(self, command: groups.Ask) -> None:
        if command.node == self.node.process:
            self.owner.asked(
                command.node, command.what, command.group, command.attempt, command.wanted
            )
        elif self.node.cluster is not None:
            wanted = [[index, dict(units)] for index, units in command.wanted.items()]
            self.node.cluster.send(
                command.node,
                link_messages.GROUP_ASK,
                command.what,
                command.group,
                command.attempt,
                wanted,
            )
