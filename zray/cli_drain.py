"""`zray-node drain`: a node leaves its cluster, and nothing is lost with it.

What    Asks the node here to ask the other one, then follows what that one still waits for until
        it is gone, stays after all, or the caller has enough.
Caller  zray/cli.py.
Never   ends a node by itself.
"""

from __future__ import annotations

import json
import time
from typing import Any

from zray import errors
from zray.observer import Observer

_POLL_S = 0.1
_GRACE_S = 5.0
"""The node itself keeps the time; this is how long its word may take to come here."""


def drain(directory: str, wanted: str, *, timeout_s: float, force: bool, as_json: bool) -> int:
    """Have a node leave; returns the exit code: 0 when it is gone, 1 where it stays.

    Args:
        directory: of the node here that is asked.
        wanted: the beginning of the other's id; "self" for the one here.
        timeout_s: how long it may take.
        force: end the node after that, whatever is lost.

    Raises:
        OptionError: no node has that id, or several begin so.
    """
    with Observer(directory) as observer:
        node = _find(observer.ask("nodes"), wanted, directory)
        observer.drain(bytes.fromhex(node), timeout_s, force=force)
        waits = _follow(observer, node, timeout_s, quiet=as_json)
    if as_json:
        print(json.dumps({"node": node, "gone": waits is None, "waited_for": waits or []}))
    elif waits is None:
        print(f"node {node} has left")
    else:
        print(f"node {node} stays: {'; '.join(waits) or 'it did not say why'}")
    return 0 if waits is None else 1


def _find(nodes: list[dict[str, Any]], wanted: str, directory: str) -> str:
    if wanted == "self":
        found = [row["NodeID"] for row in nodes if row["Directory"] == directory][:1]
    else:
        found = [row["NodeID"] for row in nodes if row["NodeID"].startswith(wanted.lower())]
    if len(found) != 1:
        known = ", ".join(row["NodeID"] for row in nodes)
        raise errors.OptionError(
            f"{'no node has' if not found else 'several nodes have'} an id that begins with"
            f" {wanted!r}; there are {known}",
            option="node",
        )
    return str(found[0])


def _follow(observer: Observer, node: str, timeout_s: float, *, quiet: bool) -> list[str] | None:
    """Return None when the node is gone, else what it waited for when it stayed."""
    waits: list[str] = []
    begun = False
    deadline = time.monotonic() + timeout_s + _GRACE_S
    while time.monotonic() < deadline:
        try:
            rows = {row["NodeID"]: row for row in observer.ask("nodes")}
        except errors.NodeDiedError:
            return None  # It was the one here.
        if node not in rows:
            return None
        leaving = rows[node]["Leaving"]
        if leaving is not None:
            if leaving != waits and leaving and not quiet:
                print(f"waiting for: {'; '.join(leaving)}", flush=True)
            begun, waits = True, leaving or waits
        elif begun:
            return waits
        time.sleep(_POLL_S)
    return waits
