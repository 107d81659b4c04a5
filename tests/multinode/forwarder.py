"""What stands between two nodes in tests: a forwarder of TCP connections that can be cut.

What    Forwarder listens on a port of its own and passes on what comes to a port of a node, both
        ways; a node behind it is told to others by the forwarder's address. cut() resets what is
        open; deaf() takes in what comes and passes nothing on, as a cable that is pulled.
Caller  tests of this folder.
Never   looks at what it carries; leaves a thread or socket behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_RESET = struct.pack("ii", 1, 0)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens at now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Forwarder:
    """One port that leads to another one. A context manager, or close() it."""

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self.opened = 0
        """Connections that were made so far."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._passes.set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connected, host, 0))
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, name="forwarder")
        self._thread.start()

    async def _connected(
        self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter
    ) -> None:
        self._writers.add(near_out)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_in, far_out = await asyncio.open_connection(*self._target)
            self._writers.add(far_out)
            self.opened += 1
            await asyncio.gather(self._pump(near_in, far_out), self._pump(far_in, near_out))
        near_out.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._passes.wait()
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()
            self._writers.discard(sink)

    def _do(self, step: Callable[[], Any]) -> None:
        """Do something in the loop's thread, and wait until it is done."""
        done = threading.Event()

        def do() -> None:
            step()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(10)

    def cut(self) -> None:
        """Reset every connection; new ones are let through."""
        self._do(self._abort)

    def _abort(self) -> None:
        for writer in self._writers:
            its = writer.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                its.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        self._writers.clear()

    def deaf(self) -> None:
        """Pass nothing on, and keep what comes."""
        self._do(self._passes.clear)

    def hear(self) -> None:
        """Pass on what was kept, and what comes."""
        self._do(self._passes.set)

    def close(self) -> None:
        """End it all."""
        self._do(self._server.close)
        self._do(self._passes.set)
        self._do(self._abort)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # Transports close their sockets a turn later.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()
