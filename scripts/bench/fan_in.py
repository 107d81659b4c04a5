"""Fan-in: one task with 10 to 10 000 refs as arguments.

What    Time of the one task, per ref: refs of values that are there, refs of tasks that are not,
        refs inside a list that the task gets itself; and arrays of 1 MB, read in place.
Caller  run.py.
Never   counts the making of values: only submit, gather, run and answer.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve
from scripts.bench.driver import echo
from scripts.bench.limits import Echo

TITLE = "Wide fan-in"
ABOUT = """A task whose arguments are refs begins when all of them are there. Small values travel
inside its message; refs in a list travel as refs, and the task gets them; arrays stay where they
are, in shared memory. The limit of the small ones is the same number of values, each pickled by
itself, in one message there and back; that of the arrays is a copy of all their bytes."""
ARRAY_BYTES = 1 << 20


@zray.remote
def count_values(*values: Any) -> int:
    """Return how many arguments there were."""
    return len(values)


@zray.remote
def count_refs(refs: list[Any]) -> int:
    """Get refs that came in a list; returns how many there were."""
    return len(zray.get(refs))


@zray.remote
def first_bytes(*arrays: Any) -> int:
    """Touch every array; returns the sum of their first bytes."""
    return sum(int(array[0]) for array in arrays)


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    with started_node(bench):
        return [_small(bench), _arrays(bench)]


def _small(bench: Bench) -> Curve:
    curve = Curve(
        "small",
        "One task, many small arguments",
        size="refs",
        group="refs are",
        per_unit=("µs per ref",),
        plotted=("µs per ref", "raw µs per value"),
        unit="µs per ref",
        note="“pending” includes the tasks that make the values.",
    )
    kinds: dict[str, Callable[[int], Callable[[], Any]]] = {
        "ready": _ready,
        "pending": _pending,
        "in a list": _in_a_list,
    }
    with Echo(bench.folder) as echoing:
        for kind, prepare in kinds.items():
            for count in bench.sizes(10, 100, 1_000, 10_000, quick=1_000):
                raw_us = _raw_us(echoing, count)
                each_s = measuring.median_s(prepare(count), budget_s=bench.seconds(1.0))
                cost = each_s * 1e6 / count
                curve.add(
                    {
                        "refs are": kind,
                        "refs": count,
                        "task ms": each_s * 1e3,
                        "µs per ref": cost,
                        "raw µs per value": raw_us,
                        "ratio": cost / raw_us,
                    }
                )
    return curve


def _ready(count: int) -> Callable[[], Any]:
    refs = [zray.put(item) for item in range(count)]
    return lambda: _is(count, zray.get(count_values.remote(*refs), timeout=measuring.WAIT_S))


def _pending(count: int) -> Callable[[], Any]:
    def fan_in() -> None:
        refs = [echo.remote(item) for item in range(count)]
        _is(count, zray.get(count_values.remote(*refs), timeout=measuring.WAIT_S))

    return fan_in


def _in_a_list(count: int) -> Callable[[], Any]:
    refs = [zray.put(item) for item in range(count)]
    return lambda: _is(count, zray.get(count_refs.remote(refs), timeout=measuring.WAIT_S))


def _is(expected: int, found: int) -> None:
    assert found == expected, f"{found} arguments arrived of {expected}"


def _raw_us(echoing: Echo, count: int) -> float:
    def there_and_back() -> None:
        body = pickle.dumps([pickle.dumps(item, 5) for item in range(count)], 5)
        for value in pickle.loads(echoing.round_trip(body)):
            pickle.loads(value)

    return measuring.median_s(there_and_back, budget_s=0.1) * 1e6 / count


def _arrays(bench: Bench) -> Curve:
    curve = Curve(
        "arrays",
        "One task, many arrays of 1 MiB",
        size="arrays",
        per_unit=("µs per array",),
        plotted=("µs per array", "raw copy µs"),
        unit="µs per array",
        note="The task reads one byte of each array, where it lies.",
    )
    for count in bench.sizes(1, 10, 100, 1_000, quick=10):
        refs = [zray.put(np.ones(ARRAY_BYTES, np.uint8)) for _ in range(count)]

        def fan_in(refs: list[Any] = refs) -> None:
            found = zray.get(first_bytes.remote(*refs), timeout=measuring.WAIT_S)
            _is(len(refs), found)

        each_s = measuring.median_s(fan_in, budget_s=bench.seconds(1.0))
        cost = each_s * 1e6 / count
        raw_us = limits.copy_s(ARRAY_BYTES, 0.1) * 1e6
        curve.add(
            {
                "arrays": count,
                "task ms": each_s * 1e3,
                "µs per array": cost,
                "raw copy µs": raw_us,
                "ratio": cost / raw_us,
                "GB/s seen": ARRAY_BYTES / (cost * 1e3),
            }
        )
        del refs, fan_in
    return curve
