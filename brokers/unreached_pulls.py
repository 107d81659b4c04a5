"""Pulls from nodes that live and are not linked: they begin when one of these is there.

What    Links are made one by one, and one that breaks is dialled again: the home of an object may
        name a node as a source that this one does not reach yet. Such a pull waits for it, a
        bounded time, instead of taking the object for lost.
Caller  brokers/objects_elsewhere.py.
Never   pulls; knows who is on its way: it is told.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.protocol.ids import NodeId, ObjectId

from .sharing import Pull

WAIT_S = 5.0
"""A pull whose sources have not been reached by then has failed."""


class UnreachedPulls:
    """The pulls of one node that wait for a link."""

    def __init__(self) -> None:
        self._waiting: dict[ObjectId, tuple[float, Pull]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, pull: Pull, now: float) -> None:
        """Keep a pull; once more for the same object renews who has it, and no deadline."""
        until = now + WAIT_S
        before = self._waiting.get(pull.object)
        if before is not None:
            until = before[0]
        self._waiting[pull.object] = until, pull

    def joined(self, node: NodeId) -> list[Pull]:
        """Return the pulls that may begin now that this node is there."""
        ready = [pull for _until, pull in self._waiting.values() if node in pull.sources]
        for pull in ready:
            del self._waiting[pull.object]
        return ready

    def cancel(self, identity: ObjectId) -> bool:
        """Forget a pull that nobody waits for; False: it does not wait here."""
        return self._waiting.pop(identity, None) is not None

    def failed(self, now: float, is_coming: Callable[[NodeId], bool]) -> list[ObjectId]:
        """Return, and forget, those that have waited too long or have nobody to wait for."""
        failed = [
            identity
            for identity, (until, pull) in self._waiting.items()
            if now >= until or not any(map(is_coming, pull.sources))
        ]
        for identity in failed:
            del self._waiting[identity]
        return failed
