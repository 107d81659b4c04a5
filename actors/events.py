"""What this worker ran that the node did not see: leased tasks and calls of actors.

What    EventBuffer keeps a row for each run. Stretch makes one row of quick calls that follow each
        other, and takes no time for each of them. Events packs the rows and sends them as EVENTS:
        half a second after the first of them, when the node asks, and at the worker's end.
Caller  actors/task_runner.py, actors/actor_runner.py and its executors; actors/host.py.
Never   lets a run wait: what does not fit is dropped and counted. Nothing wakes where nothing ran.
Spec    docs/explanation/architecture.md, "The GCS and lineage"; brokers/gcs/events.py, its ring.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import msgpack

from zray.protocol import messages
from zray.protocol.ids import object_id
from zray.protocol.limits import EVENTS_BATCH_MAX, EVENTS_LINGER_S, EVENTS_UNSENT_MAX
from zray.runtime import Runtime

TASK = "task_executed"
CALL = "call_executed"

_LONG_S = 0.001
"""Runs of this length are kept when the room for shorter ones has gone."""
_NAME_CHARACTERS_MAX = 200

Row = tuple[str, str, bytes, int, float, float, int, bool]
"""(kind, name, client, number of the first, began, ended, count, whether one of them raised)."""


class EventBuffer:
    """Rows that wait to be sent. Any thread calls ran(), one at a time take().

    There is no lock: a row is added in one step, and only take() removes any.

    Args:
        rows_max: rows kept between two take(), a quarter of them for long runs; what runs beyond
            them is counted.
        remind: called (by the running thread) with the first run after a take().
    """

    def __init__(self, rows_max: int, remind: Callable[[], None]) -> None:
        self._rows: list[Row] = []
        self._rows_max = rows_max
        self._crowded = rows_max * 3 // 4
        self._remind = remind
        self._reminded = False
        self._dropped = 0

    def ran(
        self,
        kind: str,
        name: str,
        client: bytes,
        number: int,
        began: float,
        ended: float,
        count: int = 1,
        failed: bool = False,
    ) -> None:
        """Note that user code has run.

        Args:
            kind: TASK or CALL.
            name: of the function or method.
            client: whose task or call it was.
            number: that of the task or call, the first of ``count``.
            began: seconds of time.monotonic().
            ended: the same.
            count: how many tasks or calls ran.
            failed: whether one of them raised.
        """
        rows = self._rows
        if len(rows) < self._crowded or self._has_room(ended - began):
            rows.append((kind, name, client, number, began, ended, count, failed))
        else:
            self._dropped += count
        # Behind the append: take() clears it before it looks at the rows.
        if not self._reminded:
            self._reminded = True
            self._remind()

    def _has_room(self, duration_s: float) -> bool:
        return duration_s >= _LONG_S and len(self._rows) < self._rows_max

    def take(self) -> tuple[list[Row], int]:
        """Return the rows and how many runs are in none, and forget them."""
        self._reminded = False
        count = len(self._rows)
        rows = self._rows[:count]
        del self._rows[:count]
        dropped, self._dropped = self._dropped, 0
        return rows, dropped


class Stretch:
    """Quick calls of one method that one thread runs one after the other: one row for all.

    Two looks at the clock and a row for each call would be a tenth of the cost of calls that
    wait in a queue. Whoever runs them begins a stretch where ``name`` is another one, counts its
    calls in ``count``, and closes it when it is 0.3 ms old, when nothing is left to run, or when
    a call has raised.

    Args:
        ran: where the row goes: EventBuffer.ran.
    """

    __slots__ = ("_client", "_number", "_ran", "began", "count", "name")

    def __init__(self, ran: Callable[..., None]) -> None:
        self._ran = ran
        self._client = b""
        self._number = 0
        self.name = ""
        """The method's; empty: there is no stretch."""
        self.began = 0.0
        self.count = 0

    def begin(self, name: str, client: bytes, number: int, now: float) -> None:
        """A call of another method than the last one begins (the caller counts it)."""
        if self.count:
            self.close(now)
        self.name, self._client, self._number, self.began = name, client, number, now

    def close(self, now: float, *, failed: bool = False) -> None:
        """No call of it runs any more."""
        if self.count:
            client, number, count, self.count = self._client, self._number, self.count, 0
            self._ran(CALL, self.name, client, number, self.began, now, count, failed)
        self.name = ""


class Events:
    """The events of one worker: a buffer, and its way to the node."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._worker = runtime.process.hex()
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self.buffer = EventBuffer(EVENTS_UNSENT_MAX, self._first)
        self.ran = self.buffer.ran
        self.stretch = Stretch(self.ran)
        """That of the main thread."""
        runtime.on_due = self.send

    def _first(self) -> None:
        self._runtime.due_in(EVENTS_LINGER_S)

    def send(self, question: int | None = None) -> None:
        """Send what has gathered (any thread).

        Args:
            question: of an EVENTS_WANTED: answered even where there is nothing to send.
        """
        with self._sending:
            rows, dropped = self.buffer.take()
            # One offset for all of them: the wall clock may be set while they wait.
            offset = time.time() - time.monotonic()
            call = self._runtime.call
            for at in range(0, len(rows), EVENTS_BATCH_MAX):
                # In parts: the thread that runs user code must not wait for the packing of all.
                packed = self._pack(rows[at : at + EVENTS_BATCH_MAX], offset)
                call(messages.EVENTS, packed, 0, None)
            if dropped or question is not None:
                call(messages.EVENTS, b"", dropped, question)

    def _pack(self, rows: list[Row], offset: float) -> bytes:
        worker, pid = self._worker, self._pid
        packed: bytes = msgpack.packb(
            [
                (
                    kind,
                    ended + offset,
                    object_id(client, number),
                    name[:_NAME_CHARACTERS_MAX],
                    worker,
                    began + offset,
                    ended - began,
                    failed,
                    count,
                    pid,
                )
                for kind, name, client, number, began, ended, count, failed in rows
            ]
        )
        return packed
