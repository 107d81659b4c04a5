"""What simulated user code can do: the rules of zray/runtime.py without pickles.

What    Submitting tasks and maps, creating and calling actors, generators, cancelling.
Caller  tests/sim/driver.py, tests/sim/worker.py, tests/sim/scripts.py.
Never   decides anything the session should decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from tests.sim.process import (
    STORED_BYTES,
    ProcessExitError,
    Program,
    SimError,
    SimProcess,
    SimRef,
    Wait,
    pack,
    unpack,
)
from tests.sim.scripts import kind_of
from zray.brokers.gcs.tables import code_hash
from zray.protocol import messages, outcome
from zray.protocol.ids import object_id, return_number
from zray.session.actors import ActorCall, ActorRoute
from zray.session.references import Key
from zray.session.streams import Stream
from zray.session.tasks import TaskBatch, TaskClass

MAP_CHUNK = 8


class SimHandle:
    """An actor's handle."""

    def __init__(self, ref: SimRef, route: ActorRoute) -> None:
        self.ref = ref
        self.route = route


class SimMap:
    """A RefSequence."""

    def __init__(self, process: SimRuntime, batches: list[TaskBatch], count: int) -> None:
        self.process = process
        self.batches = batches
        self.count = count
        self.made: dict[int, SimRef] = {}

    def ref(self, index: int) -> SimRef:
        """The ref of one item."""
        if index not in self.made:
            batch = self.batches[index // MAP_CHUNK]
            number = self.process.session.tasks.watch_item(batch, index % MAP_CHUNK)
            self.made[index] = SimRef(self.process, number)
        return self.made[index]

    def __del__(self) -> None:
        batches, made = self.batches, frozenset(self.made)
        tasks = self.process.session.tasks
        self.process.abandoned.append(lambda: tasks.abandon(batches, made, MAP_CHUNK))


class SimStream:
    """An ObjectRefGenerator."""

    def __init__(self, process: SimRuntime, number: int, stream: Stream) -> None:
        self.process = process
        self.stream = stream
        self.completion = SimRef(process, number)

    def __del__(self) -> None:
        stream, streams = self.stream, self.process.session.streams
        self.process.abandoned.append(lambda: streams.close(stream))


class SimRuntime(SimProcess):
    """A process with the API."""

    def __init__(self, world: Any, identity: bytes) -> None:
        self._classes: dict[str, TaskClass] = {}
        self._exported: set[bytes] = set()
        super().__init__(world, identity)

    def crash_from_within(self, reason: str) -> None:
        """User code ends the process: nothing after this runs."""
        self.world.after(0.0, "crash", lambda: self.crash(reason))
        raise ProcessExitError

    # -- arguments -----------------------------------------------------------------------------

    def _arguments(
        self, script: dict[str, Any], arguments: list[SimRef], *, large: bool
    ) -> Program:
        """Runtime.arguments(): (bytes, slots, what must stay alive)."""
        keep: list[Any] = [*arguments]
        slots: dict[Key, list[int | str]] = {}
        for position, ref in enumerate(arguments):
            slots.setdefault(ref.key, []).append(position)
        inner = [ref for ref, _want in script["refs"]]
        inner += [handle.ref for handle in script["actors"]]
        for ref in inner:
            self.references.share(ref.key)
            keep.append(ref)
        plain = {
            **script,
            "refs": [[ref.id, wanted] for ref, wanted in script["refs"]],
            "actors": [handle.route.actor for handle in script["actors"]],
        }
        if not large:
            return pack(plain), slots, keep
        offset = yield from self.write(pack(plain))
        number = self.session.tasks.take_numbers()
        self.results[number] = outcome.stored(offset, STORED_BYTES)
        self._private[number] = offset
        self.references.share(number)
        data = outcome.arguments(b"", {"": (self.object_id(number), self.results[number])})
        return data, slots, [*keep, SimRef(self, number)]

    # -- tasks ---------------------------------------------------------------------------------

    def task_class(self, kind: str) -> TaskClass:
        """Declare a kind of task once."""
        found = self._classes.get(kind)
        if found is None:
            resources, returns, retries, where = kind_of(kind)
            spec = [self.code(kind), kind, resources, returns, retries, None, 2, {}, 0]
            shape: tuple[tuple[str, int | str], ...] = tuple(sorted(resources.items()))
            if where is not None:
                spec.append(where)
                shape = (*shape, ("where", kind))
            found = self._classes[kind] = self.session.tasks.declare(
                spec, shape=shape, returns=returns, max_retries=retries
            )
        return found

    def code(self, name: str) -> bytes:
        """Put the code of a function where workers find it, once; returns its hash."""
        function = code_hash(name.encode())
        if function not in self._exported:
            self._exported.add(function)
            self.session.outbox.call(messages.PUT_FUNCTION, function, name.encode())
        return function

    def submit(
        self,
        kind: str,
        script: dict[str, Any],
        arguments: list[SimRef] | None = None,
        *,
        large: bool = False,
    ) -> Program:
        """Submit a task; returns its refs."""
        task_class = self.task_class(kind)
        number = yield from self._submit(task_class, script, arguments or [], large=large)
        self.submitted()
        return [SimRef(self, return_number(number, index)) for index in range(task_class.returns)]

    def _submit(
        self, task_class: TaskClass, script: dict[str, Any], arguments: list[SimRef], *, large: bool
    ) -> Program:
        data, slots, keep = yield from self._arguments(script, arguments, large=large)
        if slots:
            number: int = self.session.tasks.take_numbers()
            self._depends(number, task_class.returns, slots)
            self.session.submit_held(task_class, number, data, slots, keep)
            return number
        return self.session.tasks.submit(task_class, data, keep)

    def _depends(self, number: int, returns: int, slots: Iterable[Key]) -> None:
        losses = self.world.losses
        if losses is not None:
            arguments = [self.references.id_of(key) for key in slots]
            for index in range(max(1, returns)):
                losses.depends(self.object_id(return_number(number, index)), arguments)

    def submit_stream(self, script: dict[str, Any]) -> Program:
        """Submit a generator task."""
        number = yield from self._submit(self.task_class("stream"), script, [], large=False)
        stream = self.session.streams.start(number)
        self.submitted()
        return SimStream(self, number, stream)

    def submit_map(self, scripts: list[dict[str, Any]], arguments: dict[int, SimRef]) -> SimMap:
        """Submit a map; some items take a ref's value."""
        task_class = self.task_class("plain")
        batches = []
        for at in range(0, len(scripts), MAP_CHUNK):
            chunk = scripts[at : at + MAP_CHUNK]
            slots: dict[Key, list[int | str]] = {}
            keep: list[Any] = []
            for position in range(len(chunk)):
                ref = arguments.get(at + position)
                if ref is not None:
                    slots.setdefault(ref.key, []).append(position)
                    keep.append(ref)
            batch = self.session.map_batch(task_class, pack(chunk), len(chunk), keep, slots)
            batches.append(batch)
            for each, positions in slots.items():
                for slot in positions:
                    self._depends(batch.first + int(slot), 1, [each])
        self.flush()
        return SimMap(self, batches, len(scripts))

    def get_map(self, refs: SimMap) -> Program:
        """The values of a whole map: each a dict, or the number of an object of its own."""
        values: list[Any] = []
        for batch in refs.batches:
            yield from self.wait_until(partial(_is_over, batch))
            chunk: list[Any] = [None] * batch.count
            for low, count, data in batch.values or ():
                chunk[low : low + count] = unpack(data)
            for item, value in enumerate(chunk):
                if value is None:
                    chunk[item] = batch.first + item
            values.extend(chunk)
        return values

    def next_item(self, items: SimStream) -> Program:
        """The next ref of a generator, None at its end."""
        stream, completion = items.stream, items.completion
        while True:
            yield from self.wait_until(
                lambda: stream.arrived > stream.consumed or self.ready(completion.key)
            )
            if stream.arrived > stream.consumed:
                number = self.session.streams.consume(stream)
                if self.session.outbox.messages:
                    self.flush()
                return SimRef(self, number)
            count = (yield from self.get(completion))["v"]
            if stream.consumed >= count:
                return None
            yield from self.wait_until(lambda: stream.arrived > stream.consumed)

    def cancel(self, ref: SimRef, *, force: bool) -> None:
        """Runtime.cancel()."""
        number = ref.key
        if not isinstance(number, int) or self.ready(number):
            return
        self.world.chaos = True
        self.flush()
        batch = self.session.tasks.batch_of(number)
        if batch is not None:
            self.call(
                messages.CANCEL, batch.target, batch.first, number - batch.first, force, False
            )

    # -- actors --------------------------------------------------------------------------------

    def create_actor(
        self, script: dict[str, Any], arguments: list[SimRef], options: dict[str, Any]
    ) -> Program:
        """Runtime.create_actor()."""
        data, slots, keep = yield from self._arguments(script, arguments, large=False)
        details = {
            "class": "A",
            "resources": {},
            "placement": {},
            "restarts": 0,
            "name": None,
            "namespace": "",
            "detached": False,
            "env": {},
            "isolation": "process",
            "pending": -1,
            "methods": {},
            **options,
        }
        session = self.session
        number = session.tasks.take_numbers()
        actor = object_id(self.identity, number)
        self.world.witness.actor_created(actor, details)
        route = session.actors.route(actor, -1)
        route.watched = True
        ref = SimRef(self, number)
        session.references.created(number)
        filled = session.arguments_now(data, slots)
        if keep:
            details["keeps"] = True
            session.actors.keep(route, keep, details["restarts"])
        creation = (messages.CREATE_ACTOR, actor, self.code("A"), details, filled)
        if details["name"] is None:
            session.outbox.call(*creation)
        else:
            yield from self._create_named(route, creation)
        if filled is None:
            session.arguments_later(route, data, slots)
        self.submitted()
        return SimHandle(ref, route)

    def _create_named(self, route: ActorRoute, creation: tuple[Any, ...]) -> Program:
        """Runtime._create_named()."""
        try:
            yield from self.request(*creation)
        except SimError:
            self.session.actors.routes.pop(route.actor, None)
            self.session.actors.keeping.discard(route.actor)
            raise

    def named(self, name: str) -> Program:
        """The handle of a living actor of this name, None where there is none."""
        found = yield from self.request(messages.NAMED_ACTOR, name, "")
        return None if found is None else self.handle(found[0])

    def handle(self, actor: bytes) -> SimHandle:
        """A handle that arrived pickled."""
        route = self.session.actors.route(actor, -1)
        if not route.watched:
            route.watched = True
            self.session.outbox.call(messages.WATCH_ACTOR, actor)
        key = self.references.key_of(actor)
        self.references.restore(key)
        return SimHandle(SimRef(self, key), route)

    def call_actor(
        self,
        handle: SimHandle,
        script: dict[str, Any],
        arguments: list[SimRef],
        *,
        retries: int = 0,
        returns: int = 1,
    ) -> Program:
        """Runtime.call_actor()."""
        data, slots, keep = yield from self._arguments(script, arguments, large=False)
        session, route = self.session, handle.route
        number = session.tasks.take_numbers()
        call = ActorCall(number, "m", returns, None if slots else data, (handle, keep), retries)
        session.actors.call(route, call)
        if slots:
            self._depends(number, returns, slots)
            session.resolve(
                data,
                slots,
                lambda filled: session.actors.arguments_ready(route, number, filled),
                lambda found: session.actors.argument_failed(route, number, found),
            )
        self.submitted()
        return [SimRef(self, return_number(number, index)) for index in range(returns)]

    def sleep(self, seconds: float) -> Program:
        """Let time pass without reading the inbox."""
        yield Wait(None, seconds, reads=False)


def _is_over(batch: TaskBatch) -> bool:
    return batch.done.find(0) < 0
