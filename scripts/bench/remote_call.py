"""Remote call: what does it cost to call an actor on another node?

What    One call at a time and calls in bursts, next to a raw ZeroMQ round trip over TCP taken in
        turns with them; and the CPU time a call takes in each process that it passes.
Caller  run.py.
Never   measures more than two nodes.
"""

from __future__ import annotations

import os
from typing import Any

import psutil

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve, Row
from scripts.bench.limits import Echo
from zray.testing import Cluster

TITLE = "Calls of actors on other nodes"
ABOUT = """A call goes from the caller over its node's stream, the link between the nodes and a
stream of the other node to the actor, and its result goes the same way back. The limit is a bare
DEALER and ROUTER over TCP between two processes, which is the link alone."""
TURNS = 16
"""Times that ours and the raw round trip take turns: a busy moment falls on both."""
BURST = 10_000


@zray.remote(num_cpus=0, resources={"far": 1})
class Remote(zray.Actor):
    """An actor that does as little as one can, and says where."""

    def add(self) -> int:
        return 1

    def pid(self) -> int:
        return os.getpid()


def _cpu_s(pids: list[int]) -> list[float]:
    """Return the CPU seconds that each process has taken so far, all threads."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return [each.user + each.system for each in times]


def _row(keys: bool, seconds: float) -> Row:
    with Echo(None) as echo, Cluster(keys=keys) as cluster:
        near = cluster.add_node(num_cpus=1)
        far = cluster.add_node(num_cpus=1, resources={"far": 1})
        zray.init(address=near.directory, log_to_driver=False)
        actor: Any = Remote.remote()
        pids = [os.getpid(), near.pid, far.pid, zray.get(actor.pid.remote())]
        ours: list[float] = []
        raw: list[float] = []
        p99: list[float] = []
        calls, cpu_s = 0, [0.0] * len(pids)
        for _ in range(TURNS):
            raw.append(echo.latency(seconds / TURNS / 4).p50_us)
            before = _cpu_s(pids)
            samples, total_s = measuring.for_seconds(
                lambda: zray.get(actor.add.remote()), seconds / TURNS
            )
            for place, (start, end) in enumerate(zip(before, _cpu_s(pids), strict=True)):
                cpu_s[place] += end - start
            calls += len(samples)
            found = measuring.summary(samples, total_s)
            ours.append(found.p50_us)
            p99.append(found.p99_us)
        driver, near_s, far_s, worker = [each / calls * 1e6 for each in cpu_s]
        return {
            "keys": "CURVE" if keys else "none",
            "p50 µs": measuring.median(ours),
            "p99 µs": measuring.median(p99),
            "raw p50 µs": measuring.median(raw),
            "ratio": measuring.median(ours) / measuring.median(raw),
            "ratio of the best": min(ours) / min(raw),
            "async per s": max(_burst_per_s(actor) for _ in range(3)),
            "CPU µs, driver": driver,
            "its node": near_s,
            "the other node": far_s,
            "worker": worker,
        }


def _burst_per_s(actor: Any) -> float:
    seconds = measuring.elapsed_s(lambda: zray.get([actor.add.remote() for _ in range(BURST)]))
    return BURST / seconds


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "remote-call",
        "An actor on another node, called from here",
        note="Medians of turns, in which ours and the raw round trip follow each other; ratio of "
        "the best: of the quickest turn of each. CPU time is that of a synchronous call.",
    )
    for keys in (False, True):
        curve.add(_row(keys, bench.seconds(8.0)))
    return [curve]
