"""What tests of objects between nodes run on the nodes, and ask them.

What    Tasks and actors that make, read, keep and hand on large arrays; at() sends them to a node;
        received(), large_objects() and await_nothing_left() look at nodes from outside.
Caller  tests/multinode/test_objects.py, test_objects_lost.py.
Never   sleeps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import zray
from tests.waiting import wait_until
from zray.observer import Observer
from zray.testing import Cluster, TestNode

MB = 1 << 20
FREED_S = 1.0
"""Objects are gone everywhere so long after the last reference."""


@zray.remote(num_cpus=0.1)
def total(array: np.ndarray[Any, Any]) -> float:
    return float(array.sum())


@zray.remote(num_cpus=0.1)
def ones(count: int) -> np.ndarray[Any, Any]:
    return np.ones(count, dtype=np.uint8)


@zray.remote(num_cpus=0.1)
class Keeper:
    """Keeps references that it is handed inside of lists."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any]) -> int:
        self.kept = refs
        return len(refs)

    def hand_on(self, other: Any) -> int:
        """Hand all on to another one, and forget them."""
        count: int = zray.get(other.keep.remote(self.kept))
        self.kept = []
        return count

    def total(self) -> float:
        return float(sum(zray.get(ref).sum() for ref in self.kept))


def at(thing: Any, name: str) -> Any:
    """Return a task or actor class bound to the node with this resource."""
    return thing.options(resources={name: 0.1})


def asked(node: TestNode, what: str) -> Any:
    observer = Observer(node.directory)
    try:
        return observer.ask(what)
    finally:
        observer.close()


def received(node: TestNode) -> int:
    """Return how many bytes a node has pulled so far."""
    return int(asked(node, "status")["cluster"]["transfers"]["received_bytes"])


def large_objects(cluster: Cluster) -> list[Any]:
    """Return what any node knows of, of objects that are not inline."""
    return [
        (node.node_id, row)
        for node in cluster.nodes
        for row in asked(node, "objects")
        if row["bytes"]
    ]


def await_nothing_left(cluster: Cluster) -> None:
    wait_until(lambda: not large_objects(cluster), FREED_S, what="objects to be freed everywhere")


@zray.remote(num_cpus=0.1)
class Maker:
    def make(self, count: int) -> list[Any]:
        return [zray.put(np.ones(count, dtype=np.uint8))]
