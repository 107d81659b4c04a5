"""timeline(): what ran where and when, as a Chrome trace.

What    Turns the node's scheduling events into the JSON that chrome://tracing and
        ui.perfetto.dev read: a process per node, a thread per worker, times in microseconds.
Caller  users, zray/cli.py.
Never   keeps events: the node's ring is their home, and what it has dropped is gone.
Spec    the Trace Event Format: "X" is a span, "i" a moment, "M" names a process or thread.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from typing import Any, overload

from zray.state import ask

Span = dict[str, Any]

_NODE_TID = 0
_EVENTS_MAX = 100_000
_CALL = "call_executed"
_SPANS = {"task_executed": "task", _CALL: "call"}
"""Kinds of events that last, and what the trace calls them."""
_SHOWN_US_MIN = 0.001
_ROUNDING_S = 2e-6
"""A double tells times of day apart to a quarter of a microsecond, clocks to about one."""


@overload
def timeline(filename: None = None) -> list[Span]: ...
@overload
def timeline(filename: str) -> None: ...
def timeline(filename: str | None = None) -> list[Span] | None:
    """Return what ran where and when, tasks and actor calls, as Chrome trace events, oldest first.

    A span (``"ph": "X"``) is a stretch of one function or method on one worker; its name is the
    function's, or ``Class.method``. Short tasks or calls that ran one after the other are one
    span, and ``args["tasks"]`` says how many. ``args["failed"]`` says whether one of them raised;
    None where only the caller knows, which is so for tasks that the node scheduled. Calls that
    an async or threaded actor runs at the same time have lanes of their own.

    Workers are asked for what they ran last, so it is all there, but for workers that were killed
    or stand still: the last half second of those may be missing. A worker that runs more than
    some 24 000 short spans a second says how many it left out (``"cat": "events_dropped"``). The
    node keeps the newest million events, of which these are the newest 100 000.

    Args:
        filename: write the events there as JSON, for ui.perfetto.dev, and return None.
    """
    spans = trace_events(ask("events", limit=_EVENTS_MAX))
    if filename is None:
        return spans
    with open(filename, "w", encoding="utf-8") as file:
        json.dump(spans, file)
    return None


def trace_events(events: Iterable[list[Any]]) -> list[Span]:
    """Return the trace of scheduling events, each [kind, time in s, fields]."""
    lanes = _Lanes()
    spans: list[Span] = []
    calls: list[tuple[str, dict[str, Any]]] = []
    for kind, at_s, fields in events:
        if kind in _SPANS:
            if not _is_span(fields):
                continue  # Of a worker that packed something else: its fault, not the asker's.
            if kind == _CALL:
                calls.append((kind, fields))
            else:
                spans.append(_span(kind, fields, lanes, lanes.of(fields)))
        else:
            spans.append(_instant(kind, at_s, fields, lanes))
    # Calls of one actor may run at the same time, and spans of one lane must not overlap.
    for kind, fields in sorted(calls, key=lambda call: call[1]["started_at"]):
        spans.append(_span(kind, fields, lanes, lanes.free(fields)))
    spans.sort(key=lambda span: span["ts"])
    return [*lanes.names(), *spans]


def _is_span(fields: dict[str, Any]) -> bool:
    return all(isinstance(fields.get(name), int | float) for name in ("started_at", "duration_s"))


def _span(kind: str, fields: dict[str, Any], lanes: _Lanes, tid: int) -> Span:
    """Return a stretch in which something ran."""
    return {
        "ph": "X",
        "cat": _SPANS[kind],
        "name": fields["function"] or _SPANS[kind],
        "pid": lanes.pid,
        "tid": tid,
        "ts": fields["started_at"] * 1e6,
        "dur": max(fields["duration_s"] * 1e6, _SHOWN_US_MIN),
        "args": {
            "task": _shown(fields["task"]),
            "tasks": fields.get("count", 1),
            "failed": fields.get("failed"),
            "pid": fields.get("pid"),
        },
    }


def _instant(kind: str, at_s: float, fields: dict[str, Any], lanes: _Lanes) -> Span:
    """Return a moment in which something happened, of a worker or of the node."""
    has_lane = bool(fields.get("worker"))
    return {
        "ph": "i",
        "cat": kind,
        "name": _moment(kind, fields),
        "pid": lanes.pid,
        "tid": lanes.of(fields) if has_lane else _NODE_TID,
        "ts": at_s * 1e6,
        "s": "t" if has_lane else "p",
        "args": {name: _shown(value) for name, value in fields.items()},
    }


class _Lanes:
    """Numbers for the node and its workers: the format wants integers."""

    def __init__(self) -> None:
        self.pid = 1
        self._tids: dict[tuple[str, int], int] = {}
        """By worker and the number of its lane: 0, and more where calls run at the same time."""
        self._pids: dict[str, int] = {}
        self._busy: dict[str, list[tuple[float, int]]] = {}
        self._idle: dict[str, list[int]] = {}

    def of(self, fields: dict[str, Any], number: int = 0) -> int:
        """Return a lane of the worker of an event."""
        worker = str(_shown(fields.get("worker")))
        if fields.get("pid"):
            self._pids[worker] = fields["pid"]
        return self._tids.setdefault((worker, number), len(self._tids) + 1)

    def free(self, fields: dict[str, Any]) -> int:
        """Return the first lane of its worker that is free when this call begins.

        Calls must come in the order they began.
        """
        worker = str(_shown(fields.get("worker")))
        busy = self._busy.setdefault(worker, [])
        idle = self._idle.setdefault(worker, [])
        began = fields["started_at"]
        while busy and busy[0][0] <= began + _ROUNDING_S:
            heapq.heappush(idle, heapq.heappop(busy)[1])
        number = heapq.heappop(idle) if idle else len(busy)
        heapq.heappush(busy, (began + fields["duration_s"], number))
        return self.of(fields, number)

    def names(self) -> list[Span]:
        """Return the events that give the lanes their names."""
        lanes = {"scheduler": _NODE_TID}
        for (worker, number), tid in self._tids.items():
            pid = f" (pid {self._pids[worker]})" if worker in self._pids else ""
            lanes[f"worker {worker}{pid}" + (f" #{number + 1}" if number else "")] = tid
        rows: list[Span] = [
            {"ph": "M", "name": "process_name", "pid": self.pid, "tid": 0, "args": {"name": "node"}}
        ]
        rows += [
            {"ph": "M", "name": "thread_name", "pid": self.pid, "tid": tid, "args": {"name": name}}
            for name, tid in lanes.items()
        ]
        return rows


def _moment(kind: str, fields: dict[str, Any]) -> str:
    state = fields.get("state") or fields.get("reason") or fields.get("count") or ""
    return f"{kind}: {state}" if state else kind


def _shown(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
