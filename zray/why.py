"""What something waits for, as people read it: the steps of `zray-node why` and state.why().

What    Why holds the steps that the nodes gave, each with its depth, and shows them as text.
Caller  zray/util/state.py, zray/cli_why.py.
Never   asks anybody.
"""

from __future__ import annotations

from typing import Any

DEADLOCK = "DEADLOCK"


class Why:
    """The way from something that waits to what it waits for.

    Args:
        steps: dicts with ``depth``, ``id``, ``node_id``, ``state`` and ``text``; where they are
            known ``kind``, ``name``, ``since_s``, ``pid``, ``stack``, ``queue_position``,
            ``queue_len``.
    """

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self.steps = steps

    @property
    def is_deadlock(self) -> bool:
        """Whether a step leads back to one before it: they wait for each other, for ever."""
        return any(step["state"] == DEADLOCK for step in self.steps)

    @property
    def cause(self) -> dict[str, Any]:
        """The last step of the first way: what everything before it comes down to."""
        last = self.steps[0]
        for step in self.steps[1:]:
            if step["depth"] != last["depth"] + 1:
                break
            last = step
        return last

    def __str__(self) -> str:
        lines: list[str] = []
        for step in self.steps:
            indent = "  " * step["depth"]
            arrow = "→" if step["depth"] else ""
            parts = (arrow, step.get("kind"), step.get("name"), step["id"], step["state"])
            lines.append(indent + " ".join(part for part in parts if part))
            lines.append(f"{indent}    {step['text']}")
            lines.extend(f"{indent}      {line}" for line in step.get("stack", ()))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Why({len(self.steps)} steps)"
