"""Calls: what one costs, how many go through, and what happens when many callers come.

What    Synchronous and asynchronous tasks and actor calls of one driver; then 1 to 16 drivers on
        one node; then 1 to 64 callers of one actor: threads, tasks and processes.
Caller  run.py.
Never   measures payloads: see payload.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve, Row
from scripts.bench.driver import BURST, NAMESPACE, SHARED_ACTOR, Counter, Drivers, echo
from scripts.bench.limits import Echo, Pipeline
from scripts.bench.measuring import Latency

TITLE = "Calls"
ABOUT = """A call of an actor is one message there and one back on a direct connection, so its
limit is a bare ZeroMQ round trip over ipc. A task of a caller that works synchronously goes the
same way, over a lease. Many drivers share two cores with their workers: what counts is that the
total does not fall as they become more."""


@zray.remote(num_cpus=0)
def call_for(actor: Any, gate: str, seconds: float) -> tuple[list[float], float]:
    """Call the actor from a worker for some seconds, once the gate is open."""
    zray.get(actor.add.remote())
    measuring.wait_until(Path(gate).exists, "the signal to begin")
    return measuring.for_seconds(lambda: zray.get(actor.add.remote()), seconds)


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    with started_node(bench):
        single = _single(bench)
        drivers = _drivers(bench)
        return [single, drivers, _callers(bench)]


def _single(bench: Bench) -> Curve:
    seconds = bench.seconds(1.2)
    counter: Any = Counter.remote()
    curve = Curve(
        "one-driver",
        "One driver, one call",
        note="Ratio: to the raw limit of the row; "
        "times above 1 are slower, rates below 1 are fewer.",
    )
    with Echo(bench.folder) as echoing, Pipeline(bench.folder, "tasks") as pipeline:
        raw = echoing.latency(seconds)
        raw_rate = echoing.per_s(seconds)
        pipeline.run_s(5000, limits.BATCH)
        count = 5000 if bench.quick else 40_000
        raw_tasks = count / pipeline.run_s(count, limits.BATCH)

    def one_at_a_time(name: str, operation: Callable[[], Any]) -> None:
        found = measuring.latency(operation, seconds)
        curve.add(_latency_row(name, found, raw))

    def in_bursts(name: str, operation: Callable[[], Any], limit_name: str, limit: float) -> None:
        each_s = measuring.median_s(operation, budget_s=seconds)
        rate = BURST * 5 / each_s
        curve.add(
            {
                "what": name,
                "p50 µs": None,
                "p99 µs": None,
                "per s": rate,
                "raw limit": f"{limit_name}, {limit:,.0f}/s",
                "ratio": rate / limit,
            }
        )

    one_at_a_time("actor call, synchronous", lambda: zray.get(counter.add.remote()))
    one_at_a_time("task, synchronous", lambda: zray.get(echo.remote(1)))
    count = BURST * 5
    in_bursts(
        "actor calls, asynchronous",
        lambda: zray.get([counter.add.remote() for _ in range(count)]),
        "pipelined round trips",
        raw_rate,
    )
    in_bursts(
        "tasks, asynchronous",
        lambda: zray.get([echo.remote(item) for item in range(count)]),
        "bare pipeline of batches",
        raw_tasks,
    )
    zray.kill(counter)
    return curve


def _latency_row(name: str, found: Latency, raw: Latency) -> Row:
    return {
        "what": name,
        "p50 µs": found.p50_us,
        "p99 µs": found.p99_us,
        "per s": found.per_s,
        "raw limit": f"round trip, {raw.p50_us:.0f} µs",
        "ratio": found.p50_us / raw.p50_us,
    }


def _drivers(bench: Bench) -> Curve:
    seconds = bench.seconds(0.8)
    curve = Curve(
        "drivers",
        "Several drivers at once",
        size="drivers",
        group="work",
        per_unit=("µs per call",),
        plotted=("µs per call", "raw µs per call"),
        unit="µs per call, all drivers together",
        note="Each driver is a process of its own on the same node. µs per call is one "
        "second over the calls of all drivers in it. The raw limit is as many pairs of "
        "processes that send 100 B there and back, one at a time; the asynchronous kinds "
        "beat it because a batch is one message.",
    )
    _fill(
        curve,
        bench.sizes(1, 2, 4, 8, 16, quick=2),
        {
            kind: partial(_processes, bench, kind, seconds)
            for kind in ("actor_sync", "task_sync", "actor_calls", "tasks")
        },
        lambda count: limits.clients_per_s(bench.folder, count, seconds, shared=False),
    )
    for row in curve.rows:
        if row["work"] in ("actor_calls", "tasks"):  # A sample is a burst, and no call.
            row["p50 µs"] = row["p99 µs"] = None
    return curve


def _callers(bench: Bench) -> Curve:
    seconds = bench.seconds(0.8)
    curve = Curve(
        "callers",
        "Many callers of one actor",
        size="callers",
        group="callers are",
        per_unit=("µs per call",),
        plotted=("µs per call", "raw µs per call"),
        unit="µs per call, all callers together",
        note="Every caller waits for its answer before it calls again. The actor is one "
        "thread, so its calls per second are the limit; p50 grows with the callers, the "
        "cost of a call must not. The raw limit is one echo process with as many client "
        "processes.",
    )
    shared: Any = Counter.options(name=SHARED_ACTOR, namespace=NAMESPACE).remote()
    zray.get(shared.add.remote())
    _fill(
        curve,
        bench.sizes(1, 4, 16, 64, quick=4),
        {
            "threads": partial(_threads, shared, seconds),
            "tasks": partial(_tasks, shared, seconds, bench.folder),
            "processes": partial(_processes, bench, "shared_actor", seconds),
        },
        lambda count: limits.clients_per_s(bench.folder, count, seconds, shared=True),
    )
    zray.kill(shared)
    return curve


def _fill(
    curve: Curve,
    counts: list[int],
    kinds: dict[str, Callable[[int], tuple[Latency, float]]],
    raw_per_s: Callable[[int], float],
) -> None:
    """Measure each kind of caller in each number, next to as many bare processes.

    Args:
        curve: takes the rows; its group and size name the first two columns.
        counts: how many call at once.
        kinds: measures one kind in a number: latency over all, calls of the slowest over those
            of the fastest.
        raw_per_s: round trips a second of so many bare processes; asked once a number.
    """
    raw: dict[int, float] = {}
    for kind, work in kinds.items():
        for count in counts:
            if count not in raw:
                raw[count] = raw_per_s(count)
            found, fairness = work(count)
            curve.add(
                {
                    curve.group: kind,
                    curve.size: count,
                    "calls per s": found.per_s,
                    "µs per call": 1e6 / found.per_s,
                    "raw µs per call": 1e6 / raw[count],
                    "ratio": found.per_s / raw[count],
                    "p50 µs": found.p50_us,
                    "p99 µs": found.p99_us,
                    "slowest / fastest": fairness,
                }
            )


def _joined(told: list[tuple[list[float], float]]) -> tuple[Latency, float]:
    """Return the latency over all callers, and the calls of the slowest over the fastest one's."""
    counts = [len(samples) for samples, _ in told]
    samples = [sample for each, _ in told for sample in each]
    rate = sum(len(each) / total_s for each, total_s in told)
    found = measuring.summary(samples, 1.0)
    return found._replace(per_s=rate), min(counts) / max(counts)


def _threads(actor: Any, seconds: float, count: int) -> tuple[Latency, float]:
    told: list[tuple[list[float], float]] = []
    barrier = threading.Barrier(count)

    def call() -> None:
        barrier.wait()
        told.append(measuring.for_seconds(lambda: zray.get(actor.add.remote()), seconds))

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(told) < count:
        raise RuntimeError(f"{count - len(told)} of {count} calling threads failed")
    return _joined(told)


def _tasks(actor: Any, seconds: float, folder: Path, count: int) -> tuple[Latency, float]:
    gate = folder / f"gate-{time.monotonic_ns()}"
    before = zray.get(actor.add.remote())
    refs = [call_for.remote(actor, str(gate), seconds) for _ in range(count)]
    # Every caller's first call says that its worker is up; our own looks count as well.
    looks = 0

    def all_are_there() -> bool:
        nonlocal looks
        looks += 1
        return bool(zray.get(actor.add.remote()) - before - looks >= count)

    measuring.wait_until(all_are_there, f"{count} calling tasks")
    gate.touch()
    return _joined(zray.get(refs))


def _processes(bench: Bench, kind: str, seconds: float, count: int) -> tuple[Latency, float]:
    with Drivers(bench.address, kind, count, seconds) as drivers:
        return drivers.work()
