"""Placement groups over three nodes: reserved all or none, used, removed.

What    Programs as they are written for Ray: where bundles are, what runs in them, names and ends.
        After each of them every resource is free again.
Caller  pytest.
Never   sleeps but inside tasks: what changes by itself is waited for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

import zray
from tests.multinode.groups import (
    WAIT_S,
    Resident,
    all_free,
    child_group,
    group_here,
    here,
    never_ends,
    nodes_of,
    placed,
)
from tests.waiting import wait_until
from zray.errors import (
    ActorDiedError,
    ActorPlacementGroupRemovedError,
    NameTakenError,
    OptionError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
)
from zray.testing import Cluster
from zray.util import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    with Cluster() as made:
        made.add_node(num_cpus=2)
        made.add_node(num_cpus=2, labels={"zone": "b"})
        made.add_node(num_cpus=2, resources={"far": 2})
        with zray.init(made.address):
            wait_until(lambda: len(zray.nodes()) == 3)
            yield made


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "three_nodes" in request.fixturenames:
        for left in placement_group_table():  # Of a test that failed: the next one is not to.
            remove_placement_group(PlacementGroup(bytes.fromhex(left)))
        wait_until(all_free, WAIT_S)
        wait_until(lambda: placement_group_table() == {}, WAIT_S)


# -- where bundles are -----------------------------------------------------------------------------


def test_strict_spread_is_a_node_each_and_tasks_run_where_their_bundle_is(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    assert zray.get(group.ready(), timeout=WAIT_S) == group
    where = nodes_of(group)
    assert sorted(where) == sorted(node.node_id for node in three_nodes.nodes)
    wait_until(lambda: zray.available_resources()["CPU"] == 3, WAIT_S)
    for index, node in enumerate(where):
        there = here.options(scheduling_strategy=placed(group, index))
        assert set(zray.get([there.remote() for _ in range(5)], timeout=WAIT_S)) == {node}
    remove_placement_group(group)


def test_strict_pack_is_one_node(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}, {"CPU": 1, "far": 1}], strategy="STRICT_PACK")
    assert group.wait(WAIT_S)
    assert set(nodes_of(group)) == {three_nodes.nodes[2].node_id}
    remove_placement_group(group)


def test_bundles_go_where_their_labels_say(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 2, bundle_label_selector=[{"zone": "b"}, {"zone": "!b"}])
    assert group.wait(WAIT_S)
    first, second = nodes_of(group)
    assert first == three_nodes.nodes[1].node_id != second
    remove_placement_group(group)


def test_a_group_that_does_not_fit_now_waits_and_takes_nothing(three_nodes: Cluster):
    first = placement_group([{"CPU": 2}] * 2, strategy="STRICT_SPREAD")
    assert first.wait(WAIT_S)
    second = placement_group([{"CPU": 2}] * 2, strategy="STRICT_SPREAD")
    assert not second.wait(0.5)
    assert placement_group_table(second)["state"] == "PENDING"
    wait_until(lambda: zray.available_resources()["CPU"] == 2, WAIT_S)
    ready = second.ready()
    remove_placement_group(first)
    assert zray.get(ready, timeout=WAIT_S) == second
    remove_placement_group(second)


def test_a_group_that_no_nodes_could_hold_says_so(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    problem = placement_group_table(group)["problem"]
    assert "needs 4 different nodes" in problem
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemovedError):
        zray.get(group.ready(), timeout=WAIT_S)


# -- what runs in them -----------------------------------------------------------------------------


def test_tasks_without_an_index_use_every_bundle_and_no_more(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")

    @zray.remote(scheduling_strategy=placed(group))
    def long(seconds: float) -> tuple[str, float, float]:
        begin = time.monotonic()
        time.sleep(seconds)
        return zray.get_runtime_context().get_node_id(), begin, time.monotonic()

    ran = zray.get([long.remote(0.3) for _ in range(9)], timeout=WAIT_S)
    assert set(Counter(node for node, _begin, _end in ran)) == set(nodes_of(group))
    for node, begin, end in ran:
        others = [each for each in ran if each[0] == node and each[1:] != (begin, end)]
        assert not any(b < end and begin < e for _node, b, e in others), "a bundle of 1 CPU ran two"
    remove_placement_group(group)


def test_actors_live_in_their_bundles(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 3, strategy="SPREAD")
    actors = [
        Resident.options(  # type: ignore[attr-defined]
            num_cpus=1, scheduling_strategy=placed(group, index)
        ).remote()
        for index in range(3)
    ]
    assert zray.get([actor.node.remote() for actor in actors], timeout=WAIT_S) == nodes_of(group)
    assert zray.get(actors[2].group.remote(), timeout=WAIT_S) == group
    assert zray.available_resources()["CPU"] == 3, "what they hold is the group's"
    for actor in actors:
        zray.kill(actor)
    # The bundles are free again for others of the group.
    there = here.options(scheduling_strategy=placed(group, 2))
    assert zray.get(there.remote(), timeout=WAIT_S) == nodes_of(group)[2]
    remove_placement_group(group)


def test_children_run_in_the_group_where_it_captures_them(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    captures = child_group.options(scheduling_strategy=placed(group, captures=True))
    assert zray.get(captures.remote(), timeout=WAIT_S) == (group, None)
    does_not = child_group.options(scheduling_strategy=placed(group))
    assert zray.get(does_not.remote(), timeout=WAIT_S) == (None, None)
    assert get_current_placement_group() is None
    remove_placement_group(group)


def test_a_task_that_waits_for_children_in_its_bundle_lends_them_its_cpu(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}])
    nested = child_group.options(scheduling_strategy=placed(group, 0, captures=True))
    assert zray.get(nested.remote(), timeout=WAIT_S) == (group, None)
    remove_placement_group(group)


def test_the_options_of_old_programs_do_the_same(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    old = group_here.options(placement_group=group, placement_group_bundle_index=1)
    assert zray.get(old.remote(), timeout=WAIT_S) == group
    remove_placement_group(group)
    with pytest.raises(OptionError, match="without a placement group"):
        here.options(placement_group_bundle_index=1)


def test_what_no_bundle_could_hold_is_refused(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    with pytest.raises(TaskUnschedulableError, match="no bundle"):
        here.options(num_cpus=2, scheduling_strategy=placed(group)).remote()
    with pytest.raises(OptionError, match="bundle 2 of a placement group that has 2"):
        here.options(scheduling_strategy=placed(group, 2)).remote()
    remove_placement_group(group)


# -- names and ends --------------------------------------------------------------------------------


def test_a_group_is_found_by_its_name_until_it_is_removed(three_nodes: Cluster):
    group = placement_group([{"CPU": 1}], name="mine")
    assert get_placement_group("mine") == group
    assert get_placement_group("mine").bundle_specs == [{"CPU": 1.0}]
    with pytest.raises(NameTakenError):
        placement_group([{"CPU": 1}], name="mine")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group 'mine'"):
        get_placement_group("mine")
    again = placement_group([{"CPU": 1}], name="mine")
    assert again.wait(WAIT_S)
    remove_placement_group(again)


def test_what_runs_in_a_removed_group_ends_with_an_error_that_says_so(three_nodes: Cluster):
    group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
    assert group.wait(WAIT_S)
    running = [
        never_ends.options(scheduling_strategy=placed(group, index)).remote()
        for index in (0, 0, 1, 2)
    ]
    waiting = never_ends.options(num_cpus=2, scheduling_strategy=placed(group)).remote()
    actor = Resident.options(  # type: ignore[attr-defined]
        num_cpus=1, scheduling_strategy=placed(group, 2), max_restarts=-1
    ).remote()
    assert zray.get(actor.node.remote(), timeout=WAIT_S) == nodes_of(group)[2]
    remove_placement_group(group)
    for ref in (*running, waiting):
        with pytest.raises(TaskPlacementGroupRemovedError, match="was removed"):
            zray.get(ref, timeout=WAIT_S)

    def is_dead() -> bool:
        try:
            zray.get(actor.node.remote(), timeout=WAIT_S)
        except ActorPlacementGroupRemovedError:
            return True
        except ActorDiedError as error:
            raise AssertionError("it does not say why it died") from error
        return False

    wait_until(is_dead, WAIT_S)
    with pytest.raises(TaskPlacementGroupRemovedError):
        zray.get(here.options(scheduling_strategy=placed(group)).remote(), timeout=WAIT_S)
    assert placement_group_table(group)["state"] == "REMOVED"


@zray.remote
def makes_a_group(detached: bool) -> PlacementGroup:
    made = placement_group([{"CPU": 1}], lifetime="detached" if detached else None)
    assert made.wait(WAIT_S)
    return made


def test_a_group_that_a_task_makes_is_its_jobs(three_nodes: Cluster):
    there = makes_a_group.options(label_selector={"zone": "b"})
    group = zray.get(there.remote(False), timeout=WAIT_S)
    place = here.options(scheduling_strategy=placed(group))
    assert [zray.get(place.remote(), timeout=WAIT_S)] == nodes_of(group)
    remove_placement_group(group)
