"""The session's door: one rule for each message that reaches a client.

What    Session joins references, tasks, actor calls and streams, resolves arguments that are
        not ready yet, and turns a death into retries or errors.
Caller  zray/client.py (driver and worker), tests/sim.
Never   opens a socket, reads a clock, starts a thread, pickles.
Spec    docs/reference/protocol.md.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar

import msgpack

from zray.protocol import messages, outcome
from zray.protocol.ids import ObjectId, ProcessId, number_of, return_number
from zray.protocol.purposes import Purpose

from .actors import DEAD, ActorCall, ActorCalls, ActorRoute
from .outbox import Outbox
from .references import Key, References
from .streams import Streams
from .tasks import TaskBatch, TaskClass, Tasks

Complete = Callable[[bytes], None]
ErrorOutcome = Callable[[str, str], bytes]
Whose = tuple[int, int, str | bytes, bytes]
"""Of calls that wait: the number of the first, how many, what is called, and the actor if any."""


class HeldCall:
    """A task or call that waits for outcomes it takes as arguments."""

    __slots__ = ("blob", "complete", "fail", "filled", "slots", "whose")

    def __init__(
        self,
        blob: bytes,
        slots: dict[Key, list[int | str]],
        filled: dict[Any, Any],
        complete: Complete,
        fail: Complete | None,
        whose: Whose,
    ) -> None:
        self.blob = blob
        self.slots = slots
        self.filled = filled
        self.complete = complete
        self.fail = fail
        self.whose = whose


class Watch:
    """Keys that somebody waits for, and those of them that have come, in the order they came.

    Args:
        purpose: Purpose.PLACE where a value on another node, or on disk, has come; else it is
            brought here first.
    """

    __slots__ = ("arrived", "closed", "keys", "purpose")

    def __init__(self, purpose: int = Purpose.GET) -> None:
        self.purpose = purpose
        self.keys: set[Key] = set()
        """Not here yet."""
        self.arrived: deque[Key] = deque()
        self.closed = False
        """Nobody looks any more. Set without the lock: a collected generator does it, too."""

    def has(self, count: int) -> bool:
        """Whether as many have come, or had come before."""
        return len(self.arrived) >= count


class Session:
    """All client state of one process. The shell holds ``lock`` around every method."""

    def __init__(self, process: ProcessId, node: ProcessId, error_outcome: ErrorOutcome) -> None:
        self.process = process
        self.node = node
        self.error_outcome = error_outcome
        self.results: dict[Key, bytes] = {}
        self.outbox = Outbox()
        self.references = References(process, node, self.results, self.outbox)
        self.tasks = Tasks(node, self.results, self.references, self.outbox)
        self.actors = ActorCalls(self.references, self.outbox)
        self.streams = Streams(self.references, self.outbox)
        self.held: dict[Key, list[HeldCall]] = {}
        self.held_tasks: dict[int, Complete] = {}
        """What ends a task that waits for its arguments, by its number."""
        self.callbacks: dict[Key, list[Callable[[], None]]] = {}
        self.watches: list[Watch] = []
        self.references.waiting = (self.held, self.callbacks, self.watches)
        self.reconcile_wanted = False
        self.unhandled = 0

    @property
    def needs_service(self) -> bool:
        """Whether something moves only if somebody reads the inbox soon."""
        # What was dropped unread may hold much memory, and nobody will ever wait for it.
        return bool(
            self.held
            or self.callbacks
            or self.references.publish
            or self.references.dropped
            or self.actors.waiting_for_place > 0
            or self.actors.keeping
            or self.reconcile_wanted
            or self.tasks.awaits_lease
        )

    @property
    def expects_results(self) -> bool:
        """Whether some are on their way, or will be."""
        return bool(self.tasks.batches or self.actors.by_number)

    def flush(self) -> None:
        """Turn everything gathered into messages."""
        if self.references.garbage or self.references.voided:
            self.references.collect()
        if self.tasks.open:
            self.tasks.close_open()
        if self.actors.dirty:
            self.actors.flush()

    # -- arguments that are references -----------------------------------------------------------

    def resolve(
        self,
        blob: bytes,
        slots: dict[Key, list[int | str]],
        complete: Complete,
        fail: Complete | None,
        whose: Whose = (0, 0, "", b""),
    ) -> bool:
        """Fill references into arguments: complete(arguments) now or when all have arrived.

        ``slots`` maps a key to the positions and names that take its value; ``fail`` gets the
        outcome of an argument that is an error (None: errors are filled in like values); ``whose``
        is for people who ask what waits. Returns False where it has to wait.
        """
        held = HeldCall(blob, dict(slots), {}, complete, fail, whose)
        for key in slots:
            if self._fill(held, key) is False:
                self.held.setdefault(key, []).append(held)
                self.references.locate(key, Purpose.PLACE)
        return not held.slots

    def _fill(self, held: HeldCall, key: Key) -> bool | None:
        """True: filled. False: not here yet. None: the call is over (an argument failed)."""
        found = self.results.get(key)
        if found is None:
            return False
        positions = held.slots.pop(key, None)
        if positions is None:
            return None
        if found[0] == outcome.ERROR and held.fail is not None:
            held.slots.clear()
            held.fail(found)
            return None
        if found[0] == outcome.STORED or found[0] == outcome.ELSEWHERE:
            # What is on another node or on disk is fetched by who needs it, where that runs.
            self.references.share(key)
        for position in positions:
            held.filled[position] = (self.references.id_of(key), found)
        if not held.slots:
            held.complete(outcome.arguments(held.blob, held.filled))
        return True

    def after_arrival(self) -> None:
        """Serve those who waited for what has just arrived.

        Only the news are looked at: with thousands of waits a look at each of them for every
        message would cost their square.
        """
        references = self.references
        arrived: list[Key] = []
        while references.news:  # A held call that fails is the outcome another waits for.
            news, references.news = references.news, []
            arrived += news
            if self.held:
                self._serve_held(news)
        if self.actors.dirty:
            self.actors.flush()  # Into the outbox: the shell looks there, and nobody else calls.
        if self.callbacks:
            for key in arrived:
                if key in self.callbacks and self._is_here(key):
                    for callback in self.callbacks.pop(key):
                        callback()
        for watch in list(self.watches):
            if watch.closed:
                self.watches.remove(watch)
            else:
                self._show(watch, arrived)

    def _is_here(self, key: Key) -> bool:
        """Whether the outcome is here; the node is asked for one that is elsewhere."""
        found = self.results.get(key)
        if found is None:
            return False
        if found[0] == outcome.ELSEWHERE:
            self.references.locate(key)
            return False
        return True

    def _serve_held(self, news: list[Key]) -> None:
        for key in news:
            if key in self.held and key in self.results:
                for held in self.held.pop(key):
                    self._fill(held, key)

    def follow(self, watch: Watch, keys: Collection[Key]) -> None:
        """Let a watch tell of these keys (too); those that are here have arrived, in this order."""
        if watch not in self.watches:
            self.watches.append(watch)
        awaited = set(keys)
        watch.keys |= awaited
        if here := self.results.keys() & awaited:
            self._show(watch, [key for key in keys if key in here])
        # Whatever only the node knows is among what it counts for us.
        for key in self.references.units.keys() & awaited & watch.keys:
            self.references.locate(key, watch.purpose)

    def _show(self, watch: Watch, news: Iterable[Key]) -> None:
        awaited, arrived = watch.keys, watch.arrived
        for key in filter(awaited.__contains__, news):
            if watch.purpose == Purpose.PLACE or self._is_here(key):
                awaited.discard(key)
                arrived.append(key)

    def call_actor(self, route: ActorRoute, call: ActorCall) -> None:
        """Add a call to an actor's route."""
        self.actors.call(route, call)

    def submit_held(
        self,
        task_class: TaskClass,
        number: int,
        blob: bytes,
        slots: dict[Key, list[int | str]],
        keep: object,
    ) -> None:
        """Submit a numbered task as soon as its arguments are here."""

        def complete(arguments: bytes) -> None:
            if self.held_tasks.pop(number, None) is not None:  # Else it was cancelled.
                inputs = self._inputs(slots)
                self.tasks.submit_numbered(task_class, number, arguments, keep, inputs)

        def fail(found: bytes) -> None:
            if self.held_tasks.pop(number, None) is not None:
                for index in range(max(1, task_class.returns)):
                    self.references.arrived(return_number(number, index), found)

        self.held_tasks[number] = fail
        self.resolve(blob, slots, complete, fail, (number, 1, task_class.spec[1], b""))

    def _inputs(self, keys: Iterable[Key]) -> list[ObjectId]:
        """Return the ids of large arguments, where one at least is not in this node's memory."""
        large = {
            key: found[0]
            for key in keys
            if (found := self.results.get(key)) and found[0] in (outcome.STORED, outcome.ELSEWHERE)
        }
        if outcome.ELSEWHERE not in large.values():
            return []
        return [self.references.id_of(key) for key in large]

    def arguments_now(self, blob: bytes, slots: dict[Key, list[int | str]] | None) -> bytes | None:
        """Return complete arguments; None where an outcome is an error, or not here yet."""
        if not slots:
            return blob
        for key in slots:
            found = self.results.get(key)
            if found is None or found[0] in (outcome.ELSEWHERE, outcome.ERROR):
                return None
        complete: list[bytes] = []
        self.resolve(blob, slots, complete.append, None)
        return complete[0]

    def arguments_later(
        self, route: ActorRoute, blob: bytes, slots: dict[Key, list[int | str]]
    ) -> None:
        """Send the arguments of an actor that the node knows of as soon as they are here."""

        # What it waits for must come even where the actor is killed meanwhile: hence the default.
        def complete(arguments: bytes, _keep: object = route.keep) -> None:
            self.outbox.call(messages.ACTOR_ARGUMENTS, route.actor, arguments, b"")

        def fail(found: bytes) -> None:
            self.outbox.call(messages.ACTOR_ARGUMENTS, route.actor, None, found)
            self.actors.state_changed(route.actor, DEAD, None, None, 0, found)

        whose = (number_of(route.actor), 1, "__init__", route.actor)
        self.resolve(blob, slots, complete, fail, whose)

    def cancel_unsent(self, number: int, found: bytes) -> bool:
        """End a task or call that has not left this process; False: it has."""
        fail = self.held_tasks.get(number)
        if fail is not None:
            fail(found)
        elif not (
            self.actors.cancel_unsent(number, found) or self.tasks.cancel_parked(number, found)
        ):
            return False
        self.after_arrival()
        return True

    def map_batch(
        self,
        task_class: TaskClass,
        data: bytes,
        count: int,
        keep: list[Any],
        slots: dict[Key, list[int | str]],
    ) -> TaskBatch:
        """Submit a map's batch, at once or when the refs among its items are here."""
        batch = self.tasks.map_batch(task_class, data, count, keep)
        if not slots:
            self.tasks.submit_batch(batch)
            return batch

        def complete(filled: bytes) -> None:
            batch.payload = filled
            self.tasks.submit_batch(batch)

        # An item that is an error travels on: it must not end the others of its batch.
        self.resolve(data, slots, complete, None, (batch.first, count, task_class.spec[1], b""))
        return batch

    def statistics(self) -> dict[str, int]:
        """Return the counts of all machines."""
        return {
            **self.references.statistics(),
            **self.tasks.statistics(),
            **self.actors.statistics(),
            "streams": len(self.streams.open),
            "held_calls": len({id(call) for calls in self.held.values() for call in calls}),
        }

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        self.references.check()
        self.tasks.check()
        self.actors.check()
        for number, stream in self.streams.open.items():
            assert stream.number == number
            assert 0 <= stream.consumed <= stream.arrived, "an item taken before it came"
        news = set(self.references.news)
        for key in self.callbacks:
            assert key in news or not self._has(key), f"{key!r} is here and nobody was called"
        for watch in self.watches:
            told = self.results.__contains__ if watch.purpose == Purpose.PLACE else self._has
            assert all(key in news or not told(key) for key in watch.keys), "news untold"
        for key, calls in self.held.items():
            assert calls, f"nobody waits for {key!r}"
            assert key in news or key not in self.results, f"{key!r} was not filled in"
            assert all(key in call.slots or not call.slots for call in calls)

    def _has(self, key: Key) -> bool:
        return self.results.get(key, outcome.ELSEWHERE_OUTCOME)[0] != outcome.ELSEWHERE

    # -- messages ----------------------------------------------------------------------------------

    def handle(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        """Apply one mailbox message. Unknown kinds for a client are counted, not obeyed."""
        rule = self._RULES.get(message[1])
        if rule is None:
            self.unhandled += 1
            return
        rule(self, sender, message, payloads)

    def _results(self, _sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        outcomes = msgpack.unpackb(payloads[0])
        self.tasks.results_arrived(message[3], message[4], message[5], outcomes, message[6])

    def _map_results(self, _sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        self.tasks.map_arrived(message[3], message[4], message[5], payloads[0])

    def _replies(self, _sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        self.actors.replied(message[3], message[4], message[5])

    def _actor_state(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        if sender == self.node:
            for row in message[3]:
                self.actors.state_changed(*row)

    def _process_died(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        if sender != self.node:
            return
        process, reason = message[3], message[4]
        self.outbox.disconnect(process)
        for batch in self.tasks.worker_died(process, reason):
            self._crash(batch, 0, batch.count, reason)
        self.actors.process_died(process, self.error_outcome("actor", reason))
        self.streams.process_died(process)
        if self.tasks.batches:
            self.reconcile_wanted = True

    def reconcile(self) -> None:
        """Ask the node which outstanding tasks it does not have. The shell waits a moment first."""
        self.reconcile_wanted = False
        rows = self.tasks.unfinished()
        if rows:
            # By mailbox, behind the submissions it asks about.
            self.outbox.message(self.node, messages.RECONCILE, rows)

    def _reconciled(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        if sender != self.node:
            return
        for first, low, high in message[3]:
            batch = self.tasks.batches.get(first)
            if batch is None:
                continue
            for start, end in list(batch.missing()):
                for at, to in self.tasks.again(batch, max(start, low), min(end, high)):
                    self._crash(batch, at, to, "its worker died before the result left it")

    def _crash(self, batch: TaskBatch, low: int, high: int, reason: str) -> None:
        found = self.error_outcome(
            "task", f"{reason}; max_retries={batch.task_class.max_retries} are used up"
        )
        for item in range(low, high):
            self.tasks.failed(batch, item, found)

    def _task_failed(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        if sender != self.node:
            return
        batch = self.tasks.batches.get(message[3])
        if batch is not None:
            for item in message[4]:
                self.tasks.failed(batch, item, message[5])

    def _leased(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        if sender != self.node:
            return
        if message[4] is not None:
            self.outbox.connect(message[4], message[5])
        self.tasks.leased(message[3], message[4], recalled=message[6])

    def _located(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        if sender == self.node:
            for identity, found in message[3]:
                self.references.found(identity, found)

    def _yielded(self, sender: bytes, message: list[Any], _payloads: list[bytes]) -> None:
        self.streams.yielded(sender, message[3], message[4], message[5])

    def _ping(self, _sender: bytes, _message: list[Any], _payloads: list[bytes]) -> None:
        return

    _RULES: ClassVar[dict[int, Callable[[Any, bytes, list[Any], list[bytes]], None]]] = {
        messages.RESULTS: _results,
        messages.MAP_RESULTS: _map_results,
        messages.REPLIES: _replies,
        messages.ACTOR_STATE: _actor_state,
        messages.PROCESS_DIED: _process_died,
        messages.RECONCILED: _reconciled,
        messages.TASK_FAILED: _task_failed,
        messages.LEASED: _leased,
        messages.LOCATED: _located,
        messages.YIELDED: _yielded,
        messages.PING: _ping,
    }
