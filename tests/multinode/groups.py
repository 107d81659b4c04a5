"""What tests of placement groups share: tasks and actors that say where they are, and waits.

What    here, group_here, child_group, never_ends and Resident run in groups; the functions below
        them ask what has become of one.
Caller  tests/multinode/test_placement_groups.py, test_placement_groups_lost.py.
Never   makes a group.
"""

from __future__ import annotations

import time

import zray
from zray.util import PlacementGroup, get_current_placement_group, placement_group_table
from zray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

WAIT_S = 60


@zray.remote
def here() -> str:
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
def group_here() -> PlacementGroup | None:
    return get_current_placement_group()


@zray.remote
def child_group() -> tuple[PlacementGroup | None, PlacementGroup | None]:
    """The group of a child that says nothing, and of one that wants none."""
    none = PlacementGroupSchedulingStrategy(None)
    refs = [group_here.remote(), group_here.options(scheduling_strategy=none).remote()]
    inherited, escaped = zray.get(refs, timeout=WAIT_S)
    return inherited, escaped


@zray.remote(max_retries=0)
def never_ends(seconds: float = 600.0) -> None:
    time.sleep(seconds)


@zray.remote
class Resident:
    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())

    def group(self) -> PlacementGroup | None:
        return get_current_placement_group()


def placed(
    group: PlacementGroup, index: int = -1, *, captures: bool = False
) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, index, captures)


def all_free() -> bool:
    return zray.available_resources() == zray.cluster_resources()


def nodes_of(group: PlacementGroup) -> list[str]:
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def is_created(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group)["state"] == "CREATED")
