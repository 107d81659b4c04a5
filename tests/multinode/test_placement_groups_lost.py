"""Placement groups when something dies: drivers, nodes in the middle of a reservation, the GCS.

What    After kill -9 of any of them every group is whole or waits for room, and in the end every
        resource is free.
Caller  pytest.
Never   sleeps: what changes by itself is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import zray
from tests.multinode.gcs_processes import gcs_pid
from tests.multinode.groups import WAIT_S, Resident, all_free, here, is_created, nodes_of, placed
from tests.waiting import wait_until
from zray.testing import Cluster, TestNode
from zray.util import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)


def bring_up(cluster: Cluster, count: int) -> list[TestNode]:
    return [cluster.add_node(num_cpus=2) for _ in range(count)]


def test_a_group_ends_with_its_driver_and_a_detached_one_does_not(cluster: Cluster):
    bring_up(cluster, 2)
    with zray.init(cluster.address, namespace="shop"):
        kept = placement_group([{"CPU": 1}] * 2, "STRICT_SPREAD", "kept", "detached")
        mine = placement_group([{"CPU": 1}] * 2, "STRICT_SPREAD")
        assert kept.wait(WAIT_S)
        assert mine.wait(WAIT_S)
    with zray.init(cluster.nodes[1].directory, namespace="shop"):
        wait_until(lambda: list(placement_group_table()) == [kept.id.hex()], WAIT_S)
        assert get_placement_group("kept") == kept
        wait_until(lambda: zray.available_resources()["CPU"] == 2, WAIT_S)
        there = here.options(scheduling_strategy=placed(kept))
        assert zray.get(there.remote(), timeout=WAIT_S) in nodes_of(kept)
        remove_placement_group(kept)
        wait_until(all_free, WAIT_S)


def test_the_bundle_of_a_killed_node_is_placed_anew_with_what_lived_there(cluster: Cluster):
    bring_up(cluster, 3)
    with zray.init(cluster.address):
        wait_until(lambda: len(zray.nodes()) == 3)
        group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
        assert group.wait(WAIT_S)
        actors = [
            Resident.options(  # type: ignore[attr-defined]
                num_cpus=1,
                max_restarts=1,
                max_task_retries=-1,
                scheduling_strategy=placed(group, index),
            ).remote()
            for index in range(3)
        ]
        before = zray.get([actor.node.remote() for actor in actors], timeout=WAIT_S)
        victim = cluster.nodes[1]
        cluster.kill_node(victim)
        wait_until(lambda: placement_group_table(group)["state"] == "RESCHEDULING", WAIT_S)
        assert nodes_of(group).count("") == 1
        cluster.add_node(num_cpus=2)
        wait_until(lambda: is_created(group), WAIT_S)
        after = zray.get([actor.node.remote() for actor in actors], timeout=WAIT_S)
        assert after == nodes_of(group)
        assert victim.node_id not in after
        for index, node in enumerate(before):
            assert node in (victim.node_id, after[index]), "a bundle of a living node has moved"
        remove_placement_group(group)
        wait_until(all_free, WAIT_S)


@pytest.mark.parametrize("round_", range(3))
def test_kill_9_of_a_node_while_groups_are_made_leaks_nothing(cluster: Cluster, round_: int):
    """Any node but the head may be the coordinator, a participant, or both."""
    bring_up(cluster, 4)
    with zray.init(cluster.address):
        wait_until(lambda: len(zray.nodes()) == 4)
        groups = [placement_group([{"CPU": 0.5}] * 3, strategy="STRICT_SPREAD") for _ in range(4)]
        if round_:
            wait_until(lambda: is_created(groups[0]), WAIT_S)
        cluster.kill_node(cluster.nodes[1 + round_ % 3])
        for group in groups:
            assert zray.get(group.ready(), timeout=WAIT_S) == group
        wait_until(lambda: all(is_created(group) for group in groups), WAIT_S)
        for group in groups:
            assert len(set(nodes_of(group))) == 3
        wait_until(lambda: zray.available_resources().get("CPU", 0) == 0, WAIT_S)
        remove_placement_group(groups[0])
        cluster.kill_node(cluster.nodes[-1])
        for group in groups[1:]:
            remove_placement_group(group)
        wait_until(lambda: len(zray.nodes()) == 2 and all_free(), WAIT_S)
        wait_until(lambda: placement_group_table() == {}, WAIT_S)


def test_groups_of_a_driver_whose_node_is_killed_are_removed(cluster: Cluster):
    head, second, _third = bring_up(cluster, 3)
    with zray.init(head.directory):
        wait_until(lambda: len(zray.nodes()) == 3)
    program = (
        "import zray, sys, time\n"
        f"zray.init({second.directory!r})\n"
        "group = zray.util.placement_group([{'CPU': 1}] * 3, strategy='STRICT_SPREAD')\n"
        "assert group.wait(60)\n"
        "print('there', flush=True)\n"
        "time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == b"there\n"
        with zray.init(head.directory):
            wait_until(lambda: zray.available_resources()["CPU"] == 3, WAIT_S)
            cluster.kill_node(second)
            wait_until(lambda: placement_group_table() == {}, WAIT_S)
            wait_until(all_free, WAIT_S)
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


def test_groups_are_made_and_removed_while_the_gcs_starts_again(cluster: Cluster):
    head, *_others = bring_up(cluster, 3)
    with zray.init(cluster.address):
        wait_until(lambda: len(zray.nodes()) == 3)
        first = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
        assert first.wait(WAIT_S)
        os.kill(gcs_pid(head), signal.SIGKILL)
        there = here.options(scheduling_strategy=placed(first, 1))
        assert zray.get(there.remote(), timeout=WAIT_S) == nodes_of(first)[1]
        second = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
        assert second.wait(WAIT_S)
        remove_placement_group(first)
        remove_placement_group(second)
        wait_until(all_free, WAIT_S)
