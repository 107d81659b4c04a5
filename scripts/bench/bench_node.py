"""A node that the benchmark starts, connects drivers to and ends.

What    Bench: the folder, the scale and the sizes of one run. StartedNode: `zray-node start` in
        that folder, and what it says of itself.
Caller  every question.
Never   touches a node that somebody else started.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zray
from scripts.bench.measuring import WAIT_S, wait_until
from zray import state

COMMAND = str(Path(sys.executable).with_name("zray-node"))
NUM_CPUS = 2
"""Every node has two CPUs, so that a curve means the same on any machine with two cores or more."""


@dataclass(frozen=True)
class Bench:
    """One run of one question.

    Args:
        folder: an empty folder, removed after the run; a node may live in its "node".
        quick: small sizes and short times: shows that the program runs, not how fast.
    """

    folder: Path
    quick: bool

    def sizes(self, *full: int, quick: int) -> list[int]:
        """Return the sizes to measure: all, or in a quick run those up to ``quick``."""
        return [size for size in full if not self.quick or size <= quick]

    def seconds(self, full: float) -> float:
        """Return how long to repeat something."""
        return full / 5 if self.quick else full

    @property
    def address(self) -> str:
        """Return the directory of the node."""
        return str(self.folder / "node")


@contextmanager
def started_node(
    bench: Bench, *, connect: bool = True, store_bytes: int | None = None
) -> Iterator[int]:
    """Start a node, connect this process as a driver, yield the node's pid; end both after.

    Args:
        bench: says where.
        connect: False leaves this process without a driver.
        store_bytes: shared memory for objects; None: as much as a node takes by itself.
    """
    command = [COMMAND, "start", "--dir", bench.address, "--num-cpus", str(NUM_CPUS), "--json"]
    if store_bytes is not None:
        command += ["--object-store-memory", str(store_bytes)]
    # Standard error is inherited: the node itself would hold a pipe open for ever.
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    if told.returncode != 0:
        raise RuntimeError(f"zray-node start failed: {told.stdout}")
    try:
        if connect:
            zray.init(address=bench.address, log_to_driver=False)
            wait_until(lambda: idle_workers() >= NUM_CPUS, "the first workers")
        yield int(json.loads(told.stdout)["pid"])
    finally:
        zray.shutdown()
        complaint = stop_node(bench.folder)
        if complaint:
            raise RuntimeError(complaint)


def stop_node(folder: Path) -> str:
    """End the node of this folder, if it runs, with all its processes.

    Returns what `zray-node stop` complained of before force was used; "" as it should be.
    """
    if not (folder / "node").exists():
        return ""
    command = [COMMAND, "stop", "--dir", str(folder / "node"), "--json"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    if told.returncode == 0:
        return ""
    subprocess.run([*command, "--force"], stdout=subprocess.DEVNULL, timeout=WAIT_S, check=False)
    return f"zray-node stop failed: {told.stdout}"


def scheduler() -> dict[str, Any]:
    """Return the counts of the node's scheduler."""
    counts: dict[str, Any] = state.ask("status")["scheduler"]
    return counts


def store() -> dict[str, int]:
    """Return the sizes of the node's object store, in bytes."""
    sizes: dict[str, int] = state.ask("status")["store"]
    return sizes


def queued_tasks() -> int:
    """Return how many tasks wait at the node."""
    return int(scheduler()["queued_tasks"])


def tasks_at_node() -> int:
    """Return how many tasks wait at the node or at its workers, or run."""
    return sum(int(row["count"]) for row in state.ask("tasks"))


def idle_workers() -> int:
    """Return how many workers wait for work."""
    return int(scheduler()["workers"].get("idle", 0))


def living_actors() -> int:
    """Return how many actors there are, those included that start."""
    return sum(state.ask("status")["actor_counts"].values())


def worker_pids() -> list[int]:
    """Return the processes of all workers."""
    return [int(row["pid"]) for row in state.ask("workers") if row["pid"]]
