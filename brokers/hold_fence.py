"""What a node says to another waits until the homes of what it holds have counted it.

What    Links are in order for each pair of nodes, and references go round in threes: C has got a
        reference to A's object from B and answers B; B drops its own. If B's RELEASE overtook C's
        HOLD on their ways to A, the object would be freed under C. So what C says to B is kept
        back until A has acknowledged all HOLDs that C sent before; what C says to A follows them
        on the same link. Without third nodes nothing waits.
Caller  brokers/cluster.py sends through it; brokers/objects_elsewhere.py says what was held.
Never   changes the order of what goes to one node, or keeps a HOLD back.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zray.protocol.ids import NodeId


class HoldFence:
    """The messages of one node that wait, and what for."""

    def __init__(self) -> None:
        self._sent = 0
        """HOLDs sent so far: each has this number as its own."""
        self._unanswered: dict[NodeId, deque[int]] = {}
        """Their numbers by home, the oldest first; none is empty."""
        self._waiting: dict[NodeId, deque[tuple[int, Any]]] = {}
        """By receiver, in order: the newest HOLD before it, and the message; none is empty."""

    @property
    def is_open(self) -> bool:
        """Whether nothing has to wait."""
        return not self._unanswered and not self._waiting

    def held(self, home: NodeId) -> None:
        """A HOLD is sent to this home, or will be as soon as it is there."""
        self._sent += 1
        self._unanswered.setdefault(home, deque()).append(self._sent)

    def counted(self, home: NodeId, count: int) -> None:
        """The home has counted so many more of them."""
        unanswered = self._unanswered.get(home)
        while unanswered and count > 0:
            unanswered.popleft()
            count -= 1
        if not unanswered:
            self._unanswered.pop(home, None)

    def admit(self, receiver: NodeId, message: Any) -> bool:
        """Return whether a message may go now; where not, it is kept for ready()."""
        waiting = self._waiting.get(receiver)
        if waiting is None:
            if self._oldest(receiver) > self._sent:
                return True
            waiting = self._waiting[receiver] = deque()
        waiting.append((self._sent, message))
        return False

    def ready(self) -> list[tuple[NodeId, Any]]:
        """Return what need not wait any longer, in order for each receiver."""
        ready: list[tuple[NodeId, Any]] = []
        for receiver, waiting in list(self._waiting.items()):
            oldest = self._oldest(receiver)
            while waiting and waiting[0][0] < oldest:
                ready.append((receiver, waiting.popleft()[1]))
            if not waiting:
                del self._waiting[receiver]
        return ready

    def _oldest(self, receiver: NodeId) -> int:
        """Return the number of the oldest HOLD that this receiver's messages wait for."""
        return min(
            (numbers[0] for home, numbers in self._unanswered.items() if home != receiver),
            default=self._sent + 1,
        )

    def node_lost(self, node: NodeId) -> None:
        """Wait for a node no more, and keep nothing for it."""
        self._unanswered.pop(node, None)
        self._waiting.pop(node, None)

    def statistics(self) -> dict[str, int]:
        """Return counts for status and tests."""
        return {
            "unanswered_holds": sum(map(len, self._unanswered.values())),
            "waiting_messages": sum(map(len, self._waiting.values())),
        }

    def check(self) -> None:
        """Assert that nothing waits that could go."""
        assert all(self._unanswered.values())
        for receiver, waiting in self._waiting.items():
            assert waiting
            assert waiting[0][0] >= self._oldest(receiver), "a message waits for nothing"
