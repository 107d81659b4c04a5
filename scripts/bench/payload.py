"""Payloads: values from nothing to 1 GiB, put, got, passed and returned.

What    Microseconds and GB/s of put, get, an argument and a result, next to np.copyto.
Caller  run.py.
Never   takes more than half of the free memory: sizes beyond it are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve

TITLE = "Payloads"
ABOUT = """Values up to 64 KiB travel inside messages. Larger ones are written once into shared
memory and read where they lie: `get` of an array costs the same at any size, and everything that
writes one costs a copy. The limit is np.copyto between two arrays whose pages are there
already."""
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
COPIES = 7
"""The array, a copy's target, and what the store and a worker may hold of it at once."""
_made: dict[int, Any] = {}


@zray.remote
def length(array: Any) -> int:
    """Return the length of an argument."""
    return len(array)


@zray.remote
def array_of(size_bytes: int) -> Any:
    """Return an array; a worker makes it once, so that the next time only returning it counts."""
    if size_bytes not in _made:
        _made.clear()
        _made[size_bytes] = np.ones(size_bytes, np.uint8)
    return _made[size_bytes]


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    free = psutil.virtual_memory().available
    sizes = [
        size
        for size in bench.sizes(
            0, KIB, 60 * KIB, 65 * KIB, 256 * KIB, MIB, 16 * MIB, 128 * MIB, GIB, quick=MIB
        )
        if size * COPIES < free / 2
    ]
    times = Curve(
        "us",
        "Time of one operation",
        size="bytes",
        note="Microseconds. The get is that "
        "of the process that put the value; it copies nothing above 64 KiB.",
    )
    rates = Curve(
        "gb-s",
        "Bytes in a second",
        size="bytes",
        plotted=("put GB/s", "argument GB/s", "result GB/s", "raw copy GB/s"),
        unit="GB/s",
        note="Ratio: put to np.copyto of the same size in the same run.",
    )
    with started_node(bench):
        for size in sizes:
            budget_s = bench.seconds(0.4)
            copy_s = limits.copy_s(size, budget_s)
            found = _operations(size, budget_s)
            times.add(
                {"bytes": size},
                {f"{name} µs": cost * 1e6 for name, cost in found.items()},
                {"raw copy µs": copy_s * 1e6},
            )
            if size < 60 * KIB:
                continue
            per_s = {name: size / cost / 1e9 for name, cost in found.items() if name != "get"}
            rates.add(
                {"bytes": size},
                {f"{name} GB/s": rate for name, rate in per_s.items()},
                {"raw copy GB/s": size / copy_s / 1e9, "ratio": copy_s / found["put"]},
            )
    return [times, rates]


def _operations(size: int, budget_s: float) -> dict[str, float]:
    array = np.ones(size, np.uint8)
    ref = zray.put(array)

    def get() -> None:
        assert len(zray.get(ref)) == size

    def argument() -> None:
        assert zray.get(length.remote(array)) == size

    def result() -> None:
        assert len(zray.get(array_of.remote(size))) == size

    operations: dict[str, Callable[[], Any]] = {
        "put": lambda: zray.put(array),
        "get": get,
        "argument": argument,
        "result": result,
    }
    return {
        name: measuring.median_s(operation, budget_s=budget_s)
        for name, operation in operations.items()
    }
