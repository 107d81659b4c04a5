"""Recent changes of the store, and watches as places in them.

What    A bounded list of the changes since the store was opened. A watch holds only a number,
        its place in the list, so a writer pays the same for one watch or a thousand.
Caller  engine.py; the lock it passes in keeps readers of the list from its shrinking.
Never   opens a file; keeps a change that is compacted alive for a slow watch.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any

from zray.errors import GcsCompactedError, GcsError

from .store import Change

_revision_of = attrgetter("revision")


class History:
    """Recent changes in order, bounded in number and bytes; the oldest go first.

    Args:
        revision: the store's at its opening; nothing before it can be watched.
        len_max: bound of the number of changes.
        bytes_max: bound of the memory they take, by estimate.
    """

    def __init__(self, revision: int, len_max: int, bytes_max: int) -> None:
        self.compacted_revision = revision
        self.changes: list[Change] = []
        self.dropped = 0
        self.bytes = 0
        self._len_max = len_max
        self._bytes_max = bytes_max

    def extend(self, changes: list[Change]) -> None:
        """Append changes that are committed."""
        self.changes += changes
        self.bytes += sum(map(_change_bytes, changes))
        if len(self.changes) > self._len_max or self.bytes > self._bytes_max:
            self._shrink()

    def _shrink(self) -> None:
        # A quarter at a time: dropping from the front of a list moves all the rest of it.
        cut, size = 0, self.bytes
        while cut < len(self.changes) and (
            len(self.changes) - cut > self._len_max * 3 // 4 or size > self._bytes_max * 3 // 4
        ):
            size -= _change_bytes(self.changes[cut])
            cut += 1
        if cut:
            self.compact(self.changes[cut - 1].revision)

    def compact(self, revision: int) -> None:
        """Forget the changes up to and including `revision`."""
        cut = self._position(revision + 1)
        self.bytes -= sum(map(_change_bytes, self.changes[:cut]))
        del self.changes[:cut]
        self.dropped += cut
        self.compacted_revision = max(self.compacted_revision, revision)

    def _position(self, revision: int) -> int:
        """Return the place in `changes` of the first one of at least `revision`."""
        return bisect_left(self.changes, revision, key=_revision_of)

    def number_of(self, revision: int) -> int:
        """Return the number, counted from the opening, of the first change of `revision`."""
        if revision <= self.compacted_revision:
            raise GcsCompactedError(
                f"changes up to revision {self.compacted_revision} are no longer kept, "
                f"{revision} was asked for; scan the range, then watch from the revision after "
                "the scan's",
                oldest_revision=self.compacted_revision + 1,
            )
        return self.dropped + self._position(revision)

    def since(self, number: int) -> list[Change]:
        """Return the changes from the one with this number on."""
        if number < self.dropped:
            raise GcsCompactedError(
                f"this watch is {self.dropped - number} changes behind what is kept; scan the "
                "range, then watch again from the revision after the scan's",
                oldest_revision=self.compacted_revision + 1,
            )
        return self.changes[number - self.dropped :]


def _change_bytes(change: Change) -> int:
    """Estimate the memory of a change: 200 bytes of objects beside its key and value."""
    return 200 + len(change.key) + (len(change.value) if change.value is not None else 0)


class HistoryWatch:
    """The changes of one range from a place in the history on; see store.Watch."""

    def __init__(
        self,
        history: History,
        lock: AbstractContextManager[Any],
        table: str,
        prefix: bytes,
        number: int,
    ) -> None:
        self._history = history
        self._lock = lock
        self._table = table
        self._prefix = prefix
        self._number: int | None = number

    def events(self) -> list[Change]:
        """Return the changes since the last call. See Watch.events."""
        if self._number is None:
            raise GcsError(f"this watch of {self._table!r} is closed; watch again")
        with self._lock:
            changes = self._history.since(self._number)
        self._number += len(changes)
        return [
            change
            for change in changes
            if change.table == self._table and change.key.startswith(self._prefix)
        ]

    def close(self) -> None:
        """Give up the watch."""
        self._number = None
