"""Three nodes: what is lost where the same machine is three nodes instead of one?

What    Tasks a second of one node and of three on this machine, taken in turns; and tasks that
        only sleep, which three nodes must run three times as fast as one.
Caller  run.py.
Never   shows that three machines are faster: here they share the cores.
"""

from __future__ import annotations

import time

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import NUM_CPUS, Bench
from scripts.bench.curve import Curve
from scripts.bench.driver import echo
from zray.testing import Cluster

TITLE = "Three nodes on one machine"
ABOUT = """One driver, and as many nodes as the table says, each with CPUs of its own by its own
count. Tasks that wait are done by workers that other nodes lend. On one machine nothing is gained
by that where tasks compute; what is lost is the cost of the way."""
BURST = 4000
SLEEP_S = 0.1
SLEEP_CPUS = 4
"""Of each node, where tasks sleep."""
NODES = 3


@zray.remote
def nap() -> None:
    time.sleep(SLEEP_S)


def _burst_per_s() -> float:
    seconds = measuring.elapsed_s(lambda: zray.get([echo.remote(item) for item in range(BURST)]))
    return BURST / seconds


def _rate(nodes: int, seconds: float) -> float:
    """Return tasks a second on so many nodes: the median of bursts."""
    with Cluster() as cluster:
        for _ in range(nodes):
            cluster.add_node(num_cpus=NUM_CPUS)
        zray.init(address=cluster.address, log_to_driver=False)
        _burst_per_s()
        rates = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            rates.append(_burst_per_s())
        return measuring.median(rates)


def _sleeps(count: int) -> float:
    """Return the seconds that so many sleeping tasks take on three nodes."""
    with Cluster() as cluster:
        for _ in range(NODES):
            cluster.add_node(num_cpus=SLEEP_CPUS)
        zray.init(address=cluster.address, log_to_driver=False)
        # Workers are forked at first sight; what is measured is how work is spread.
        zray.get([nap.remote() for _ in range(NODES * SLEEP_CPUS * 2)])
        return measuring.elapsed_s(lambda: zray.get([nap.remote() for _ in range(count)]))


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    tasks = Curve(
        "tasks",
        "Tasks that do nothing",
        note="Ratio: to one node of the same run. The two take turns, and the better turn counts.",
    )
    turns = 1 if bench.quick else 3
    rates = {nodes: 0.0 for nodes in (1, NODES)}
    for _ in range(turns):
        for nodes in rates:
            rates[nodes] = max(rates[nodes], _rate(nodes, bench.seconds(2.5)))
    for nodes, rate in rates.items():
        tasks.add({"nodes": nodes, "per s": rate, "ratio": rate / rates[1]})
    sleeps = Curve(
        "sleeps",
        f"Tasks of {SLEEP_S * 1e3:.0f} ms that sleep, on {NODES} nodes of {SLEEP_CPUS} CPUs",
        note="Ratio: to the time it takes where each CPU always has one.",
    )
    count = 120 if bench.quick else 1200
    taken_s = _sleeps(count)
    ideal_s = count * SLEEP_S / (NODES * SLEEP_CPUS)
    sleeps.add({"tasks": count, "s": taken_s, "ideal s": ideal_s, "ratio": taken_s / ideal_s})
    return [tasks, sleeps]
