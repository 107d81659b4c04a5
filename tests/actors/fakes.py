"""What the worker's parts are given in place of sockets and processes.

What    FakeRuntime: a real Session whose outbox nobody sends, and arrivals that a test has lined
        up: a wait takes them one by one. task_range(): work as the node sends it.
Caller  tests/actors.
Never   decides anything that production code decides.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from zray.actors.work import TaskClass, TaskRange
from zray.protocol import frames
from zray.session.session import Session

ME, NODE, CALLER, OTHER = b"a-worker", b"the-node", b"a-caller", b"somebody"


class FakeRuntime:
    """A worker's runtime without a socket."""

    def __init__(self) -> None:
        self.process, self.node = ME, NODE
        self.lock = threading.RLock()
        self.session = Session(ME, NODE, lambda what, reason: b"\x02" + what.encode())
        self.check_interrupt: Callable[[], None] | None = None
        self.flushed = 0
        self.arrivals: deque[Callable[[], object]] = deque()
        self.cancelled: list[tuple[int, bool]] = []

    def flush(self) -> None:
        self.flushed += 1

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Let what the test has lined up arrive until the condition holds."""
        while not ready():
            assert self.arrivals, "it waits for ever: nothing else will arrive"
            self.arrivals.popleft()()
        return True

    def cancel_number(self, number: int, *, force: bool = False, recursive: bool) -> None:
        assert not force, "a recursive cancel never kills"
        self.cancelled.append((number, recursive))

    def left(self) -> list[tuple[Any, ...]]:
        """Return (peer, kind, fields, payloads) of the messages in the outbox, and empty it."""
        outbox = self.session.outbox
        queued, outbox.messages = outbox.messages, []
        found = []
        for peer, header, payloads in queued:
            _version, kind, _count, *fields = frames.unpack(header)
            found.append((peer, kind, fields, payloads))
        return found


def task_class(returns: int = 1) -> TaskClass:
    """Return the class of a function as DECLARE_CLASS gives it."""
    return TaskClass([b"function", "f", {"CPU": 10_000}, returns, 0, None, 0])


def task_range(
    low: int = 0,
    high: int = 10,
    *,
    client: bytes = CALLER,
    first: int = 100,
    count: int = 10,
    direct: bool = False,
    returns: int = 1,
) -> TaskRange:
    """Return items [low, high) of a batch of ``count`` that begins with task ``first``."""
    return TaskRange(
        client, task_class(returns), first, count, low, high, 0, b"payload", [], direct=direct
    )
