"""Whether any node could ever run what asks for so much, and what to say where none could.

What    Compares a request with what each node has in all, busy or not.
Caller  zray/runtime.py, before a task or an actor is submitted.
Never   looks at what is free: what could run later waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import errors
from .protocol.units import CPU, GPU, MEMORY, RESOURCE_UNITS

Units = Mapping[str, int]


def is_feasible(request: Units, nodes: Sequence[Units]) -> bool:
    """Return whether one of the nodes has all of the request; amounts in units."""
    for total in nodes:
        for name, units in request.items():
            if units > total.get(name, 0):
                break
        else:
            return True
    return False


def infeasible(
    request: Units, nodes: Sequence[Units], asker: str, *, actor: bool
) -> errors.UnschedulableError | None:
    """Return the error for a request that no node could ever meet, None where one could.

    Args:
        request: what is asked for, in units.
        nodes: what each node has in all, in units.
        asker: name of the task or actor.
        actor: whether it is an actor.
    """
    if is_feasible(request, nodes):
        return None
    most = {
        name: max(total.get(name, 0) for total in nodes)
        for name in dict.fromkeys(name for total in nodes for name in total)
    }
    asked, capacity = _amounts(request), _amounts(most)
    for name in request:
        if name not in most and name not in (CPU, GPU, MEMORY):
            return errors.UnknownResourceError(
                f"{asker} asks for resource {name!r}, which no node has; there are:"
                f" {', '.join(sorted(most))}. Offer it: zray.init(resources={{{name!r}: ...}}), or"
                f" `zray-node start --resources`",
                request=asked,
                capacity=capacity,
            )
    kind = errors.ActorUnschedulableError if actor else errors.TaskUnschedulableError
    return kind(
        f"{asker} asks for {_shortage(request, nodes, most)}: it could never run. Ask for less, or"
        f" {'start the node with more' if len(nodes) == 1 else 'add a node that has it'}",
        request=asked,
        capacity=capacity,
    )


def _shortage(request: Units, nodes: Sequence[Units], most: Units) -> str:
    for name, units in request.items():
        have = most.get(name, 0)
        if units > have:
            who = "the node has" if len(nodes) == 1 else f"the largest of {len(nodes)} nodes has"
            return f"{units / RESOURCE_UNITS:g} {name}, and {who} {have / RESOURCE_UNITS:g} in all"
    wanted = " and ".join(f"{units / RESOURCE_UNITS:g} {name}" for name, units in request.items())
    return f"{wanted}, and none of {len(nodes)} nodes has all of it"


def _amounts(units: Units) -> dict[str, float]:
    return {name: count / RESOURCE_UNITS for name, count in units.items()}
