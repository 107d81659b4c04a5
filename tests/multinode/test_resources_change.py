"""What can run when nodes come and go, and what is said of what can not.

What    Requests that need one node with all of it, that can be met once a node has joined, that
        can be met no more after one has died.
Caller  pytest.
Never   sleeps: what changes by itself is waited for.
"""

from __future__ import annotations

from typing import Any

import pytest

import zray
from tests.waiting import wait_until
from zray.errors import ActorUnschedulableError, TaskUnschedulableError, UnknownResourceError
from zray.state import ask
from zray.testing import Cluster


@zray.remote
def where_it_runs() -> str:
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
class Holder:
    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())


HOLDER: Any = Holder  # As the decorator leaves it: type checkers see the plain class.


def test_all_of_a_request_must_be_on_one_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, resources={"a": 1})
    cluster.add_node(num_cpus=1, resources={"b": 1})
    with zray.init(cluster.address):
        with pytest.raises(TaskUnschedulableError, match="none of 2 nodes has all of it"):
            where_it_runs.options(resources={"a": 1, "b": 1}).remote()
        with pytest.raises(ActorUnschedulableError, match="none of 2 nodes has all of it"):
            HOLDER.options(resources={"a": 1, "b": 1}).remote()


def test_what_was_refused_runs_once_a_node_with_it_has_joined(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    with zray.init(cluster.address):
        task = where_it_runs.options(resources={"late": 1})
        with pytest.raises(UnknownResourceError):
            task.remote()
        late = cluster.add_node(num_cpus=1, resources={"late": 1})
        assert zray.get(task.remote(), timeout=20) == late.node_id


def test_status_says_when_what_waits_can_run_nowhere_any_more(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=1, resources={"far": 1})
    with zray.init(cluster.address):
        actor: Any = HOLDER.options(resources={"far": 1}).remote()
        zray.get(actor.node.remote(), timeout=20)
        waiting = where_it_runs.options(resources={"far": 1}).remote()
        assert not any("no node has" in problem for problem in ask("status")["problems"])
        cluster.kill_node(other)
        wait_until(lambda: any("no node has" in problem for problem in ask("status")["problems"]))
        del waiting
