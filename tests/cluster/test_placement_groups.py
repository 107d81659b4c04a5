"""Placement groups on a node that has no cluster: it keeps and decides them itself.

What    What works on several nodes works on one: PACK, SPREAD where it may, STRICT_PACK, waiting
        for room, names, removal. What takes two nodes says so at once.
Caller  pytest.
Never   starts a GCS process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import zray
from tests.multinode.groups import (
    WAIT_S,
    Resident,
    all_free,
    child_group,
    is_created,
    never_ends,
    nodes_of,
    placed,
)
from tests.waiting import wait_until
from zray.errors import (
    ActorPlacementGroupRemovedError,
    GetTimeoutError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
)
from zray.util import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

pytestmark = pytest.mark.node(num_cpus=4, resources={"disk": 2})


@pytest.fixture(autouse=True)
def nothing_is_left(node: object) -> Iterator[None]:
    yield
    wait_until(all_free, WAIT_S)
    wait_until(lambda: placement_group_table() == {}, WAIT_S)


@zray.remote
def here() -> str:
    return str(zray.get_runtime_context().get_node_id())


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_a_group_is_made_used_and_removed(strategy: str) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1, "disk": 1}], strategy=strategy)
    assert group.wait(WAIT_S)
    (own,) = {row["NodeID"] for row in zray.nodes()}
    assert nodes_of(group) == [own, own]
    assert zray.available_resources()["CPU"] == 2
    strategies = [placed(group, index) for index in (0, 1)]
    tasks = [here.options(scheduling_strategy=each).remote() for each in strategies]
    assert zray.get(tasks, timeout=WAIT_S) == [own, own]
    actor_class: Any = Resident
    actor = actor_class.options(scheduling_strategy=placed(group, 1), num_cpus=1).remote()
    assert zray.get(actor.group.remote(), timeout=WAIT_S) == group
    captured = child_group.options(scheduling_strategy=placed(group, 0, captures=True), num_cpus=0)
    assert zray.get(captured.remote(), timeout=WAIT_S) == (group, None)
    remove_placement_group(group)
    wait_until(lambda: _is_gone(actor), WAIT_S)  # A call may still meet it on its way out.


def _is_gone(actor: Any) -> bool:
    try:
        zray.get(actor.node.remote(), timeout=WAIT_S)
    except ActorPlacementGroupRemovedError:
        return True
    return False


def test_a_group_that_takes_two_nodes_says_why_it_waits_and_takes_nothing() -> None:
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert not group.wait(0.2)
    with pytest.raises(GetTimeoutError):
        zray.get(group.ready(), timeout=0.2)
    wait_until(lambda: any("placement group" in each for each in _problems()), WAIT_S)
    assert all_free()
    assert not is_created(group)
    remove_placement_group(group)


def _problems() -> list[str]:
    found: list[str] = zray.state.ask("status")["problems"]
    return found


def test_a_group_waits_for_room_and_is_found_by_its_name() -> None:
    first = placement_group([{"CPU": 3}])
    assert first.wait(WAIT_S)
    second = placement_group([{"CPU": 2}], name="second")
    assert not second.wait(0.2)
    remove_placement_group(first)
    assert second.wait(WAIT_S)
    assert get_placement_group("second") == second
    busy = never_ends.options(scheduling_strategy=placed(second)).remote()
    with pytest.raises(TaskUnschedulableError):
        here.options(scheduling_strategy=placed(second), num_cpus=3).remote()
    remove_placement_group(second)
    with pytest.raises(TaskPlacementGroupRemovedError):
        zray.get(busy, timeout=WAIT_S)
