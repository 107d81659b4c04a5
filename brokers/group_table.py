"""The table of placement groups, as every node of a cluster follows it.

What    Rows under five kinds of keys: who coordinates, what was asked for, what was decided, what
        is to be removed, and names. GroupTable mirrors them.
Caller  brokers/placement_groups.py, brokers/coordination.py.
Never   writes: see brokers/group_transactions.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zray.errors import OptionError, RemoteProtocolError
from zray.protocol.ids import NodeId
from zray.protocol.labels import read_selector
from zray.protocol.limits import BUNDLES_MAX
from zray.protocol.packing import packb, unpackb

from .group_plan import STRATEGIES
from .groups import CREATED, PENDING, REMOVED, RESCHEDULING, GroupRecord, Seat
from .placement import Request
from .resources import read_request

TERM, SPEC, RECORD, REMOVAL, _NAME = b"e", b"g", b"r", b"x", b"n"
"""How keys begin; but for the first, a group's id or a name follows."""

_NAME_BYTES_MAX = 400


@dataclass(frozen=True, slots=True)
class Term:
    """Who coordinates: a node, and the number of its term, which only grows."""

    epoch: int
    node: NodeId

    def pack(self) -> bytes:
        """Return the stored form."""
        return packb([self.epoch, self.node])


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What somebody has asked for. Never changes.

    Args:
        group: its id, 16 bytes.
        name: found by it in the namespace; "" for none.
        namespace: of the session that made it.
        strategy: one of group_plan.STRATEGIES.
        bundles: [units by resource, label selector] of each.
        job: the driver it ends with, b"" where it is detached.
    """

    group: bytes
    name: str
    namespace: str
    strategy: str
    bundles: tuple[tuple[dict[str, int], dict[str, str]], ...]
    job: bytes

    @property
    def requests(self) -> tuple[Request, ...]:
        """The bundles as plans are made of them."""
        return tuple(
            Request(amounts, read_selector(selector)) for amounts, selector in self.bundles
        )

    @property
    def name_key(self) -> bytes:
        """Under which its name is taken."""
        return name_key(self.name, self.namespace)

    def record(self) -> GroupRecord:
        """Return what a coordinator begins with."""
        return GroupRecord(self.group, self.strategy, self.requests)

    def pack(self) -> bytes:
        """Return the stored form."""
        bundles = [list(bundle) for bundle in self.bundles]
        return packb([self.group, self.name, self.namespace, self.strategy, bundles, self.job])


def read_spec(group: bytes, fields: object, job: bytes) -> GroupSpec:
    """Return what a client asks for in [name, namespace, strategy, bundles, detached], checked.

    Raises RemoteProtocolError where it is malformed, OptionError where it makes no sense.
    """
    if not isinstance(fields, list | tuple) or len(fields) != 5:
        raise RemoteProtocolError("a placement group is asked for with 5 fields")
    name, namespace, strategy, bundles, detached = fields
    if type(name) is not str or type(namespace) is not str or type(detached) is not bool:
        raise RemoteProtocolError("a placement group with a malformed name")
    if len(name_key(name, namespace)) > _NAME_BYTES_MAX:
        raise OptionError(f"a name is at most {_NAME_BYTES_MAX} bytes long", option="name")
    if strategy not in STRATEGIES:
        message = f"a strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}"
        raise OptionError(message, option="strategy")
    if type(bundles) is not list or not 0 < len(bundles) <= BUNDLES_MAX:
        raise OptionError(f"a placement group has 1 to {BUNDLES_MAX} bundles", option="bundles")
    checked = tuple(_read_bundle(bundle) for bundle in bundles)
    return GroupSpec(group, name, namespace, strategy, checked, b"" if detached else job)


def _read_bundle(fields: object) -> tuple[dict[str, int], dict[str, str]]:
    if not isinstance(fields, list | tuple) or len(fields) != 2:
        raise RemoteProtocolError("a bundle is amounts and a label selector")
    amounts, selector = read_request(fields[0]), fields[1]
    if type(selector) is not dict or not all(
        type(text) is str for pair in selector.items() for text in pair
    ):
        raise RemoteProtocolError("a label selector maps strings to strings")
    if not amounts:
        raise OptionError("a bundle without resources reserves nothing", option="bundles")
    read_selector(selector)
    return amounts, selector


def unpack_spec(packed: bytes) -> GroupSpec:
    """Return what was asked for, of its stored form."""
    group, name, namespace, strategy, bundles, job = unpackb(packed)
    read = tuple((dict(amounts), dict(selector)) for amounts, selector in bundles)
    return GroupSpec(group, name, namespace, strategy, read, job)


@dataclass(frozen=True, slots=True)
class Decided:
    """A record as it is stored: what a coordinator has decided of a group so far."""

    seats: Mapping[int, Seat]
    attempt: int
    ready_once: bool
    removed: bool


def pack_record(record: GroupRecord) -> bytes:
    """Return the stored form of what is decided."""
    seats = [[at, each.node, each.incarnation, each.attempt] for at, each in record.seats.items()]
    return packb([seats, record.attempt, record.ready_once, record.removed])


def _unpack_record(packed: bytes) -> Decided:
    seats, attempt, ready_once, removed = unpackb(packed)
    return Decided({at: Seat(*seat) for at, *seat in seats}, attempt, ready_once, removed)


def name_key(name: str, namespace: str) -> bytes:
    """Return the key under which a name is taken."""
    return _NAME + packb([namespace, name])


def spec_key(group: bytes) -> bytes:
    """Return the key of what was asked for."""
    return SPEC + group


class GroupTable:
    """The rows, as far as this node was told of them."""

    def __init__(self) -> None:
        self.is_read = False
        """False until the whole table has been read once."""
        self.term: Term | None = None
        self.specs: dict[bytes, GroupSpec] = {}
        self.decided: dict[bytes, Decided] = {}
        self.removals: dict[bytes, str] = {}
        """Groups that are to go, and why."""

    def clear(self) -> None:
        """All of it is about to be told anew."""
        self.term = None
        self.specs.clear()
        self.decided.clear()
        self.removals.clear()

    def changed(self, key: bytes, value: bytes | None) -> bytes:
        """A row is there, is another one, or (None) is gone; returns the group it is of."""
        kind, group = key[:1], key[1:]
        if kind == TERM:
            self.term = None if value is None else Term(*unpackb(value))
            return b""
        if kind == SPEC:
            _put(self.specs, group, None if value is None else unpack_spec(value))
        elif kind == RECORD:
            _put(self.decided, group, None if value is None else _unpack_record(value))
        elif kind == REMOVAL:
            _put(self.removals, group, None if value is None else value.decode())
        else:
            return b""
        return group

    def state(self, group: bytes) -> str:
        """Return PENDING, CREATED, RESCHEDULING or REMOVED, which is also one that is not here."""
        spec, decided = self.specs.get(group), self.decided.get(group)
        if spec is None or group in self.removals or (decided is not None and decided.removed):
            return REMOVED
        if decided is None or not decided.ready_once:
            return PENDING
        return CREATED if len(decided.seats) == len(spec.bundles) else RESCHEDULING

    def is_ready(self, group: bytes) -> bool:
        """Return whether a group has been whole: work may begin in it."""
        return self.state(group) in (CREATED, RESCHEDULING)

    def records(self) -> list[GroupRecord]:
        """Return all groups as a coordinator goes on with them."""
        found = []
        for group, spec in self.specs.items():
            record, decided = spec.record(), self.decided.get(group)
            if decided is not None:
                record = GroupRecord(
                    group,
                    spec.strategy,
                    record.bundles,
                    dict(decided.seats),
                    decided.attempt,
                    decided.ready_once,
                    decided.removed,
                )
            found.append(record)
        return found

    def rows(self, groups: list[bytes] | None = None) -> list[dict[str, Any]]:
        """Return a row for each group, or for these, for people: plain types, ids in hex."""
        rows = []
        for group in self.specs if groups is None else groups:
            spec, decided = self.specs.get(group), self.decided.get(group)
            if spec is None:
                continue
            seats = {} if decided is None else decided.seats
            rows.append(
                {
                    "group": group.hex(),
                    "name": spec.name,
                    "namespace": spec.namespace,
                    "strategy": spec.strategy,
                    "state": self.state(group),
                    "job": spec.job.hex(),
                    "detached": not spec.job,
                    "bundles": [
                        {
                            "resources": amounts,
                            "labels": selector,
                            "node": seats[index].node.hex() if index in seats else "",
                        }
                        for index, (amounts, selector) in enumerate(spec.bundles)
                    ],
                }
            )
        return rows


def _put(rows: dict[bytes, Any], group: bytes, value: Any) -> None:
    if value is None:
        rows.pop(group, None)
    else:
        rows[group] = value
