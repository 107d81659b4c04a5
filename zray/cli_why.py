"""What `zray-node why` does.

What    Asks a node what something waits for, and prints the way to it.
Caller  zray/cli.py.
Never   knows more than the nodes have said.
"""

from __future__ import annotations

import json

from zray.observer import Observer
from zray.why import Why


def why(directory: str, identity: str, *, as_json: bool) -> int:
    """Print what ``identity`` waits for; returns the exit code."""
    with Observer(directory) as observer:
        found = Why(observer.ask("why", id=identity)["steps"])
    print(json.dumps({"steps": found.steps, "deadlock": found.is_deadlock}) if as_json else found)
    return 0
