"""Who watches which range of the tables, and what each was told.

What    A watch is a place in the history of its range, so a thousand watches cost a writer one
        packing and a thousand sends. One that takes no more for the moment falls behind and goes
        on from the history later; one that falls out of the history is told to read again. Each
        message says after which revision of its range it begins, so that a gap shows.
Caller  replica.py.
Never   queues a message for a slow watcher; drops a change without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zray.errors import GcsCompactedError

from .store import Change, Store
from .wire import COMPACTED, EVENTS, pack

EVENTS_BYTES_MAX = 256 << 10
"""A message of changes ends with the first revision that takes it beyond this size."""

WATCHES_MAX = 256
"""Watches of one peer; a further one replaces its oldest."""

Send = Callable[[bytes, bytes], bool]


@dataclass(slots=True)
class _Range:
    """One range that somebody watches; `changed` is the revision of its last change told."""

    table: str
    prefix: bytes
    changed: int
    peers: dict[bytes, None] = field(default_factory=dict)
    """Those that were told everything up to `changed`, in the order in which they came to it."""
    behind: dict[bytes, int] = field(default_factory=dict)
    """The others, with the revision up to which each was told everything."""


class Watchers:
    """All watches of all peers.

    Args:
        store: has the history that those who are behind are told from.
        boot: this life of the GCS, named in each message.
    """

    def __init__(self, store: Store, boot: bytes) -> None:
        self._store = store
        self._boot = boot
        self._ranges: dict[tuple[str, bytes], _Range] = {}
        self._of_peer: dict[bytes, dict[tuple[str, bytes], None]] = {}
        self.held_back = 0
        """How often a message was not taken by its watcher."""

    def add(self, peer: bytes, table: str, prefix: bytes, from_revision: int) -> None:
        """Watch a range from this revision on; the peer is told what it missed by pump()."""
        place = (table, prefix)
        own = self._of_peer.setdefault(peer, {})
        if place not in own and len(own) >= WATCHES_MAX:
            self.remove(peer, *next(iter(own)))
            own = self._of_peer.setdefault(peer, {})
        own[place] = None
        found = self._ranges.get(place)
        if found is None:
            found = self._ranges[place] = _Range(table, prefix, self._store.revision)
        found.peers.pop(peer, None)
        found.behind[peer] = from_revision - 1

    def remove(self, peer: bytes, table: str, prefix: bytes) -> None:
        """Give up one watch; one that is not there is no error."""
        place = (table, prefix)
        own = self._of_peer.get(peer, {})
        if own.pop(place, place) is not None:
            return
        if not own:
            del self._of_peer[peer]
        found = self._ranges[place]
        found.peers.pop(peer, None)
        found.behind.pop(peer, None)
        if not found.peers and not found.behind:
            del self._ranges[place]

    def forget(self, peer: bytes) -> None:
        """Give up all watches of a peer that is gone."""
        for table, prefix in list(self._of_peer.get(peer, ())):
            self.remove(peer, table, prefix)

    def count(self, peer: bytes) -> int:
        """Return how many watches this peer has."""
        return len(self._of_peer.get(peer, ()))

    def publish(self, changes: Sequence[Change], send: Send) -> None:
        """Tell everybody who is up to date of changes that were committed just now."""
        by_table: dict[str, list[Change]] = {}
        for change in changes:
            by_table.setdefault(change.table, []).append(change)
        for found in self._ranges.values():
            hits = [
                change
                for change in by_table.get(found.table, ())
                if change.key.startswith(found.prefix)
            ]
            if hits:
                self._publish(found, hits, send)

    def _publish(self, found: _Range, hits: list[Change], send: Send) -> None:
        for part in _parts(hits):
            message = self._message(found, found.changed, part[-1].revision, part)
            for peer in list(found.peers):
                if not send(peer, message):
                    self.held_back += 1
                    del found.peers[peer]
                    found.behind[peer] = found.changed
            found.changed = part[-1].revision

    def pump(self, send: Send) -> None:
        """Tell those who are behind as much as they take."""
        for found in list(self._ranges.values()):
            for peer, told in list(found.behind.items()):
                self._catch_up(found, peer, told, send)

    def _catch_up(self, found: _Range, peer: bytes, told: int, send: Send) -> None:
        now = self._store.revision
        try:
            if told > now:
                # It has seen what this store never had: the store is an older copy.
                raise GcsCompactedError("", oldest_revision=now + 1)
            changes: list[Change] = []
            if told < now:
                watch = self._store.watch(found.table, found.prefix, told + 1)
                changes = watch.events()
                watch.close()
        except GcsCompactedError as error:
            message = pack(COMPACTED, self._boot, found.table, found.prefix, error.oldest_revision)
            if send(peer, message):
                self.remove(peer, found.table, found.prefix)
            else:
                self.held_back += 1
            return
        # The last message carries no change: it tells the watcher how far it has come.
        for part in (*_parts(changes), []):
            upto = part[-1].revision if part else now
            if not send(peer, self._message(found, told, upto, part)):
                self.held_back += 1
                found.behind[peer] = told
                return
            told = upto
        del found.behind[peer]
        found.peers[peer] = None

    def _message(self, found: _Range, after: int, upto: int, part: list[Change]) -> bytes:
        rows: list[Any] = [
            [change.revision, change.key, change.value, change.create_revision] for change in part
        ]
        return pack(EVENTS, self._boot, found.table, found.prefix, after, upto, rows)

    @property
    def is_behind(self) -> bool:
        """Whether pump() has something to do."""
        return any(found.behind for found in self._ranges.values())

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        for place, found in self._ranges.items():
            both = found.peers.keys() & found.behind.keys()
            assert not both, f"{place}: both behind and up to date"
            watching = found.peers.keys() | found.behind.keys()
            assert watching, f"{place}: nobody watches it"
            assert all(place in self._of_peer[peer] for peer in watching)
        watches = sum(map(len, self._of_peer.values()))
        assert watches == sum(len(one.peers) + len(one.behind) for one in self._ranges.values())


def _parts(changes: list[Change]) -> list[list[Change]]:
    """Split changes into messages; those of one revision stay together."""
    parts: list[list[Change]] = []
    size = EVENTS_BYTES_MAX
    for change in changes:
        if size >= EVENTS_BYTES_MAX and (not parts or parts[-1][-1].revision != change.revision):
            parts.append([])
            size = 0
        parts[-1].append(change)
        size += 32 + len(change.key) + len(change.value or b"")
    return parts
