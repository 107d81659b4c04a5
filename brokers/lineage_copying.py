"""Which nodes keep copies of this node's lineage, and what each has still to get.

What    Copying chooses the nodes, follows how far each has kept each job's ledger, and says what
        to send next: one message at a time to each, so that lineage never crowds out what others
        wait for. A node that could not keep what it was sent is tried again after a while.
Caller  brokers/lineage_copies.py.
Never   sees a record, or decides what a copy is good for.
Source  the ledger of Apache BookKeeper: one writer, f + 1 copies, sealed by epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from zray.protocol.ids import NodeId

RETRY_S = 1.0
"""A node that has kept nothing of what it was sent is left alone for so long."""


@dataclass(frozen=True, slots=True)
class SendLineage:
    """Send a node records of a job from a position on, and tell sent()."""

    node: NodeId
    job: str
    position: int


@dataclass(frozen=True, slots=True)
class EndLineage:
    """Tell a node that a job has ended: its copy can go."""

    node: NodeId
    job: str


Command = SendLineage | EndLineage


@dataclass(slots=True)
class _Backup:
    """A node that keeps copies."""

    kept: dict[str, int]
    """By job: the position below which it has everything that there is."""
    sending: str | None = None
    """The job whose records are under way to it."""
    left_alone_until: float = 0.0


class Copying:
    """The copies of one node's lineage.

    Args:
        own: this node.
        copies: how many nodes are to keep one; fewer where fewer are there.
    """

    def __init__(self, own: NodeId, copies: int) -> None:
        self.own = own
        self.copies = copies
        self.nodes: set[NodeId] = set()
        self.backups: dict[NodeId, _Backup] = {}
        self.ledgers: dict[str, tuple[int, int]] = {}
        """By job: what there is to copy, [first, end)."""
        self.commands: list[Command] = []

    # -- nodes -----------------------------------------------------------------------------------

    def node_joined(self, node: NodeId, now: float) -> None:
        """Another node is there that may keep copies."""
        self.nodes.add(node)
        self._choose(now)

    def node_lost(self, node: NodeId, now: float) -> None:
        """A node is gone, and the copies it kept: another one gets all."""
        self.nodes.discard(node)
        self.backups.pop(node, None)
        self._choose(now)

    def _choose(self, now: float) -> None:
        """Who was chosen stays. Each node has an order of its own, so that the work is shared."""
        others = sorted(self.nodes - self.backups.keys(), key=lambda each: crc32(self.own + each))
        for node in others[: max(0, self.copies - len(self.backups))]:
            self.backups[node] = _Backup({})
            self._next(node, now)

    # -- this node's ledgers -----------------------------------------------------------------------

    def written(self, job: str, first: int, end: int, now: float) -> None:
        """Records [first, end) of a job are on this node's disk."""
        if self.ledgers.get(job) != (first, end):
            self.ledgers[job] = first, end
            for node in self.backups:
                self._next(node, now)

    def job_ended(self, job: str) -> None:
        """A job's lineage is needed no more."""
        self.ledgers.pop(job, None)
        for node, backup in self.backups.items():
            if backup.kept.pop(job, None) is not None or backup.sending == job:
                self.commands.append(EndLineage(node, job))

    # -- what was sent and kept --------------------------------------------------------------------

    def sent(self, node: NodeId, job: str, count: int) -> None:
        """So many bytes went out for a SendLineage; 0: there was nothing to send, or no link."""
        backup = self.backups.get(node)
        if backup is not None and backup.sending == job and not count:
            backup.sending = None

    def kept(self, node: NodeId, job: str, position: int, now: float) -> None:
        """A node has everything of a job that lies below a position."""
        backup = self.backups.get(node)
        if backup is None:
            return
        if job in self.ledgers:
            if position <= backup.kept.get(job, 0):
                backup.left_alone_until = now + RETRY_S  # Its disk is full, it may be.
            backup.kept[job] = position
        if backup.sending == job:
            backup.sending = None
        self._next(node, now)

    def tick(self, now: float) -> None:
        """Try again what did not work, a few times a second."""
        for node in self.backups:
            self._next(node, now)

    def _next(self, node: NodeId, now: float) -> None:
        backup = self.backups[node]
        if backup.sending is not None or now < backup.left_alone_until:
            return
        for job, (first, end) in self.ledgers.items():
            position = max(first, backup.kept.get(job, 0))
            if position < end:
                # To the end of the line: of several jobs each gets its turn.
                self.ledgers[job] = self.ledgers.pop(job)
                backup.sending = job
                self.commands.append(SendLineage(node, job, position))
                return

    # -- for people and tests ----------------------------------------------------------------------

    def behind(self) -> int:
        """Return how many records some chosen node has not kept yet."""
        return sum(
            max(0, end - max(first, backup.kept.get(job, 0)))
            for backup in self.backups.values()
            for job, (first, end) in self.ledgers.items()
        )

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert self.own not in self.nodes
        assert self.backups.keys() <= self.nodes
        assert len(self.backups) == min(self.copies, len(self.nodes))
        for backup in self.backups.values():
            assert backup.kept.keys() <= self.ledgers.keys(), "kept for a job that has ended"
        for first, end in self.ledgers.values():
            assert 0 <= first <= end
