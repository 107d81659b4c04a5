"""A node that leaves, and what becomes of what it did and had.

What    zray-node drain and Cluster.remove_node(): running tasks end, actors with restarts start
        again elsewhere, sole copies stay to be had; what cannot move is named, and keeps the node.
Caller  pytest.
Never   sleeps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import zray
from tests.multinode.objects import MB, asked, at, ones
from tests.waiting import wait_until
from zray.testing import Cluster, TestNode
from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@zray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=-1)
class Where:
    def node(self) -> str:
        return zray.get_runtime_context().get_node_id()


@zray.remote(num_cpus=0.1)
class Bound:
    def node(self) -> str:
        return zray.get_runtime_context().get_node_id()


@zray.remote(num_cpus=0.1)
def waits_for(path: str) -> str:
    while not Path(path).exists():
        pass
    return zray.get_runtime_context().get_node_id()


def as_class(decorated: Any) -> Any:
    return decorated


def drain(here: TestNode, node: TestNode, *more: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "zray.cli", "drain", node.node_id, "--dir", here.directory]
    done = subprocess.run(
        [*command, "--json", *more], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def is_leaving(node: TestNode) -> bool:
    (row,) = [row for row in asked(node, "nodes") if row["NodeID"] == node.node_id]
    return row["State"] == "DRAINING"


def test_tasks_end_actors_move_and_sole_copies_stay(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1, resources={"second": 1})
    third = cluster.add_node(num_cpus=1)
    with zray.init(cluster.address):
        made = at(ones, "second").remote(8 * MB)
        inside = at(holder, "second").remote([zray.put(np.ones(4 * MB, dtype=np.uint8))])
        moves = (
            as_class(Where)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(second.node_id, soft=True))
            .remote()
        )
        assert zray.get(moves.node.remote(), timeout=30) == second.node_id
        zray.wait([made, inside], num_returns=2, timeout=30, fetch_local=False)
        running = at(waits_for, "second").remote(str(tmp_path / "end"))
        wait_until(lambda: len(asked(second, "workers")) >= 2, 10, what="the task to run there")
        leaving = subprocess.Popen(
            [sys.executable, "-m", "zray.cli", "drain", second.node_id, "--dir", first.directory]
        )
        wait_until(lambda: is_leaving(second), 10, what="the node to be leaving")
        (tmp_path / "end").touch()
        assert zray.get(running, timeout=30) == second.node_id
        assert leaving.wait(30) == 0
        assert second._process.wait(10) == 0
        assert zray.get(moves.node.remote(), timeout=30) in (first.node_id, third.node_id)
        assert zray.get(made, timeout=30).sum() == 8 * MB
        inner, _array = zray.get(inside, timeout=30)
        assert zray.get(inner, timeout=30).sum() == 4 * MB


@zray.remote(num_cpus=0.1)
def holder(refs: list[Any]) -> list[Any]:
    return [*refs, np.ones(MB)]


def test_what_cannot_move_is_named_and_the_node_stays_and_works_on(cluster: Cluster) -> None:
    first = cluster.add_node(num_cpus=0)
    second = cluster.add_node(num_cpus=2)
    with zray.init(cluster.address):
        bound = as_class(Bound).remote()
        assert zray.get(bound.node.remote(), timeout=30) == second.node_id
        code, told = drain(first, second, "--timeout", "1.5")
        assert code == 1
        assert told["gone"] is False
        assert told["waited_for"] == ["actors of others without restarts: 1"]
        assert not is_leaving(second)
        assert zray.get(bound.node.remote(), timeout=30) == second.node_id
        assert zray.get(at_any.remote(), timeout=30) == second.node_id
        code, told = drain(first, second, "--timeout", "0.5", "--force")
        assert (code, told["gone"]) == (0, True)


@zray.remote(num_cpus=1)
def at_any() -> str:
    return zray.get_runtime_context().get_node_id()


def test_a_node_that_leaves_is_given_nothing_more(cluster: Cluster) -> None:
    first = cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)
    with zray.init(cluster.address):
        with _Connected(second):
            leaving = subprocess.Popen(
                [sys.executable, "-m", "zray.cli", "drain", "self", "--dir", second.directory]
            )
            wait_until(lambda: is_leaving(second), 10, what="the node to be leaving")
            found = zray.get([at_any.remote() for _ in range(20)], timeout=60)
            assert set(found) == {first.node_id}
        assert leaving.wait(30) == 0


class _Connected:
    """A driver of a node, in a process of its own: the node waits for it."""

    def __init__(self, node: TestNode) -> None:
        program = f"import zray, sys; zray.init({node.directory!r}); print(1, flush=True); input()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate(b"\n", timeout=30)
