"""Generators: values leave one by one, and the generator waits for its consumer.

What    Runs a user's generator, plain or async, sending each value as it is yielded.
Caller  actors/task_runner.py, actors/actor_runner.py, actors/event_loop.py.
Never   lets a generator run on when its consumer has gone, or leaves one unclosed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from zray.protocol.ids import return_number

from .interrupts import END, advance

if TYPE_CHECKING:
    from .outbound import Outbound
    from .values import Values


class Streams:
    """The generators of one worker."""

    def __init__(self, values: Values, outbound: Outbound) -> None:
        self.values = values
        self.outbound = outbound

    def run(self, produced: Any, client: bytes, number: int, backlog: int) -> int:
        """Send what an iterable yields; returns how many values. Waits in this thread."""
        outbound = self.outbound
        iterator = _Driven(produced) if hasattr(produced, "__anext__") else iter(produced)
        outbound.begin_stream(client, number)
        index = 0
        try:
            while (value := advance(iterator)) is not END:
                found = self.values.make_outcome(value, client, return_number(number, index + 1))
                index += 1
                if not outbound.yield_item(client, number, index - 1, found, backlog):
                    break
        finally:
            outbound.end_stream(client, number)
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        return index

    async def run_async(self, produced: Any, client: bytes, number: int, backlog: int) -> int:
        """Send what an async or plain iterable yields; waits without holding up the loop."""
        outbound = self.outbound
        outbound.begin_stream(client, number)
        index = 0
        try:
            async for value in _each(produced):
                found = self.values.make_outcome(value, client, return_number(number, index + 1))
                index += 1
                outbound.send_item(client, number, index - 1, found)
                if not outbound.has_room(client, number, index, backlog):
                    await self._room(client, number, index, backlog)
                if outbound.is_abandoned(client, number):
                    break
        finally:
            outbound.end_stream(client, number)
            if hasattr(produced, "aclose"):
                await produced.aclose()
            elif hasattr(produced, "close"):
                produced.close()
        return index

    async def _room(self, client: bytes, number: int, index: int, backlog: int) -> None:
        outbound, loop = self.outbound, asyncio.get_running_loop()
        moved = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
                loop.call_soon_threadsafe(moved.set)

        outbound.on_consumed(client, number, wake)
        outbound.runtime.flush()
        while not outbound.has_room(client, number, index, backlog):
            moved.clear()
            if not outbound.has_room(client, number, index, backlog):
                await moved.wait()


async def _each(produced: Any) -> AsyncIterator[Any]:
    if hasattr(produced, "__anext__") or hasattr(produced, "__aiter__"):
        async for value in produced:
            yield value
    else:
        for value in produced:
            yield value
            await asyncio.sleep(0)  # Others must get their turn between two values.


class _Driven(Iterator[Any]):
    """An async generator as a plain one, on a loop of its own: tasks have none."""

    def __init__(self, produced: AsyncIterator[Any]) -> None:
        self._produced = produced
        self._loop = asyncio.new_event_loop()

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> Any:
        return await self._produced.__anext__()

    def close(self) -> None:
        close = getattr(self._produced, "aclose", None)
        try:
            if close is not None:
                self._loop.run_until_complete(close())
        finally:
            self._loop.close()
