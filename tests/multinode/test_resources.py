"""What all nodes have, what of it is free, and what is refused because none could ever run it.

What    nodes, cluster_resources, available_resources; requests that only another node can meet, and
        that no node can meet. What changes with the nodes is in test_resources_change.py.
Caller  pytest.
Never   sleeps: what changes by itself is waited for.
"""

from __future__ import annotations

from typing import Any

import pytest

import zray
from tests.waiting import wait_until
from zray.errors import TaskUnschedulableError, UnknownResourceError
from zray.testing import Cluster


@zray.remote
def where_it_runs() -> str:
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
class Holder:
    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())


HOLDER: Any = Holder  # As the decorator leaves it: type checkers see the plain class.


def test_nodes_has_a_row_for_each(two_nodes: Cluster) -> None:
    rows = zray.nodes()
    assert [row["NodeID"] for row in rows] == [node.node_id for node in two_nodes.nodes]
    assert [row["Directory"] for row in rows] == [node.directory for node in two_nodes.nodes]
    assert [row["Labels"] for row in rows] == [{}, {"zone": "b"}]
    assert [row["Resources"]["CPU"] for row in rows] == [1.0, 2.0]
    for row, node in zip(rows, two_nodes.nodes, strict=True):
        assert f"{row['NodeManagerAddress']}:{row['NodeManagerPort']}" == node.address


def test_resources_are_the_sums_over_all_nodes(two_nodes: Cluster) -> None:
    totals = zray.cluster_resources()
    assert totals["CPU"] == 3.0
    assert totals["far"] == 2.0
    assert totals["memory"] == sum(row["Resources"]["memory"] for row in zray.nodes())
    wait_until(lambda: zray.available_resources() == totals)


def test_what_an_actor_holds_on_another_node_is_not_available(two_nodes: Cluster) -> None:
    actor: Any = HOLDER.options(resources={"far": 2}, num_cpus=1).remote()
    assert zray.get(actor.node.remote(), timeout=20) == two_nodes.nodes[1].node_id
    wait_until(lambda: "far" not in zray.available_resources())
    zray.kill(actor)
    wait_until(lambda: zray.available_resources().get("far") == 2.0)


def test_a_task_larger_than_this_node_runs_on_the_other(two_nodes: Cluster) -> None:
    ref = where_it_runs.options(num_cpus=2).remote()
    assert zray.get(ref, timeout=20) == two_nodes.nodes[1].node_id


CASES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_cpus": 3}, TaskUnschedulableError, "the largest of 2 nodes has 2"),
    ({"resources": {"far": 3}}, TaskUnschedulableError, "3 far"),
    ({"resources": {"fra": 1}}, UnknownResourceError, "'fra', which no node has"),
]


@pytest.mark.parametrize(("options", "error", "said"), CASES)
def test_what_no_node_could_ever_run_is_refused_at_once(
    two_nodes: Cluster, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        where_it_runs.options(**options).remote()


@zray.remote(num_cpus=0)
def ask_for(name: str) -> str:
    return str(zray.get(where_it_runs.options(resources={name: 1}).remote(), timeout=20))


def test_a_task_may_ask_for_what_another_node_has(two_nodes: Cluster) -> None:
    assert zray.get(ask_for.remote("far"), timeout=30) == two_nodes.nodes[1].node_id
    with pytest.raises(UnknownResourceError):
        zray.get(ask_for.remote("fra"), timeout=30)
