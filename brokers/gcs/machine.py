"""The state machine of the GCS: commands of many sessions, in batches, each exactly once.

What    A batch of requests becomes one call of Store.commit, so that it is durable whole or
        not at all; the answers of its writes are part of it. A session numbers its commands, and
        they happen in that order: one that comes too early is refused with the number expected,
        one that comes again gets the answer it had. Reads are answered from the state after the
        commit, and are done again when they are asked again.
Caller  replica.py.
Never   reads a clock; answers before the commit; forgets an answer that was not acknowledged.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zray.errors import GcsError, RemoteProtocolError
from zray.protocol.packing import packb, unpackb

from .commands import Command, Row, apply, check_command
from .rules import Write
from .store import Change, Delete, Entry, Put, Snapshot, Store, Transaction
from .tables import NodeRecord
from .wire import ANSWERS, EXPECTED, REFUSED, SESSION_BYTES, unpack_plain

ANSWERS_LEN_MAX = 8192
"""Answers remembered for one session; further commands wait until some are acknowledged."""

ANSWERS_BYTES_MAX = 16 << 20

_OF_ONE_NODE = ("JOIN", "LEAVE")
"""What a node says of itself alone; its id is the first field."""

_TABLE = "answers"
_SCHEMA = 1
_SCAN_STEP = 500


@dataclass(frozen=True, slots=True)
class Request:
    """Commands of one session in their order, as they came: `packed` has one command each.

    `acknowledged`: every answer to a lower number has arrived. `first` is the number of packed[0].
    `node` is the node it comes from, b"" where nobody but the peer itself says which.
    """

    peer: bytes
    session: bytes
    acknowledged: int
    first: int
    packed: Sequence[bytes]
    node: bytes = b""


@dataclass(slots=True)
class Session:
    """What is remembered of a session.

    `next` is the number of the command it will do next; `answers` those of its writes that were
    not acknowledged; `blobs` where the store keeps them, with the last number in each.
    """

    next: int = 1
    acknowledged: int = 1
    node: bytes = b""
    incarnation: int = 0
    answers: dict[int, list[Any]] = field(default_factory=dict)
    answer_bytes: int = 0
    blobs: dict[bytes, int] = field(default_factory=dict)

    def acknowledge(self, number: int) -> None:
        """Forget the answers to lower numbers; they have arrived."""
        if number <= self.acknowledged:
            return
        self.acknowledged = number
        self.next = max(self.next, number)
        # In order of number, so those to forget are the first.
        for first in list(self.answers):
            if first >= number:
                break
            self.answer_bytes -= _size(self.answers.pop(first))


@dataclass(slots=True)
class Round:
    """What one batch has done: messages to send as (peer, kind, fields), changes, revision."""

    replies: list[tuple[bytes, int, list[Any]]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    revision: int = 0
    commands: int = 0
    repeated: int = 0


def _size(answer: list[Any]) -> int:
    value = answer[1]
    return 64 + (len(value) if isinstance(value, bytes) else 0)


class Overlay:
    """The tables as the commands of a batch have left them, before its commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader = store.reader()
        self._entries: dict[tuple[str, bytes], Entry | None] = {}
        self.revision = store.revision
        self.changes: list[Change] = []

    def close(self) -> None:
        """Let go of what was read."""
        self._reader.close()

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        place = (table, key)
        if place not in self._entries:
            # A rule reads what its writes then replace: the second look costs nothing.
            self._entries[place] = self._reader.get(table, key)
        return self._entries[place]

    def scan(
        self, table: str, prefix: bytes = b"", limit: int | None = None, *, after: bytes = b""
    ) -> Snapshot:
        """Return entries in key order. See store.Store.scan."""
        found: dict[bytes, Entry | None] = dict(
            self._store.scan(table, prefix, after=after).entries
        )
        for (name, key), entry in self._entries.items():
            if name == table and key.startswith(prefix) and key > after:
                found[key] = entry
        rows = sorted((key, entry) for key, entry in found.items() if entry is not None)
        if limit is None or len(rows) <= limit:
            return Snapshot(self.revision, tuple(rows))
        return Snapshot(self.revision, tuple(rows[:limit]), more=True)

    def write(self, writes: Sequence[Write]) -> None:
        """Do the writes of one command; those that change nothing are left out.

        Raises:
            GcsError: it names one key twice; nothing was written.
        """
        places = [(one.table, one.key) for one in writes]
        if len(places) > 1 and len(set(places)) < len(places):
            # Both changes would carry one revision, and a watcher could not order them.
            raise GcsError("a command that writes one key twice is refused: merge the two")
        kept = 0
        for one, place in zip(writes, places, strict=True):
            before = self.get(*place)
            value = one.value if isinstance(one, Put) else None
            if before is None and value is None:
                continue
            if kept % Transaction.OPERATIONS_MAX == 0:
                self.revision += 1
            kept += 1
            revision = self.revision
            created = revision if before is None else before.create_revision
            self._entries[place] = None if value is None else Entry(value, created, revision)
            self.changes.append(Change(revision, one.table, one.key, value, created))


class StateMachine:
    """The sessions, and the tables behind them.

    Args:
        store: its only writer is this machine.

    Raises:
        GcsError: the store is damaged.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sessions: dict[bytes, Session] = {}
        self.alive: dict[bytes, int] = {}
        """Incarnation of each living node."""
        self._is_stale = False
        self._load()

    def _load(self) -> None:
        """Read what is durable; also after a commit that failed, whose batch never was."""
        self._is_stale = True
        self.sessions.clear()
        self.alive.clear()
        for key, entry in self._all(_TABLE):
            schema, acknowledged, node, incarnation, answers = unpackb(entry.value)
            if schema != _SCHEMA:
                raise GcsError(
                    f"answers of schema {schema} cannot be read by this release, which knows "
                    f"{_SCHEMA}; start the release that wrote the store"
                )
            session = self.sessions.setdefault(key[:SESSION_BYTES], Session())
            if incarnation:
                session.node, session.incarnation = node, incarnation
            for number, ok, value in answers:
                session.answers[number] = [ok, value]
                session.answer_bytes += _size([ok, value])
                session.next = number + 1
            session.blobs[key] = session.next - 1
            session.acknowledge(acknowledged)
        for node_id, entry in self._all("nodes"):
            node_record = NodeRecord.unpack(entry.value)
            if node_record.state == "alive":
                self.alive[node_id] = node_record.epoch
        self._is_stale = False

    def _all(self, table: str) -> list[tuple[bytes, Entry]]:
        rows: list[tuple[bytes, Entry]] = []
        page = self._store.scan(table, limit=_SCAN_STEP)
        rows += page.entries
        while page.more:
            page = self._store.scan(table, limit=_SCAN_STEP, after=rows[-1][0])
            rows += page.entries
        return rows

    # --------------------------------------------------------------------------------- one batch

    def run(self, requests: Sequence[Request], internal: Sequence[Command], now: float) -> Round:
        """Do a batch in one commit, and return what to tell whom.

        Args:
            requests: in the order in which they came.
            internal: the replica's own commands, done first.
            now: wall-clock time of the batch, in seconds.

        Raises:
            GcsError: the store could not commit; nothing of the batch has happened.
        """
        if self._is_stale:
            self._load()
        overlay = Overlay(self._store)
        batch = _Batch(self, overlay, now)
        try:
            with contextlib.closing(overlay):
                for command in internal:
                    batch.internal(command)
                for request in requests:
                    batch.take(request)
                batch.remember()
            self._store.commit(overlay.changes)
        except BaseException:
            self._is_stale = True
            # A store that can't be written may not be readable either; the next batch tries again.
            with contextlib.suppress(GcsError):
                self._load()
            raise
        batch.read(self._store)
        batch.round.changes = overlay.changes
        batch.round.revision = overlay.revision
        return batch.round

    def dead_nodes(self) -> list[bytes]:
        """Return the nodes whose lives have ended, as far as they are remembered."""
        return [node for node, _entry in self._all("nodes") if node not in self.alive]

    def is_fenced(self, session: Session) -> bool:
        """Whether the life of the node that this session speaks for has ended."""
        return bool(session.node) and self.alive.get(session.node) != session.incarnation

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        for name, session in self.sessions.items():
            numbers = list(session.answers)
            assert numbers == sorted(numbers), f"{name.hex()}: answers out of order"
            assert all(session.acknowledged <= number < session.next for number in numbers)
            assert session.answer_bytes == sum(map(_size, session.answers.values()))
            assert session.acknowledged <= session.next
            assert session.blobs, f"{name.hex()}: a session without a trace would be forgotten"
            stored = dict(self._store.scan(_TABLE, name).entries)
            assert stored.keys() == session.blobs.keys(), f"{name.hex()}: blobs differ"
            durable = {row[0] for entry in stored.values() for row in unpackb(entry.value)[4]}
            assert session.answers.keys() <= durable, f"{name.hex()}: an answer only in memory"
        living = {
            key: record.epoch
            for key, entry in self._store.scan("nodes").entries
            if (record := NodeRecord.unpack(entry.value)).state == "alive"
        }
        assert living == self.alive


class _Batch:
    """One batch in the making: mutates sessions, which are loaded again if its commit fails."""

    def __init__(self, machine: StateMachine, overlay: Overlay, now: float) -> None:
        self._machine = machine
        self.overlay = overlay
        self._now = now
        self.round = Round()
        self._new: dict[bytes, list[list[Any]]] = {}
        self._reads: list[tuple[list[Any], Command]] = []

    def internal(self, command: Command) -> None:
        """Do a command of the replica's own."""
        result, writes = apply(self.overlay, command, self._now)
        self.overlay.write(writes)
        self._note(command, result, None)
        if command.name == "SESSION_END":
            for name in command.fields[0]:
                self._machine.sessions.pop(name, None)

    def take(self, request: Request) -> None:
        """Do what is new of a request, and answer all of it that is not acknowledged."""
        sessions = self._machine.sessions
        session = sessions.get(request.session)
        if session is None:
            if request.acknowledged <= 1 and request.first > 1:
                # Its beginning was lost on the way: the session has had no answer yet.
                self._reply(request, EXPECTED, [1])
                return
            if not _opens(request):
                self._reply(request, REFUSED, ["lost", "the GCS does not know this session"])
                return
            session = sessions[request.session] = Session()
        session.acknowledge(min(request.acknowledged, request.first + len(request.packed)))
        if request.first > session.next:
            self._reply(request, EXPECTED, [session.next])
            return
        start = max(request.first, session.acknowledged)
        answers: list[list[Any]] = []
        for number, packed in enumerate(request.packed[start - request.first :], start):
            full = (
                len(session.answers) >= ANSWERS_LEN_MAX or session.answer_bytes >= ANSWERS_BYTES_MAX
            )
            if full and number >= session.next:
                break
            answers.append(self._answer(request, session, number, packed))
        if answers:
            self._reply(request, ANSWERS, [start, answers])

    def _reply(self, request: Request, kind: int, fields: list[Any]) -> None:
        self.round.replies.append((request.peer, kind, [request.session, *fields]))

    def _answer(self, request: Request, session: Session, number: int, packed: bytes) -> list[Any]:
        """Return the answer to one command, which is filled after the commit if it reads."""
        name = request.session
        self.round.commands += 1
        remembered = session.answers.get(number)
        if remembered is not None:
            self.round.repeated += 1
            return remembered
        repeated = number < session.next
        session.next = max(session.next, number + 1)
        try:
            command, row = _command(packed)
        except RemoteProtocolError as error:
            # The number is used up: a stream that stopped here could never go on.
            return self._keep(name, session, number, [False, ["malformed", str(error)]])
        if row.effect == "read":
            answer: list[Any] = [True, None]
            if self._machine.is_fenced(session):
                return _fenced(session)
            self._reads.append((answer, command))
            return answer
        if repeated:
            return [False, ["malformed", f"number {number} was a read, and is now {row.name}"]]
        if self._machine.is_fenced(session):
            return self._keep(name, session, number, _fenced(session))
        if request.node and command.name in _OF_ONE_NODE and command.fields[0] != request.node:
            return self._keep(name, session, number, _not_its_own(command, request.node))
        return self._keep(name, session, number, self._write(session, command))

    def _keep(self, name: bytes, session: Session, number: int, answer: list[Any]) -> list[Any]:
        if number not in session.answers and number == session.next - 1:
            session.answers[number] = answer
            session.answer_bytes += _size(answer)
            self._new.setdefault(name, []).append([number, *answer])
        return answer

    def _write(self, session: Session, command: Command) -> list[Any]:
        try:
            result, writes = apply(self.overlay, command, self._now)
            self.overlay.write(writes)
        except Exception as error:
            return _failed(error)
        self._note(command, result, session)
        return [True, result]

    def _note(self, command: Command, result: Any, session: Session | None) -> None:
        """Follow which nodes are alive, and whose life a session speaks for."""
        alive = self._machine.alive
        if command.name == "JOIN" and session is not None:
            session.node, session.incarnation = command.fields[0], result
            alive[session.node] = result
        elif command.name in ("LEAVE", "NODE_DIED") and result:
            alive.pop(command.fields[0], None)

    def remember(self) -> None:
        """Add the new answers to the batch, so that they are as durable as what they tell of."""
        writes: list[Write] = []
        for name, new in self._new.items():
            session = self._machine.sessions.get(name)
            if session is None:
                continue
            for key, last in list(session.blobs.items()):
                if last < session.acknowledged:
                    writes.append(Delete(_TABLE, key))
                    del session.blobs[key]
            key = name + new[0][0].to_bytes(8, "big")
            fields = (_SCHEMA, session.acknowledged, session.node, session.incarnation, new)
            writes.append(Put(_TABLE, key, packb(fields)))
            session.blobs[key] = new[-1][0]
        self.overlay.write(writes)

    def read(self, store: Store) -> None:
        """Fill in what the reads find, now that the writes before them are committed."""
        for answer, command in self._reads:
            try:
                answer[1], _ = apply(store, command, self._now)
            except Exception as error:
                answer[:] = _failed(error)


def _opens(request: Request) -> bool:
    """Whether a request may begin a session that is not known."""
    if request.first != 1 or request.acknowledged > 1 or not request.packed:
        return False
    try:
        return _command(request.packed[0])[0].name == "SESSION_OPEN"
    except RemoteProtocolError:
        return False


def _command(packed: bytes) -> tuple[Command, Row]:
    found = unpack_plain(packed)
    if type(found) is not list or len(found) != 2 or type(found[1]) is not list:
        raise RemoteProtocolError("a command is an array of its name and its fields")
    name, fields = found
    if type(name) is not str:
        raise RemoteProtocolError("a command's name is a text")
    command = Command(name, tuple(fields))
    row = check_command(command)
    if row.effect not in ("write", "read"):
        raise RemoteProtocolError(f"{name} is no command of a session")
    return command, row


def _fenced(session: Session) -> list[Any]:
    text = (
        f"incarnation {session.incarnation} of node {session.node.hex()} was declared dead; end "
        "its actors and join again"
    )
    return [False, ["fenced", text]]


def _not_its_own(command: Command, node: bytes) -> list[Any]:
    text = f"{command.name} of node {command.fields[0].hex()} is refused to node {node.hex()}"
    return [False, ["refused", text]]


def _failed(error: Exception) -> list[Any]:
    if isinstance(error, GcsError):
        return [False, ["refused", str(error)]]
    # One command that meets a bug must not end the GCS: it would be sent again to the next one.
    traceback.print_exception(error)
    return [False, ["internal", f"{type(error).__name__}: {error}"]]
