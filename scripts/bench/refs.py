"""Refs: 1 000 to 100 000 of them alive, and what each costs.

What    Time to make, get and drop a ref, and the memory of the driver and the node per ref: of
        put() values, of task results, and of refs that have escaped into another object.
Caller  run.py.
Never   measures large values: see payload.py.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import zray
import zray.util
from scripts.bench import measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve, Row, number
from scripts.bench.driver import Counter, echo
from scripts.bench.limits import BATCH, Pipeline

ONE_BY_ONE = "wait(one) in a loop"
MEASURABLE = 10_000
"""The memory of fewer refs hides in pages that a process has anyway."""

TITLE = "Refs alive"
ABOUT = """A ref is an object of the driver and, as long as nobody else knows it, nothing at the
node. A ref that escapes, because it was pickled into an argument or into another object, is
counted by the node. The limit is a value pickled into a dict and unpickled from it."""


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "alive",
        "Refs alive at the same time",
        size="refs",
        group="refs of",
        per_unit=("make µs", "get µs", "drop µs", "driver B", "node B"),
        plotted=("make µs", "get µs", "drop µs", "raw µs"),
        unit="µs per ref",
        note="B: bytes of the process's own memory per ref, value included. Drop: until "
        "the node has answered a question that was asked after it.",
    )
    kinds: dict[str, Callable[[int], list[Any]]] = {
        "put": lambda count: [zray.put(item) for item in range(count)],
        "tasks": _results,
        "escaped": lambda count: _escaped([zray.put(item) for item in range(count)]),
    }
    for kind, make in kinds.items():
        for count in bench.sizes(1_000, 10_000, 100_000, quick=1_000):
            # A node and a driver each time: memory that an earlier size gave back hides a later's.
            with started_node(bench) as node:
                _alive(make, 200, node)
                row = _alive(make, count, node)
            raw_us = _raw_us(count)
            curve.add(
                {"refs of": kind, "refs": count},
                row,
                {"raw µs": raw_us, "make ratio": number(row["make µs"]) / raw_us},
            )
    return [curve, _waiting(bench)]


def _waiting(bench: Bench) -> Curve:
    curve = Curve(
        "waiting",
        "Waiting for many refs, by the way of waiting",
        size="refs",
        group="by",
        per_unit=("µs per ref",),
        plotted=("µs per ref", "raw µs"),
        unit="µs per ref, submit to value",
        note="Asynchronous tasks (calls of one actor where it says so), submitted at once, then "
        "waited for. The raw limit is a bare pipeline of batches.",
    )
    with started_node(bench), Pipeline(bench.folder, "tasks") as pipeline:
        pipeline.run_s(5000, BATCH)
        counter: Any = Counter.remote()
        for name, wait in _ways(counter).items():
            for count in bench.sizes(100, 1_000, 10_000, quick=1_000):
                if name == ONE_BY_ONE and count > 1_000:
                    continue  # Each call looks at all refs that are left: quadratic by its nature.
                each_s = measuring.median_s(
                    partial(wait, count), budget_s=bench.seconds(0.4), at_least=1
                )
                raw_us = pipeline.run_s(count, BATCH) * 1e6 / count
                cost = each_s * 1e6 / count
                curve.add(
                    {
                        "by": name,
                        "refs": count,
                        "µs per ref": cost,
                        "raw µs": raw_us,
                        "ratio": cost / raw_us,
                    }
                )
    return curve


def _ways(counter: Any) -> dict[str, Callable[[int], Any]]:
    """Return ways to submit n calls and to wait for all of their values."""

    def tasks(count: int) -> list[Any]:
        return [echo.remote(item) for item in range(count)]

    def one_by_one(count: int) -> None:
        refs = tasks(count)
        while refs:
            ready, refs = zray.wait(refs)
            zray.get(ready)

    async def gather(refs: list[Any]) -> list[Any]:
        return await asyncio.gather(*refs)

    return {
        "get(list)": lambda count: zray.get(tasks(count)),
        "wait(all)": lambda count: zray.wait(tasks(count), num_returns=count),
        "wait(half)": lambda count: zray.wait(tasks(count), num_returns=count // 2),
        ONE_BY_ONE: one_by_one,
        "as_completed": lambda count: list(zray.util.as_completed(tasks(count))),
        "asyncio.gather": lambda count: asyncio.run(gather(tasks(count))),
        "gather of an actor's": lambda count: asyncio.run(
            gather([counter.add.remote() for _ in range(count)])
        ),
    }


def _results(count: int) -> list[Any]:
    refs = [echo.remote(item) for item in range(count)]
    zray.wait(refs, num_returns=count)
    return refs


def _escaped(refs: list[Any]) -> list[Any]:
    """Return refs that the node counts: they lie in an object, which comes last."""
    return [*refs, zray.put(refs)]


def _alive(make: Callable[[int], list[Any]], count: int, node: int) -> Row:
    driver_before, node_before = measuring.anonymous_bytes(), measuring.anonymous_bytes(node)
    clock = time.perf_counter
    started = clock()
    refs = make(count)
    zray.nodes()
    made = clock()
    driver_bytes = measuring.anonymous_bytes() - driver_before
    node_bytes = measuring.anonymous_bytes(node) - node_before
    began = clock()
    values = zray.get(refs[:count])
    got = clock()
    assert values == list(range(count)), "a ref has another's value"
    del values
    dropping = clock()
    del refs
    zray.nodes()  # Behind all releases: the answer says that the node has dropped them too.
    dropped = clock()
    return {
        "make µs": (made - started) * 1e6 / count,
        "get µs": (got - began) * 1e6 / count,
        "drop µs": (dropped - dropping) * 1e6 / count,
        "driver B": driver_bytes / count if count >= MEASURABLE else None,
        "node B": max(0, node_bytes) / count if count >= MEASURABLE else None,
    }


def _raw_us(count: int) -> float:
    def store() -> None:
        kept = {item: pickle.dumps(item, 5) for item in range(count)}
        assert len([pickle.loads(kept[item]) for item in range(count)]) == count

    return measuring.median_s(store, budget_s=0.1) * 1e6 / count
