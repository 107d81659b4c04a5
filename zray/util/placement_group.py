"""Placement groups: resources reserved on one or several nodes, all of them or none.

What    placement_group() asks for one; tasks and actors run in it by
        scheduling_strategy=PlacementGroupSchedulingStrategy(group). It ends with
        remove_placement_group(), or with its driver, unless it is detached.
Caller  users; the names are Ray's.
Never   waits but in wait() and in get() of ready().
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import zray
from zray import api, errors
from zray.option_checks import WrongValueError, amount
from zray.option_placement import label_selector
from zray.protocol import messages
from zray.protocol.units import RESOURCE_UNITS, to_units
from zray.runtime_groups import bundles_of
from zray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

if TYPE_CHECKING:
    from zray.refs import ObjectRef

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """A handle of a placement group; travels like any value.

    Args:
        identity: 16 bytes.
    """

    __slots__ = ("id",)

    def __init__(self, identity: bytes) -> None:
        self.id = identity

    @staticmethod
    def empty() -> PlacementGroup:
        """Return a handle of no group."""
        return PlacementGroup(b"")

    @property
    def is_empty(self) -> bool:
        """Whether it is a handle of no group."""
        return not self.id

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle holds; [] of a group that is gone."""
        return [_amounts(bundle) for bundle in bundles_of(api.runtime(), self.id)]

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def ready(self) -> ObjectRef[PlacementGroup]:
        """Return a ref that is there when all bundles are; its value is this handle.

        get() of it raises TaskPlacementGroupRemovedError where the group was removed before.
        """
        strategy = PlacementGroupSchedulingStrategy(self)
        return _is_ready.options(scheduling_strategy=strategy).remote(self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until all bundles are there; returns whether they are.

        Args:
            timeout_seconds: how long to wait.

        Raises TaskPlacementGroupRemovedError where the group is removed.
        """
        try:
            zray.get(self.ready(), timeout=timeout_seconds)
        except errors.GetTimeoutError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id,)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


@zray.remote(num_cpus=0, max_retries=-1, name="PlacementGroup.ready")
def _is_ready(group: PlacementGroup) -> PlacementGroup:
    return group


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    bundle_label_selector: Sequence[Mapping[str, str]] | None = None,
) -> PlacementGroup:
    """Reserve resources, all or none; returns at once.

    Args:
        bundles: amounts by resource ("CPU", "GPU", "memory" or a custom one), one dict a bundle; a
            bundle is reserved on one node.
        strategy: "PACK" (few nodes) or "SPREAD" (many), as far as there is room; "STRICT_PACK"
            (one node) or "STRICT_SPREAD" (a node each), or it waits.
        name: get_placement_group() finds it by this, in the namespace of the session.
        lifetime: "detached": it stays when its driver ends; None: it does not.
        bundle_label_selector: labels that each bundle's node must have, as in label_selector.

    Raises:
        OptionError: an argument is none of these.
        NameTakenError: there is a group of that name.
    """
    if strategy not in STRATEGIES:
        message = f"a strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}"
        raise errors.OptionError(message, option="strategy")
    if lifetime not in (None, "detached", "non_detached"):
        raise errors.OptionError("lifetime is None or 'detached'", option="lifetime")
    if not isinstance(name, str):
        raise errors.OptionError("name must be a string", option="name")
    selectors = [{}] * len(bundles) if bundle_label_selector is None else bundle_label_selector
    if not bundles or len(selectors) != len(bundles):
        raise errors.OptionError(
            "bundles must be a list of dicts, with as many label selectors or none",
            option="bundles",
        )
    rows = [
        [_units(bundle), _selector(each)] for bundle, each in zip(bundles, selectors, strict=True)
    ]
    runtime = api.runtime()
    detached = lifetime == "detached"
    fields = [name, runtime.namespace, strategy, rows, detached]
    return PlacementGroup(runtime.request(messages.GROUP, "create", fields))


def _units(bundle: Mapping[str, float]) -> dict[str, int]:
    try:
        units = {
            resource: to_units(amount("num_gpus" if resource == "GPU" else resource, share))
            for resource, share in bundle.items()
            if share
        }
    except (WrongValueError, AttributeError) as error:
        message = f'a bundle is a dict of amounts such as {{"CPU": 1}}, not {bundle!r}: {error}'
        raise errors.OptionError(message, option="bundles") from None
    if not units or "" in units:
        raise errors.OptionError(f"bundle {bundle!r} reserves nothing", option="bundles")
    return units


def _selector(selector: Mapping[str, str]) -> dict[str, str]:
    try:
        return label_selector("bundle_label_selector", selector)
    except WrongValueError as error:
        raise errors.OptionError(str(error), option="bundle_label_selector") from None


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """End a group: its tasks and actors are killed, what it held is free a moment later.

    get() of their results raises TaskPlacementGroupRemovedError, calls of its actors
    ActorPlacementGroupRemovedError. A group that is gone already is no error.
    """
    api.runtime().request(messages.GROUP, "remove", [placement_group.id])


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """Return the group of this name in the session's namespace.

    Raises ActorNotFoundError, a ValueError, where there is none.
    """
    runtime = api.runtime()
    found = runtime.request(messages.GROUP, "find", [placement_group_name, runtime.namespace])
    if found is None:
        raise errors.ActorNotFoundError(
            f"there is no placement group {placement_group_name!r} in namespace"
            f" {runtime.namespace!r}",
            name=placement_group_name,
            namespace=runtime.namespace,
        )
    return PlacementGroup(found[0])


def get_current_placement_group() -> PlacementGroup | None:
    """Return the group that the calling task or actor runs in; None where it runs in none."""
    identity = zray.get_runtime_context().get_placement_group_id()
    return None if identity is None else PlacementGroup(bytes.fromhex(identity))


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """Return what is known of a group, or of all of them by their ids in hex.

    A row has "placement_group_id", "name", "strategy", "state" (PENDING, CREATED, RESCHEDULING or
    REMOVED), "bundles" and "bundles_to_node_id" (each by index), "is_detached", and "problem": why
    no nodes could hold it, or "".
    """
    wanted = None if placement_group is None else [placement_group.id]
    rows = api.runtime().request(messages.GROUP, "rows", [None if wanted is None else wanted[0]])
    table = {row["group"]: _row(row) for row in rows}
    if placement_group is None:
        return table
    gone = {"placement_group_id": placement_group.id.hex(), "state": "REMOVED"}
    return table.get(placement_group.id.hex(), gone)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    bundles = row["bundles"]
    return {
        "placement_group_id": row["group"],
        "name": row["name"],
        "strategy": row["strategy"],
        "state": row["state"],
        "is_detached": row["detached"],
        "bundles": {index: _amounts(each["resources"]) for index, each in enumerate(bundles)},
        "bundles_to_node_id": {index: each["node"] for index, each in enumerate(bundles)},
        "problem": row["problem"],
    }


def _amounts(units: Mapping[str, int]) -> dict[str, float]:
    return {name: count / RESOURCE_UNITS for name, count in units.items()}


class _Module(ModuleType):
    """This module, which can be called as the function of its name.

    Whoever imports zray.util.placement_group makes the module an attribute of zray.util, where
    programs look for the function.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        """Make a group."""
        return placement_group(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (__name__,)


sys.modules[__name__].__class__ = _Module

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]
