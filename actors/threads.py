"""Threads for actors whose synchronous methods run at the same time.

What    Each group of an actor has as many threads as its calls need, up to its limit; an idle
        thread waits for the next call of any group and ends after a while.
Caller  actors/actor_runner.py.
Never   starts calls of one group out of order, or holds back a result while a thread is idle.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from . import context
from .context import Execution
from .instance import Group, Instance
from .work import ActorCall

if TYPE_CHECKING:
    from .actor_runner import ActorRunner

_IDLE_S = 5.0
_Job = tuple[Instance, Group, ActorCall]


class _Worker:
    """One thread and the place where it is handed its next call."""

    __slots__ = ("inbox",)

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()


class Threads:
    """The threads of one worker process, whatever actor they serve."""

    def __init__(self, runner: ActorRunner) -> None:
        self._runner = runner
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._running: dict[tuple[bytes, int], Execution] = {}
        self._waiting: dict[tuple[bytes, int], ActorCall] = {}

    def submit(self, instance: Instance, call: ActorCall) -> None:
        """Take a call; it begins when its group has room."""
        try:
            group = instance.groups[instance.method(call.method).group]
        except BaseException as error:
            self._runner.failed(instance, call, instance.running, "", error)
            self._runner.call_ended(instance)
            return
        with self._lock:
            if group.running >= group.limit:
                group.waiting.append(call)
                self._waiting[(call.client, call.number)] = call
                return
            group.running += 1
            self._begin((instance, group, call))

    def _begin(self, job: _Job) -> None:
        if self._idle:
            self._idle.pop().inbox.put(job)
            return
        worker = _Worker()
        worker.inbox.put(job)
        threading.Thread(
            target=self._serve, args=(worker,), name="zray-method", daemon=True
        ).start()

    def _serve(self, worker: _Worker) -> None:
        job: _Job | None = worker.inbox.get()
        while job is not None:
            self._run(*job)
            job = self._next(worker, *job)

    def _run(self, instance: Instance, group: Group, call: ActorCall) -> None:
        runner = self._runner
        execution = Execution(call.client, call.number, "", instance.place)
        key = (call.client, call.number)
        self._running[key] = execution
        context.local.set(execution)
        try:
            if not instance.ended and not (runner.cancelled and runner.was_cancelled(call)):
                runner.execute(instance, call, execution)
        finally:
            del self._running[key]
            context.local.set(None)
        outbound = runner.host.outbound
        if outbound.unsent and not group.waiting:
            runner.host.runtime.flush()
        else:
            runner.host.linger()
        runner.call_ended(instance)

    def _next(
        self, worker: _Worker, instance: Instance, group: Group, _call: ActorCall
    ) -> _Job | None:
        """Return what this thread runs next: of its group, else what anybody hands it."""
        with self._lock:
            if group.waiting:
                call = group.waiting.popleft()
                self._waiting.pop((call.client, call.number), None)
                return instance, group, call
            group.running -= 1
            self._idle.append(worker)
        try:
            return worker.inbox.get(timeout=_IDLE_S)
        except queue.Empty:
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    return None
            return worker.inbox.get()  # Handed over in this very moment.

    # -- from other threads ------------------------------------------------------------------------

    def cancel(self, client: bytes, number: int) -> Execution | None:
        """Mark a running call as cancelled: a thread can't be interrupted, it may look itself."""
        execution = self._running.get((client, number))
        if execution is not None:
            execution.cancelled = number
        return execution

    def find_waiting(self, client: bytes, number: int) -> ActorCall | None:
        """Return a call that has been taken and has not begun."""
        return self._waiting.get((client, number))

    def waiting(self) -> list[ActorCall]:
        """Return the calls that wait for room in their group (any thread)."""
        return list(self._waiting.values())

    def abandon(self, instance: Instance) -> None:
        """The actor was killed: its waiting calls go; those that run can't be stopped."""
        with self._lock:
            for group in instance.groups.values():
                for call in group.waiting:
                    self._waiting.pop((call.client, call.number), None)
                group.waiting.clear()

    @property
    def busy(self) -> int:
        """How many calls run."""
        return len(self._running)
