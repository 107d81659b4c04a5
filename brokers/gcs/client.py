"""A session with the GCS, as a node's poll loop drives it.

What    Numbers commands, keeps them until they are answered, and sends them again when the answer
        or the GCS is late or new: each happens exactly once and in the order of the asking.
        Answers are taken in that order too, so what is unanswered is one run of numbers.
        Beats keep the node's lease; watches follow ranges of the tables without a gap.
Caller  a node: received() for each frame, flush() at the end of a wake, tick() ten times a second.
Never   waits, opens a socket, reads a clock; keeps more than its bounds; drops an ask silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zray.errors import (
    GcsError,
    GcsFencedError,
    GcsSessionLostError,
    GcsUnavailableError,
    LocalProtocolError,
    RemoteProtocolError,
)
from zray.protocol.packing import packb

from .client_ranges import RANGES_MAX, OnRange, WatchedRanges
from .commands import Command, check_command
from .rules import CHUNK_BYTES_MAX, FUNCTION_CHUNKS_MAX
from .tables import code_hash
from .wire import (
    ANSWERS,
    COMMANDS,
    COMPACTED,
    EVENTS,
    EXPECTED,
    LOADS,
    NODE_LEASE_S,
    REFUSED,
    RENEWED,
    SOFT,
    UNAVAILABLE,
    pack,
    unpack,
)

ASK_TIMEOUT_S = 30.0
BEAT_S = 0.25
RESEND_S = 0.5
RESEND_S_MAX = 4.0
RESEND_BYTES_PER_S = 16 << 20
"""What waits for its answer is given so much longer: sent again it would only be slower."""

QUEUE_LEN_MAX = 16_384
QUEUE_BYTES_MAX = 256 << 20
WINDOW_LEN_MAX = 4_096
WINDOW_BYTES_MAX = 8 << 20
MESSAGE_BYTES_MAX = 64 << 10
"""Of several commands. Small, so that the GCS does the first ones while the others are written."""


Done = Callable[[Any, GcsError | None], None]
OnLoads = Callable[[Mapping[bytes, bytes]], None]

_EXPIRE_S = 0.1
_NOOP = packb(("NOOP", ()))


@dataclass(slots=True)
class _Asked:
    packed: bytes
    done: Done | None
    deadline: float
    name: str


class GcsSession:
    """One process's session with the GCS.

    Args:
        send: takes one frame for the GCS; False where it can't just now.
        new_id: returns 16 random bytes, for the session and each that follows it.
        now: monotonic time in seconds, as in every method.
        client: who this is, in words, for the GCS's records.
        on_lost: called with GcsFencedError (this node was declared dead: end its actors, then
            join again) or GcsSessionLostError (the GCS has lost its files, or this process was
            silent for an hour: join again). A new session has begun already, every unanswered
            ask has failed with the same error, and all watches read anew.
    """

    def __init__(
        self,
        *,
        send: Callable[[bytes], bool],
        new_id: Callable[[], bytes],
        now: float,
        client: str = "",
        on_lost: Callable[[GcsError], None] | None = None,
    ) -> None:
        self._send = send
        self._new_id = new_id
        self._client = client
        self._on_lost = on_lost
        self._now = now
        self._asked: dict[int, _Asked] = {}
        self._queue_bytes = 0
        self._boot = b""
        self._reason = "it has not answered yet"
        self._ranges = WatchedRanges(self._ask_for_ranges, self._set_watch)
        self._on_loads: OnLoads | None = None
        self._loads_number = -1
        self._watched_at = now
        self._load: bytes | None = None
        self._next_beat = now
        self._next_expiry = now
        self.heard_at = now
        """When the GCS was last heard, in monotonic seconds."""
        self.resent = 0
        """How often unanswered commands were sent again."""
        self._begin()

    def _begin(self) -> None:
        """Start a session; its first command makes it known."""
        self.session = self._new_id()
        self.incarnation = 0
        self.lease_expires_at = 0.0
        self._asked.clear()
        self._queue_bytes = 0
        self._first = self._unsent = self._next = 1
        self._expected, self._expected_at = 0, self._now
        self._progress_at = self._now
        self._resend_s = RESEND_S
        self._ask(Command("SESSION_OPEN", (self._client,)), None, float("inf"))

    # ------------------------------------------------------------------------------------ asking

    def ask(self, command: Command, done: Done, *, timeout_s: float = ASK_TIMEOUT_S) -> None:
        """Send a command; `done(result, error)` is called once, never from inside ask().

        It leaves with the next flush() or tick(). Commands happen in the order of their asking;
        a read sees all writes that were asked for before it.

        Args:
            command: a row of commands.py that writes or reads.
            done: gets (result, None) or (None, error). GcsError: refused, nothing was written.
                GcsUnavailableError: no answer in time, it may or may not happen still.
                GcsFencedError, GcsSessionLostError: see `on_lost`.
            timeout_s: seconds until the answer has to be there.

        Raises:
            LocalProtocolError: the command is malformed, or none of a session's.
            GcsUnavailableError: too much is unanswered already; it was not sent.
        """
        try:
            row = check_command(command)
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
        if row.effect not in ("write", "read"):
            raise LocalProtocolError(f"{command.name} is no command of a session")
        if len(self._asked) >= QUEUE_LEN_MAX or self._queue_bytes >= QUEUE_BYTES_MAX:
            raise GcsUnavailableError(
                f"{len(self._asked)} commands ({self._queue_bytes} bytes) wait for the GCS "
                f"already ({self._reason}); nothing was sent, try again when it answers"
            )
        self._ask(command, done, self._now + timeout_s)

    def _ask(self, command: Command, done: Done | None, deadline: float) -> None:
        asked = _Asked(packb((command.name, command.fields)), done, deadline, command.name)
        if not self._asked:
            self._progress_at = self._now
        self._asked[self._next] = asked
        self._queue_bytes += len(asked.packed)
        self._next += 1

    def _ask_for_ranges(self, command: Command, done: Done) -> None:
        """Ask on behalf of a watch: it has no deadline, since it has nobody to tell of it."""
        self._ask(command, done, float("inf"))

    @property
    def unanswered(self) -> int:
        """How many commands wait for their answers."""
        return len(self._asked)

    # ------------------------------------------------------------------------------- conveniences

    def join(
        self,
        node_id: bytes,
        done: Done,
        *,
        addresses: Mapping[str, str],
        resources: Mapping[str, float],
        labels: Mapping[str, str],
        host: str = "",
        pid: int = 0,
        role: str = "node",
    ) -> None:
        """Make this session that of a node; `done` gets its new incarnation.

        From then on beats keep its lease, whose end is `lease_expires_at`, counted from the moment
        at which the last answered beat was sent: the GCS declares the node dead later than that.

        Raises:
            GcsUnavailableError: as ask() does.
        """
        asked_at = self._now

        def joined(result: Any, error: GcsError | None) -> None:
            if error is None:
                self.incarnation = result
                self.lease_expires_at = max(self.lease_expires_at, asked_at + NODE_LEASE_S)
                self._next_beat = self._now
            done(result, error)

        fields = (node_id, dict(addresses), dict(resources), dict(labels), host, pid, role)
        self.ask(Command("JOIN", fields), joined)

    def set_load(self, row: bytes) -> None:
        """Report this node's row of the load table; beats repeat it, where this is lost."""
        self._load = row
        if self.incarnation:
            self._send_soft(Command("LOAD", (row,)))

    def put_function(self, code: bytes, done: Done, *, timeout_s: float = ASK_TIMEOUT_S) -> bytes:
        """Store code in chunks and return its hash; `done` gets whether it was new.

        Raises:
            LocalProtocolError: it is larger than 100 MiB.
            GcsUnavailableError: as ask() does; nothing can be found under the hash.
        """
        name = code_hash(code)
        size = CHUNK_BYTES_MAX
        chunks = [code[at : at + size] for at in range(0, len(code), size)] or [b""]
        if len(chunks) > FUNCTION_CHUNKS_MAX:
            raise LocalProtocolError(
                f"a function of {len(code)} bytes is refused: the bound is "
                f"{FUNCTION_CHUNKS_MAX * size}; put the data into the object store, pass its ref"
            )
        for index, chunk in enumerate(chunks[1:], 1):
            # A chunk that is refused is missing at the end, which tells `done`.
            command = Command("FUNCTION_CHUNK", (name, index, chunk))
            self.ask(command, lambda _result, _error: None, timeout_s=timeout_s)
        last = Command("FUNCTION_PUT", (name, len(code), chunks[0]))
        self.ask(last, done, timeout_s=timeout_s)
        return name

    def get_function(self, name: bytes, done: Done, *, timeout_s: float = ASK_TIMEOUT_S) -> None:
        """Read code by its hash; `done` gets the bytes, or None where the hash is not known.

        Raises:
            GcsUnavailableError: as ask() does.
        """
        parts: list[bytes] = []
        deadline = self._now + timeout_s

        def ask(index: int) -> None:
            command = Command("FUNCTION_GET", (name, index))
            self.ask(command, took, timeout_s=max(0.0, deadline - self._now))

        def took(result: Any, error: GcsError | None) -> None:
            if error is not None or result is None:
                done(None, error)
                return
            code_bytes, chunk = result
            parts.append(chunk)
            if len(parts) * CHUNK_BYTES_MAX < code_bytes:
                try:
                    ask(len(parts))
                except GcsUnavailableError as full:
                    done(None, full)
                return
            code = b"".join(parts)
            if code_hash(code) != name:
                done(None, GcsError(f"code {name.hex()} is damaged in the GCS; put it again"))
                return
            done(code, None)

        ask(0)

    # ---------------------------------------------------------------------------------- watching

    def watch(self, table: str, prefix: bytes, on_range: OnRange) -> None:
        """Follow a range: first what is in it, then each change once, in order, without a gap.

        After a gap that can't be filled `on_range` gets the whole range again (`reset`).

        Raises:
            LocalProtocolError: there is no such table, or there are RANGES_MAX watches already.
        """
        self._check_soft(Command("WATCH", (table, prefix, 0)))
        if self._ranges.is_full:
            raise LocalProtocolError(
                f"a watch beyond {RANGES_MAX} of one session is refused: watch a shorter prefix "
                "that covers several of them"
            )
        self._ranges.add(table, prefix, on_range)

    def unwatch(self, table: str, prefix: bytes) -> None:
        """Stop following a range."""
        self._ranges.remove(table, prefix)
        self._set_watch(Command("UNWATCH", (table, prefix)))

    def watch_loads(self, on_loads: OnLoads) -> None:
        """Get the rows of all nodes that have one, then those that change."""
        self._on_loads = on_loads
        self._watch_loads()

    def _watch_loads(self) -> None:
        self._loads_number = -1
        self._set_watch(Command("WATCH", ("load", b"", 0)))

    def _check_soft(self, command: Command) -> None:
        try:
            check_command(command)
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None

    def _set_watch(self, command: Command) -> None:
        """Set or end a watch. One that is lost shows in the count of the next beat."""
        self._watched_at = self._now
        self._send_soft(command)

    def _send_soft(self, command: Command) -> None:
        packed = packb((command.name, command.fields))
        self._send(pack(SOFT, self.session, self._first, [packed]))

    def _watch_again(self) -> None:
        if self._on_loads is not None:
            self._watch_loads()
        self._ranges.again()

    # --------------------------------------------------------------------------------- receiving

    def received(self, frame: bytes, now: float) -> None:
        """Take one frame from the GCS; calls what is done.

        Raises:
            RemoteProtocolError: the frame is malformed, and ignored.
        """
        kind, fields = unpack(frame, to_gcs=False)
        self._now = now
        self.heard_at = now
        if kind == ANSWERS:
            self._reason = "it answers slowly"
        boot, *rest = fields
        if boot != self._boot:
            self._met(boot)
        if kind == EVENTS:
            self._ranges.events(*rest)
        elif kind == COMPACTED:
            self._ranges.compacted(*rest[:2])
        elif kind == LOADS:
            self._take_loads(*rest)
        elif rest[0] == self.session:
            self._take(kind, rest[1:])

    def _take(self, kind: int, fields: list[Any]) -> None:
        """Take a message to this very session."""
        if kind == ANSWERS:
            self._take_answers(*fields)
        elif kind == EXPECTED:
            (number,) = fields
            # Lost on the way: each message behind it is refused, but one repetition is enough.
            is_new = number != self._expected or self._now - self._expected_at > RESEND_S / 2
            if is_new and self._first <= number < self._unsent:
                self._expected, self._expected_at = number, self._now
                self._send_again(number)
        elif kind == RENEWED:
            self._take_renewal(*fields)
        elif kind == REFUSED:
            reason, text = fields
            lost = GcsFencedError if reason == "fenced" else GcsSessionLostError
            self._lose(lost(text))
        elif kind == UNAVAILABLE:
            self._reason = fields[0]

    def _met(self, boot: bytes) -> None:
        """Another life of the GCS: it has none of what was on its way to the one before."""
        is_first = not self._boot
        self._boot = boot
        self._loads_number = -1
        if not is_first:
            self._send_again(self._first)
            self._watch_again()

    def _take_answers(self, first: int, answers: list[list[Any]]) -> None:
        session = self.session
        for number, (ok, value) in enumerate(answers, first):
            if session != self.session:
                return  # An answer has ended the session.
            if number < self._first or number >= self._unsent:
                continue
            if number > self._first:
                # An answer before it was lost, and will come again in front of this one.
                if self._now - self._progress_at > RESEND_S / 2:
                    self._send_again(self._first)
                return
            self._answered(number, ok, value)

    def _answered(self, number: int, ok: bool, value: Any) -> None:
        asked = self._asked.pop(number)
        self._queue_bytes -= len(asked.packed)
        self._first = number + 1
        self._progress_at = self._now
        self._resend_s = RESEND_S
        if ok:
            if asked.done is not None:
                asked.done(value, None)
            return
        error = _error_of(value)
        if isinstance(error, GcsFencedError):
            self._lose(error, asked.done)
        elif asked.done is not None:
            asked.done(None, error)

    def _take_renewal(self, stamp: float, incarnation: int, watches: int, _revision: int) -> None:
        if incarnation and incarnation == self.incarnation:
            self.lease_expires_at = max(self.lease_expires_at, stamp + NODE_LEASE_S)
        elif self.incarnation:
            self._next_beat = self._now  # Now that it knows that we hear it, it will renew.
        expected = self._ranges.count() + (self._on_loads is not None)
        if stamp > self._watched_at and watches < expected:
            self._watch_again()

    def _take_loads(self, first: int, last: int, rows: dict[bytes, bytes]) -> None:
        if self._on_loads is None or last < self._loads_number:
            return
        if first > self._loads_number + 1:
            self._watch_loads()  # Some were lost on the way.
            return
        self._loads_number = last
        if rows:
            self._on_loads(rows)

    def _lose(self, error: GcsError, done: Done | None = None) -> None:
        """Begin another session; what was asked in this one has failed."""
        failed = [done, *(asked.done for asked in self._asked.values())]
        self._begin()
        self._ranges.read_again()
        for one in failed:
            if one is not None:
                one(None, error)
        if self._on_lost is not None:
            self._on_lost(error)

    # ----------------------------------------------------------------------------------- sending

    def _send_again(self, number: int) -> None:
        """Send again from this number on."""
        if number < self._unsent:
            self.resent += self._unsent - number
            self._unsent = number
            self.flush()

    def rerouted(self) -> None:
        """The way to the GCS is a new one: what was sent on the old one may be lost."""
        self._send_again(self._first)
        self._watch_again()

    def flush(self) -> None:
        """Send what was asked; at the end of a wake, so that asks share messages."""
        window = WINDOW_BYTES_MAX
        while self._unsent < min(self._next, self._first + WINDOW_LEN_MAX):
            size, last = 0, self._unsent
            batch: list[bytes] = []
            while last < min(self._next, self._first + WINDOW_LEN_MAX):
                packed = self._asked[last].packed
                if batch and size + len(packed) > MESSAGE_BYTES_MAX:
                    break
                batch.append(packed)
                size += len(packed)
                last += 1
            if self._sent_bytes(window) + size > window and self._unsent > self._first:
                return
            if not self._send(pack(COMMANDS, self.session, self._first, self._unsent, batch)):
                return
            self._unsent = last

    def _sent_bytes(self, enough: int) -> int:
        """Return the bytes sent and not answered, or some number beyond `enough`."""
        if self._queue_bytes <= enough:
            return 0
        size = 0
        for number in range(self._first, self._unsent):
            size += len(self._asked[number].packed)
            if size > enough:
                break
        return size

    def tick(self, now: float) -> None:
        """Do what is due: beats, deadlines, repetitions. To be called about ten times a second."""
        self._now = now
        if now >= self._next_expiry:
            self._next_expiry = now + _EXPIRE_S
            self._expire(now)
            self._ranges.tick()
        patience_s = self._resend_s + self._queue_bytes / RESEND_BYTES_PER_S
        if self._unsent > self._first and now - self._progress_at >= patience_s:
            # Twice as late each time: a GCS that is slow must not be made slower.
            self._progress_at = now
            self._resend_s = min(self._resend_s * 2, RESEND_S_MAX)
            self._send_again(self._first)
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            beat = packb(("RENEW", (now, now - self.heard_at, self._load)))
            self._send(pack(SOFT, self.session, self._first, [beat]))
        self.flush()

    def _expire(self, now: float) -> None:
        late = [
            (number, asked)
            for number, asked in self._asked.items()
            if asked.deadline <= now and asked.done is not None
        ]
        for number, asked in late:
            # Its number must be answered still, but it must not take effect any later than this.
            self._asked[number] = _Asked(_NOOP, None, float("inf"), asked.name)
            self._queue_bytes += len(_NOOP) - len(asked.packed)
        silent_s = now - self.heard_at
        for _, asked in late:
            if asked.done is not None:
                text = (
                    f"the GCS has not answered {asked.name} in time ({self._reason}; last heard "
                    f"{silent_s:.1f} s ago), which may or may not have happened; look at the GCS "
                    "process and its log, then try again"
                )
                asked.done(None, GcsUnavailableError(text))

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert list(self._asked) == list(range(self._first, self._next)), "numbers with a hole"
        assert self._first <= self._unsent <= self._next
        assert self._queue_bytes == sum(len(asked.packed) for asked in self._asked.values())


def _error_of(value: Any) -> GcsError:
    """Return the error that an answer tells of."""
    well_formed = type(value) is list and len(value) == 2 and type(value[1]) is str
    code, text = value if well_formed else ("internal", repr(value))
    if code == "fenced":
        return GcsFencedError(text)
    if code in ("malformed", "internal"):
        return GcsError(f"the GCS could not do it ({code}): {text}; report this")
    return GcsError(text)
