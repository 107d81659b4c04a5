"""The commands of the GCS, in one table.

What    A row has a command's name, its fields with a check of each, its rule (rules.py), and what
        it gives.
            write     changes tables; numbered in its session, happens exactly once
            read      changes nothing; numbered, happens at least once
            soft      about the connection: not numbered, never repeated by the GCS
            internal  made by the replica itself; refused from outside
Caller  machine.py runs rules; client.py checks what it is about to send.
Never   reads a clock, draws a random number, keeps anything between two commands.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from zray.errors import GcsError, RemoteProtocolError
from zray.protocol.ids import OBJECT_ID_BYTES, PROCESS_ID_BYTES
from zray.protocol.packing import packb
from zray.protocol.roles import Role

from .actor_table import ActorRecord
from .loads import ROW_BYTES_MAX
from .rules import CHUNK_BYTES_MAX, FUNCTION_CHUNKS_MAX, RULES, Applied, Rule, State
from .store import Entry, Transaction
from .tables import JobRecord
from .wire import SESSION_BYTES, Check

OPEN_TABLES = frozenset(("kv", "groups", "ledgers", "checkpoints", "cluster"))
"""Tables that TRANSACT may write; the typed ones have commands that keep their rules."""

TYPED_TABLES = frozenset(("nodes", "jobs", "actors", "names", "functions"))
PAGE_LEN_MAX = 1000

Effect = Literal["write", "read", "soft", "internal"]


class Command(NamedTuple):
    """One command: the name of its row, and its fields."""

    name: str
    fields: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table of commands."""

    name: str
    effect: Effect
    fields: Mapping[str, Check]
    rule: Rule | None
    text: str
    checks: tuple[Check, ...] = field(init=False)
    """Those of the fields, in their order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "checks", tuple(self.fields.values()))


def check_command(command: Command) -> Row:
    """Return the row of a command whose fields are what they must be.

    Raises:
        RemoteProtocolError: there is no such command, or a field is malformed.
    """
    name, fields = command
    row = COMMANDS.get(name)
    if row is None:
        raise RemoteProtocolError(f"the GCS has no command {name!r}")
    checks = row.checks
    if len(fields) != len(checks):
        raise RemoteProtocolError(
            f"{name} takes the fields {', '.join(row.fields) or 'none'}; {len(fields)} were given"
        )
    for place, value in enumerate(fields):
        if not checks[place](value):
            wrong = tuple(row.fields)[place]
            raise RemoteProtocolError(f"{name} with a malformed field {wrong!r}")
    return row


def apply(state: State, command: Command, now: float) -> Applied:
    """Return (result, writes) of a command that was checked.

    Args:
        state: the tables as the commands before this one have left them.
        command: of a row with a rule.
        now: wall-clock time that came with the command, in seconds.

    Raises:
        GcsError: the command is refused, and writes nothing.
    """
    rule = COMMANDS[command.name].rule
    if rule is None:
        raise GcsError(f"{command.name} is no command on the tables")
    return rule(state, command.fields, now)


# ---------------------------------------------------------------------------------------- checks


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _text(value: Any) -> bool:
    return type(value) is str


def _flag(value: Any) -> bool:
    return type(value) is bool


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _integer(value: Any) -> bool:
    return type(value) is int and -(1 << 62) < value < 1 << 62


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _process(value: Any) -> bool:
    return type(value) is bytes and len(value) == PROCESS_ID_BYTES


def _object(value: Any) -> bool:
    return type(value) is bytes and len(value) == OBJECT_ID_BYTES


def _short(value: Any) -> bool:
    """A key or the beginning of one, as short as tables allow."""
    return type(value) is bytes and len(value) <= Entry.KEY_BYTES_MAX


def _key(value: Any) -> bool:
    return _short(value) and len(value) > 0


def _hash(value: Any) -> bool:
    return type(value) is bytes and len(value) == 16


def _chunk(value: Any) -> bool:
    return type(value) is bytes and len(value) <= CHUNK_BYTES_MAX


def _load(value: Any) -> bool:
    return type(value) is bytes and len(value) <= ROW_BYTES_MAX


def _page(value: Any) -> bool:
    return type(value) is int and 0 < value <= PAGE_LEN_MAX


def _readable(value: Any) -> bool:
    return type(value) is str and (value in OPEN_TABLES or value in TYPED_TABLES)


def _writable(value: Any) -> bool:
    return type(value) is str and value in OPEN_TABLES


def _watchable(value: Any) -> bool:
    return _readable(value) or value == "load"


def _sessions(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is bytes and len(item) == SESSION_BYTES for item in value
    )


def _hashes(value: Any) -> bool:
    return type(value) is list and all(map(_hash, value))


def _processes(value: Any) -> bool:
    return type(value) is list and all(map(_process, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _dict_of(key: Check, value: Check) -> Check:
    return lambda found: (
        type(found) is dict and all(key(name) and value(entry) for name, entry in found.items())
    )


def _plain(value: Any) -> bool:
    """Plain msgpack types, names of strings, small: what an operator wants to see."""
    return type(value) is dict and all(map(_text, value)) and len(packb(value)) <= 64 << 10


def _some_of(checks: Mapping[str, Check], required: frozenset[str]) -> Check:
    return lambda found: (
        type(found) is dict
        and required <= found.keys()
        and all(name in checks and checks[name](value) for name, value in found.items())
    )


def _comparison(row: Any) -> bool:
    return (
        type(row) is list
        and len(row) == 4
        and _readable(row[0])
        and _key(row[1])
        and row[2] in ("exists", "missing", "value", "revision")
        and (row[3] is None or _bytes(row[3]) or _count(row[3]))
    )


def _operation(row: Any) -> bool:
    if type(row) is not list or len(row) < 3 or not _key(row[2]):
        return False
    if row[0] == "put":
        return len(row) == 4 and _writable(row[1]) and _bytes(row[3])
    if row[0] == "delete":
        return len(row) == 3 and _writable(row[1])
    return row[0] == "get" and len(row) == 3 and _readable(row[1])


def _list_of(check: Check) -> Check:
    return lambda value: (
        type(value) is list and len(value) <= Transaction.OPERATIONS_MAX and all(map(check, value))
    )


_ACTOR_CHANGES: dict[str, Check] = {
    "state": lambda value: value in ActorRecord.STATES,
    "node_id": _bytes,
    "worker_id": _bytes,
    "worker_pid": _count,
    "incarnation": _count,
    "restarts_left": _integer,
    "detached": _flag,
    "options": _plain,
    "death_cause": _text,
}
_ACTOR_FIELDS: dict[str, Check] = {
    **_ACTOR_CHANGES,
    "actor_id": _object,
    "class_id": _bytes,
    "job_id": _bytes,
    "name": _text,
    "namespace": _text,
    "class_name": _text,
}
_JOB_FIELDS: dict[str, Check] = {
    "job_id": _process,
    "driver_id": _bytes,
    "driver_pid": _count,
    "entrypoint": _text,
    "namespace": _text,
    "started_at": _number,
}

# ------------------------------------------------------------------------------------- the table

_NAMED: dict[str, Check] = {"namespace": _text, "name": _text}
_HELD: dict[str, Check] = {**_NAMED, "holder": _object}
_OWN: dict[str, Check] = {"node_id": _process, "incarnation": _count}
_PAGED: dict[str, Check] = {"limit": _page, "after": _short}
_PLACE: dict[str, Check] = {"namespace": _text, "key": _short}
_HASH: dict[str, Check] = {"hash": _hash}
_BEAT: dict[str, Check] = {"stamp": _number, "silent_s": _number, "load": _or_none(_load)}
_RANGE: dict[str, Check] = {"table": _watchable, "prefix": _short}
_NODE: dict[str, Check] = {
    "node_id": _process,
    "addresses": _dict_of(_text, _text),
    "resources": _dict_of(_text, _number),
    "labels": _dict_of(_text, _text),
    "host": _text,
    "pid": _count,
    "role": lambda value: value in tuple(Role),
}
_ACTOR: dict[str, Check] = {"record": _some_of(_ACTOR_FIELDS, frozenset(("actor_id", "class_id")))}
_CHANGE: dict[str, Check] = {
    "actor_id": _object,
    "changes": _some_of(_ACTOR_CHANGES, frozenset()),
}
_END: dict[str, Check] = {"actor_id": _object, "keeps_name": _flag}
_ACTORS: dict[str, Check] = {"state": _or_none(_text), "job_id": _or_none(_bytes), **_PAGED}
_JOB: dict[str, Check] = {"record": _some_of(_JOB_FIELDS, frozenset(("job_id",)))}
_JOB_END: dict[str, Check] = {
    "job_id": _process,
    "state": lambda value: value in JobRecord.STATES[1:],
    "ended_at": _number,
    "message": _text,
}
_CHUNK: dict[str, Check] = {**_HASH, "index": _count, "chunk": _chunk}
_FUNCTION: dict[str, Check] = {**_HASH, "code_bytes": _count, "chunk": _chunk}
_CHUNK_OF: dict[str, Check] = {
    **_HASH,
    "index": lambda value: _count(value) and value < FUNCTION_CHUNKS_MAX,
}
_TRANSACTION: dict[str, Check] = {
    "compare": _list_of(_comparison),
    "success": _list_of(_operation),
    "failure": _list_of(_operation),
}

_ROWS: tuple[tuple[str, Effect, Mapping[str, Check], str], ...] = (
    ("SESSION_OPEN", "write", {"client": _text}, "begins a session: its command 1"),
    ("NOOP", "write", {}, "takes the place of a command that was given up"),
    ("REFUSED", "write", {"why": _text}, "takes the place of one that its sender may not ask for"),
    ("JOIN", "write", _NODE, "a node is there; its new incarnation, which binds the session"),
    ("LEAVE", "write", _OWN, "a node ends in order; whether it was alive"),
    ("NODE_DIED", "internal", {**_OWN, "cause": _text}, "its lease or its connection has ended"),
    ("NAMES_FREE", "internal", {"nodes": _processes}, "of dead actors of dead nodes; how many"),
    ("PRUNE", "internal", {}, "forgets the longest ended nodes, jobs and actors"),
    ("SESSION_END", "internal", {"sessions": _sessions}, "they were silent for too long"),
    ("ACTOR_REGISTER", "write", _ACTOR, "None, or who has its name: an id, or b'': for a moment"),
    ("ACTOR_UPDATE", "write", _CHANGE, "the state; death releases the name"),
    ("ACTOR_END", "write", _END, "whether it was alive; its name can be kept for NAME_RELEASE"),
    ("ACTOR_LOOKUP", "read", {"actor_id": _object}, "a packed record or None"),
    ("ACTOR_LIST", "read", _ACTORS, "[packed records, where to go on or None]"),
    ("JOB_START", "write", _JOB, "whether the job is new"),
    ("JOB_FINISH", "write", _JOB_END, "the state; the first end stands"),
    ("JOB_LIST", "read", _PAGED, "[packed records, where to go on or None]"),
    ("NODE_LIST", "read", _PAGED, "[packed records, where to go on or None]"),
    ("FUNCTION_CHUNK", "write", _CHUNK, "a chunk after the first; whether it is new"),
    ("FUNCTION_PUT", "write", _FUNCTION, "the first chunk, sent last; whether it is new"),
    ("FUNCTION_DROP", "internal", {"hashes": _hashes}, "chunks of what was never put"),
    ("FUNCTION_GET", "read", _CHUNK_OF, "[code_bytes, chunk] or None"),
    ("FUNCTION_EXISTS", "read", _HASH, "whether it is there"),
    ("KV_PUT", "write", {**_PLACE, "value": _bytes, "overwrite": _flag}, "whether it is new"),
    ("KV_DELETE", "write", _PLACE, "whether it was there"),
    ("KV_GET", "read", _PLACE, "the value or None"),
    ("KV_EXISTS", "read", _PLACE, "whether the key is there"),
    ("KV_KEYS", "read", {"namespace": _text, "prefix": _short, **_PAGED}, "[keys, go on or None]"),
    ("NAME_CLAIM", "write", _HELD, "None, or who holds the name"),
    ("NAME_RELEASE", "write", _HELD, "whether it was held so"),
    ("NAME_LOOKUP", "read", _NAMED, "the holder's id or None"),
    ("NAME_LIST", "read", {"namespace": _or_none(_text), **_PAGED}, "[rows, go on or None]"),
    ("TRANSACT", "write", _TRANSACTION, "[whether all comparisons held, what each get found]"),
    ("GET", "read", {"table": _readable, "key": _key}, "[value, created, modified] or None"),
    ("RANGE", "read", {"table": _readable, "prefix": _short, **_PAGED}, "[revision, rows, more]"),
    ("RENEW", "soft", _BEAT, "a beat: renews the lease of who has heard us lately"),
    ("LOAD", "soft", {"load": _load}, "the node's row of the load table, as it is now"),
    ("WATCH", "soft", {**_RANGE, "from_revision": _count}, "replaces a watch of the same range"),
    ("UNWATCH", "soft", _RANGE, "no more of these changes"),
)

COMMANDS: dict[str, Row] = {
    name: Row(name, effect, fields, RULES.get(name), text) for name, effect, fields, text in _ROWS
}
