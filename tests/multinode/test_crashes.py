"""Nodes, workers and drivers that die while one works for the other.

What    kill -9 of a node that has lent its workers, of one that has borrowed some, of a worker
        that is lent; a node that is stopped; a driver that leaves. Tasks run again or fail as
        their options say, actors start elsewhere, and nobody keeps what is nobody's.
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
from tests.waiting import wait_until
from zray.errors import ActorDiedError, ClusterError, WorkerCrashedError
from zray.observer import Observer
from zray.testing import Cluster, TestNode

POLL_S = 0.01


@zray.remote
def marks_and_waits(folder: str, item: int) -> str:
    """Say that the task has begun, then wait for leave to end."""
    Path(folder, f"{item}.{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(POLL_S)
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
def here() -> str:
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
class Resident:
    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())

    def pid(self) -> int:
        return os.getpid()


def begun(folder: Path) -> set[int]:
    return {int(path.name.split(".")[0]) for path in folder.iterdir() if path.name != "go"}


def status(node: TestNode) -> dict[str, Any]:
    with Observer(node.directory) as observer:
        found: dict[str, Any] = observer.ask("status")
    return found


def is_idle(node: TestNode) -> bool:
    resources = status(node)["resources"]
    return bool(resources["available"] == resources["total"])


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Return a cluster of three nodes; the driver is at the first one."""
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=2, resources={"far": 2})
    cluster.add_node(num_cpus=2, resources={"far": 2})
    zray.init(cluster.address)
    return cluster


def test_tasks_of_a_node_that_is_killed_run_again_elsewhere(three: Cluster, tmp_path: Path) -> None:
    refs = [marks_and_waits.remote(str(tmp_path), item) for item in range(5)]
    wait_until(lambda: begun(tmp_path) == set(range(5)), 20)
    victim = three.nodes[1]
    three.kill_node(victim)
    (tmp_path / "go").touch()
    where = zray.get(refs, timeout=30)
    assert victim.node_id not in where
    assert len(where) == 5
    wait_until(lambda: all(map(is_idle, three.nodes)))


def test_a_task_that_may_not_run_twice_fails_with_its_node(three: Cluster, tmp_path: Path) -> None:
    task = marks_and_waits.options(resources={"far": 1}, max_retries=0)
    refs = [task.remote(str(tmp_path), item) for item in range(4)]
    wait_until(lambda: begun(tmp_path) == set(range(4)), 20)
    three.kill_node(three.nodes[1])
    (tmp_path / "go").touch()
    done, _ = zray.wait(refs, num_returns=4, timeout=30)
    assert len(done) == 4
    survived, lost = 0, 0
    for ref in refs:
        try:
            zray.get(ref)
            survived += 1
        except WorkerCrashedError:
            lost += 1
    assert (survived, lost) == (2, 2)


def test_a_worker_that_is_lent_is_killed_and_its_task_runs_again(
    three: Cluster, tmp_path: Path
) -> None:
    ref = marks_and_waits.options(resources={"far": 1}).remote(str(tmp_path), 0)
    wait_until(lambda: begun(tmp_path) == {0}, 20)
    (mark,) = tmp_path.iterdir()
    os.kill(int(mark.name.split(".")[1]), signal.SIGKILL)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 20)
    (tmp_path / "go").touch()
    assert zray.get(ref, timeout=20) != three.nodes[0].node_id


def test_a_node_that_had_borrowed_workers_is_killed_and_they_are_free_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    borrower = cluster.add_node(num_cpus=0)
    lender = cluster.add_node(num_cpus=2, resources={"far": 2})
    zray.init(borrower.directory)
    task = marks_and_waits.options(resources={"far": 1})
    refs = [task.remote(str(tmp_path), item) for item in range(2)]
    actor = Resident.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    wait_until(lambda: begun(tmp_path) == {0, 1}, 20)
    zray.get(actor.node.remote(), timeout=20)
    assert not is_idle(lender)
    cluster.kill_node(borrower)
    wait_until(lambda: is_idle(lender), 20)
    with pytest.raises(ClusterError):
        zray.get(refs, timeout=20)
    zray.shutdown()
    # What is free there serves another driver, from another node.
    with zray.init(cluster.address):
        refs = [here.options(resources={"far": 1}).remote() for _ in range(4)]
        assert set(zray.get(refs, timeout=20)) == {lender.node_id}


def test_a_node_that_is_stopped_does_not_hold_up_what_others_can_do(
    three: Cluster, tmp_path: Path
) -> None:
    refs = [marks_and_waits.remote(str(tmp_path), item) for item in range(5)]
    wait_until(lambda: begun(tmp_path) == set(range(5)), 20)
    stopped = three.nodes[2]
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        # What is asked for now goes to the nodes that answer, however long the other one sleeps.
        (tmp_path / "go").touch()
        began = time.monotonic()
        where = zray.get(refs, timeout=30)
        assert time.monotonic() - began < 15
        assert len(where) == 5
        found = zray.get([here.remote() for _ in range(20)], timeout=20)
        assert stopped.node_id not in found
    finally:
        os.kill(stopped.pid, signal.SIGCONT)


def test_an_actor_starts_again_on_another_node_when_its_own_dies(three: Cluster) -> None:
    actor = Resident.options(  # type: ignore[attr-defined]
        resources={"far": 1}, max_restarts=2, max_task_retries=5
    ).remote()
    first = zray.get(actor.node.remote(), timeout=20)
    victim = next(node for node in three.nodes if node.node_id == first)
    three.kill_node(victim)
    second = zray.get(actor.node.remote(), timeout=30)
    assert second in {node.node_id for node in three.nodes}
    assert second != first


def test_an_actor_that_may_not_start_again_dies_with_its_node(three: Cluster) -> None:
    actor = Resident.options(resources={"far": 1}).remote()  # type: ignore[attr-defined]
    first = zray.get(actor.node.remote(), timeout=20)
    three.kill_node(next(node for node in three.nodes if node.node_id == first))
    with pytest.raises(ActorDiedError, match="node"):
        zray.get(actor.node.remote(), timeout=30)


def test_what_a_lost_task_had_submitted_elsewhere_ends_with_it(
    three: Cluster, tmp_path: Path
) -> None:
    folder = str(tmp_path)
    third = three.nodes[2]

    @zray.remote(num_cpus=1, resources={"far": 1}, max_retries=0)
    def parent(node: str) -> None:
        from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        zray.get(marks_and_waits.options(scheduling_strategy=there).remote(folder, 0))

    from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    second = NodeAffinitySchedulingStrategy(three.nodes[1].node_id, soft=False)
    ref = parent.options(scheduling_strategy=second).remote(third.node_id)
    wait_until(lambda: begun(tmp_path) == {0}, 20)
    three.kill_node(three.nodes[1])
    with pytest.raises(WorkerCrashedError):
        zray.get(ref, timeout=20)
    wait_until(lambda: is_idle(third), 20)


def test_nothing_of_a_driver_that_is_gone_goes_on_elsewhere(three: Cluster, tmp_path: Path) -> None:
    for item in range(4):
        marks_and_waits.options(resources={"far": 1}).remote(str(tmp_path), item)
    actor = Resident.options(resources={"far": 0.0001}).remote()  # type: ignore[attr-defined]
    del actor
    wait_until(lambda: len(begun(tmp_path)) >= 3, 20)
    zray.shutdown()
    wait_until(lambda: all(map(is_idle, three.nodes)), 20)


def test_idle_workers_of_a_job_end_with_it_on_every_node(three: Cluster) -> None:
    zray.get([here.options(resources={"far": 1}).remote() for _ in range(8)], timeout=20)

    def served() -> int:
        count = 0
        for node in three.nodes:
            with Observer(node.directory) as observer:
                count += sum(bool(row.get("job")) for row in observer.ask("workers"))
        return count

    zray.shutdown()
    wait_until(lambda: served() == 0, 20)
