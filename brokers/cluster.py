"""This node among others: its links, and what it does there for its own processes.

What    Cluster holds the link inbox and the links, knows who is there, and carries: what processes
        of two nodes say to each other, work for borrowed workers, holds of foreign objects.
        The rules per message are in brokers/link_rules.py.
Caller  brokers/node.py: poll, serve(), after_wake(), sweep().
Never   decides where work goes (brokers/borrowing.py) or who holds what (brokers/directory.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net import mailbox
from zray.net.curve import ClusterKeys, Role
from zray.net.link_inbox import LinkInbox, Payload, Sender
from zray.net.links import Links, LinkState
from zray.protocol import frames, link_messages, messages
from zray.protocol.ids import node_of

from . import scheduling
from .allocator import Extent
from .peers import Process
from .resources import Grant

if TYPE_CHECKING:
    from .node import Node

_BATCH_MESSAGES = 1000
_LOAD_S = 0.1
_CHUNK_BYTES = 1 << 20
_WINDOW_CHUNKS = 8


FORWARDED_MAIL = frozenset((messages.FINISHED, messages.ACTOR_STARTED))
FORWARDED_CALLS = frozenset(
    (messages.RECLAIMED, messages.ACTOR_EXIT, messages.BLOCKED, messages.UNBLOCKED)
)
"""What a lent worker tells of its work: for who has borrowed it."""
BOTH_CALLS = frozenset((messages.BLOCKED, messages.UNBLOCKED))
"""Of these: its own node counts the CPU, the borrower the work."""


@dataclass(slots=True)
class Member:
    """Another node of the cluster."""

    node: bytes
    address: str
    details: dict[str, Any]
    link: bytes
    """What Links knows it by: the address, where we dialled before we knew who is there."""
    stream: bytes = b""
    """Of the link it sends on: what comes on an older one is of an earlier life."""


@dataclass(slots=True)
class Pull:
    """An object on its way here."""

    identity: bytes
    nbytes: int
    source: bytes
    extent: Extent | None = None
    asked: int = 0
    arrived: int = 0


class _Lifeline:
    """What the node writes to a borrowed worker's lifeline: through its own node."""

    def __init__(self, cluster: Cluster, worker: bytes) -> None:
        self._cluster = cluster
        self._worker = worker
        self.outbound_bytes = 0

    def queue(self, packed: bytes) -> None:
        """Send on."""
        self._cluster.send(
            node_of(self._worker), link_messages.TELL_WORKER, self._worker, packed
        )


@dataclass(slots=True)
class Lent:
    """A worker of ours that works for another node."""

    borrower: bytes
    grant: Grant


class Cluster:
    """The other nodes, seen from this one.

    Args:
        node: whose loop this is a part of.
        keys: of the cluster's members; None: on this machine only.
        host: to bind, port: 0 for a free one, advertise: see LinkInbox.
    """

    def __init__(
        self,
        node: Node,
        keys: ClusterKeys | None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
    ) -> None:
        self.node = node
        self.context = mailbox.new_context()
        self.inbox = LinkInbox(self.context, keys, host=host, port=port, advertise=advertise)
        self.links = Links(self.context, node.process, keys, Role.NODE)
        for descriptor in (*self.inbox.descriptors, self.links.descriptor):
            node.watch(descriptor, self._readable)
        self.members: dict[bytes, Member] = {}
        self.joining: dict[bytes, str] = {}
        """Addresses that we dial without knowing who is there."""
        self.borrowed: dict[bytes, Process] = {}
        self.lent: dict[bytes, Lent] = {}
        self.lending: dict[bytes, tuple[bytes, int]] = {}
        """Claims of ours for others: by the claim's id, who asked with which number."""
        self.watchers: dict[bytes, set[bytes]] = {}
        """Local processes that watch an actor whose home is elsewhere."""
        self.places: dict[bytes, set[bytes]] = {}
        """Foreign workers, and the local processes that were told an actor lives there."""
        self.pulls: dict[bytes, Pull] = {}
        self.code_wanted: set[tuple[bytes, str]] = set()
        self.refused = 0
        self._more = True
        self._load_at = 0.0
        self._load: tuple[Any, ...] = ()

    # -- polling ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._more = True

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called, whatever is readable."""
        if self._more:
            return 0.0
        if self.node.scheduler.borrowing.needs_tick:
            return 0.005
        return _LOAD_S if self.members else 60.0

    def serve(self) -> None:
        """Handle what other nodes have sent."""
        from .link_rules import handle

        for event in self.links.events():
            if event.state is LinkState.CONNECTED:
                self._connected(event.peer)
            elif event.state is LinkState.DISCONNECTED:
                self._disconnected(event.peer)
            else:
                print(f"the link to {event.peer.hex()} was refused: {event.reason}", flush=True)
        if not self._more:
            return
        for _ in range(_BATCH_MESSAGES):
            received = self.inbox.receive()
            if received is None:
                self._more = False
                break
            handle(self, *received)
        while self.inbox.departed:
            self._departed(self.inbox.departed.popleft())

    def after_wake(self) -> None:
        """What waits here may run elsewhere; what is free here others may use."""
        node = self.node
        node.scheduler.borrowing.seek(node.now)
        if self.members and node.now >= self._load_at:
            self._load_at = node.now + _LOAD_S
            load = (node.resources.available, node.scheduler.queues.task_count)
            if load != self._load:
                self._load = load
                for member in self.members:
                    self.send(member, link_messages.LOAD, *load)

    def sweep(self) -> None:
        """A few times a second."""
        self.inbox.sweep()
        self.node.scheduler.borrowing.sweep(self.node.now)
        self._recall()

    def _recall(self) -> None:
        """Our own tasks wait: what we have lent is wanted back."""
        scheduler = self.node.scheduler
        if scheduler.queues.task_count or scheduler.claims:
            for worker, lent in self.lent.items():
                self.send(lent.borrower, link_messages.WANTED_BACK, worker)

    # -- who is there ----------------------------------------------------------------------------

    def dial(self, address: str) -> None:
        """Join whoever listens at an address."""
        link = address.encode()
        self.joining[link] = address
        self.links.connect(link, address)
        self._greet(link)

    def _greet(self, peer: bytes) -> None:
        node = self.node
        details = {
            "node": node.process,
            "address": self.inbox.address,
            "total": node.resources.total,
            "directory": node.directory,
            "members": [[each.node, each.address] for each in self.members.values()],
        }
        self.links.send(peer, frames.pack(link_messages.LINK_HELLO, details))

    def welcome(self, sender: Sender, details: dict[str, Any]) -> None:
        """LINK_HELLO: somebody is there; we greet it back, and whom it knows."""
        identity, address = details["node"], details["address"]
        if identity == self.node.process:
            return
        known = self.members.get(identity)
        if known is not None:
            known.stream = sender.stream
            return
        link = address.encode()
        if self.joining.pop(link, None) is None:
            self.links.connect(link, address)
            self._greet(link)
        self.members[identity] = Member(identity, address, details, link, sender.stream)
        self.node.objects.node_joined(identity)
        self.node.scheduler.borrowing.node_joined(identity, details["total"])
        self._load = ()
        print(f"node {identity.hex()} at {address} is there", flush=True)
        for other, where in details["members"]:
            if other != self.node.process and other not in self.members:
                self.dial(where)

    def _connected(self, _peer: bytes) -> None:
        return

    def _disconnected(self, link: bytes) -> None:
        for member in list(self.members.values()):
            if member.link == link:
                self.lost(member.node, "its connection ended")

    def _departed(self, sender: Sender) -> None:
        member = self.members.get(sender.peer)
        if member is not None and member.stream == sender.stream:
            self.lost(sender.peer, "its connection ended")

    def lost(self, identity: bytes, reason: str) -> None:
        """A node is gone, and all its processes."""
        self.links.drop(self.members.pop(identity).link)
        node = self.node
        print(f"node {identity.hex()} is gone: {reason}", flush=True)
        for worker in node.scheduler.borrowing.node_lost(identity):
            self.worker_lost(worker, f"its node is gone: {reason}")
        for worker, lent in list(self.lent.items()):
            if lent.borrower == identity:
                node.workers.kill(worker)  # Nobody knows what it is in the middle of.
        for claim, (borrower, _number) in list(self.lending.items()):
            if borrower == identity:
                del self.lending[claim]
                node.scheduler.withdraw(claim)
        node.objects.node_lost(identity)
        for pull in list(self.pulls.values()):
            if pull.source == identity:
                self.pull_failed(pull.identity)
        cause = f"its node {identity.hex()} is gone: {reason}"
        for worker in [each for each in self.places if node_of(each) == identity]:
            self.tell_of_death(worker, cause)
        self._end_foreign_actors(identity, cause)

    def _end_foreign_actors(self, home: bytes, cause: str) -> None:
        from .node import error_outcome

        found = error_outcome(errors.ActorDiedError(cause))
        for actor in [each for each in self.watchers if node_of(each) == home]:
            row = [actor, "DEAD", None, None, 1 << 30, found]
            for process in sorted(self.watchers.pop(actor)):
                self.node.send(process, messages.ACTOR_STATE, [row])

    # -- sending ---------------------------------------------------------------------------------

    def send(self, node: bytes, kind: int, *fields: Any, payloads: tuple[Payload, ...] = ()) -> bool:
        """Send to another node; False where it is gone, or does not read."""
        header = frames.pack(kind, *fields, payloads=len(payloads))
        return self._send(node, header, payloads)

    def _send(self, node: bytes, header: bytes, payloads: Sequence[Payload]) -> bool:
        member = self.members.get(node)
        return member is not None and self.links.send(member.link, header, payloads)

    def forward(self, source: bytes, destination: bytes, payloads: list[bytes]) -> None:
        """A process of ours says something to one of another node."""
        self.send(
            node_of(destination),
            link_messages.RELAY,
            destination,
            source,
            payloads=tuple(payloads),
        )

    def to_process(self, peer: bytes, header: bytes, payloads: tuple[bytes, ...]) -> bool:
        """What this node says to a process (or a node) that is not of it."""
        home = node_of(peer)
        if peer == home:
            return self._send(home, header, payloads)
        if peer in self.borrowed:
            return self.send(home, link_messages.TO_WORKER, peer, payloads=(header, *payloads))
        return self.send(
            home, link_messages.RELAY, peer, self.node.process, payloads=(header, *payloads)
        )

    # -- borrowed workers ------------------------------------------------------------------------

    def borrow(self, command: scheduling.Borrow) -> None:
        """Ask for a worker."""
        sent = self.send(
            command.node,
            link_messages.BORROW,
            command.request,
            command.amounts,
            [list(pair) for pair in command.env],
        )
        if not sent:
            self.node.scheduler.borrowing.lent(
                command.node, command.request, None, (), self.node.now
            )

    def worker_came(self, worker: bytes, pid: int) -> None:
        """A borrowed worker is ours to give work to."""
        process = Process(worker, "borrowed", pid, _Lifeline(self, worker), {"endpoint": ""})
        self.borrowed[worker] = process

    def give_back(self, command: scheduling.GiveBack) -> None:
        """A borrowed worker is not needed any more."""
        self.borrowed.pop(command.worker, None)
        self.send(command.lender, link_messages.GIVE_BACK, command.worker)

    def worker_lost(self, worker: bytes, reason: str) -> None:
        """A borrowed worker has died."""
        process = self.borrowed.pop(worker, None)
        if process is not None:
            self.node.tell_of_death(worker, reason, process)

    def end_worker(self, worker: bytes) -> None:
        """Kill a borrowed worker."""
        self.send(node_of(worker), link_messages.END_WORKER, worker)

    # -- lent workers ----------------------------------------------------------------------------

    def lend(self, claim: bytes, worker: bytes, grant: Grant) -> None:
        """The scheduler has served a claim that another node made."""
        borrower, number = self.lending.pop(claim)
        process = self.node.processes.by_id.get(worker)
        self.lent[worker] = Lent(borrower, grant)
        self.send(
            borrower,
            link_messages.LENT,
            number,
            worker,
            process.pid if process is not None else 0,
            list(grant.gpu_ids),
        )

    def take_mail(self, process: Process, kind: int, header: bytes) -> bool:
        """A lent worker reports of its work: to who has borrowed it. False: it is for us."""
        lent = self.lent.get(process.identity)
        if lent is None or kind not in FORWARDED_MAIL:
            return False
        self.send(lent.borrower, link_messages.FROM_WORKER, process.identity, header)
        return True

    def take_call(self, process: Process, kind: int, packed: bytes) -> bool:
        """The same of what it writes to its stream."""
        lent = self.lent.get(process.identity)
        if lent is None or kind not in FORWARDED_CALLS:
            return False
        self.send(lent.borrower, link_messages.FROM_WORKER, process.identity, packed)
        return kind not in BOTH_CALLS

    def is_elsewhere(self, job: str) -> bool:
        """Return whether another node that is there is the home of a job."""
        return bool(job) and node_of(bytes.fromhex(job)) in self.members

    def fetch_code(self, function: bytes, job: str) -> None:
        """A worker of ours is to run this: ask the job's home."""
        if (function, job) not in self.code_wanted and self.is_elsewhere(job):
            self.code_wanted.add((function, job))
            self.send(node_of(bytes.fromhex(job)), link_messages.CODE_WANTED, function, job)

    def own_worker_died(self, worker: bytes, reason: str) -> None:
        """A worker of ours has died: who has borrowed it is told."""
        lent = self.lent.pop(worker, None)
        if lent is not None:
            self.send(lent.borrower, link_messages.WORKER_DIED, worker, reason)

    # -- actors ----------------------------------------------------------------------------------

    def watch(self, process: bytes, actor: bytes) -> None:
        """A process of ours wants to know where an actor of another node lives."""
        home = node_of(actor)
        if home not in self.members:
            self._end_watch(process, actor)
            return
        watchers = self.watchers.setdefault(actor, set())
        watchers.add(process)
        self.send(home, messages.WATCH_ACTOR, actor)

    def _end_watch(self, process: bytes, actor: bytes) -> None:
        from .node import error_outcome

        found = error_outcome(errors.ActorDiedError("the node that made it is not there"))
        row = [actor, "DEAD", None, None, 1 << 30, found]
        self.node.send(process, messages.ACTOR_STATE, [row])

    def actor_states(self, rows: list[list[Any]]) -> None:
        """ACTOR_STATE of another node's actors: pass on to who watches them here."""
        for row in rows:
            actor, state, worker, _endpoint, incarnation, cause = row
            endpoint = None
            if worker is not None:
                own = self.node.processes.by_id.get(worker)
                endpoint = "" if own is None else own.details["endpoint"]
            watchers = self.watchers.get(actor, set())
            for process in sorted(watchers):
                if worker is not None:
                    self.places.setdefault(worker, set()).add(process)
                self.node.send(
                    process,
                    messages.ACTOR_STATE,
                    [[actor, state, worker, endpoint, incarnation, cause]],
                )
            if state == "DEAD":
                self.watchers.pop(actor, None)

    def tell_of_death(self, worker: bytes, reason: str) -> None:
        """PROCESS_DIED of another node: pass on to who had dealings with it here."""
        for process in sorted(self.places.pop(worker, ())):
            self.node.send(process, messages.PROCESS_DIED, worker, reason)

    def process_left(self, identity: bytes) -> None:
        """A process of ours is gone."""
        for watching in (*self.watchers.values(), *self.places.values()):
            watching.discard(identity)

    # -- objects ---------------------------------------------------------------------------------

    def pull(self, identity: bytes, nbytes: int, source: bytes) -> None:
        """Bring an object here."""
        if identity in self.pulls:
            return
        pull = self.pulls[identity] = Pull(identity, nbytes, source)

        def allocated(extent: Extent | None, _error: Exception | None) -> None:
            if self.pulls.get(identity) is not pull:
                if extent is not None:
                    self.node.store.freed(self.node.process, [extent.offset])
                return
            if extent is None:
                self.pull_failed(identity)
                return
            pull.extent = extent
            if extent.fresh:
                self.node.store.segment.commit(extent.offset, extent.nbytes)
            self._ask(pull)

        self.node.store.allocate(self.node.process, nbytes, time.monotonic(), allocated)

    def _ask(self, pull: Pull) -> None:
        while pull.asked < pull.nbytes and (
            pull.asked - pull.arrived < _CHUNK_BYTES * _WINDOW_CHUNKS
        ):
            count = min(_CHUNK_BYTES, pull.nbytes - pull.asked)
            self.send(pull.source, link_messages.PULL, pull.identity, pull.asked, count)
            pull.asked += count

    def chunk(self, identity: bytes, offset: int, data: Payload | None) -> None:
        """CHUNK: a part of what is on its way here."""
        pull = self.pulls.get(identity)
        if pull is None or pull.extent is None:
            return
        if data is None:
            self.pull_failed(identity)
            return
        store = self.node.store
        store.segment.copy_in(pull.extent.offset + offset, data)
        pull.arrived += len(data)
        if pull.arrived >= pull.nbytes:
            del self.pulls[identity]
            store.registered(pull.extent.offset)
            self.node.objects.pulled(identity, pull.extent.offset, pull.nbytes)
            return
        self._ask(pull)

    def pull_failed(self, identity: bytes) -> None:
        """What was on its way can't come."""
        pull = self.pulls.pop(identity, None)
        if pull is not None and pull.extent is not None:
            self.node.store.freed(self.node.process, [pull.extent.offset])
        self.node.objects.pull_failed(identity)

    # -- people ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each other node."""
        borrowing = self.node.scheduler.borrowing
        return [
            {
                "node": each.node.hex(),
                "address": each.address,
                "total": each.details["total"],
                "available": borrowing.nodes[each.node].available,
                "queued": borrowing.nodes[each.node].queued,
            }
            for each in self.members.values()
        ]

    def close(self) -> None:
        """Leave."""
        self.links.close(50)
        self.inbox.close()
        self.context.destroy(0)


@dataclass(slots=True)
class Settings:
    """Of the cluster, as `zray-node start` gives them."""

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str | None = None
    keys: str | None = None
    join: list[str] = field(default_factory=list)
