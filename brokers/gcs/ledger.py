"""The lineage ledger of one node: what must be run again when a result is lost.

What    Records (task specs, packed by whoever submits them) in the order they came, numbered
        from 0 on. append() only queues; flush() writes what is queued as one blob with a crc32.
        Blobs lie in segments, one directory each; when the ledger has more bytes than its cap,
        whole segments are dropped, the oldest first, and statistics() says so.
Caller  the node process: append() in its loop, flush() every few milliseconds there or in a
        thread beside it. scan() only when something was lost.
Never   looks into a record, reads a clock, or is used by a forked child.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

import shutil
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Self

import lmdb

from zray.errors import GcsError, GcsUnavailableError

from .environment import DirectoryLock, Durability, LmdbEnvironment, translated

# crc32 of the rest, number of records; then the length of each record, then the records
_HEAD = struct.Struct(">II")
_POSITION = struct.Struct(">Q")
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """Snapshot of a ledger; sizes in bytes.

    `first_position` is the oldest record that is kept. `dropped_records` are those the cap cost,
    `damaged_blobs` those whose checksum failed when they were read.
    """

    first_position: int
    next_position: int
    pending_records: int
    pending_bytes: int
    flushes: int
    segments: int
    stored_bytes: int
    dropped_segments: int
    dropped_records: int
    damaged_blobs: int


@dataclass(slots=True)
class _Segment:
    """One directory, and the position of its first record."""

    first: int
    environment: LmdbEnvironment
    stored_bytes: int = 0


def _pack(records: Sequence[bytes]) -> bytearray:
    """Return the blob of some records."""
    count = len(records)
    # The checksum is filled in afterwards: a second join would copy every byte once more.
    blob = bytearray().join(
        (bytes(4), struct.pack(f">I{count}I", count, *map(len, records)), *records)
    )
    blob[:4] = zlib.crc32(memoryview(blob)[4:]).to_bytes(4, "big")
    return blob


def record_count(blob: bytes) -> int:
    """Return how many records a blob says it has."""
    _checksum, count = _HEAD.unpack_from(blob)
    return int(count)


def unpack_blob(blob: bytes) -> list[bytes] | None:
    """Return the records of a blob, or None if it is not what was written."""
    if len(blob) < _HEAD.size:
        return None
    checksum, count = _HEAD.unpack_from(blob)
    if checksum != zlib.crc32(memoryview(blob)[4:]):
        return None
    lengths = struct.unpack_from(f">{count}I", blob, _HEAD.size)
    starts = accumulate(lengths, initial=_HEAD.size + 4 * count)
    return [blob[start : start + length] for start, length in zip(starts, lengths, strict=False)]


class Ledger:
    """Append-only records of one node.

    Args:
        path: directory of the ledger, made if need be; one process at a time may open it.
        max_bytes: cap of what is kept on disk; beyond it the oldest segment is dropped.
        segment_bytes: size at which a segment is closed; an eighth of the cap unless given, 64 MiB
            at most.
        pending_bytes_max: append() flushes by itself before more than this is queued.
        durability: "process": what was flushed survives kill -9 of this process, and is thrown away
            at the next opening if the machine went down meanwhile. "disk": a flush waits for the
            disk.

    Raises:
        GcsUnavailableError: another process holds the directory, or it cannot be written.
        GcsError: the sizes contradict each other.
    """

    RECORD_BYTES_MAX: ClassVar[int] = 64 << 20
    # Below malloc's 128 KiB threshold for a mapping of its own: blobs of 1 MiB cost page faults
    # at every flush, 15 us for 10 KB instead of 6.
    _BLOB_BYTES: ClassVar[int] = 96 << 10
    _BLOB_RECORDS_MAX: ClassVar[int] = 1 << 16
    _READ_BYTES: ClassVar[int] = 4 << 20

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int = 1 << 30,
        segment_bytes: int | None = None,
        pending_bytes_max: int = 16 << 20,
        durability: Durability = "process",
    ) -> None:
        self._segment_bytes = segment_bytes or min(max_bytes // 8, 64 << 20)
        if self._segment_bytes < 16 * _PAGE_BYTES or max_bytes < 2 * self._segment_bytes:
            raise GcsError(
                f"a ledger of {max_bytes} bytes in segments of {self._segment_bytes} is refused: "
                "a segment has 64 KiB or more, and the ledger at least two of them"
            )
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._pending_bytes_max = pending_bytes_max
        self._durability: Durability = durability
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._flushes = 0
        self._dropped_segments = 0
        self._dropped_records = 0
        self._damaged: set[int] = set()
        self._begins_segment = False
        """There is a gap before what is written next."""
        self._segments: list[_Segment] = []
        self._queue_lock = threading.Lock()
        self._disk_lock = threading.Lock()
        self._directory_lock = DirectoryLock(self._path)
        try:
            self._flushed = self._recover()
        except BaseException:
            self._directory_lock.close()
            raise
        self._next = self._flushed

    # ------------------------------------------------------------------------------------ writing

    def append(self, records: Sequence[bytes]) -> int:
        """Queue records and return the position of the first; the others follow it.

        They are safe from a crash of this process once flush() has returned.

        Raises:
            GcsError: a record has more than RECORD_BYTES_MAX bytes.
            GcsUnavailableError: the queue is full and cannot be written; nothing was queued.
        """
        size = sum(map(len, records))
        if size > self.RECORD_BYTES_MAX and max(map(len, records)) > self.RECORD_BYTES_MAX:
            raise GcsError(
                f"a ledger record of more than {self.RECORD_BYTES_MAX} bytes is refused: put large "
                "arguments into the object store"
            )
        if self._pending and self._pending_bytes + size > self._pending_bytes_max:
            self.flush()
        with self._queue_lock:
            position = self._next
            self._next = position + len(records)
            self._pending += records
            self._pending_bytes += size
        return position

    def flush(self) -> int:
        """Write all that is queued and return the position below which everything is written.

        Raises:
            GcsUnavailableError: the disk is full or broken; what was queued stays queued.
        """
        if not self._pending:
            return self._flushed
        with self._disk_lock:
            with self._queue_lock:
                records, self._pending = self._pending, []
                self._pending_bytes = 0
            try:
                while records:
                    written = self._write(records)
                    self._flushed += written
                    records = records[written:]
            except BaseException:
                with self._queue_lock:
                    self._pending = records + self._pending
                    self._pending_bytes = sum(map(len, self._pending))
                raise
            self._flushes += 1
            self._drop_beyond_cap()
            return self._flushed

    def _write(self, records: list[bytes]) -> int:
        """Commit as many of the records as the segment takes; return how many."""
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.stored_bytes >= self._segment_bytes or self._begins_segment:
            segment = self._open_segment(self._flushed)
            self._segments.append(segment)
            self._begins_segment = False
        written, stored_bytes = 0, segment.stored_bytes
        try:
            with segment.environment.environment().begin(write=True) as txn:
                while written < len(records) and stored_bytes < self._segment_bytes:
                    count = self._blob_len(records, written)
                    blob = _pack(records[written : written + count])
                    key = _POSITION.pack(self._flushed + written)
                    if not txn.put(key, blob, append=True):
                        raise GcsError(f"{self._path} is not in order: a key lies beyond its end")
                    written += count
                    # LMDB gives whole pages to a blob with its 16-byte head.
                    stored_bytes += -(-(len(blob) + 16) // _PAGE_BYTES) * _PAGE_BYTES
        except lmdb.Error as error:
            raise translated(error, segment.environment.path) from error
        # What the cap bounds is the disk: LMDB's own pages are a third of a small segment.
        segment.stored_bytes = (segment.environment.path / "data.mdb").stat().st_size
        return written

    def _blob_len(self, records: list[bytes], start: int) -> int:
        """Return how many records from `start` on make up the next blob."""
        size = 0
        stop = min(len(records), start + self._BLOB_RECORDS_MAX)
        for index in range(start, stop):
            size += len(records[index])
            if size >= self._BLOB_BYTES:
                return index - start + 1
        return stop - start

    def release(self, before: int) -> None:
        """Give up records before a position that nobody needs any more.

        Space is freed a whole segment at a time, without counting as dropped.
        """
        with self._disk_lock:
            while len(self._segments) > 1 and self._segments[1].first <= before:
                self._remove(self._segments.pop(0))

    def _drop_beyond_cap(self) -> None:
        while (
            len(self._segments) > 1
            and sum(segment.stored_bytes for segment in self._segments) > self._max_bytes
        ):
            oldest = self._segments.pop(0)
            self._dropped_segments += 1
            self._dropped_records += self._segments[0].first - oldest.first
            self._remove(oldest)

    def _remove(self, segment: _Segment) -> None:
        segment.environment.close(sync=False)
        shutil.rmtree(segment.environment.path)

    # ----------------------------------------------------------------------------------- segments

    def _open_segment(self, first: int) -> _Segment:
        environment = LmdbEnvironment(
            self._path / f"segment-{first:020d}",
            durability=self._durability,
            # One record may overshoot the segment's size; the map must still take it.
            map_bytes=2 * self._segment_bytes + 2 * self.RECORD_BYTES_MAX,
            lock=self._directory_lock,
        )
        return _Segment(first, environment)

    def _recover(self) -> int:
        """Open the segments that are there and return the position after the last good record."""
        position = 0
        paths = sorted(self._path.glob("segment-*"))
        for index, path in enumerate(paths):
            first = int(path.name.removeprefix("segment-"))
            try:
                segment = self._open_segment(first)
            except GcsUnavailableError:
                raise
            except GcsError:
                # Lineage is worth having, not worth refusing to start for: losing a segment
                # means only that results from it can't be recomputed.
                self._dropped_segments += 1
                if index + 1 < len(paths):
                    following = int(paths[index + 1].name.removeprefix("segment-"))
                    self._dropped_records += following - first
                shutil.rmtree(path)
                position = max(position, first + self._BLOB_RECORDS_MAX)
                continue
            segment.stored_bytes = (path / "data.mdb").stat().st_size
            end = self._end_of(segment)
            if end == first and index + 1 < len(paths):
                # Its file was gone: the process was killed while it dropped this segment.
                self._remove(segment)
                continue
            self._segments.append(segment)
            position = max(position, end)
        return position

    def _end_of(self, segment: _Segment) -> int:
        """Cut damaged blobs off a segment's end and return the position after the last good one."""
        end = segment.first
        try:
            with segment.environment.environment().begin(write=True) as txn:
                cursor = txn.cursor()
                while cursor.last():
                    first = int.from_bytes(cursor.key(), "big")
                    records = unpack_blob(cursor.value())
                    if records is not None:
                        return max(end, first + len(records))
                    cursor.delete()
                    self._damaged.add(first)
                    # Positions that were given away must not name other records later, and how
                    # many there were is among what is damaged.
                    end = max(end, first + self._BLOB_RECORDS_MAX)
        except lmdb.Error as error:
            raise translated(error, segment.environment.path) from error
        return end

    # ------------------------------------------------------------------------------------ reading

    def scan(self, from_position: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (position, record) from a position on, flushing first.

        A gap between two positions means that what lay there was dropped or is damaged.
        """
        self.flush()
        key, blobs = from_position, self._read_blobs(from_position, floor=True)
        while blobs:
            for key, blob in blobs:
                records = unpack_blob(blob)
                if records is None:
                    self._damaged.add(key)
                    continue
                for position, record in enumerate(records, start=key):
                    if position >= from_position:
                        yield position, record
            blobs = self._read_blobs(key + 1, floor=False)

    def read_blobs(self, position: int) -> list[tuple[int, bytes]]:
        """Return some blobs that are written, as they lie on disk, from the one of a position on.

        unpack_blob() takes them apart; each is (position of its first record, blob).
        """
        return self._read_blobs(position, floor=True)

    @property
    def first_position(self) -> int:
        """The oldest record that is kept on disk."""
        return self._segments[0].first if self._segments else self._flushed

    @property
    def next_position(self) -> int:
        """Where the next record will be."""
        return self._next

    def skip_to(self, position: int) -> None:
        """Number on from a later position: what lies before it is nowhere to be had.

        Raises:
            GcsError: records have that position already.
        """
        self.flush()
        if position < self._next:
            raise GcsError(f"{self._path} has {self._next} records: it can't skip to {position}")
        with self._disk_lock, self._queue_lock:
            if position > self._next:
                self._next = self._flushed = position
                self._begins_segment = True

    def read(self, position: int) -> bytes | None:
        """Return one record, or None where it was dropped, is damaged or was never written."""
        found, record = next(self.scan(position), (-1, None))
        return record if found == position else None

    def _read_blobs(self, position: int, *, floor: bool) -> list[tuple[int, bytes]]:
        """Return some blobs from a position on; with `floor` begin with the one that holds it.

        Each call has a read transaction of its own: one that stays open while a caller thinks
        would keep LMDB from reusing pages, and break when its segment is dropped.
        """
        with self._disk_lock:
            firsts = [segment.first for segment in self._segments]
            for segment in self._segments[max(0, bisect_right(firsts, position) - 1) :]:
                blobs = self._read_segment(segment, position, floor)
                if blobs:
                    return blobs
        return []

    def _read_segment(
        self, segment: _Segment, position: int, floor: bool
    ) -> list[tuple[int, bytes]]:
        blobs: list[tuple[int, bytes]] = []
        size = 0
        wanted = _POSITION.pack(position)
        try:
            with segment.environment.environment().begin() as txn:
                cursor = txn.cursor()
                there = cursor.set_range(wanted)
                if floor and (not there or cursor.key() != wanted):
                    # At the segment's end set_range leaves no place to step back from.
                    before = cursor.prev() if there else cursor.last()
                    there = before or cursor.first()
                while there and size < self._READ_BYTES:
                    key, blob = cursor.item()
                    blobs.append((int.from_bytes(key, "big"), blob))
                    size += len(blob)
                    there = cursor.next()
        except lmdb.Error as error:
            raise translated(error, segment.environment.path) from error
        return blobs

    # ------------------------------------------------------------------------------------ service

    def sync(self) -> None:
        """Wait until everything flushed is on disk; not for a busy thread."""
        with self._disk_lock:
            environments = [segment.environment for segment in self._segments[-2:]]
            for environment in environments:
                environment.sync()

    def statistics(self) -> LedgerStatistics:
        """Return a snapshot of the ledger's numbers."""
        with self._disk_lock, self._queue_lock:
            return LedgerStatistics(
                first_position=self.first_position,
                next_position=self._next,
                pending_records=len(self._pending),
                pending_bytes=self._pending_bytes,
                flushes=self._flushes,
                segments=len(self._segments),
                stored_bytes=sum(segment.stored_bytes for segment in self._segments),
                dropped_segments=self._dropped_segments,
                dropped_records=self._dropped_records,
                damaged_blobs=len(self._damaged),
            )

    def close(self, *, sync: bool = True) -> None:
        """Flush, close and give the directory free.

        Args:
            sync: wait for the disk; without it a power loss soon after may cost the ledger.
        """
        if not self._segments and not self._pending:
            self._directory_lock.close()
            return
        self.flush()
        with self._disk_lock:
            for segment in self._segments:
                segment.environment.close(sync=sync)
            self._segments = []
        self._directory_lock.close()

    def discard(self) -> None:
        """Close, and remove all there is on disk."""
        with self._disk_lock, self._queue_lock:
            self._pending, self._pending_bytes = [], 0
            for segment in self._segments:
                segment.environment.close(sync=False)
            self._segments = []
            self._directory_lock.close()
            shutil.rmtree(self._path, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the ledger."""
        self.close()
