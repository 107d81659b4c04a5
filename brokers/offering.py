"""An idle node offers its workers to one that has more than it can do.

What    A loaded node asks by itself (brokers/borrowing.py), by what it knows: where its rows are
        old or it was refused a moment ago, it does not ask who has become idle since. So a node
        with nothing to do tells one that waits, which answers by borrowing. One at a time, the one
        with the longest queue most likely, and of many idle nodes as many as tasks wait.
Caller  brokers/loans.py.
Never   lends by itself, or draws a random number: chance comes from the seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.protocol.units import CPU, RESOURCE_UNITS

from .placement import LOOK_AT_MAX, chance
from .scheduling import Offer

if TYPE_CHECKING:
    from .load import LoadTable
    from .scheduler import Scheduler

_LONG_US = 2_000.0
"""A queue shorter than this is gone before an offer could pay for itself."""
_AGAIN_S, _AGAIN_MAX_S = 0.01, 0.5
"""After an offer the next one waits: first so long, then twice as long while nobody takes them."""
_REMEMBERED_S = 0.25
"""Who was refused before that has found somebody else, or asks again."""
_LOOK_S = 0.05
"""Where nobody waits, or others are to offer: look again after this."""


class Offering:
    """What one node offers.

    Args:
        scheduler: the node's.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._next = 0.0
        self._again_s = _AGAIN_S
        self._given = 0
        self._looks = 0
        self._refused: dict[bytes, float] = {}
        """Who has asked for workers and got none, and when."""

    def refused(self, node: bytes, now: float) -> None:
        """A node has asked for a worker, and there was none to spare: it is told of the next."""
        self._refused[node] = now

    @property
    def is_idle(self) -> bool:
        """Whether workers could be free here, and nobody here or elsewhere has asked for them."""
        scheduler = self.scheduler
        return (
            not scheduler.queues.task_count
            and not scheduler.claims
            and scheduler.borrowing.table.has_others()
            and scheduler.resources.fits({CPU: 1})
        )

    def due_s(self, now: float) -> float:
        """Return in how many seconds tick() wants to be called."""
        if not self.is_idle:
            return float("inf")
        return 0.0 if self._refused else max(0.0, self._next - now)

    def tick(self, now: float) -> None:
        """Time has passed: offer what is free here to somebody who waits."""
        if not self.is_idle:
            return
        self._tell_refused(now)
        if now < self._next:
            return
        lending = self.scheduler.lending
        if lending.given != self._given:
            self._given, self._again_s = lending.given, _AGAIN_S
        self._looks += 1
        table = self.scheduler.borrowing.table
        node = whom_to_help(table, seed=self._looks)
        if node is None:
            self._next = now + _LOOK_S
            return
        self._next = now + self._again_s
        self._again_s = min(_AGAIN_MAX_S, self._again_s * 2)
        self.scheduler.commands.append(Offer(node))

    def _tell_refused(self, now: float) -> None:
        """Offer a free worker each to those who have asked in vain not long ago."""
        if not self._refused:
            return
        rows = self.scheduler.borrowing.table.rows
        waiting = [
            node
            for node, asked_at in self._refused.items()
            if node in rows and now - asked_at < _REMEMBERED_S
        ]
        self._looks += 1
        waiting.sort(key=lambda node: chance(self._looks, self.scheduler.borrowing.table.own, node))
        free = max(1, self.scheduler.resources.available.get(CPU, 0) // RESOURCE_UNITS)
        for node in waiting[:free]:
            self.scheduler.commands.append(Offer(node))
        self._refused = {node: self._refused[node] for node in waiting[free:]}


def whom_to_help(table: LoadTable, *, seed: int) -> bytes | None:
    """Return a node with a queue that is worth it; None where there is none, or others help.

    Args:
        table: what is known of the nodes.
        seed: another one each time.
    """
    nodes = table.candidates
    if table.own not in nodes:
        return None
    start = int(chance(seed, table.own, 2) * len(nodes))
    waiting: list[tuple[bytes, float]] = []
    tasks, idle = 0, 1
    for step in range(min(len(nodes), LOOK_AT_MAX)):
        row = table.rows[nodes[(start + step) % len(nodes)]]
        if row.node == table.own:
            continue
        if row.queue_tasks and row.wait_us > _LONG_US:
            waiting.append((row.node, row.wait_us * row.slots))
            tasks += row.queue_tasks
        idle += not row.queue_tasks
    # A hundred idle nodes must not all help with five tasks.
    if not waiting or chance(seed, table.own, 4) * idle > tasks:
        return None
    place = chance(seed, table.own, 3) * sum(work for _node, work in waiting)
    for node, work in waiting:
        place -= work
        if place < 0:
            return node
    return waiting[-1][0]
