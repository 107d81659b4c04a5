"""What tests ask a running node about itself.

What    The node's status, its workers, and waits for its store to be empty.
Caller  tests/cluster, tests/chaos.
Never   changes anything.
"""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import zray
from tests.waiting import wait_until
from zray import api
from zray.errors import ObjectStoreFullError
from zray.protocol import messages


def ask(what: str, **arguments: Any) -> Any:
    """Return the node's answer to one question of INSPECT."""
    return api.runtime().request(messages.INSPECT, what, arguments)


def store() -> dict[str, Any]:
    """Return the sizes of the node's object store, after everything dropped here was reported."""
    gc.collect()
    runtime = api.runtime()
    runtime.flush()
    sizes: dict[str, Any] = ask("status")["store"]
    return sizes


def give_back() -> None:
    """Give this process's warm extents back, as it would when the node is short of memory."""
    api.runtime().objects.give_back()


def _press(capacity_bytes: int) -> None:
    """Ask for all the memory there is: workers give back the extents that they keep warm."""
    runtime = api.runtime()
    with contextlib.suppress(ObjectStoreFullError):
        offset = runtime.request(messages.ALLOCATE, capacity_bytes)[0]
        runtime.call(messages.FREE, [offset])


def wait_for_empty_store(timeout_s: float = 10.0) -> None:
    """Wait until nobody uses a byte of shared memory or of the spill disk."""
    seen: dict[str, Any] = {}

    def empty() -> bool:
        give_back()
        seen.update(store())
        if seen["used_bytes"] == 0 and seen["spill_bytes"] == 0:
            return True
        _press(seen["capacity_bytes"])
        return False

    try:
        wait_until(empty, timeout_s)
    except AssertionError:
        rows = ask("objects")
        raise AssertionError(
            f"memory did not come back: {seen}; {len(rows)} objects, {rows[:3]}"
        ) from None


def worker_pids() -> list[int]:
    """Return the pids of living workers."""
    return [row["pid"] for row in ask("workers") if row["pid"]]


def node_pid() -> int:
    """Return the node's process id."""
    pid: int = ask("status")["pid"]
    return pid


def is_initialized() -> bool:
    """Return whether this process is connected to a node."""
    return bool(zray.is_initialized())
