"""The event loop of a worker's async actors.

What    In a worker of its own, an async actor's loop runs in the main thread and reads the
        worker's messages itself: one wake takes all that has arrived and sends all that is done.
        In a shared worker one thread runs the loop of all async actors.
Caller  actors/host.py, actors/actor_runner.py.
Never   blocks while a coroutine could run (methods that are not async run on it, too, as in Ray),
        or leaves a message unread: it sleeps only after a read has found nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from zray.runtime import STREAMING

from . import context
from .context import Execution
from .events import CALL
from .instance import Group, Instance, Method
from .work import ActorCall

if TYPE_CHECKING:
    from .host import Host

_ROOM_S = 0.01
_READ_MAX = 256
"""Messages read at a time before coroutines get their turn."""


class EventLoop:
    """One asyncio loop and the calls that run on it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.loop = asyncio.new_event_loop()
        self.in_main_thread = False
        self._thread: threading.Thread | None = None
        self._arrived: deque[tuple[Instance, ActorCall]] = deque()
        self._lock = threading.Lock()
        self._kicked = False
        self._flushing = False
        self._postponed = False
        self._stalled: list[tuple[Instance, Group]] = []
        """Groups whose next call was not begun because of callers who do not read."""
        self._running: dict[tuple[bytes, int], tuple[asyncio.Task[None], Execution]] = {}
        self._waiting: dict[tuple[bytes, int], ActorCall] = {}

    # -- in the main thread ------------------------------------------------------------------------

    def serve(self) -> None:
        """Be the worker's main loop until the host says otherwise."""
        runtime = self.host.runtime
        self.in_main_thread = True
        asyncio.set_event_loop(self.loop)
        self.loop.add_reader(runtime.inbox.descriptor, self._pump)
        runtime.pump = self._is_mine
        runtime.released = self.kick
        self.kick()
        try:
            while self.host.exiting is None:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as end:
                    self.host.actors.ended_by(end)
        finally:
            runtime.pump = runtime.released = None
            self.loop.remove_reader(runtime.inbox.descriptor)
            self._close()

    def _is_mine(self) -> bool:
        """Whether the caller is on this loop: what it has to send leaves with the others' soon."""
        if threading.get_ident() != self.host.main_thread:
            return False
        self.flush_soon()
        return True

    def kick(self) -> None:
        """Look for messages soon (any thread): somebody else has read, and may have left some."""
        if not self._kicked:
            self._kicked = True
            try:
                self.loop.call_soon_threadsafe(self._pump)
            except RuntimeError:
                return  # The loop is closed: the worker ends.

    def _pump(self) -> None:
        """Read what has arrived, and begin it."""
        self._kicked = False
        host = self.host
        if not host.runtime.read_pending(_READ_MAX):
            self.kick()
        items = host.queue.items
        while items and host.exiting is None and not host.is_full:
            host.perform(items.popleft())
        if items and host.is_full:
            self._postpone()
        if host.exiting is not None:
            self.loop.stop()
        elif host.outbound.unsent or host.runtime.session.outbox:
            self.flush_soon()

    def _postpone(self) -> None:
        """Callers do not read what they are sent: look in a moment whether more may begin."""
        if not self._postponed:
            self._postponed = True
            self.loop.call_later(_ROOM_S, self._look_again)

    def _look_again(self) -> None:
        self._postponed = False
        stalled, self._stalled = self._stalled, []
        for instance, group in stalled:
            self._begin_waiting(instance, group)
        if self.in_main_thread:
            self._pump()

    # -- in a thread of its own --------------------------------------------------------------------

    def start_thread(self) -> None:
        """Run the loop of a shared worker's async actors."""
        self._thread = threading.Thread(target=self._run_thread, name="zray-loop", daemon=True)
        self._thread.start()

    def _run_thread(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self.loop.is_closed():
            try:
                self.loop.run_forever()
                return
            except (SystemExit, KeyboardInterrupt) as end:
                self.host.actors.ended_by(end)

    def run_inside(self, function: Callable[[], None]) -> None:
        """Run a function on the loop and wait for it; raises what it raises."""
        if self._thread is None or threading.current_thread() is self._thread:
            function()
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                function()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.loop.call_soon_threadsafe(run)
        done.result()

    # -- calls -----------------------------------------------------------------------------------

    def submit(self, instance: Instance, call: ActorCall) -> None:
        """Take a call; it begins when its group has room."""
        if self._thread is None or threading.current_thread() is self._thread:
            self._admit(instance, call)
            return
        self._arrived.append((instance, call))
        with self._lock:
            kicked, self._kicked = self._kicked, True
        if not kicked:
            self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        with self._lock:
            self._kicked = False
        while self._arrived:
            self._admit(*self._arrived.popleft())

    def _admit(self, instance: Instance, call: ActorCall) -> None:
        runner = self.host.actors
        if instance.ended:
            return
        try:
            method = instance.methods.get(call.method) or instance.method(call.method)
        except BaseException as error:
            runner.failed(instance, call, instance.running, "", error)
            self._ended(instance, None)
            return
        group = instance.groups[method.group]
        if group.running >= group.limit:
            group.waiting.append(call)
            self._waiting[(call.client, call.number)] = call
        else:
            self._begin(instance, group, method, call)

    def _begin(self, instance: Instance, group: Group, method: Method, call: ActorCall) -> None:
        group.running += 1
        execution = Execution(call.client, call.number, method.label, instance.place)
        if not method.asynchronous and call.returns != STREAMING:
            # Nothing to wait for: a Task would cost more than most such methods.
            with self.host.actors.entered(execution):
                self.host.actors.execute(instance, call, execution)
            self._ended(instance, group)
            return
        task = self.loop.create_task(self._run(instance, group, method, call, execution))
        self._running[(call.client, call.number)] = (task, execution)

    async def _run(
        self,
        instance: Instance,
        group: Group,
        method: Method,
        call: ActorCall,
        execution: Execution,
    ) -> None:
        context.local.set(execution)
        runner = self.host.actors
        began = time.monotonic()
        try:
            await self._answer(method, call, execution)
        except BaseException as error:
            # A CancelledError of ours ends here too: the caller is told, the loop goes on.
            if not instance.ended:
                runner.failed(instance, call, execution, method.label, error)
                runner.ran_badly(call, method.label, began, error)
        else:
            ended = time.monotonic()
            runner.ran(CALL, method.label, call.client, call.number, began, ended)
        finally:
            self._running.pop((call.client, call.number), None)
            self._ended(instance, group)

    async def _answer(self, method: Method, call: ActorCall, execution: Execution) -> None:
        runner, host = self.host.actors, self.host
        attempts = method.retries
        while True:
            args, kwargs = runner.values.load_arguments(call.arguments)
            try:
                value = method.function(*args, **kwargs)
                if call.returns == STREAMING:
                    count = await host.streams.run_async(
                        value, call.client, call.number, method.backlog
                    )
                    runner.reply_count(call, count)
                    return
                if inspect.isawaitable(value):
                    value = await value
                break
            except method.retry_types:
                if attempts == 0 or execution.is_cancelled:
                    raise
            attempts -= 1 if attempts > 0 else 0
        if call.returns == 1:
            found = runner.values.make_outcome(value, call.client, call.number)
            host.outbound.reply(call.client, call.number, found, True)
        else:
            runner.reply_parts(call, value, method.label)

    def _ended(self, instance: Instance, group: Group | None) -> None:
        if group is not None:
            group.running -= 1
            self._begin_waiting(instance, group)
        self.host.actors.call_ended(instance)
        if self.host.exiting is not None and self.in_main_thread:
            self.loop.stop()
        else:
            self.flush_soon()

    def _begin_waiting(self, instance: Instance, group: Group) -> None:
        while group.waiting and group.running < group.limit:
            if self.host.is_full:
                self._stalled.append((instance, group))
                self._postpone()
                return
            call = group.waiting.popleft()
            self._waiting.pop((call.client, call.number), None)
            runner = self.host.actors
            if instance.ended or (runner.cancelled and runner.was_cancelled(call)):
                runner.call_ended(instance)
                continue
            self._begin(instance, group, instance.methods[call.method], call)

    def flush_soon(self) -> None:
        """Send what is done when the coroutines that can run have run."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.host.runtime.flush()

    # -- cancelling and ending (any thread) --------------------------------------------------------

    def cancel(self, client: bytes, number: int) -> Execution | None:
        """Cancel a call that runs: CancelledError where it awaits."""
        found = self._running.get((client, number))
        if found is None:
            return None
        task, execution = found
        execution.cancelled = number
        self.loop.call_soon_threadsafe(task.cancel)
        return execution

    def find_waiting(self, client: bytes, number: int) -> ActorCall | None:
        """Return a call that has been taken and has not begun."""
        return self._waiting.get((client, number))

    def runs(self) -> list[tuple[asyncio.Task[None], Execution]]:
        """Return the calls that have begun and not ended (any thread)."""
        return list(self._running.values())

    def waiting(self) -> list[ActorCall]:
        """Return the calls that wait for room in their group (any thread)."""
        return [*(call for _instance, call in list(self._arrived)), *list(self._waiting.values())]

    def abandon(self, instance: Instance) -> None:
        """The actor was killed: cancel what runs, forget what waits."""
        for group in instance.groups.values():
            group.waiting.clear()
        for task, execution in list(self._running.values()):
            if execution.place is instance.place:
                self.loop.call_soon_threadsafe(task.cancel)

    def _close(self) -> None:
        """Cancel what is left, so that its finally clauses run, and close the loop."""
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.host.runtime.flush()
        asyncio.set_event_loop(None)
        self.loop.close()
