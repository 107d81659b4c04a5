"""Three schedulers that lend each other workers, and a network that delivers when it likes.

What    SimulatedNode does what brokers/loans.py does with the commands of a Scheduler; LendingWorld
        has the nodes, their workers and the messages under way, in order for each pair of nodes.
Caller  tests/property/test_lending_machine.py.
Never   decides anything: those who do are under test.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zray.brokers import scheduling
from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.protocol.ids import node_of

ONE = 10_000
KINDS: list[tuple[dict[str, int], int, int]] = [
    ({"CPU": ONE}, 3, 0),
    ({"CPU": ONE, "disk": ONE}, -1, 0),
    ({"CPU": ONE}, 3, 2),
    ({"CPU": ONE // 2}, 0, 0),
]
"""Resources, max_retries, max_calls."""
Task = tuple[bytes, int, int]


class Worker:
    """What a worker would do: run ranges in order, one item at a time."""

    def __init__(self) -> None:
        self.ranges: list[list[Any]] = []
        self.ready = False
        self.blocked = False


class SimulatedNode:
    """A node with one client, which is always there."""

    def __init__(self, world: LendingWorld, number: int, total: dict[str, int]) -> None:
        self.world = world
        self.id = b"N%03d" % number + bytes(4)
        self.client = b"N%03dclnt" % number
        self.resources = ResourceSet(total)
        self.scheduler = Scheduler(self.resources, pool_size=2, node=self.id)
        self.members: set[bytes] = set()
        self.workers: dict[bytes, Worker] = {}
        self.doomed: list[bytes] = []
        self.reclaims: list[tuple[bytes, int | None]] = []
        self.open: set[Task] = set()
        self.actors: dict[bytes, bytes] = {}
        """Actors of this node that have a worker."""
        self.next_worker = 0
        for kind, (resources, retries, max_calls) in enumerate(KINDS):
            spec = [b"f", f"f{kind}", resources, 1, retries, None, 0, {}, max_calls]
            self.scheduler.declare(self.client, kind, spec)
        self.scheduler.start_pool()

    def send(self, node: bytes, *message: Any) -> bool:
        """Send to a node that is a member."""
        if node in self.members:
            self.world.under_way[self.id, node].append(message)
        return node in self.members

    def perform(self) -> None:
        """Do what the scheduler commands."""
        while self.scheduler.commands:
            commands, self.scheduler.commands = self.scheduler.commands, []
            for command in commands:
                self._perform(command)

    def _perform(self, command: scheduling.Command) -> None:
        match command:
            case scheduling.Fork():
                for _ in range(command.count):
                    self.next_worker += 1
                    process = self.id[:4] + b"%04d" % self.next_worker
                    self.workers[process] = Worker()
                    self.scheduler.worker_forked(process, command.env)
            case scheduling.Run():
                work = command.work
                row = [work.task_class.client, work.first, command.low, command.high]
                self._to_worker(command.worker, "run", row)
            case scheduling.Reclaim():
                self._to_worker(command.worker, "reclaim", command.count)
            case scheduling.Kill():
                self._to_worker(command.worker, "end")
            case scheduling.Fail() | scheduling.Cancelled():
                for item in command.items:
                    self.open.remove((command.client, command.first, item))
            case scheduling.Claimed():
                if command.worker in self.scheduler.workers:
                    self.actors[command.actor] = command.worker
                else:
                    self.actors.pop(command.actor, None)
            case _:
                self._perform_loan(command)

    def _perform_loan(self, command: scheduling.Command) -> None:
        match command:
            case scheduling.Borrow():
                details = (command.placement, command.resources, command.for_actor, command.patient)
                if not self.send(command.node, "borrow", command.request, *details):
                    self.scheduler.borrowing.lent(
                        command.node, command.request, None, (), self.world.now
                    )
            case scheduling.GiveBack():
                self.send(command.lender, "give back", command.worker, command.spent)
            case scheduling.Lend():
                self.send(command.node, "lent", command.request, command.worker)
            case scheduling.WantBack():
                self.send(command.node, "wanted back", command.worker, command.if_idle)
            case scheduling.Offer():
                now = self.world.now
                self.send(command.node, "offer", self.scheduler.borrowing.report(now))
            case scheduling.LoanLost():
                self.send(command.node, "died", command.worker, command.reason)
            case scheduling.Suspect():
                pass  # Nobody is stopped here.
            case _:
                raise AssertionError(f"nobody expected {command}")

    def _to_worker(self, worker: bytes, what: str, *details: Any) -> None:
        if node_of(worker) != self.id:
            self.send(node_of(worker), what, worker, *details)
            return
        if what == "run":
            assert self.workers[worker].ready
            self.workers[worker].ranges.append(*details)
        elif what == "reclaim":
            self.reclaims.append((worker, *details))
        else:
            self.doomed.append(worker)

    # -- what comes from other nodes ---------------------------------------------------------------

    def receive(self, peer: bytes, message: tuple[Any, ...]) -> None:
        """Handle a message as brokers/loans.py does."""
        what, *fields = message
        scheduler, now = self.scheduler, self.world.now
        match what:
            case "load":
                scheduler.borrowing.heard(fields[0])
            case "offer":
                scheduler.borrowing.offered(fields[0], now)
            case "borrow":
                number, placement, resources, for_actor, patient = fields
                scheduler.lending.borrow(
                    peer,
                    number,
                    placement,
                    resources,
                    (),
                    for_actor=for_actor,
                    patient=patient,
                    now=now,
                )
            case "lent":
                scheduler.borrowing.lent(peer, fields[0], fields[1], (), now)
            case "give back":
                scheduler.lending.given_back(peer, fields[0], spent=fields[1])
            case "wanted back":
                scheduler.borrowing.want_back(fields[0], if_idle=fields[1])
            case "died":
                if scheduler.workers.get(fields[0]) is not None:
                    self.worker_died(*fields)
            case "run" | "reclaim":
                if scheduler.lending.is_lent_to(peer, fields[0]) and fields[0] in self.workers:
                    self._to_worker(fields[0], what, *fields[1:])
            case "end":
                scheduler.lending.end(peer, fields[0])
            case "from":
                if fields[0] in scheduler.borrowing.borrowed:
                    self.worker_says(*fields)
            case _:
                raise AssertionError(f"nobody expected {message}")
        self.perform()

    def lose(self, peer: bytes) -> None:
        """The link to another node has ended."""
        self.members.discard(peer)
        for worker in self.scheduler.borrowing.node_lost(peer):
            self.worker_died(worker, "its node is gone")
        self.scheduler.lending.node_lost(peer)
        self.perform()

    def tell(self, worker: bytes, what: str, *details: Any) -> None:
        """A worker of this node says something of its work."""
        loan = self.scheduler.lending.loans.get(worker)
        if loan is not None:
            self.send(loan.borrower, "from", worker, what, *details)
        if loan is None or what in ("blocked", "unblocked"):
            self.worker_says(worker, what, *details)
        self.perform()

    def worker_says(self, worker: bytes, what: str, *details: Any) -> None:
        """What a worker that works for this node has said has arrived."""
        if what == "finished":
            (row,) = details
            client, first, low, high, _busy_us = row
            state = self.scheduler.workers.get(worker)
            for work in state.outstanding if state is not None else ():
                if (work.task_class.client, work.first, work.low) == (client, first, low):
                    # What was cut off since by a cancel with force runs once more elsewhere.
                    done = range(low, min(high, work.high))
                    self.open.difference_update((client, first, item) for item in done)
                    break
            self.scheduler.finished(worker, [row], self.world.now)
        elif what == "gives back":
            self.scheduler.reclaimed(worker, *details)
        elif what == "blocked":
            self.scheduler.blocked(worker)
        else:
            self.scheduler.unblocked(worker)

    def worker_died(self, worker: bytes, reason: str) -> None:
        """A worker of this node, or one that was lent to it, is dead."""
        self.workers.pop(worker, None)
        self.scheduler.worker_died(worker, reason)
        self.actors = {actor: home for actor, home in self.actors.items() if home != worker}
        self.perform()

    def passes(self) -> None:
        """Time has passed."""
        now, scheduler = self.world.now, self.scheduler
        scheduler.tick(now)
        scheduler.retire(now, 5.0)
        scheduler.lending.tick(now)
        scheduler.borrowing.seek(now)
        scheduler.offering.tick(now)
        scheduler.borrowing.sweep(now)
        for member in sorted(self.members):
            self.send(member, "load", scheduler.borrowing.report(now))
        self.perform()


class LendingWorld:
    """The nodes that live, and what is under way between them."""

    def __init__(self) -> None:
        self.now = 1.0
        self.under_way: dict[tuple[bytes, bytes], deque[tuple[Any, ...]]] = {}
        totals = [{"CPU": 2 * ONE}, {"CPU": 2 * ONE, "disk": ONE}, {"CPU": ONE, "disk": ONE}]
        nodes = [SimulatedNode(self, number, total) for number, total in enumerate(totals, 1)]
        self.nodes = {node.id: node for node in nodes}
        self.ended: list[tuple[bytes, bytes]] = []
        """(who has still to notice, whose link has ended)."""
        for node in nodes:
            for other in nodes:
                if other is not node:
                    self.join(node, other)
        for node in nodes:
            node.perform()

    def join(self, node: SimulatedNode, other: SimulatedNode) -> None:
        """``node`` may send to ``other`` from now on."""
        node.members.add(other.id)
        self.under_way[node.id, other.id] = deque()
        node.send(other.id, "load", node.scheduler.borrowing.report(self.now))

    def deliver(self, way: tuple[bytes, bytes]) -> None:
        """Hand the next message of a link to its receiver."""
        message = self.under_way[way].popleft()
        self.nodes[way[1]].receive(way[0], message)

    def break_link(self, one: bytes, other: bytes, arrive: int) -> None:
        """A link ends both ways: some of what was under way arrives, then both notice."""
        for way in ((one, other), (other, one)):
            for _ in range(min(arrive, len(self.under_way[way]))):
                if way[1] in self.nodes:
                    self.deliver(way)
            self.under_way[way].clear()
        for node, peer in ((one, other), (other, one)):
            self.nodes[node].lose(peer)
        for way in ((one, other), (other, one)):
            self.under_way[way].clear()

    def kill_node(self, victim: bytes, arrive: int) -> None:
        """A node is gone: some of what it had sent arrives, then the others notice."""
        for other in [each for each in self.nodes if each != victim]:
            if other in self.nodes[victim].members:
                way = (victim, other)
                for _ in range(min(arrive, len(self.under_way[way]))):
                    self.deliver(way)
                self.nodes[other].lose(victim)
            self.under_way.pop((victim, other), None)
            self.under_way.pop((other, victim), None)
        del self.nodes[victim]

    def settle(self) -> bool:
        """Let everything take its course; returns whether all tasks have ended."""
        for _round in range(400):
            self.now += 0.02
            for node in list(self.nodes.values()):
                self._work(node)
            while any(self.under_way.values()):
                for way in list(self.under_way):
                    while self.under_way[way]:
                        self.deliver(way)
            for node in self.nodes.values():
                node.passes()
            if self.is_quiet:
                return True
        return False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is to be done any more."""
        return not any(
            node.open
            or node.doomed
            or node.scheduler.borrowing.borrowed
            or node.scheduler.lending.loans
            or node.scheduler.claims
            for node in self.nodes.values()
        )

    def _work(self, node: SimulatedNode) -> None:
        for process in list(node.doomed):
            node.doomed.remove(process)
            if process in node.workers:
                node.worker_died(process, "killed")
        while node.reclaims:
            self.give_back(node, hurry=False)
        for process, worker in list(node.workers.items()):
            if not worker.ready:
                worker.ready = True
                node.scheduler.worker_ready(process)
                node.perform()
            elif worker.ranges:
                if worker.blocked:
                    worker.blocked = False
                    node.tell(process, "unblocked")
                self.finish(node, process, 1000, 5000)

    def finish(self, node: SimulatedNode, process: bytes, count: int, busy_us: int) -> None:
        """A worker does some of its first range."""
        ranges = node.workers[process].ranges
        client, first, low, high = ranges[0]
        done = min(high, low + count)
        ranges[0][2] = done
        if done == high:
            del ranges[0]
        node.tell(process, "finished", [client, first, low, done, busy_us])

    def give_back(self, node: SimulatedNode, *, hurry: bool) -> None:
        """A worker answers the oldest RECLAIM."""
        process, count = node.reclaims.pop(0)
        worker = node.workers.get(process)
        if worker is None:
            return
        rows: list[list[Any]] = []
        left = 1 << 30 if count is None else count
        for position, work in reversed(list(enumerate(worker.ranges))):
            low = max(work[2] + (1 if position == 0 else 0), work[3] - left)
            if low < work[3] and not hurry:
                rows.insert(0, [work[0], work[1], low, work[3]])
                left -= work[3] - low
                work[3] = low
        worker.ranges = [work for work in worker.ranges if work[2] < work[3]]
        node.tell(process, "gives back", rows)
