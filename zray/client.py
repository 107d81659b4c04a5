"""The client shell: sockets and threads around one session.

What    Client connects a driver or worker to its node. The thread that waits in get reads the
        inbox itself (handing each reply from one Python thread to another costs more than the
        network); a background thread answers the node's lifeline, flushes what lingers, and
        reads the inbox only while something needs it and nobody waits.
Caller  zray/api.py (driver), actors/host.py (worker).
Never   runs user code in its own thread.
"""

import contextlib
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from zray import errors, node_directory
from zray.net import channel, mailbox
from zray.net.edges import Edges
from zray.net.wake import Wake
from zray.objects import Objects
from zray.protocol import envelopes, frames, messages, outcome
from zray.protocol.ids import task_number_of
from zray.protocol.limits import (
    BLOCKED_AFTER_S,
    GOODBYE_TIMEOUT_S,
    LEASE_IDLE_S,
    LEASE_TURN_S,
    LINGER_US,
    QUIET_US,
    RECONCILE_GRACE_S,
    RELEASE_LINGER_S,
    UNREAD_S,
)
from zray.serialization.exceptions import decode_exception, encode_exception
from zray.session.references import Key
from zray.session.session import Session
from zray.turns import Turns

_LINGER_S = LINGER_US / 1e6
_QUIET_S = QUIET_US / 1e6
_WAIT_SLICE_MS = 500
_LOOK_S = 0.001
_BUSY_S = 0.0005
"""Who has sent something less than this ago will want its lease in a moment."""
_ARMED_PERIODS = 2
_REFUSALS_SHOWN = 3

LifelineRule = Callable[[list[Any]], None]


def _error_outcome(what: str, reason: str) -> bytes:
    error: errors.ZrayError
    if what == "actor":
        error = errors.ActorDiedError(reason)
    else:
        error = errors.WorkerCrashedError(reason)
    return outcome.error(encode_exception(error, where="node"))


class Client:
    """A process's connection to its node, and all it does through it.

    Args:
        directory: the node's directory, which holds ``node.sock`` and the mailboxes.
        process: this process's 8 random bytes.
        role: "driver" or "worker".
        details: what HELLO tells of this process.
    """

    def __init__(
        self, directory: str, process: bytes, role: str, details: dict[str, Any] | None = None
    ) -> None:
        self.directory = directory
        self.process = process
        self.role = role
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.send_lock = threading.Lock()
        self.request_lock = threading.Lock()
        self.io_lock = threading.Lock()
        self.turns = Turns()
        self.closed = False
        self.node_died: str | None = None
        self.lifeline_rules: dict[int, LifelineRule] = {}
        self.on_blocked: Callable[[bool], None] | None = None
        self.patience_s: Callable[[bool], float | None] = lambda _queued: BLOCKED_AFTER_S
        """In a worker: how long a thread waits before on_blocked is told, None: it need not be.
        Given whether it waits for a task that nobody is known to have begun."""
        self.before_wait: Callable[[], None] | None = None
        self.worker_message: Callable[[bytes, list[Any], list[bytes]], None] | None = None
        self.check_interrupt: Callable[[], None] | None = None
        """Set while a cancelled task runs: raises in the thread that runs it."""
        self.pump: Callable[[], bool] | None = None
        """Set where an event loop reads the inbox: whether the caller is on that loop, which then
        sends what has gathered at the end of its turn."""
        self.released: Callable[[], None] | None = None
        """Set with ``pump``: somebody else has read the inbox and may have left messages."""
        self.on_due: Callable[[], None] | None = None
        """In a worker: called by the background thread when the time of due_in() is over."""
        self._due_at: float | None = None
        self._turn_ends_at: float | None = None
        self._armed = 0
        self._sleeps_forever = False
        self._look_at: float | None = None
        self._answers_owed = 0
        self._forwarded: list[bytes] = []
        """FORWARDs for processes of other nodes, of the flush that is under way."""
        self._last_flush = 0.0
        self._last_sweep = 0.0
        self._reconcile_at: float | None = None
        self.wake = Wake()
        self.context = mailbox.new_context()
        self._connect(details or {})
        self.thread = threading.Thread(target=self._background, name="zray-io", daemon=True)

    def _connect(self, details: dict[str, Any]) -> None:
        endpoint = mailbox.ipc_endpoint(self.directory, self.process.hex())
        self.inbox = self.peers = Edges(
            mailbox.Inbox(self.context, endpoint),
            mailbox.Peers(self.context),
            self.process,
            on_stuck=self.wake.set,
        )
        path = os.path.join(self.directory, "node.sock")
        self.lifeline = channel.connect(path)
        hello = {"endpoint": endpoint, **details}
        self.lifeline.send(frames.pack(messages.HELLO, self.process, self.role, self.pid, hello))
        reply = self.lifeline.receive()
        if reply is None:
            raise errors.NodeStartError(
                "the node closed the connection at HELLO: another user's"
                " process, another version, or it is shutting down"
            )
        welcome = frames.unpack(reply)
        if welcome[1] != messages.WELCOME:
            raise errors.RemoteProtocolError(f"the answer to HELLO was message {welcome[1]}")
        self.welcome: dict[str, Any] = welcome[3]
        self.node: bytes = self.welcome["node"]
        self.inbox.authorize(self.welcome["secret"], self.node)
        self.calls = channel.connect(path)
        self.calls.send(frames.pack(messages.HELLO, self.process, "calls", self.pid, {}))
        self.peers.connect_node(self.node, self.welcome["endpoint"])
        self.peers.forward = self._forward
        self.session = Session(self.process, self.node, _error_outcome)
        descriptors = (self.lifeline.descriptors.popleft(), self.lifeline.descriptors.popleft())
        self.objects = Objects(self, descriptors, self.welcome["capacity"])
        self.lifeline_rules[messages.UNPIN] = self._unpin
        self.lifeline_rules[messages.RECLAIM_STORE] = lambda _message: self.objects.give_back()
        self.lifeline_rules[messages.RECALL] = self._recall

    def start(self) -> None:
        """Start the background thread: everything is wired."""
        self.thread.start()

    # -- sending -----------------------------------------------------------------------------

    def flush(self) -> None:
        """Send all that has gathered, calls before messages."""
        session = self.session
        outbox = session.outbox
        with self.send_lock:
            with self.lock:
                session.flush()
                # Also where it is empty: while we send, others may append to the list we leave.
                queued, outbox.messages = outbox.messages, []
                calls, connections = outbox.calls, outbox.connections
                if calls or connections:
                    outbox.calls, outbox.connections = [], []
            if calls or connections:
                self._send_calls(calls, connections)
            elif not queued:
                return
            send = self.peers.send
            for peer, header, payloads in queued:
                send(peer, header, payloads)
            if self._forwarded:
                self._send_forwarded()
        self._last_flush = time.monotonic()
        if session.needs_service or (
            self._sleeps_forever and (session.references.holds_at_node or session.expects_results)
        ):
            self._sleeps_forever = False
            self.wake.set()

    def _send_calls(self, calls: list[bytes], connections: list[tuple[bytes, str | None]]) -> None:
        for peer, endpoint in connections:
            if endpoint is None:
                self.peers.drop(peer)
            else:
                self.peers.connect(peer, endpoint)
        try:
            if calls:
                self.calls.send_all(calls)
        except OSError as error:
            self._node_lost(f"its socket is closed ({error})")

    def _forward(self, peer: bytes, parts: list[bytes]) -> bool:
        """Called in flush(), which sends at its end what has gathered: the node wakes once."""
        for envelope in envelopes.seal(peer, self.process, parts):
            self._forwarded.append(frames.pack(messages.FORWARD, envelope))
        return True

    def _send_forwarded(self) -> None:
        gathered, self._forwarded = self._forwarded, []
        try:
            self.calls.send_all(gathered)
        except OSError as error:
            self._node_lost(f"its socket is closed ({error})")

    def submitted(self) -> None:
        """Something was added: send it now, or let it wait a moment for company."""
        if self.session.outbox.messages:
            self.flush()
        elif not self._armed:
            if time.monotonic() - self._last_flush > _QUIET_S:
                self.flush()
            else:
                self._armed = _ARMED_PERIODS
                self.wake.set()

    def due_in(self, seconds: float) -> None:
        """Have on_due called in so many seconds, once (any thread)."""
        self._due_at = time.monotonic() + seconds
        self.wake.set()

    def call(self, kind: int, *fields: Any) -> None:
        """Send a one-way call to the node, behind all that was queued before it."""
        with self.lock:
            self.session.outbox.call(kind, *fields)
        self.flush()

    def request(self, kind: int, *fields: Any) -> Any:
        """Ask the node and return its answer; raises the error it answers with."""
        self.check_usable()
        with self.request_lock:
            self.flush()
            with self.send_lock:
                try:
                    self.calls.send(frames.pack(kind, *fields))
                except OSError as error:
                    self._node_lost(f"its socket is closed ({error})")
            self._answers_owed += 1
            reply = self._take_answer() if self.node_died is None else None
        if reply is None:
            self._node_lost("it closed the connection during a request")
            raise self._died_error()
        answer = frames.unpack(reply)
        if answer[1] != messages.ANSWER:
            raise errors.RemoteProtocolError(f"a request was answered by message {answer[1]}")
        refusal, value = answer[3:5]
        if refusal is not None:
            raise decode_exception(refusal)
        return value

    def _take_answer(self) -> bytes | None:
        """Return the answer to the newest request, past those that an interrupt left unread."""
        reply: bytes | None = None
        while self._answers_owed:
            try:
                reply = self.calls.receive()
            except OSError:
                return None  # It died with words of ours unread: a reset instead of an end.
            if reply is None:
                return None
            self._answers_owed -= 1
        return reply

    # -- waiting -----------------------------------------------------------------------------

    def wait_until(
        self,
        ready: Callable[[], bool],
        timeout_s: float | None = None,
        *,
        first: Key | None = None,
        only: Key | None = None,
    ) -> bool:
        """Read messages until ready() or the time is over; returns ready().

        Args:
            ready: called after every message, by the thread that reads: it is quick.
            timeout_s: None: for ever.
            first: what is awaited; where it is much, the first of it.
            only: its outcome alone makes it ready: no other message need wake this thread.
        """
        if ready():
            return True
        self.check_usable()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self.before_wait is not None:
            self.before_wait()
        self.flush()
        if timeout_s is not None and timeout_s < _LOOK_S:
            # The time may be over before the first look: whoever polls would never see anything.
            self.read_pending()
            if ready() or timeout_s == 0:
                return ready()
        block = self.on_blocked
        if block is None:
            return self._wait(ready, deadline, only)
        patience_s = self.patience_s(first is not None and self._is_queued(first))
        if patience_s is None or (timeout_s is not None and timeout_s <= patience_s):
            return self._wait(ready, deadline, only)
        if patience_s > 0:
            if self._wait(ready, time.monotonic() + patience_s, only):
                return True
        else:
            self.read_pending()  # It may lie here unread.
            if ready():
                return True
        block(True)
        try:
            return self._wait(ready, deadline, only)
        finally:
            block(False)

    def _is_queued(self, key: Key) -> bool:
        """Whether it is to come of a task that the node has and nobody is known to have begun."""
        return isinstance(key, int) and self.session.tasks.is_queued(task_number_of(key))

    def _wait(
        self, ready: Callable[[], bool], deadline: float | None, only: Key | None = None
    ) -> bool:
        try:
            while True:
                if self.io_lock.acquire(False):
                    return self._read_until(ready, deadline)
                if self.check_interrupt is not None:
                    self.check_interrupt()
                self.wake.set()  # The background thread makes way for us.
                left = 0.2 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return ready()
                self.turns.wait(only, min(left, 0.2), lambda: ready() or not self.io_lock.locked())
                if ready():
                    return True
        finally:
            if self.turns and not self.io_lock.locked():
                self.turns.pass_on()

    def _read_until(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Read, as the one thread that holds the lock for it, which is free at the end."""
        try:
            while not ready():
                if self.closed or self.node_died is not None:
                    self.check_usable()
                if self.check_interrupt is not None:
                    self.check_interrupt()
                if not self._read_one(deadline):
                    return ready()
            return True
        finally:
            self.io_lock.release()
            if not self.turns:
                if self.released is not None:
                    self.released()
                elif self.session.needs_service:
                    self.wake.set()

    def _read_one(self, deadline: float | None) -> bool:
        """Block for one message and apply it; False when the time is over."""
        timeout = _WAIT_SLICE_MS
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            timeout = min(timeout, max(1, int(left * 1000)))
        if self._reconcile_at is not None:
            timeout = min(timeout, 10)
        self.inbox.timeout_s = timeout / 1000
        received = self.inbox.receive(blocking=True)
        if received is not None:
            self._apply(*received)
        if self._reconcile_at is not None:
            self._reconcile_when_due()
        return True

    def _apply(self, sender: bytes, header: bytes, payloads: list[bytes]) -> None:
        try:
            message = frames.unpack(header)
        except errors.RemoteProtocolError:
            self.session.unhandled += 1
            return
        if message[1] in _WORKER_KINDS:
            if self.worker_message is not None:
                try:
                    self.worker_message(sender, message, payloads)
                except Exception as error:  # Whoever sent it, our own work goes on.
                    self._refuse(sender, message, error)
                if self.session.references.news:
                    with self.lock:
                        self.session.after_arrival()
                if self.turns:
                    self.turns.news(self.session.results)
            return
        session = self.session
        with self.lock:
            try:
                session.handle(sender, message, payloads)
            except Exception as error:  # Whoever sent it, our own gets must go on.
                self._refuse(sender, message, error)
            if session.references.news:
                session.after_arrival()
            if session.reconcile_wanted and self._reconcile_at is None:
                self._reconcile_at = time.monotonic() + RECONCILE_GRACE_S
            if session.tasks.turn_runs and self._turn_ends_at is None:
                self._turn_begins()
                self.wake.set()
        outbox = session.outbox
        if outbox.calls or outbox.messages or outbox.connections:
            self.flush()
        if self.turns:
            self.turns.news(self.session.results)

    def _refuse(self, sender: bytes, message: list[Any], error: Exception) -> None:
        self.session.unhandled += 1
        if self.session.unhandled <= _REFUSALS_SHOWN:
            name = messages.NAMES[message[1]]
            print(
                f"zray: refused a malformed {name} of process {sender.hex()}: {error!r}",
                file=sys.stderr,
            )

    def read_pending(self, messages_max: int = 1 << 30) -> bool:
        """Apply what has arrived, without waiting; False where there may be more.

        Does nothing where another thread reads: it applies all there is.
        """
        if not self.io_lock.acquire(False):
            return True
        try:
            for _ in range(messages_max):
                received = self.inbox.receive()
                if received is None:
                    return True
                self._apply(*received)
            return False
        finally:
            self.io_lock.release()
            self.turns.pass_on()

    def drain_outbound(self, timeout_s: float, bytes_max: int = 0) -> None:
        """Wait until the kernel has taken what was sent but for bytes_max, or the time is over.

        It reads meanwhile: two processes may wait for each other.
        """
        deadline = time.monotonic() + timeout_s
        while self.inbox.backlog_bytes > bytes_max and time.monotonic() < deadline:
            if self.io_lock.acquire(timeout=0.01):
                try:
                    self._read_one(min(deadline, time.monotonic() + 0.01))
                finally:
                    self.io_lock.release()

    def _reconcile_when_due(self) -> None:
        if self._reconcile_at is not None and time.monotonic() >= self._reconcile_at:
            self._reconcile_at = None
            with self.lock:
                self.session.reconcile()
            self.flush()

    # -- the background thread ---------------------------------------------------------------

    def _background(self) -> None:
        poller = select.poll()
        poller.register(self.lifeline.fileno(), select.POLLIN)
        poller.register(self.wake.fileno(), select.POLLIN)
        self.lifeline.socket.setblocking(False)
        while not self.closed:
            look = self._look_left() == 0
            if look:
                self._look_at = None
            serve = bool(
                (self.session.needs_service or self.inbox.stuck or look)
                and not self.turns
                and self.pump is None
                and self.io_lock.acquire(False)
            )
            try:
                self._background_once(poller, serve, 0 if look else self._look_left())
            finally:
                if serve:
                    self.io_lock.release()
                    self.turns.pass_on()

    def _turn_begins(self) -> None:
        self._turn_ends_at = time.monotonic() + LEASE_TURN_S

    def _look_left(self) -> float | None:
        """Return the time until results that nobody waits for are taken in; None: there are none.

        Else whoever makes them would have to keep them, and to stop when they are too many.
        """
        if not self.session.expects_results:
            self._look_at = None
            return None
        now = time.monotonic()
        if self._look_at is None:
            self._look_at = now + UNREAD_S
        return max(0.0, self._look_at - now)

    def _background_once(self, poller: select.poll, serve: bool, look_left_s: float | None) -> None:
        timeout = self._background_timeout_ms()
        if look_left_s is not None:
            timeout = min(look_left_s * 1000, timeout if timeout is not None else math.inf)
        self._sleeps_forever = timeout is None
        due = self._due_at
        if due is not None:
            left = max(0.0, (due - time.monotonic()) * 1000)
            timeout = left if timeout is None else min(timeout, left)
        if serve:
            poller.register(self.inbox.descriptor, select.POLLIN)
            if self.inbox.has_message():
                timeout = 0
        try:
            events = dict(poller.poll(timeout))
        finally:
            if serve:
                poller.unregister(self.inbox.descriptor)
        if self.wake.fileno() in events:
            self.wake.clear()
        if self.lifeline.fileno() in events:
            self._read_lifeline()
        if serve:
            for _ in range(64):
                received = self.inbox.receive()
                if received is None:
                    break
                self._apply(*received)
            else:
                self._look_at = 0.0  # There may be more.
        self._background_duties()

    def _background_timeout_ms(self) -> float | None:
        if self._turn_ends_at is not None:
            return _LINGER_S * 1000 if self._armed else LEASE_TURN_S * 1000
        if self._armed or self._reconcile_at is not None:
            return _LINGER_S * 1000
        if self.session.tasks.leases:
            return LEASE_IDLE_S * 1000
        if self.session.references.holds_at_node or self.session.outbox:
            # Somebody may drop the last reference and never call us again: look now and then.
            return RELEASE_LINGER_S * 1000
        return None

    def _background_duties(self) -> None:
        now = time.monotonic()
        if self._turn_ends_at is not None and now >= self._turn_ends_at:
            self._turn_ends_at = None
            with self.lock:
                self.session.tasks.end_turn()
            self.flush()
        if self._due_at is not None and now >= self._due_at:
            self._due_at = None
            if self.on_due is not None:
                self.on_due()
        if self._armed and now - self._last_flush >= _LINGER_S / 2:
            self._armed -= 1
            self.flush()
        self._reconcile_when_due()
        # A put settles what was dropped before it, and sends nothing.
        unsent = self.session.references.garbage or self.session.outbox
        if unsent and now - self._last_flush >= RELEASE_LINGER_S / 2:
            self.flush()
        if self.session.tasks.leases and now - self._last_sweep >= LEASE_IDLE_S:
            self._last_sweep = now
            with self.lock:
                self.session.tasks.sweep_leases()
            self.flush()

    def _read_lifeline(self) -> None:
        received, alive = self.lifeline.drain()
        for packed in received:
            message = frames.unpack(packed)
            rule = self.lifeline_rules.get(message[1])
            if rule is not None:
                rule(message)
        if not alive and not self.closed:
            self._node_lost("its process ended")
            self.closed = True

    def _unpin(self, message: list[Any]) -> None:
        with self.lock:
            self.session.references.collect()
            forgotten = self.session.references.unpin(message[3])
            self.session.outbox.call(messages.UNPINNED, forgotten)
        self.flush()

    def _recall(self, message: list[Any]) -> None:
        with self.lock:
            busy = time.monotonic() - self._last_flush < _BUSY_S
            self.session.tasks.recalled(message[3], busy=busy)
            if self.session.tasks.turn_runs and self._turn_ends_at is None:
                self._turn_begins()
        self.flush()

    # -- the end -------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise a typed error where this client can't be used (any more)."""
        if os.getpid() != self.pid:
            raise errors.ForkedProcessError(
                "zray was initialised before this process was forked, and its sockets do not"
                " survive a fork: call zray.init() in the child, or start it with 'spawn'"
            )
        if self.node_died is not None:
            raise self._died_error()
        if self.closed:
            raise errors.NotInitializedError("zray.shutdown() was called: call zray.init() again")

    def _died_error(self) -> errors.NodeDiedError:
        return errors.NodeDiedError(f"the node at {self.directory} is gone: {self.node_died}")

    def _node_lost(self, reason: str) -> None:
        if self.closed or self.node_died is not None:
            return
        self.node_died = reason + node_directory.last_words(self.directory)
        self.turns.wake_all()
        with self.lock:
            for callbacks in self.session.callbacks.values():
                for callback in callbacks:
                    callback()
            self.session.callbacks.clear()
        rule = self.lifeline_rules.get(messages.EXIT)
        if rule is not None:
            rule([0, messages.EXIT, 0, reason])

    def close(self, *, node_ends: bool = False) -> None:
        """Say goodbye, stop the thread, close every socket. Safe to call twice.

        Args:
            node_ends: the node ends with us: references need not be given up one by one.
        """
        if self.closed and not self.thread.is_alive() and self.context.closed:
            return
        if self.node_died is None and not self.closed:
            if node_ends:
                self.session.references.garbage.clear()
            with contextlib.suppress(OSError):
                self.flush()
                self._say_goodbye()
        self.closed = True
        self.wake.set()
        if self.thread.is_alive() and threading.current_thread() is not self.thread:
            self.thread.join(2.0)
            if not self.thread.is_alive():
                self._read_lifeline()  # What tasks printed last.
        self._dismiss_waiters()
        self.objects.close()
        self.lifeline.close()
        self.calls.close()
        if self.io_lock.acquire(timeout=1.0):
            self.inbox.close()
            self.io_lock.release()
        self.context.destroy(0)
        self.wake.close()

    def _say_goodbye(self) -> None:
        """A driver waits for the answer: all that its tasks have printed comes before it."""
        with self.send_lock:
            self.calls.send(frames.pack(messages.GOODBYE))
        if self.role == "driver" and self.request_lock.acquire(timeout=GOODBYE_TIMEOUT_S):
            try:
                self.calls.socket.settimeout(GOODBYE_TIMEOUT_S)
                self._answers_owed += 1
                self._take_answer()
            finally:
                self.request_lock.release()

    def _dismiss_waiters(self) -> None:
        """End every wait of this session with the error that it is closed."""
        self.turns.wake_all()
        if self.io_lock.locked():  # Another thread waits for messages: send it one.
            self.peers.connect(self.process, self.inbox.endpoint)
            self.peers.send(self.process, frames.pack(messages.PING))
        with self.lock:
            callbacks = [each for group in self.session.callbacks.values() for each in group]
            self.session.callbacks.clear()
            # A ref of this session must not answer once the session is over.
            self.session.results.clear()
        for callback in callbacks:
            callback()

    def forked(self) -> None:
        """In a forked child: let go of the parent's lifeline, whose EOF means its death."""
        self.closed = True
        self.lifeline.close()
        self.calls.close()


_WORKER_KINDS = frozenset((messages.RUN, messages.CALL, messages.START_ACTOR, messages.CONSUMED))
