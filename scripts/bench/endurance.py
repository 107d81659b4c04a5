"""Endurance: does memory stay flat while millions of tasks run through?

What    The memory that driver, node, workers and GCS have for themselves (RssAnon) at twenty
        points of a long run of bursts, and how much of it a million tasks add.
Caller  run.py.
Never   counts what the page cache and the object store hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import NUM_CPUS, Bench, worker_pids
from scripts.bench.curve import Curve, Row, number
from scripts.bench.driver import echo
from zray.testing import Cluster

TITLE = "Memory while millions of tasks run"
ABOUT = """One driver submits bursts of tasks to a node with a GCS, gets their values and drops the
refs, over and over. What is kept of each task (lineage, events) goes to disk and rings of a fixed
size, so the memory of every process is to stay where it was after the first of them."""
TIME_LIMIT_S = 1800.0
BURST = 10_000
POINTS = 20
WARM_SHARE = 0.25
"""Of the run, before slopes are taken: rings fill, allocators and caches find their sizes."""
PROCESSES = ("driver", "node", "workers", "GCS")


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    total = 300_000 if bench.quick else 10_000_000
    columns = tuple(f"{name} MB" for name in PROCESSES)
    memory = Curve(
        "memory",
        "Memory of each kind of process",
        size="tasks",
        per_unit=columns,
        plotted=columns,
        unit="MB of RssAnon",
        is_log=False,
        note="RssAnon. Workers: of all of them together. Growth compares the memory at the end "
        "with the least there was.",
    )
    with Cluster() as cluster:
        node = cluster.add_node(num_cpus=NUM_CPUS)
        zray.init(address=cluster.address, log_to_driver=False)
        for row in _course(node.pid, total):
            memory.add(row)
    return [memory, _slopes(memory)]


def _course(node: int, total: int) -> Iterator[Row]:
    """Run the tasks; yields a row of memory at each point."""
    pids = {"driver": [os.getpid()], "node": [node], "GCS": [_gcs_pid(node)]}
    step = total // POINTS
    done, next_point = 0, step
    while done < total:
        values = zray.get([echo.remote(item) for item in range(BURST)])
        assert values == list(range(BURST)), "a task has another's value"
        done += BURST
        if done >= next_point:
            next_point += step
            pids["workers"] = worker_pids()
            yield {
                "tasks": done,
                **{
                    f"{name} MB": sum(map(measuring.anonymous_bytes, pids[name])) / 1e6
                    for name in PROCESSES
                },
            }


def _gcs_pid(node: int) -> int:
    """Return the GCS process that serves; another one waits beside it."""
    for child in psutil.Process(node).children(recursive=True):
        command = child.cmdline()
        if "gcs" in command and "--dir" in command:
            told = Path(command[command.index("--dir") + 1], "gcs.json").read_text()
            return int(json.loads(told)["pid"])
    raise LookupError(f"the node with pid {node} has no GCS process")


def _slopes(memory: Curve) -> Curve:
    curve = Curve(
        "slope",
        "What a million tasks add",
        note=f"Least squares over the run, without its first {WARM_SHARE * 100:.0f} %.",
    )
    rows = memory.rows[int(len(memory.rows) * WARM_SHARE) :]
    for name in PROCESSES:
        points = [(number(row["tasks"]) / 1e6, number(row[f"{name} MB"])) for row in rows]
        curve.add(
            {
                "process": name,
                "MB per million tasks": _slope(points),
                "first MB": points[0][1],
                "last MB": points[-1][1],
            }
        )
    return curve


def _slope(points: list[tuple[float, float]]) -> float:
    mean_x = sum(x for x, _y in points) / len(points)
    mean_y = sum(y for _x, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _y in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
