"""Ranges of the tables that a session watches: read once, then followed change by change.

What    A range is read page by page, then watched from the revision of its first page on. A message
        that begins after what is known shows a gap, and the watch is set again at its place; where
        the GCS no longer keeps those changes, the range is read anew.
Caller  client.py.
Never   hands a change out twice or in another order than the GCS's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zray.errors import GcsError

from .commands import PAGE_LEN_MAX, Command
from .store import Change
from .watchers import WATCHES_MAX

RANGES_MAX = WATCHES_MAX - 1
"""Ranges of one session; the loads are one more watch."""


@dataclass(frozen=True, slots=True)
class RangeUpdate:
    """What a watch tells: with `reset` the whole range as it is, else what has changed in it.

    `revision` is that of the GCS up to which the watcher now knows all.
    """

    reset: bool
    changes: tuple[Change, ...]
    revision: int


OnRange = Callable[[RangeUpdate], None]
Ask = Callable[[Command, Callable[[Any, GcsError | None], None]], None]


@dataclass(slots=True)
class _Range:
    table: str
    prefix: bytes
    on_range: OnRange
    position: int | None = None
    """Everything up to this revision was told; None while the range is being read."""
    reading: int = 0
    """Counts readings, so that pages of one that was given up are known."""
    first_revision: int | None = None
    rows: list[Change] = field(default_factory=list)
    newest: dict[bytes, int] = field(default_factory=dict)
    """Revisions that the pages have shown beyond the first page's."""
    has_failed: bool = False
    """The GCS could not read it; it is asked again with the next tick."""


class WatchedRanges:
    """All ranges that one session watches.

    Args:
        ask: asks a read in the session's order.
        send_soft: sends a command that is not numbered.
    """

    def __init__(self, ask: Ask, send_soft: Callable[[Command], None]) -> None:
        self._ask = ask
        self._send_soft = send_soft
        self._ranges: dict[tuple[str, bytes], _Range] = {}

    def add(self, table: str, prefix: bytes, on_range: OnRange) -> None:
        """Follow a range; a second call for the same one starts it anew."""
        found = _Range(table, prefix, on_range)
        before = self._ranges.get((table, prefix))
        if before is not None:
            found.reading = before.reading
        self._ranges[table, prefix] = found
        self._read(found)

    def remove(self, table: str, prefix: bytes) -> None:
        """Stop following a range."""
        self._ranges.pop((table, prefix), None)

    def count(self) -> int:
        """Return how many watches the GCS should know of."""
        return sum(found.position is not None for found in self._ranges.values())

    @property
    def is_full(self) -> bool:
        """Whether one more range would be more than the GCS keeps watches for."""
        return len(self._ranges) >= RANGES_MAX

    def tick(self) -> None:
        """Ask again for what the GCS could not read."""
        for found in self._ranges.values():
            if found.has_failed:
                self._read(found)

    def again(self) -> None:
        """Set every watch at its place again: the GCS may not know of it."""
        for found in self._ranges.values():
            if found.position is not None:
                self._watch(found, found.position)

    def read_again(self) -> None:
        """Read everything anew: the session's reads, and maybe the GCS's files, are lost."""
        for found in self._ranges.values():
            self._read(found)

    def _watch(self, found: _Range, position: int) -> None:
        self._send_soft(Command("WATCH", (found.table, found.prefix, position + 1)))

    # ----------------------------------------------------------------------------------- reading

    def _read(self, found: _Range) -> None:
        found.position = found.first_revision = None
        found.reading += 1
        found.has_failed = False
        found.rows = []
        found.newest = {}
        self._ask_page(found, b"")

    def _ask_page(self, found: _Range, after: bytes) -> None:
        reading = found.reading

        def took(result: Any, error: GcsError | None) -> None:
            is_current = self._ranges.get((found.table, found.prefix)) is found
            # A session that was lost has begun another reading already.
            if not is_current or reading != found.reading:
                return
            if error is not None:
                found.has_failed = True
            else:
                self._take_page(found, *result)

        self._ask(Command("RANGE", (found.table, found.prefix, PAGE_LEN_MAX, after)), took)

    def _take_page(self, found: _Range, revision: int, rows: list[Any], more: bool) -> None:
        if found.first_revision is None:
            found.first_revision = revision
        for key, value, created, modified in rows:
            found.rows.append(Change(modified, found.table, key, value, created))
            if modified > found.first_revision:
                found.newest[key] = modified
        if more:
            self._ask_page(found, rows[-1][0])
            return
        changes, found.rows = tuple(found.rows), []
        found.position = found.first_revision
        self._watch(found, found.position)
        found.on_range(RangeUpdate(True, changes, found.position))

    # ---------------------------------------------------------------------------------- following

    def events(
        self, table: str, prefix: bytes, after: int, upto: int, rows: list[list[Any]]
    ) -> None:
        """Take a message of changes."""
        found = self._ranges.get((table, prefix))
        if found is None or found.position is None or upto < found.position:
            return
        if after > found.position:
            self._watch(found, found.position)
            return
        position, found.position = found.position, upto
        changes = tuple(
            Change(revision, table, key, value, created)
            for revision, key, value, created in rows
            if revision > max(position, found.newest.get(key, 0))
        )
        if changes:
            found.on_range(RangeUpdate(False, changes, upto))

    def compacted(self, table: str, prefix: bytes) -> None:
        """Read a range anew: the GCS no longer keeps the changes after its position."""
        found = self._ranges.get((table, prefix))
        if found is not None and found.position is not None:
            self._read(found)
