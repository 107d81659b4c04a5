"""What each command of the GCS does to the tables: one pure function a command.

What    A rule (state, fields, now) -> (result, writes) reads what the commands before it have left
        and returns; whoever runs it makes the writes. The same commands in the same order give
        the same results and writes anywhere: the time comes with the command, nothing is random.
Caller  commands.py, whose table has the checks that every field has passed before.
Never   reads a clock, draws a random number, keeps anything between two commands.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from zray.errors import GcsError
from zray.protocol.packing import packb, unpackb

from .actor_table import ActorRecord, _checked, _name_key
from .records import Record
from .store import Compare, Delete, Entry, Get, Put, Snapshot, Transaction
from .tables import FunctionTable, JobRecord, NodeRecord, _kv_key

NODE_PREFIX_BYTES = 4
"""So many bytes of a node's id begin the id of everything that was made on it."""

ANSWER_BYTES_MAX = 1 << 20
"""Largest answer of a write, which is remembered, and of one page of a read."""

CHUNK_BYTES_MAX = FunctionTable.CHUNK_BYTES
FUNCTION_CHUNKS_MAX = 100
_READ_STEP = 64
_KEEP_DEAD_NODES = 1_000
_KEEP_ENDED_JOBS = 10_000
_KEEP_DEAD_ACTORS = 10_000

Write = Put | Delete
Applied = tuple[Any, list[Write]]


class State(Protocol):
    """What a rule may read: the tables as the commands before it have left them."""

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        ...

    def scan(
        self, table: str, prefix: bytes = b"", limit: int | None = None, *, after: bytes = b""
    ) -> Snapshot:
        """Return entries in key order, as store.Store.scan does."""
        ...


Rule = Callable[[State, Any, float], Applied]


# ----------------------------------------------------------------------------------------- nodes


def _nothing(_state: State, _fields: Any, _now: float) -> Applied:
    return None, []


def _refused(_state: State, fields: Any, _now: float) -> Applied:
    raise GcsError(fields[0])


RecordT = TypeVar("RecordT", bound=Record)


def _record(state: State, table: str, key: bytes, kind: type[RecordT]) -> RecordT | None:
    entry = state.get(table, key)
    return None if entry is None else kind.unpack(entry.value)


def _join(state: State, fields: Any, now: float) -> Applied:
    node_id, addresses, resources, labels, host, pid, role = fields
    former = _record(state, "nodes", node_id, NodeRecord)
    if former is not None and former.role != role:
        raise GcsError(f"{node_id.hex()} is the id of a {former.role}: a {role} can't take it")
    before = state.get("epochs", node_id)
    incarnation = 1 if before is None else int.from_bytes(before.value, "big") + 1
    record = NodeRecord(
        node_id=node_id,
        addresses=addresses,
        resources=resources,
        labels=labels,
        host=host,
        pid=pid,
        started_at=now,
        epoch=incarnation,
        role=role,
    )
    return incarnation, [
        Put("epochs", node_id, incarnation.to_bytes(8, "big")),
        Put("nodes", node_id, record.pack()),
    ]


def _leave(state: State, fields: Any, now: float) -> Applied:
    return _end_of_node(state, fields[0], fields[1], "its node has left", now)


def _node_died(state: State, fields: Any, now: float) -> Applied:
    return _end_of_node(state, fields[0], fields[1], f"its node died: {fields[2]}", now)


def _names_free(state: State, fields: Any, _now: float) -> Applied:
    """Free the names of the dead actors of some nodes, whose leases are over by now."""
    homes = {node_id[:NODE_PREFIX_BYTES] for node_id in fields[0]}
    writes: list[Write] = [
        Delete("names", place)
        for place, entry in state.scan("names").entries
        if entry.value[:NODE_PREFIX_BYTES] in homes and _is_dead(state, entry.value)
    ]
    return len(writes), writes


def _is_dead(state: State, actor_id: bytes) -> bool:
    record = _record(state, "actors", actor_id, ActorRecord)
    return record is not None and record.state == "dead"


def _end_of_node(state: State, node_id: bytes, incarnation: int, cause: str, now: float) -> Applied:
    """Mark one life of a node dead, and with it the actors and jobs that had their home there.

    Their names stay taken until NAMES_FREE: the node may live, and not know of this yet.
    """
    node = _record(state, "nodes", node_id, NodeRecord)
    if node is None or node.state == "dead" or node.epoch != incarnation:
        return False, []
    writes: list[Write] = [Put("nodes", node_id, replace(node, state="dead").pack())]
    home = node_id[:NODE_PREFIX_BYTES]
    for _, entry in state.scan("actors", home).entries:
        actor = ActorRecord.unpack(entry.value)
        if actor.state != "dead":
            dead = replace(actor, state="dead", death_cause=cause)
            writes += _actor_writes(state, dead, keeps_name=True)
    for job_id, entry in state.scan("jobs", home).entries:
        job = JobRecord.unpack(entry.value)
        if job.state == "running":
            ended = replace(job, state="failed", ended_at=now, message=cause)
            writes.append(Put("jobs", job_id, ended.pack()))
    for place, _ in state.scan("cluster", job_place(home)).entries:
        writes.append(Delete("cluster", place))
    return True, writes


def job_place(job_id: bytes) -> bytes:
    """Return where in the table "cluster" it is kept what workers of a job must know of it.

    Args:
        job_id: the whole of it, or its first bytes for those of a node.
    """
    return b"job\0" + job_id


def _prune(state: State, _fields: Any, _now: float) -> Applied:
    """Forget the longest ended nodes, jobs and actors beyond what is kept for people."""
    writes: list[Write] = []
    kinds: tuple[tuple[str, type[Any], str, int], ...] = (
        ("nodes", NodeRecord, "alive", _KEEP_DEAD_NODES),
        ("jobs", JobRecord, "running", _KEEP_ENDED_JOBS),
        ("actors", ActorRecord, "", _KEEP_DEAD_ACTORS),
    )
    for table, kind, living, keep in kinds:
        ended = sorted(
            (entry.modify_revision, key)
            for key, entry in state.scan(table).entries
            if (state_of := kind.unpack(entry.value).state) != living
            and (table != "actors" or state_of == "dead")
        )
        writes += [Delete(table, key) for _, key in ended[: max(0, len(ended) - keep)]]
    return len(writes), writes


# ---------------------------------------------------------------------------------------- actors


def _actor_register(state: State, fields: Any, _now: float) -> Applied:
    record = _checked(ActorRecord(**fields[0]))
    if state.get("actors", record.actor_id) is not None:
        return None, []
    writes: list[Write] = [Put("actors", record.actor_id, record.pack())]
    if record.name:
        place = _name_key(record.namespace, record.name)
        claim = state.get("names", place)
        if claim is not None and claim.value != record.actor_id:
            return b"" if _is_dead(state, claim.value) else claim.value, []
        writes.append(Put("names", place, record.actor_id))
    return None, writes


def _actor_update(state: State, fields: Any, _now: float) -> Applied:
    actor_id, changes = fields
    record = _record(state, "actors", actor_id, ActorRecord)
    if record is None:
        raise GcsError(f"actor {actor_id.hex()} is not registered; register it first")
    if record.state == "dead":
        if changes.get("state") == "dead":
            return "dead", []  # The first cause of death stands.
        raise GcsError(f"actor {actor_id.hex()} is dead and cannot change any more")
    updated = replace(record, **changes)
    return updated.state, _actor_writes(state, updated)


def _actor_end(state: State, fields: Any, _now: float) -> Applied:
    actor_id, keeps_name = fields
    record = _record(state, "actors", actor_id, ActorRecord)
    if record is None:
        raise GcsError(f"actor {actor_id.hex()} is not registered; register it first")
    if record.state == "dead":
        return False, []
    return True, _actor_writes(state, replace(record, state="dead"), keeps_name=keeps_name)


def _actor_writes(state: State, record: ActorRecord, *, keeps_name: bool = False) -> list[Write]:
    writes: list[Write] = [Put("actors", record.actor_id, record.pack())]
    if record.state == "dead" and record.name and not keeps_name:
        place = _name_key(record.namespace, record.name)
        claim = state.get("names", place)
        if claim is not None and claim.value == record.actor_id:
            writes.append(Delete("names", place))
    return writes


def _actor_lookup(state: State, fields: Any, _now: float) -> Applied:
    entry = state.get("actors", fields[0])
    return None if entry is None else entry.value, []


def _actor_list(state: State, fields: Any, _now: float) -> Applied:
    wanted_state, job_id, limit, after = fields
    page = _page_of(state, "actors", b"", limit, after)
    records = []
    for _, entry in page.entries:
        record = ActorRecord.unpack(entry.value)
        if wanted_state in (None, record.state) and job_id in (None, record.job_id):
            records.append(entry.value)
    return [records, page.entries[-1][0] if page.more else None], []


# ------------------------------------------------------------------------------- names and jobs


def _name_claim(state: State, fields: Any, _now: float) -> Applied:
    namespace, name, holder = fields
    place = _name_key(namespace, name)
    claim = state.get("names", place)
    if claim is not None:
        return (None if claim.value == holder else claim.value), []
    return None, [Put("names", place, holder)]


def _name_release(state: State, fields: Any, _now: float) -> Applied:
    namespace, name, holder = fields
    place = _name_key(namespace, name)
    claim = state.get("names", place)
    if claim is None or claim.value != holder:
        return False, []
    return True, [Delete("names", place)]


def _name_lookup(state: State, fields: Any, _now: float) -> Applied:
    entry = state.get("names", _name_key(*fields))
    return None if entry is None or _is_dead(state, entry.value) else entry.value, []


def _name_list(state: State, fields: Any, _now: float) -> Applied:
    namespace, limit, after = fields
    prefix = b"" if namespace is None else _name_key(namespace, "")
    page = _page_of(state, "names", prefix, limit, after)
    rows = []
    for key, entry in page.entries:
        if not _is_dead(state, entry.value):
            space, _, name = key.decode().partition("\0")
            rows.append([space, name, entry.value])
    return [rows, page.entries[-1][0] if page.more else None], []


def _job_start(state: State, fields: Any, _now: float) -> Applied:
    record = JobRecord(**fields[0])
    if state.get("jobs", record.job_id) is not None:
        return False, []
    return True, [Put("jobs", record.job_id, record.pack())]


def _job_finish(state: State, fields: Any, _now: float) -> Applied:
    job_id, how, ended_at, message = fields
    record = _record(state, "jobs", job_id, JobRecord)
    if record is None:
        raise GcsError(f"job {job_id.hex()} is not known; start it first")
    if record.state != "running":
        return record.state, []  # A job keeps its first end.
    ended = replace(record, state=how, ended_at=ended_at, message=message)
    return how, [Put("jobs", job_id, ended.pack())]


# ------------------------------------------------------------------------------------- functions


def _job_list(state: State, fields: Any, _now: float) -> Applied:
    return _record_list(state, "jobs", fields)


def _node_list(state: State, fields: Any, _now: float) -> Applied:
    return _record_list(state, "nodes", fields)


def _record_list(state: State, table: str, fields: Any) -> Applied:
    page = _page_of(state, table, b"", *fields)
    records = [entry.value for _, entry in page.entries]
    return [records, page.entries[-1][0] if page.more else None], []


def _function_chunk(state: State, fields: Any, _now: float) -> Applied:
    name, index, chunk = fields
    if not 0 < index < FUNCTION_CHUNKS_MAX:
        raise GcsError(
            f"chunk {index} of a function is refused: chunks after the first are numbered from 1 "
            f"to {FUNCTION_CHUNKS_MAX - 1}; put the data into the object store and pass its ref"
        )
    place = name + index.to_bytes(2, "big")
    before = state.get("functions", place)
    # What a function is made of never changes once it is there; before that, the last put counts.
    if (before is not None and before.value == chunk) or state.get("functions", name):
        return False, []
    writes: list[Write] = [Put("functions", place, chunk)]
    if state.get("unfinished", name) is None:
        writes.append(Put("unfinished", name, b""))
    return True, writes


def _function_put(state: State, fields: Any, _now: float) -> Applied:
    """Make a function visible, once all its chunks are there and have the hash they should."""
    name, code_bytes, first = fields
    if state.get("functions", name) is not None:
        return False, []
    digest = blake2b(first, digest_size=16)
    found = len(first)
    count = max(1, -(-code_bytes // CHUNK_BYTES_MAX))
    for index in range(1, min(count, FUNCTION_CHUNKS_MAX)):
        entry = state.get("functions", name + index.to_bytes(2, "big"))
        if entry is None:
            raise GcsError(f"chunk {index} of function {name.hex()} is missing; put it first")
        digest.update(entry.value)
        found += len(entry.value)
    if found != code_bytes or digest.digest() != name:
        raise GcsError(
            f"{found} bytes of code do not have the hash {name.hex()} of {code_bytes} bytes; put "
            "all its chunks again"
        )
    places = [name + index.to_bytes(2, "big") for index in range(count, FUNCTION_CHUNKS_MAX)]
    stray: list[Write] = [Delete("functions", place) for place in places]
    stray.append(Delete("unfinished", name))
    # The layout of tables.FunctionTable, which reads it too, and takes every chunk there is.
    return True, [Put("functions", name, packb([1, code_bytes, first])), *stray]


def _function_drop(state: State, fields: Any, _now: float) -> Applied:
    """Forget chunks whose function was never finished: who sent them has died."""
    writes: list[Write] = []
    for name in fields[0]:
        if state.get("unfinished", name) is not None:
            places = [name + index.to_bytes(2, "big") for index in range(1, FUNCTION_CHUNKS_MAX)]
            writes += [Delete("functions", place) for place in places]
            writes.append(Delete("unfinished", name))
    return len(writes), writes


def _function_get(state: State, fields: Any, _now: float) -> Applied:
    name, index = fields
    entry = state.get("functions", name)
    if entry is None:
        return None, []
    _schema, code_bytes, chunk = unpackb(entry.value)
    if index:
        part = state.get("functions", name + index.to_bytes(2, "big"))
        if part is None:
            raise GcsError(f"function {name.hex()} of {code_bytes} bytes has no chunk {index}")
        chunk = part.value
    return [code_bytes, chunk], []


def _function_exists(state: State, fields: Any, _now: float) -> Applied:
    return state.get("functions", fields[0]) is not None, []


# ---------------------------------------------------------------------------- key-value and more


def _kv_put(state: State, fields: Any, _now: float) -> Applied:
    namespace, key, value, overwrite = fields
    place = _kv_key(namespace, key)
    is_new = state.get("kv", place) is None
    return is_new, [Put("kv", place, value)] if is_new or overwrite else []


def _kv_get(state: State, fields: Any, _now: float) -> Applied:
    entry = state.get("kv", _kv_key(*fields))
    return None if entry is None else entry.value, []


def _kv_exists(state: State, fields: Any, _now: float) -> Applied:
    return state.get("kv", _kv_key(*fields)) is not None, []


def _kv_delete(state: State, fields: Any, _now: float) -> Applied:
    place = _kv_key(*fields)
    if state.get("kv", place) is None:
        return False, []
    return True, [Delete("kv", place)]


def _kv_keys(state: State, fields: Any, _now: float) -> Applied:
    namespace, prefix, limit, after = fields
    skip = len(_kv_key(namespace, b""))
    place = _kv_key(namespace, after) if after else b""
    page = _page_of(state, "kv", _kv_key(namespace, prefix), limit, place)
    keys = [key[skip:] for key, _ in page.entries]
    return [keys, keys[-1] if page.more else None], []


def _get(state: State, fields: Any, _now: float) -> Applied:
    entry = state.get(*fields)
    return None if entry is None else _row_of(entry), []


def _row_of(entry: Entry) -> list[Any]:
    return [entry.value, entry.create_revision, entry.modify_revision]


def _range(state: State, fields: Any, _now: float) -> Applied:
    table, prefix, limit, after = fields
    page = _page_of(state, table, prefix, limit, after)
    rows = [
        [key, entry.value, entry.create_revision, entry.modify_revision]
        for key, entry in page.entries
    ]
    return [page.revision, rows, page.more], []


def _page_of(state: State, table: str, prefix: bytes, limit: int, after: bytes) -> Snapshot:
    """Return entries up to `limit` and up to the bytes of one answer, at least one.

    The revision is that of the first step: watched from there, nothing is missed.
    """
    entries: list[tuple[bytes, Entry]] = []
    size = 0
    revision: int | None = None
    while True:
        step = state.scan(table, prefix, min(_READ_STEP, limit - len(entries)), after=after)
        revision = step.revision if revision is None else revision
        for key, entry in step.entries:
            size += len(key) + len(entry.value)
            if entries and size > ANSWER_BYTES_MAX:
                return Snapshot(revision, tuple(entries), more=True)
            entries.append((key, entry))
        if not step.more or len(entries) >= limit:
            return Snapshot(revision, tuple(entries), more=step.more)
        after = entries[-1][0]


def _transact(state: State, fields: Any, _now: float) -> Applied:
    compare, *branches = fields
    succeeded, failed = (tuple(_built(row) for row in branch) for branch in branches)
    transaction = Transaction(tuple(Compare(*row) for row in compare), succeeded, failed)
    holds = all(_holds(state, one) for one in transaction.compare)
    writes: list[Write] = []
    found: list[list[Any] | None] = []
    for operation in transaction.success if holds else transaction.failure:
        if not isinstance(operation, Get):
            writes.append(operation)
            continue
        entry = state.get(operation.table, operation.key)
        found.append(None if entry is None else _row_of(entry))
    if sum(len(item[0]) for item in found if item) > ANSWER_BYTES_MAX:
        raise GcsError(
            f"a transaction that reads more than {ANSWER_BYTES_MAX} bytes is refused: its answer "
            "is kept until it has arrived; read large values with GET"
        )
    return [holds, found], writes


def _built(row: list[Any]) -> Put | Delete | Get:
    if row[0] == "put":
        return Put(row[1], row[2], row[3])
    return Delete(row[1], row[2]) if row[0] == "delete" else Get(row[1], row[2])


def _holds(state: State, compare: Compare) -> bool:
    entry = state.get(compare.table, compare.key)
    if compare.op == "exists":
        return entry is not None
    if compare.op == "missing":
        return entry is None
    if compare.op == "value":
        return entry is not None and entry.value == compare.operand
    return (0 if entry is None else entry.modify_revision) == compare.operand


def _session_end(state: State, fields: Any, _now: float) -> Applied:
    writes: list[Write] = []
    for session in fields[0]:
        writes += [Delete("answers", key) for key, _ in state.scan("answers", session).entries]
    return len(writes), writes


RULES: dict[str, Rule] = {
    "SESSION_OPEN": _nothing,
    "NOOP": _nothing,
    "REFUSED": _refused,
    "JOIN": _join,
    "LEAVE": _leave,
    "NODE_DIED": _node_died,
    "NAMES_FREE": _names_free,
    "PRUNE": _prune,
    "SESSION_END": _session_end,
    "ACTOR_REGISTER": _actor_register,
    "ACTOR_UPDATE": _actor_update,
    "ACTOR_END": _actor_end,
    "ACTOR_LOOKUP": _actor_lookup,
    "ACTOR_LIST": _actor_list,
    "JOB_START": _job_start,
    "JOB_FINISH": _job_finish,
    "JOB_LIST": _job_list,
    "NODE_LIST": _node_list,
    "FUNCTION_CHUNK": _function_chunk,
    "FUNCTION_PUT": _function_put,
    "FUNCTION_DROP": _function_drop,
    "FUNCTION_GET": _function_get,
    "FUNCTION_EXISTS": _function_exists,
    "KV_PUT": _kv_put,
    "KV_DELETE": _kv_delete,
    "KV_GET": _kv_get,
    "KV_EXISTS": _kv_exists,
    "KV_KEYS": _kv_keys,
    "NAME_CLAIM": _name_claim,
    "NAME_RELEASE": _name_release,
    "NAME_LOOKUP": _name_lookup,
    "NAME_LIST": _name_list,
    "TRANSACT": _transact,
    "GET": _get,
    "RANGE": _range,
}
"""The rule of each command that is about the tables, by its name."""
