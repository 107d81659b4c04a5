"""Many nodes on a virtual clock: the real Scheduler and the real placement, thousands of times.

What    Cluster runs one Scheduler for each node, which borrows, lends and offers workers as a live
        one does, with workers that take virtual time and a network that takes some and keeps the
        order of each pair of nodes. It counts every task: where it ran, how long it waited for a
        place. Three ways to place: bottom-up as zray does it, at random, and by one central
        scheduler with a service time for each decision.
Caller  tests/sim/test_cluster.py, scripts/bench/scaling.py.
Never   reads a real clock, except to measure what one central decision costs.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from zray.brokers.gcs.loads import spacing_s
from zray.brokers.load import NodeLoad
from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import (
    Borrow,
    Command,
    Fork,
    GiveBack,
    Lend,
    Offer,
    Range,
    Reclaim,
    Run,
    Suspect,
    WantBack,
)
from zray.protocol.ids import node_of
from zray.protocol.units import CPU, RESOURCE_UNITS

BOTTOM_UP, RANDOM, CENTRAL = "bottom-up", "random", "central"
ROW_BYTES = 150
"""Of the load table, as a message carries it."""

_TICK_S = 0.005
_LOOK_EVERY_S = 0.001
"""A live node looks around after each wake; here it is not asked more often than this."""
_FORK_S = 0.003


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
        local_us: of every scheduler for its books, microseconds a task.
        look_us: of a node with work that waits, each time it looks for room elsewhere.
        loan_us: of a node that is asked for a worker.
        message_us: of a node for each message to or from another one.
    """

    central_us: float = 0.0
    local_us: float = 0.0
    look_us: float = 0.0
    loan_us: float = 0.0
    message_us: float = 0.0


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
        moved: tasks that ran on another node than where they were queued.
        received: tasks of others that each node ran.
        lent: how often each node has lent a worker.
    """

    submitted: int = 0
    done: int = 0
    done_in_time: int = 0
    seconds: float = 0.0
    delays_ms: list[float] = field(default_factory=list)
    moved: int = 0
    received: dict[bytes, int] = field(default_factory=dict)
    lent: dict[bytes, int] = field(default_factory=dict)

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
        cluster.began(self.node, work, count, task_s)
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
        self._say(lambda node: node.scheduler.finished(self.process, [report], node.cluster.now))

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
        self._say(lambda node: node.scheduler.reclaimed(self.process, rows))

    def _say(self, words: Callable[[ClusterNode], None]) -> None:
        """Tell the node that it works for: its own, or who has borrowed it."""
        loan = self.node.scheduler.lending.loans.get(self.process)
        if loan is None:
            words(self.node)
            self.node.settle()
        else:
            self.node.send(loan.borrower, words)


class ClusterNode:
    """A node: the real scheduler, and what the node process does around it."""

    def __init__(self, cluster: Cluster, number: int, cpus: int) -> None:
        self.cluster = cluster
        self.id = number.to_bytes(4, "big") + bytes(4)
        self.resources = ResourceSet({CPU: cpus * RESOURCE_UNITS})
        self.scheduler = Scheduler(self.resources, pool_size=cpus, node=self.id)
        self.workers: dict[bytes, SimWorker] = {}
        self.looked_at = -1.0
        self.tick_at = float("inf")
        self.free_at = 0.0
        self.done = 0
        self.scheduler.start_pool()
        for worker in self.perform():
            self.scheduler.worker_ready(worker)
        self.perform()

    def row(self) -> NodeLoad:
        """Return this node's row of the load table, as it is now."""
        return self.scheduler.borrowing.report(self.cluster.now)

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
        scheduler = self.scheduler
        if (self.id, number) not in scheduler.classes:
            spec = [b"f", "f", {CPU: RESOURCE_UNITS}, 1, 3, None, 0, {}, 0]
            scheduler.declare(self.id, number, spec)
            declared = scheduler.classes[(self.id, number)]
            declared.estimate_us, declared.has_run = self.cluster.load.task_us[number], True
        scheduler.now = self.cluster.now
        scheduler.submit(self.id, [[number, first, count, 0, count, 0, 3]], [b""])
        self.settle()

    # -- other nodes -----------------------------------------------------------------------------

    def send(self, node: bytes, words: Callable[[ClusterNode], None]) -> None:
        """Say something to another node, which hears it in order, and when it gets to it."""
        receiver = self.cluster.by_id[node]

        def arrived() -> None:
            receiver.when_free(self.cluster.costs.message_us, heard)

        def heard() -> None:
            words(receiver)
            receiver.settle()

        self.spend(self.cluster.costs.message_us)
        self.cluster.post(self.id, node, arrived)

    def heard_table(self, rows: list[NodeLoad]) -> None:
        """The GCS has published the table."""
        for row in rows:
            if row.node != self.id:
                self.scheduler.borrowing.heard(row)

    # -- after every event -----------------------------------------------------------------------

    def settle(self) -> None:
        """Perform commands, and what brokers/loans.py does after each wake."""
        scheduler, now = self.scheduler, self.cluster.now
        self.perform()
        if self.cluster.way == BOTTOM_UP and now - self.looked_at >= _LOOK_EVERY_S:
            self.looked_at = now
            scheduler.lending.tick(now)
            if scheduler.borrowing.needs_tick:
                self.spend(self.cluster.costs.look_us)
            scheduler.borrowing.seek(now)
            scheduler.offering.tick(now)
            scheduler.borrowing.sweep(now)
            self.perform()
        self.tick_later()

    def tick_later(self) -> None:
        """Wake up when the machines want it."""
        scheduler, now = self.scheduler, self.cluster.now
        due = _TICK_S if scheduler.needs_tick() else float("inf")
        if self.cluster.way == BOTTOM_UP:
            if scheduler.borrowing.needs_tick or scheduler.lending.needs_tick:
                due = min(due, _TICK_S)
            due = min(due, max(_LOOK_EVERY_S, scheduler.offering.due_s(now)))
        if now + due < self.tick_at - 1e-9:
            self.tick_at = now + due
            self.cluster.after(due, partial(self.tick, self.tick_at))

    def tick(self, at: float) -> None:
        """The node's timer; one that was overtaken by an earlier one does nothing."""
        if at == self.tick_at:
            self.tick_at = float("inf")
            self.scheduler.tick(self.cluster.now)
            self.settle()

    def perform(self) -> list[bytes]:
        """Do what the scheduler commands; returns the workers that were started."""
        started: list[bytes] = []
        while self.scheduler.commands:
            commands, self.scheduler.commands = self.scheduler.commands, []
            for command in commands:
                if isinstance(command, Fork):
                    started += [self._fork() for _ in range(command.count)]
                else:
                    self._obey(command)
        return started

    def _fork(self) -> bytes:
        process = self.id[:4] + (len(self.workers) + 1).to_bytes(4, "big")
        self.workers[process] = SimWorker(self, process)
        self.scheduler.worker_forked(process, ())

        def ready() -> None:
            self.scheduler.worker_ready(process)
            self.settle()

        self.cluster.after(_FORK_S, ready)
        return process

    def _obey(self, command: Command) -> None:
        match command:
            case Run(worker=process, work=work, low=low, high=high):
                self._tell_worker(process, lambda worker: worker.run(work, low, high))
            case Reclaim(worker=process, count=count):
                self._tell_worker(process, lambda worker: worker.reclaim(count))
            case Borrow() | Lend() | GiveBack() | WantBack() | Offer():
                self._obey_about_loans(command)
            case _:
                assert isinstance(command, Suspect), command

    def _tell_worker(self, process: bytes, words: Callable[[SimWorker], None]) -> None:
        if process in self.workers:
            words(self.workers[process])
        else:
            self.send(node_of(process), lambda node: words(node.workers[process]))

    def _obey_about_loans(self, command: Command) -> None:
        own, cluster = self.id, self.cluster
        match command:
            case Borrow(node=node, request=number, placement=placement, resources=resources):
                patient = command.patient

                def borrow(other: ClusterNode) -> None:
                    other.spend(cluster.costs.loan_us)
                    other.scheduler.lending.borrow(
                        own,
                        number,
                        placement,
                        resources,
                        (),
                        for_actor=False,
                        patient=patient,
                        now=cluster.now,
                    )

                self.send(node, borrow)
            case Lend(node=node, request=number, worker=lent):
                if lent is not None:
                    cluster.outcome.lent[own] = cluster.outcome.lent.get(own, 0) + 1
                self.send(
                    node,
                    lambda other: other.scheduler.borrowing.lent(
                        own, number, lent, (), cluster.now
                    ),
                )
            case GiveBack(worker=process, lender=node, spent=spent):
                self.send(
                    node,
                    lambda other: other.scheduler.lending.given_back(own, process, spent=spent),
                )
            case WantBack(node=node, worker=process, if_idle=if_idle):
                self.send(
                    node,
                    lambda other: other.scheduler.borrowing.want_back(process, if_idle=if_idle),
                )
            case Offer(node=node):
                row = self.row()
                self.send(node, lambda other: other.scheduler.borrowing.offered(row, cluster.now))


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
        self._arrivals: dict[tuple[bytes, bytes], float] = {}
        """Of each pair of nodes: when the last message arrives, which the next one follows."""

    # -- time and network ------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, action))

    def post(self, sender: bytes, receiver: bytes, action: Callable[[], None]) -> None:
        """Run an action at another node: 0.1 to 0.5 ms later, behind what was sent before."""
        earliest = self._arrivals.get((sender, receiver), 0.0)
        arrival = max(earliest, self.now + self.rng.uniform(0.0001, 0.0005))
        self._arrivals[sender, receiver] = arrival
        self.after(arrival - self.now, action)

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
            self._step()
        self.outcome.seconds = self.now
        return self.outcome

    def rest(self, seconds: float) -> None:
        """Let time pass after the last task: workers that are lent go back."""
        until = self.now + seconds
        while self._heap and self._heap[0][0] < until:
            self._step()

    def _step(self) -> None:
        when, _count, action = heapq.heappop(self._heap)
        self.now = when
        action()

    def _open(self) -> bool:
        return self.now < self.load.seconds

    def publish(self) -> None:
        """The GCS publishes every node's row to every node, as often as it would live."""
        rows = [node.row() for node in self.nodes]
        for node in self.nodes if self.way == BOTTOM_UP else ():
            node.heard_table(rows)
            if self._batches:
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
            self.post(node.id, other.id, lambda: other.submit(kind, first, count))
        else:
            self.post(node.id, b"", lambda: self._decide(kind, first, count))

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
            self.post(b"", other.id, lambda: other.submit(kind, first, count))

        self.after(self.central_free_at - self.now, placed)

    # -- the books -------------------------------------------------------------------------------

    def task_s(self, work: Range) -> float:
        """Return the duration of a range's tasks."""
        return self.load.task_us[work.task_class.key[1]] * 1e-6

    def waited_s(self, work: Range) -> float:
        """Return how long ago a range was submitted."""
        return self.now - self._submitted[work.first >> 16]

    def began(self, node: ClusterNode, work: Range, count: int, task_s: float) -> None:
        """Tasks begin one after another: note how long they have waited for it."""
        waited = self.waited_s(work)
        delays = self.outcome.delays_ms
        delays += [(waited + step * task_s) * 1e3 for step in range(0, count, max(1, count // 4))]
        if work.task_class.client != node.id:
            self.outcome.moved += count
            received = self.outcome.received
            received[node.id] = received.get(node.id, 0) + count

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
        for number, left in self._left.items():
            assert left == 0, f"batch {number}: {left} tasks were lost, or ran twice"
