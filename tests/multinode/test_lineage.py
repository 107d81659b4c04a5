"""Copies of lineage on other nodes: there while the job runs, sealed with a node's death.

What    Real nodes, one of them killed; what each keeps for the others is read from their status.
Caller  pytest.
Never   sleeps.
"""

from __future__ import annotations

from typing import Any

import zray
from tests.multinode.objects import asked, at
from tests.waiting import wait_until
from zray.testing import Cluster, TestNode


@zray.remote(num_cpus=0.1)
def leaf(number: int) -> int:
    return number


@zray.remote(num_cpus=0.1)
class Submitter:
    def run(self, count: int) -> int:
        return sum(zray.get([leaf.remote(n) for n in range(count)], timeout=60))


def lineage(node: TestNode) -> dict[str, Any]:
    found: dict[str, Any] = asked(node, "status")["cluster"]["lineage"]
    return found


def copies_of(node: TestNode, keeper: TestNode) -> list[dict[str, Any]]:
    return [row for row in lineage(keeper)["copies"] if row["node"] == node.node_id]


def is_copied(node: TestNode, keeper: TestNode) -> bool:
    rows = copies_of(node, keeper)
    written = asked(node, "status")["gcs"]["ledger_records"]
    return bool(rows) and sum(row["records"] for row in rows) == written > 0


def test_another_node_keeps_what_a_job_submits_until_it_ends(cluster: Cluster) -> None:
    first, second = cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=1)
    with zray.init(cluster.address):
        assert sum(zray.get([leaf.remote(n) for n in range(500)], timeout=60)) == 124750
        wait_until(lambda: is_copied(first, second), 10, what="a copy of all that was submitted")
        assert lineage(first)["kept_by"] == [second.node_id]
        (row,) = copies_of(first, second)
        assert not row["sealed"]
    wait_until(lambda: not copies_of(first, second), 10, what="the copy to go with its job")


def test_the_copy_of_a_dead_node_is_sealed_and_one_is_made_elsewhere(cluster: Cluster) -> None:
    first, second, third = (
        cluster.add_node(num_cpus=2, resources={name: 1}) for name in ("first", "second", "third")
    )
    with zray.init(cluster.address):
        submitter = at(Submitter, "second").remote()
        assert zray.get(submitter.run.remote(200), timeout=60) == 19900
        keepers = [first, third]
        wait_until(
            lambda: any(is_copied(second, each) for each in keepers), 10, what="a copy elsewhere"
        )
        (keeper,) = [each for each in keepers if copies_of(second, each)]
        records = copies_of(second, keeper)[0]["records"]
        cluster.kill_node(second)
        wait_until(
            lambda: [row["sealed"] for row in copies_of(second, keeper)] == [True],
            15,
            what="the copy to be sealed",
        )
        assert copies_of(second, keeper)[0]["records"] == records
        # What the dead node kept for others is kept by the one that is left.
        assert sum(zray.get([leaf.remote(n) for n in range(100)], timeout=60)) == 4950
        wait_until(lambda: is_copied(first, third), 10, what="a copy at the node that is left")
