"""Recursion: tasks that wait for tasks that wait, 200 deep on two CPUs.

What    Time and memory of a level, with workers that must be forked and with workers that are
        there; and a binary tree, where each task waits for two.
Caller  run.py.
Never   limits the depth: a task that waits lends its CPU out, and the node forks another worker.
"""

from __future__ import annotations

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import Bench, started_node, worker_pids
from scripts.bench.curve import Curve
from scripts.bench.limits import Echo

TITLE = "Deep recursion"
ABOUT = """A task that waits in `get` lends its CPU to others, so nested tasks need no more CPUs
than one, at any depth; but each level holds a worker process until the levels below have
answered. The limit of the first run is a chain of forked processes, each of which makes a ZeroMQ
socket and gets one answer; the limit of the second is a bare round trip."""


@zray.remote
def nested(depth: int) -> int:
    """Wait for a task one level deeper; returns how many levels there were."""
    return 0 if depth == 0 else 1 + int(zray.get(nested.remote(depth - 1)))


@zray.remote
def tree(depth: int) -> int:
    """Wait for two tasks one level deeper; returns how many tasks there were."""
    if depth == 0:
        return 1
    return 1 + sum(zray.get([tree.remote(depth - 1), tree.remote(depth - 1)]))


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    return [_chain(bench), _tree(bench)]


def _chain(bench: Bench) -> Curve:
    curve = Curve(
        "chain",
        "A chain of tasks, each waits for the next",
        size="depth",
        per_unit=("cold ms per level", "warm ms per level", "PSS MB per level"),
        plotted=("cold ms per level", "raw fork ms", "warm ms per level"),
        unit="ms per level",
        note="Cold: a new node, workers are forked on the way down. Warm: the same again, "
        "with the workers of the first run.",
    )
    with Echo(bench.folder) as echoing:
        raw_ms = echoing.latency(bench.seconds(0.5)).p50_us / 1e3
    for depth in bench.sizes(1, 10, 50, 100, 200, quick=10):
        raw_fork_ms = limits.forks_s(bench.folder, depth, nested=True) * 1e3 / depth
        with started_node(bench) as node:
            zray.get(nested.remote(0))
            before = _memory(node)
            cold_ms = _levels_ms(depth)
            after = _memory(node)
            warm_ms = min(_levels_ms(depth) for _ in range(3))
        more = after[0] - before[0]
        curve.add(
            {
                "depth": depth,
                "cold ms per level": cold_ms,
                "raw fork ms": raw_fork_ms,
                "cold ratio": cold_ms / raw_fork_ms,
                "warm ms per level": warm_ms,
                "raw round trip ms": raw_ms,
                "warm ratio": warm_ms / raw_ms,
                "workers": after[0],
                "PSS MB per level": (after[1] - before[1]) / more / 1e6 if more > 0 else None,
                "node kB per level": (after[2] - before[2]) / depth / 1e3,
            }
        )
    return curve


def _levels_ms(depth: int) -> float:
    def descend() -> None:
        assert zray.get(nested.remote(depth), timeout=measuring.WAIT_S) == depth

    return measuring.elapsed_s(descend) * 1e3 / depth


def _memory(node: int) -> tuple[int, int, int]:
    """Return the number of workers, their PSS in bytes, and the node's own bytes."""
    pids = worker_pids()
    return (
        len(pids),
        sum(measuring.proportional_bytes(pid) for pid in pids),
        measuring.anonymous_bytes(node),
    )


def _tree(bench: Bench) -> Curve:
    curve = Curve(
        "tree",
        "A binary tree of tasks, each waits for two",
        size="tasks",
        per_unit=("cold ms per task", "warm ms per task"),
        plotted=("cold ms per task", "raw fork ms", "warm ms per task"),
        unit="ms per task",
        note="All inner tasks may wait at the same time, and then each holds a worker.",
    )
    for depth in bench.sizes(1, 3, 5, 7, quick=3):
        count = 2 ** (depth + 1) - 1
        raw_fork_ms = limits.forks_s(bench.folder, count // 2, nested=False) * 1e3 / (count // 2)
        with started_node(bench):
            zray.get(tree.remote(0))

            def grow(depth: int = depth, count: int = count) -> None:
                assert zray.get(tree.remote(depth), timeout=measuring.WAIT_S) == count

            cold_ms = measuring.elapsed_s(grow) * 1e3 / count
            workers = len(worker_pids())
            warm_ms = min(measuring.elapsed_s(grow) for _ in range(3)) * 1e3 / count
        curve.add(
            {
                "tasks": count,
                "depth": depth,
                "cold ms per task": cold_ms,
                "raw fork ms": raw_fork_ms,
                "ratio": cold_ms / raw_fork_ms,
                "warm ms per task": warm_ms,
                "workers": workers,
            }
        )
    return curve
