"""What this node knows of the load of all nodes, and what it has sent them since.

What    LoadTable keeps the newest row of each node, from the GCS's publications, and this node's
        own row from itself. What this node has just sent somewhere counts as load there before
        the node has reported it: without it everybody's work runs to the node that was idle when
        the table was published.
Caller  brokers/placement.py and brokers/groups.py, which read it; brokers/node.py, which feeds it.
Never   decides anything, or lets an old row of a node replace a newer one.
Spec    OSDI'18, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol.units import CPU, RESOURCE_UNITS

from .resources import read_request

ALIVE, DRAINING, DEAD = "ALIVE", "DRAINING", "DEAD"

_REPORTS_UNTIL_SETTLED = 2
"""A row may have been written before what was sent arrived; the second one after it was not."""
_SENT_S = 1.0
"""What was sent so long ago is in the last report, or has come to nothing: where no report comes,
because nothing changes there or the GCS is away, what is known is taken as it is."""

_NUMBER_MAX = 2**62
_LABELS_MAX = 256


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """One node's row.

    Args:
        node: its id, 8 bytes.
        incarnation: which life of the node this is; larger is later.
        revision: which report of this life; larger is later.
        total: resources in units, by name.
        available: units that nobody holds; below zero where CPUs are owed.
        labels: what selectors look at.
        queue_tasks: tasks that wait for a worker.
        wait_us: estimated time until a task that is queued now begins.
        store_bytes: object store in use.
        store_bytes_max: its size.
        state: ALIVE, DRAINING or DEAD; only the first gets work.
    """

    node: bytes
    incarnation: int
    revision: int
    total: Mapping[str, int]
    available: Mapping[str, int]
    labels: Mapping[str, str] = field(default_factory=dict)
    queue_tasks: int = 0
    wait_us: int = 0
    store_bytes: int = 0
    store_bytes_max: int = 0
    state: str = ALIVE
    slots: float = field(init=False, compare=False)
    """How many tasks of one CPU it runs at once; a node without CPUs counts as one."""

    def __post_init__(self) -> None:
        # Kept, since a decision asks it of 64 rows.
        object.__setattr__(self, "slots", self.total.get(CPU, 0) / RESOURCE_UNITS or 1.0)

    @property
    def age(self) -> tuple[int, int]:
        """Which of two rows of a node is newer: the one with the larger age."""
        return self.incarnation, self.revision

    def fields(self) -> list[Any]:
        """Return the row as a message carries it; ``read_load`` is the way back."""
        return [
            self.node,
            self.incarnation,
            self.revision,
            dict(self.total),
            {name: units for name, units in self.available.items() if units > 0},
            dict(self.labels),
            self.queue_tasks,
            self.wait_us,
            self.store_bytes,
            self.store_bytes_max,
            self.state,
        ]


def read_load(fields: object) -> NodeLoad:
    """Return a row that came in a message, checked.

    Raises RemoteProtocolError where it is none.
    """
    if not isinstance(fields, list | tuple) or len(fields) != 11:
        raise RemoteProtocolError("a row of the load table has 11 fields")
    node, incarnation, revision, total, available, labels, *numbers, state = fields
    if not isinstance(node, bytes) or len(node) != 8:
        raise RemoteProtocolError("a row of the load table begins with a node's id of 8 bytes")
    for number in (incarnation, revision, *numbers):
        if type(number) is not int or not 0 <= number < _NUMBER_MAX:
            raise RemoteProtocolError(f"{number!r} is no count of a row of the load table")
    if state not in (ALIVE, DRAINING, DEAD):
        raise RemoteProtocolError(f"a node is ALIVE, DRAINING or DEAD, not {state!r}")
    if not isinstance(labels, dict) or len(labels) > _LABELS_MAX:
        raise RemoteProtocolError(f"a node's labels are a dict of at most {_LABELS_MAX}")
    if not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise RemoteProtocolError("a node's labels map strings to strings")
    tasks, wait_us, store_bytes, store_bytes_max = numbers
    return NodeLoad(
        node,
        incarnation,
        revision,
        read_request(total),
        read_request(available),
        labels,
        tasks,
        wait_us,
        store_bytes,
        store_bytes_max,
        state,
    )


def estimate_wait_us(queued_us: float, busy_us: Iterable[float]) -> float:
    """Return the time until a task that is queued now begins.

    One long task makes nobody wait while there are other CPUs, as a mean over all would have it.

    Args:
        queued_us: work that waits for a CPU, in microseconds of one.
        busy_us: for how much longer each CPU has work, by its estimate; 0 for an idle one.
    """
    left = queued_us
    level = 0.0
    open_cpus = 0
    for until in sorted(busy_us):
        if open_cpus:
            room = (until - level) * open_cpus
            if left <= room:
                break
            left -= room
        level = until
        open_cpus += 1
    return level + left / open_cpus if open_cpus else left


class _Sent:
    """What this node has sent to another one and not seen in its reports yet."""

    __slots__ = ("amounts", "at", "reports", "work_us")

    def __init__(self, now: float) -> None:
        self.work_us = 0.0
        self.amounts: dict[str, int] = {}
        self.at = now
        self.reports = 0

    def drained_us(self, slots: float, now: float) -> float:
        """Return the work that is left: the other node works on it while nobody looks."""
        return max(0.0, self.work_us - slots * (now - self.at) * 1e6)


class LoadTable:
    """The rows of all nodes, as this node knows them.

    Args:
        own: this node's id, 8 bytes.
    """

    def __init__(self, own: bytes) -> None:
        self.own = own
        self.revision = 0
        """Grows with each publication: a decision with chance in it is made once for each."""
        self.rows: dict[bytes, NodeLoad] = {}
        self._ended: dict[bytes, int] = {}
        """The last incarnation of each node that has died: its rows come too late."""
        self._sent: dict[bytes, _Sent] = {}
        self._candidates: list[bytes] | None = None

    # -- what becomes known ----------------------------------------------------------------------

    def published(self, rows: Iterable[NodeLoad]) -> None:
        """The GCS published rows of any nodes; those that are no news change nothing.

        This node's own row is skipped: what it says of itself is newer, always.
        """
        self.revision += 1
        for row in rows:
            if row.node != self.own:
                self._replace(row)

    def heard(self, row: NodeLoad) -> None:
        """A node's row came with a message of its own: newer than any publication."""
        if row.node != self.own:
            self._replace(row)

    def changed_here(self, row: NodeLoad) -> None:
        """This node's own row changed."""
        assert row.node == self.own, "another node's row comes from the GCS"
        self._replace(row)

    def died(self, node: bytes, incarnation: int) -> None:
        """A life of a node has ended; rows of it that come later are refused."""
        if incarnation < self._ended.get(node, 0):
            return
        self._ended[node] = incarnation
        row = self.rows.get(node)
        if row is not None and row.incarnation <= incarnation:
            del self.rows[node]
            self._sent.pop(node, None)
            self._candidates = None

    def left(self, node: bytes) -> None:
        """A node can't be reached any more; rows of this life count again if it comes back."""
        self.rows.pop(node, None)
        self._sent.pop(node, None)
        self._candidates = None

    def _replace(self, row: NodeLoad) -> None:
        node = row.node
        known = self.rows.get(node)
        if known is None:
            if row.incarnation <= self._ended.get(node, -1):
                return
            self._candidates = None
        else:
            if row.age <= known.age:
                return
            if known.state != row.state:
                self._candidates = None
        self.rows[node] = row
        if node in self._sent:
            self._settle(node, new_life=known is not None and row.incarnation > known.incarnation)
        if row.state == DEAD:
            self.died(node, row.incarnation)

    def _settle(self, node: bytes, *, new_life: bool) -> None:
        """A report has come: half of what was sent is taken to be in it, then all of it."""
        sent = self._sent[node]
        sent.reports += 1
        if new_life or sent.reports >= _REPORTS_UNTIL_SETTLED:
            del self._sent[node]
            return
        sent.work_us /= 2
        sent.amounts = {name: units // 2 for name, units in sent.amounts.items()}

    def sent(
        self, node: bytes, work_us: float, now: float, amounts: Mapping[str, int] | None = None
    ) -> None:
        """This node has just sent work there: count it before it is reported.

        Args:
            node: where to; what stays here is in the own row soon enough, and is not counted.
            work_us: estimated work in microseconds of one CPU.
            now: seconds.
            amounts: units that are held there from now on, by an actor or a bundle.
        """
        row = self.rows.get(node)
        if row is None or node == self.own:
            return
        sent = self._sent.get(node)
        if sent is None:
            sent = self._sent[node] = _Sent(now)
        sent.work_us = sent.drained_us(row.slots, now) + work_us
        sent.at = now
        # What was there before waits one report longer: too much caution, and no list to keep.
        sent.reports = 0
        for name, units in (amounts or {}).items():
            sent.amounts[name] = sent.amounts.get(name, 0) + units

    def forget_sent(self, now: float) -> None:
        """A few times a second: what was sent long ago is no news any more."""
        for node, sent in list(self._sent.items()):
            if now - sent.at > _SENT_S and not sent.drained_us(self.rows[node].slots, now):
                del self._sent[node]

    def taken_back(self, node: bytes, amounts: Mapping[str, int]) -> None:
        """Nothing came of what was to be held there."""
        sent = self._sent.get(node)
        if sent is not None:
            for name, units in amounts.items():
                # A report may have halved it already.
                sent.amounts[name] = max(0, sent.amounts.get(name, 0) - units)

    # -- what is known ---------------------------------------------------------------------------

    @property
    def candidates(self) -> list[bytes]:
        """The nodes that take work, in the order of their ids: the same on every node."""
        if self._candidates is None:
            alive = (node for node, row in self.rows.items() if row.state == ALIVE)
            self._candidates = sorted(alive)
        return self._candidates

    def has_others(self) -> bool:
        """Return whether any other node takes work."""
        nodes = self.candidates
        return len(nodes) > 1 or (len(nodes) == 1 and nodes[0] != self.own)

    def work_us(self, node: bytes, now: float) -> float:
        """Return the work queued at a node, in microseconds of one CPU, what was sent included."""
        row = self.rows[node]
        work_us = row.wait_us * row.slots
        sent = self._sent.get(node)
        return work_us if sent is None else work_us + sent.drained_us(row.slots, now)

    def wait_us(self, node: bytes, now: float) -> float:
        """Return how long a task sent there now would wait for a worker."""
        return self.work_us(node, now) / self.rows[node].slots

    def available(self, node: bytes) -> dict[str, int]:
        """Return the units that nobody holds there, less those that were sent there."""
        free = dict(self.rows[node].available)
        sent = self._sent.get(node)
        if sent is not None:
            for name, units in sent.amounts.items():
                free[name] = free.get(name, 0) - units
        return free

    def fits_now(self, node: bytes, amounts: Mapping[str, int]) -> bool:
        """Return whether a node has these units free, as far as is known."""
        free = self.rows[node].available
        sent = self._sent.get(node)
        if sent is None or not sent.amounts:
            return _covers(free, amounts)
        held = sent.amounts
        return all(
            units + held.get(name, 0) <= free.get(name, 0) for name, units in amounts.items()
        )

    def fits_ever(self, node: bytes, amounts: Mapping[str, int]) -> bool:
        """Return whether a node has these units at all."""
        return _covers(self.rows[node].total, amounts)

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert self._sent.keys() <= self.rows.keys(), "load is remembered of a node that is gone"
        assert self.own not in self._sent, "what stays here was counted as sent"
        alive = sorted(node for node, row in self.rows.items() if row.state == ALIVE)
        assert self.candidates == alive
        for node, row in self.rows.items():
            assert row.node == node
            assert row.incarnation > self._ended.get(node, -1), "a row of a dead node"
        for node, sent in self._sent.items():
            assert sent.work_us >= 0, node.hex()
            assert 0 <= sent.reports < _REPORTS_UNTIL_SETTLED


def _covers(have: Mapping[str, int], amounts: Mapping[str, int]) -> bool:
    # A loop, not all(): a decision comes here for each of 64 nodes, and a generator is slow.
    for name, units in amounts.items():  # noqa: SIM110
        if units > have.get(name, 0):
            return False
    return True
