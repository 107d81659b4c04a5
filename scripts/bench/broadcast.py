"""Broadcast: what does it take to bring one large object to eight nodes?

What    A driver puts 256 MiB, and an actor on each of eight other nodes gets it at the same time:
        seconds until the last has it, next to one transfer of the same size, and how often the
        node that has put it has sent it.
Caller  run.py.
Never   looks at the value: what is measured is the way.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve
from zray.observer import Observer
from zray.testing import Cluster, TestNode

TITLE = "Broadcast"
ABOUT = """Who has a part of an object serves it, so that eight receivers form a pipeline and its
origin sends it about once. With a core for each end the last receiver would have it hardly later
than the first. Each transfer keeps two cores busy, its sender's and its receiver's; on fewer cores
the ideal is what all of them together cost, from one transfer of the same run."""
NODES = 8
MIB = 1 << 20
TURNS = 5


@zray.remote(num_cpus=0)
class Receiver(zray.Actor):
    """Gets what it is told of."""

    def get(self, box: list[Any]) -> float:
        """Return the seconds since 1970 when the object was here."""
        value = zray.get(box[0])
        assert value[0] == value[-1] == 1
        return time.time()


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    nbytes = (32 if bench.quick else 256) * MIB
    curve = Curve(
        "broadcast",
        f"{nbytes // MIB} MiB to {NODES} nodes",
        note="Medians of turns. Copies: bytes that the origin has sent, over those of the object. "
        "Ratio: to the ideal.",
    )
    with Cluster() as cluster:
        origin = cluster.add_node(num_cpus=0, object_store_memory=3 * nbytes)
        for number in range(NODES):
            cluster.add_node(
                num_cpus=0, resources={f"r{number}": 1}, object_store_memory=3 * nbytes
            )
        zray.init(address=origin.directory, log_to_driver=False)
        receivers = [
            Receiver.options(resources={f"r{number}": 1}).remote() for number in range(NODES)
        ]
        # Every way has been used before: connections are made, code is there.
        _spread(receivers, nbytes // 8, origin)
        for one in receivers:
            _spread([one], MIB, origin)
        found = {
            count: [_spread(receivers[-count:], nbytes, origin) for _ in range(TURNS)]
            for count in (1, NODES)
        }
        one_s = measuring.median(seconds for seconds, _copies in found[1])
        for count, samples in found.items():
            seconds = measuring.median(seconds for seconds, _copies in samples)
            ideal_s = one_s * max(1.0, 2 * count / (os.cpu_count() or 1) if count > 1 else 1.0)
            curve.add(
                {
                    "nodes": count,
                    "s": seconds,
                    "ideal s": ideal_s,
                    "ratio": seconds / ideal_s,
                    "GB/s in all": count * nbytes / seconds / 1e9,
                    "copies": measuring.median(copies for _seconds, copies in samples),
                    "most copies": max(copies for _seconds, copies in samples),
                }
            )
    return [curve]


def _spread(receivers: list[Any], nbytes: int, origin: TestNode) -> tuple[float, float]:
    """Return how long it takes, and how many copies the origin has sent."""
    ref = zray.put(np.ones(nbytes, np.uint8))
    before = _sent_bytes(origin)
    started = time.perf_counter()
    zray.get([each.get.remote([ref]) for each in receivers], timeout=measuring.WAIT_S)
    seconds = time.perf_counter() - started
    copies = (_sent_bytes(origin) - before) / nbytes
    del ref
    measuring.wait_until(lambda: not _stored_bytes(origin), "room after a broadcast")
    return seconds, copies


def _sent_bytes(node: TestNode) -> int:
    with Observer(node.directory) as observer:
        return int(observer.ask("status")["cluster"]["transfers"]["sent_bytes"])


def _stored_bytes(node: TestNode) -> int:
    with Observer(node.directory) as observer:
        return int(observer.ask("status")["object_counts"]["stored_bytes"])
