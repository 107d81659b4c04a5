"""Pool: multiprocessing.Pool, with actors for processes.

What    Pool with apply, map, starmap, imap and their async and unordered kinds; AsyncResult. A
        chunk of calls goes to whichever actor is idle, so that a slow chunk delays no other.
Caller  users.
Never   holds a thread of its own: the thread of ObjectRef.future() hands out the next chunk.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from zray import api, errors
from zray.remote_decorators import remote
from zray.serialization.exceptions import decode_exception, encode_exception
from zray.state import cluster_resources

Call = tuple[tuple[Any, ...], dict[str, Any]]
TimeoutError = multiprocessing.TimeoutError

_CHUNKS_PER_WORKER = 4
"""As multiprocessing does: enough chunks to even out, few enough to cost little."""


class _Failed:
    """In a chunk's results: the call raised."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded

    def error(self) -> BaseException:
        return decode_exception(self.encoded)


class _PoolWorker:
    """The actor: one process of the pool."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def run(self, function: Callable[..., Any], calls: list[Call]) -> list[Any]:
        """Return what each call returns, or how it failed: one failure spoils no neighbour."""
        results: list[Any] = []
        for args, kwargs in calls:
            try:
                results.append(function(*args, **kwargs))
            except Exception as error:
                where = getattr(function, "__qualname__", repr(function))
                results.append(_Failed(encode_exception(error, where=where, pid=os.getpid())))
        return results


class _Chunk:
    """Calls that go to one worker together."""

    def __init__(
        self, function: Callable[..., Any], calls: list[Any], finished: Callable[[list[Any]], None]
    ) -> None:
        self.function = function
        self.calls = calls
        self.finished = finished


class AsyncResult:
    """What apply_async and the like return: a result that will be."""

    def __init__(
        self,
        chunk_count: int,
        single: bool,
        callback: Callable[[Any], Any] | None,
        error_callback: Callable[[BaseException], Any] | None,
    ) -> None:
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._parts: list[list[Any]] = [[] for _ in range(chunk_count)]
        self._left = chunk_count
        self._single = single
        self._callback = callback
        self._error_callback = error_callback
        self._values: list[Any] = []
        self._error: BaseException | None = None
        if chunk_count == 0:
            self._settle()

    def _receive(self, position: int, results: list[Any]) -> None:
        with self._lock:
            self._parts[position] = results
            self._left -= 1
            last = self._left == 0
        if last:
            self._settle()

    def _settle(self) -> None:
        self._values = [value for part in self._parts for value in part]
        self._parts = []
        failed = next((value for value in self._values if isinstance(value, _Failed)), None)
        if failed is not None:
            self._error = failed.error()
        # Set first: a callback may ask this very object.
        self._done.set()
        if self._error is not None:
            if self._error_callback is not None:
                self._error_callback(self._error)
        elif self._callback is not None:
            self._callback(self._result())

    def _result(self) -> Any:
        return self._values[0] if self._single else self._values

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is there, at most ``timeout`` seconds."""
        self._done.wait(timeout)

    def ready(self) -> bool:
        """Return whether the result is there."""
        return self._done.is_set()

    def successful(self) -> bool:
        """Return whether no call raised. Raises ValueError where the result is not there yet."""
        if not self.ready():
            raise ValueError(f"{self!r} is not ready")
        return self._error is None

    def get(self, timeout: float | None = None) -> Any:
        """Return the result, or raise what the first failed call raised.

        Raises multiprocessing.TimeoutError where it is not there after ``timeout`` seconds.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no result within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._result()


class ResultIterator:
    """What imap and imap_unordered return: results as they come, items taken as they go."""

    def __init__(
        self,
        pool: Pool,
        function: Callable[..., Any],
        items: Iterable[Any],
        chunksize: int,
        ordered: bool,
    ) -> None:
        self._pool = pool
        self._function = function
        self._items = iter(items)
        self._chunksize = chunksize
        self._ordered = ordered
        self._changed = threading.Condition()
        self._arrived: dict[int, list[Any]] = {}
        self._ready: deque[Any] = deque()
        self._submitted = 0
        self._taken = 0
        self._exhausted = False
        for _ in range(_CHUNKS_PER_WORKER * len(pool._workers)):
            self._submit_next()

    def _submit_next(self) -> None:
        calls: list[Call] = [((item,), {}) for item in islice(self._items, self._chunksize)]
        if not calls:
            self._exhausted = True
            return
        position = self._submitted
        self._submitted += 1

        def finished(results: list[Any]) -> None:
            with self._changed:
                self._arrived[position] = results
                self._changed.notify_all()

        self._pool._submit(_Chunk(self._function, calls, finished))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result; raises what its call raised, and goes on after it.

        Raises multiprocessing.TimeoutError where it is not there after ``timeout`` seconds.
        """
        if not self._ready:
            self._take_chunk(timeout)
        value = self._ready.popleft()
        if isinstance(value, _Failed):
            raise value.error()
        return value

    def _take_chunk(self, timeout: float | None) -> None:
        if self._taken == self._submitted and not self._exhausted:
            self._submit_next()
        if self._taken == self._submitted:
            raise StopIteration
        with self._changed:
            if not self._changed.wait_for(self._chunk_is_there, timeout):
                raise TimeoutError(f"no result within {timeout} s")
            position = self._taken if self._ordered else next(iter(self._arrived))
            self._ready.extend(self._arrived.pop(position))
        self._taken += 1
        if not self._exhausted:
            self._submit_next()

    def _chunk_is_there(self) -> bool:
        return self._taken in self._arrived if self._ordered else bool(self._arrived)


class Pool:
    """A pool of worker processes.

    Args:
        processes: how many; None: as many as the cluster has CPUs.
        initializer: called in each worker before its first call, with ``initargs``.
        initargs: its arguments.
        maxtasksperchild: chunks after which a worker is replaced; None: never.
        context: only None: zray starts its workers in its own way.
        ray_address: address for zray.init(), where it has not been called.
        ray_remote_args: options of the workers' actors.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: None = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        if context is not None:
            raise errors.OptionError(
                "a Pool takes no context: zray starts its workers in its own way", option="context"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer={initializer!r} is not callable")
        for name, count in (("processes", processes), ("maxtasksperchild", maxtasksperchild)):
            if count is not None:
                _check_count(name, count)
        if not api.is_initialized():
            api.init(ray_address)
        if processes is None:
            processes = max(1, int(cluster_resources().get("CPU", 1)))
        self._setup = (initializer, tuple(initargs or ()))
        self._options = {"max_restarts": -1, **(ray_remote_args or {})}
        self._calls_max = maxtasksperchild
        self._changed = threading.Condition()
        self._waiting: deque[_Chunk] = deque()
        self._under_way = 0
        self._closed = False
        self._workers: list[Any] = [self._new_worker() for _ in range(processes)]
        self._idle: deque[int] = deque(range(processes))
        self._calls = [0] * processes

    def _new_worker(self) -> Any:
        return remote(_PoolWorker).options(**self._options).remote(*self._setup)

    # -- handing out -----------------------------------------------------------------------------

    def _submit(self, chunk: _Chunk) -> None:
        with self._changed:
            self._waiting.append(chunk)
        self._hand_out()

    def _hand_out(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or not self._idle:
                    return
                chunk, position = self._waiting.popleft(), self._idle.popleft()
                self._under_way += 1
            self._run(chunk, position)

    def _run(self, chunk: _Chunk, position: int) -> None:
        try:
            ref = self._workers[position].run.remote(chunk.function, chunk.calls)
        except Exception as error:
            # An argument that can't be pickled is the fault of its call, and told by its result.
            self._ended(chunk, position, [_failed(error)] * len(chunk.calls))
            return

        def done(future: Any) -> None:
            error = future.exception()
            self._ended(
                chunk,
                position,
                future.result() if error is None else [_failed(error)] * len(chunk.calls),
            )

        ref.future().add_done_callback(done)

    def _ended(self, chunk: _Chunk, position: int, results: list[Any]) -> None:
        self._calls[position] += 1
        if self._calls[position] == self._calls_max and not self._closed:
            self._calls[position] = 0
            self._workers[position] = self._new_worker()  # The old one ends with its handle.
        with self._changed:
            self._idle.append(position)
            self._under_way -= 1
        try:
            chunk.finished(results)
        finally:
            self._hand_out()
            with self._changed:
                self._changed.notify_all()

    def _chunks(self, calls: list[Any], chunksize: int | None) -> list[list[Any]]:
        if chunksize is None:
            chunksize = max(1, -(-len(calls) // (_CHUNKS_PER_WORKER * len(self._workers))))
        _check_count("chunksize", chunksize)
        return [calls[at : at + chunksize] for at in range(0, len(calls), chunksize)]

    def _start(
        self,
        function: Callable[..., Any],
        chunks: list[list[Any]],
        single: bool,
        callback: Callable[[Any], Any] | None,
        error_callback: Callable[[BaseException], Any] | None,
    ) -> AsyncResult:
        self._check_running()
        result = AsyncResult(len(chunks), single, callback, error_callback)
        for position, calls in enumerate(chunks):

            def finished(results: list[Any], position: int = position) -> None:
                result._receive(position, results)

            self._submit(_Chunk(function, calls, finished))
        return result

    # -- one call ----------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call func(*args, **kwargs) in a worker and return what it returns."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Call func(*args, **kwargs) in a worker; returns at once.

        Callbacks get the result or the error, in a thread of zray's: they must not take long.
        """
        chunk = [(tuple(args), dict(kwargs or {}))]
        return self._start(func, [chunk], True, callback, error_callback)

    # -- many calls --------------------------------------------------------------------------------

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Return func(item) for each item, in order."""
        values: list[Any] = self.map_async(func, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Call func(item) for each item; returns at once."""
        calls: list[Call] = [((item,), {}) for item in iterable]
        return self._start(func, self._chunks(calls, chunksize), False, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """Return func(*item) for each item, in order."""
        values: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Call func(*item) for each item; returns at once."""
        calls: list[Call] = [(tuple(item), {}) for item in iterable]
        return self._start(func, self._chunks(calls, chunksize), False, callback, error_callback)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> ResultIterator:
        """Yield func(item) for each item, in order; the iterable may be endless."""
        self._check_running()
        _check_count("chunksize", chunksize)
        return ResultIterator(self, func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> ResultIterator:
        """Yield func(item) for each item as they come; the iterable may be endless."""
        self._check_running()
        _check_count("chunksize", chunksize)
        return ResultIterator(self, func, iterable, chunksize, ordered=False)

    # -- the end -----------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Take no more calls; those under way go on."""
        self._closed = True

    def terminate(self) -> None:
        """End the workers at once; results that are not there never will be: errors instead."""
        self._closed = True
        with self._changed:
            dropped, workers = list(self._waiting), self._workers
            self._waiting.clear()
            self._workers = []
        for worker in workers:
            if api.is_initialized():
                api.kill(worker)
        gone = _failed(errors.TaskCancelledError("the pool was terminated"))
        for chunk in dropped:
            chunk.finished([gone] * len(chunk.calls))

    def join(self) -> None:
        """Wait until all calls have ended, then end the workers. Call close() first."""
        if not self._closed:
            raise ValueError("Pool is still running: close() or terminate() it first")
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way and not self._waiting)
        self.terminate()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_error: object) -> None:
        self.terminate()


def _check_count(name: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}={count!r}: it is 1 or more")


def _failed(error: BaseException) -> _Failed:
    return _Failed(encode_exception(error, where="Pool"))
