"""The load table through the GCS: who hears of whom, and what happens while nobody does.

What    Nodes whose room changes, looked at from other nodes; a GCS process that stands still or is
        killed while tasks look for a place.
Caller  pytest.
Never   sleeps but inside tasks: what changes by itself is waited for.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.multinode.gcs_processes import gcs_pid
from tests.multinode.test_gcs import kill_gcs
from tests.waiting import wait_until
from zray.observer import Observer
from zray.testing import Cluster, TestNode

POLL_S = 0.01


@zray.remote(num_cpus=1)
def waits(folder: str) -> str:
    """Wait for leave to end; returns the node it ran on."""
    while not Path(folder, "go").exists():
        time.sleep(POLL_S)
    return str(zray.get_runtime_context().get_node_id())


def free_cpus(seen_by: TestNode, node: TestNode) -> float:
    """Return the free CPUs of a node as another one has them in its load table."""
    with Observer(seen_by.directory) as observer:
        rows: list[dict[str, Any]] = observer.ask("nodes")
    (row,) = [row for row in rows if row["NodeID"] == node.node_id]
    return float(row["Available"].get("CPU", 0.0))


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    for place in ("head", "second", "third"):
        cluster.add_node(num_cpus=2, resources={place: 2})
    zray.init(cluster.address)
    return cluster


def test_each_node_hears_of_room_that_is_taken_and_free_again(
    three: Cluster, tmp_path: Path
) -> None:
    _head, second, third = three.nodes
    task = waits.options(resources={"second": 1}).remote(str(tmp_path))
    for seen_by in three.nodes:
        wait_until(lambda seen_by=seen_by: free_cpus(seen_by, second) == 1.0)  # type: ignore[misc]
    (tmp_path / "go").touch()
    assert zray.get(task, timeout=20) == second.node_id
    for seen_by in three.nodes:
        wait_until(lambda seen_by=seen_by: free_cpus(seen_by, second) == 2.0)  # type: ignore[misc]
    assert free_cpus(second, third) == 2.0


def test_a_new_gcs_process_knows_the_rows_again(three: Cluster, tmp_path: Path) -> None:
    head, second, third = three.nodes
    before = kill_gcs(head)
    wait_until(lambda: gcs_pid(head) != before, 20)
    task = waits.options(resources={"third": 1}).remote(str(tmp_path))
    wait_until(lambda: free_cpus(second, third) == 1.0, 20)
    (tmp_path / "go").touch()
    assert zray.get(task, timeout=20) == third.node_id


def test_work_finds_its_places_while_the_gcs_stands_still(three: Cluster, tmp_path: Path) -> None:
    """The table is as it was: who asks in vain is told how it is there now."""
    assert zray.get(waits_not.remote(), timeout=20)
    os.kill(gcs_pid(three.nodes[0]), signal.SIGSTOP)
    try:
        for _round in range(3):
            refs = [waits.remote(str(tmp_path)) for _ in range(6)]
            (tmp_path / "go").touch()
            assert len(zray.get(refs, timeout=30)) == 6
            (tmp_path / "go").unlink()
        refs = [waits.remote(str(tmp_path)) for _ in range(6)]
        # All six at once: each node has found out that the others have room again.
        wait_until(
            lambda: all(free_here(node) == 0.0 for node in three.nodes),
            20,
            what="work on every node",
        )
        (tmp_path / "go").touch()
        assert {*zray.get(refs, timeout=30)} == {node.node_id for node in three.nodes}
    finally:
        os.kill(gcs_pid(three.nodes[0]), signal.SIGCONT)


def test_who_is_refused_learns_what_is_free_there_without_the_gcs(
    three: Cluster, tmp_path: Path
) -> None:
    head, *others = three.nodes
    assert zray.get(waits_not.remote(), timeout=20)
    os.kill(gcs_pid(head), signal.SIGSTOP)
    try:
        refs = [waits.remote(str(tmp_path)) for _ in range(7)]
        for node in others:
            wait_until(lambda node=node: free_here(node) == 0.0, 20)  # type: ignore[misc]
            # No row of it has been published: it said so when it was asked for one more worker.
            wait_until(lambda node=node: free_cpus(head, node) == 0.0, 20)  # type: ignore[misc]
        (tmp_path / "go").touch()
        assert len(zray.get(refs, timeout=30)) == 7
    finally:
        os.kill(gcs_pid(head), signal.SIGCONT)


@zray.remote(num_cpus=1)
def waits_not() -> bool:
    return True


def free_here(node: TestNode) -> float:
    return free_cpus(node, node)
