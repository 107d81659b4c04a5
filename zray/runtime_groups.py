"""What a process knows of placement groups when it submits: where to, and whether it can fit.

What    where_of() adds the group that the running task captures its children for; check_request()
        refuses what no bundle could ever hold; bundles_of() asks the node for a group's bundles.
Caller  zray/remote_function.py, zray/actor.py, zray/util/placement_group.py.
Never   waits for a group: the node does.
"""

from __future__ import annotations

from typing import Any

from zray import errors
from zray.option_feasibility import is_feasible
from zray.options import ActorOptions, TaskOptions
from zray.protocol import messages
from zray.protocol.units import RESOURCE_UNITS
from zray.runtime import Runtime

_KNOWN_MAX = 1000
_known: dict[bytes, list[dict[str, int]]] = {}
"""Bundles of groups that were asked for: they never change."""


def where_of(options: TaskOptions | ActorOptions, runtime: Runtime) -> list[Any] | None:
    """Return which node something goes to, as messages say it: in its caller's group by default."""
    group = runtime.captured_group
    where = options.where
    if group is None or options.names_strategy:
        return where
    # It names no strategy, so there are no wishes either: at most a label selector.
    return [*(where or ["DEFAULT", b"", False, {}])[:4], group, {}]


def bundles_of(runtime: Runtime, group: bytes) -> list[dict[str, int]]:
    """Return the bundles of a group in units by resource, [] where it is gone."""
    found = _known.get(group)
    if found is None:
        rows = runtime.request(messages.GROUP, "rows", [group])
        if not rows:
            return []
        found = _known[group] = [bundle["resources"] for bundle in rows[0]["bundles"]]
        if len(_known) > _KNOWN_MAX:
            del _known[next(iter(_known))]
    return found


def check_request(
    runtime: Runtime,
    where: list[Any] | None,
    request: dict[str, int],
    name: str,
    *,
    actor: bool = False,
) -> None:
    """Raise where nothing could ever meet this request: no node, or no bundle of its group."""
    group = where[4] if where is not None and len(where) > 4 else None
    if group is None:
        runtime.check_resources(request, name, actor=actor)
        return
    identity, index, _captures = group
    bundles = bundles_of(runtime, identity)
    if index >= len(bundles) > 0:
        raise errors.OptionError(
            f"{name} asks for bundle {index} of a placement group that has {len(bundles)}",
            option="placement_group_bundle_index",
        )
    if not bundles or is_feasible(request, bundles if index < 0 else bundles[index : index + 1]):
        return
    kind = errors.ActorUnschedulableError if actor else errors.TaskUnschedulableError
    which = "no bundle" if index < 0 else f"bundle {index}"
    asked = {resource: units / RESOURCE_UNITS for resource, units in request.items()}
    wanted = " and ".join(f"{units:g} {resource}" for resource, units in asked.items())
    raise kind(
        f"{name} asks for {wanted}, and {which} of placement group {identity.hex()} has"
        f" {'so much' if index < 0 else 'not so much'}: it could never run. Ask for less, or for"
        " larger bundles",
        request=asked,
    )
