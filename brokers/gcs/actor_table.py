"""Actors in the GCS: the record of each, and the claim of each named one to its name.

What    A name belongs to at most one living actor: it is claimed in the transaction that
        registers the actor and released in the one that makes it dead.
Caller  the node process, through tables.Tables.
Never   decides when an actor dies or restarts; keeps a copy of what is in the store.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from zray.errors import GcsError

from .records import Record, RecordTable
from .store import Compare, Delete, Entry, Get, Put, Store, Transaction


@dataclass(frozen=True, slots=True)
class ActorRecord(Record):
    """What the GCS knows of one actor.

    `state` is one of STATES, and "dead" is for ever. `incarnation` counts the actor's starts, and
    `restarts_left` is -1 for no bound. `options` is what an operator wants to see, as plain msgpack
    types. `death_cause` is a sentence.
    """

    STATES: ClassVar[tuple[str, ...]] = ("pending", "alive", "restarting", "dead")

    actor_id: bytes
    class_id: bytes
    job_id: bytes = b""
    name: str = ""
    namespace: str = ""
    class_name: str = ""
    state: str = "pending"
    node_id: bytes = b""
    worker_id: bytes = b""
    worker_pid: int = 0
    incarnation: int = 0
    restarts_left: int = 0
    detached: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    death_cause: str = ""


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Why an actor was not registered: `actor_id` lives under this name."""

    name: str
    namespace: str
    actor_id: bytes


class ActorTable(RecordTable):
    """Actors by id, and the claim of each living named one to its name."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "actors")

    def register(self, record: ActorRecord) -> NameTaken | None:
        """Store a new actor and claim its name in one step; None means done.

        Registering the same actor again changes nothing, so that a request may be repeated.
        """
        return self.register_many([record])[0]

    def register_many(self, records: Sequence[ActorRecord]) -> list[NameTaken | None]:
        """Register actors in order with the cost of one commit."""
        results = self._store.transact_many([self._registration(record) for record in records])
        answers: list[NameTaken | None] = []
        for record, result in zip(records, results, strict=True):
            claim = None
            if not result.succeeded and result.previous[0] is None and record.name:
                claim = result.previous[1]
            taken = None if claim is None else NameTaken(record.name, record.namespace, claim.value)
            answers.append(taken)
        return answers

    def _registration(self, record: ActorRecord) -> Transaction:
        actor_id = record.actor_id
        compare = [Compare("actors", actor_id, "missing")]
        success: list[Put | Delete | Get] = [Put("actors", actor_id, _checked(record).pack())]
        failure: list[Put | Delete | Get] = [Get("actors", actor_id)]
        if record.name:
            key = _name_key(record.namespace, record.name)
            compare.append(Compare("names", key, "missing"))
            success.append(Put("names", key, actor_id))
            failure.append(Get("names", key))
        return Transaction(tuple(compare), tuple(success), tuple(failure))

    def update(self, actor_id: bytes, **changes: Any) -> ActorRecord:
        """Change fields of a living actor and return the new record.

        With state="dead" its name is released in the same step. Updating a dead actor with
        state="dead" again changes nothing: the first cause of death stands.

        Raises:
            GcsError: there is no such actor, it is dead, or a change names its id or name.
        """
        if not changes.keys().isdisjoint(("actor_id", "name", "namespace")):
            raise GcsError("an actor's id and name never change; register another actor")
        for _ in range(self._ATTEMPTS_MAX):
            found = self._read(actor_id, ActorRecord)
            if found is None:
                raise GcsError(f"actor {actor_id.hex()} is not registered; register it first")
            record, entry = found
            if record.state == "dead":
                if changes.get("state") == "dead":
                    return record
                raise GcsError(f"actor {actor_id.hex()} is dead and cannot change any more")
            updated = _checked(replace(record, **changes))
            if self._store.transact(self._update(entry, updated)).succeeded:
                return updated
        raise self._too_many_races(actor_id)

    def _update(self, entry: Entry, record: ActorRecord) -> Transaction:
        operations: list[Put | Delete] = [Put("actors", record.actor_id, record.pack())]
        if record.state == "dead" and record.name:
            operations.append(Delete("names", _name_key(record.namespace, record.name)))
        return Transaction((self._unchanged(record.actor_id, entry),), tuple(operations))

    def get(self, actor_id: bytes) -> ActorRecord | None:
        """Return the actor, dead or alive, or None."""
        found = self._read(actor_id, ActorRecord)
        return found and found[0]

    def get_by_name(self, name: str, namespace: str = "") -> ActorRecord | None:
        """Return the living actor of this name, or None."""
        claim = self._store.get("names", _name_key(namespace, name))
        return None if claim is None else self.get(claim.value)

    def select(self, *, state: str | None = None, job_id: bytes | None = None) -> list[ActorRecord]:
        """Return the actors, ordered by id, that fit what is given."""
        return [
            record
            for record in self._records(ActorRecord)
            if state in (None, record.state) and job_id in (None, record.job_id)
        ]

    def list_names(self, namespace: str | None = None) -> list[tuple[str, str, bytes]]:
        """Return (namespace, name, actor id) of living actors, of one namespace or all."""
        prefix = b"" if namespace is None else _name_key(namespace, "")
        names: list[tuple[str, str, bytes]] = []
        for key, entry in self._store.scan("names", prefix).entries:
            space, _, name = key.decode().partition("\0")
            names.append((space, name, entry.value))
        return names

    def prune(self, dead_len_max: int) -> int:
        """Forget the longest dead actors beyond `dead_len_max`; return how many."""
        dead = [
            (entry.modify_revision, key)
            for key, entry in self._store.scan("actors").entries
            if ActorRecord.unpack(entry.value).state == "dead"
        ]
        surplus = sorted(dead)[: max(0, len(dead) - dead_len_max)]
        self._store.transact_many([Transaction((), (Delete("actors", key),)) for _, key in surplus])
        return len(surplus)


def _checked(record: ActorRecord) -> ActorRecord:
    """Refuse a record in a state that no reader knows."""
    if record.state not in ActorRecord.STATES:
        raise GcsError(f"actor state {record.state!r} is not one of {ActorRecord.STATES}")
    return record


def _name_key(namespace: str, name: str) -> bytes:
    """Return the key of a name; the zero byte keeps ("a", "bc") apart from ("ab", "c")."""
    if "\0" in namespace or "\0" in name:
        raise GcsError("a name or namespace with a zero character is refused; leave it out")
    return namespace.encode() + b"\0" + name.encode()
