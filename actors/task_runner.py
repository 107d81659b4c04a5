"""Runs tasks in the worker's main thread.

What    Takes items of a range in small steps that grow while they are quick, so that what has not
        begun can be taken back; catches what user code raises; retries where the options say so.
Caller  actors/host.py.
Never   lets an exception of user code end the worker (sys.exit and crashes aside), or runs a task
        that was cancelled before it began.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgpack

from zray import errors
from zray.protocol import outcome
from zray.protocol.ids import return_number
from zray.protocol.limits import INLINE_BYTES_MAX
from zray.runtime import STREAMING
from zray.serialization import blob
from zray.session.tasks import MODE_MAP

from . import context
from .context import Execution, Place
from .events import TASK
from .interrupts import gather, invoke, invoke_each
from .prefetch import TASKS_MAX, Prefetch
from .values import Values
from .work import TaskClass, TaskRange

if TYPE_CHECKING:
    from .host import Host

_now = time.monotonic
_STEP_S = 0.0002
_STEP_MAX = 256
_PICKLE = 0x80


class WorkerExitError(BaseException):
    """A task has called sys.exit(): the worker ends, as if it had crashed."""

    def __init__(self, code: object) -> None:
        super().__init__(code)
        self.status = code if isinstance(code, int) else 0 if code is None else 1
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")


class _Step:
    """The items of a range that were claimed together: what came of them, and is unsent."""

    __slots__ = (
        "batch",
        "batch_low",
        "calls",
        "high",
        "low",
        "outcomes",
        "running",
        "started",
        "values",
        "work",
    )

    def __init__(
        self, work: TaskRange, running: Execution, low: int, high: int, started: float
    ) -> None:
        self.work = work
        self.running = running
        self.low = low
        """The first item that nothing was sent of."""
        self.high = high
        self.started = started
        self.outcomes: list[bytes] = []
        self.values: list[Any] = []
        """Of a map: what the items from ``low`` on returned."""
        self.batch: list[Any] | None = None
        """Of a map: the items that are gone through; cut short, the going ends earlier."""
        self.batch_low = 0
        self.calls: list[bytes] = []
        """Of calls: the arguments of all items of the range's batch."""


class TaskRunner:
    """The tasks of one worker."""

    def __init__(self, host: Host, values: Values) -> None:
        self.host = host
        self.values = values
        self._items: tuple[bytes, list[Any]] = (b"", [])
        """A map's items, for its next range; what they refer to lives as long."""
        self._current: _Step | None = None
        self._prefetch = Prefetch(host.runtime)
        host.runtime.before_wait = self._before_wait
        values.before_fetch = self._look_ahead

    # -- ranges ----------------------------------------------------------------------------------

    def run(self, work: TaskRange) -> None:
        """Run all items of a range that nobody takes back."""
        queue, host = self.host.queue, self.host
        task_class = work.task_class
        queue.running = work
        host.show_gpus(work.gpus)
        place = Place(task_class.resources, work.gpus, task_class.group)
        running = Execution(work.client, work.first, task_class.name, place)
        host.runtime.captured_group = task_class.captured
        context.main = host.interrupts.running = running
        step = 1
        try:
            items = self._load(work)
            while True:
                low, high = queue.claim(work, step)
                if low >= high:
                    break
                started = _now()
                self._step(work, running, items, low, high, started)
                took = _now() - started
                if took < _STEP_S:
                    step = min(step * 4, _STEP_MAX)
                elif took > _STEP_S * 4:
                    step = 1
                host.linger()
        except WorkerExitError as end:
            host.crash(end.status)
        finally:
            queue.running = None
            host.runtime.garbage.extend(work.held)
            if self._prefetch.held and not queue.items:
                self._prefetch.clear()
            context.main = host.interrupts.running = None

    def _load(self, work: TaskRange) -> list[Any] | BaseException:
        try:
            task_class = work.task_class
            if task_class.function is None:
                function = self.host.load_code(task_class.function_id)
                if isinstance(task_class.retry_types, bytes):
                    task_class.retry_types = pickle.loads(task_class.retry_types)
                task_class.function = function
            if work.mode == MODE_MAP:
                if self._items[0] != work.payload:
                    self._items = (work.payload, self.values.load_items(work.payload))
                return self._items[1]
            self.let_go()
            calls: list[Any] = msgpack.unpackb(work.payload)
            return calls
        except BaseException as error:  # Whatever it is, the caller gets it.
            return error

    @property
    def keeps_items(self) -> bool:
        """Whether the items of a map are kept for a range of it that may come."""
        return bool(self._items[1])

    def let_go(self) -> None:
        """No range of the last map is to come."""
        self._items = (b"", [])

    def _step(
        self,
        work: TaskRange,
        running: Execution,
        items: list[Any] | BaseException,
        low: int,
        high: int,
        started: float,
    ) -> None:
        if isinstance(items, BaseException):
            found = self.values.make_error(items, work.task_class.name)
            self._send(work, low, [found] * (high - low) * max(1, work.task_class.returns), started)
        elif work.mode == MODE_MAP:
            self._step_map(work, running, items, low, high, started)
        else:
            self._step_calls(work, running, items, low, high, started)

    def _send(self, work: TaskRange, low: int, outcomes: list[bytes], started: float) -> None:
        if not outcomes:
            return
        special = any(found[0] != _PICKLE for found in outcomes)
        returns = max(1, work.task_class.returns)
        ended, count = _now(), len(outcomes) // returns
        if work.direct:
            failed = special and any(found[0] == outcome.ERROR for found in outcomes)
            self._ran(work, low, started, ended, count, failed)
        # What it waited for arguments tells nothing of how long such a task runs.
        waited_s, self.values.waited_s = self.values.waited_s, 0.0
        busy_us = max(0, int((ended - started - waited_s) * 1e6))
        self.host.outbound.results(work, low, count, outcomes, special, busy_us)

    def _ran(
        self, work: TaskRange, low: int, started: float, ended: float, count: int, failed: bool
    ) -> None:
        """Note what a lease holder has sent: the node hears of it from nobody else."""
        name, number = work.task_class.name, work.first + low
        self.host.events.ran(TASK, name, work.client, number, started, ended, count, failed)

    # -- calls -----------------------------------------------------------------------------------

    def _step_calls(
        self,
        work: TaskRange,
        running: Execution,
        calls: list[bytes],
        low: int,
        high: int,
        started: float,
    ) -> None:
        task_class = work.task_class
        returns = task_class.returns
        step = self._current = _Step(work, running, low, high, started)
        outcomes = step.outcomes
        step.calls = calls
        item = low - 1
        try:
            while (item := item + 1) < step.high:
                if work.cancelled is not None and item in work.cancelled:
                    outcomes.extend([self._cancelled(task_class)] * max(1, returns))
                    continue
                # From here on a cancel finds the task running; it began when it was claimed.
                running.number = work.first + item
                if running.children:
                    running.children = None
                if returns == 1:
                    outcomes.append(self._run_one(running, task_class, calls[item]))
                else:
                    outcomes.extend(self._run_many(running, task_class, calls[item]))
                if self._prefetch.held:
                    self._prefetch.drop((running.client, running.number))
        finally:
            self._current = None
            self._send(work, step.low, outcomes, step.started)

    def _before_wait(self) -> None:
        """A task is about to wait, perhaps for one that was claimed together with it.

        So what has ended is sent, and what has not begun can be taken back.
        """
        step = self._current
        if step is None or threading.get_ident() != self.host.main_thread:
            return
        work, running = step.work, step.running
        step.high = self.host.queue.unclaim(work, running.at() + 1 - work.first)
        if step.outcomes:
            outcomes, step.outcomes[:] = step.outcomes[:], []
            self._send(work, step.low, outcomes, step.started)
            step.low += len(outcomes) // max(1, work.task_class.returns)
            step.started = _now()
        elif step.batch is not None:
            del step.batch[step.high - step.batch_low :]
            values, step.values[:] = step.values[:], []
            if values:
                running.number += len(values)
                self._send_values(work, running, step.low, values, step.started)
                step.low += len(values)
                step.started = _now()

    def _look_ahead(self) -> None:
        """The running task's arguments have to be fetched: so, it seems, have the next ones'."""
        step = self._current
        if step is None or not step.calls or threading.get_ident() != self.host.main_thread:
            return
        work = step.work
        item = step.running.number - work.first
        ahead = [(work, each, step.calls[each]) for each in range(item + 1, work.high)[:TASKS_MAX]]
        for queued in self.host.queue.ranges():
            if len(ahead) < TASKS_MAX and queued.mode != MODE_MAP:
                calls: list[bytes] = msgpack.unpackb(queued.payload)
                ahead += [(queued, each, calls[each]) for each in range(queued.next, queued.high)]
        self._prefetch.ask(
            ((each.client, each.first + item), data) for each, item, data in ahead[:TASKS_MAX]
        )

    def _run_one(self, running: Execution, task_class: TaskClass, data: bytes) -> bytes:
        try:
            args, kwargs = self.values.load_arguments(data)
            if task_class.retry_types is None:
                value = invoke(task_class.function, args, kwargs)
            else:
                value = self._retrying(running, task_class, data, args, kwargs)
            return self.values.make_outcome(value, running.client, running.number)
        except BaseException as error:
            return self._failed(running, task_class, error)

    def _retrying(
        self,
        running: Execution,
        task_class: TaskClass,
        data: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call again where it raises one of retry_exceptions; the last error stands."""
        attempts, retry_types = task_class.retries, task_class.retry_types
        assert isinstance(retry_types, tuple)
        while True:
            try:
                return self._call(running, task_class, args, kwargs)
            except retry_types:
                if attempts == 0 or running.is_cancelled:
                    raise
            attempts -= 1 if attempts > 0 else 0
            # Fresh ones: the failed try may have changed its arguments.
            args, kwargs = self.values.load_arguments(data)

    def _call(
        self,
        running: Execution,
        task_class: TaskClass,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        value = invoke(task_class.function, args, kwargs)
        returns = task_class.returns
        if returns == STREAMING:
            return self.host.streams.run(value, running.client, running.number, task_class.backlog)
        if returns <= 1:
            return value
        try:
            values = gather(value)
        except TypeError as error:
            raise ValueError(
                f"task {task_class.name} has num_returns={returns} and returned one"
                f" {type(value).__name__}: return a tuple of {returns}"
            ) from error
        if len(values) != returns:
            raise ValueError(
                f"task {task_class.name} has num_returns={returns} and returned"
                f" {len(values)} values"
            )
        return values

    def _run_many(self, running: Execution, task_class: TaskClass, data: bytes) -> list[bytes]:
        """Run a task of none, several, or streamed returns."""
        returns = task_class.returns
        client, number = running.client, running.number
        try:
            args, kwargs = self.values.load_arguments(data)
            if task_class.retry_types is None:
                value = self._call(running, task_class, args, kwargs)
            else:
                value = self._retrying(running, task_class, data, args, kwargs)
        except BaseException as error:
            return [self._failed(running, task_class, error)] * max(1, returns)
        if returns <= 0:
            value = None if returns == 0 else value
            return [self.values.make_outcome(value, client, number)]
        return [
            self._part(running, task_class, part, return_number(number, index))
            for index, part in enumerate(value)
        ]

    def _part(self, running: Execution, task_class: TaskClass, value: Any, number: int) -> bytes:
        """One of several returns: one that can't be pickled does not spoil the others."""
        try:
            return self.values.make_outcome(value, running.client, number)
        except BaseException as error:
            return self._failed(running, task_class, error)

    # -- what goes wrong ---------------------------------------------------------------------------

    def _failed(self, running: Execution, task_class: TaskClass, error: BaseException) -> bytes:
        if isinstance(error, SystemExit):
            raise WorkerExitError(error.code)
        if running.is_cancelled and _is_of_cancel(error):
            return self._cancelled(task_class)
        return self.values.make_error(error, task_class.name)

    def _cancelled(self, task_class: TaskClass) -> bytes:
        return self.values.make_error(
            errors.TaskCancelledError(f"task {task_class.name} was cancelled"), task_class.name
        )

    def cancel_waiting(self, work: TaskRange, item: int) -> None:
        """An item that has not begun was cancelled: say so at once, not when its turn comes."""
        self.host.outbound.cancelled(work, item, self._cancelled(work.task_class))

    # -- map -------------------------------------------------------------------------------------

    def _step_map(
        self,
        work: TaskRange,
        running: Execution,
        items: list[Any],
        low: int,
        high: int,
        started: float,
    ) -> None:
        """Call the function for each item; all values leave as one list where none is special."""
        task_class = work.task_class
        step = _Step(work, running, low, high, started)
        while step.low < step.high:
            low = step.low
            if work.cancelled is not None and low in work.cancelled:
                self._send(work, low, [self._cancelled(task_class)], step.started)
                step.low, step.started = low + 1, _now()
                continue
            end = (
                step.high
                if work.cancelled is None
                else min([step.high, *(item for item in work.cancelled if item > low)])
            )
            values: list[Any] = []
            step.values = values
            step.batch = batch = items[low:end]
            step.batch_low = low
            running.number = work.first + low
            running.values = values
            running.children = None
            failed = None
            self._current = step
            try:
                if task_class.retry_types is None:
                    invoke_each(task_class.function, batch, values.append)
                else:
                    for item in batch:
                        values.append(self._retry_item(running, task_class, item))
            except BaseException as error:
                # The failed item's number is at(), so its value must be counted out last.
                failed = self._failed_item(step, error)
            finally:
                self._current = None
            running.values = None
            if values:
                self._send_values(work, running, step.low, values, step.started)
            step.low, step.started = step.low + len(values), _now()
            if failed is not None:
                self._send(work, step.low, [failed], step.started)
                step.low += 1

    def _failed_item(self, step: _Step, error: BaseException) -> bytes:
        work, running = step.work, step.running
        try:
            return self._failed(running, work.task_class, error)
        except WorkerExitError:
            done, running.values = running.values, None
            if done:
                self._send_values(work, running, step.low, done, step.started)
            raise

    def _retry_item(self, running: Execution, task_class: TaskClass, item: Any) -> Any:
        attempts, retry_types = task_class.retries, task_class.retry_types
        assert isinstance(retry_types, tuple)
        while True:
            try:
                return invoke(task_class.function, (item,), {})
            except retry_types:
                if attempts == 0 or running.is_cancelled:
                    raise
            attempts -= 1 if attempts > 0 else 0

    def _send_values(
        self, work: TaskRange, running: Execution, low: int, values: list[Any], started: float
    ) -> None:
        try:
            encoded = blob.encode(values)
        except errors.SerializationError:
            encoded = None  # One of them: find out which, the others are fine.
        if encoded is not None and not encoded.refs and encoded.nbytes <= INLINE_BYTES_MAX * 4:
            ended = _now()
            if work.direct:
                self._ran(work, low, started, ended, len(values), False)
            busy_us = int((ended - started) * 1e6)
            self.host.outbound.map_results(work, low, len(values), blob.to_bytes(encoded), busy_us)
            return
        outcomes = [
            self._part(running, work.task_class, value, work.first + low + index)
            for index, value in enumerate(values)
        ]
        self._send(work, low, outcomes, started)


def _is_of_cancel(error: BaseException) -> bool:
    """Whether a cancel raises this in a task, or in one that waits for a cancelled child."""
    return isinstance(error, (KeyboardInterrupt, errors.TaskCancelledError)) or (
        isinstance(error, errors.TaskError)
        and isinstance(error.cause, (KeyboardInterrupt, errors.TaskCancelledError))
    )
