"""Start-up: import, init, the first task, actors by the hundred and by the ten thousand, the end.

What    What a user waits for before and after the work, and what idle processes cost.
Caller  run.py.
Never   keeps a node between measurements of init() and shutdown().
"""

from __future__ import annotations

import os
from typing import Any

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import (
    NUM_CPUS,
    Bench,
    idle_workers,
    living_actors,
    started_node,
    worker_pids,
)
from scripts.bench.curve import Curve, Row
from scripts.bench.driver import Counter, echo

TITLE = "Starting and ending"
ABOUT = """An embedded node is two Python processes (the node, and the zygote that workers are
forked from), so the limit of init() is two interpreters that do nothing. The limit of an actor
with a process of its own is a fork that makes a ZeroMQ socket and gets one answer."""


@zray.remote(num_cpus=0)
class Alone(zray.Actor):
    """An actor that tells its process."""

    def pid(self) -> int:
        return os.getpid()


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    once = _once(bench)
    with started_node(bench) as node:
        actors = _actors(bench, node)
    with started_node(bench) as node:
        shared = _shared(bench, node)
    return [once, actors, shared]


def _once(bench: Bench) -> Curve:
    curve = Curve(
        "once",
        "What happens once",
        note="An idle worker's memory is its PSS: its own "
        "pages, and its share of those that it has from the zygote.",
    )
    times = 2 if bench.quick else 5
    # The least of several, by turns: what a neighbour adds to either would look like the import.
    pairs = [(limits.python_s("pass"), limits.python_s("import zray")) for _ in range(times * 2)]
    raw_s = min(raw for raw, _ in pairs)
    import_s = min(with_import for _, with_import in pairs) - raw_s
    samples: dict[str, list[float]] = {"init()": [], "first task": [], "shutdown()": []}
    pss: list[float] = []
    for _ in range(times):
        samples["init()"].append(
            measuring.elapsed_s(lambda: zray.init("local", num_cpus=NUM_CPUS, log_to_driver=False))
        )
        samples["first task"].append(measuring.elapsed_s(lambda: zray.get(echo.remote(1))))
        measuring.wait_until(lambda: idle_workers() >= NUM_CPUS, "the first workers")
        pss += [measuring.proportional_bytes(pid) / 1e6 for pid in worker_pids()]
        samples["shutdown()"].append(measuring.elapsed_s(zray.shutdown))
    interpreter = f"one interpreter, {raw_s * 1e3:.0f} ms"

    def row(name: str, seconds: float, raw: str, ratio: float | None) -> Row:
        return {
            "what": name,
            "value": seconds * 1e3,
            "unit": "ms",
            "raw limit": raw,
            "ratio": ratio,
        }

    init_s = measuring.median(samples["init()"])
    curve.rows = [
        row("import zray", import_s, interpreter, import_s / raw_s),
        row("init()", init_s, f"two interpreters, {raw_s * 2e3:.0f} ms", init_s / raw_s / 2),
        row("first task", measuring.median(samples["first task"]), "–", None),
        row("shutdown()", measuring.median(samples["shutdown()"]), "–", None),
        {
            "what": "idle worker",
            "value": measuring.median(pss),
            "unit": "MB",
            "raw limit": "–",
            "ratio": None,
        },
    ]
    return curve


def _actors(bench: Bench, node: int) -> Curve:
    curve = Curve(
        "process-actors",
        "Actors with a process each",
        size="actors",
        per_unit=("ms per actor", "PSS MB per actor"),
        plotted=("ms per actor", "raw fork ms"),
        unit="ms per actor",
        note="From the first .remote() to the last answer of a method. Kill: until the "
        "last of their processes is gone.",
    )
    _process_actors(1, node)
    for count in bench.sizes(1, 10, 50, 100, quick=10):
        raw_ms = limits.forks_s(bench.folder, count, nested=False) * 1e3 / count
        row = _process_actors(count, node)
        cost = row["ms per actor"]
        curve.add({"actors": count}, row, {"raw fork ms": raw_ms, "ratio": cost / raw_ms})
    return curve


def _process_actors(count: int, node: int) -> dict[str, float]:
    before = measuring.anonymous_bytes(node)
    actors: list[Any] = []
    pids: set[int] = set()

    def create() -> None:
        actors.extend(Alone.remote() for _ in range(count))
        pids.update(zray.get([actor.pid.remote() for actor in actors], timeout=measuring.WAIT_S))

    created_s = measuring.elapsed_s(create)
    assert len(pids) == count, f"{count} actors in {len(pids)} processes"
    pss = sum(measuring.proportional_bytes(pid) for pid in pids)
    node_bytes = measuring.anonymous_bytes(node) - before

    def kill() -> None:
        for actor in actors:
            zray.kill(actor)
        measuring.wait_until(lambda: not any(_runs(pid) for pid in pids), "the end of all actors")

    killed_s = measuring.elapsed_s(kill)
    return {
        "ms per actor": created_s * 1e3 / count,
        "kill ms per actor": killed_s * 1e3 / count,
        "PSS MB per actor": pss / count / 1e6,
        "node kB per actor": max(0, node_bytes) / count / 1e3,
    }


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _shared(bench: Bench, node: int) -> Curve:
    curve = Curve(
        "shared-actors",
        "Actors that share a process",
        size="actors",
        per_unit=("µs per actor", "host kB per actor", "node kB per actor", "driver kB per actor"),
        plotted=("µs per actor", "call µs", "raw fork µs"),
        unit="µs per actor",
        note="From the first .remote() to the last answer of a method, "
        'isolation="shared". Call: another call of each. Drop: of all handles, until the '
        "last actor has ended.",
    )
    raw_us = limits.forks_s(bench.folder, 10, nested=False) * 1e6 / 10
    for count in (10, *bench.sizes(1_000, 5_000, 10_000, 20_000, quick=1_000)):
        row = _shared_actors(count, node)
        if count > 10:  # The first have started the process that all of them share.
            curve.add(
                {"actors": count},
                row,
                {"raw fork µs": raw_us, "ratio": row["µs per actor"] / raw_us},
            )
    return curve


def _shared_actors(count: int, node: int) -> dict[str, float]:
    hosts = worker_pids()
    before = [
        sum(measuring.anonymous_bytes(pid) for pid in hosts),
        measuring.anonymous_bytes(node),
        measuring.anonymous_bytes(),
    ]
    actors: list[Any] = []
    option = Counter.options(isolation="shared")

    def create() -> None:
        actors.extend(option.remote() for _ in range(count))
        assert sum(zray.get([actor.add.remote() for actor in actors])) == count

    created_s = measuring.elapsed_s(create)
    called_s = measuring.elapsed_s(lambda: zray.get([actor.add.remote() for actor in actors]))
    after = [
        sum(measuring.anonymous_bytes(pid) for pid in worker_pids()),
        measuring.anonymous_bytes(node),
        measuring.anonymous_bytes(),
    ]

    def drop() -> None:
        actors.clear()
        measuring.wait_until(lambda: living_actors() <= 0, "the end of all actors")

    dropped_s = measuring.elapsed_s(drop)
    host, node_kb, driver = (
        max(0, late - early) / count / 1e3 for early, late in zip(before, after, strict=True)
    )
    return {
        "µs per actor": created_s * 1e6 / count,
        "call µs": called_s * 1e6 / count,
        "drop µs per actor": dropped_s * 1e6 / count,
        "host kB per actor": host,
        "node kB per actor": node_kb,
        "driver kB per actor": driver,
    }
