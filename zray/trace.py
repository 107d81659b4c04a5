"""timeline(): what ran where and when, as a Chrome trace.

What    Turns the node's scheduling events into the JSON that chrome://tracing and
        ui.perfetto.dev read: a process per node, a thread per worker, times in microseconds.
Caller  users, zray/cli.py.
Never   keeps events: the node's ring is their home, and what it has dropped is gone.
Spec    the Trace Event Format: "X" is a span, "i" a moment, "M" names a process or thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, overload

from zray.state import ask

Span = dict[str, Any]

_NODE_TID = 0
_EVENTS_MAX = 100_000


@overload
def timeline(filename: None = None) -> list[Span]: ...
@overload
def timeline(filename: str) -> None: ...
def timeline(filename: str | None = None) -> list[Span] | None:
    """Return what tasks ran where and when, as Chrome trace events, oldest first.

    A span is a stretch of one function on one worker: short tasks that ran one after the other
    are one span, and ``args["tasks"]`` says how many. Tasks that a caller sends to its leased
    worker itself, and calls of actors, pass by the node and are not in it.

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
    spans: list[Span] = []
    lanes = _Lanes()
    for kind, at_s, fields in events:
        if kind == "task_executed":
            spans.append(
                {
                    "ph": "X",
                    "cat": "task",
                    "name": fields["function"] or "task",
                    "pid": lanes.pid,
                    "tid": lanes.of(fields["worker"]),
                    "ts": fields["started_at"] * 1e6,
                    "dur": max(fields["duration_s"] * 1e6, 0.001),
                    "args": {
                        "task": _shown(fields["task"]),
                        "tasks": fields.get("count", 1),
                        "error": fields["error"],
                    },
                }
            )
            continue
        worker = fields.get("worker")
        spans.append(
            {
                "ph": "i",
                "cat": kind,
                "name": _moment(kind, fields),
                "pid": lanes.pid,
                "tid": lanes.of(worker) if worker else _NODE_TID,
                "ts": at_s * 1e6,
                "s": "t" if worker else "p",
                "args": {name: _shown(value) for name, value in fields.items()},
            }
        )
    spans.sort(key=lambda span: span["ts"])
    return [*lanes.names(), *spans]


class _Lanes:
    """Numbers for the node and its workers: the format wants integers."""

    def __init__(self) -> None:
        self.pid = 1
        self._tids: dict[str, int] = {}

    def of(self, worker: Any) -> int:
        """Return the number of a worker's lane."""
        return self._tids.setdefault(_shown(worker), len(self._tids) + 1)

    def names(self) -> list[Span]:
        """Return the events that give the lanes their names."""
        lanes = {
            "scheduler": _NODE_TID,
            **{f"worker {worker}": tid for worker, tid in self._tids.items()},
        }
        rows: list[Span] = [
            {"ph": "M", "name": "process_name", "pid": self.pid, "tid": 0, "args": {"name": "node"}}
        ]
        rows += [
            {"ph": "M", "name": "thread_name", "pid": self.pid, "tid": tid, "args": {"name": name}}
            for name, tid in lanes.items()
        ]
        return rows


def _moment(kind: str, fields: dict[str, Any]) -> str:
    state = fields.get("state") or fields.get("reason") or ""
    return f"{kind}: {state}" if state else kind


def _shown(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
