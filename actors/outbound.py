"""What a worker has to tell: outcomes for callers, progress for the node, items of generators.

What    Results gather for a fraction of a millisecond and leave as one message for each batch or
        caller. gather() turns them into messages whenever the runtime flushes.
Caller  actors/task_runner.py, actors/actor_runner.py, actors/streams.py, Runtime.flush.
Never   holds back a result while the worker is idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack

from zray.protocol import messages, outcome
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
        """Items consumed, by generator; -1: its consumer has gone."""
        self._movers: dict[tuple[bytes, int], Callable[[], None]] = {}

    def results(
        self,
        work: TaskRange,
        low: int,
        count: int,
        outcomes: list[bytes],
        special: bool,
        busy_us: int,
    ) -> None:
        """Outcomes of items [low, low + count) of a range."""
        with self.lock:
            self._first()
            self._ranges.append((work, low, count, outcomes, special, busy_us))

    def map_results(
        self, work: TaskRange, low: int, count: int, values: bytes, busy_us: int
    ) -> None:
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
                    outbox.message(
                        work.client,
                        messages.MAP_RESULTS,
                        work.first,
                        low,
                        count,
                        payloads=(outcomes,),
                    )
                else:
                    outbox.message(
                        work.client,
                        messages.RESULTS,
                        work.first,
                        low,
                        count,
                        special,
                        payloads=(msgpack.packb(outcomes),),
                    )
                if not work.direct:
                    report = [work.client, work.first, low, low + count, busy_us]
                    reports.append([*report, _failed(outcomes, low, count)] if special else report)
            for client, (numbers, found, any_special) in replies.items():
                outbox.message(client, messages.REPLIES, numbers, found, any_special)
            if reports:
                outbox.message(self.runtime.node, messages.FINISHED, reports)

    def cancelled(self, work: TaskRange, item: int, outcome: bytes) -> None:
        """The outcome of an item that has not begun, ahead of its turn (the node is not told)."""
        found = [outcome] * max(1, work.task_class.returns)
        with self.runtime.lock:
            self.runtime.session.outbox.message(
                work.client,
                messages.RESULTS,
                work.first,
                item,
                1,
                True,
                payloads=(msgpack.packb(found),),
            )
        self.runtime.flush()

    # -- generators ------------------------------------------------------------------------------

    def begin_stream(self, client: bytes, number: int) -> None:
        """A generator begins (again, where it is retried)."""
        self._credit[(client, number)] = 0

    def send_item(self, client: bytes, number: int, index: int, outcome: bytes) -> None:
        """Send one item at once: its consumer may be waiting for it."""
        with self.runtime.lock:
            self.runtime.session.outbox.message(client, messages.YIELDED, number, index, outcome)
        self.runtime.flush()

    def yield_item(
        self, client: bytes, number: int, index: int, outcome: bytes, backlog: int
    ) -> bool:
        """Send one item; waits while the consumer is ``backlog`` behind. False: it has gone."""
        self.send_item(client, number, index, outcome)
        if not self.has_room(client, number, index + 1, backlog):
            self.runtime.wait_until(lambda: self.has_room(client, number, index + 1, backlog))
        return not self.is_abandoned(client, number)

    def has_room(self, client: bytes, number: int, sent: int, backlog: int) -> bool:
        """Whether a generator that has sent so many items may run on (or must end)."""
        credit = self._credit.get((client, number), -1)
        return credit < 0 or sent - credit < backlog

    def is_abandoned(self, client: bytes, number: int) -> bool:
        """Whether the consumer has gone."""
        return self._credit.get((client, number), -1) < 0

    def on_consumed(self, client: bytes, number: int, callback: Callable[[], None]) -> None:
        """Call back (any thread) whenever the consumer moves."""
        self._movers[(client, number)] = callback

    def consumed(self, client: bytes, number: int, index: int) -> None:
        """CONSUMED: the consumer has come this far, or (-1) has gone."""
        key = (client, number)
        if key in self._credit:
            self._credit[key] = -1 if index < 0 else max(self._credit[key], index)
            mover = self._movers.get(key)
            if mover is not None:
                mover()

    def end_stream(self, client: bytes, number: int) -> None:
        """A generator has ended."""
        self._credit.pop((client, number), None)
        self._movers.pop((client, number), None)


def _failed(outcomes: list[bytes] | bytes, low: int, count: int) -> list[int]:
    """Return the items of [low, low + count) of which an outcome is an error."""
    returns = max(1, len(outcomes) // count)
    failed = {
        low + position // returns
        for position, found in enumerate(outcomes)
        if isinstance(found, bytes) and found[0] == outcome.ERROR
    }
    return sorted(failed)
