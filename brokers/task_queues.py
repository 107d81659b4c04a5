"""The queues of the local scheduler: one per shape, of ranges of batches.

What    Adds, removes and counts ranges; remembers cancels of tasks that are not here, because
        their batch may be on its way, or come back from a worker unrun.
Caller  brokers/scheduler.py.
Never   knows a worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .scheduling import Range, Shape, job_of

_CANCELS_MAX = 10_000
"""Batches with remembered cancels; beyond it the oldest are forgotten, and those tasks run."""


class TaskQueues:
    """What waits for a worker."""

    def __init__(self) -> None:
        self.by_shape: dict[Shape, deque[Range]] = {}
        self.counts: dict[Shape, int] = {}
        """Tasks in each queue: the sum of its ranges."""
        self.cancelled: dict[tuple[bytes, int], set[int]] = {}

    @property
    def task_count(self) -> int:
        """Tasks in all queues."""
        return sum(self.counts.values())

    def shapes_waiting(self) -> list[Shape]:
        """Return the shapes that have something queued, in turn."""
        return [shape for shape, queue in self.by_shape.items() if queue]

    def others_wait(self, shape: Shape) -> bool:
        """Return whether something of another shape is queued."""
        return len(self.by_shape) > 1 and any(
            queue and other is not shape for other, queue in self.by_shape.items()
        )

    def all_ranges(self) -> Iterator[Range]:
        """Yield every queued range."""
        for queue in self.by_shape.values():
            yield from queue

    def add(self, work: Range, *, front: bool = False) -> list[int]:
        """Queue a range; returns its items that were cancelled before, which are not queued."""
        items = self.cancelled.get((work.task_class.client, work.first)) if self.cancelled else None
        if not items:
            self._append(work, front=front)
            return []
        found = sorted(item for item in items if work.low <= item < work.high)
        parts = work.without(found)
        for part in reversed(parts) if front else parts:
            self._append(part, front=front)
        return found

    def _append(self, work: Range, *, front: bool) -> None:
        shape = work.shape
        queue = self.by_shape.get(shape)
        if queue is None:
            queue = self.by_shape[shape] = deque()
            self.counts[shape] = 0
        if front:
            queue.appendleft(work)
        else:
            queue.append(work)
        self.counts[shape] += work.high - work.low

    def take(self, shape: Shape) -> list[Range]:
        """Take out all of a queue."""
        queue = self.by_shape.get(shape)
        if not queue:
            return []
        taken = list(queue)
        queue.clear()
        self.counts[shape] = 0
        return taken

    def rotate(self, shape: Shape) -> None:
        """Put a shape behind the others: their turn is next."""
        self.by_shape[shape] = self.by_shape.pop(shape)

    def remove(self, client: bytes, first: int, item: int) -> bool:
        """Take one task out; False where it is not queued."""
        for shape, queue in self.by_shape.items():
            for at, work in enumerate(queue):
                if work.holds(client, first, item):
                    del queue[at]
                    for part in reversed(work.without([item])):
                        queue.insert(at, part)
                    self.counts[shape] -= 1
                    return True
        return False

    def remember_cancel(self, client: bytes, first: int, item: int) -> None:
        """Never queue this task: it was cancelled while it was not here."""
        self.cancelled.setdefault((client, first), set()).add(item)
        if len(self.cancelled) > _CANCELS_MAX:
            del self.cancelled[next(iter(self.cancelled))]

    def drop_client(self, client: bytes) -> None:
        """Forget all that a dead process had queued."""
        for shape, queue in self.by_shape.items():
            kept = deque(work for work in queue if work.task_class.client != client)
            self.by_shape[shape] = kept
            self.counts[shape] = sum(work.high - work.low for work in kept)
        for key in [key for key in self.cancelled if key[0] == client]:
            del self.cancelled[key]

    def drop_shapes(self, job: str) -> None:
        """Forget the empty queues of a job that has ended."""
        for shape in [
            shape
            for shape, queue in self.by_shape.items()
            if not queue and job_of(shape.env) == job
        ]:
            del self.by_shape[shape]
            del self.counts[shape]

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert self.by_shape.keys() == self.counts.keys()
        for shape, queue in self.by_shape.items():
            assert self.counts[shape] == sum(work.high - work.low for work in queue)
            assert all(work.low < work.high <= work.count for work in queue)


def missing_ranges(have: list[Range], rows: list[list[int]]) -> list[list[int]]:
    """Return the parts [first, low, high] of ``rows`` that no range of ``have`` covers."""
    bounds: dict[int, list[tuple[int, int]]] = {}
    for work in have:
        bounds.setdefault(work.first, []).append((work.low, work.high))
    missing = []
    for first, low, high in rows:
        at = low
        for start, end in sorted(bounds.get(first, ())):
            if start > at:
                missing.append([first, at, min(start, high)])
            at = max(at, end)
            if at >= high:
                break
        if at < high:
            missing.append([first, at, high])
    return missing
