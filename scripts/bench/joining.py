"""Joining: how long until a node that is added to a running cluster has run a task?

What    From the start of the command, or of the call, to the value of a task that only the new
        node can run; and what of that is the join.
Caller  run.py.
Never   counts the end of the node.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import zray
from scripts.bench import limits, measuring
from scripts.bench.bench_node import COMMAND, Bench
from scripts.bench.curve import Curve
from scripts.bench.driver import echo
from zray.testing import Cluster

TITLE = "Adding a node"
ABOUT = """A cluster of two nodes runs, with a driver, and a third one joins. It is of use when a
task that needs what only the third one has is done there. A node is two Python processes (the node,
and the zygote that workers are forked from), so the limit is two interpreters that do nothing."""


class _Adding:
    """One cluster, to which nodes are added one after the other."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        self._bench = bench
        self._cluster = cluster
        self._number = 0

    def by_code(self) -> tuple[float, float]:
        """Return seconds until Cluster.add_node() has returned, and until a task was done."""
        self._number += 1
        name = f"new{self._number}"
        started = time.perf_counter()
        node = self._cluster.add_node(num_cpus=1, resources={name: 1})
        joined_s = time.perf_counter() - started
        zray.get(echo.options(resources={name: 1}).remote(1), timeout=measuring.WAIT_S)
        usable_s = time.perf_counter() - started
        self._cluster.remove_node(node)
        return joined_s, usable_s

    def by_command(self) -> tuple[float, float]:
        """The same of `zray-node start --join`, its own interpreter included."""
        self._number += 1
        name = f"new{self._number}"
        directory = str(self._bench.folder / f"n{self._number}")
        keys = self._cluster.keys
        assert keys is not None
        where = ("--join", self._cluster.nodes[0].address, "--keys", keys, "--dir", directory)
        offers = ("--num-cpus", "1", "--resources", json.dumps({name: 1}), "--json")
        started = time.perf_counter()
        subprocess.run(
            [COMMAND, "start", *where, *offers, "--object-store-memory", "256MiB"],
            stdout=subprocess.DEVNULL,
            timeout=measuring.WAIT_S,
            check=True,
        )
        joined_s = time.perf_counter() - started
        zray.get(echo.options(resources={name: 1}).remote(1), timeout=measuring.WAIT_S)
        usable_s = time.perf_counter() - started
        stop = [COMMAND, "stop", "--dir", directory, "--json"]
        subprocess.run(stop, stdout=subprocess.DEVNULL, timeout=measuring.WAIT_S, check=True)
        self._cluster.wait_for_nodes(len(self._cluster.nodes))
        return joined_s, usable_s


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "usable",
        "A third node",
        note="Joined: all nodes know it. Usable: a task has run on it. Longest: of all.",
    )
    times = 2 if bench.quick else 9
    raw_s = measuring.median(limits.python_s("pass") for _ in range(times)) * 2
    with Cluster() as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        zray.init(address=cluster.address, log_to_driver=False)
        adding = _Adding(bench, cluster)
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "Cluster.add_node()": adding.by_code,
            "zray-node start --join": adding.by_command,
        }
        for name, add in ways.items():
            found = [add() for _ in range(times)]
            usable_s = measuring.median(usable for _joined, usable in found)
            curve.add(
                {
                    "by": name,
                    "joined ms": measuring.median(joined for joined, _usable in found) * 1e3,
                    "usable ms": usable_s * 1e3,
                    "longest ms": max(usable for _joined, usable in found) * 1e3,
                    "raw ms": raw_s * 1e3,
                    "ratio": usable_s / raw_s,
                }
            )
    return [curve]
