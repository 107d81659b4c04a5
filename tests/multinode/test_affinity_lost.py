"""Tasks and actors that may run on one node only, and that node dies.

What    What runs there, what is queued for it and what is submitted after it: a typed error that
        names the node, and nothing that waits for ever. Soft affinity goes elsewhere.
Caller  pytest.
Never   sleeps but inside tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zray
from tests.multinode.test_crashes import Resident, begun, here, marks_and_waits
from tests.waiting import wait_until
from zray.errors import (
    ActorDiedError,
    ActorUnschedulableError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from zray.testing import Cluster, TestNode
from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@pytest.fixture
def victim(cluster: Cluster) -> TestNode:
    """Return the second of two nodes; the driver is at the first one."""
    cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=2)
    zray.init(cluster.address)
    return second


def at(task: Any, node: TestNode, *, soft: bool = False, **options: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=soft)
    return task.options(scheduling_strategy=strategy, **options)


@pytest.mark.parametrize("way", ["killed", "stopped in order"])
def test_what_runs_and_waits_there_fails_with_the_nodes_name(
    cluster: Cluster, victim: TestNode, tmp_path: Path, way: str
) -> None:
    name = victim.node_id
    running = [at(marks_and_waits, victim, max_retries=0).remote(str(tmp_path), 0)]
    again = [at(marks_and_waits, victim, max_retries=3).remote(str(tmp_path), 1)]
    wait_until(lambda: begun(tmp_path) == {0, 1}, 20)
    queued = [at(marks_and_waits, victim).remote(str(tmp_path), 2 + item) for item in range(5)]
    dependent = at(here, victim).remote()
    zray.get(here.remote(), timeout=20)  # What came before it is at the node.
    assert begun(tmp_path) == {0, 1}
    if way == "killed":
        cluster.kill_node(victim)
    else:
        victim._process.terminate()
    for ref in running:
        with pytest.raises(WorkerCrashedError, match=name):
            zray.get(ref, timeout=30)
    for ref in (*again, *queued, dependent):
        with pytest.raises(TaskUnschedulableError, match=name):
            zray.get(ref, timeout=30)
    with pytest.raises(TaskUnschedulableError, match=name):
        zray.get(at(here, victim).remote(), timeout=30)
    assert zray.get(at(here, victim, soft=True).remote(), timeout=30) != name
    assert begun(tmp_path) == {0, 1}


def test_actors_that_live_and_wait_there_die_with_the_nodes_name(
    cluster: Cluster, victim: TestNode
) -> None:
    name = victim.node_id
    lives = at(Resident, victim, num_cpus=1).remote()
    restarts = at(Resident, victim, num_cpus=1, max_restarts=3, max_task_retries=3).remote()
    assert zray.get([lives.node.remote(), restarts.node.remote()], timeout=30) == [name, name]
    waits = at(Resident, victim, num_cpus=1).remote()
    call = waits.node.remote()
    zray.get(here.remote(), timeout=20)
    cluster.kill_node(victim)
    with pytest.raises(ActorDiedError, match=name):
        zray.get(lives.node.remote(), timeout=30)
    late = at(Resident, victim).remote()
    for ref in (restarts.node.remote(), call, late.node.remote()):
        with pytest.raises((ActorDiedError, ActorUnschedulableError), match=name):
            zray.get(ref, timeout=30)


def test_soft_affinity_to_a_node_that_dies_goes_on_elsewhere(
    cluster: Cluster, victim: TestNode, tmp_path: Path
) -> None:
    refs = [at(marks_and_waits, victim, soft=True).remote(str(tmp_path), item) for item in range(6)]
    wait_until(lambda: len(begun(tmp_path)) >= 2, 20)
    name = victim.node_id
    cluster.kill_node(victim)
    (tmp_path / "go").touch()
    assert name not in zray.get(refs, timeout=60)
