"""Handing over: what of a node's queue goes to other nodes, and what an idle node asks for.

What    spill() takes from this node's queue what is better off elsewhere, for the paper's three
        reasons and no other: it can't run here, its inputs are elsewhere, this node is
        overloaded. steal_from() and give() are the two sides of a node without work asking one
        that has too much. What is handed over is counted in the load table at once.
Caller  brokers/scheduler.py at the end of a pump; tests/sim.
Never   draws a random number, and touches no queue: it sees a snapshot and returns counts.
Spec    OSDI'18, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .load import LoadTable, NodeLoad
from .placement import LOOK_AT_MAX, MOVE_US, NOWHERE, SPREAD, Locality, Request, chance, choose

_OVERLOADED_US = 10_000.0
"""A node that needs longer than this for its queue is overloaded: twice a worker's backlog."""

HOPS_MAX = 3
"""Handovers of one task by nodes that were overloaded; tables are old, but not that old."""

_PARTS_MAX = 16
"""Parts that a range which can't run here is divided into."""

_STEAL_US = 2_000.0
"""A queue shorter than this is gone before a thief's answer could pay for itself."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued range of like tasks, as the global decision sees it.

    Args:
        request: what each of its tasks needs.
        count: tasks.
        task_us: estimated duration of one.
        locality: where their inputs are.
        hops: how often it was handed over; with HOPS_MAX only a thief gets it, or who can run
            it where this node can't.
    """

    request: Request
    count: int
    task_us: float
    locality: Locality = NOWHERE
    hops: int = 0

    def __post_init__(self) -> None:
        assert self.task_us > 0, "a task takes time"

    @property
    def work_us(self) -> float:
        """Microseconds of one CPU for all of it."""
        return self.count * self.task_us * self.request.cpus


@dataclass(frozen=True, slots=True)
class Handover:
    """``count`` tasks from the end of the queue's range number ``index`` go to ``node``.

    To this node itself: they stay, and have HOPS_MAX hops from here on. The handovers of one
    range come one after another, each from the end of what the one before has left.
    """

    index: int
    count: int
    node: bytes


# ------------------------------------------------------------------------------------- spilling


def spill(
    queue: Sequence[Waiting], table: LoadTable, *, counter: int, now: float
) -> list[Handover]:
    """Return what of this node's queue goes elsewhere now, and count it as sent.

    Args:
        queue: the queued ranges, first the one that is next; this node's own row is up to date.
        table: what is known of the nodes.
        counter: grows by one at least for each task that SPREAD has placed before.
        now: seconds.
    """
    if not table.has_others():
        return []
    handovers: list[Handover] = []
    movable: list[int] = []
    at_home = table.own in table.candidates
    for index, work in enumerate(queue):
        here = at_home and _may_stay(work.request, table)
        spread = work.request.strategy == SPREAD
        if here and (work.hops >= HOPS_MAX or (spread and work.hops)):
            continue
        if spread and not work.hops:
            handovers += _hand_in_turn(index, work, table, counter, now)
            counter += work.count
        elif not here:
            handovers += _hand_parts(index, work, table, counter + index, now)
        elif not work.hops and work.locality.fetch_us(table.own) > MOVE_US:
            moved = _hand_whole(index, work, table, counter + index, now)
            handovers += moved
            if not moved:
                movable.append(index)
        else:
            movable.append(index)
    if movable and table.wait_us(table.own, now) > _OVERLOADED_US:
        moved_us = sum(
            queue[each.index].work_us * each.count / queue[each.index].count for each in handovers
        )
        handovers += _relieve(queue, movable, table, moved_us, now)
    return handovers


def _may_stay(request: Request, table: LoadTable) -> bool:
    # Soft affinity to a node that is gone: here is as good as anywhere.
    elsewhere = request.node not in (b"", table.own)
    if elsewhere and (not request.soft or request.node in table.candidates):
        return False
    return request.may_run_on(table, table.own)


def _hand_in_turn(
    index: int, work: Waiting, table: LoadTable, counter: int, now: float
) -> list[Handover]:
    """Deal a range out evenly, from its end; a single task goes where there is room now."""
    if work.count == 1:
        node = choose(work.request, table, seed=counter, now=now)
        dealt = [] if node is None else [Handover(index, 1, node)]
    else:
        nodes = [node for node in table.candidates if work.request.may_run_on(table, node)]
        each, more = divmod(work.count, len(nodes)) if nodes else (0, 0)
        turns = [nodes[(counter + step) % len(nodes)] for step in range(len(nodes))]
        counts = [each + (step < more) for step in range(len(nodes))]
        dealt = [Handover(index, n, node) for node, n in zip(turns, counts, strict=True) if n]
    for each_part in dealt:
        task_us = work.task_us * work.request.cpus
        table.sent(each_part.node, each_part.count * task_us, now, work.request.amounts)
    return dealt


def _hand_parts(
    index: int, work: Waiting, table: LoadTable, seed: int, now: float
) -> list[Handover]:
    """Send a range where it can run, in parts: one node alone may be long at it."""
    handovers: list[Handover] = []
    part = -(-work.count // _PARTS_MAX)
    for low in range(0, work.count, part):
        count = min(part, work.count - low)
        node = choose(work.request, table, locality=work.locality, seed=seed + low, now=now)
        if node is None:
            break
        table.sent(node, count * work.task_us * work.request.cpus, now)
        if handovers and handovers[-1].node == node:
            handovers[-1] = Handover(index, handovers[-1].count + count, node)
        else:
            handovers.append(Handover(index, count, node))
    return handovers


def _hand_whole(
    index: int, work: Waiting, table: LoadTable, seed: int, now: float
) -> list[Handover]:
    """Send a range where its inputs are; nothing where here is best all the same."""
    node = choose(work.request, table, locality=work.locality, seed=seed, now=now)
    if node is None or node == table.own:
        return []
    table.sent(node, work.work_us, now)
    return [Handover(index, work.count, node)]


def _relieve(
    queue: Sequence[Waiting], movable: list[int], table: LoadTable, moved_us: float, now: float
) -> list[Handover]:
    """Take this node's share of what the idle ones lack, from the end of the queue.

    All overloaded nodes look at the same table, so each takes only so much of the room
    elsewhere as is its part of all that is too much; otherwise the idle node of this table
    is the overloaded one of the next.
    """
    own = table.own
    row = table.rows[own]
    own_us = table.work_us(own, now) - moved_us
    rooms, budget_us = _rooms(table, own_us, now)
    # One draw for a publication: asking again before the next must not be another chance.
    luck = chance(table.revision, own)
    handovers: list[Handover] = []
    for index in reversed(movable):
        work = queue[index]
        task_us = work.task_us * work.request.cpus
        if work.count < 1 or not rooms:
            continue
        left = min(work.count, int(budget_us / task_us + luck))
        if left <= 0:
            break
        # A message for less than it costs to send one is a loss.
        unit = max(1, -int(-MOVE_US // task_us))
        sent = 0
        for node in list(rooms):
            if sent >= left:
                break
            if not _is_better(work, node, row, table, now):
                continue
            fair = int(rooms[node] / task_us) if rooms[node] > unit * task_us else unit
            count = min(left - sent, max(unit, fair))
            handovers.append(Handover(index, count, node))
            table.sent(node, count * task_us, now)
            sent += count
            rooms[node] -= count * task_us
            if rooms[node] <= 0:
                del rooms[node]
        budget_us -= sent * task_us
    return handovers


def _rooms(table: LoadTable, own_us: float, now: float) -> tuple[dict[bytes, float], float]:
    """Return (this node's share of the room of each node with less work, the sum it may send).

    The level is where all queues of the sample would be equally long.
    """
    nodes = table.candidates
    start = int(chance(table.revision, table.own, int(now * 1e4)) * len(nodes))
    looked_at: list[tuple[bytes, float, float]] = []
    for step in range(min(len(nodes), LOOK_AT_MAX)):
        node = nodes[(start + step) % len(nodes)]
        if node != table.own:
            looked_at.append((node, table.work_us(node, now), table.rows[node].slots))
    slots = table.rows[table.own].slots
    level = (own_us + sum(work for _node, work, _slots in looked_at)) / (
        slots + sum(slots for _node, _work, slots in looked_at)
    )
    excess = own_us - level * slots
    if excess <= 0:
        return {}, 0.0
    others = sum(max(0.0, work - level * slots) for _node, work, slots in looked_at)
    share = excess / (excess + others)
    # Nobody is filled beyond what would make it hand over itself: the table is old, and what is
    # sent for nothing comes back.
    full = min(level, _OVERLOADED_US)
    rooms = {
        node: (full * slots - work) * share
        for node, work, slots in looked_at
        if work < full * slots
    }
    return rooms, min(excess, sum(rooms.values()))


def _is_better(work: Waiting, node: bytes, own: NodeLoad, table: LoadTable, now: float) -> bool:
    if not work.request.may_run_on(table, node):
        return False
    there_us = table.wait_us(node, now) + work.locality.fetch_us(node) + MOVE_US
    return there_us < own.wait_us + work.locality.fetch_us(own.node)


# -------------------------------------------------------------------------------------- stealing


def steal_from(table: LoadTable, *, seed: int, now: float) -> tuple[bytes, int] | None:
    """Return (the node to ask for work, how much in microseconds of one CPU), for an idle node.

    None where nobody has a queue that is worth it. Of those that have, the longest is the most
    likely: every idle node asks, and not all the same one.
    """
    nodes = table.candidates
    if table.own not in nodes:
        return None
    start = int(chance(seed, table.own, 2) * len(nodes))
    victims: list[tuple[bytes, float]] = []
    idle = 1
    for step in range(min(len(nodes), LOOK_AT_MAX)):
        row = table.rows[nodes[(start + step) % len(nodes)]]
        if row.node == table.own:
            continue
        if row.queue_tasks and row.wait_us > _STEAL_US:
            victims.append((row.node, row.wait_us * row.slots))
        idle += not row.queue_tasks
    if not victims:
        return None
    all_us = sum(work for _node, work in victims)
    place = chance(seed, table.own, 3) * all_us
    at = 0
    while at < len(victims) - 1 and place >= victims[at][1]:
        place -= victims[at][1]
        at += 1
    return victims[at][0], max(1, int(all_us / (len(victims) + idle)))


def give(
    queue: Sequence[Waiting], thief: bytes, asked_us: int, table: LoadTable, *, now: float
) -> list[Handover]:
    """Return what a thief gets: from the end of the queue, at most what it asked and a half.

    Ranges that were moved before may be moved again: the thief has nothing else to do.
    """
    if thief not in table.rows or thief not in table.candidates:
        return []
    budget_us = min(float(asked_us), sum(work.work_us for work in queue) / 2)
    handovers: list[Handover] = []
    for index in range(len(queue) - 1, -1, -1):
        work = queue[index]
        request = work.request
        bound = (request.node and not request.soft) or request.strategy == SPREAD
        if bound or not request.may_run_on(table, thief):
            continue
        if work.locality.fetch_us(thief) > table.wait_us(table.own, now):
            continue
        task_us = work.task_us * request.cpus
        # At least one: half of a single long task is none.
        count = min(work.count, max(int(budget_us / task_us), not handovers))
        if count <= 0:
            break
        handovers.append(Handover(index, count, thief))
        table.sent(thief, count * task_us, now)
        budget_us -= count * task_us
    return handovers
