"""The way from something that waits to what it waits for, step by step.

What    WhyWalk begins at an id and asks for an explanation of it at the node that knows; that names
        what is waited for, and so on. A step that leads back to one above it is a deadlock: they
        wait for each other.
Caller  brokers/state_questions.py.
Never   asks twice about one thing, takes more than steps_max steps, or waits for a node for ever:
        who asks gives up and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zray.protocol.ids import NodeId


@dataclass(frozen=True, slots=True)
class Place:
    """What is to be explained.

    Args:
        node: which knows.
        identity: of an object, task, call or actor (16 bytes), or of a process (8).
        about: of a process: the task, call or actor that is of interest there; b"" for all.
    """

    node: NodeId
    identity: bytes
    about: bytes = b""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask for the explanation of a step."""

    step: int
    place: Place


@dataclass(slots=True)
class _Step:
    place: Place
    parent: int
    depth: int
    found: dict[str, Any] | None = None
    children: list[int] = field(default_factory=list)


class WhyWalk:
    """One question.

    Args:
        place: where it begins.
        steps_max: looks at most.
    """

    def __init__(self, place: Place, *, steps_max: int) -> None:
        self.commands: list[Look] = []
        self._steps_max = steps_max
        self._steps: list[_Step] = []
        self._seen: dict[tuple[bytes, bytes], int] = {}
        self._open = 0
        self._looks = 0
        self._add(place, -1)

    @property
    def is_over(self) -> bool:
        """Whether every step has been explained, or will not be."""
        return self._open == 0

    def took(self, number: int, found: dict[str, Any], following: list[Place]) -> None:
        """A step is explained: what it says, and what it waits for."""
        step = self._steps[number]
        if step.found is not None:
            return
        step.found = found
        self._open -= 1
        for place in following:
            self._add(place, number)

    def failed(self, number: int, reason: str) -> None:
        """Nobody explains a step."""
        self.took(number, {"state": "UNEXPLAINED", "text": reason}, [])

    def _add(self, place: Place, parent: int) -> None:
        depth = self._steps[parent].depth + 1 if parent >= 0 else 0
        step = _Step(place, parent, depth)
        number = len(self._steps)
        before = self._seen.get((place.identity, place.about))
        if before is not None:
            step.found = self._again(before, parent)
        elif self._looks >= self._steps_max:
            step.found = {"state": "CUT", "text": "and so on: ask about this one to see more"}
        else:
            self._seen[place.identity, place.about] = number
            self._looks += 1
            self._open += 1
            self.commands.append(Look(number, place))
        self._steps.append(step)
        if parent >= 0:
            self._steps[parent].children.append(number)

    def _again(self, before: int, parent: int) -> dict[str, Any]:
        above = parent
        while above >= 0:
            if above == before:
                text = "a deadlock: it is the one above, which waits for this; none of them goes on"
                return {"state": "DEADLOCK", "text": text}
            above = self._steps[above].parent
        return {"state": "SEEN", "text": "as said above"}

    def result(self) -> list[dict[str, Any]]:
        """Return the steps, each behind the one it explains, with its depth."""
        rows: list[dict[str, Any]] = []
        waiting = [0]
        while waiting:
            step = self._steps[waiting.pop()]
            rows.append(
                {
                    "depth": step.depth,
                    "id": step.place.identity.hex(),
                    "node_id": step.place.node.hex(),
                    **(step.found or {"state": "UNEXPLAINED", "text": "nobody has answered"}),
                }
            )
            waiting.extend(reversed(step.children))
        return rows

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert self._open == sum(step.found is None for step in self._steps)
        assert self._looks <= self._steps_max
        for number, step in enumerate(self._steps):
            assert step.parent < number
            assert all(self._steps[child].parent == number for child in step.children)
