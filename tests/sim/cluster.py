"""Many nodes on a virtual clock: the real Scheduler and the real placement, thousands of times.

What    Cluster runs one Scheduler and one LoadTable for each node, with workers that take virtual
        time and a network that takes some, and counts every task: where it ran, how long it
        waited for a place. Three ways to place: bottom-up as zray does it, at random, and by one
        central scheduler with a service time for each decision.
Caller  tests/sim/test_cluster.py, scripts/bench/scaling.py.
Never   reads a real clock, except to measure what one central decision costs.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zray.brokers.gcs.loads import spacing_s
from zray.brokers.handover import Handover, Waiting, give, spill, steal_from
from zray.brokers.load import LoadTable, NodeLoad, estimate_wait_us
from zray.brokers.placement import Request
from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import Fork, Range, Reclaim, Run
from zray.protocol.units import CPU, RESOURCE_UNITS

BOTTOM_UP, RANDOM, CENTRAL = "bottom-up", "random", "central"
ROW_BYTES = 150
"""Of the load table, as a message carries it."""

_SPILL_EVERY_S = 0.001
_STEAL_AFTER_S, _STEAL_AFTER_MAX_S = 0.001, 0.1
_TAIL_RANGES = 64
"""Ranges at the end of its queue that a node looks at when it hands work over."""

_HOP = 1_000_000
"""A task's class number grows by this with each handover."""


@dataclass(frozen=True)
class Load:
    """What is submitted.

    Args:
        task_us: durations; those of batch n have the one at n modulo their count.
        batch_us: work of one batch: so many tasks as make it up, but at least one, at most 64.
        per_slot: offered work as a share of what all CPUs can do.
        hot: the share of the nodes that submit; 1.0: every node submits its part.
        seconds: virtual time in which batches are submitted.
    """

    task_us: tuple[int, ...] = (1000,)
    batch_us: int = 16_000
    per_slot: float = 0.8
    hot: float = 1.0
    seconds: float = 1.0

    def count(self, kind: int) -> int:
        """Return how many tasks a batch of this kind has."""
        return max(1, min(64, self.batch_us // self.task_us[kind]))

    def mean_task_us(self) -> float:
        """Return the mean duration of all tasks."""
        kinds = range(len(self.task_us))
        work = sum(self.count(kind) * self.task_us[kind] for kind in kinds)
        return work / sum(self.count(kind) for kind in kinds)


@dataclass(frozen=True)
class Costs:
    """What deciding takes.

    Args:
        central_us: of the central scheduler, microseconds a batch.
        local_us: of every scheduler for its books, microseconds a task; a task that is moved
            costs it at both nodes again.
        handover_us: of a node, microseconds each time it looks whether to hand over, asks for
            work or is asked.
    """

    central_us: float = 0.0
    local_us: float = 0.0
    handover_us: float = 0.0


@dataclass
class Outcome:
    """What came of a run.

    Args:
        submitted: tasks.
        done: tasks that have ended.
        done_in_time: of these, while tasks were still being submitted.
        seconds: virtual time until the last one ended.
        delays_ms: for a sample of tasks, from their submission to the beginning of each, in
            milliseconds.
        moved: tasks that changed the node.
        received: tasks that each node got from others.
    """

    submitted: int = 0
    done: int = 0
    done_in_time: int = 0
    seconds: float = 0.0
    delays_ms: list[float] = field(default_factory=list)
    moved: int = 0
    received: dict[bytes, int] = field(default_factory=dict)

    def delay_ms(self, share: float) -> float:
        """Return the delay that this share of the tasks did not exceed."""
        ordered = sorted(self.delays_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class SimWorker:
    """A worker: it runs what it was given, one task after another, in virtual time."""

    def __init__(self, node: ClusterNode, process: bytes) -> None:
        self.node = node
        self.process = process
        self.queue: deque[tuple[Range, int, int]] = deque()
        self.busy = False

    def run(self, work: Range, low: int, high: int) -> None:
        self.queue.append((work, low, high))
        if not self.busy:
            self._begin()

    def _begin(self) -> None:
        """Run the next range up to a report: a few milliseconds, or one task that is longer."""
        cluster = self.node.cluster
        work, low, high = self.queue[0]
        task_s = cluster.task_s(work)
        count = max(1, min(high - low, int(0.002 / task_s)))
        self.busy = True
        cluster.began(work, low, count, task_s)
        self.queue[0] = (work, low + count, high)
        if low + count >= high:
            self.queue.popleft()
        cluster.after(count * task_s, lambda: self._ended(work, low, low + count, task_s))

    def _ended(self, work: Range, low: int, high: int, task_s: float) -> None:
        self.busy = False
        self.node.cluster.ended(self.node, work, high - low)
        report = [work.task_class.client, work.first, low, high, int((high - low) * task_s * 1e6)]
        if self.queue:
            self._begin()
        self.node.finished(self.process, report)

    def reclaim(self, count: int | None) -> None:
        """Give back what has not begun, from the end."""
        left = 10**9 if count is None else count
        rows: list[list[Any]] = []
        while self.queue and left > 0:
            work, low, high = self.queue.pop()
            keep = max(low, high - left)
            if keep > low:
                self.queue.append((work, low, keep))
            left -= high - keep
            rows.insert(0, [work.task_class.client, work.first, keep, high])
        self.node.scheduler.reclaimed(self.process, rows)


class ClusterNode:
    """A node: the real scheduler and table, and what the node process does around them."""

    def __init__(self, cluster: Cluster, number: int, cpus: int) -> None:
        self.cluster = cluster
        self.id = number.to_bytes(4, "big") + bytes(4)
        self.resources = ResourceSet({CPU: cpus * RESOURCE_UNITS})
        self.scheduler = Scheduler(self.resources, pool_size=cpus)
        self.table = LoadTable(self.id)
        self.workers: dict[bytes, SimWorker] = {}
        self.revision = 0
        self.asked = False
        self.steal_after_s = _STEAL_AFTER_S
        self.spilled_at = -1.0
        self.timer = False
        self.free_at = 0.0
        self.done = 0
        for at in range(cpus):
            process = self.id[:4] + (at + 1).to_bytes(4, "big")
            self.workers[process] = SimWorker(self, process)
            self.scheduler.worker_forked(process, ())
            self.scheduler.worker_ready(process)
        self.scheduler.commands.clear()

    # -- load ------------------------------------------------------------------------------------

    def row(self) -> NodeLoad:
        """Return this node's row of the load table, as it is now."""
        self.revision += 1
        scheduler = self.scheduler
        queued_us = sum(
            work.task_class.estimate_us * (work.high - work.low) for work in self.queued()
        )
        now = self.cluster.now
        busy = [
            max(0.0, worker.backlog_us - (now - worker.reported) * 1e6)
            for worker in scheduler.workers.values()
        ]
        wait_us = int(estimate_wait_us(queued_us, busy))
        tasks = scheduler.queues.task_count
        free = self.resources.available
        return NodeLoad(self.id, 1, self.revision, self.resources.total, free, {}, tasks, wait_us)

    def queued(self) -> list[Range]:
        """Return the queued ranges, first the one that is next."""
        return list(self.scheduler.queues.all_ranges())

    # -- tasks -----------------------------------------------------------------------------------

    def submit(self, number: int, first: int, count: int) -> None:
        """A driver of this node submits a batch: it is taken in when the node gets to it."""
        self.when_free(
            count * self.cluster.costs.local_us, lambda: self.take_in(number, first, count)
        )

    def when_free(self, cost_us: float, action: Callable[[], None]) -> None:
        """Do something that costs the node process time, behind what it does already."""
        self.spend(cost_us)
        self.cluster.after(self.free_at - self.cluster.now, action)

    def spend(self, cost_us: float) -> None:
        """The node process is busy for so long: what comes next waits for it."""
        self.free_at = max(self.cluster.now, self.free_at) + cost_us * 1e-6

    def take_in(self, number: int, first: int, count: int) -> None:
        """Queue a batch."""
        self.scheduler.submit(self.client(number), [[number, first, count, 0, count, 0, 3]], [b""])
        self.settle()

    def client(self, number: int) -> bytes:
        """Return the driver here, with the class declared."""
        if (self.id, number) not in self.scheduler.classes:
            spec = [b"f", "f", {CPU: RESOURCE_UNITS}, 1, 3, None, 0, {}, 0]
            self.scheduler.declare(self.id, number, spec)
            self.scheduler.classes[(self.id, number)].estimate_us = self.cluster.class_us(number)
        return self.id

    def receive(self, row: NodeLoad, parts: list[Range]) -> None:
        """Ranges come from another node; they are queued here as moved."""
        self.table.heard(row)
        for part in parts:
            moved = part.task_class.key[1] + _HOP
            count = part.high - part.low
            self.cluster.outcome.received[self.id] = (
                self.cluster.outcome.received.get(self.id, 0) + count
            )
            client = self.client(moved)
            fields = [moved, part.first, part.count, part.low, part.high, 0, part.retries]
            self.scheduler.submit(client, [fields], [b""])
        self.asked = False
        self.steal_after_s = _STEAL_AFTER_S if parts else self.steal_after_s
        # As the report of what has ended does in a live node: the sender hears how it is here.
        own, sender = self.row(), self.cluster.by_id[row.node]
        self.cluster.post(lambda: sender.table.heard(own))
        self.settle()

    def finished(self, process: bytes, report: list[Any]) -> None:
        """A worker reports."""
        self.scheduler.finished(process, [report], self.cluster.now)
        self.settle()

    # -- after every event -----------------------------------------------------------------------

    def settle(self) -> None:
        """Perform commands; hand over what is too much; ask for work where there is none."""
        self.perform()
        if self.cluster.way == BOTTOM_UP and len(self.cluster.nodes) > 1:
            now = self.cluster.now
            if self.scheduler.queues.task_count:
                if now - self.spilled_at >= _SPILL_EVERY_S:
                    self.spilled_at = now
                    self.spend(self.cluster.costs.handover_us)
                    self.spill()
            elif not self.asked and any(not worker.busy for worker in self.workers.values()):
                self.ask_for_work()
        if self.scheduler.needs_tick() and not self.timer:
            self.timer = True
            self.cluster.after(0.005, self.tick)

    def tick(self) -> None:
        """The node's timer while workers have more than they run."""
        self.timer = False
        self.scheduler.tick(self.cluster.now)
        self.settle()

    def perform(self) -> None:
        while self.scheduler.commands:
            commands, self.scheduler.commands = self.scheduler.commands, []
            for command in commands:
                if isinstance(command, Run):
                    self.workers[command.worker].run(command.work, command.low, command.high)
                elif isinstance(command, Reclaim):
                    self.workers[command.worker].reclaim(command.count)
                else:
                    assert isinstance(command, Fork), command

    def snapshot(self) -> list[Waiting]:
        """Return the end of the queue as the global decision sees it."""
        return [
            Waiting(
                Request(work.task_class.shape.amounts),
                work.high - work.low,
                work.task_class.estimate_us,
                hops=work.task_class.key[1] // _HOP,
            )
            for work in self.queued()[-_TAIL_RANGES:]
        ]

    def spill(self) -> None:
        self.table.changed_here(self.row())
        handovers = spill(
            self.snapshot(), self.table, counter=self.cluster.counter(), now=self.cluster.now
        )
        self.hand_over(handovers)

    def hand_over(self, handovers: list[Handover]) -> None:
        """Cut the ranges from the queue and send each node its own."""
        ranges = self.queued()[-_TAIL_RANGES:]
        parcels: dict[bytes, list[Range]] = {}
        for each in handovers:
            work = ranges[each.index]
            cut = work.high - each.count
            assert cut >= work.low, "more was handed over than there is"
            parcels.setdefault(each.node, []).append(work.tail(cut))
            work.high = cut
            self.scheduler.queues.counts[work.task_class.shape] -= each.count
        for shape, queue in self.scheduler.queues.by_shape.items():
            if any(work.low >= work.high for work in queue):
                kept = deque(work for work in queue if work.low < work.high)
                self.scheduler.queues.by_shape[shape] = kept
        for node, parts in parcels.items():
            self.send(self.cluster.by_id[node], parts)

    def send(self, receiver: ClusterNode, parts: list[Range]) -> None:
        """Send ranges; an empty parcel says no to a thief."""
        self.cluster.outcome.moved += sum(part.high - part.low for part in parts)
        row = self.row()
        cost_us = sum(part.high - part.low for part in parts) * self.cluster.costs.local_us
        self.spend(cost_us)
        self.cluster.post(lambda: receiver.when_free(cost_us, lambda: receiver.receive(row, parts)))

    # -- stealing --------------------------------------------------------------------------------

    def ask_for_work(self) -> None:
        self.table.changed_here(self.row())
        self.spend(self.cluster.costs.handover_us)
        found = steal_from(self.table, seed=self.cluster.counter(), now=self.cluster.now)
        if found is None:
            return
        victim, asked_us = found
        self.asked = True
        row = self.row()
        self.cluster.post(lambda: self.cluster.by_id[victim].asked_for_work(self, row, asked_us))

    def asked_for_work(self, thief: ClusterNode, row: NodeLoad, asked_us: int) -> None:
        """A node without work asks: it gets a part of the queue, or hears how it is here."""
        self.table.heard(row)
        self.table.changed_here(self.row())
        self.spend(self.cluster.costs.handover_us)
        handovers = give(self.snapshot(), thief.id, asked_us, self.table, now=self.cluster.now)
        if handovers:
            self.hand_over(handovers)
        else:
            own = self.row()
            self.cluster.post(lambda: thief.refused(own))

    def refused(self, row: NodeLoad) -> None:
        """There was nothing to steal: ask again later, and later still."""
        self.table.heard(row)
        delay = self.steal_after_s
        self.steal_after_s = min(_STEAL_AFTER_MAX_S, delay * 2)
        self.cluster.after(delay, self.ask_again)

    def ask_again(self) -> None:
        self.asked = False
        self.settle()


class Cluster:
    """Nodes, network and clock of one run.

    Args:
        count: nodes.
        way: BOTTOM_UP, RANDOM or CENTRAL.
        load: what is submitted.
        cpus: of each node.
        seed: of the network and of who submits when.
        costs: service time of decisions.
    """

    def __init__(
        self,
        count: int,
        way: str,
        load: Load,
        *,
        cpus: int = 4,
        seed: int = 1,
        costs: Costs | None = None,
    ) -> None:
        self.way = way
        self.load = load
        self.rng = random.Random(seed)
        self.now = 0.0
        self.outcome = Outcome()
        self.costs = costs or Costs()
        self.central_free_at = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._counter = 0
        self._batches = 0
        self._submitted: dict[int, float] = {}
        """When each batch was submitted."""
        self._left: dict[int, int] = {}
        """Tasks of each batch that have not ended yet."""
        self.nodes: list[ClusterNode] = []
        self.nodes = [ClusterNode(self, number, cpus) for number in range(1, count + 1)]
        self.by_id = {node.id: node for node in self.nodes}
        self.slots = count * cpus
        self._central_queued = [0.0] * count
        self._place = 0

    # -- time and network ------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, action))

    def post(self, action: Callable[[], None]) -> None:
        """Run an action at another node: 0.1 to 0.5 ms later."""
        self.after(self.rng.uniform(0.0001, 0.0005), action)

    def counter(self) -> int:
        """Return a number that grows."""
        self._counter += 1
        return self._counter

    def run(self) -> Outcome:
        """Run until every task has ended, and return what came of it."""
        kinds = range(len(self.load.task_us))
        mean_count = sum(self.load.count(kind) for kind in kinds) / len(kinds)
        sources = max(1, round(len(self.nodes) * self.load.hot))
        if self.load.seconds:
            for node in self.nodes[:sources]:
                mean_s = mean_count * sources / self.offered_per_s()
                self.after(self.rng.uniform(0, mean_s), self._source(node, mean_s))
        self.publish()
        while self._heap and (self.outcome.done < self.outcome.submitted or self._open()):
            when, _count, action = heapq.heappop(self._heap)
            self.now = when
            action()
        self.outcome.seconds = self.now
        return self.outcome

    def _open(self) -> bool:
        return self.now < self.load.seconds

    def publish(self) -> None:
        """The GCS publishes every node's row to every node, as often as it would live."""
        rows = [node.row() for node in self.nodes]
        for node in self.nodes:
            node.table.published(rows)
            if self._batches and self.way == BOTTOM_UP:
                node.settle()
        count = len(self.nodes)
        self.after(spacing_s(count, count * ROW_BYTES), self.publish)

    # -- submitting ------------------------------------------------------------------------------

    def _source(self, node: ClusterNode, mean_s: float) -> Callable[[], None]:
        def submit() -> None:
            if self._open():
                self.submit(node)
                self.after(self.rng.expovariate(1 / mean_s), submit)

        return submit

    def submit(self, node: ClusterNode, count: int | None = None) -> None:
        """A batch is submitted at a node, and placed in this run's way."""
        self._batches += 1
        number = self._batches
        kind = number % len(self.load.task_us)
        count = self.load.count(kind) if count is None else count
        first = number << 16
        self._submitted[number] = self.now
        self._left[number] = count
        self.outcome.submitted += count
        if self.way == BOTTOM_UP:
            node.submit(kind, first, count)
        elif self.way == RANDOM:
            other = self.rng.choice(self.nodes)
            self.post(lambda: other.submit(kind, first, count))
        else:
            self.post(lambda: self._decide(kind, first, count))

    def _decide(self, kind: int, first: int, count: int) -> None:
        """The central scheduler takes its time, then sends the batch on.

        It knows all that it has sent, and gives to the node with least of it; of what has ended
        since it hears nothing, and nothing is moved afterwards.
        """
        begin = max(self.now, self.central_free_at)
        cost_us = self.costs.central_us + count * self.costs.local_us
        self.central_free_at = begin + cost_us * 1e-6
        self._place = (self._place + 1) % len(self.nodes)
        least = min(
            range(self._place, self._place + min(64, len(self.nodes))),
            key=lambda at: self._central_queued[at % len(self.nodes)],
        ) % len(self.nodes)
        work_us = count * self.load.task_us[kind]
        self._central_queued[least] += work_us
        other = self.nodes[least]

        def placed() -> None:
            self.post(lambda: other.submit(kind, first, count))

        self.after(self.central_free_at - self.now, placed)

    # -- the books -------------------------------------------------------------------------------

    def class_us(self, number: int) -> float:
        """Return the duration of a class's tasks, which is what their estimate will be."""
        return self.load.task_us[number % _HOP]

    def task_s(self, work: Range) -> float:
        """Return the duration of a range's tasks."""
        return self.class_us(work.task_class.key[1]) * 1e-6

    def began(self, work: Range, low: int, count: int, task_s: float) -> None:
        """Tasks begin one after another: note how long they have waited for it."""
        number = work.first >> 16
        waited = self.now - self._submitted[number]
        delays = self.outcome.delays_ms
        delays += [(waited + step * task_s) * 1e3 for step in range(0, count, max(1, count // 4))]

    def ended(self, node: ClusterNode, work: Range, count: int) -> None:
        """Tasks have ended at a node."""
        self.outcome.done += count
        self.outcome.done_in_time += count if self._open() else 0
        self._left[work.first >> 16] -= count
        node.done += count

    def offered_per_s(self) -> float:
        """Return how many tasks are submitted in a second."""
        return self.slots * self.load.per_slot / self.load.mean_task_us() * 1e6

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for node in self.nodes:
            node.scheduler.check()
            node.table.check()
        for number, left in self._left.items():
            assert left == 0, f"batch {number}: {left} tasks were lost, or ran twice"
