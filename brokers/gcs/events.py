"""The ring of scheduling events of one node: what happened, newest kept.

What    Events are [kind, time, *values], with the names of the values in one table by kind.
        record() and record_batch() only queue; flush() writes what is queued to disk. Beyond
        the cap the oldest batches go, and statistics() counts them. Batches that workers have
        packed are stored as they came and opened by queries only.
Caller  the node process: record in its loop, flush a few times a second. list() for tools.
Never   reads a clock (times are arguments, in seconds) or grows without bound.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import lmdb
import msgpack

from zray.errors import GcsError

from .environment import Durability, LmdbEnvironment, translated

# crc32 of the rest, time of the flush, number of events; then the packed events
_HEAD = struct.Struct(">IdI")
_NUMBER = struct.Struct(">Q")

_RUN_LEN_MAX = 512
"""Events packed together: what a query must unpack to see one of them."""

Scalar = bytes | str | int | float | bool | None

_EXECUTED = (
    *("task", "function", "worker", "started_at", "duration_s"),
    *("failed", "count", "pid"),
)
"""Of one task or call, or of ``count`` that ran one after the other, ``task`` being the first.

``failed``: whether one of them raised; of those that the node scheduled, each that did is a
task_failed besides. Workers pack these themselves (actors/events.py), in this order.
"""

EVENT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "node_started": ("node", "resources"),
    "worker_started": ("worker", "pid"),
    "worker_died": ("worker", "pid", "reason"),
    "job_started": ("job", "pid", "entrypoint"),
    "job_finished": ("job", "state"),
    "task_submitted": ("job", "first", "count", "function"),
    "task_executed": _EXECUTED,
    "call_executed": _EXECUTED,
    "events_dropped": ("worker", "pid", "count"),
    "task_retried": ("task", "function", "attempt", "reason"),
    "task_failed": ("task", "function", "reason"),
    "actor_state": ("actor", "state", "worker", "incarnation", "reason"),
    "object_spilled": ("object", "size_bytes"),
    "object_lost": ("object", "reason"),
}
"""Names of the values of each kind of event, in their order."""


@dataclass(frozen=True, slots=True)
class SchedulingEvent:
    """One event. `number` counts all events of this node since its ring was made."""

    number: int
    kind: str
    at_s: float
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventStatistics:
    """Snapshot of a ring, in events unless it says otherwise.

    `dropped` were pushed out by newer ones, since the ring was made (on disk) or opened (queued).
    """

    recorded: int
    kept: int
    dropped: int
    malformed_batches: int
    pending: int
    flushes: int


def packed_len(packed: bytes) -> int:
    """Return how many events a packed batch has, from its first bytes.

    Raises:
        GcsError: it does not begin as a msgpack array.
    """
    first = packed[0] if packed else 0
    if first & 0xF0 == 0x90:
        return first & 0x0F
    if first == 0xDC and len(packed) >= 3:
        return int.from_bytes(packed[1:3], "big")
    if first == 0xDD and len(packed) >= 5:
        return int.from_bytes(packed[1:5], "big")
    raise GcsError("a batch of events must be one msgpack array of [kind, time, *values]")


class EventRing:
    """The newest events of one node, on disk.

    Args:
        path: directory of the ring, made if need be; one process at a time may open it.
        len_max: cap of the number of events kept on disk.
        pending_len_max: cap of the number queued between two flushes; beyond it the oldest
            queued batch goes, and is counted.
        fields: the names of each kind's values.
        durability: see LmdbEnvironment.

    Raises:
        GcsUnavailableError: another process holds the directory, or it cannot be written.
        GcsError: its files are damaged.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        len_max: int = 200_000,
        pending_len_max: int = 100_000,
        fields: Mapping[str, tuple[str, ...]] = EVENT_FIELDS,
        durability: Durability = "process",
    ) -> None:
        if len_max < 1 or pending_len_max < 1:
            raise GcsError("a ring of events needs room for one event on disk and one queued")
        self._directory = LmdbEnvironment(Path(path), durability=durability)
        self._len_max = len_max
        self._pending_len_max = pending_len_max
        self._fields = fields
        self._pending: list[_Pending] = []
        self._pending_len = 0
        self._shed = 0
        self._malformed: set[int] = set()
        self._flushes = 0
        self._queue_lock = threading.Lock()
        self._disk_lock = threading.Lock()
        self._first, self._next = self._bounds()

    def _bounds(self) -> tuple[int, int]:
        """Return the number of the oldest event on disk and that of the next one."""
        try:
            with self._directory.environment().begin() as txn:
                cursor = txn.cursor()
                if not cursor.last():
                    return 0, 0
                following = _number(cursor.key()) + _event_len(cursor.value())
                cursor.first()
                return _number(cursor.key()), following
        except lmdb.Error as error:
            raise translated(error, self._directory.path) from error

    # ---------------------------------------------------------------------------------- recording

    def record(self, kind: str, at_s: float, *values: Scalar) -> None:
        """Queue one event.

        Args:
            kind: a kind of the table of fields.
            at_s: when it happened, in seconds of the clock that flush() and select() use.
            values: one for each name of the kind.

        Raises:
            GcsError: the kind is unknown or the number of values does not fit it.
        """
        names = self._fields.get(kind)
        if names is None or len(names) != len(values):
            raise GcsError(f"an event {kind!r} with {len(values)} values is refused: see {names}")
        with self._queue_lock:
            self._pending.append((kind, at_s, values))
            self._pending_len += 1
            if self._pending_len > self._pending_len_max:
                self._shed_oldest()

    def record_batch(self, packed: bytes) -> None:
        """Queue events that were packed elsewhere: one msgpack array of [kind, time, *values].

        Only the first bytes are looked at, so that it costs the same for 1 and for 10 000 events.

        Raises:
            GcsError: it is no msgpack array.
        """
        batch_len = packed_len(packed)
        if not batch_len:
            return
        with self._queue_lock:
            self._pending.append(packed)
            self._pending_len += batch_len
            if self._pending_len > self._pending_len_max:
                self._shed_oldest()

    def _shed_oldest(self) -> None:
        """Drop a quarter of the queue: nobody has flushed for too long, or the disk is full."""
        cut, rest = 0, self._pending_len
        while cut < len(self._pending) and rest > self._pending_len_max * 3 // 4:
            rest -= _pending_event_len(self._pending[cut])
            cut += 1
        self._shed += self._pending_len - rest
        self._pending_len = rest
        del self._pending[:cut]

    def flush(self, now: float) -> None:
        """Write what is queued, and drop the oldest events beyond the cap.

        Args:
            now: the time, which bounds the time of everything queued from above.

        Raises:
            GcsUnavailableError: the disk is full or broken; what was queued stays queued.
        """
        if not self._pending:
            return
        with self._disk_lock:
            with self._queue_lock:
                pending, self._pending = self._pending, []
                pending_len, self._pending_len = self._pending_len, 0
            try:
                self._first, self._next = self._write(list(_batches(pending)), now)
            except BaseException:
                with self._queue_lock:
                    self._pending = pending + self._pending
                    self._pending_len += pending_len
                raise
            self._flushes += 1

    def _write(self, batches: list[bytes], now: float) -> tuple[int, int]:
        """Commit batches, return the bounds of what is then on disk."""
        first, following = self._first, self._next
        try:
            with self._directory.environment().begin(write=True) as txn:
                for packed in batches:
                    head = _HEAD.pack(0, now, packed_len(packed))[4:]
                    checksum = zlib.crc32(packed, zlib.crc32(head)).to_bytes(4, "big")
                    value = b"".join((checksum, head, packed))
                    txn.put(_NUMBER.pack(following), value, append=True)
                    following += packed_len(packed)
                cursor = txn.cursor()
                while following - first > self._len_max and cursor.first():
                    first = _number(cursor.key()) + _event_len(cursor.value())
                    cursor.delete()
        except lmdb.Error as error:
            raise translated(error, self._directory.path) from error
        return first, following

    # ------------------------------------------------------------------------------------ queries

    def select(
        self, *, kind: str | None = None, since: float | None = None, limit: int = 1000
    ) -> list[SchedulingEvent]:
        """Return the newest events that fit, oldest first, including what is not flushed yet.

        Args:
            kind: only this kind.
            since: only events of this time or later, in seconds.
            limit: how many at most.
        """
        chosen: list[SchedulingEvent] = []
        with closing(self._newest_batches(since)) as batches:
            for first, records in batches:
                fitting = [
                    event
                    for event in self._events(first, records)
                    if kind in (None, event.kind) and (since is None or event.at_s >= since)
                ]
                chosen += reversed(fitting)
                if len(chosen) >= limit:
                    break
        return chosen[:limit][::-1]

    def _newest_batches(self, since: float | None) -> Generator[tuple[int, list[Any]], None, None]:
        """Yield (number of the first event, unpacked events) of each batch, the newest first."""
        with self._disk_lock:
            with self._queue_lock:
                pending = list(_batches(self._pending))
            following = self._next
            # Begun under the lock of flush(): an event is either queued here or seen on disk.
            txn = self._directory.environment().begin()
        try:
            with txn:
                numbers = list(accumulate(map(packed_len, pending), initial=following))
                for number, packed in reversed(list(zip(numbers, pending, strict=False))):
                    yield number, self._unpack(number, packed)
                for key, value in txn.cursor().iterprev():
                    checksum, flushed_at, _ = _HEAD.unpack_from(value)
                    if since is not None and flushed_at < since:
                        return
                    intact = checksum == zlib.crc32(memoryview(value)[4:])
                    packed = value[_HEAD.size :] if intact else b""
                    yield _number(key), self._unpack(_number(key), packed)
        except lmdb.Error as error:
            raise translated(error, self._directory.path) from error

    def _unpack(self, number: int, packed: bytes) -> list[Any]:
        """Return the events of a batch; an unreadable one has none, and is counted once."""
        try:
            records = msgpack.unpackb(packed, strict_map_key=False)
        except (ValueError, msgpack.UnpackException):
            records = None
        if isinstance(records, list) and all(map(_is_event, records)):
            return records
        # A sender's fault must not keep the events of others from being read.
        self._malformed.add(number)
        return []

    def _events(self, first: int, records: list[Any]) -> list[SchedulingEvent]:
        events: list[SchedulingEvent] = []
        for number, (kind, at_s, *values) in enumerate(records, start=first):
            names = self._fields.get(kind, ())
            # A newer worker may send kinds and values that this release has no name for.
            surplus = tuple(f"value_{index}" for index in range(len(names), len(values)))
            fields = dict(zip(names + surplus, values, strict=False))
            events.append(SchedulingEvent(number, kind, at_s, fields))
        return events

    # ------------------------------------------------------------------------------------ service

    def statistics(self) -> EventStatistics:
        """Return a snapshot of the ring's numbers."""
        with self._disk_lock, self._queue_lock:
            return EventStatistics(
                recorded=self._next + self._shed + self._pending_len,
                kept=self._next - self._first,
                dropped=self._first + self._shed,
                malformed_batches=len(self._malformed),
                pending=self._pending_len,
                flushes=self._flushes,
            )

    def close(self, now: float, *, sync: bool = True) -> None:
        """Flush, close and give the directory free.

        Args:
            now: the time, as for flush().
            sync: wait for the disk; see LmdbStore.close.
        """
        if not self._directory.closed:
            self.flush(now)
            self._directory.close(sync=sync)


_Pending = tuple[str, float, tuple[Scalar, ...]] | bytes


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


def _event_len(value: bytes) -> int:
    return cast("int", _HEAD.unpack_from(value)[2])


def _is_event(record: Any) -> bool:
    """Say whether an unpacked record is [kind, time, *values]."""
    return (
        isinstance(record, list)
        and len(record) >= 2
        and isinstance(record[0], str)
        and isinstance(record[1], int | float)
    )


def _pending_event_len(item: _Pending) -> int:
    return packed_len(item) if isinstance(item, bytes) else 1


def _batches(pending: list[_Pending]) -> Iterator[bytes]:
    """Pack what record() queued into batches, between those that came packed, in order."""
    run: list[list[Any]] = []
    for item in pending:
        if run and (isinstance(item, bytes) or len(run) == _RUN_LEN_MAX):
            yield cast("bytes", msgpack.packb(run))
            run = []
        if isinstance(item, bytes):
            yield item
        else:
            kind, at_s, values = item
            run.append([kind, at_s, *values])
    if run:
        yield cast("bytes", msgpack.packb(run))
