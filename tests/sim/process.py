"""A simulated process: the real Session behind the rules of zray/client.py, without threads.

What    SimProcess reads its inbox only when the real one would (somebody waits, or the session
        needs service), answers its lifeline at any time, flushes calls before messages, and
        reconciles after the grace time. Its main program is a generator that yields waits.
Caller  tests/sim/driver.py, tests/sim/worker.py, tests/sim/simulation.py.
Never   opens a socket or starts a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

import msgpack

from tests.sim.losses import LOST_KINDS
from tests.sim.node import SimPeers
from zray import errors
from zray.protocol import envelopes, frames, messages, outcome
from zray.protocol.ids import ObjectId, object_id
from zray.protocol.limits import (
    BLOCKED_AFTER_S,
    LEASE_IDLE_S,
    LEASE_TURN_S,
    LINGER_US,
    RECONCILE_GRACE_S,
    UNREAD_S,
)
from zray.protocol.purposes import Purpose
from zray.serialization.exceptions import decode_exception, encode_exception
from zray.session.references import Key
from zray.session.session import Session

if TYPE_CHECKING:
    from tests.sim.world import Envelope, World

Program = Generator["Wait", Any, Any]
PLAIN = b"\x80"
STORED_BYTES = 4096


class SimError(Exception):
    """What get() raises in the simulation; ``kind`` names the error, ``lost`` what is gone."""

    def __init__(self, kind: str, lost: bytes = b"") -> None:
        super().__init__(kind)
        self.kind = kind
        self.lost = lost


class ProcessExitError(BaseException):
    """Ends the program of a process that crashes itself: no handler of user code sees it."""


class Wait:
    """What a program yields: go on when the condition holds, or the time is over."""

    __slots__ = ("reads", "ready", "seconds")

    def __init__(
        self, ready: Callable[[], bool] | None, seconds: float | None, *, reads: bool = True
    ) -> None:
        self.ready = ready
        self.seconds = seconds
        self.reads = reads


class SimRef:
    """An ObjectRef."""

    __slots__ = ("__weakref__", "key", "process")

    def __init__(self, process: SimProcess, key: Key) -> None:
        self.process = process
        self.key = key

    def __del__(self) -> None:
        self.process.session.references.garbage.append(self.key)

    @property
    def id(self) -> ObjectId:
        return self.process.session.references.id_of(self.key)


def pack(value: Any) -> bytes:
    """Encode a plain value as an outcome."""
    return PLAIN + msgpack.packb(value)


def unpack(data: bytes) -> Any:
    """Decode what pack() made."""
    return msgpack.unpackb(data[1:], strict_map_key=False)


def error_outcome(what: str, reason: str) -> bytes:
    """Make the outcome of a crash, as zray/client.py does."""
    error: errors.ZrayError = (
        errors.ActorDiedError(reason) if what == "actor" else errors.WorkerCrashedError(reason)
    )
    return outcome.error(encode_exception(error, where="node"))


def user_error(kind: str, lost: bytes = b"") -> bytes:
    """Make the outcome of a task that raised."""
    return outcome.error(b"sim:" + kind.encode() + b"@" + lost)


def error_kind(found: bytes) -> str:
    """Name the error of an outcome."""
    if found[1:5] == b"sim:":
        return found[5:].partition(b"@")[0].decode()
    return type(decode_exception(found[1:])).__name__


class SimProcess:
    """A driver or worker."""

    role = "driver"

    def __init__(self, world: World, identity: bytes) -> None:
        self.world = world
        self.identity = identity
        self.name = world.name(identity)
        node = self.own_node = world.node_of(identity)
        self.node = node.process
        self.session = Session(identity, self.node, error_outcome)
        self.session.tasks.split_values = lambda values, item: pack(unpack(values)[item])
        references = self.session.references
        references.free_private = self._free_private
        references.register_private = self._register_private
        self.references = references
        self.results = self.session.results
        self.peers = SimPeers(world, identity, self._forward)
        self.inbox: deque[Envelope] = deque()
        self.dead = False
        self.stopped = False
        """By SIGSTOP: nothing of it moves, and what comes waits."""
        self._held: deque[Callable[[], None]] = deque()
        self.done = False
        self.in_user_code = False
        self.abandoned: deque[Callable[[], None]] = deque()
        self.before_flush: Callable[[], None] | None = None
        self._forwarded: list[bytes] = []
        self._private: dict[int, int] = {}
        self._cache: list[int] = []
        self._waiting: Wait | None = None
        self._turn = 0
        self._answers: deque[list[Any]] = deque()
        self._reconcile_at: float | None = None
        self._reading = False
        self._looking = False
        self._sweeping = False
        self._in_turn = False
        self._armed = False
        self._interrupt: str | None = None
        self._interruptible = True
        self.main: Program = self.program()
        world.processes[identity] = self
        self.lifeline = node.connect(self._lifeline_arrived)
        self.calls = self.lifeline
        hello = frames.pack(messages.HELLO, identity, self.role, 1, {"endpoint": self.name})
        self.lifeline.write(hello)

    def program(self) -> Program:
        """What the main thread does."""
        raise AssertionError("a process without a program")

    # -- the shell: sending -----------------------------------------------------------------------

    def flush(self) -> None:
        """Send all that has gathered: connections, calls, then messages."""
        if self.dead:
            return
        if self.before_flush is not None:
            self.before_flush()
        while self.abandoned:
            self.abandoned.popleft()()
        session = self.session
        session.flush()
        outbox = session.outbox
        calls, outbox.calls = outbox.calls, []
        connections, outbox.connections = outbox.connections, []
        queued, outbox.messages = outbox.messages, []
        for peer, endpoint in connections:
            if endpoint is None:
                self.peers.drop(peer)
            else:
                self.peers.connect(peer, endpoint)
        for call in calls:
            self.calls.write(call)
        for peer, header, payloads in queued:
            self.peers.send(peer, header, payloads)
        forwarded, self._forwarded = self._forwarded, []
        for packed in forwarded:
            self.calls.write(packed)
        self._after()

    def _forward(self, peer: bytes, parts: list[bytes]) -> None:
        self.world.tell_message(f"{self.name} -> {self.world.name(peer)}", parts[0])
        for envelope in envelopes.seal(peer, self.identity, parts):
            self._forwarded.append(frames.pack(messages.FORWARD, envelope))

    def submitted(self) -> None:
        """Send now, or let it wait a moment for company."""
        if self.session.outbox.messages or self.world.rng.random() < 0.4:
            self.flush()
        elif not self._armed:
            self._armed = True
            self._later(LINGER_US / 1e6, self._linger_over)

    def _linger_over(self) -> None:
        self._armed = False
        self.flush()

    def call(self, kind: int, *fields: Any) -> None:
        """A one-way call to the node."""
        if not self.dead:
            self.session.outbox.call(kind, *fields)
            self.flush()

    def request(self, kind: int, *fields: Any) -> Program:
        """A call that is answered; raises SimError with the answer's error."""
        self.flush()
        self.calls.write(frames.pack(kind, *fields))
        yield Wait(lambda: bool(self._answers), None, reads=False)
        error, value = self._answers.popleft()[3:5]
        if error is not None:
            raise SimError(type(decode_exception(error)).__name__)
        return value

    # -- the shell: reading -----------------------------------------------------------------------

    def mail_arrived(self, envelope: Envelope) -> None:
        """The inbox has one more message."""
        self.inbox.append(envelope)
        if not self.stopped:
            self._after()

    def _reads(self) -> bool:
        waits = self._waiting is not None and self._waiting.reads
        return not self.dead and (waits or self.session.needs_service)

    def _after(self) -> None:
        """Something changed: read on, wake the program, arm what the background thread arms."""
        if self.dead:
            return
        if self.inbox and not self._reading and self._reads():
            self._reading = True
            self._later(self.world.rng.expovariate(1 / 0.00005), self._read)
        elif self.inbox and not self._looking and self.session.expects_results:
            # Nobody waits for what comes; in the end the background thread takes it in.
            self._looking = True
            self._later(UNREAD_S, self._look)
        wait = self._waiting
        if wait is not None and wait.ready is not None and wait.ready():
            self._resume_soon()
        if self.session.reconcile_wanted and self._reconcile_at is None:
            self._reconcile_at = self.world.now + RECONCILE_GRACE_S
            self._later(RECONCILE_GRACE_S, self._reconcile)
        if self.session.tasks.turn_runs and not self._in_turn:
            self._in_turn = True
            self._later(LEASE_TURN_S, self._end_turn)
        if self.session.tasks.leases and not self._sweeping:
            self._sweeping = True
            self._later(LEASE_IDLE_S, self._sweep)

    def _read(self) -> None:
        self._reading = False
        if self.inbox and self._reads():
            self.apply(self.inbox.popleft())
        self._after()

    def _look(self) -> None:
        self._looking = False
        self.read_all()
        self._after()

    def read_all(self) -> None:
        """Bring what lies unread in the inbox in, unless the main thread is there."""
        if self._waiting is None or not self._waiting.reads:
            while self.inbox:
                self.apply(self.inbox.popleft())

    def apply(self, envelope: Envelope) -> None:
        """One message."""
        message = frames.unpack(envelope.header)
        if self.worker_message(envelope.sender, message, list(envelope.payloads)):
            return
        session = self.session
        session.handle(envelope.sender, message, list(envelope.payloads))
        assert session.unhandled == 0, f"{self.name} got {message}"
        if session.references.news:
            session.after_arrival()
        if session.outbox:
            self.flush()
        self.check()

    def worker_message(self, _sender: bytes, _message: list[Any], _payloads: list[bytes]) -> bool:
        """Handle what only a worker gets; False: it is for the session."""
        return False

    def _reconcile(self) -> None:
        self._reconcile_at = None
        self.session.reconcile()
        self.flush()

    def _end_turn(self) -> None:
        self._in_turn = False
        self.session.tasks.end_turn()
        self.flush()

    def _sweep(self) -> None:
        self._sweeping = False
        self.session.tasks.sweep_leases()
        self.flush()

    # -- the shell: the lifeline ------------------------------------------------------------------

    def _lifeline_arrived(self, packed: bytes) -> None:
        self._act(lambda: self._told(packed))

    def _told(self, packed: bytes) -> None:
        message = frames.unpack(packed)
        self.world.tell_message(f"{self.own_node.name} => {self.name}", packed)
        kind = message[1]
        if kind == messages.WELCOME:
            self._welcome()
        elif kind == messages.UNPIN:
            self.references.collect()
            self.session.outbox.call(messages.UNPINNED, self.references.unpin(message[3]))
            self.flush()
        elif kind == messages.RECALL:
            self.session.tasks.recalled(message[3], busy=self.world.rng.random() < 0.5)
            self.flush()
        elif kind == messages.RECLAIM_STORE:
            self.give_back()
        else:
            self.on_lifeline(message)
        self._after()

    def on_lifeline(self, message: list[Any]) -> None:
        """Handle what the node tells a worker."""
        raise AssertionError(f"{self.name} was told {message}")

    def _welcome(self) -> None:
        self.calls = self.own_node.connect(self._answered)
        self.calls.write(frames.pack(messages.HELLO, self.identity, "calls", 1, {}))
        self.peers.connect(self.node, "node")
        self._resume_soon()

    def _answered(self, packed: bytes) -> None:
        self._answers.append(frames.unpack(packed))
        if not self.stopped:
            self._after()

    def give_back(self) -> None:
        """Objects.give_back()."""
        self.references.collect()
        cached, self._cache = self._cache, []
        if cached:
            self.session.outbox.call(messages.FREE, cached)
        for number in list(self._private):
            self.references.share(number)
        self.session.outbox.call(messages.FREE, [])
        self.flush()

    # -- the program -----------------------------------------------------------------------------

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.world.after(delay_s, self.name, lambda: self._act(action))

    def _act(self, action: Callable[[], None]) -> None:
        if self.stopped:
            self._held.append(action)
        elif not self.dead:
            action()

    def go_on(self) -> None:
        """SIGCONT."""
        self.stopped = False
        while self._held and not self.stopped:
            self._act(self._held.popleft())
        self._after()

    def _resume_soon(self) -> None:
        self._turn += 1
        turn = self._turn
        self._waiting = None
        self._later(self.world.rng.expovariate(1 / 0.00002), lambda: self._resume(turn))

    def _resume(self, turn: int) -> None:
        if turn != self._turn or self.done:
            return
        try:
            if self._interrupt is not None and self.in_user_code and self._interruptible:
                kind, self._interrupt = self._interrupt, None
                wait = self.main.throw(SimError(kind))
            else:
                wait = next(self.main)
        except StopIteration:
            self.done = True
            self._waiting = None
            self.finished()
            return
        except ProcessExitError:
            self.done = True
            return
        self._waiting = wait
        # A request to the node is never left half done.
        self._interruptible = wait.reads or wait.ready is None
        self._turn += 1
        mine = self._turn
        if wait.seconds is not None:
            self._later(wait.seconds, lambda: self._resume(mine))
        self.check()
        self._after()

    def interrupt(self, kind: str) -> None:
        """Raise in the program's user code at its next wait."""
        self._interrupt = kind
        if self._waiting is not None and self._waiting.reads is True:
            self._resume_soon()

    def finished(self) -> None:
        """The program has ended."""

    def crash(self, reason: str) -> None:
        """SIGKILL."""
        if self.dead:
            return
        self.world.tell(f"{self.name} CRASHES: {reason}")
        self.world.chaos = True
        self.dead = True
        if self.world.losses is not None:
            self.world.losses.dead.add(self.identity)
        self.world.lose_suffixes(self.identity)
        self.lifeline.hang_up()
        if self.calls is not self.lifeline:
            self.calls.hang_up()
        self.main.close()

    def leave(self) -> None:
        """End in order: what was sent arrives."""
        if self.dead:
            return
        self.world.tell(f"{self.name} leaves")
        self.flush()
        self.call(messages.GOODBYE)
        self.world.chaos = True
        self.dead = True
        if self.world.losses is not None:
            self.world.losses.dead.add(self.identity)
        self.lifeline.hang_up()
        self.calls.hang_up()
        self.main.close()

    def check(self) -> None:
        """The invariants of this process's machines."""
        self.session.check()

    # -- values -----------------------------------------------------------------------------------

    def _free_private(self, number: int) -> None:
        offset = self._private.pop(number, None)
        if offset is not None and len(self._cache) < 3:
            self._cache.append(offset)
        elif offset is not None:
            self.session.outbox.call(messages.FREE, [offset])

    def _register_private(self, number: int, held: list[ObjectId]) -> None:
        offset = self._private.pop(number)
        self.session.outbox.call(
            messages.REGISTER,
            self.references.id_of(number),
            offset,
            STORED_BYTES,
            held,
            self.identity,
        )

    def write(self, data: bytes) -> Program:
        """Write a value into an extent; returns its offset."""
        self.references.collect()
        if self._cache:
            offset = self._cache.pop()
        else:
            offset, _nbytes, _fresh, spares = yield from self.request(
                messages.ALLOCATE, STORED_BYTES
            )
            self._cache.extend(spares)
        self.own_node.memory[offset] = data
        return offset

    def put(self, value: dict[str, Any], refs: list[SimRef], *, stored: bool) -> Program:
        """A new private object that holds references; returns its ref."""
        for ref in refs:
            self.references.share(ref.key)
        data = pack(
            {
                **value,
                "refs": [[ref.id, want] for ref, want in zip(refs, value["wants"], strict=True)],
            }
        )
        if stored:
            offset = yield from self.write(data)
            number = self.session.tasks.take_numbers()
            self.results[number] = outcome.stored(offset, STORED_BYTES)
            self._private[number] = offset
        else:
            number = self.session.tasks.take_numbers()
            self.results[number] = data
        if refs:
            self.references.contained[number] = list(refs)
        return SimRef(self, number)

    def ready(self, key: Key) -> bool:
        """Whether an outcome is here."""
        found = self.results.get(key)
        return found is not None and found[0] != outcome.ELSEWHERE

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> Program:
        """Wait as Client.wait_until() does: a worker reports that it is blocked."""
        if ready():
            return True
        self.flush()
        if not self.in_user_code:
            yield Wait(ready, timeout_s)
            return ready()
        yield Wait(ready, BLOCKED_AFTER_S)
        if ready():
            return True
        self.call(messages.BLOCKED)
        self.blocked()
        try:
            yield Wait(ready, timeout_s)
        finally:
            self.call(messages.UNBLOCKED)
        return ready()

    def blocked(self) -> None:
        """The node has been told that the program waits."""

    def locate(self, keys: Iterable[Key], purpose: Purpose) -> None:
        """Ask for what only the node knows."""
        for key in keys:
            if not self.ready(key):
                self.references.locate(key, purpose)

    def await_keys(
        self,
        keys: list[Key],
        timeout_s: float | None = None,
        purpose: Purpose = Purpose.GET,
    ) -> Program:
        """Wait until every key has an outcome; raises SimError("timeout")."""
        self.locate(keys, purpose)
        position = 0

        def ready() -> bool:
            nonlocal position
            while position < len(keys):
                found = self.results.get(keys[position])
                if found is None:
                    return False
                if found[0] == outcome.ELSEWHERE:
                    self.locate(keys[position : position + 1], purpose)
                    if self.session.outbox:
                        self.flush()
                    return False
                position += 1
            return True

        if not (yield from self.wait_until(ready, timeout_s)):
            raise SimError("timeout")

    def get(self, ref: SimRef, timeout_s: float | None = None) -> Program:
        """Return the value of a ref (a dict), or raise SimError."""
        while not self.ready(ref.key):
            # The node may ask for the extent back between the word that it is here and a look.
            yield from self.await_keys([ref.key], timeout_s)
        return self.value(ref.id, ref.key, self.results[ref.key])

    def value(self, identity: ObjectId, key: Key, found: bytes) -> Any:
        """Decode an outcome; references inside it become SimRefs."""
        if found[0] == outcome.ERROR:
            raise self.error(identity, found)
        if found[0] == outcome.HOLDING:
            return self.value(identity, key, outcome.held(found)[1])
        if found[0] == outcome.STORED:
            return self.decode(self._read_extent(identity, key, found))
        assert found[0] == PLAIN[0], f"an outcome {found[:1]!r} reached a reader"
        return self.decode(unpack(found))

    def error(self, identity: ObjectId, found: bytes) -> SimError:
        """Return what reading an object that is an error raises."""
        kind = error_kind(found)
        if found[1:5] == b"sim:":
            return SimError(kind, found[5:].partition(b"@")[2])
        if kind not in LOST_KINDS:
            return SimError(kind)
        losses = self.world.losses
        if losses is not None and not self.is_awaited():
            losses.orphaned(identity)
        assert losses is None or losses.excuse(identity), (
            f"{self.name} is told that {self.world.name(identity)} is gone ({kind}), and no node"
            " that had to do with it was"
        )
        return SimError(kind, identity)

    def is_awaited(self) -> bool:
        """Whether somebody waits for what runs here: false for a second execution, perhaps."""
        return True

    def _read_extent(self, identity: ObjectId, key: Key, found: bytes) -> Any:
        """Look at an extent now, and once more when the array over it goes."""
        offset, _nbytes = outcome.stored_location(found)
        memory = self.own_node.memory
        name = self.world.name(identity)
        assert offset in memory, f"{self.name} reads {name} at {offset}: that extent is free"
        data = memory[offset]
        value = unpack(data)
        assert value.get("me", identity) == identity, (
            f"{self.name} reads {name} and finds {self.world.name(value['me'])}"
        )
        gone = self.references.view_opened(key)

        def close() -> None:
            assert memory.get(offset) is data, f"{name} changed under a view of {self.name}"
            gone()

        self._later(self.world.rng.choice((0.0, 0.0001, 0.01)), close)
        return value

    def decode(self, value: Any) -> Any:
        """Make references of the ids inside a value."""
        if isinstance(value, dict) and value.get("refs"):
            restored = []
            for identity, want in value["refs"]:
                key = self.references.key_of(identity)
                self.references.restore(key)
                restored.append((SimRef(self, key), want))
            value = {**value, "refs": restored}
        return value

    def object_id(self, number: int) -> ObjectId:
        """The id of one of this process's numbers."""
        return object_id(self.identity, number)

    def held_for(self) -> str:
        """Say what the program waits for, when it waits too long."""
        pending = [
            f"{batch.first}: {batch.done!r}" for batch in self.session.tasks.batches.values()
        ]
        calls = {
            number: (route.state, route.process and self.world.name(route.process))
            for number, route in self.session.actors.by_number.items()
        }
        return (
            f"{'dead' if self.dead else 'done' if self.done else 'waits'}: batches {pending},"
            f" calls {calls}, held {list(self.session.held)}, located"
            f" {[self.world.name(self.references.id_of(k)) for k in self.references.located]}"
        )

    def leaks(self) -> list[str]:
        """Say what is left when the program has dropped everything."""
        session, references = self.session, self.references
        tables = {
            "results": self.results,
            "units": references.units,
            "extra": references.extra,
            "contained": references.contained,
            "views": references.views,
            "dropped": references.dropped,
            "publish": references.publish,
            "located": references.located,
            "adopted": references.adopted,
            "private": self._private,
            "batches": session.tasks.batches,
            "open": session.tasks.open,
            "leases": session.tasks.leases,
            "calls": session.actors.by_number,
            "held": session.held,
            "streams": session.streams.open,
            "callbacks": session.callbacks,
        }
        left = [f"{self.name}: {name} {table}"[:300] for name, table in tables.items() if table]
        if session.actors.waiting_for_place:
            left.append(f"{self.name}: {session.actors.waiting_for_place} calls wait for a place")
        return left
