"""Interrupts a task that runs in the main thread, and nothing else.

What    A cancel raises KeyboardInterrupt inside user code. The signal's handler looks at the stack:
        it raises only where the innermost frames are the user's; inside zray it does nothing, and
        the signal comes again a moment later. A wait inside zray.get is ended by a message and
        raises by itself, at a place where nothing is half done.
Caller  actors/task_runner.py (doors into user code, what runs), actors/host.py (requests).
Never   raises in a task that has ended meanwhile, in another task, or in the worker's own code.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import zray

from .context import Execution

if TYPE_CHECKING:
    from zray.runtime import Runtime

_PACKAGE = os.path.dirname(os.path.abspath(zray.__file__)) + os.sep
_INSIST_S = 0.001
_INSIST_S_MAX = 0.1

END: Any = object()
"""What advance() returns at a generator's end."""


# The doors: user code runs below these frames, and an interrupt may be raised in them. They hold
# nothing that an exception could leave half done.


def invoke(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a user's function."""
    return function(*args, **kwargs)


def invoke_each(
    function: Callable[..., Any], items: list[Any], append: Callable[[Any], None]
) -> None:
    """Call a user's function with each item."""
    for item in items:
        append(function(item))


def advance(iterator: Iterator[Any]) -> Any:
    """Return the next value of a user's generator, or END."""
    return next(iterator, END)


def gather(values: Any) -> tuple[Any, ...]:
    """Return the values of a user's iterable."""
    return tuple(values)


_DOORS = frozenset(each.__code__ for each in (invoke, invoke_each, advance, gather))


def _in_user_code(frame: FrameType | None) -> bool:
    """Whether an exception in this frame passes through the user's frames only, to a door."""
    while frame is not None:
        if frame.f_code in _DOORS:
            return True
        if frame.f_code.co_filename.startswith(_PACKAGE):
            return False
        frame = frame.f_back
    return False


class Interrupts:
    """The interrupts of one worker's main thread.

    Args:
        runtime: whose waits end when an interrupt is due.
        wake_main: ends a wait of the main thread for messages.
    """

    def __init__(self, runtime: Runtime, wake_main: Callable[[], None]) -> None:
        self.running: Execution | None = None
        """What may be interrupted: a task in the main thread."""
        self._runtime = runtime
        self._wake_main = wake_main
        self._main_thread = threading.get_ident()
        self._wanted: tuple[bytes, int] | None = None

    def install(self) -> None:
        """Take the signal. Called in the main thread."""
        signal.signal(signal.SIGUSR2, self._on_signal)

    def request(self, client: bytes, number: int) -> Execution | None:
        """Interrupt this task if it runs; returns its execution (any other thread)."""
        running = self.running
        if running is None or running.client != client or running.at() != number:
            return None
        running.cancelled = number
        self._wanted = (client, number)
        self._runtime.check_interrupt = self._check
        threading.Thread(
            target=self._insist, args=(client, number), name="zray-interrupt", daemon=True
        ).start()
        return running

    def _insist(self, client: bytes, number: int) -> None:
        """Send the signal until it has been taken or the task has ended."""
        wanted, pause_s = (client, number), _INSIST_S
        while self._wanted == wanted and self._runs(wanted):
            signal.pthread_kill(self._main_thread, signal.SIGUSR2)
            self._wake_main()
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _INSIST_S_MAX)
        if self._wanted == wanted:
            self._wanted = None
        if self._wanted is None:
            self._runtime.check_interrupt = None

    def _runs(self, wanted: tuple[bytes, int]) -> bool:
        running = self.running
        return running is not None and (running.client, running.at()) == wanted

    def _take(self) -> bool:
        """Whether the wanted task is the running one, for once (main thread)."""
        wanted = self._wanted
        if wanted is None or not self._runs(wanted):
            return False
        self._wanted = None
        return True

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if self._wanted is not None and _in_user_code(frame) and self._take():
            raise KeyboardInterrupt

    def _check(self) -> None:
        """Called by waits: raise here, where a wait can end."""
        if threading.get_ident() == self._main_thread and self._take():
            raise KeyboardInterrupt
