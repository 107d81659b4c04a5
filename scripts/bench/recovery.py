"""Recovery: how late a result is when kill -9 hits the worker that was making it.

What    A task that waits in the node's queue, one on a lease, and a call of an actor that restarts:
        from the kill to the result of the second try.
Caller  run.py.
Never   measures the work itself: the second try returns at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import NUM_CPUS, Bench, idle_workers, started_node
from scripts.bench.curve import Curve

TITLE = "Recovery"
ABOUT = """A process dies, its sockets close, and the node learns of it from the end of its
stream; nothing waits for a time-out. The task then runs in another worker, and an actor is made
again in a new one. The limit is a bare fork that makes a ZeroMQ socket and gets one answer."""


def _mortals() -> tuple[Any, Any]:
    """Return a task and an actor that die in their first try, and tell in the second when.

    They are local to travel by value: by name, the second try would import this module first, and
    what it imports, in a new worker. That is 30 ms of a benchmark's own making.
    """

    def die_once(mark: str) -> float:
        path = Path(mark)
        if not path.exists():
            path.write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return float(path.read_text())

    @zray.remote(num_cpus=0, max_restarts=-1, max_task_retries=1)
    class Mortal(zray.Actor):
        def die_once(self, mark: str) -> float:
            return die_once(mark)

    return zray.remote(max_retries=1)(die_once), Mortal.remote()


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "killed",
        "Results of killed workers",
        note="From the kill to the value at the driver, on an idle node. “Leased”: the driver has "
        "worked synchronously before, so its task went straight to the worker.",
    )
    times = 3 if bench.quick else 15
    raw_ms = limits.forks_s(bench.folder, 5, nested=True) * 1e3 / 5
    with started_node(bench):
        die_once, mortal = _mortals()
        there = bench.folder / "died"
        there.write_text("0")

        def leased(mark: str) -> Any:
            for _ in range(10):
                zray.get(die_once.remote(str(there)))
            return die_once.remote(mark)

        ways: dict[str, Callable[[str], Any]] = {
            "task, queued": die_once.remote,
            "task, leased": leased,
            "actor call, with a restart": mortal.die_once.remote,
        }
        for name, call in ways.items():
            late_ms = sorted(_late_ms(bench.folder, call) for _ in range(times))
            median = measuring.median(late_ms)
            curve.add(
                {
                    "what": name,
                    "median ms": median,
                    "longest ms": late_ms[-1],
                    "raw fork ms": raw_ms,
                    "ratio": median / raw_ms,
                }
            )
    return [curve]


def _late_ms(folder: Path, call: Callable[[str], Any]) -> float:
    measuring.wait_until(lambda: idle_workers() >= NUM_CPUS, "idle workers")
    mark = folder / f"died-{time.monotonic_ns()}"
    died_at = zray.get(call(str(mark)), timeout=measuring.WAIT_S)
    return (time.time() - died_at) * 1e3
