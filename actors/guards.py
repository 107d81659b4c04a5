"""Workers that may run only while a lease stands, stopped by the zygote when it is over.

What    The node says which workers host actors and under which slot of its table of leases. Where
        a slot's end has passed, its workers get SIGSTOP, and SIGCONT when it has been moved on.
        This is done here and not in the node, because the node's own process may stand still,
        and not in the workers, because user code may hold the interpreter.
Caller  actors/zygote.py.
Never   signals a process that is no child of the zygote, or continues one that it did not stop.
Spec    docs/explanation/cluster.md, "No two copies".
"""

from __future__ import annotations

import contextlib
import os
import signal

from zray.store.lease_table import LeaseTable

_STOPPED_POLL_S = 0.01
"""Between two looks at the table while something is stopped."""
_RUNNING_POLL_S = 0.5
"""And while something under a lease runs, at most: a node that has only just joined learns of its
own lease after the first actors run, and nothing tells of an end that was moved nearer."""
_UNGUARDED = 0
"""The slot of workers that host nothing any more."""


class Guards:
    """The guarded workers of one zygote.

    Args:
        table: of the node.
    """

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._slots: dict[int, int] = {}
        self._stopped: set[int] = set()

    def add(self, pid: int, slot: int) -> None:
        """A child of ours runs under this lease from now on."""
        self._slots[pid] = slot

    def forget(self, pid: int) -> None:
        """A child has been reaped: its number may be another process's soon."""
        self._slots.pop(pid, None)
        self._stopped.discard(pid)

    def enforce(self, now: float) -> float | None:
        """Stop and continue what is due; returns in how many seconds to look again."""
        if not self._slots:
            return None
        ends = {slot: self._table.end(slot) for slot in set(self._slots.values())}
        for pid, slot in self._slots.items():
            if ends[slot] <= now and pid not in self._stopped:
                self._stopped.add(pid)
                _signal(pid, signal.SIGSTOP)
            elif ends[slot] > now and pid in self._stopped:
                self._stopped.discard(pid)
                _signal(pid, signal.SIGCONT)
        if self._stopped:
            return _STOPPED_POLL_S
        if ends.keys() == {_UNGUARDED}:
            return None
        return min(_RUNNING_POLL_S, min(ends.values()) - now)


def _signal(pid: int, signum: int) -> None:
    # It is not reaped, so the number is its own, whether it lives or not.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
