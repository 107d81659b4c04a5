"""Placement groups of one node: asked for, reserved here, and coordinated where that falls to it.

What    PlacementGroups answers what clients ask of groups, follows the table, obeys the coordinator
        with what is reserved here, and ends what runs in a group that is removed. What must outlive
        a node is in the table (brokers/group_table.py).
Caller  brokers/node.py: serve() in each wake; the rules of calls and of links.
Never   decides where a bundle goes (brokers/groups.py), or whether it fits (reservations.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import link_messages
from zray.protocol.ids import GROUP_ID_BYTES, NodeId, node_of

from . import group_table, group_transactions, groups, reservations
from .bundles import Accounts
from .coordination import Coordination
from .group_plan import why_impossible
from .group_states import evict
from .group_store import GroupStore, OwnStore
from .group_table import GroupSpec, GroupTable
from .node_outcomes import error_outcome
from .peers import Process
from .reservations import Reservations
from .resources import read_request

if TYPE_CHECKING:
    from .node import Node

_TICK_S = 0.05
"""While something is under way; what waits for room is planned anew as often."""
_QUIET_S = 0.5
_LEAVING_S = 0.005
"""While workers of a removed group end."""
_IMPOSSIBLE_S = 2.0
"""A group that no nodes could hold for so long is warned of: they may be about to come."""
_ANSWERS = ("PREPARED", "COMMITTED", "RELEASED", "INQUIRED")
_ASKS = ("PREPARE", "COMMIT", "CANCEL", "REMOVE")


class PlacementGroups:
    """See the module's docstring.

    Args:
        node: whose resources are reserved.
        accounts: its resources.
    """

    def __init__(self, node: Node, accounts: Accounts) -> None:
        self.node = node
        self.table = GroupTable()
        self.reservations = Reservations(accounts)
        self.store: GroupStore | None = None
        """None where nobody has asked yet, or the cluster's is not known yet."""
        self.coordination = Coordination(self)
        self._awaited: dict[bytes, list[Callable[[], None]]] = {}
        """By a group that was made here: whom to answer when this node has heard of it."""
        self._looked_up: set[bytes] = set()
        self._ending: set[bytes] = set()
        self._impossible: dict[bytes, float | None] = {}
        """Groups of drivers here that nobody could hold, since when; None: they were told."""
        self.is_due = False
        """Something has changed: serve() is wanted at once."""
        self._next = self._warn_at = 0.0

    def use_gcs(self, session: Any) -> None:
        """The cluster's table is to be used from now on."""
        from .gcs_group_store import GcsStore

        self.store = GcsStore(session, self._changed)

    # -- what clients ask ------------------------------------------------------------------------

    def ask(self, process: Process, op: str, arguments: list[Any]) -> None:
        """GROUP: answer a request, now or when the table has."""
        answer = partial(self.node.answer, process)
        rule = _OPS.get(op)
        if rule is None:
            raise errors.RemoteProtocolError(f"there is no request {op!r} about placement groups")
        rule(self, process, arguments, answer)

    def _create(self, process: Process, fields: list[Any], answer: _Answer) -> None:
        group = process.identity + os.urandom(GROUP_ID_BYTES - len(process.identity))
        job = bytes.fromhex(self.node.job_of(process))
        spec = group_table.read_spec(group, fields, job)

        def took(is_made: Any, error: Exception | None) -> None:
            if error is None and not is_made:
                error = errors.NameTakenError(
                    f"there is a placement group {spec.name!r} already: take another name, or"
                    " find it with get_placement_group()"
                )
            if error is not None:
                self._awaited.pop(group, None)
                answer(None, error)

        # Whoever asks for its state next must find it: so the answer waits for the table's word.
        self._awaited[group] = [lambda: answer(group, None)]
        self._get_store().transact(group_transactions.creation(spec), took)

    def _remove(self, _process: Process, fields: list[Any], answer: _Answer) -> None:
        group = _group_id(fields[0])
        reason = f"placement group {group.hex()} was removed"

        def took(_was_there: Any, error: Exception | None) -> None:
            if error is None:
                self._is_gone(group, reason)
            answer(None, error)

        self._ask_for_end(group, reason, took)

    def _ask_for_end(
        self, group: bytes, reason: str, done: Callable[[Any, Exception | None], None]
    ) -> None:
        store, spec = self._get_store(), self.table.specs.get(group)
        if spec is not None and spec.name:
            store.transact(group_transactions.freeing(spec), _ignore, patient=True)
        store.transact(group_transactions.removal(group, reason), done)

    def _find(self, _process: Process, fields: list[Any], answer: _Answer) -> None:
        store = self._get_store()

        def took_name(group: Any, error: Exception | None) -> None:
            if error is not None or group is None:
                answer(None, error)
                return
            store.get(group_table.spec_key(group), lambda *found: took_spec(group, *found))

        def took_spec(group: bytes, packed: Any, error: Exception | None) -> None:
            found = None
            if packed is not None and self.table.removals.get(group) is None:
                found = [group, _bundles(packed)]
            answer(found, error)

        store.get(group_table.name_key(str(fields[0]), str(fields[1])), took_name)

    def _rows(self, _process: Process, fields: list[Any], answer: _Answer) -> None:
        self._get_store()
        answer(self.rows(None if fields[0] is None else [_group_id(fields[0])]), None)

    def rows(self, wanted: list[bytes] | None = None) -> list[dict[str, Any]]:
        """Return a row for each group of the cluster, or for these: plain types, for people.

        `group`, `name`, `namespace`, `strategy`, `state`, `job`, `detached`, `bundles` (each with
        resources in units, labels and node) and `problem`: why it can't be placed, or "".
        """
        rows = self.table.rows(wanted)
        for row in rows:
            row["problem"] = self._why_impossible(bytes.fromhex(row["group"]))
        return rows

    def _get_store(self) -> GroupStore:
        if self.store is None:
            if self.node.cluster is not None:
                raise errors.ClusterError(
                    "this node has not found the GCS of its cluster yet, which keeps placement"
                    " groups: start one node with `zray-node start --head`, and try again"
                )
            self.store = OwnStore(self._changed)
        return self.store

    # -- what the table says ---------------------------------------------------------------------

    def _changed(self, is_whole: bool, changes: list[tuple[bytes, bytes | None]]) -> None:
        table, states = self.table, self.node.scheduler.borrowing.groups
        touched = set(states.known) | set(table.specs) if is_whole else set()
        if is_whole:
            table.clear()
            table.is_read = True
        touched.update(table.changed(key, value) for key, value in changes)
        for group in sorted(touched - {b""}):
            if table.state(group) == groups.REMOVED:
                reason = f"placement group {group.hex()} was removed"
                self._is_gone(group, table.removals.get(group, reason))
            else:
                states.is_there(group)
            for then in self._awaited.pop(group, ()):
                then()
        self.is_due = True

    def _is_gone(self, group: bytes, reason: str) -> None:
        """Nothing of this node goes on in a group that is removed."""
        node = self.node
        if node.scheduler.borrowing.groups.gone_of(group):
            return
        node.scheduler.borrowing.group_gone(group, reason)
        self._impossible.pop(group, None)
        self._ending.discard(group)
        for actor in list(node.dispatcher.actors.values()):
            if actor.group == group:
                cause = error_outcome(errors.ActorPlacementGroupRemovedError(reason))
                node.dispatcher.kill(actor.actor, cause, no_restart=True)

    def gone_elsewhere(self, group: bytes, reason: str) -> None:
        """GROUP_GONE: a node that has lent us workers of a group is about to end them."""
        self._is_gone(group, reason)

    def _look_up(self) -> None:
        """Work names a group that nobody has told us of: it is new, or gone for long."""
        for group in self.node.scheduler.borrowing.groups.unknown - self._looked_up:
            self._looked_up.add(group)
            self._get_store().get(group_table.spec_key(group), partial(self._looked, group))

    def _looked(self, group: bytes, packed: Any, error: Exception | None) -> None:
        self._looked_up.discard(group)
        if error is not None:
            return  # It is asked again: the group is still unknown.
        if packed is None:
            self._is_gone(group, f"there is no placement group {group.hex()} (any more)")
        else:
            self.node.scheduler.borrowing.groups.is_there(group)

    # -- in each wake ----------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called."""
        if self.is_due or self.node.scheduler.borrowing.groups.unknown - self._looked_up:
            return 0.0 if self._is_usable() else _QUIET_S
        if not self.table.specs and not self.reservations.bundles:
            return 60.0
        return max(0.0, self._next - self.node.now)

    def serve(self) -> None:
        """Do what has become due, by the table or by time."""
        now, states = self.node.now, self.node.scheduler.borrowing.groups
        if states.unknown - self._looked_up and self._is_usable():
            self._look_up()
        if not self.is_due and now < self._next:
            return
        if not self.table.specs and not self.reservations.bundles and not self.is_due:
            self._next = now + _QUIET_S
            return
        self.is_due = False
        self._open_ready()
        self._end_groups_of_ended_jobs()
        self.coordination.tick(now)
        self.reservations.tick(now)
        self._answer_coordinator(None)
        self.coordination.perform()
        self._release_evicted()
        if now >= self._warn_at:
            self._warn_at = now + _QUIET_S
            self._warn_of_impossible()
        settled = all(self.table.state(group) == groups.CREATED for group in self.table.specs)
        wait_s = _QUIET_S if settled else _TICK_S
        self._next = now + (_LEAVING_S if self.reservations.leaving() else wait_s)

    def _is_usable(self) -> bool:
        return self.store is not None or self.node.cluster is None

    # -- this node's bundles ---------------------------------------------------------------------

    def asked(self, peer: NodeId, what: str, group: bytes, attempt: int, wanted: Any) -> None:
        """GROUP_ASK: the coordinator wants something of this node."""
        mine, now = self.reservations, self.node.now
        if what == "PREPARE":
            mine.prepare(group, attempt, wanted, now)
        elif what == "COMMIT":
            mine.commit(group, attempt)
        elif what == "CANCEL":
            mine.cancel(group, attempt)
        else:
            mine.remove(group, attempt)
        self._answer_coordinator(peer)
        self.is_due = True

    def _answer_coordinator(self, asker: NodeId | None) -> None:
        """Say what the reservations have to say, to who has asked, else to who has the term."""
        while self.reservations.commands:
            answers, self.reservations.commands = self.reservations.commands, []
            for answer in answers:
                if isinstance(answer, reservations.Evict):
                    self._evict(answer.group, answer.indexes)
                    continue
                term = self.table.term
                peer = asker or (None if term is None else term.node)
                if peer is not None:  # Else whoever has the term next asks again.
                    self._say(peer, _said(answer))

    def _say(self, peer: NodeId, said: tuple[Any, ...]) -> None:
        if peer == self.node.process:
            self.coordination.said(peer, *said)
        elif self.node.cluster is not None:
            self.node.cluster.send(peer, link_messages.GROUP_SAID, *said)

    def _open_ready(self) -> None:
        before = self.node.resources.offered
        for group in {bundle.group for bundle in self.reservations.bundles.values()}:
            if self.table.is_ready(group):
                self.reservations.ready(group)
        if self.node.resources.offered != before:
            self.node.scheduler.pump()

    def _evict(self, group: bytes, indexes: tuple[int, ...]) -> None:
        """The group is gone: who borrows workers in it hears so before they die."""
        reason = self.table.removals.get(group, f"placement group {group.hex()} was removed")
        self._is_gone(group, reason)
        grants = self.reservations.resources.drawn_from(group, indexes)
        borrowers = evict(self.node.scheduler, grants, reason)
        for borrower in sorted(set(borrowers)):
            assert self.node.cluster is not None
            self.node.cluster.send(borrower, link_messages.GROUP_GONE, group, reason)

    def _release_evicted(self) -> None:
        for group, indexes in self.reservations.leaving().items():
            if not self.reservations.resources.drawn_from(group, indexes):
                self.reservations.evicted(group)
                self._answer_coordinator(None)
                self.node.scheduler.pump()
                self.is_due = True

    # -- jobs and people -------------------------------------------------------------------------

    def _end_groups_of_ended_jobs(self) -> None:
        for group, spec in list(self.table.specs.items()):
            home_is_here = spec.job and node_of(spec.job) == self.node.process
            if not home_is_here or spec.job in self.node.processes.drivers:
                continue
            if group not in self.table.removals:
                self.end(group, "its driver has ended")

    def end(self, group: bytes, why: str) -> None:
        """A group ends without anybody's asking: until the table says so, or to be tried again."""
        if group in self._ending:
            return
        self._ending.add(group)

        def took(_was_there: Any, error: Exception | None) -> None:
            if error is not None:
                self._ending.discard(group)

        self._ask_for_end(group, f"placement group {group.hex()} was removed: {why}", took)

    def driver_left(self) -> None:
        """A driver of this node has gone: so do its groups."""
        self.is_due = True

    def _why_impossible(self, group: bytes) -> str:
        spec, decided = self.table.specs[group], self.table.decided.get(group)
        if self.table.state(group) not in (groups.PENDING, groups.RESCHEDULING):
            return ""
        seats = {} if decided is None else decided.seats
        placed = {index: seat.node for index, seat in seats.items()}
        load = self.node.scheduler.borrowing.table
        return why_impossible(spec.requests, spec.strategy, load, placed)

    def _warn_of_impossible(self) -> None:
        """Tell a driver once that its group waits for nodes that are not there."""
        now, drivers = self.node.now, self.node.processes.drivers
        for group, spec in self.table.specs.items():
            if spec.job not in drivers or self._impossible.get(group, now) is None:
                continue
            problem = self._why_impossible(group)
            since = self._impossible.setdefault(group, now) if problem else None
            if not problem:
                self._impossible.pop(group, None)
            elif since is not None and now - since >= _IMPOSSIBLE_S:
                self._impossible[group] = None
                self.node.printed.show(spec.job.hex(), [("node", True, _warning(spec, problem))])


def _said(
    answer: reservations.Prepared
    | reservations.Committed
    | reservations.Inquire
    | reservations.Removed,
) -> tuple[Any, ...]:
    """Return the fields of a GROUP_SAID."""
    if isinstance(answer, reservations.Prepared):
        return "PREPARED", answer.group, answer.attempt, answer.ok
    if isinstance(answer, reservations.Committed):
        return "COMMITTED", answer.group, answer.attempt, answer.ok
    if isinstance(answer, reservations.Inquire):
        return "INQUIRED", answer.group, answer.attempt, True
    return "RELEASED", answer.group, 0, True


_Answer = Callable[[Any, "Exception | None"], None]


def _bundles(packed: bytes) -> list[list[Any]]:
    return [list(bundle) for bundle in group_table.unpack_spec(packed).bundles]


def _warning(spec: GroupSpec, problem: str) -> str:
    name = f" {spec.name!r}" if spec.name else ""
    return (
        f"placement group{name} {spec.group.hex()} waits for nodes that are not there: {problem}."
        " Ask for less, or add nodes"
    )


def _group_id(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != GROUP_ID_BYTES:
        raise errors.RemoteProtocolError(f"a placement group's id has {GROUP_ID_BYTES} bytes")
    return value


def _ignore(_result: Any, _error: Exception | None) -> None:
    """It is looked at again with the next tick, by what the table says then."""


_OPS: dict[str, Callable[[PlacementGroups, Process, list[Any], _Answer], None]] = {
    "create": PlacementGroups._create,
    "remove": PlacementGroups._remove,
    "find": PlacementGroups._find,
    "rows": PlacementGroups._rows,
}


# -- rules of links --------------------------------------------------------------------------------


def group_ask(cluster: Any, peer: NodeId, message: list[Any], _frames: list[Any]) -> None:
    """GROUP_ASK, checked."""
    what, group, attempt, wanted = message[3:7]
    if what not in _ASKS or type(attempt) is not int:
        raise errors.RemoteProtocolError(f"GROUP_ASK of {what!r}")
    bundles: dict[int, dict[str, int]] = {}
    for index, units in wanted:
        if type(index) is not int:
            raise errors.RemoteProtocolError("GROUP_ASK of a bundle without an index")
        bundles[index] = read_request(units)
    cluster.node.placement_groups.asked(peer, what, _group_id(group), attempt, bundles)


def group_said(cluster: Any, peer: NodeId, message: list[Any], _frames: list[Any]) -> None:
    """GROUP_SAID, checked."""
    what, group, attempt, ok = message[3:7]
    if what not in _ANSWERS or type(attempt) is not int:
        raise errors.RemoteProtocolError(f"GROUP_SAID of {what!r}")
    cluster.node.placement_groups.coordination.said(peer, what, _group_id(group), attempt, bool(ok))


def group_gone(cluster: Any, _peer: NodeId, message: list[Any], _frames: list[Any]) -> None:
    """GROUP_GONE, checked."""
    cluster.node.placement_groups.gone_elsewhere(_group_id(message[3]), str(message[4]))
