"""What a worker has to do: ranges of tasks, actor calls, actors to start.

What    Data, and the queue that the main thread takes from while the background thread takes
        back what has not begun.
Caller  actors/host.py, actors/task_runner.py, actors/actor_runner.py.
Never   runs anything.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


def group_of(where: Any) -> list[Any] | None:
    """Return [group, bundle, whether children run there] of an option's fields, or None."""
    return where[4] if type(where) is list and len(where) > 4 else None


def captured(group: list[Any] | None) -> list[Any] | None:
    """Return the group that what runs in one submits its own work to: any bundle, or None."""
    return [group[0], -1, True] if group is not None and group[2] else None


class TaskClass:
    """A function as this worker runs it."""

    __slots__ = (
        "backlog",
        "captured",
        "function",
        "function_id",
        "group",
        "name",
        "resources",
        "retries",
        "retry_types",
        "returns",
    )

    def __init__(self, spec: list[Any]) -> None:
        self.function_id: bytes = spec[0]
        self.name: str = spec[1]
        self.resources: dict[str, int] = spec[2]
        self.returns: int = spec[3]
        self.retries: int = spec[4]
        self.retry_types: bytes | tuple[type[BaseException], ...] | None = spec[5]
        self.backlog: int = spec[6]
        self.group = group_of(spec[9] if len(spec) > 9 else None)
        self.captured = captured(self.group)
        self.function: Any = None


class TaskRange:
    """Items [next, high) of a batch that this worker is to run."""

    __slots__ = (
        "cancelled",
        "client",
        "count",
        "direct",
        "first",
        "gpus",
        "held",
        "high",
        "mode",
        "next",
        "payload",
        "task_class",
    )

    def __init__(
        self,
        client: bytes,
        task_class: TaskClass,
        first: int,
        count: int,
        low: int,
        high: int,
        mode: int,
        payload: bytes,
        gpus: list[str],
        *,
        direct: bool,
    ) -> None:
        self.client = client
        self.task_class = task_class
        self.first = first
        self.count = count
        self.next = low
        self.high = high
        self.mode = mode
        self.payload = payload
        self.gpus = gpus
        self.direct = direct
        """Sent by a lease holder: the node does not count it."""
        self.cancelled: set[int] | None = None
        self.held: list[Any] = []
        """Keys of arguments that the lease holder has transferred to us: given up at the end."""


class ActorCall:
    """One call, in the order its caller sent it."""

    __slots__ = ("actor", "arguments", "client", "incarnation", "method", "number", "returns")

    def __init__(self, client: bytes, row: list[Any], incarnation: int) -> None:
        self.client = client
        self.incarnation = incarnation
        """Of the actor, as its caller knows it: it may come before the start of that life."""
        self.actor, self.number, self.method, self.returns, self.arguments = row


class ActorStart:
    """An actor to be made."""

    __slots__ = ("actor", "arguments", "class_id", "details", "incarnation", "owner")

    def __init__(self, row: list[Any]) -> None:
        (self.actor, self.incarnation, self.class_id, self.details, self.arguments, self.owner) = (
            row
        )


class ActorEnd:
    """Everything that arrived before it has run: end the actor."""

    __slots__ = ("actor", "incarnation", "killed")

    def __init__(self, actor: bytes, incarnation: int, *, killed: bool) -> None:
        self.actor = actor
        self.incarnation = incarnation
        self.killed = killed
        """What has arrived and not begun is not to run."""


Item = TaskRange | ActorCall | ActorStart | ActorEnd


class WorkQueue:
    """The worker's queue. put() and take_back() are called by whichever thread reads."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.lock = threading.RLock()
        self.running: TaskRange | None = None

    def ranges(self) -> list[TaskRange]:
        """Return the ranges behind the running one, in order."""
        with self.lock:
            return [item for item in self.items if isinstance(item, TaskRange)]

    def claim(self, work: TaskRange, count: int) -> tuple[int, int]:
        """Begin up to ``count`` items of a range: returns [low, high), empty at its end."""
        with self.lock:
            low = work.next
            high = min(low + count, work.high)
            work.next = high
            return low, high

    def unclaim(self, work: TaskRange, item: int) -> int:
        """Items from ``item`` on have been claimed and not begun: they may be taken back."""
        with self.lock:
            work.next = min(work.next, item)
            return item

    def take_back(self, count: int | None) -> list[list[Any]]:
        """Return ranges that have not begun, last first, and forget them."""
        rows: list[list[Any]] = []
        left = count if count is not None else 1 << 60
        with self.lock:
            ranges = self.ranges()
            if self.running is not None:
                ranges.insert(0, self.running)
            for work in reversed(ranges):
                if left <= 0:
                    break
                taken = min(left, work.high - work.next)
                if taken <= 0 or work.direct:
                    continue
                rows.append([work.client, work.first, work.high - taken, work.high])
                work.high -= taken
                left -= taken
        rows.reverse()
        return rows

    def cancel(self, client: bytes, first: int, item: int, begun: int) -> TaskRange | None:
        """Mark a task that has not begun as cancelled; None: it is not waiting here.

        Items up to ``begun`` of the running range have begun or ended, later ones have not, though
        they may be claimed.
        """
        with self.lock:
            ranges = self.ranges()
            if self.running is not None:
                ranges.append(self.running)
            for work in ranges:
                if work.client != client or work.first != first:
                    continue
                low = min(work.next, begun + 1) if work is self.running else work.next
                if low <= item < work.high:
                    if work.cancelled is None:
                        work.cancelled = set()
                    work.cancelled.add(item)
                    return work
        return None

    def find_call(self, client: bytes, number: int) -> ActorCall | None:
        """Return an actor call that has not begun."""
        for item in list(self.items):
            if type(item) is ActorCall and item.number == number and item.client == client:
                return item
        return None
