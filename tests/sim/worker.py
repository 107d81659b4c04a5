"""A simulated worker: the rules of actors/host.py and its runners around symbolic scripts.

What    Uses the real WorkQueue and Outbound; what a task or method does is a script (see
        tests/sim/scripts.py): sleep, submit others, get, return values, references, stored
        values or errors, crash. Mirrors TaskRunner, ActorRunner and Values step by step.
Caller  tests/sim/simulation.py.
Never   runs Python code of a user.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgpack

from tests.sim.process import (
    STORED_BYTES,
    Program,
    SimError,
    SimRef,
    Wait,
    pack,
    unpack,
    user_error,
)
from tests.sim.runtime import SimRuntime
from tests.sim.scripts import Scripts
from zray.actors.lives import Lives
from zray.actors.outbound import Outbound
from zray.actors.work import ActorCall, ActorEnd, ActorStart, TaskClass, TaskRange, WorkQueue
from zray.protocol import messages, outcome
from zray.protocol.ids import node_of, object_id, return_number
from zray.protocol.purposes import Purpose
from zray.runtime import STREAMING, Runtime
from zray.session.tasks import MODE_MAP

BACKLOG = 2
"""Items a generator runs ahead: fewer than a consumer acknowledges at once."""


class Step:
    """Items claimed together; ``outcomes`` of [low, item) are unsent."""

    def __init__(self, work: TaskRange, low: int, high: int) -> None:
        self.work = work
        self.low = low
        self.item = low
        self.high = high
        self.outcomes: list[bytes] = []


class Instance:
    """One actor: which calls it has run, by caller."""

    def __init__(self, start: ActorStart) -> None:
        self.actor, self.incarnation = start.actor, start.incarnation
        self.error: bytes | None = None
        self.last: dict[bytes, int] = {}
        self.kept: list[Any] = []


class SimWorker(SimRuntime):
    """One worker process."""

    role = "worker"

    def __init__(self, world: Any, identity: bytes) -> None:
        self.queue = WorkQueue()
        self.lock = threading.RLock()
        self.outbound = Outbound(cast(Runtime, self))
        self.classes: dict[tuple[bytes, int], TaskClass] = {}
        self.lives: Lives[Instance] = Lives()
        self.exiting = False
        self.current: tuple[bytes, int] | None = None
        self.step: Step | None = None
        self.functions: set[bytes] = set()
        super().__init__(world, identity)
        self.before_flush = self.outbound.gather
        self.scripts = Scripts(self)

    # -- the loop of host.py ----------------------------------------------------------------------

    def program(self) -> Program:
        items: deque[Any] = self.queue.items
        while not self.exiting:
            if not items:
                if self.outbound.unsent or self.session.outbox:
                    self.flush()
                yield Wait(lambda: bool(items) or self.exiting, None)
                continue
            item = items.popleft()
            if isinstance(item, TaskRange):
                yield from self._run(item)
            elif isinstance(item, ActorCall):
                yield from self._call(item)
            elif isinstance(item, ActorStart):
                yield from self._start(item)
            elif isinstance(item, ActorEnd):
                self._end(item)
            self._linger()
        self.flush()

    def finished(self) -> None:
        self.flush()
        self.crash("it left")

    def _linger(self) -> None:
        if self.outbound.unsent and self.world.rng.random() < 0.3:
            self.flush()

    # -- what arrives -----------------------------------------------------------------------------

    def worker_message(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> bool:
        kind = message[1]
        if kind == messages.CALL:
            self.queue.items.extend(ActorCall(sender, row, message[4]) for row in message[3])
        elif kind == messages.RUN:
            self._on_run(sender, message, payloads)
        elif kind == messages.START_ACTOR:
            self.queue.items.extend(ActorStart(row) for row in message[3])
        elif kind == messages.CONSUMED:
            self.outbound.consumed(sender, message[3], message[4])
        else:
            return False
        return True

    def _on_run(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        client, number, spec, first, count, low, high, mode, gpus, held = message[3:13]
        key = (client, number)
        task_class = self.classes.get(key)
        if task_class is None:
            assert spec is not None, f"{self.name} was not introduced to {key}"
            task_class = self.classes[key] = TaskClass(spec)
        self.peers.connect(client, "")
        direct = sender != self.node
        work = TaskRange(
            client, task_class, first, count, low, high, mode, payloads[0], gpus, direct=direct
        )
        work.held = self.session.references.accept(held)
        self.queue.items.append(work)

    def on_lifeline(self, message: list[Any]) -> None:
        kind = message[1]
        if kind == messages.RECLAIM:
            self.read_all()
            self.call(messages.RECLAIMED, self.queue.take_back(message[3]))
        elif kind == messages.INTERRUPT:
            self.read_all()
            client, first, item, _recursive = message[3:7]
            if self.current == (client, first + item):
                self.interrupt("TaskCancelledError")
            else:
                self._cancel_waiting(client, first, item)
        elif kind == messages.EXIT:
            if self.in_user_code:
                self.crash("told to leave")
            self.exiting = True
        elif kind == messages.END_ACTOR:
            self.read_all()
            end = ActorEnd(message[3], message[4], killed=message[5])
            if end.killed:
                self._end(end)  # Now, not behind the calls that it is to prevent.
            else:
                self.queue.items.append(end)
        else:
            super().on_lifeline(message)

    def _cancel_waiting(self, client: bytes, first: int, item: int) -> None:
        ranges = [work for work in self.queue.items if isinstance(work, TaskRange)]
        if self.queue.running is not None:
            ranges.append(self.queue.running)
        for work in ranges:
            if work.client == client and work.first == first and work.next <= item < work.high:
                work.cancelled = (work.cancelled or set()) | {item}

    # -- tasks ------------------------------------------------------------------------------------

    def _run(self, work: TaskRange) -> Program:
        self.queue.running = work
        failed = b""
        try:
            yield from self._load_code(work.task_class.function_id)
        except SimError as error:
            failed = user_error(error.kind)
        calls: list[Any] = []
        if work.mode == MODE_MAP:
            calls = yield from self._load_items(work.payload)
        else:
            calls = msgpack.unpackb(work.payload)
        while True:
            low, high = self.queue.claim(work, self.world.rng.choice((1, 1, 2, 5)))
            if low >= high:
                break
            yield from self._step(Step(work, low, high), calls, failed)
            self._linger()
        self.queue.running = None
        self.references.garbage.extend(work.held)

    def _load_code(self, function: bytes) -> Program:
        """Host.load_code()."""
        if function not in self.functions:
            yield from self.request(messages.GET_FUNCTION, function)
            self.functions.add(function)

    def _step(self, step: Step, calls: list[Any], failed: bytes) -> Program:
        work = step.work
        self.step = step
        while step.item < step.high:
            if work.cancelled is not None and step.item in work.cancelled:
                found = [user_error("TaskCancelledError")] * max(1, work.task_class.returns)
            elif failed:
                found = [failed] * max(1, work.task_class.returns)
            else:
                found = yield from self._item(work, step.item, calls[step.item])
            step.outcomes.extend(found)
            step.item += 1
        self.step = None
        self._send(step)

    def is_awaited(self) -> bool:
        if self.current is None:
            return True
        client, number = self.current
        caller = self.world.processes.get(client)
        if caller is None or caller.dead:
            return False
        session = caller.session
        return session.tasks.is_outstanding(number) or number in session.actors.by_number

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> Program:
        step = self.step
        if step is not None and not ready():
            # What has ended is sent, and what has not begun can be taken back.
            step.high = self.queue.unclaim(step.work, step.item + 1)
            self._send(step)
        return (yield from super().wait_until(ready, timeout_s))

    def _send(self, step: Step) -> None:
        work, low, high, outcomes = step.work, step.low, step.item, step.outcomes
        if low == high:
            return
        step.low, step.outcomes = high, []
        special = any(found[0] != outcome.PICKLE for found in outcomes)
        if work.mode == MODE_MAP and not special:
            values = pack([unpack(found) for found in outcomes])
            self.outbound.map_results(work, low, high - low, values, 100)
        else:
            self.outbound.results(work, low, high - low, outcomes, special, 100)

    def _load_items(self, data: bytes) -> Program:
        if data[0] != outcome.ARGUMENTS:
            return [(item, None) for item in unpack(data)]
        inner, filled = outcome.arguments_parts(data)
        items = yield from self._load_items(inner)
        for position, (identity, found) in filled.items():
            script, _none = items[position]
            items[position] = (script, (identity, found))
        return items

    def _item(self, work: TaskRange, item: int, data: Any) -> Program:
        client, number = work.client, work.first + item
        returns = work.task_class.returns
        self.current = (client, number)
        self.in_user_code = True
        self.world.tell(f"{self.name} begins {self.world.name(object_id(client, number))}")
        self.world.witness.task_begins(self, work.task_class.name, client, number)
        try:
            if work.mode == MODE_MAP:
                script, argument = data
                arguments = []
                if argument is not None:
                    arguments.append((yield from self._fetch(*argument)))
            else:
                script, arguments = yield from self._load_arguments(data)
            if returns == STREAMING:
                return [(yield from self._stream(work, number, script, arguments))]
            value = yield from self.scripts.run(script, arguments)
            outcomes = []
            for index in range(max(1, returns)):
                outcomes.append(
                    (yield from self._outcome(value, client, return_number(number, index)))
                )
            return outcomes
        except SimError as error:
            return [user_error(error.kind, error.lost)] * max(1, returns)
        finally:
            self.in_user_code = False
            self.current = None
            self.world.witness.task_ended(self)

    def _stream(
        self, work: TaskRange, number: int, script: dict[str, Any], arguments: list[Any]
    ) -> Program:
        client, outbound = work.client, self.outbound
        index = 0
        outbound.begin_stream(client, number)
        try:
            for _ in range(script["items"]):
                value = yield from self.scripts.run({**script, "crash": 0}, arguments)
                found = yield from self._outcome(value, client, return_number(number, index + 1))
                index += 1
                if not (yield from self._yield_item(client, number, index - 1, found)):
                    break
        finally:
            outbound.end_stream(client, number)
        return (yield from self._outcome({"v": index, "refs": []}, client, number))

    def _yield_item(self, client: bytes, number: int, index: int, found: bytes) -> Program:
        """Outbound.yield_item(), whose wait is a yield here."""
        self.session.outbox.message(client, messages.YIELDED, number, index, found)
        self.flush()
        outbound = self.outbound
        if not outbound.has_room(client, number, index + 1, BACKLOG):
            yield from self.wait_until(
                lambda: outbound.has_room(client, number, index + 1, BACKLOG)
            )
        return not outbound.is_abandoned(client, number)

    # -- values -----------------------------------------------------------------------------------

    def _load_arguments(self, data: bytes) -> Program:
        """Return (script, values of the arguments)."""
        if data[0] != outcome.ARGUMENTS:
            script = self.decode(unpack(data))
            return script, []
        inner, filled = outcome.arguments_parts(data)
        if not inner:
            ((identity, found),) = filled.values()
            return (yield from self._fetch(identity, found)), []
        script, _arguments = yield from self._load_arguments(inner)
        arguments = []
        for _position, (identity, found) in sorted(filled.items()):
            arguments.append((yield from self._fetch(identity, found)))
        return script, arguments

    def _fetch(self, identity: bytes, found: bytes) -> Program:
        """Values.fetch()."""
        if found[0] not in (outcome.STORED, outcome.ELSEWHERE):
            return self.value(identity, identity, found)
        references = self.references
        key = references.key_of(identity)
        known = self.results.get(key) if references.is_shared(key) else None
        if known is not None:
            references.add(key)
        else:
            ((_identity, place),) = yield from self.request(messages.HOLD, [identity], True)
            if place is None:
                raise self.error(identity, self.own_node.objects.lost_outcome)
            references.fetched(key, place)
        try:
            while self.results[key][0] == outcome.ELSEWHERE:
                yield from self.await_keys([key], purpose=Purpose.ARGUMENT)
            known = self.results[key]
            return self.value(identity, key, known)
        finally:
            references.garbage.append(key)

    def _outcome(self, value: dict[str, Any], client: bytes, number: int) -> Program:
        """Values.make_outcome()."""
        refs: list[tuple[SimRef, int | str]] = value.get("refs", [])
        held = []
        for ref, _want in refs:
            self.references.share(ref.key)
            held.append(ref.id)
        identity = object_id(client, number)
        plain = {"v": value["v"], "refs": [[ref.id, want] for ref, want in refs]}
        if value.get("stored"):
            offset = yield from self.write(pack({**plain, "me": identity}))
            self.call(messages.REGISTER, identity, offset, STORED_BYTES, held, client)
            if node_of(client) != self.node:
                return outcome.ELSEWHERE_OUTCOME
            return outcome.stored(offset, STORED_BYTES)
        if held:
            self.session.outbox.call(messages.HOLD_FOR, identity, held)
            return outcome.holding(held, pack(plain))
        return pack(plain)

    # -- actors -----------------------------------------------------------------------------------

    def _start(self, start: ActorStart) -> Program:
        life = (start.actor, start.incarnation)
        if not self.lives.may_begin(start):
            return
        owner, endpoint = start.owner
        if endpoint:
            self.peers.connect(owner, endpoint)
        instance = Instance(start)
        self.in_user_code = True
        self.world.witness.actor_begins(self, *life)
        try:
            yield from self._load_code(start.class_id)
            script, arguments = yield from self._load_arguments(start.arguments)
            yield from self.scripts.run(script, arguments)
        except SimError as error:
            instance.error = user_error(error.kind, error.lost)
        finally:
            self.in_user_code = False
        early = self.lives.begin(instance)
        if early is None:
            self.world.witness.actor_ended(self, start.actor)
            return
        self.queue.items.extendleft(reversed(early))
        self.session.outbox.message(
            self.node, messages.ACTOR_STARTED, [[start.actor, start.incarnation, instance.error]]
        )
        self.outbound.started()

    def _call(self, call: ActorCall) -> Program:
        instance = self.lives.of(call)
        if instance is None:
            return
        if call.number <= instance.last.get(call.client, 0):
            return
        instance.last[call.client] = call.number
        if not self.peers.knows(call.client):
            self.peers.connect(call.client, "")
        self.world.tell(f"{self.name} runs call {call.number:x} of {self.world.name(call.client)}")
        self.scripts.order.called(call, instance.incarnation)
        self.world.witness.actor_moves(self, call.actor)
        if instance.error is not None:
            self._reply_all(call, instance.error)
            return
        self.in_user_code = True
        self.current = (call.client, call.number)
        try:
            script, arguments = yield from self._load_arguments(call.arguments)
            value = yield from self.scripts.run(script, arguments, instance.kept)
            for index in range(max(1, call.returns)):
                number = return_number(call.number, index)
                found = yield from self._outcome(value, call.client, number)
                self.outbound.reply(
                    call.client, number, found, call.returns > 1 or found[0] != outcome.PICKLE
                )
        except SimError as error:
            self._reply_all(call, user_error(error.kind, error.lost))
        finally:
            self.in_user_code = False
            self.current = None

    def _reply_all(self, call: ActorCall, found: bytes) -> None:
        for index in range(max(1, call.returns)):
            self.outbound.reply(call.client, return_number(call.number, index), found, True)

    def _end(self, end: ActorEnd) -> None:
        """ActorRunner.end()."""
        instance = self.lives.meant_by(end)
        if instance is None:
            return
        self.lives.over(instance, b"")
        self.world.witness.actor_ended(self, end.actor)
        if not end.killed:
            self.call(messages.ACTOR_EXIT, end.actor, b"")

    def blocked(self) -> None:
        self.world.witness.task_blocked(self)

    def crash(self, reason: str) -> None:
        if not self.dead:
            self.world.witness.worker_died(self)
        super().crash(reason)
