"""Placement groups: resources reserved on several nodes, all or none.

What    The coordinator's machine: plan, prepare on every node, record the decision, commit. The
        record is the decision: a coordinator that comes back commits what is recorded and lets go
        of the rest; a node that comes to nothing in between takes only its own bundles along, and
        these are placed anew. Every message may be sent twice.
Caller  brokers/placement_groups.py of the node that has the term, which saves records;
        brokers/reservations.py is the side of every node.
Never   calls a group ready before every node has said that its bundles are committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from zray.errors import OptionError

from .group_plan import STRATEGIES, Plan, plan
from .load import LoadTable
from .placement import Request

PENDING, CREATED, RESCHEDULING, REMOVED = "PENDING", "CREATED", "RESCHEDULING", "REMOVED"

_AGAIN_S = 1.0
"""A message that has no answer by then is sent again."""

_LOOK_AGAIN_MAX_S = 0.25
"""Where there is no plan, the next one waits at most this long."""

_RETRY_S, _RETRY_MAX_S = 0.02, 1.0
"""After a node refused, the next plan waits: first so long, then twice as long, to the bound."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a bundle is: a life of a node, and the attempt that put it there."""

    node: bytes
    incarnation: int
    attempt: int


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """What is kept of a group: enough to go on after a crash of the coordinator.

    Args:
        group: its id, 16 bytes.
        strategy: one of group_plan.STRATEGIES.
        bundles: what each needs.
        seats: by bundle's index; those that are missing have no node yet.
        attempt: the last one that the record knows of.
        ready_once: it has been CREATED before.
        removed: it is to go; the record stays until every node has let go.
    """

    group: bytes
    strategy: str
    bundles: tuple[Request, ...]
    seats: Mapping[int, Seat] = field(default_factory=dict)
    attempt: int = 0
    ready_once: bool = False
    removed: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            message = f"a strategy is one of {', '.join(STRATEGIES)}, not {self.strategy!r}"
            raise OptionError(message, option="strategy")
        if not self.bundles:
            raise OptionError("a placement group needs at least one bundle", option="bundles")


@dataclass(frozen=True, slots=True)
class Save:
    """Write a record, then call saved() with the version."""

    record: GroupRecord
    version: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete a record: the group is gone everywhere."""

    group: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a node PREPARE, COMMIT, CANCEL or REMOVE for an attempt; wanted: units by bundle."""

    what: str
    node: bytes
    group: bytes
    attempt: int
    wanted: Mapping[int, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changed:
    """A group's state changed: tell who waits for it."""

    group: bytes
    state: str


GroupCommand = Save | Forget | Ask | Changed


class _Group:
    """A group and what is under way for it."""

    def __init__(self, record: GroupRecord) -> None:
        self.record = record
        self.version = 0
        self.saving = False
        self.state = ""
        self.plan: Plan = {}
        """The attempt that is being prepared; empty where there is none."""
        self.lives: dict[bytes, int] = {}
        """The incarnation of each node of the plan when it was asked."""
        self.agreed: set[bytes] = set()
        self.confirmed: set[Seat] = set()
        """Committed, and the node has said so."""
        self.released: set[bytes] = set()
        self.retry_at = 0.0
        self.retry_s = _RETRY_S
        self.again_at = 0.0


class Groups:
    """All placement groups of the cluster.

    Args:
        table: the load table that plans are made by.
        epoch: grows with every start of the coordinator, so that its attempts do too.
        records: what was saved before.
    """

    def __init__(
        self, table: LoadTable, *, epoch: int, records: Iterable[GroupRecord] = ()
    ) -> None:
        self.table = table
        self.commands: list[GroupCommand] = []
        self.now = 0.0
        self._attempt = epoch << 32
        self._groups: dict[bytes, _Group] = {}
        for record in records:
            group = self._groups[record.group] = _Group(record)
            self._tell(group)

    # -- what users ask --------------------------------------------------------------------------

    def create(self, record: GroupRecord, now: float) -> None:
        """Make a group; asking again for the same one changes nothing."""
        self.now = now
        if record.group not in self._groups:
            group = self._groups[record.group] = _Group(record)
            self._save(group, record)

    def remove(self, identity: bytes, now: float) -> None:
        """End a group: its bundles are released everywhere, then it is forgotten."""
        self.now = now
        group = self._groups.get(identity)
        if group is not None and not group.record.removed:
            # Whoever has been asked to prepare must let go as well, and has no seat.
            planned = {
                index: Seat(node, group.lives[node], self._attempt)
                for index, node in group.plan.items()
            }
            group.plan = {}
            seats = {**planned, **group.record.seats}
            self._save(group, replace(group.record, seats=seats, removed=True))

    def state(self, identity: bytes) -> str:
        """Return PENDING, CREATED, RESCHEDULING or REMOVED, which is also one nobody knows."""
        group = self._groups.get(identity)
        return REMOVED if group is None else self._state(group)

    def can_ever_be_placed(self, identity: bytes) -> bool:
        """Return whether the nodes there are could hold the group if they were idle."""
        group = self._groups[identity]
        placed = {index: seat.node for index, seat in group.record.seats.items()}
        record = group.record
        found = plan(record.bundles, record.strategy, self.table, placed=placed, by_total=True)
        return found is not None

    def knows(self, identity: bytes) -> bool:
        """Return whether there is such a group."""
        return identity in self._groups

    def lives_expected(self) -> set[tuple[bytes, int]]:
        """Return (node, incarnation) of all seats and plans: who of these is dead must be told."""
        groups = self._groups.values()
        lives = {(seat.node, seat.incarnation) for group in groups for seat in _seats(group)}
        return lives | {life for group in groups if group.plan for life in group.lives.items()}

    # -- answers ---------------------------------------------------------------------------------

    def saved(self, identity: bytes, version: int, now: float) -> None:
        """A record is safe from here on."""
        self.now = now
        group = self._groups.get(identity)
        if group is not None and group.saving and group.version == version:
            group.saving = False
            group.again_at = 0.0
            self._go_on(group)

    def prepared(self, node: bytes, identity: bytes, attempt: int, ok: bool, now: float) -> None:
        """A node has reserved its bundles of an attempt, or has no room."""
        self.now = now
        group = self._groups.get(identity)
        if group is None or node not in group.plan.values() or attempt != group.record.attempt:
            if ok:
                self.inquired(node, identity, attempt, now)
            return
        if not ok:
            self._abandon(group)
            return
        group.agreed.add(node)
        if group.agreed == set(group.plan.values()):
            seats = {
                index: Seat(where, group.lives[where], attempt)
                for index, where in group.plan.items()
            }
            group.plan, group.retry_s = {}, _RETRY_S
            self._save(group, replace(group.record, seats={**group.record.seats, **seats}))

    def committed(self, node: bytes, identity: bytes, attempt: int, ok: bool, now: float) -> None:
        """A node has committed its bundles of an attempt, or knows nothing of it."""
        self.now = now
        group = self._groups.get(identity)
        if group is None or group.record.removed:
            return
        seats = {
            index: seat
            for index, seat in group.record.seats.items()
            if seat.node == node and seat.attempt == attempt
        }
        if ok:
            group.confirmed.update(seats.values())
            self._go_on(group)
        elif seats:
            self._lose(group, seats)

    def released(self, node: bytes, identity: bytes, now: float) -> None:
        """A node has let go of a removed group."""
        self.now = now
        group = self._groups.get(identity)
        if group is not None and group.record.removed:
            group.released.add(node)
            self._go_on(group)

    def inquired(self, node: bytes, identity: bytes, attempt: int, now: float) -> None:
        """A node asks what became of an attempt that it has prepared."""
        self.now = now
        group = self._groups.get(identity)
        if group is not None and group.saving:
            return  # The decision is on its way to the disk; it will be told.
        if group is None or group.record.removed:
            self.commands.append(Ask("REMOVE", node, identity, attempt))
            return
        if any(seat.node == node and seat.attempt == attempt for seat in _seats(group)):
            self.commands.append(Ask("COMMIT", node, identity, attempt))
        elif not (node in group.plan.values() and attempt == group.record.attempt):
            self.commands.append(Ask("CANCEL", node, identity, attempt))

    # -- nodes and time --------------------------------------------------------------------------

    def node_died(self, node: bytes, incarnation: int, now: float) -> None:
        """A life of a node has ended, and with it the bundles there."""
        self.now = now
        for group in list(self._groups.values()):
            if node in group.plan.values() and group.lives[node] <= incarnation:
                self._abandon(group)
            lost = {
                index: seat
                for index, seat in group.record.seats.items()
                if seat.node == node and seat.incarnation <= incarnation
            }
            if lost and group.record.removed:
                group.released.add(node)
                self._go_on(group)
            elif lost:
                self._lose(group, lost)

    def tick(self, now: float) -> None:
        """Time has passed, or the load table has changed: plan again, ask again."""
        self.now = now
        for group in list(self._groups.values()):
            self._go_on(group)

    # -- the way of a group ----------------------------------------------------------------------

    def _go_on(self, group: _Group) -> None:
        """Do what comes next; what is under way and has its time is left alone."""
        if group.saving:
            return
        self._tell(group)
        if group.record.removed:
            self._let_go(group)
            return
        open_seats = sorted(
            {(seat.node, seat.attempt) for seat in _seats(group) if seat not in group.confirmed}
        )
        if open_seats:
            if self.now >= group.again_at:
                group.again_at = self.now + _AGAIN_S
                identity = group.record.group
                self.commands += [Ask("COMMIT", node, identity, n) for node, n in open_seats]
            return
        if len(group.record.seats) < len(group.record.bundles):
            self._prepare(group)
        elif not group.record.ready_once:
            self._save(group, replace(group.record, ready_once=True))

    def _prepare(self, group: _Group) -> None:
        record = group.record
        if group.plan:
            if self.now >= group.again_at:
                self._ask_to_prepare(group)
            return
        if self.now < group.retry_at:
            return
        placed = {index: seat.node for index, seat in record.seats.items()}
        self._attempt += 1
        found = plan(record.bundles, record.strategy, self.table, placed=placed, seed=self._attempt)
        if not found:
            # Room comes with every task that ends, and a plan may look at a thousand nodes.
            group.retry_at = self.now + group.retry_s
            group.retry_s = min(_LOOK_AGAIN_MAX_S, group.retry_s * 2)
            return
        group.record = replace(record, attempt=self._attempt)
        group.plan = found
        group.lives = {node: self.table.rows[node].incarnation for node in found.values()}
        group.agreed = set()
        for index, node in found.items():
            self.table.sent(node, 0.0, self.now, record.bundles[index].amounts)
        self._ask_to_prepare(group)

    def _ask_to_prepare(self, group: _Group) -> None:
        group.again_at = self.now + _AGAIN_S
        record = group.record
        for node in sorted(set(group.plan.values()) - group.agreed):
            wanted = {
                index: record.bundles[index].amounts
                for index, where in group.plan.items()
                if where == node
            }
            self.commands.append(Ask("PREPARE", node, record.group, record.attempt, wanted))

    def _abandon(self, group: _Group) -> None:
        """One node of the plan can't: the others let go, and there is a new plan later."""
        record = group.record
        for node in sorted(set(group.plan.values())):
            self.commands.append(Ask("CANCEL", node, record.group, record.attempt))
        for index, node in group.plan.items():
            self.table.taken_back(node, record.bundles[index].amounts)
        group.plan = {}
        group.retry_at = self.now + group.retry_s
        group.retry_s = min(_RETRY_MAX_S, group.retry_s * 2)

    def _lose(self, group: _Group, lost: Mapping[int, Seat]) -> None:
        """Bundles are gone with their node: place them anew."""
        if group.plan:
            self._abandon(group)  # It was made for the places of the others as they were.
        seats = {index: seat for index, seat in group.record.seats.items() if index not in lost}
        group.confirmed -= set(lost.values())
        self._save(group, replace(group.record, seats=seats))

    def _let_go(self, group: _Group) -> None:
        record = group.record
        nodes = {seat.node for seat in _seats(group)} - group.released
        if not nodes:
            del self._groups[record.group]
            self.commands.append(Forget(record.group))
        elif self.now >= group.again_at:
            group.again_at = self.now + _AGAIN_S
            for node in sorted(nodes):
                self.commands.append(Ask("REMOVE", node, record.group, record.attempt))

    def _save(self, group: _Group, record: GroupRecord) -> None:
        group.record = record
        group.version += 1
        group.saving = True
        self.commands.append(Save(record, group.version))

    def _state(self, group: _Group) -> str:
        record = group.record
        if record.removed:
            return REMOVED
        whole = len(record.seats) == len(record.bundles) and not group.saving
        if whole and record.ready_once and group.confirmed.issuperset(_seats(group)):
            return CREATED
        return RESCHEDULING if record.ready_once else PENDING

    def _tell(self, group: _Group) -> None:
        state = self._state(group)
        if state != group.state:
            group.state = state
            self.commands.append(Changed(group.record.group, state))

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for group in self._groups.values():
            record = group.record
            assert record.seats.keys() <= set(range(len(record.bundles)))
            assert not (group.plan.keys() & record.seats.keys()), "a bundle is placed twice"
            assert not (group.plan and record.removed)
            assert group.confirmed <= set(_seats(group)), "a bundle is confirmed and lost"
            nodes = [*(seat.node for seat in _seats(group)), *group.plan.values()]
            if record.strategy == "STRICT_SPREAD" and not record.removed:
                assert len(set(nodes)) == len(nodes), "two bundles of a STRICT_SPREAD on one node"
            if record.strategy == "STRICT_PACK" and not record.removed:
                assert len(set(nodes)) <= 1, "a STRICT_PACK on two nodes"


def _seats(group: _Group) -> list[Seat]:
    return list(group.record.seats.values())
