"""What the API and the worker do through a client: submit, call, get, wait.

What    Runtime turns Python values into arguments and outcomes into values, and offers the waits.
Caller  zray/api.py, zray/remote_function.py, zray/actor.py, zray/refs.py, actors/*.
Never   polls a socket itself: that is Client.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from zray import errors
from zray.client import Client
from zray.option_feasibility import infeasible, is_feasible
from zray.protocol import messages, outcome
from zray.protocol.ids import object_id, task_number_of
from zray.protocol.limits import ACTOR_BACKLOG_BYTES_MAX, INLINE_BYTES_MAX, MAP_CHUNK_TASKS
from zray.protocol.purposes import Purpose
from zray.refs import ObjectRef, ObjectRefGenerator, RefSequence
from zray.serialization import blob
from zray.serialization.exceptions import encode_exception
from zray.serialization.functions import export
from zray.session.actors import ActorCall, ActorRoute
from zray.session.references import Key
from zray.session.session import Watch
from zray.session.streams import Stream
from zray.session.tasks import TaskBatch, TaskClass

STREAMING = -1
_PLAIN = frozenset((int, float, bool, str, bytes, type(None)))
_dumps = pickle.dumps
_loads = pickle.loads
_ELSEWHERE = outcome.ELSEWHERE
_PICKLE = outcome.PICKLE


class Arguments:
    """Arguments on their way: bytes, the refs they need filled in, and what must stay alive."""

    __slots__ = ("blob", "keep", "slots")

    def __init__(
        self, data: bytes, slots: dict[Key, list[int | str]] | None, keep: list[Any] | None
    ) -> None:
        self.blob = data
        self.slots = slots
        self.keep = keep


class Runtime(Client):
    """A connected process: the client plus the meaning of values."""

    def __init__(
        self, directory: str, process: bytes, role: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(directory, process, role, details)
        self.garbage = self.session.references.garbage
        self.results = self.session.results
        self.abandoned_streams: deque[Stream] = deque()
        self.abandoned_batches: deque[tuple[list[TaskBatch], frozenset[int]]] = deque()
        self.before_flush: Callable[[], None] | None = None
        """In a worker: turns finished work into messages."""
        self.is_elsewhere = role == "driver" and self.welcome["role"] == "client"
        """Whether its node is its own, and ends with it, while the cluster goes on."""
        self.namespace = ""
        self.env_vars: dict[str, str] = {}
        """What zray.init(runtime_env=...) sets for every task and actor of the job."""
        self._node_totals: list[dict[str, int]] = [self.welcome["resources"]]
        """What each node had in all when we last asked, in units."""
        self.captured_group: list[Any] | None = None
        """In a worker: the placement group, as messages name it, that what runs here submits to."""
        self._exported: dict[bytes, bool] = {}
        self.session.tasks.split_values = _split_values
        self.objects.await_key = lambda key: self.await_keys([key], None)
        self.child_made: Callable[[int], None] | None = None
        """In a worker: called with the number of each task or call that user code submits (a map:
        the negative of each batch's), for recursive cancels."""

    # -- code --------------------------------------------------------------------------------

    def export(self, code: Any) -> tuple[bytes, list[Any]]:
        """Put a function or class into the GCS (once); returns its id and the refs it captures."""
        identity, data, refs = export(code)
        if identity not in self._exported:
            self._exported[identity] = True
            with self.lock:
                for ref in refs:
                    self.session.references.share(ref.key)
                self.session.outbox.call(messages.PUT_FUNCTION, identity, data)
        return identity, refs

    # -- arguments ---------------------------------------------------------------------------

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Encode arguments. Refs at top level become values where the call runs."""
        slots: dict[Key, list[int | str]] | None = None
        keep: list[Any] | None = None
        if any(isinstance(value, ObjectRef) for value in args) or any(
            isinstance(value, ObjectRef) for value in kwargs.values()
        ):
            slots, keep = {}, []
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            for position, value in named:
                if isinstance(value, ObjectRef):
                    value.check_session(self)
                    slots.setdefault(value.key, []).append(position)
                    keep.append(value)
            args = tuple(None if isinstance(value, ObjectRef) else value for value in args)
            kwargs = {
                name: None if isinstance(value, ObjectRef) else value
                for name, value in kwargs.items()
            }
        encoded = blob.encode([args, kwargs] if kwargs else args)
        if encoded.refs:
            keep = [*(keep or ()), *encoded.refs]
            with self.lock:
                for ref in encoded.refs:
                    self.session.references.share(ref.key)
        if encoded.nbytes <= INLINE_BYTES_MAX:
            return Arguments(blob.to_bytes(encoded), slots, keep)
        return self._large_arguments(encoded, slots, keep)

    def _large_arguments(
        self,
        encoded: blob.Encoded,
        slots: dict[Key, list[int | str]] | None,
        keep: list[Any] | None,
    ) -> Arguments:
        """Arguments beyond the inline limit travel as one object in shared memory."""
        offset, extent_bytes = self.objects.write(encoded)
        with self.lock:
            number = self.session.tasks.take_numbers()
            self.objects.adopt(number, offset, extent_bytes, encoded.nbytes)
            self.session.references.share(number)
            found = self.results[number]
        holder: ObjectRef[Any] = ObjectRef(self, number)
        data = outcome.arguments(b"", {"": (object_id(self.process, number), found)})
        return Arguments(data, slots, [*(keep or ()), holder])

    # -- tasks -------------------------------------------------------------------------------

    def check_resources(self, request: dict[str, int], name: str, *, actor: bool = False) -> None:
        """Raise where no node could ever meet this request: waiting would be for ever."""
        if is_feasible(request, self._node_totals):
            return
        # Nodes come and go: what was so at the last look is asked afresh before it is refused.
        self._node_totals = self.request(messages.INSPECT, "totals", {})
        error = infeasible(request, self._node_totals, name, actor=actor)
        if error is not None:
            raise error

    def submit(
        self,
        task_class: TaskClass,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        streaming: bool = False,
    ) -> int:
        """Submit one task; returns the number of its first return."""
        if not kwargs:
            for value in args:
                if type(value) not in _PLAIN:
                    break
            else:
                data = _dumps(args, 5)
                if len(data) <= INLINE_BYTES_MAX:
                    with self.lock:
                        number = self.session.tasks.submit(task_class, data, None)
                        if streaming:
                            self.session.streams.start(number)
                    self.submitted()
                    return number
        packed = self.arguments(args, kwargs)
        with self.lock:
            tasks = self.session.tasks
            if packed.slots:
                number = tasks.take_numbers()
                self.session.submit_held(task_class, number, packed.blob, packed.slots, packed.keep)
            else:
                number = tasks.submit(task_class, packed.blob, packed.keep)
            if streaming:
                self.session.streams.start(number)
        self.submitted()
        return number

    def submit_map(self, task_class: TaskClass, items: Iterable[Any]) -> RefSequence[Any]:
        """Submit one task for each item; the refs are made when looked at."""
        values = items if isinstance(items, Sequence) else list(items)
        batches: list[TaskBatch] = []
        count = len(values)
        for at in range(0, count, MAP_CHUNK_TASKS):
            chunk = list(values[at : at + MAP_CHUNK_TASKS])
            self._submit_chunk(task_class, chunk, batches)
        self.flush()
        return RefSequence(self, batches, MAP_CHUNK_TASKS, count)

    def _submit_chunk(
        self, task_class: TaskClass, chunk: list[Any], batches: list[TaskBatch]
    ) -> None:
        keep: list[Any] = []
        slots: dict[Key, list[int | str]] = {}
        if any(isinstance(value, ObjectRef) for value in chunk):
            for position, value in enumerate(chunk):
                if isinstance(value, ObjectRef):
                    value.check_session(self)
                    slots.setdefault(value.key, []).append(position)
                    keep.append(value)
            chunk = [None if isinstance(value, ObjectRef) else value for value in chunk]
        encoded = blob.encode(chunk)
        if encoded.refs:
            keep.extend(encoded.refs)
            with self.lock:
                for ref in encoded.refs:
                    self.session.references.share(ref.key)
        if encoded.nbytes <= INLINE_BYTES_MAX * 16:
            data = blob.to_bytes(encoded)
        else:
            packed = self._large_arguments(encoded, None, keep)
            data, keep = packed.blob, packed.keep or []
        with self.lock:
            batch = self.session.map_batch(task_class, data, len(chunk), keep, slots)
        batches.append(batch)
        if self.child_made is not None:
            self.child_made(-batch.first)

    def watch_item(self, batch: TaskBatch, item: int) -> int:
        """Make item ``item`` of a map an object of its own; returns its number."""
        if self.closed:
            self.check_usable()
        with self.lock:
            return self.session.tasks.watch_item(batch, item)

    def stream(self, number: int) -> ObjectRefGenerator[Any]:
        """Follow generator task ``number``."""
        return ObjectRefGenerator(self, number, self.session.streams.open[number])

    # -- actors ------------------------------------------------------------------------------

    def create_actor(
        self,
        class_id: bytes,
        details: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: object,
    ) -> tuple[ObjectRef[Any], ActorRoute]:
        """Ask the node for an actor; raises NameTakenError where its name is taken."""
        packed = self.arguments(args, kwargs)
        session = self.session
        with self.lock:
            number = session.tasks.take_numbers()
            actor = object_id(self.process, number)
            route = session.actors.route(actor, details["pending"])
            route.watched = True
            if packed.keep:
                details = {**details, "keeps": True}  # The node says when it has started.
                session.actors.keep(route, (keep, packed.keep), details["restarts"])
            else:
                route.keep = keep
            session.references.created(number)
            data = session.arguments_now(packed.blob, packed.slots)
            creation = (messages.CREATE_ACTOR, actor, class_id, details, data)
            if details["name"] is None:
                session.outbox.call(*creation)
        ref: ObjectRef[Any] = ObjectRef(self, number)
        if details["name"] is not None:
            self._create_named(route, creation)
        if data is None and packed.slots:
            with self.lock:
                session.arguments_later(route, packed.blob, packed.slots)
        self.submitted()
        return ref, route

    def _create_named(self, route: ActorRoute, creation: tuple[Any, ...]) -> None:
        try:
            self.request(*creation)
        except BaseException:
            with self.lock:
                self.session.actors.routes.pop(route.actor, None)
                self.session.actors.keeping.discard(route.actor)
            raise

    def watch_actor(self, actor: bytes, pending_calls_max: int) -> ActorRoute:
        """Return the route of an actor made elsewhere; the node will tell its state."""
        with self.lock:
            route = self.session.actors.route(actor, pending_calls_max)
            if not route.watched:
                route.watched = True
                self.session.outbox.call(messages.WATCH_ACTOR, actor)
        return route

    def actor_killed(self, actor: bytes) -> None:
        """This process has killed an actor: its calls fail at once."""
        cause = outcome.error(
            encode_exception(
                errors.ActorDiedError(
                    "zray.kill() ended it", actor_id=actor.hex(), reason="zray.kill() ended it"
                ),
                where="zray.kill",
            )
        )
        with self.lock:
            route = self.session.actors.routes.get(actor)
            if route is not None:
                self.session.actors.state_changed(
                    actor, "DEAD", None, None, route.incarnation, cause
                )
            self.session.after_arrival()
        self.turns.wake_all()

    # -- actor calls ---------------------------------------------------------------------------

    def call_actor(
        self,
        route: ActorRoute,
        method: str | bytes,
        returns: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
        keep: object,
    ) -> int:
        """Call an actor; returns the number of the first return."""
        if not kwargs:
            for value in args:
                if type(value) not in _PLAIN:
                    break
            else:
                data = _dumps(args, 5)
                if len(data) <= INLINE_BYTES_MAX:
                    return self._send_call(route, method, returns, data, None, keep, retries)
        packed = self.arguments(args, kwargs)
        held = (keep, packed.keep) if packed.keep else keep
        return self._send_call(route, method, returns, packed.blob, packed.slots, held, retries)

    def _send_call(
        self,
        route: ActorRoute,
        method: str | bytes,
        returns: int,
        data: bytes,
        slots: dict[Key, list[int | str]] | None,
        keep: object,
        retries: int,
    ) -> int:
        if self.closed:
            self.check_usable()
        limit = route.pending_calls_max
        session = self.session
        with self.lock:
            if 0 <= limit <= len(route.pending):
                raise errors.PendingCallsLimitError(
                    f"{len(route.pending)} calls wait for this actor and max_pending_calls is"
                    f" {limit}: get() some results first, or raise the limit",
                    limit=limit,
                )
            if route.pending_bytes > ACTOR_BACKLOG_BYTES_MAX:
                raise errors.PendingCallsLimitError(
                    f"{route.pending_bytes} bytes of arguments wait for this actor and"
                    f" {ACTOR_BACKLOG_BYTES_MAX} are the most: get() some results first, or put()"
                    " what several calls take and pass the ref",
                    limit=len(route.pending),
                )
            number = session.tasks.take_numbers()
            if returns == STREAMING:
                session.streams.start(number)
            call = ActorCall(number, method, returns, None if slots else data, keep, retries)
            session.actors.call(route, call)
            if slots:
                session.resolve(
                    data,
                    slots,
                    lambda filled: session.actors.arguments_ready(route, number, filled),
                    lambda found: session.actors.argument_failed(route, number, found),
                    (number, 1, method, route.actor),
                )
        self.call_submitted(route)
        return number

    def call_submitted(self, route: ActorRoute) -> None:
        """Send gathered calls when they are many, or after silence."""
        if len(route.outgoing) >= 64 and route.process is not None:
            self.flush()
        else:
            self.submitted()

    # -- waiting -------------------------------------------------------------------------------

    def is_ready(self, key: Key) -> bool:
        """Return whether an outcome (value or error) is here."""
        found = self.results.get(key)
        return found is not None and found[0] != _ELSEWHERE

    def get_one(
        self, ref: ObjectRef[Any], timeout_s: float | None, *, writable: bool = False
    ) -> Any:
        """Wait for one ref and return its value, or raise its error."""
        key = ref.key
        found = self.results.get(key)
        if found is None and type(key) is int and key not in self.session.references.adopted:
            # Nobody but the outcome itself will change this: C code can watch for it.
            self.wait_until(partial(self.results.__contains__, key), timeout_s, first=key, only=key)
            found = self.results.get(key)
        if found is None or found[0] == _ELSEWHERE:
            self.await_keys([key], timeout_s)
            found = self.results[key]
        if found[0] == _PICKLE:
            return _loads(found)
        return self.objects.value(key, found, writable=writable)

    def get_many(
        self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None, *, writable: bool = False
    ) -> list[Any]:
        """Wait for all and return their values in order, or raise the first error."""
        results = self.results
        keys = [ref.key for ref in refs]
        for key in keys:
            found = results.get(key)
            if found is None or found[0] == _ELSEWHERE:
                if any((each := results.get(key)) and each[0] == _ELSEWHERE for key in keys):
                    return self._get_spilled(keys, timeout_s, writable=writable)
                self.await_keys(keys, timeout_s)
                break
        value = self.objects.value
        return [
            _loads(found)
            if (found := results[key])[0] == _PICKLE
            else value(key, found, writable=writable)
            for key in keys
        ]

    def _get_spilled(
        self, keys: list[Key], timeout_s: float | None, *, writable: bool
    ) -> list[Any]:
        """Wait for all, and read each as it comes: what is not read yet may have to make room.

        A list that is larger than memory would else come back from disk twice.
        """
        session, results, value = self.session, self.results, self.objects.value
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        values: dict[Key, Any] = {}
        failed: dict[Key, BaseException] = {}
        pending = set(keys)
        watch = Watch()
        try:
            with self.lock:
                session.follow(watch, keys)
            while pending:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self.wait_until(partial(watch.has, 1), left):
                    raise self._timed_out(keys, timeout_s)
                key = watch.arrived.popleft()
                found = results[key]
                if found[0] == _ELSEWHERE:
                    with self.lock:
                        session.follow(watch, (key,))  # It had to make room before we came to it.
                    continue
                pending.discard(key)
                if found[0] == outcome.ERROR:
                    failed[key] = self.objects.error(key, found)
                else:
                    values[key] = value(key, found, writable=writable)
        finally:
            watch.closed = True
        if failed:
            raise _take_first(keys, failed)
        return [values[key] for key in keys]

    def get_map(
        self, refs: RefSequence[Any], timeout_s: float | None, *, writable: bool = False
    ) -> list[Any]:
        """Wait for a whole map and return its values in order, or raise the first error."""
        if self.closed:
            self.check_usable()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        values: list[Any] = []
        for batch in refs.batches:
            if batch.done.find(0) >= 0:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                done = batch.done
                if not self.wait_until(partial(_complete, done), left, first=batch.first):
                    missing = sum(b.done.count(0) for b in refs.batches)
                    raise errors.GetTimeoutError(
                        f"{missing} of {len(refs)} map results are not there after {timeout_s} s",
                        timeout_s=timeout_s or 0.0,
                    )
            self._extend(values, batch, writable)
        return values

    def _extend(self, values: list[Any], batch: TaskBatch, writable: bool) -> None:
        assert batch.values is not None
        if len(batch.values) == 1 and batch.values[0][1] == batch.count:
            values.extend(blob.decode(batch.values[0][2], writable=writable))
            return
        chunk: list[Any] = [None] * batch.count
        covered = bytearray(batch.count)
        for low, count, data in batch.values:
            chunk[low : low + count] = blob.decode(data, writable=writable)
            covered[low : low + count] = b"\1" * count
        item = -1
        while (item := covered.find(0, item + 1)) >= 0:
            number = batch.first + item
            chunk[item] = self.objects.value(number, self.results[number], writable=writable)
        values.extend(chunk)

    def await_keys(
        self, keys: list[Key], timeout_s: float | None, purpose: int = Purpose.GET
    ) -> None:
        """Wait until every key has an outcome; raises GetTimeoutError."""
        results = self.results
        self.locate(keys, purpose)
        position = 0
        count = len(keys)

        def ready() -> bool:
            nonlocal position
            while position < count:
                found = results.get(keys[position])
                if found is None:
                    return False
                if found[0] == _ELSEWHERE:
                    self.locate(keys[position : position + 1], purpose)
                    self.flush()
                    return False
                position += 1
            return True

        if not ready() and not self.wait_until(ready, timeout_s, first=keys[position]):
            raise self._timed_out(keys, timeout_s)

    def _timed_out(self, keys: list[Key], timeout_s: float | None) -> errors.GetTimeoutError:
        waiting = [key for key in keys if not self.is_ready(key)]
        return errors.GetTimeoutError(
            f"{len(waiting)} of {len(keys)} objects are not there after {timeout_s} s;"
            f" `zray-node why {self.session.references.id_of(waiting[0]).hex()}` says what the"
            " first of them waits for",
            timeout_s=timeout_s or 0.0,
        )

    def locate(self, keys: Iterable[Key], purpose: int) -> None:
        """Ask the node where the values of these lie, of those that it alone can know."""
        results, references = self.results, self.session.references
        absent = [
            key for key in keys if (found := results.get(key)) is None or found[0] == _ELSEWHERE
        ]
        if absent and (references.units or references.registered):
            with self.lock:
                for key in absent:
                    references.locate(key, purpose)

    def wait_for_work(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """In a worker: read messages until there is work, or the time is over."""
        return self._wait(ready, None if timeout_s is None else time.monotonic() + timeout_s)

    def cancel(self, ref: ObjectRef[Any], *, force: bool, recursive: bool) -> None:
        """Ask for the end of the task or call that makes this ref."""
        if not isinstance(ref.key, int):
            raise errors.UserError(
                f"{ref!r} was made by another process, and only that one can"
                " cancel it: cancel it where .remote() was called"
            )
        if not self.is_ready(ref.key):
            self.cancel_number(task_number_of(ref.key), force=force, recursive=recursive)

    def cancel_number(self, number: int, *, force: bool = False, recursive: bool) -> None:
        """Ask for the end of a task or call by its number; nothing where it has ended."""
        cancelled = outcome.error(
            encode_exception(
                errors.TaskCancelledError(
                    "cancelled before it began", task_id=object_id(self.process, number).hex()
                ),
                where="zray.cancel",
            )
        )
        self.flush()
        with self.lock:
            session = self.session
            route = session.actors.by_number.get(number)
            if route is not None and force:
                raise ValueError("force=True would kill the actor: use zray.kill(actor)")
            if session.cancel_unsent(number, cancelled):
                return
            if route is not None:
                session.outbox.call(messages.CANCEL, route.process, number, 0, False, recursive)
            else:
                batch = session.tasks.batch_of(number)
                if batch is not None:
                    session.outbox.call(
                        messages.CANCEL,
                        batch.target,
                        batch.first,
                        number - batch.first,
                        force,
                        recursive,
                    )
        self.flush()

    def when_ready(self, key: Key, callback: Callable[[], None]) -> bool:
        """Call back (from any thread) once the outcome is here; True: it is, nothing is called."""
        self.check_usable()
        with self.lock:
            if self.is_ready(key):
                return True
            self.session.callbacks.setdefault(key, []).append(callback)
            self.session.references.locate(key)
        if self.pump is None or not self.pump():
            self.flush()
            self.wake.set()
        return False

    def when_item(self, stream: Stream, completion: Key, callback: Callable[[], None]) -> None:
        """Call back when a generator has an item or has ended."""
        from zray.protocol.ids import return_number

        with self.lock:
            callbacks = self.session.callbacks
            ready = stream.arrived > stream.consumed or self.is_ready(completion)
            if not ready:
                item = return_number(stream.number, stream.consumed + 1)
                callbacks.setdefault(item, []).append(callback)
                callbacks.setdefault(completion, []).append(callback)
        if ready:
            callback()
        else:
            self.flush()
            self.wake.set()

    # -- what the collector left ---------------------------------------------------------------

    def flush(self) -> None:
        """Send all that has gathered; settle abandoned maps and generators first."""
        if self.before_flush is not None:
            self.before_flush()
        if self.abandoned_batches or self.abandoned_streams:
            self._settle_abandoned()
        super().flush()

    def _settle_abandoned(self) -> None:
        with self.lock:
            while self.abandoned_batches:
                batches, made = self.abandoned_batches.popleft()
                self.session.tasks.abandon(batches, made, MAP_CHUNK_TASKS)
            while self.abandoned_streams:
                self.session.streams.close(self.abandoned_streams.popleft())


def _take_first(keys: list[Key], failed: dict[Key, BaseException]) -> BaseException:
    """Return the first error, and forget all: a frame must not keep what will keep the frame."""
    first = next(failed[key] for key in keys if key in failed)
    failed.clear()
    return first


def _complete(done: bytearray) -> bool:
    return done.find(0) < 0


_decoded: tuple[bytes, list[Any]] = (b"", [])
"""The list split last: whoever looks at one item of a map looks at the next ones too."""


def _split_values(values: bytes, item: int) -> bytes:
    global _decoded
    if _decoded[0] is not values:
        _decoded = values, blob.decode(values)
    return blob.to_bytes(blob.encode(_decoded[1][item]))
