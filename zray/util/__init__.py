"""What is built on tasks and actors: pools, queues, waiting, serializers.

What    actor_pool       ActorPool: spread calls over a few actors
        queue            Queue: a first-in-first-out queue in an actor
        multiprocessing  Pool: multiprocessing.Pool on actors
        completion       as_completed and map_unordered: results in the order they come
        naming           list_named_actors
        state            what the cluster has, and why something waits: list, get, summarize, why
        kv               the key-value table of the GCS
        placement_group  resources reserved on several nodes, all or none
        scheduling_strategies  which node a task or an actor goes to
Caller  users; the names are Ray's.
Never   imports any of it before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zray.serialization.inspect import inspect_serializability
    from zray.serialization.reducers import deregister_serializer, register_serializer
    from zray.util.actor_pool import ActorPool
    from zray.util.completion import as_completed, map_unordered
    from zray.util.naming import list_named_actors
    from zray.util.placement_group import (
        PlacementGroup,
        get_current_placement_group,
        get_placement_group,
        placement_group,
        placement_group_table,
        remove_placement_group,
    )

_HOME = {
    "ActorPool": "zray.util.actor_pool",
    "as_completed": "zray.util.completion",
    "deregister_serializer": "zray.serialization.reducers",
    "inspect_serializability": "zray.serialization.inspect",
    "list_named_actors": "zray.util.naming",
    "map_unordered": "zray.util.completion",
    "PlacementGroup": "zray.util.placement_group",
    "get_current_placement_group": "zray.util.placement_group",
    "get_placement_group": "zray.util.placement_group",
    "placement_group": "zray.util.placement_group",
    "placement_group_table": "zray.util.placement_group",
    "remove_placement_group": "zray.util.placement_group",
    "register_serializer": "zray.serialization.reducers",
}
_NOT_HERE = {
    "collective": "this release has no collective operations",
    "metrics": "this release counts for itself only: see zray-node status",
    "iter": "use zray.util.map_unordered or f.map(items)",
}

__all__ = [
    "ActorPool",
    "PlacementGroup",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of this package, when it is first used."""
    home = _HOME.get(name)
    if home is not None:
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value
    if name in _NOT_HERE:
        raise AttributeError(f"zray.util has no {name}: {_NOT_HERE[name]}")
    if name in (
        "actor_pool",
        "completion",
        "multiprocessing",
        "naming",
        "queue",
        "scheduling_strategies",
        "state",
    ):
        return importlib.import_module(f"zray.util.{name}")
    raise AttributeError(f"module 'zray.util' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
