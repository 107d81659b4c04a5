"""The load table as the GCS publishes it: one row a node, to all who watch it.

What    Each node gives its own row when it changes; all who watch get the rows that have changed
        since they were told last, in one message. So n nodes send n rows, not n squared, and how
        often depends on how much it is: a few nodes hear of each other within hundredths of a
        second, a thousand within seconds, and the head's link never carries more than a share.
Caller  replica.py.
Never   opens a row; keeps one of a node that is dead; queues anything for who takes no more.
"""

from __future__ import annotations

from collections.abc import Callable

from .wire import LOADS, pack

ROW_BYTES_MAX = 64 << 10

SPACING_S = 0.01
"""Between two publications, at the least."""

SPACING_S_EACH = 0.001
"""For each who is told: what it costs the GCS and the head to tell one."""

BYTES_PER_S = 50e6
"""All publications together, over a while."""

_RETRY_S = 0.1
"""When somebody took no more."""

Send = Callable[[bytes, bytes], bool]


def spacing_s(told: int, nbytes: int) -> float:
    """Return for how long nothing is published after a publication.

    Args:
        told: to how many it went.
        nbytes: how large each message was.
    """
    return max(SPACING_S, SPACING_S_EACH * told, told * nbytes / BYTES_PER_S)


class Loads:
    """The rows of living nodes, and who was told of which.

    Args:
        boot: this life of the GCS, named in each message.
    """

    def __init__(self, boot: bytes) -> None:
        self._boot = boot
        self._number = 0
        """Counts changes of rows."""
        self._rows: dict[bytes, tuple[bytes, int]] = {}
        """By node: its row and the number of the change that brought it; the newest come last."""
        self._told: dict[bytes, int] = {}
        """By peer: the number up to which it was told; -1: of nothing."""
        self._is_due = False
        self._next = 0.0

    def set(self, node: bytes, row: bytes) -> None:
        """Take a node's row as it is now."""
        before = self._rows.get(node)
        if before is not None and before[0] == row:
            return
        self._rows.pop(node, None)  # So that it comes last.
        self._number += 1
        self._rows[node] = (row, self._number)
        self._is_due = True

    def remove(self, node: bytes) -> None:
        """Forget the row of a dead node: who watches hears of the death by the table of nodes."""
        self._rows.pop(node, None)

    def watch(self, peer: bytes) -> None:
        """Tell a peer all rows, and then each change."""
        self._told[peer] = -1
        self._is_due = True

    def unwatch(self, peer: bytes) -> None:
        """Tell a peer no more."""
        self._told.pop(peer, None)

    def is_watched_by(self, peer: bytes) -> bool:
        """Return whether a peer is told."""
        return peer in self._told

    @property
    def nodes(self) -> frozenset[bytes]:
        """Those whose rows are known."""
        return frozenset(self._rows)

    def due_at(self, now: float) -> float:
        """Return when publish() has something to do; far away where it has nothing."""
        return max(now, self._next) if self._is_due else now + 60.0

    def publish(self, now: float, send: Send) -> None:
        """Tell everybody what he does not know, where that is due."""
        if not self._is_due or now < self._next:
            return
        self._is_due = False
        frames: dict[int, bytes] = {}
        sent = nbytes = 0
        for peer, told in self._told.items():
            if told >= self._number:
                continue
            frame = frames.get(told)
            if frame is None:
                frame = frames[told] = self._frame(told)
            if send(peer, frame):
                self._told[peer] = self._number
                sent += 1
                nbytes = max(nbytes, len(frame))
            else:
                self._is_due = True
        self._next = now + (_RETRY_S if self._is_due else spacing_s(sent, nbytes))

    def _frame(self, told: int) -> bytes:
        """Return the message for who was told up to this number."""
        changed: dict[bytes, bytes] = {}
        for node, (row, number) in reversed(self._rows.items()):
            if number <= told:
                break
            changed[node] = row
        return pack(LOADS, self._boot, told + 1, self._number, changed)

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        numbers = [number for _row, number in self._rows.values()]
        assert numbers == sorted(numbers), "rows out of the order of their changes"
        assert all(-1 <= told <= self._number for told in self._told.values())
        behind = any(told < self._number for told in self._told.values())
        assert self._is_due or not behind, "somebody is behind and nothing is due"
