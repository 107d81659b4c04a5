"""What `zray-node bench` measures.

What    Calls, tasks and objects on an embedded node: median latencies and rates of one run. For
        numbers side by side with other systems see docs/explanation/architecture.md.
Caller  zray/cli.py.
Never   touches a node that somebody uses.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row: a number with its unit, from ``count`` operations."""

    name: str
    value: float
    unit: str
    count: int


def bench(num_cpus: float | None, *, quick: bool, as_json: bool) -> int:
    """Measure and print; returns the exit code."""
    import zray

    started = time.perf_counter()
    with zray.init("local", num_cpus=num_cpus) as context:
        rows = [Measurement("zray.init()", (time.perf_counter() - started) * 1e3, "ms", 1)]
        rows += list(_measure(1 if quick else 10))
        cpus = context.resources.get("CPU", 0.0)
    if as_json:
        from zray import __version__

        print(
            json.dumps(
                {
                    "version": __version__,
                    "cpus": cpus,
                    "quick": quick,
                    "rows": [asdict(row) for row in rows],
                },
                indent=2,
            )
        )
    else:
        _show(rows, cpus)
    return 0


def _measure(scale: int) -> Iterator[Measurement]:
    yield from _tasks(scale)
    yield from _actors(scale)
    yield from _objects(scale)


def _median_us(name: str, operation: Callable[[], Any], count: int) -> Measurement:
    for _ in range(max(1, count // 10)):
        operation()  # Imports, forks and leases are not what is measured.
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - started)
    return Measurement(name, statistics.median(taken) * 1e6, "µs", count)


def _rate(name: str, operation: Callable[[int], Any], count: int) -> Measurement:
    operation(count // 10)
    started = time.perf_counter()
    operation(count)
    return Measurement(name, count / (time.perf_counter() - started), "/s", count)


def _tasks(scale: int) -> Iterator[Measurement]:
    import zray

    @zray.remote
    def nothing(_item: int = 0) -> None:
        return None

    yield _median_us("task, one at a time", lambda: zray.get(nothing.remote()), 300 * scale)
    yield _rate(
        "tasks, .remote() then get",
        lambda count: zray.get([nothing.remote() for _ in range(count)]),
        10_000 * scale,
    )
    yield _rate(
        "tasks, .map() then get", lambda count: zray.get(nothing.map(range(count))), 100_000 * scale
    )


def _actors(scale: int) -> Iterator[Measurement]:
    import zray

    @zray.remote(num_cpus=0)
    class Counter(zray.Actor):
        def __init__(self) -> None:
            self.count = 0

        @zray.method
        def add(self) -> int:
            self.count += 1
            return self.count

    counter = Counter.remote()
    yield _median_us(
        "actor call, one at a time", lambda: zray.get(counter.add.remote()), 300 * scale
    )
    yield _rate(
        "actor calls, .remote() then get",
        lambda count: zray.get([counter.add.remote() for _ in range(count)]),
        10_000 * scale,
    )


def _objects(scale: int) -> Iterator[Measurement]:
    import numpy

    import zray

    megabyte = numpy.ones(_MB, dtype=numpy.uint8)
    yield _median_us("put of 1 MB", lambda: zray.put(megabyte), 100 * scale)
    ref = zray.put(megabyte)
    yield _median_us("get of 1 MB", lambda: zray.get(ref), 300 * scale)
    large = numpy.ones(100 * _MB, dtype=numpy.uint8)
    each = _median_us("", lambda: zray.put(large), 3 * scale)
    yield Measurement("put of 100 MB", 100 * _MB / each.value / 1e3, "GB/s", each.count)


def _show(rows: list[Measurement], cpus: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"zray on {cpus:g} CPUs", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("median or rate", justify="right")
    table.add_column("")
    table.add_column("operations", justify="right")
    for row in rows:
        shown = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        table.add_row(row.name, shown, row.unit, f"{row.count:,}")
    Console(highlight=False).print(table)
