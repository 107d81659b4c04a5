"""Refs: 1 000 to 100 000 of them alive, and what each costs.

What    Time to make, get and drop a ref, and the memory of the driver and the node per ref: of
        put() values, of task results, and of refs that have escaped into another object.
Caller  run.py.
Never   measures large values: see payload.py.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve, Row, number
from scripts.bench.driver import echo

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
        for count in bench.sizes(1_000, 10_000, 100_000, quick=10_000):
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
    return [curve]


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
        "driver B": driver_bytes / count,
        "node B": max(0, node_bytes) / count,
    }


def _raw_us(count: int) -> float:
    def store() -> None:
        kept = {item: pickle.dumps(item, 5) for item in range(count)}
        assert len([pickle.loads(kept[item]) for item in range(count)]) == count

    return measuring.median_s(store, budget_s=0.1) * 1e6 / count
