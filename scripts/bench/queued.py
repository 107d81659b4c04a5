"""Queued tasks: up to a million wait at once, by .remote() and by .map().

What    Submit rate, drain rate, and the memory of a queued task at the driver and at the node.
Caller  run.py.
Never   lets a task begin before all are queued: two tasks hold both CPUs behind a gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import (
    NUM_CPUS,
    Bench,
    idle_workers,
    queued_tasks,
    started_node,
    tasks_at_node,
)
from scripts.bench.curve import Curve, Row, number
from scripts.bench.driver import echo
from scripts.bench.limits import Pipeline
from zray.protocol.limits import WORKER_BACKLOG_TASKS_MAX

TITLE = "Queued tasks"
ABOUT = """Two tasks hold both CPUs while more and more tasks are submitted; the gate opens when
the node has queued them all. The limit is a bare pipeline without a router: pickle, a batch in a
message to one of two processes, unpickle, call, pickle, back."""
MAP_CHUNK = 2048


@zray.remote
def hold(entered: str, gate: str) -> None:
    """Keep a CPU until the gate is open."""
    Path(entered).touch()
    while not Path(gate).exists():
        time.sleep(0.005)


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "queued",
        "Tasks queued at once",
        size="tasks",
        group="by",
        per_unit=("submit µs", "drain µs", "driver B", "node B"),
        plotted=("submit µs", "drain µs", "raw µs"),
        unit="µs per task",
        note="Submit: until the node has queued the last. Drain: until the last value is "
        "with the driver. B: bytes of the process's own memory per queued task, "
        "its ref, number and arguments included. Node MB after: what the node keeps when "
        "all tasks have run and all refs are dropped.",
    )
    by: dict[str, Callable[[int], Any]] = {
        ".remote()": lambda count: [echo.remote(item) for item in range(count)],
        ".map()": lambda count: echo.map(range(count)),
    }
    for name, submit in by.items():
        for count in bench.sizes(10_000, 100_000, 1_000_000, quick=10_000):
            raw_us = _raw_us(bench, name, min(count, 200_000))
            with started_node(bench) as node:
                zray.get([echo.remote(item) for item in range(1000)])
                row = _queue(submit, count, node, bench.folder)
            total = number(row["submit µs"]) + number(row["drain µs"])
            curve.add(
                {"by": name, "tasks": count},
                row,
                {"tasks per s": 1e6 / total, "raw µs": raw_us, "ratio": total / raw_us},
            )
    return [curve]


def _queue(submit: Callable[[int], Any], count: int, node: int, folder: Path) -> Row:
    measuring.wait_until(lambda: idle_workers() >= NUM_CPUS, "idle workers")
    stamp = time.monotonic_ns()
    gate = folder / f"gate-{stamp}"
    entered = [folder / f"entered-{stamp}-{number}" for number in range(NUM_CPUS)]
    holders = [hold.remote(str(path), str(gate)) for path in entered]
    measuring.wait_until(lambda: all(path.exists() for path in entered), "both gate tasks")
    driver_before, node_before = measuring.anonymous_bytes(), measuring.anonymous_bytes(node)
    submitted_s, refs = _timed(lambda: _until_queued(submit, count))
    driver_bytes = measuring.anonymous_bytes() - driver_before
    node_bytes = measuring.anonymous_bytes(node) - node_before
    gate.touch()
    drained_s, values = _timed(lambda: zray.get(refs))
    assert values == list(range(count)), "a queued task has another's value"
    zray.get(holders)
    del values, holders
    refs = None
    zray.nodes()  # Behind all releases: the node has dropped its part when it answers.
    left = measuring.anonymous_bytes(node) - node_before
    return {
        "submit µs": submitted_s * 1e6 / count,
        "drain µs": drained_s * 1e6 / count,
        "driver B": driver_bytes / count,
        "node B": max(0, node_bytes) / count,
        "node MB after": max(0, left) / 1e6,
    }


def _until_queued(submit: Callable[[int], Any], count: int) -> Any:
    refs = submit(count)
    # The gate tasks' workers were given some to run next; counting those as well costs the node
    # more, so it is done once the others are there.
    at_workers = NUM_CPUS * WORKER_BACKLOG_TASKS_MAX
    measuring.wait_until(lambda: queued_tasks() >= count - at_workers, f"{count} queued tasks")
    measuring.wait_until(lambda: tasks_at_node() >= count, f"{count} tasks at the node")
    return refs


def _timed(operation: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = operation()
    return time.perf_counter() - started, value


def _raw_us(bench: Bench, name: str, count: int) -> float:
    mode, chunk = ("map", MAP_CHUNK) if name == ".map()" else ("tasks", limits.BATCH)
    with Pipeline(bench.folder, mode) as pipeline:
        pipeline.run_s(chunk * 4, chunk)
        return pipeline.run_s(count, chunk) * 1e6 / count
