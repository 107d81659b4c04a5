"""ObjectRef: the name of a value that a task, a call or put() makes.

What    ObjectRef (awaitable, usable with asyncio and concurrent.futures), ObjectRefGenerator (the
        items of a generator task), RefSequence (the refs of a map, made when looked at).
Caller  users; zray/api.py, zray/remote_function.py and zray/actor.py make them.
Never   holds a value.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from zray import errors
from zray.protocol.ids import object_id, owner_of, return_number, task_number_of
from zray.serialization import collector

if TYPE_CHECKING:
    from zray.runtime import Runtime
    from zray.session.streams import Stream
    from zray.session.tasks import TaskBatch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_current: Callable[[], Runtime] | None = None


def set_current(current: Callable[[], Runtime]) -> None:
    """Tell refs that arrive pickled how to find this process's client (zray/api.py does)."""
    global _current
    _current = current


class ObjectRef(Generic[T_co]):
    """Refers to a value that exists or will. Pass it on, get() it, await it.

    The value is kept as long as a reference to it is alive in any process.
    """

    __slots__ = ("__weakref__", "client", "key")

    def __init__(self, client: Runtime, key: int | bytes) -> None:
        self.client = client
        self.key = key

    def __del__(self) -> None:
        # Runs wherever the collector pleases: only an append, no lock.
        self.client.garbage.append(self.key)

    @property
    def id(self) -> bytes:
        """The 16-byte id."""
        return self.client.session.references.id_of(self.key)

    def binary(self) -> bytes:
        """Return the 16-byte id."""
        return self.id

    def hex(self) -> str:
        """Return the id as 32 hexadecimal digits."""
        return self.id.hex()

    def task_id(self) -> bytes:
        """Return the id of the task that makes the value."""
        identity = self.id
        number = int.from_bytes(identity[8:], "big")
        return object_id(owner_of(identity), task_number_of(number))

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other.id == self.id

    def __reduce__(self) -> tuple[Any, ...]:
        self.escape()
        return restore, (self.id,)

    def check_session(self, client: Runtime) -> None:
        """Raise where the ref is of another session than ``client``'s, which has ended."""
        if self.client is not client:
            self.client.check_usable()

    def escape(self) -> None:
        """Record that the ref is being pickled, so that its object outlives the journey."""
        if self.client.closed:
            self.client.check_usable()
        collector.note(self)

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, _memo: Any) -> ObjectRef[T_co]:
        return self

    # -- asyncio -----------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._asyncio_future().__await__()

    def _asyncio_future(self) -> asyncio.Future[T_co]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T_co] = loop.create_future()

        def settle() -> None:
            if not future.done():
                _settle(future, self)

        def ready() -> None:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                return  # The loop is closed: nobody waits any more.

        if self.client.when_ready(self.key, ready):
            settle()
        return future

    # asyncio.wait() asks its members for the next ones; gather() and the like make tasks of what
    # is awaitable.
    def done(self) -> bool:
        """Return whether the outcome is here."""
        return self.client.is_ready(self.key)

    def cancelled(self) -> bool:
        """Return whether the task was cancelled."""
        return isinstance(self.exception(), errors.TaskCancelledError) if self.done() else False

    def result(self) -> T_co:
        """Return the value as get() does, or raise its error."""
        value: T_co = self.client.get_one(self, None)
        return value

    def exception(self) -> BaseException | None:
        """Return the error the task ended with, None where it has a value."""
        try:
            self.client.get_one(self, None)
        except errors.GetTimeoutError:
            raise
        except BaseException as error:
            return error
        return None

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None:
        """Call callback(self) in the running loop once the outcome is here."""
        loop = asyncio.get_running_loop()
        if self.client.when_ready(self.key, _DoneCallback(self, callback, loop, context)):
            loop.call_soon(callback, self, context=context)

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """Forget a callback that has not been called; returns how many there were."""
        client = self.client
        with client.lock:
            waiting = client.session.callbacks.get(self.key, [])
            kept = [
                each
                for each in waiting
                if not (isinstance(each, _DoneCallback) and each.callback == callback)
            ]
            removed = len(waiting) - len(kept)
            if kept:
                client.session.callbacks[self.key] = kept
            elif removed:
                del client.session.callbacks[self.key]
        return removed

    def future(self) -> concurrent.futures.Future[T_co]:
        """Return a concurrent.futures.Future that gets the value or error."""
        future: concurrent.futures.Future[T_co] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def ready() -> None:
            # Unpickling runs user code, which must not run in the background thread.
            _settlers().submit(_settle, future, self)

        if self.client.when_ready(self.key, ready):
            _settle(future, self)
        return future


class _DoneCallback:
    """A callback of add_done_callback(), on its way from the reading thread to its loop."""

    __slots__ = ("callback", "context", "loop", "ref")

    def __init__(
        self,
        ref: ObjectRef[Any],
        callback: Callable[[Any], object],
        loop: asyncio.AbstractEventLoop,
        context: Any,
    ) -> None:
        self.ref = ref
        self.callback = callback
        self.loop = loop
        self.context = context

    def __call__(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.callback, self.ref, context=self.context)
        except RuntimeError:
            return  # The loop is closed: nobody waits any more.


_settler_pool: concurrent.futures.ThreadPoolExecutor | None = None


def _settlers() -> concurrent.futures.ThreadPoolExecutor:
    global _settler_pool
    if _settler_pool is None:
        _settler_pool = concurrent.futures.ThreadPoolExecutor(1, "zray-futures")
    return _settler_pool


def close_settlers() -> None:
    """End the thread behind ObjectRef.future(), where there is one."""
    global _settler_pool
    pool, _settler_pool = _settler_pool, None
    if pool is not None:
        pool.shutdown(wait=True)


def _settle(future: Any, ref: ObjectRef[Any]) -> None:
    try:
        value = ref.client.get_one(ref, None)
    except BaseException as error:
        # A future refuses StopIteration; whoever gets the ref itself sees it unchanged.
        future.set_exception(
            RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
        )
    else:
        future.set_result(value)


def restore(identity: bytes) -> ObjectRef[Any]:
    """Make the ref of an id that arrived pickled."""
    if _current is None:
        raise errors.NotInitializedError("an ObjectRef was unpickled before zray.init()")
    client = _current()
    references = client.session.references
    key = references.key_of(identity)
    with client.lock:
        references.restore(key)
    return ObjectRef(client, key)


class ObjectRefGenerator(Generic[T]):
    """The items of a generator task or method, as refs, in order, while it runs.

    Iterate it (``for``, ``async for``), or pass it to zray.wait. The generator runs ahead by a
    bounded number of items. Closing or dropping it stops the generator.
    """

    def __init__(self, client: Runtime, number: int, stream: Stream) -> None:
        self._client = client
        self._stream = stream
        self._completion: ObjectRef[int] = ObjectRef(client, number)

    def completed(self) -> ObjectRef[int]:
        """Return the ref that gets the number of items when the generator has ended."""
        return self._completion

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return self

    def __next__(self) -> ObjectRef[T]:
        return self._next(None)

    def next_ready(self) -> bool:
        """Return whether next() would return or end without waiting."""
        stream = self._stream
        return stream.arrived > stream.consumed or self._client.is_ready(self._completion.key)

    def next_keys(self) -> tuple[int | bytes, int | bytes]:
        """Return the objects of which one comes before next() can return: an item, the end."""
        stream = self._stream
        return return_number(stream.number, stream.consumed + 1), self._completion.key

    def _next(self, timeout_s: float | None) -> ObjectRef[T]:
        if not self._client.wait_until(self.next_ready, timeout_s):
            raise errors.GetTimeoutError(f"no item within {timeout_s} s")
        return self._take()

    def _take(self) -> ObjectRef[T]:
        client, stream = self._client, self._stream
        if stream.arrived > stream.consumed:
            with client.lock:
                number = client.session.streams.consume(stream)
            if client.session.outbox.messages:
                client.flush()
            return ObjectRef(client, number)
        count = client.get_one(self._completion, None)  # Raises what the generator raised.
        if stream.consumed < count:
            client.wait_until(lambda: stream.arrived > stream.consumed)
            return self._take()
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[ObjectRef[T]]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        while not self.next_ready():
            loop = asyncio.get_running_loop()
            woken = asyncio.Event()

            def wake(loop: asyncio.AbstractEventLoop = loop, woken: asyncio.Event = woken) -> None:
                loop.call_soon_threadsafe(woken.set)

            self._client.when_item(self._stream, self._completion.key, wake)
            await woken.wait()
        try:
            return self._take()
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Stop the generator; items not taken are dropped."""
        with self._client.lock:
            self._client.session.streams.close(self._stream)
        if not self._client.closed:
            self._client.flush()

    def __del__(self) -> None:
        self._client.abandoned_streams.append(self._stream)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._completion.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise errors.SerializationError(
            "an ObjectRefGenerator can't be passed to another process: iterate it here and pass"
            " the refs, or pass list(generator)"
        )


class RefSequence(Sequence[ObjectRef[T]]):
    """The refs of f.map(items): a sequence that makes each ref when it is looked at.

    zray.get(sequence) takes the values in bulk; sequence[i] is an ordinary ObjectRef.
    """

    def __init__(self, client: Runtime, batches: list[TaskBatch], chunk: int, count: int) -> None:
        self.client = client
        self.batches = batches
        self._chunk = chunk
        self._count = count
        self._made: dict[int, ObjectRef[T]] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> ObjectRef[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[ObjectRef[T]]: ...
    def __getitem__(self, index: int | slice) -> ObjectRef[T] | list[ObjectRef[T]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError(f"map has {self._count} refs")
        made = self._made.get(index)
        if made is None:
            batch = self.batches[index // self._chunk]
            number = self.client.watch_item(batch, index % self._chunk)
            made = self._made[index] = ObjectRef(self.client, number)
        return made

    def __await__(self) -> Generator[Any, None, list[T]]:
        """Wait for all values, as zray.get() of the sequence does, in a thread of the loop's."""
        return asyncio.to_thread(self.client.get_map, self, None).__await__()

    def __del__(self) -> None:
        self.client.abandoned_batches.append((self.batches, frozenset(self._made)))

    def __repr__(self) -> str:
        return f"<RefSequence of {self._count} refs>"

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)
