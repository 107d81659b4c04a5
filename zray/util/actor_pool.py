"""ActorPool: calls spread over a few actors, each busy with one at a time.

What    submit and get_next[_unordered], map and map_unordered, push and pop_idle, as in Ray.
Caller  users.
Never   makes or ends an actor: the pool is given its actors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zray import api, errors
from zray.refs import ObjectRef

Call = Callable[[Any, Any], ObjectRef[Any]]


class ActorPool:
    """A pool of actors.

    Args:
        actors: handles, of any classes that have the methods called.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: deque[Any] = deque(actors)
        self._waiting: deque[tuple[Call, Any]] = deque()
        self._busy: dict[ObjectRef[Any], tuple[int, Any]] = {}
        self._by_index: dict[int, ObjectRef[Any]] = {}
        self._next_submitted = 0
        self._next_returned = 0

    # -- one by one ----------------------------------------------------------------------------

    def submit(self, fn: Call, value: Any) -> None:
        """Call fn(actor, value) on an idle actor, or as soon as one is idle.

        Args:
            fn: returns a ref, such as ``lambda actor, value: actor.double.remote(value)``.
            value: its second argument.
        """
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.popleft()
        try:
            ref = fn(actor, value)
            if not isinstance(ref, ObjectRef):
                raise TypeError(
                    f"the function given to an ActorPool returned {ref!r}, not an"
                    " ObjectRef: let it return actor.method.remote(value)"
                )
        except BaseException:
            self._idle.append(actor)
            raise
        self._busy[ref] = (self._next_submitted, actor)
        self._by_index[self._next_submitted] = ref
        self._next_submitted += 1

    def has_next(self) -> bool:
        """Return whether a result has not been taken yet."""
        return bool(self._busy or self._waiting)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the next result in the order of submit().

        Args:
            timeout: seconds to wait at most; None waits for ever.
            ignore_if_timedout: leave out a result that is late, and free its actor.

        Raises:
            StopIteration: nothing is under way.
            GetTimeoutError: (a TimeoutError) the result is not there in time.
            The error of the call; its actor is free for the next one all the same.
        """
        if not self.has_next():
            raise StopIteration("no more results to get")
        while self._next_returned not in self._by_index:
            if self._next_returned >= self._next_submitted:
                raise errors.OptionError(
                    "every actor was taken out of this pool and calls wait: push() one",
                    option="actors",
                )
            self._next_returned += 1  # Taken by get_next_unordered.
        ref = self._by_index[self._next_returned]
        late = not api.wait([ref], timeout=timeout)[0]
        if late and not ignore_if_timedout:
            raise errors.GetTimeoutError(f"no result within {timeout} s", timeout_s=timeout or 0)
        self._next_returned += 1
        self._done(ref)
        if late:
            raise errors.GetTimeoutError(
                f"no result within {timeout} s; it is left out", timeout_s=timeout or 0
            )
        return api.get(ref)

    def get_next_unordered(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> Any:
        """Return whichever result comes first. Arguments and errors as get_next().

        With ``ignore_if_timedout`` a late result is that of the oldest call.
        """
        if not self.has_next():
            raise StopIteration("no more results to get")
        if not self._busy:
            raise errors.OptionError(
                "every actor was taken out of this pool and calls wait: push() one", option="actors"
            )
        ready, waiting = api.wait(list(self._busy), num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                self._done(waiting[0])
            raise errors.GetTimeoutError(f"no result within {timeout} s", timeout_s=timeout or 0)
        self._done(ready[0])
        return api.get(ready[0])

    def _done(self, ref: ObjectRef[Any]) -> None:
        index, actor = self._busy.pop(ref)
        del self._by_index[index]
        self._return(actor)

    def _return(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    # -- many ----------------------------------------------------------------------------------

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of fn(actor, value) for each value, in order.

        All calls are submitted at once; results of earlier submits are dropped.
        """
        self._drain()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next)

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of fn(actor, value) for each value, as they come."""
        self._drain()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next_unordered)

    def _results(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def _drain(self) -> None:
        """Wait for what was submitted before, whose results nobody took."""
        while self._busy:
            self._done(api.wait(list(self._busy), num_returns=1)[0][0])

    # -- members -------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Return whether an actor is idle and nothing waits for one."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool and return it; None where all are busy."""
        return self._idle.popleft() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor.

        Raises ValueError where it is in the pool already.
        """
        if actor in self._idle or any(actor == busy for _index, busy in self._busy.values()):
            raise ValueError("this actor is in the pool already")
        self._return(actor)
