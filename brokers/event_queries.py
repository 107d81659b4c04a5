"""Questions for events, until the workers have told what they ran last.

What    ask() has every worker send its events and puts the question by; it is answered when all
        of them have, have died, or have not answered in time.
Caller  brokers/node_answers.py, brokers/node_calls.py, brokers/node.py.
Never   waits: the loop goes on, settle() looks again in each of its wakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zray.protocol import messages
from zray.protocol.limits import EVENTS_ANSWER_S

from .peers import Process

if TYPE_CHECKING:
    from .node import Node


class _Query:
    """One question."""

    __slots__ = ("deadline", "missing", "then")

    def __init__(self, then: Callable[[], None], missing: set[bytes], deadline: float) -> None:
        self.then = then
        self.missing = missing
        """Workers that have not answered."""
        self.deadline = deadline


class EventQueries:
    """The questions of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[int, _Query] = {}
        self._last = 0

    def __bool__(self) -> bool:
        return bool(self._open)

    def ask(self, then: Callable[[], None]) -> None:
        """Call when the workers' newest events are here."""
        node = self._node
        self._last += 1
        workers = [
            identity
            for identity, process in node.processes.by_id.items()
            if process.role == "worker"
        ]
        for identity in workers:
            node.tell(identity, messages.EVENTS_WANTED, self._last)
        self._open[self._last] = _Query(then, set(workers), node.now + EVENTS_ANSWER_S)

    def answered(self, worker: Process, question: int) -> None:
        """A worker has sent all it had when it was asked."""
        query = self._open.get(question)
        if query is not None:
            query.missing.discard(worker.identity)

    def settle(self, now: float) -> None:
        """Go on with the questions that need wait no longer."""
        living = self._node.processes.by_id
        for number, query in list(self._open.items()):
            if now < query.deadline and not query.missing.isdisjoint(living):
                continue
            del self._open[number]
            query.then()
