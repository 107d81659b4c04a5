"""Queue: a first-in-first-out queue that tasks, actors and drivers share.

What    Queue, with the methods of queue.Queue and async ones; it lives in an actor, goes along as
        an argument, and ends with its last copy. Empty and Full are also queue.Empty and .Full.
Caller  users.
Never   polls: a blocked get() or put() waits inside the actor.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import Any

from zray import api
from zray.remote_decorators import remote


class Empty(queue.Empty):
    """The queue has no item, or fewer than were asked for."""


class Full(queue.Full):
    """The queue has no room."""


class Queue:
    """A queue in an actor of its own.

    Args:
        maxsize: items it holds at most; 0 is without bound.
        actor_options: options of its actor, such as a name to find it by.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        options = {"num_cpus": 0, "max_concurrency": 10_000, **(actor_options or {})}
        self.actor: Any = remote(_Items).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """Return how many items it holds now."""
        count: int = api.get(self.actor.size.remote())
        return count

    def qsize(self) -> int:
        """Return how many items it holds now."""
        return self.size()

    def empty(self) -> bool:
        """Return whether it holds no item now."""
        return self.size() == 0

    def full(self) -> bool:
        """Return whether it has no room now."""
        return 0 < self.maxsize <= self.size()

    # -- putting -------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item.

        Args:
            item: anything that can be pickled, refs too.
            block: wait for room.
            timeout: seconds to wait at most; None waits for ever.

        Raises Full where there is no room (in time).
        """
        if not api.get(self.actor.put.remote(item, _patience(block, timeout))):
            raise Full("the queue is full")

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item, as put() does, without blocking the loop."""
        if not await self.actor.put.remote(item, _patience(block, timeout)):
            raise Full("the queue is full")

    def put_nowait(self, item: Any) -> None:
        """Add an item; raises Full where there is no room now."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items or none; raises Full where there is no room for all."""
        given = list(items)
        if not api.get(self.actor.put_all.remote(given)):
            raise Full(f"the queue has no room for {len(given)} items")

    # -- getting -------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item.

        Args:
            block: wait for one.
            timeout: seconds to wait at most; None waits for ever.

        Raises Empty where there is none (in time).
        """
        return _only(api.get(self.actor.get.remote(_patience(block, timeout))))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item, as get() does, without blocking the loop."""
        return _only(await self.actor.get.remote(_patience(block, timeout)))

    def get_nowait(self) -> Any:
        """Take the oldest item; raises Empty where there is none now."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take that many items or none; raises Empty where there are fewer."""
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items={num_items!r}: it is an int")
        if num_items < 0:
            raise ValueError(f"num_items={num_items}: it is 0 or more")
        items: list[Any] | None = api.get(self.actor.get_all.remote(num_items))
        if items is None:
            raise Empty(f"the queue holds fewer than {num_items} items")
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5.0) -> None:
        """End the queue's actor; items in it are lost, and later calls raise ActorDiedError.

        Args:
            force: do not let calls under way end first.
            grace_period_s: seconds for those.
        """
        if not force:
            api.wait([self.actor.settle.remote(grace_period_s)], timeout=grace_period_s)
        api.kill(self.actor)


def _patience(block: bool, timeout: float | None) -> float | None:
    """Return the seconds to wait: None for ever, 0 not at all."""
    if not block:
        return 0.0
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout}: it is 0 or more seconds, or None")
    return timeout


def _only(found: list[Any]) -> Any:
    if not found:
        raise Empty("the queue is empty")
    return found[0]


class _Items:
    """The actor behind a Queue. Full and empty are answers, not errors with a traceback."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.items: asyncio.Queue[Any] = asyncio.Queue(maxsize)
        self.waiting = 0

    async def size(self) -> int:
        return self.items.qsize()

    async def put(self, item: Any, patience_s: float | None) -> bool:
        if patience_s == 0:
            if self.items.full():
                return False
            self.items.put_nowait(item)
            return True
        self.waiting += 1
        try:
            await asyncio.wait_for(self.items.put(item), patience_s)
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True

    async def put_all(self, items: list[Any]) -> bool:
        if self.maxsize > 0 and self.items.qsize() + len(items) > self.maxsize:
            return False
        for item in items:
            self.items.put_nowait(item)
        return True

    async def get(self, patience_s: float | None) -> list[Any]:
        if patience_s == 0:
            return [] if self.items.empty() else [self.items.get_nowait()]
        self.waiting += 1
        try:
            return [await asyncio.wait_for(self.items.get(), patience_s)]
        except TimeoutError:
            return []
        finally:
            self.waiting -= 1

    async def get_all(self, count: int) -> list[Any] | None:
        if count > self.items.qsize():
            return None
        return [self.items.get_nowait() for _ in range(count)]

    async def settle(self, patience_s: float) -> None:
        """Return when no put() or get() waits any more, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        while self.waiting and loop.time() < deadline:
            await asyncio.sleep(0.01)
