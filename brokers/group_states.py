"""What the scheduler of one node knows of placement groups: which are there, and which are gone.

What    Work that names a group which is gone fails at once, whenever it comes; a group that nobody
        here has heard of yet is looked up. Also who is to end when a group is removed.
Caller  brokers/borrowing.py asks; brokers/placement_groups.py tells.
Never   knows where a group's bundles are: the load table says where there is room for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from .scheduling import Kill

if TYPE_CHECKING:
    from .scheduler import Scheduler

_GONE_MAX = 10_000
"""Removed groups that are remembered; one before these is looked up again."""


class GroupStates:
    """The groups that are named here."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        """Groups that there are, as far as was told."""
        self.gone: dict[bytes, str] = {}
        """Groups that there are no more, and why, for people."""
        self.unknown: set[bytes] = set()
        """Groups that work here names and nobody has told of: to be looked up."""

    def why_gone(self, group: bytes) -> str:
        """Return why nothing runs in a group any more, "" where something may."""
        if group in self.gone:
            return self.gone[group]
        if group not in self.known:
            self.unknown.add(group)
        return ""

    def gone_of(self, group: bytes) -> bytes:
        """Return the group where it is gone, else b""."""
        return group if group in self.gone else b""

    def is_there(self, group: bytes) -> None:
        """There is such a group: what names it waits for it."""
        if group not in self.gone:
            self.known.add(group)
            self.unknown.discard(group)

    def is_gone(self, group: bytes, reason: str) -> None:
        """There is no such group any more, and never will be."""
        self.known.discard(group)
        self.unknown.discard(group)
        self.gone[group] = reason
        if len(self.gone) > _GONE_MAX:
            del self.gone[next(iter(self.gone))]

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert not self.known & self.gone.keys(), "a group is there and gone"
        assert not self.unknown & (self.known | self.gone.keys()), "what is known is looked up"


def evict(scheduler: Scheduler, grants: Collection[int], reason: str) -> list[bytes]:
    """End the workers that hold these grants; returns to whom of other nodes they are lent."""
    borrowers = []
    for process, worker in scheduler.workers.items():
        if worker.grant is None or worker.grant.number not in grants or worker.blameless:
            continue
        worker.blameless = worker.retiring = True
        scheduler.commands.append(Kill(process, reason))
        loan = scheduler.lending.loans.get(process)
        if loan is not None:
            borrowers.append(loan.borrower)
    return borrowers
