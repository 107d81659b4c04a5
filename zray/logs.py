"""What workers print, at the driver.

What    Lines arrive on the lifeline and are written to this process's stdout or stderr with
        the prefix ``(name pid)``.
Caller  zray/api.py.
Never   waits: a driver whose terminal is stuck drops nothing but its own time.
"""

import sys
from collections.abc import Callable
from typing import Any

from zray.protocol import messages


def driver_rules() -> dict[int, Callable[[list[Any]], None]]:
    """Return the lifeline rules of a driver."""
    return {messages.LOG: _print_lines}


def _print_lines(message: list[Any]) -> None:
    for label, is_stderr, text in message[3]:
        stream = sys.stderr if is_stderr else sys.stdout
        if stream is None or stream.closed:
            continue
        stream.write(f"({label}) {text}\n")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
