"""Detection: how long until the loss of a node is known to who waits for it?

What    A call of an actor on another node is under way when that node is killed, or stopped: until
        the call has its error, and until the node is in no list any more.
Caller  run.py.
Never   measures what comes after: recovery.py does, for workers.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve
from zray import errors
from zray.testing import Cluster, TestNode

TITLE = "Loss of a node"
ABOUT = """A process that is killed leaves connections that end, and the others hear of it at once.
One that is stopped says nothing; the GCS declares it dead at the end of its lease, two seconds
after its last beat."""
WAYS = {"killed (SIGKILL)": signal.SIGKILL, "stopped (SIGSTOP)": signal.SIGSTOP}


@zray.remote(num_cpus=0)
class Sleeper(zray.Actor):
    """Holds a call for as long as its node lives."""

    def pid(self) -> int:
        return os.getpid()

    def hold(self) -> None:
        time.sleep(measuring.WAIT_S)


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    curve = Curve(
        "lost",
        "A node that is lost while it is called",
        note="From the signal to the error of the call, and until zray.nodes() is without it.",
    )
    with Cluster() as cluster:
        cluster.add_node(num_cpus=1)
        zray.init(address=cluster.address, log_to_driver=False)
        for name, signum in WAYS.items():
            times = 2 if bench.quick else 10 if signum == signal.SIGKILL else 4
            found = [_lost_s(cluster, signum, f"{signum}-{turn}") for turn in range(times)]
            told = [each[0] * 1e3 for each in found]
            curve.add(
                {
                    "what": name,
                    "median ms": measuring.median(told),
                    "longest ms": max(told),
                    "out of the list, longest ms": max(each[1] for each in found) * 1e3,
                }
            )
    return [curve]


def _lost_s(cluster: Cluster, signum: int, name: str) -> tuple[float, float]:
    """Return the seconds until the caller and the list know."""
    node = cluster.add_node(num_cpus=1, resources={name: 1})
    actor: Any = Sleeper.options(resources={name: 1}).remote()
    zray.get(actor.pid.remote())
    call = actor.hold.remote()
    measuring.wait_until(lambda: _is_listed(node), "the node in the list")
    time.sleep(0.3)  # Beats and load rows are on their way as in any other second.
    os.kill(node.pid, signum)
    started = time.perf_counter()
    try:
        zray.get(call, timeout=measuring.WAIT_S)
    except (errors.ActorDiedError, errors.NodeDiedError):
        told_s = time.perf_counter() - started
    else:
        raise RuntimeError("the call has returned, though its node is lost")
    measuring.wait_until(lambda: not _is_listed(node), "a list without the node")
    listed_s = time.perf_counter() - started
    if signum == signal.SIGSTOP:
        cluster.remove_node(node, graceful=False)
    return told_s, listed_s


def _is_listed(node: TestNode) -> bool:
    return any(row["NodeID"] == node.node_id for row in zray.nodes())
