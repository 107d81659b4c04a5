"""Runs tasks in the worker's main thread.

What    Takes items of a range in small steps that grow while they are quick, so that what has not
        begun can be taken back; catches what user code raises; streams generators.
Caller  actors/host.py.
Never   lets an exception of user code end the worker (SystemExit and crashes aside).
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from typing import TYPE_CHECKING, Any

import msgpack

from zray import errors
from zray.protocol.ids import return_number
from zray.protocol.limits import INLINE_BYTES_MAX
from zray.runtime import STREAMING
from zray.serialization import blob
from zray.session.tasks import MODE_MAP

from . import context
from .values import Values
from .work import TaskClass, TaskRange

if TYPE_CHECKING:
    from .host import Host

_perf = time.perf_counter
_STEP_S = 0.0002
_STEP_MAX = 256
_PLAIN_SPECIAL = 0x80


class TaskRunner:
    """The tasks of one worker."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.values = Values(host.runtime)
        self.current: tuple[bytes, int] | None = None
        """(client, task number) that runs now, in user code."""
        self._interrupting: tuple[bytes, int] | None = None
        self._items: tuple[bytes, list[Any]] = (b"", [])
        self._calls = 0

    @property
    def busy(self) -> bool:
        """Whether user code runs in the main thread."""
        return self.current is not None or self.host.actors.busy

    # -- ranges ----------------------------------------------------------------------------------

    def run(self, work: TaskRange) -> None:
        """Run all items of a range that nobody takes back."""
        queue, host = self.host.queue, self.host
        queue.running = work
        runtime = host.runtime
        runtime.on_blocked = host.report_blocked
        if work.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(work.gpus)
        step = 1
        try:
            items = self._load(work)
            while True:
                low, high = queue.claim(work, step)
                if low >= high:
                    break
                started = _perf()
                self._step(work, items, low, high, started)
                took = _perf() - started
                if took < _STEP_S:
                    step = min(step * 4, _STEP_MAX)
                elif took > _STEP_S * 4:
                    step = 1
                host.linger()
        finally:
            queue.running = None
            runtime.on_blocked = None
        self._count_calls(work)

    def _load(self, work: TaskRange) -> list[Any] | BaseException:
        try:
            task_class = work.task_class
            if task_class.function is None:
                task_class.function = self.host.load_code(task_class.function_id)
                if isinstance(task_class.retry_types, bytes):
                    task_class.retry_types = pickle.loads(task_class.retry_types)
            if work.mode == MODE_MAP:
                if self._items[0] != work.payload:
                    self._items = (work.payload, self.values.load_items(work.payload))
                return self._items[1]
            calls: list[Any] = msgpack.unpackb(work.payload)
            return calls
        except BaseException as error:  # Whatever it is, the caller gets it.
            return error

    def _step(self, work: TaskRange, items: list[Any] | BaseException, low: int, high: int,
              started: float) -> None:
        if isinstance(items, BaseException):
            found = self.values.make_error(items, work.task_class.name)
            self._send(work, low, [found] * (high - low) * max(1, work.task_class.returns),
                       started)
        elif work.mode == MODE_MAP:
            self._step_map(work, items, low, high, started)
        else:
            self._step_calls(work, items, low, high, started)

    def _send(self, work: TaskRange, low: int, outcomes: list[bytes], started: float) -> None:
        special = any(found[0] != _PLAIN_SPECIAL for found in outcomes)
        returns = max(1, work.task_class.returns)
        busy_us = int((_perf() - started) * 1e6)
        self.host.outbound.results(work, low, len(outcomes) // returns, outcomes, special, busy_us)

    def _step_calls(self, work: TaskRange, calls: list[bytes], low: int, high: int,
                    started: float) -> None:
        outcomes: list[bytes] = []
        returns = work.task_class.returns
        for item in range(low, high):
            if work.cancelled is not None and item in work.cancelled:
                outcomes.extend([self._cancelled(work.task_class)] * max(1, returns))
            elif returns == 1:
                outcomes.append(self._run_one(work, item, calls[item]))
            else:
                outcomes.extend(self._run_many(work, item, calls[item]))
        self._send(work, low, outcomes, started)

    def _run_one(self, work: TaskRange, item: int, data: bytes) -> bytes:
        number = work.first + item
        try:
            value = self._call(work.task_class, work.client, number, data)
            return self.values.make_outcome(value, work.client, number)
        except BaseException as error:
            return self._failed(work.task_class, error)

    def _call(self, task_class: TaskClass, client: bytes, number: int, data: bytes) -> Any:
        """Load arguments and call the function; retried here where the options say so."""
        attempts = task_class.retries if task_class.retry_types else 0
        while True:
            args, kwargs = self.values.load_arguments(data)
            self.current = context.task = (client, number)
            try:
                return task_class.function(*args, **kwargs)
            except task_class.retry_types or () as error:  # type: ignore[misc]
                if attempts == 0 or self._interrupting is not None:
                    raise
                attempts -= 1 if attempts > 0 else 0
                del error
            finally:
                self.current = context.task = None

    def _failed(self, task_class: TaskClass, error: BaseException) -> bytes:
        if self._interrupting is not None and isinstance(error, KeyboardInterrupt):
            self._interrupting = None
            return self._cancelled(task_class)
        if isinstance(error, SystemExit):
            error = errors.WorkerCrashedError(
                f"task {task_class.name} called sys.exit({error.code!r}): raise an exception"
                " instead")
        return self.values.make_error(error, task_class.name)

    def _cancelled(self, task_class: TaskClass) -> bytes:
        return self.values.make_error(
            errors.TaskCancelledError(f"task {task_class.name} was cancelled"), task_class.name)

    # -- several returns, generators ---------------------------------------------------------------

    def _run_many(self, work: TaskRange, item: int, data: bytes) -> list[bytes]:
        task_class, number = work.task_class, work.first + item
        returns = task_class.returns
        try:
            if returns == STREAMING:
                return [self._stream(work, number, data)]
            value = self._call(task_class, work.client, number, data)
            if returns == 0:
                return [self.values.make_outcome(None, work.client, number)]
            values = tuple(value)
            if len(values) != returns:
                raise ValueError(f"task {task_class.name} has num_returns={returns} and returned"
                                 f" {len(values)} values")
            return [self.values.make_outcome(part, work.client, return_number(number, index))
                    for index, part in enumerate(values)]
        except BaseException as error:
            return [self._failed(task_class, error)] * max(1, returns)

    def _stream(self, work: TaskRange, number: int, data: bytes) -> bytes:
        task_class, outbound, client = work.task_class, self.host.outbound, work.client
        args, kwargs = self.values.load_arguments(data)
        index = 0
        self.current = context.task = (client, number)
        try:
            generator = task_class.function(*args, **kwargs)
            for value in generator:
                found = self.values.make_outcome(value, client, return_number(number, index + 1))
                index += 1
                if not outbound.yield_item(client, number, index - 1, found, task_class.backlog):
                    generator.close()
                    break
        finally:
            self.current = context.task = None
            outbound.end_stream(client, number)
        return self.values.make_outcome(index, client, number)

    # -- map -------------------------------------------------------------------------------------

    def _step_map(self, work: TaskRange, items: list[Any], low: int, high: int,
                  started: float) -> None:
        """Call the function for each item; all values leave as one list where none is special."""
        task_class = work.task_class
        function = task_class.function
        if work.cancelled is None and task_class.retry_types is None:
            values: list[Any] = []
            self.current = context.task = (work.client, work.first + low)
            try:
                append = values.append
                for item in items[low:high]:
                    append(function(item))
            except BaseException as error:
                failed = self._failed(task_class, error)
            else:
                failed = None
            finally:
                self.current = context.task = None
            done = low + len(values)
            if values:
                self._send_values(work, low, values, started)
            if failed is None:
                return
            self._send(work, done, [failed], _perf())
            low, started = done + 1, _perf()
            if low < high:
                self._step_map(work, items, low, high, started)
            return
        outcomes = [self._map_one(work, index, items[index]) for index in range(low, high)]
        self._send(work, low, outcomes, started)

    def _map_one(self, work: TaskRange, index: int, item: Any) -> bytes:
        if work.cancelled is not None and index in work.cancelled:
            return self._cancelled(work.task_class)
        data = pickle.dumps((item,), 5) if work.task_class.retry_types else b""
        try:
            if data:
                value = self._call(work.task_class, work.client, work.first + index, data)
            else:
                value = work.task_class.function(item)
            return self.values.make_outcome(value, work.client, work.first + index)
        except BaseException as error:
            return self._failed(work.task_class, error)

    def _send_values(self, work: TaskRange, low: int, values: list[Any], started: float) -> None:
        try:
            encoded = blob.encode(values)
        except errors.SerializationError:
            encoded = None  # One of them: find out which, the others are fine.
        busy_us = int((_perf() - started) * 1e6)
        if encoded is not None and not encoded.refs and encoded.nbytes <= INLINE_BYTES_MAX * 4:
            self.host.outbound.map_results(work, low, len(values), blob.to_bytes(encoded), busy_us)
            return
        outcomes = []
        for index, value in enumerate(values):
            try:
                outcomes.append(self.values.make_outcome(value, work.client,
                                                         work.first + low + index))
            except BaseException as error:
                outcomes.append(self._failed(work.task_class, error))
        self._send(work, low, outcomes, started)

    # -- cancelling --------------------------------------------------------------------------------

    def install_interrupt(self) -> None:
        """Let another thread interrupt user code in the main thread."""
        signal.signal(signal.SIGUSR2, self._on_signal)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        if self._interrupting is not None and self.current == self._interrupting:
            raise KeyboardInterrupt
        self._interrupting = None

    def interrupt(self, client: bytes, first: int, item: int, recursive: bool) -> None:
        """Raise KeyboardInterrupt in the running task, if it is this one (background thread)."""
        key = (client, first + item)
        if self.current == key:
            self._interrupting = key
            if recursive:
                context.cancel_children(self.host.runtime)
            signal.pthread_kill(self.host.main_thread, signal.SIGUSR2)

    def _count_calls(self, work: TaskRange) -> None:
        """max_calls: a worker ends after so many calls of a function (for leaking libraries)."""
        if work.task_class.max_calls:
            self._calls += 1
            if self._calls >= work.task_class.max_calls and not self.host.queue.items:
                self.host.exiting = "max_calls"


