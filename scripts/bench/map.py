"""map: 1 to 4 million items, every one a task with its own ref.

What    Time per item of zray.get(f.map(items)), of making all refs, and the driver's memory.
Caller  run.py.
Never   measures waiting tasks: see queued.py.
"""

from __future__ import annotations

from typing import Any

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve, Row
from scripts.bench.driver import echo
from scripts.bench.limits import Pipeline
from scripts.bench.queued import MAP_CHUNK

MEASURABLE = 100_000
"""The memory of fewer items hides in pages that a process has anyway."""

TITLE = "map"
ABOUT = """`f.map(items)` submits a task for each item; up to 2048 items are one message and one
queue entry, and refs are made when somebody looks at them. The limit is a bare pipeline that
pickles lists of 2048 numbers, runs the function over them in two processes and unpickles the
values."""


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "items",
        "Items of one map",
        size="items",
        per_unit=("µs per item", "driver B per item"),
        plotted=("µs per item", "raw µs per item", "µs per ref looked at"),
        unit="µs per item, from 1 000 items",
        note="Driver B: bytes of the driver's own memory per item while the sequence "
        "is alive and its values are dropped. Ref: making the refs of up to 100 000 "
        "items after that.",
    )
    with started_node(bench), Pipeline(bench.folder, "map") as pipeline:
        for count in bench.sizes(1, 100, 10_000, 100_000, 1_000_000, 4_000_000, quick=100_000):
            curve.add({"items": count}, _map(count, pipeline))
    return [curve]


def _map(count: int, pipeline: Pipeline) -> Row:
    budget_s = 0.2 if count < 1_000_000 else 0.0
    at_least = 3 if count < 1_000_000 else 1

    def run() -> None:
        values = zray.get(echo.map(range(count)))
        assert len(values) == count
        assert values[-1] == count - 1

    each_s = measuring.median_s(run, budget_s=budget_s, at_least=at_least)
    raw_s = measuring.median_s(
        lambda: pipeline.run_s(count, MAP_CHUNK), budget_s=budget_s, at_least=at_least
    )
    before = measuring.anonymous_bytes()
    refs: Any = echo.map(range(count))
    zray.get(refs)
    driver_bytes = max(0, measuring.anonymous_bytes() - before)
    looked_at = min(count, 100_000)
    refs_s = measuring.elapsed_s(lambda: [refs[item] for item in range(looked_at)])
    return {
        "µs per item": each_s * 1e6 / count,
        "items per s": count / each_s,
        "raw µs per item": raw_s * 1e6 / count,
        "ratio": each_s / raw_s,
        "driver B per item": driver_bytes / count if count >= MEASURABLE else None,
        "µs per ref looked at": refs_s * 1e6 / looked_at,
    }
