"""Waiting for a condition, with a deadline: the only wait that tests use.

What    wait_until(condition, timeout_s) polls and returns what the condition returned.
Caller  tests, and the leak check.
Never   gives up silently: past the deadline it fails and says what it saw last.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = 10.0,
    *,
    what: str = "",
    interval_s: float = 0.005,
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    Args:
        condition: called without arguments; what it raises is not caught.
        timeout_s: seconds until the wait fails with AssertionError.
        what: what is waited for, in words, for the failure's message.
        interval_s: seconds before the second call; doubles up to a tenth of a second.
    """
    deadline = time.monotonic() + timeout_s
    while not (seen := condition()):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"after {timeout_s} s still waiting for {name}; last saw {seen!r}")
        time.sleep(min(interval_s, left_s))
        interval_s = min(interval_s * 2, 0.1)
    return seen
