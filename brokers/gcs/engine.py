"""The store of the GCS on one LMDB environment.

What    Every call of the interface is one LMDB transaction, so a process that dies at any
        moment leaves either all of a change or nothing of it. Recent changes are also kept in
        memory for watchers; what is older than the store's opening is compacted.
Caller  the node process. All methods may be called from several threads; writers take turns.
Never   reads a clock, interprets a value, or is used by a forked child.
Spec    store.py, whose rules this file keeps.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Self, TypeVar

import lmdb

from zray.errors import GcsError, InternalError

from .environment import MAP_BYTES, Durability, LmdbEnvironment, damaged, translated
from .history import History, HistoryWatch
from .store import (
    Change,
    Compare,
    Delete,
    Entry,
    Put,
    Snapshot,
    Transaction,
    TransactionResult,
)

# create revision, modify revision, lease id, crc32 of these three and the value
_HEAD = struct.Struct(">QQQI")
_HEAD_FIELDS = struct.Struct(">QQQ")
_U64 = struct.Struct(">Q")
_F64 = struct.Struct(">d")

_T = TypeVar("_T")

_REVISION = b"revision"
_LAST_LEASE = b"last_lease"


def _stored(created: int, modified: int, value: bytes, lease_id: int = 0) -> bytes:
    """Return an entry as LMDB keeps it."""
    fields = _HEAD_FIELDS.pack(created, modified, lease_id)
    checksum = zlib.crc32(value, zlib.crc32(fields))
    return b"".join((fields, checksum.to_bytes(4, "big"), value))


def _lease_key(lease_id: int, table: str, key: bytes) -> bytes:
    """Return where the index keeps one key of a lease; hashed, since LMDB's keys are short."""
    name = blake2b(table.encode() + b"\0" + key, digest_size=16).digest()
    return _U64.pack(lease_id) + name


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Snapshot of the store for people and metrics; sizes in bytes."""

    revision: int
    compacted_revision: int
    commits: int
    leases: int
    history_len: int
    history_bytes: int
    file_bytes: int
    map_bytes: int
    entries: dict[str, int]


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    # None from the opening of the store until somebody says what time it is.
    expires_at: float | None


@dataclass(slots=True)
class _Batch:
    """What one LMDB transaction has done so far; thrown away if its commit fails."""

    txn: lmdb.Transaction[bytes]
    revision: int
    changes: list[Change] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Range:
    """Which keys a scan wants."""

    prefix: bytes
    after: bytes
    limit: int | None


class LmdbReader:
    """An LmdbStore as it is; see Store.reader.

    Args:
        begin: begins a read transaction.
        handles: of the tables that are open already.
        find: returns the handle of a table, None where there is none.
        decode: of an entry as it is kept.
    """

    __slots__ = ("_begin", "_decode", "_find", "_handles", "_txn")

    def __init__(
        self,
        begin: Callable[[], lmdb.Transaction[bytes]],
        handles: dict[str, lmdb._Database],
        find: Callable[[str], lmdb._Database | None],
        decode: Callable[[bytes, str, bytes], Entry],
    ) -> None:
        self._begin = begin
        self._txn = begin()
        self._find = find
        self._decode = decode
        self._handles = dict(handles)

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        database = self._handles.get(table)
        if database is None:
            database = self._find(table)
            if database is None:
                return None
            self._handles[table] = database
            # A transaction does not know a table that was opened after it had begun.
            self._txn.abort()
            self._txn = self._begin()
        stored = self._txn.get(key, None, database)
        return None if stored is None else self._decode(stored, table, key)

    def close(self) -> None:
        """Give the snapshot free."""
        self._txn.abort()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()


class LmdbStore:
    """The `Store` interface on LMDB.

    Args:
        path: directory of the store, made if need be; one process at a time may open it.
        durability: "process": commits survive kill -9 of this process, and a power loss only
            up to the last sync(). "disk": every commit waits for the disk.
        map_bytes: bound of the file's size; address space, not memory.
        history_len_max: changes kept for watchers.
        history_bytes_max: memory of these changes.

    Raises:
        GcsUnavailableError: another process holds the directory (its pid is in the message), or
            it cannot be written.
        GcsError: the files are damaged, or may be after a power loss.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Durability = "process",
        map_bytes: int = MAP_BYTES,
        history_len_max: int = 20_000,
        history_bytes_max: int = 16 << 20,
    ) -> None:
        self._directory = LmdbEnvironment(Path(path), durability=durability, map_bytes=map_bytes)
        self._tables: dict[str, lmdb._Database] = {}
        self._meta = self._table("_meta")
        self._lease_ttls = self._table("_leases")
        self._lease_keys = self._table("_lease_keys")
        self._lock = threading.Lock()
        self._commits = 0
        self._leases: dict[int, _Lease] = {}
        with self._directory.environment().begin() as txn:
            self._revision: int = self._number(txn, _REVISION)
            self._last_lease: int = self._number(txn, _LAST_LEASE)
            for lease_id, ttl in txn.cursor(self._lease_ttls):
                self._leases[_U64.unpack(lease_id)[0]] = _Lease(_F64.unpack(ttl)[0], None)
        self._history = History(self._revision, history_len_max, history_bytes_max)

    @property
    def revision(self) -> int:
        """The revision of the last change; 0 for a store that never had one."""
        return self._revision

    @property
    def compacted_revision(self) -> int:
        """Changes up to and including this revision can no longer be watched."""
        return self._history.compacted_revision

    # ------------------------------------------------------------------------------ transactions

    def transact(self, transaction: Transaction) -> TransactionResult:
        """Run one transaction. See Store.transact."""
        return self.transact_many((transaction,))[0]

    def transact_many(self, transactions: Sequence[Transaction]) -> list[TransactionResult]:
        """Run transactions in order with the cost of one commit. See Store.transact_many."""
        with self._exclusive():
            for transaction in transactions:
                self._prepare(transaction)
            return self._commit(lambda batch: [self._apply(batch, one) for one in transactions])

    def commit(self, changes: Sequence[Change]) -> None:
        """Make changes that were worked out already. See Store.commit."""
        if not changes:
            return
        with self._exclusive():
            if changes[0].revision != self._revision + 1 or self._leases:
                raise InternalError(
                    f"changes from revision {changes[0].revision} on do not follow "
                    f"{self._revision}: the store has another writer"
                )
            rows: dict[str, dict[bytes, bytes | None]] = {}
            for revision, table, key, value, created in changes:
                # Of several changes of one key only the last has to be written.
                rows.setdefault(table, {})[key] = (
                    None if value is None else _stored(created, revision, value)
                )
            for table in rows:
                self._table(table)

            def write(batch: _Batch) -> None:
                for table, found in rows.items():
                    self._write_rows(batch.txn, self._tables[table], found)
                batch.changes.extend(changes)
                batch.revision = changes[-1].revision

            self._commit(write)

    def _write_rows(
        self,
        txn: lmdb.Transaction[bytes],
        database: lmdb._Database,
        rows: dict[bytes, bytes | None],
    ) -> None:
        puts = [(key, stored) for key, stored in rows.items() if stored is not None]
        if len(puts) < len(rows):
            for key, stored in rows.items():
                if stored is None:
                    txn.delete(key, db=database)
        puts.sort()  # Neighbours share pages, which are copied once.
        with txn.cursor(database) as cursor:
            cursor.putmulti(puts)

    def _exclusive(self) -> threading.Lock:
        """Return the lock, for use in a with statement.

        The check comes first: in a forked child the lock may be held by a thread that is not there.
        """
        self._directory.environment()
        return self._lock

    def _prepare(self, transaction: Transaction) -> None:
        """Do what must come before the write transaction: open tables, refuse unknown leases."""
        for compare in transaction.compare:
            self._table(compare.table)
        for operation in (*transaction.success, *transaction.failure):
            self._table(operation.table)
            if (
                isinstance(operation, Put)
                and operation.lease_id
                and operation.lease_id not in self._leases
            ):
                raise self._unknown_lease(operation.lease_id)

    def _commit(self, work: Callable[[_Batch], _T]) -> _T:
        """Run `work` in one LMDB transaction; what is in memory changes only after its commit."""
        environment = self._directory.environment()
        try:
            with environment.begin(write=True) as txn:
                batch = _Batch(txn, self._revision)
                result = work(batch)
                if batch.changes:
                    txn.put(_REVISION, _U64.pack(batch.revision), db=self._meta)
        except lmdb.Error as error:
            raise translated(error, self._directory.path) from error
        self._commits += 1
        self._revision = batch.revision
        if batch.changes:
            self._history.extend(batch.changes)
        return result

    def _apply(self, batch: _Batch, transaction: Transaction) -> TransactionResult:
        """Run one transaction inside the LMDB transaction of its batch."""
        succeeded = all(self._holds(batch, compare) for compare in transaction.compare)
        revision = batch.revision + 1
        changes_before = len(batch.changes)
        previous: list[Entry | None] = []
        for operation in transaction.success if succeeded else transaction.failure:
            entry = self._read(batch.txn, operation.table, operation.key)
            previous.append(entry)
            if isinstance(operation, Put):
                self._put(batch, operation, entry, revision)
            elif isinstance(operation, Delete) and entry is not None:
                self._delete(batch, operation.table, operation.key, entry, revision)
        if len(batch.changes) > changes_before:
            batch.revision = revision
        return TransactionResult(succeeded, batch.revision, tuple(previous))

    def _holds(self, batch: _Batch, compare: Compare) -> bool:
        entry = self._read(batch.txn, compare.table, compare.key)
        if compare.op == "exists":
            return entry is not None
        if compare.op == "missing":
            return entry is None
        if compare.op == "value":
            return entry is not None and entry.value == compare.operand
        return (0 if entry is None else entry.modify_revision) == compare.operand

    def _put(self, batch: _Batch, put: Put, before: Entry | None, revision: int) -> None:
        created = revision if before is None else before.create_revision
        stored = _stored(created, revision, put.value, put.lease_id)
        batch.txn.put(put.key, stored, db=self._tables[put.table])
        lease_before = 0 if before is None else before.lease_id
        if lease_before != put.lease_id:
            self._detach(batch, lease_before, put.table, put.key)
            if put.lease_id:
                place = _lease_key(put.lease_id, put.table, put.key)
                name = put.table.encode() + b"\0" + put.key
                batch.txn.put(place, name, db=self._lease_keys)
        batch.changes.append(Change(revision, put.table, put.key, put.value, created))

    def _delete(self, batch: _Batch, table: str, key: bytes, before: Entry, revision: int) -> None:
        batch.txn.delete(key, db=self._tables[table])
        self._detach(batch, before.lease_id, table, key)
        batch.changes.append(Change(revision, table, key, None, before.create_revision))

    def _detach(self, batch: _Batch, lease_id: int, table: str, key: bytes) -> None:
        if lease_id:
            batch.txn.delete(_lease_key(lease_id, table, key), db=self._lease_keys)

    # ------------------------------------------------------------------------------------- reads

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        if self._find(table) is None:
            return None
        try:
            with self._directory.environment().begin() as txn:
                return self._read(txn, table, key)
        except lmdb.Error as error:
            raise translated(error, self._directory.path) from error

    def reader(self) -> LmdbReader:
        """Return the store as it is now. See Store.reader."""
        begin = self._directory.environment().begin
        return LmdbReader(begin, self._tables, self._find, self._decode)

    def scan(
        self, table: str, prefix: bytes = b"", limit: int | None = None, *, after: bytes = b""
    ) -> Snapshot:
        """Return a range in key order, as of one revision. See Store.scan."""
        database = self._find(table)
        if database is None:
            return Snapshot(self._revision, ())
        try:
            with self._directory.environment().begin() as txn:
                revision = self._number(txn, _REVISION)
                return self._scan(txn, database, table, _Range(prefix, after, limit), revision)
        except lmdb.Error as error:
            raise translated(error, self._directory.path) from error

    def _scan(
        self,
        txn: lmdb.Transaction[bytes],
        database: lmdb._Database,
        table: str,
        wanted: _Range,
        revision: int,
    ) -> Snapshot:
        entries: list[tuple[bytes, Entry]] = []
        cursor = txn.cursor(database)
        # A zero byte behind `after` makes the smallest key that is greater than it.
        start = max(wanted.prefix, wanted.after + b"\0" if wanted.after else b"")
        if not (cursor.set_range(start) if start else cursor.first()):
            return Snapshot(revision, ())
        for key, stored in cursor:
            if not key.startswith(wanted.prefix):
                break
            if wanted.limit is not None and len(entries) >= wanted.limit:
                return Snapshot(revision, tuple(entries), more=True)
            entries.append((key, self._decode(stored, table, key)))
        return Snapshot(revision, tuple(entries))

    def _read(self, txn: lmdb.Transaction[bytes], table: str, key: bytes) -> Entry | None:
        stored = txn.get(key, db=self._tables[table])
        return None if stored is None else self._decode(stored, table, key)

    def _decode(self, stored: bytes, table: str, key: bytes) -> Entry:
        if len(stored) >= _HEAD.size:
            created, modified, lease_id, checksum = _HEAD.unpack_from(stored)
            value = stored[_HEAD.size :]
            if checksum == zlib.crc32(value, zlib.crc32(stored[: _HEAD_FIELDS.size])):
                return Entry(value, created, modified, lease_id)
        raise damaged(
            self._directory.path, f"key {key.hex()} of table {table!r} fails its checksum"
        )

    def _number(self, txn: lmdb.Transaction[bytes], name: bytes) -> int:
        """Return one of the store's own counters; 0 before its first write."""
        return int.from_bytes(txn.get(name, b"", db=self._meta), "big")

    def _find(self, table: str) -> lmdb._Database | None:
        """Return the handle of a table that may not exist yet."""
        database = self._tables.get(table)
        if database is not None:
            return database
        with self._exclusive():
            database = self._directory.find_database(table)
            if database is not None:
                self._tables[table] = database
            return database

    def _table(self, table: str) -> lmdb._Database:
        """Return the handle of a table, made if need be; not inside a write transaction."""
        database = self._tables.get(table)
        if database is None:
            database = self._tables[table] = self._directory.database(table)
        return database

    # ------------------------------------------------------------------------------------ leases

    def grant_lease(self, ttl_s: float, now: float) -> int:
        """Return the id of a new lease. See Store.grant_lease."""
        if not ttl_s > 0:
            raise GcsError(f"a lease of {ttl_s} seconds is refused: give a positive time")
        with self._exclusive():
            lease_id = self._last_lease + 1

            def write(batch: _Batch) -> None:
                batch.txn.put(_U64.pack(lease_id), _F64.pack(ttl_s), db=self._lease_ttls)
                batch.txn.put(_LAST_LEASE, _U64.pack(lease_id), db=self._meta)

            self._commit(write)
            self._last_lease = lease_id
            self._leases[lease_id] = _Lease(ttl_s, now + ttl_s)
            return lease_id

    def keep_alive(self, lease_id: int, now: float) -> float:
        """Give the lease its full time again. See Store.keep_alive."""
        with self._exclusive():
            lease = self._leases.get(lease_id)
            if lease is None:
                raise self._unknown_lease(lease_id)
            lease.expires_at = now + lease.ttl_s
            return lease.expires_at

    def revoke_lease(self, lease_id: int) -> tuple[Change, ...]:
        """End a lease and remove its keys. See Store.revoke_lease."""
        with self._exclusive():
            if lease_id not in self._leases:
                raise self._unknown_lease(lease_id)
            return self._end_leases([lease_id])

    def expire_leases(self, now: float) -> tuple[Change, ...]:
        """End the leases whose time is up. See Store.expire_leases."""
        with self._exclusive():
            expired: list[int] = []
            for lease_id, lease in self._leases.items():
                if lease.expires_at is None:
                    lease.expires_at = now + lease.ttl_s
                elif lease.expires_at <= now:
                    expired.append(lease_id)
            return self._end_leases(expired) if expired else ()

    def _end_leases(self, lease_ids: list[int]) -> tuple[Change, ...]:
        """Remove leases and their keys in one transaction with one revision."""
        names = self._names_under(lease_ids)
        for table, _ in names:
            self._table(table)

        def remove(batch: _Batch) -> tuple[Change, ...]:
            revision = batch.revision + 1
            for table, key in names:
                entry = self._read(batch.txn, table, key)
                if entry is not None:
                    self._delete(batch, table, key, entry, revision)
            for lease_id in lease_ids:
                batch.txn.delete(_U64.pack(lease_id), db=self._lease_ttls)
            if batch.changes:
                batch.revision = revision
            return tuple(batch.changes)

        changes = self._commit(remove)
        for lease_id in lease_ids:
            del self._leases[lease_id]
        return changes

    def _names_under(self, lease_ids: list[int]) -> list[tuple[str, bytes]]:
        """Return (table, key) of everything attached to the leases."""
        names: list[tuple[str, bytes]] = []
        with self._directory.environment().begin() as txn:
            cursor = txn.cursor(self._lease_keys)
            for lease_id in lease_ids:
                prefix = _U64.pack(lease_id)
                if not cursor.set_range(prefix):
                    continue
                for place, name in cursor:
                    if not place.startswith(prefix):
                        break
                    table, _, key = name.partition(b"\0")
                    names.append((table.decode(), key))
        return names

    def _unknown_lease(self, lease_id: int) -> GcsError:
        return GcsError(
            f"lease {lease_id} has expired, was revoked or never was; grant a new one and put "
            "its keys again"
        )

    # ----------------------------------------------------------------------------------- watches

    def watch(
        self, table: str, prefix: bytes = b"", from_revision: int | None = None
    ) -> HistoryWatch:
        """Watch a range. See Store.watch."""
        with self._exclusive():
            start = self._revision + 1 if from_revision is None else from_revision
            number = self._history.number_of(start)
            return HistoryWatch(self._history, self._lock, table, prefix, number)

    def compact(self, revision: int) -> None:
        """Forget the changes up to and including `revision`. See Store.compact."""
        with self._exclusive():
            if revision > self._revision:
                raise GcsError(f"revision {revision} is in the future; now is {self._revision}")
            self._history.compact(revision)

    # ----------------------------------------------------------------------------------- service

    def sync(self) -> None:
        """Wait until everything committed is on disk.

        With durability="process" call it now and then, from a thread that may wait: it holds no
        lock of the store, and other threads go on reading and writing.
        """
        self._directory.sync()

    def backup(self, path: str | Path) -> None:
        """Write a compacted copy of the store, as of one revision, into an empty directory."""
        target = Path(path)
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.environment().copy(str(target), compact=True)
        except OSError as error:
            raise GcsError(f"{target} cannot take a copy of the store: {error}") from error
        except lmdb.Error as error:
            raise translated(error, target) from error

    def statistics(self) -> StoreStatistics:
        """Return a snapshot of the store's numbers."""
        environment = self._directory.environment()
        with self._exclusive(), environment.begin() as txn:
            return StoreStatistics(
                revision=self._revision,
                compacted_revision=self._history.compacted_revision,
                commits=self._commits,
                leases=len(self._leases),
                history_len=len(self._history.changes),
                history_bytes=self._history.bytes,
                file_bytes=(self._directory.path / "data.mdb").stat().st_size,
                map_bytes=environment.info()["map_size"],
                entries={
                    name: txn.stat(database)["entries"]
                    for name, database in self._tables.items()
                    if not name.startswith("_")
                },
            )

    def close(self, *, sync: bool = True) -> None:
        """Close and give the directory free. Closing twice is no error.

        Args:
            sync: wait for the disk first. Without it a store with durability="process" opens again
                only while the machine stays up; right for one that is about to be deleted.
        """
        if not self._directory.closed and not self._directory.inherited:
            with self._lock:
                self._directory.close(sync=sync)

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the store."""
        self.close()
