"""Threads that wait while another one of their process reads the inbox.

What    Each waits behind a gate of its own, so that a message wakes those it is for, and the
        thread that ends reading hands that on to one. With one condition for all, every message
        woke every thread: 64 threads calling one actor paid seven times as much a call as four.
Caller  zray/client.py.
Never   reads, or holds a lock while a thread waits.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Container

from zray.session.references import Key


class Turns:
    """Who waits, and for what."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[threading.Lock, Key | None]] = {}
        """In the order they came. Each operation on it is one step under the GIL."""
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, key: Key | None, timeout_s: float, over: Callable[[], bool]) -> None:
        """Wait to be woken, unless it is over already when everybody can see that we wait.

        Args:
            key: the only outcome that matters; None: any message may.
            timeout_s: at most so long.
            over: whether there is nothing to wait for.
        """
        gate = threading.Lock()
        gate.acquire()
        number = next(self._numbers)
        self._waiting[number] = (gate, key)
        try:
            if not over():
                gate.acquire(timeout=timeout_s)
        finally:
            self._waiting.pop(number, None)

    def news(self, results: Container[Key]) -> None:
        """A message was applied: wake those whose outcome is here, and those it may concern."""
        for number, (_gate, key) in list(self._waiting.items()):
            if key is None or key in results:
                self._wake(number)

    def pass_on(self) -> None:
        """Nobody reads any more: wake who has waited longest to do it."""
        for number in list(self._waiting):
            if self._wake(number):
                return

    def wake_all(self) -> None:
        """Something has changed for everybody."""
        for number in list(self._waiting):
            self._wake(number)

    def _wake(self, number: int) -> bool:
        entry = self._waiting.pop(number, None)
        if entry is None:
            return False  # It goes by itself, or somebody else was quicker.
        entry[0].release()
        return True
