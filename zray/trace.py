"""timeline(): what ran where and when, as a Chrome trace.

What    Turns the scheduling events of all nodes into the JSON that chrome://tracing and
        ui.perfetto.dev read: a process per node, a thread per worker, times in microseconds of
        the clock of the node that was asked.
Caller  users, zray/cli.py.
Never   keeps events: the nodes' rings are their home, and what those have dropped is gone.
Spec    the Trace Event Format: "X" is a span, "i" a moment, "M" names a process or thread.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from typing import Any, overload

from zray.state import ask

Span = dict[str, Any]

_NODE_TID = 0
_ID_DIGITS = 16
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
    """Return what ran where and when on all nodes, as Chrome trace events, oldest first.

    A span (``"ph": "X"``) is a stretch of one function or method on one worker; its name is the
    function's, or ``Class.method``. Short tasks or calls that ran one after the other are one
    span, and ``args["tasks"]`` says how many. ``args["failed"]`` says whether one of them raised.
    Calls that an async or threaded actor runs at the same time have lanes of their own. Where
    the clock of a node differs from that of the node that is asked, by more than the messages
    between them could explain, its times are set right.

    Workers are asked for what they ran last, so it is all there, but for workers that were killed
    or stand still: the last half second of those may be missing. A worker that runs more than
    some 24 000 short spans a second says how many it left out (``"cat": "events_dropped"``), and
    a node that does not answer within 2 s is named (``"cat": "missing"``). Each node keeps the
    newest million events; of all of them these are the newest 100 000.

    Args:
        filename: write the events there as JSON, for ui.perfetto.dev, and return None.
    """
    found = ask("state", of="events", limit=_EVENTS_MAX)
    spans = trace_events(_set_right(found["rows"], found["clocks"]))
    spans += [_gap(who, reason) for who, reason in found["missing"].items()]
    if filename is None:
        return spans
    with open(filename, "w", encoding="utf-8") as file:
        json.dump(spans, file)
    return None


def _set_right(rows: list[dict[str, Any]], clocks: dict[str, float]) -> Iterator[list[Any]]:
    """Yield events as trace_events() takes them, oldest first, in the time of one clock."""
    for row in reversed(rows):
        ahead_s = clocks.get(row["node_id"], 0.0)
        fields = row["fields"]
        if ahead_s and isinstance(fields.get("started_at"), int | float):
            fields = {**fields, "started_at": fields["started_at"] - ahead_s}
        yield [row["kind"], row["time"] - ahead_s, fields, row["node_id"]]


def _gap(who: str, reason: str) -> Span:
    """Say whose events are not there."""
    return {
        "ph": "i",
        "cat": "missing",
        "name": f"no events of {who}: {reason}",
        "pid": 0,
        "tid": _NODE_TID,
        "ts": 0.0,
        "s": "g",
        "args": {"node": who, "reason": reason},
    }


def trace_events(events: Iterable[list[Any]]) -> list[Span]:
    """Return the trace of scheduling events, each [kind, time in s, fields, id of its node].

    The last may be left out, where there is one node.
    """
    lanes = _Lanes()
    spans: list[Span] = []
    calls: list[tuple[str, dict[str, Any]]] = []
    for kind, at_s, fields, *node in events:
        lanes.node = node[0] if node else ""
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
        "pid": lanes.pid_of(fields),
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
        "pid": lanes.pid_of(fields),
        "tid": lanes.of(fields) if has_lane else _NODE_TID,
        "ts": at_s * 1e6,
        "s": "t" if has_lane else "p",
        "args": {name: _shown(value) for name, value in fields.items()},
    }


class _Lanes:
    """Numbers for nodes and workers: the format wants integers."""

    def __init__(self) -> None:
        self.node = ""
        """Of the event that is looked at."""
        self._nodes: dict[str, int] = {}
        self._node_of: dict[str, str] = {}
        """By worker, where its id does not tell."""
        self._tids: dict[tuple[str, int], int] = {}
        """By worker and the number of its lane: 0, and more where calls run at the same time."""
        self._pids: dict[str, int] = {}
        self._busy: dict[str, list[tuple[float, int]]] = {}
        self._idle: dict[str, list[int]] = {}

    def pid_of(self, fields: dict[str, Any]) -> int:
        """Return the number of an event's node: that of its worker, who may work for another."""
        worker = fields.get("worker")
        node = self._home(str(_shown(worker))) if worker else self.node
        return self._nodes.setdefault(node, len(self._nodes) + 1)

    def _home(self, worker: str) -> str:
        if len(worker) == _ID_DIGITS:
            return worker[: _ID_DIGITS // 2].ljust(_ID_DIGITS, "0")
        return self._node_of.setdefault(worker, self.node)

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
        """Return the events that give nodes and lanes their names."""
        rows: list[Span] = []
        nodes = self._nodes or {"": 1}
        for node, pid in nodes.items():
            rows.append(_name("process_name", pid, _NODE_TID, f"node {node}".strip()))
            rows.append(_name("thread_name", pid, _NODE_TID, "scheduler"))
        for (worker, number), tid in self._tids.items():
            of = f" (pid {self._pids[worker]})" if worker in self._pids else ""
            name = f"worker {worker}{of}" + (f" #{number + 1}" if number else "")
            rows.append(_name("thread_name", nodes[self._home(worker)], tid, name))
        return rows


def _name(what: str, pid: int, tid: int, name: str) -> Span:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _moment(kind: str, fields: dict[str, Any]) -> str:
    state = fields.get("state") or fields.get("reason") or fields.get("count") or ""
    return f"{kind}: {state}" if state else kind


def _shown(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
