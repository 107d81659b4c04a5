"""The typed tables of the GCS over a Store.

What    Functions by hash, jobs, nodes and the key-value table. Each record is a msgpack array
        whose first item is its schema's number; each rule that must hold between two writers
        (code never changes, an epoch is never given twice) is a comparison inside a transaction,
        so it holds whoever else writes to the store.
Caller  the node process.
Never   keeps a copy of what is in the store, reads a clock (times are arguments, in seconds) or
        unpickles code and values.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import ClassVar, cast

import msgpack

from zray.errors import GcsError

from .actor_table import ActorTable
from .records import Record, RecordTable
from .store import Compare, Delete, Put, Store, Transaction

# ------------------------------------------------------------------------------------- functions


def code_hash(code: bytes) -> bytes:
    """Return the 16 bytes that name a piece of code."""
    return blake2b(code, digest_size=16).digest()


class FunctionTable:
    """Code of functions and classes by its hash; what is there never changes."""

    # A chunk is what one message may carry without holding up those behind it.
    CHUNK_BYTES: ClassVar[int] = 1 << 20
    _SCHEMA: ClassVar[int] = 1

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, name: bytes, code: bytes) -> bool:
        """Store code under its hash; False if it was there already.

        Args:
            name: code_hash(code), 16 bytes.
            code: the pickled function or class, never unpickled here.

        Raises:
            GcsError: `name` is not the hash of `code`.
        """
        if code_hash(code) != name:
            raise GcsError(f"code of {len(code)} bytes does not have the hash {name.hex()}")
        chunks = [code[at : at + self.CHUNK_BYTES] for at in range(0, len(code), self.CHUNK_BYTES)]
        header = [self._SCHEMA, len(code), chunks[0] if chunks else b""]
        first = cast("bytes", msgpack.packb(header))
        puts = [Put("functions", name, first)]
        puts += [
            Put("functions", name + index.to_bytes(2, "big"), chunk)
            for index, chunk in enumerate(chunks[1:], start=1)
        ]
        missing = Compare("functions", name, "missing")
        return self._store.transact(Transaction((missing,), tuple(puts))).succeeded

    def get(self, name: bytes) -> bytes | None:
        """Return the code of this hash, or None.

        Raises:
            GcsError: a part is missing or damaged; put the code again after deleting it.
        """
        entry = self._store.get("functions", name)
        if entry is None:
            return None
        schema, code_bytes, first = msgpack.unpackb(entry.value)
        if schema != self._SCHEMA:
            raise GcsError(f"code {name.hex()} has the unknown schema {schema}")
        code: bytes = first
        if code_bytes > len(first):
            rest = self._store.scan("functions", name, after=name).entries
            code = b"".join((first, *(chunk.value for _, chunk in rest)))
        if code_hash(code) != name:
            raise GcsError(f"code {name.hex()} is damaged in the store; delete it and put it again")
        return code

    def exists(self, name: bytes) -> bool:
        """Say whether the code of this hash is there."""
        return self._store.get("functions", name) is not None

    def delete(self, name: bytes) -> bool:
        """Remove code that no job uses any more; False if it was not there."""
        keys = [key for key, _ in self._store.scan("functions", name).entries]
        deletes = tuple(Delete("functions", key) for key in keys)
        return bool(deletes) and self._store.transact(Transaction((), deletes)).succeeded


# ------------------------------------------------------------------------------- jobs and nodes


@dataclass(frozen=True, slots=True)
class JobRecord(Record):
    """One driver's run. Times are seconds of the caller's clock; `ended_at` is 0 while it runs."""

    STATES: ClassVar[tuple[str, ...]] = ("running", "succeeded", "failed", "stopped")

    job_id: bytes
    driver_id: bytes = b""
    driver_pid: int = 0
    entrypoint: str = ""
    namespace: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    state: str = "running"
    message: str = ""


class JobTable(RecordTable):
    """Jobs by id."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "jobs")

    def add(self, record: JobRecord) -> bool:
        """Store a new job; False if its id is there already."""
        missing = Compare("jobs", record.job_id, "missing")
        put = Put("jobs", record.job_id, record.pack())
        return self._store.transact(Transaction((missing,), (put,))).succeeded

    def finish(self, job_id: bytes, state: str, ended_at: float, message: str = "") -> JobRecord:
        """End a job and return its record; a job that has ended keeps its first end.

        Raises:
            GcsError: there is no such job, or `state` is none a job ends in.
        """
        if state not in JobRecord.STATES[1:]:
            raise GcsError(f"a job ends in one of {JobRecord.STATES[1:]}, not in {state!r}")
        for _ in range(self._ATTEMPTS_MAX):
            found = self._read(job_id, JobRecord)
            if found is None:
                raise GcsError(f"job {job_id.hex()} is not known; add it first")
            record, entry = found
            if record.state != "running":
                return record
            ended = replace(record, state=state, ended_at=ended_at, message=message)
            put = Put("jobs", job_id, ended.pack())
            if self._store.transact(
                Transaction((self._unchanged(job_id, entry),), (put,))
            ).succeeded:
                return ended
        raise self._too_many_races(job_id)

    def get(self, job_id: bytes) -> JobRecord | None:
        """Return the job, or None."""
        found = self._read(job_id, JobRecord)
        return found and found[0]

    def all(self) -> list[JobRecord]:
        """Return all jobs, ordered by id."""
        return self._records(JobRecord)


@dataclass(frozen=True, slots=True)
class NodeRecord(Record):
    """One node. `epoch` is given by NodeTable.register: a later registration has a higher one."""

    STATES: ClassVar[tuple[str, ...]] = ("alive", "dead")

    node_id: bytes
    addresses: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    state: str = "alive"
    epoch: int = 0
    role: str = "node"
    """Of whoever is no node, a driver's: zray/protocol/roles.py."""


class NodeTable(RecordTable):
    """Nodes by id. A node that registers under a lease is removed when its lease ends."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "nodes")

    def register(self, record: NodeRecord, lease_id: int = 0) -> NodeRecord:
        """Store a node under a new epoch and return its record with it.

        Epochs are kept apart from the nodes: one that outlives a node's removal still fences what
        the node's former life sends.
        """
        node_id = record.node_id
        for _ in range(self._ATTEMPTS_MAX):
            before = self._store.get("epochs", node_id)
            epoch = 1 if before is None else int.from_bytes(before.value, "big") + 1
            registered = replace(record, epoch=epoch)
            unchanged = Compare(
                "epochs", node_id, "revision", before.modify_revision if before else 0
            )
            puts = (
                Put("epochs", node_id, epoch.to_bytes(8, "big")),
                Put("nodes", node_id, registered.pack(), lease_id),
            )
            if self._store.transact(Transaction((unchanged,), puts)).succeeded:
                return registered
        raise self._too_many_races(node_id)

    def mark_dead(self, node_id: bytes) -> bool:
        """Say that a node is dead, for those who look it up; False if it is not known."""
        for _ in range(self._ATTEMPTS_MAX):
            found = self._read(node_id, NodeRecord)
            if found is None:
                return False
            record, entry = found
            put = Put("nodes", node_id, replace(record, state="dead").pack())
            if self._store.transact(
                Transaction((self._unchanged(node_id, entry),), (put,))
            ).succeeded:
                return True
        raise self._too_many_races(node_id)

    def get(self, node_id: bytes) -> NodeRecord | None:
        """Return the node, or None."""
        found = self._read(node_id, NodeRecord)
        return found and found[0]

    def all(self) -> list[NodeRecord]:
        """Return all nodes, ordered by id."""
        return self._records(NodeRecord)


# ------------------------------------------------------------------------------------- key-value


class KvTable:
    """Bytes by namespace and key, for libraries and users."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, key: bytes, value: bytes, *, namespace: str = "", overwrite: bool = True) -> bool:
        """Store a value; True if the key is new.

        Without `overwrite` a key that is there keeps its value.

        Raises:
            GcsError: namespace and key are together longer than 499 bytes, or the value than
                64 MiB.
        """
        place = _kv_key(namespace, key)
        missing = Compare("kv", place, "missing")
        put = Put("kv", place, value)
        instead = (put,) if overwrite else ()
        return self._store.transact(Transaction((missing,), (put,), instead)).succeeded

    def get(self, key: bytes, *, namespace: str = "") -> bytes | None:
        """Return the value, or None."""
        entry = self._store.get("kv", _kv_key(namespace, key))
        return None if entry is None else entry.value

    def delete(self, key: bytes, *, namespace: str = "") -> bool:
        """Remove a key; False if it was not there."""
        place = _kv_key(namespace, key)
        exists = Compare("kv", place, "exists")
        return self._store.transact(Transaction((exists,), (Delete("kv", place),))).succeeded

    def exists(self, key: bytes, *, namespace: str = "") -> bool:
        """Say whether the key is there."""
        return self._store.get("kv", _kv_key(namespace, key)) is not None

    def keys(self, prefix: bytes = b"", *, namespace: str = "") -> list[bytes]:
        """Return the keys of a namespace that begin with `prefix`, in order."""
        start = _kv_key(namespace, prefix)
        skip = len(_kv_key(namespace, b""))
        return [key[skip:] for key, _ in self._store.scan("kv", start).entries]


def _kv_key(namespace: str, key: bytes) -> bytes:
    if "\0" in namespace:
        raise GcsError("a namespace with a zero character is refused; leave it out")
    return namespace.encode() + b"\0" + key


class Tables:
    """All typed tables of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.functions = FunctionTable(store)
        self.actors = ActorTable(store)
        self.jobs = JobTable(store)
        self.nodes = NodeTable(store)
        self.kv = KvTable(store)
