"""Runs the calls of the actors that live in this worker.

What    One instance per actor; calls of one caller in the order sent, duplicates dropped by the
        caller's number. Synchronous methods run in the thread that takes the calls, which is the
        main thread but in a shared worker; threaded and async actors have an executor.
Caller  actors/host.py, the executors.
Never   starts an actor twice, or lets an exception of user code end the worker.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import messages, outcome
from zray.protocol.ids import number_of, owner_of, return_number
from zray.runtime import STREAMING
from zray.serialization.exceptions import encode_exception

from . import context
from .context import Execution
from .events import CALL, Stretch
from .instance import Instance, Method
from .lives import Lives
from .threads import Threads
from .values import Values
from .work import ActorCall, ActorEnd, ActorStart, captured

if TYPE_CHECKING:
    from .host import Host

_REMEMBERED_MAX = 10_000
_PICKLE = outcome.PICKLE
_now = time.monotonic


class ActorRunner:
    """The actors of one worker."""

    def __init__(self, host: Host, values: Values) -> None:
        self.host = host
        self.values = values
        self.ran = host.events.ran
        self.stretch: Stretch | None = host.events.stretch
        """Of calls that the main thread runs as they come; None in a shared worker, where
        other threads may take its place."""
        self.holds_cpu = False
        """Whether the actor of this (unshared) worker has a CPU it could lend out."""
        self.lives: Lives[Instance] = Lives()
        self.instances = self.lives.here
        self.cancelled: dict[tuple[bytes, int], bool] = {}
        """Calls that must not begin; whether their callers know."""
        self.threads = Threads(self)
        self._turns = threading.Lock()

    # -- birth -----------------------------------------------------------------------------------

    def start(self, start: ActorStart) -> None:
        """Make the instance, put calls that came before it first in the queue, report."""
        if not self.lives.may_begin(start):
            return
        host = self.host
        owner, endpoint = start.owner
        if endpoint:
            host.runtime.peers.connect(owner, endpoint)
        instance = Instance(start)
        self.holds_cpu = bool(start.details["resources"].get("CPU"))
        host.show_gpus(start.details["gpus"])
        host.runtime.captured_group = captured(instance.place.group)
        began = _now()
        if self.stretch is not None:
            self.stretch.close(began)  # Or it would last until this __init__ has ended.
        error = None
        try:
            self._choose_executor(instance)
            make = (
                host.event_loop.run_inside
                if instance.details["async"] and host.event_loop
                else _run_here
            )
            make(lambda: self._make(instance, start))
        except BaseException as raised:
            error = self._died_in_init(raised, f"{instance.class_name}.__init__")
            instance.error = outcome.error(error)
        self.ran(
            CALL,
            f"{instance.class_name}.__init__",
            owner_of(start.actor),
            number_of(start.actor),
            began,
            _now(),
            failed=error is not None,
        )
        with host.order:
            older = self.instances.get(start.actor)
            if older is not None:
                self._abandon(older)  # What tells of its end is still on the way.
            early = self.lives.begin(instance)
            # Ahead of what came later, before another thread can take that.
            host.queue.items.extendleft(reversed(early or ()))
        if early is None:
            instance.ended = True
            return
        with host.runtime.lock:
            host.runtime.session.outbox.message(
                host.runtime.node,
                messages.ACTOR_STARTED,
                [[start.actor, start.incarnation, instance.error]],
            )
        host.outbound.started()

    def _choose_executor(self, instance: Instance) -> None:
        details = instance.details
        if details["async"]:
            instance.executor = self.host.need_event_loop()
        elif details["concurrency"] > 1 or details["groups"]:
            instance.executor = self.threads

    def _make(self, instance: Instance, start: ActorStart) -> None:
        running = instance.running
        running.name = f"{instance.class_name}.__init__"
        running.client, running.number = start.owner[0], 0
        with self.entered(running):
            cls = self.host.load_code(start.class_id)
            args, kwargs = self.values.load_arguments(start.arguments)
            instance.value = cls(*args, **kwargs)

    def entered(self, running: Execution) -> _Entered:
        """Return a context manager: the calling thread runs this execution."""
        return _Entered(running, threading.get_ident() == self.host.main_thread)

    def _died_in_init(self, error: BaseException, name: str) -> bytes:
        report = errors.TaskError.from_exception(
            error, function_name=name, pid=os.getpid(), node_id=self.host.runtime.node.hex()
        )
        died = errors.ActorDiedError(
            f"its {name} raised {report.summary}\n\n{report.traceback_text}",
            reason=f"{name} raised {report.summary}",
        )
        died.__cause__ = error
        return encode_exception(died, where=name, pid=os.getpid())

    # -- calls -----------------------------------------------------------------------------------

    def call(self, call: ActorCall) -> None:
        """Run one call, or hand it to its actor's executor."""
        instance = self.lives.of(call)
        if instance is None or not self._admit(instance, call):
            return
        if instance.executor is not None:
            self._hand_over(instance, call)
            return
        context.main = instance.running
        try:
            self.execute(instance, call, instance.running, self.stretch)
        finally:
            context.main = None

    def _admit(self, instance: Instance, call: ActorCall) -> bool:
        """Whether this call is to run: not a duplicate, not cancelled, no failed __init__."""
        client, number = call.client, call.number
        if number <= instance.last.get(client, 0):
            return False  # A duplicate: its outcome is on the way or was delivered.
        instance.last[client] = number
        if not self.host.runtime.peers.knows(client):
            self._connect(client)
        if instance.error is not None:
            self.reply_all(call, instance.error)
            return False
        return not self.cancelled or not self.was_cancelled(call)

    def _connect(self, client: bytes) -> None:
        """Open the way back to a caller: its mailbox lies beside ours."""
        runtime = self.host.runtime
        runtime.peers.connect(client, f"ipc://{runtime.directory}/{client.hex()}")

    def claim(self, call: ActorCall) -> Instance | None:
        """In a shared worker: take the actor for this call, or queue the call behind another.

        The caller holds the host's order lock, and runs what it has claimed with run_claimed().
        """
        instance = self.lives.of(call)
        if instance is None or not self._admit(instance, call):
            return None
        if instance.executor is not None:
            self._hand_over(instance, call)
            return None
        with self._turns:
            if instance.busy:
                instance.waiting.append(call)
                return None
            instance.busy = True
        return instance

    def _hand_over(self, instance: Instance, call: ActorCall) -> None:
        assert instance.executor is not None
        with self._turns:
            instance.outstanding += 1
        instance.executor.submit(instance, call)

    def run_claimed(self, instance: Instance, call: ActorCall, stretch: Stretch | None) -> None:
        """Run a call and those that have queued up behind it meanwhile."""
        running: ActorCall | None = call
        while running is not None:
            with self.entered(instance.running):
                self.execute(instance, running, instance.running, stretch)
            self.host.linger(stretch)
            with self._turns:
                if instance.ended:
                    instance.waiting.clear()
                running = instance.waiting.popleft() if instance.waiting else None
                instance.busy = running is not None
        if instance.ending:
            self._end_now(instance, b"")

    def execute(
        self,
        instance: Instance,
        call: ActorCall,
        running: Execution,
        stretch: Stretch | None = None,
    ) -> None:
        """Run one call in this thread and reply. A stretch is that of the calling thread."""
        running.client = call.client
        running.number = call.number
        if running.children:
            running.children = None
        label, began = "", 0.0
        try:
            method = instance.methods.get(call.method) or instance.method(call.method)
            running.name = label = method.label
            if stretch is None:
                began = _now()
            else:
                if stretch.name != label:
                    stretch.begin(label, call.client, call.number, _now())
                stretch.count += 1
            args, kwargs = self.values.load_arguments(call.arguments)
            if method.retry_types:
                value = self._retrying(running, method, call, args, kwargs)
            else:
                value = method.function(*args, **kwargs)
            if call.returns == 1:
                found = self.values.make_outcome(value, call.client, call.number)
                self.host.outbound.reply(call.client, call.number, found, found[0] != _PICKLE)
            elif call.returns == STREAMING:
                count = self.host.streams.run(value, call.client, call.number, method.backlog)
                self.reply_count(call, count)
            else:
                self.reply_parts(call, value, label)
        except BaseException as error:
            self.failed(instance, call, running, label, error)
            if stretch is None:
                self.ran_badly(call, label, began, error)
            elif label:
                stretch.close(_now(), failed=not isinstance(error, SystemExit))
        else:
            if stretch is None:
                self.ran(CALL, label, call.client, call.number, began, _now())

    def ran_badly(self, call: ActorCall, label: str, began: float, error: BaseException) -> None:
        """Note a call that has raised; to end its actor is no failure."""
        if label:  # Or there is no such method.
            failed = not isinstance(error, SystemExit)
            self.ran(CALL, label, call.client, call.number, began, _now(), failed=failed)

    def _retrying(
        self,
        running: Execution,
        method: Method,
        call: ActorCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call again where it raises one of retry_exceptions; the last error stands."""
        attempts = method.retries
        while True:
            try:
                return method.function(*args, **kwargs)
            except method.retry_types:
                if attempts == 0 or running.is_cancelled:
                    raise
            attempts -= 1 if attempts > 0 else 0
            args, kwargs = self.values.load_arguments(call.arguments)

    # -- replies -----------------------------------------------------------------------------------

    def reply_count(self, call: ActorCall, count: int) -> None:
        """A generator has ended: its outcome is how many items it had."""
        found = self.values.make_outcome(count, call.client, call.number)
        self.host.outbound.reply(call.client, call.number, found, False)

    def reply_parts(self, call: ActorCall, value: Any, label: str) -> None:
        """The outcome of a call of none or several returns."""
        client, number, outbound = call.client, call.number, self.host.outbound
        if call.returns == 0:
            outbound.reply(client, number, self.values.make_outcome(None, client, number), False)
            return
        try:
            values = tuple(value)
        except TypeError as error:
            raise ValueError(
                f"method {label} has num_returns={call.returns} and returned one"
                f" {type(value).__name__}: return a tuple of {call.returns}"
            ) from error
        if len(values) != call.returns:
            raise ValueError(
                f"method {label} has num_returns={call.returns} and returned {len(values)} values"
            )
        for index, part in enumerate(values):
            try:
                found = self.values.make_outcome(part, client, return_number(number, index))
            except BaseException as error:
                found = self.values.make_error(error, label)
            outbound.reply(client, return_number(number, index), found, True)

    def reply_all(self, call: ActorCall, found: bytes) -> None:
        """One outcome for all returns of a call."""
        for index in range(max(1, call.returns)):
            self.host.outbound.reply(call.client, return_number(call.number, index), found, True)

    def failed(
        self,
        instance: Instance,
        call: ActorCall,
        running: Execution,
        label: str,
        error: BaseException,
    ) -> None:
        """User code has raised: tell the caller, or end the actor."""
        label = label or f"{instance.class_name}.{call.method!s}"
        if isinstance(error, SystemExit):
            self._exit(instance, label, error)
        elif running.is_cancelled and _is_of_cancel(error):
            self.reply_all(call, self._cancelled_outcome(label))
        else:
            self.reply_all(call, self.values.make_error(error, label))

    # -- cancelling --------------------------------------------------------------------------------

    def _cancelled_outcome(self, label: str) -> bytes:
        return self.values.make_error(
            errors.TaskCancelledError(f"call {label} was cancelled"), label
        )

    def was_cancelled(self, call: ActorCall) -> bool:
        """Whether a call that is about to begin was cancelled; its caller is told."""
        told = self.cancelled.pop((call.client, call.number), None)
        if told is None:
            return False
        if not told:
            self.reply_all(call, self._cancelled_outcome(str(call.method)))
        return True

    def cancel(self, client: bytes, number: int, recursive: bool) -> None:
        """Cancel a call: one that has not begun never does (background thread)."""
        host = self.host
        execution = self._cancel_running(client, number)
        if execution is not None:
            if recursive:
                context.cancel_children(host.runtime, execution.children)
            return
        call = host.queue.find_call(client, number) or self._find_waiting(client, number)
        self.cancelled[(client, number)] = call is not None
        if len(self.cancelled) > _REMEMBERED_MAX:
            del self.cancelled[next(iter(self.cancelled))]
        if call is not None:
            self.reply_all(call, self._cancelled_outcome(str(call.method)))
            host.runtime.flush()

    def _cancel_running(self, client: bytes, number: int) -> Execution | None:
        loop = self.host.event_loop
        for execution in [
            context.main,
            *(each.running for each in self.instances.values() if each.busy),
        ]:
            if execution is not None and (execution.client, execution.at()) == (client, number):
                execution.cancelled = number
                return execution
        return self.threads.cancel(client, number) or (
            loop.cancel(client, number) if loop is not None else None
        )

    def _find_waiting(self, client: bytes, number: int) -> ActorCall | None:
        loop = self.host.event_loop
        for instance in list(self.instances.values()):
            for call in list(instance.waiting):
                if call.number == number and call.client == client:
                    return call
        return self.threads.find_waiting(client, number) or (
            loop.find_waiting(client, number) if loop is not None else None
        )

    def waiting_calls(self) -> list[ActorCall]:
        """Return the calls that have been taken and have not begun (any thread)."""
        loop = self.host.event_loop
        behind = [call for each in list(self.instances.values()) for call in list(each.waiting)]
        return [
            *behind,
            *self.lives.waiting(),
            *self.threads.waiting(),
            *(() if loop is None else loop.waiting()),
        ]

    # -- ends ------------------------------------------------------------------------------------

    def end(self, end: ActorEnd) -> None:
        """No handle is left, or the actor of a shared worker was killed."""
        instance = self.lives.meant_by(end)
        if instance is None:
            return
        if end.killed:
            self._abandon(instance)
            return
        if instance.outstanding or instance.busy:
            instance.ending = True  # The last of them ends it.
        else:
            self._end_now(instance, b"")

    def _abandon(self, instance: Instance) -> None:
        """What has not begun in this life is not to run in it."""
        self._drop(instance, b"")
        if instance.executor is not None:
            instance.executor.abandon(instance)

    def call_ended(self, instance: Instance) -> None:
        """An executor has ended a call."""
        with self._turns:
            instance.outstanding -= 1
            last = instance.ending and instance.outstanding == 0
        if last:
            self._end_now(instance, b"")

    def ended_by(self, error: BaseException) -> None:
        """SystemExit has left a task that user code started on the loop: whose, nobody knows."""
        if isinstance(error, SystemExit) and not self.host.shared:
            for instance in list(self.instances.values()):
                self._exit(instance, "a task of its event loop", error)
        else:
            traceback.print_exception(error)

    def _exit(self, instance: Instance, label: str, error: SystemExit) -> None:
        """A method has called exit_actor() or sys.exit()."""
        what = str(error) if isinstance(error, _actor_exit()) else f"sys.exit({error.code!r})"
        text = f"it ended itself: {what} in {label}"
        died = errors.ActorDiedError(text, actor_id=instance.actor.hex(), reason=text)
        self._end_now(instance, outcome.error(encode_exception(died, where=label)))

    def _end_now(self, instance: Instance, cause: bytes) -> None:
        if instance.ended:
            return
        self._drop(instance, cause)
        host = self.host
        if host.shared:
            self._shut_down(instance)
            host.runtime.flush()
            host.runtime.call(messages.ACTOR_EXIT, instance.actor, cause)
        else:
            host.leave(f"actor {instance.class_name} has ended")

    def _drop(self, instance: Instance, cause: bytes) -> None:
        instance.ended = True
        self.lives.over(instance, cause, stays=not self.host.shared)

    def _shut_down(self, instance: Instance) -> None:
        """Give the instance its last moment: __ray_shutdown__, then __del__."""
        running = Execution(b"", 0, f"{instance.class_name}.__ray_shutdown__", instance.place)
        value, instance.value = instance.value, None
        instance.methods.clear()  # They hold the instance.
        hook = getattr(value, "__ray_shutdown__", None)
        with self.entered(running):
            try:
                if hook is not None:
                    hook()
                del hook, value
            except BaseException:
                traceback.print_exc()

    def close(self) -> None:
        """The worker ends in good order: the actor's last moment, then word to the node."""
        for instance in list(self.instances.values()):
            if instance.error is None:
                self._shut_down(instance)
            if instance.ended:
                self.host.runtime.call(
                    messages.ACTOR_EXIT, instance.actor, self.lives.cause(instance.actor)
                )


class _Entered:
    """The calling thread runs an execution: in the main thread by the global, else by context."""

    __slots__ = ("_is_main", "_running", "_was")

    def __init__(self, running: Execution, is_main: bool) -> None:
        self._running = running
        self._is_main = is_main
        self._was: Execution | None = None

    def __enter__(self) -> None:
        if self._is_main:
            self._was, context.main = context.main, self._running
        else:
            self._was = context.local.get()
            context.local.set(self._running)

    def __exit__(self, *_error: object) -> None:
        if self._is_main:
            context.main = self._was
        else:
            context.local.set(self._was)


def _run_here(function: Any) -> None:
    function()


def _actor_exit() -> type[SystemExit]:
    from zray.context import ActorExit

    return ActorExit


def _is_of_cancel(error: BaseException) -> bool:
    import asyncio

    return isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, errors.TaskCancelledError))
