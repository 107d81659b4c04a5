"""What the node says of itself: nodes, resources, GPUs.

What    nodes, cluster_resources, available_resources, get_gpu_ids, as Ray has them; ask() puts any
        question of INSPECT.
Caller  users; zray/trace.py, zray/util, zray/cli.py.
Never   keeps an answer: each call asks again.
"""

from __future__ import annotations

from typing import Any

from zray import api
from zray.observer import Observer
from zray.protocol import messages


def ask(what: str, *, address: str | None = None, **arguments: Any) -> Any:
    """Return the node's answer to one question, as plain Python types.

    Args:
        what: status, nodes, resources, actors, workers, tasks, objects, jobs; of all nodes state,
            summary, cluster_status, why, log.
        address: the directory of the node to ask, for who is no driver of it; None: this
            program's node.
        arguments: what the question takes, such as limit=1000 for objects.
    """
    if address is None:
        return api.runtime().request(messages.INSPECT, what, arguments)
    with Observer(address) as observer:
        return observer.ask(what, **arguments)


def nodes() -> list[dict[str, Any]]:
    """Return a dict for each node: NodeID, Alive, NodeManagerHostname, Resources, Labels, …"""
    rows: list[dict[str, Any]] = ask("nodes")
    return rows


def cluster_resources() -> dict[str, float]:
    """Return what all nodes have in total, amount by name; memory in bytes."""
    totals: dict[str, float] = ask("resources")["total"]
    return totals


def available_resources() -> dict[str, float]:
    """Return what is free now, amount by name; names of which nothing is free are left out.

    The answer may be old when it is here: tasks start and end all the time.
    """
    free: dict[str, float] = ask("resources")["available"]
    return {name: amount for name, amount in free.items() if amount > 0}


def get_gpu_ids() -> list[int] | list[str]:
    """Return the GPUs that the running task or actor holds: [] in a driver, or without GPUs."""
    if not api.in_worker:
        return []
    from zray.context import get_runtime_context

    given: list[str] = get_runtime_context().get_accelerator_ids().get("GPU", [])
    return [int(each) for each in given] if all(each.isdigit() for each in given) else given
