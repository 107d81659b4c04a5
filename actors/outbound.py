"""What a worker has to tell: outcomes for callers, progress for the node, items of generators.

What    Results gather for a fraction of a millisecond and leave as one message for each batch or
        caller. gather() turns them into messages whenever the runtime flushes.
Caller  actors/task_runner.py, actors/actor_runner.py, Runtime.flush.
Never   holds back a result while the worker is idle.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgpack

from zray.protocol import messages
from zray.runtime import Runtime

from .work import TaskRange


class Outbound:
    """Unsent results of one worker."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.lock = threading.Lock()
        self.unsent = False
        self.since = 0.0
        self._ranges: list[tuple[TaskRange, int, int, list[bytes] | bytes, bool, int]] = []
        self._replies: dict[bytes, tuple[list[int], list[bytes], bool]] = {}
        self._credit: dict[tuple[bytes, int], int] = {}

    def results(self, work: TaskRange, low: int, count: int, outcomes: list[bytes],
                special: bool, busy_us: int) -> None:
        """Outcomes of items [low, low + count) of a range."""
        with self.lock:
            self._first()
            self._ranges.append((work, low, count, outcomes, special, busy_us))

    def map_results(self, work: TaskRange, low: int, count: int, values: bytes,
                    busy_us: int) -> None:
        """Values of items [low, low + count) of a map, pickled as one list."""
        with self.lock:
            self._first()
            self._ranges.append((work, low, count, values, False, busy_us))

    def reply(self, client: bytes, number: int, outcome: bytes, special: bool) -> None:
        """Outcome of one actor call (or one of its returns)."""
        with self.lock:
            self._first()
            found = self._replies.get(client)
            if found is None:
                self._replies[client] = ([number], [outcome], special)
                return
            found[0].append(number)
            found[1].append(outcome)
            if special and not found[2]:
                self._replies[client] = (found[0], found[1], True)

    def started(self) -> None:
        """An ACTOR_STARTED lies in the outbox: it leaves like a result."""
        with self.lock:
            self._first()

    def _first(self) -> None:
        if not self.unsent:
            self.unsent = True
            self.since = time.monotonic()

    def gather(self) -> None:
        """Turn what is unsent into messages of the outbox."""
        if not self.unsent:
            return
        with self.lock:
            ranges, self._ranges = self._ranges, []
            replies, self._replies = self._replies, {}
            self.unsent = False
        outbox = self.runtime.session.outbox
        reports: list[list[Any]] = []
        with self.runtime.lock:
            for work, low, count, outcomes, special, busy_us in ranges:
                if isinstance(outcomes, bytes):
                    outbox.message(work.client, messages.MAP_RESULTS, work.first, low, count,
                                   payloads=(outcomes,))
                else:
                    outbox.message(work.client, messages.RESULTS, work.first, low, count, special,
                                   payloads=(msgpack.packb(outcomes),))
                if not work.direct:
                    reports.append([work.client, work.first, low, low + count, busy_us])
            for client, (numbers, found, any_special) in replies.items():
                outbox.message(client, messages.REPLIES, numbers, found, any_special)
            if reports:
                outbox.message(self.runtime.node, messages.FINISHED, reports)

    # -- generators ------------------------------------------------------------------------------

    def yield_item(self, client: bytes, number: int, index: int, outcome: bytes,
                   backlog: int) -> bool:
        """Send one item; waits while the consumer is ``backlog`` behind. False: it has gone."""
        key = (client, number)
        runtime = self.runtime
        with runtime.lock:
            runtime.session.outbox.message(client, messages.YIELDED, number, index, outcome)
        runtime.flush()
        self._credit.setdefault(key, 0)

        def room() -> bool:
            credit = self._credit[key]
            return credit < 0 or backlog <= 0 or index + 1 - credit < backlog

        if not room():
            runtime.wait_until(room)
        return self._credit[key] >= 0

    def consumed(self, client: bytes, number: int, index: int) -> None:
        """CONSUMED: the consumer has come this far, or (-1) has gone."""
        key = (client, number)
        if key in self._credit:
            self._credit[key] = -1 if index < 0 else max(self._credit[key], index)

    def end_stream(self, client: bytes, number: int) -> None:
        """A generator has ended."""
        self._credit.pop((client, number), None)
