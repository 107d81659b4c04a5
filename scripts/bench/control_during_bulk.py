"""Control during bulk: does a small call wait behind large objects that move?

What    Calls of an actor on another node, one at a time: alone, and while actors of both nodes
        get 64 MiB objects from each other without end.
Caller  run.py.
Never   measures how fast the objects move: transfer.py does.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve, Row
from scripts.bench.driver import Counter
from zray.testing import Cluster

TITLE = "A small call while large objects move"
ABOUT = """Objects move over a port and in a thread of their own, so that a small message between
two nodes never stands behind a chunk of a large one. What is left is that both need the cores."""
NBYTES = 64 << 20
STORE_BYTES = 1 << 30


@zray.remote(num_cpus=0)
class Source(zray.Actor):
    """Makes large objects."""

    def make(self) -> np.ndarray[Any, Any]:
        return np.ones(NBYTES, np.uint8)


@zray.remote(num_cpus=0)
class Sink(zray.Actor):
    """Gets them, one after the other."""

    def pull(self, source: Any, seconds: float) -> int:
        """Return how many bytes have come."""
        nbytes = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            nbytes += zray.get(source.make.remote()).nbytes
        return nbytes


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "control",
        "A call of an actor on another node",
        note="One at a time. Moved: by the objects of both directions together.",
    )
    seconds = bench.seconds(5.0)
    with Cluster() as cluster:
        near, _far = (
            cluster.add_node(num_cpus=1, resources={name: 10}, object_store_memory=STORE_BYTES)
            for name in ("near", "far")
        )
        zray.init(address=near.directory, log_to_driver=False)
        there, here = {"far": 1}, {"near": 1}
        counter: Any = Counter.options(resources=there).remote()
        ways: list[tuple[Any, Any]] = [
            (Source.options(resources=there).remote(), Sink.options(resources=here).remote()),
            (Source.options(resources=here).remote(), Sink.options(resources=there).remote()),
        ]
        zray.get([sink.pull.remote(source, 0.2) for source, sink in ways])

        def call() -> int:
            return int(zray.get(counter.add.remote()))

        alone = measuring.latency(call, seconds)
        # Longer than what is measured: objects move from its first call to its last.
        moving = [sink.pull.remote(source, seconds * 1.3) for source, sink in ways]
        busy = measuring.latency(call, seconds)
        moved = sum(zray.get(moving))
    for beside, found, rate in (
        ("nothing", alone, 0.0),
        ("64 MiB objects both ways", busy, moved / (seconds * 1.3) / 1e9),
    ):
        row: Row = {"beside": beside, "p50 µs": found.p50_us, "p99 µs": found.p99_us}
        curve.add(row, {"moved GB/s": rate})
    return [curve]
