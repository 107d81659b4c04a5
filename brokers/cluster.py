"""This node among others: its links, and what it does there for its own processes.

What    Cluster holds the link inbox and the links, knows who is there, and carries: what processes
        of two nodes say to each other, work for borrowed workers, holds of foreign objects.
        The rules per message are in brokers/link_rules.py.
Caller  brokers/node.py: poll, serve(), after_wake(), sweep().
Never   decides where work goes (brokers/borrowing.py) or who holds what (brokers/directory.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net import mailbox
from zray.net.curve import ClusterKeys, Role
from zray.net.deliveries import Deliveries
from zray.net.link_inbox import LinkInbox, Payload, Sender
from zray.net.links import Links, LinkState
from zray.protocol import frames, link_messages, messages
from zray.protocol.ids import node_of
from zray.protocol.limits import LINEAGE_COPIES

from . import deaths
from .gcs_connection import GcsConnection
from .gcs_process import GcsProcess
from .lineage_copies import LineageCopies
from .load import read_load
from .loans import Loans
from .membership import Membership
from .node_outcomes import error_outcome
from .objects_elsewhere import ObjectsElsewhere
from .peers import Process

if TYPE_CHECKING:
    from .node import Node

_BATCH_MESSAGES = 1000
_CODE_S = 1.0
"""A job's home that has not sent code after so long is passed by."""


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


class Cluster:
    """The other nodes, seen from this one.

    Args:
        node: whose loop this is a part of.
        keys: of the cluster's members; None: on this machine only.
        host: to bind, port: 0 for a free one, advertise: see LinkInbox.
        bulk_port: of object transfers; 0: a free one.
    """

    def __init__(
        self,
        node: Node,
        keys: ClusterKeys | None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        bulk_port: int = 0,
    ) -> None:
        self.node = node
        self.keys = keys
        self.membership = Membership(node.process)
        self.gcs: GcsConnection | None = None
        """None where the cluster has no GCS process, or this node does not know it yet."""
        self.gcs_process: GcsProcess | None = None
        """In the head node."""
        self.losses = 0
        """How often a node was lost: who greets us after that has to begin anew with us."""
        self.context = mailbox.new_context()
        self.inbox = LinkInbox(self.context, keys, host=host, port=port, advertise=advertise)
        self.links = Links(self.context, node.process, keys, Role.NODE)
        for descriptor in (*self.inbox.descriptors, self.links.descriptor):
            node.watch(descriptor, self._readable)
        self.deliveries = Deliveries(node.process, node.secret)
        node.watch(self.deliveries.descriptor, self.deliveries.serve)
        self.members: dict[bytes, Member] = {}
        self.joining: dict[bytes, str] = {}
        """Addresses that we dial without knowing who is there."""
        self.join_refused: dict[str, str] = {}
        """Of these, who has refused us last, and why."""
        self.loans = Loans(self)
        self.borrowed = self.loans.borrowed
        self.overflowed: set[bytes] = set()
        """Nodes that did not take a message: without it nothing they are told makes sense."""
        self.watchers: dict[bytes, set[bytes]] = {}
        """Local processes that watch an actor whose home is elsewhere."""
        self.places: dict[bytes, set[bytes]] = {}
        """Foreign workers, and the local processes that were told an actor lives there."""
        self.objects = ObjectsElsewhere(self, keys, host=host, port=bulk_port)
        self.lineage = LineageCopies(
            self,
            os.path.join(node.directory, "copies"),
            copies=node.settings.get("lineage_copies", LINEAGE_COPIES),
        )
        self.code_asked: dict[bytes, set[tuple[bytes, str]]] = {}
        """Functions that others have asked for, with which of their nodes and for which job."""
        self.code_wanted: dict[tuple[bytes, str], float] = {}
        """Functions and their jobs, and since when the jobs' homes have been asked."""
        self.refused = 0
        self._more = True

    # -- polling ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._more = True

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called, whatever is readable."""
        if self._more:
            return 0.0
        due = self.loans.due_s
        if self.gcs is not None:
            due = min(due, self.gcs.due_s)
        return due if self.gcs_process is None else min(due, self.gcs_process.due_s)

    def serve(self) -> None:
        """Handle what other nodes have sent."""
        from .link_rules import handle

        self.objects.serve()
        for event in self.links.events():
            if event.state is LinkState.DISCONNECTED:
                self._disconnected(event.peer)
            elif event.state is LinkState.REFUSED:
                if event.peer in self.joining:
                    self.join_refused[self.joining[event.peer]] = event.reason
                print(f"the link to {event.peer.hex()} was refused: {event.reason}", flush=True)
        if self.gcs is not None:
            self.gcs.serve()
        if self.gcs_process is not None:
            self.gcs_process.tick(self.node.now)
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
        while self.overflowed:
            member = self.overflowed.pop()
            if member in self.members:
                self.lost(member, "it does not read what it is sent")

    def after_wake(self) -> None:
        """What waits here may run elsewhere; what is free here others may use."""
        self.loans.after_wake()
        if self.gcs is not None:
            self.gcs.flush()
        self.objects.after_wake()

    def take_mail(self, process: Process, kind: int, header: bytes) -> bool:
        """Pass on what a lent worker says to its node; False: it is for us."""
        return self.loans.take_mail(process, kind, header)

    def take_call(self, process: Process, kind: int, packed: bytes) -> bool:
        """The same of what it writes to its stream."""
        return self.loans.take_call(process, kind, packed)

    def end_worker(self, worker: bytes) -> None:
        """Kill a borrowed worker."""
        self.send(node_of(worker), link_messages.END_WORKER, worker)

    def sweep(self) -> None:
        """A few times a second."""
        self.inbox.sweep()
        for (function, job), since in list(self.code_wanted.items()):
            if self.node.now - since > _CODE_S:
                self._fetch_shared_code(function, job)
        self.objects.sweep()
        self.lineage.sweep()

    # -- who is there ----------------------------------------------------------------------------

    def use_gcs(self, endpoint: str) -> None:
        """Share the tables of a GCS process from now on; whoever is there hears of it."""
        if self.gcs is not None:
            return
        print(f"the cluster's GCS is at {endpoint}", flush=True)
        self.gcs = GcsConnection(self, endpoint)
        self.node.shared_tables = self.gcs.tables
        self.node.placement_groups.use_gcs(self.gcs.session)
        for member in self.members.values():
            self._greet(member.link)

    @property
    def is_settled(self) -> bool:
        """Whether what is shared is found from here: no join is under way."""
        if self.gcs is not None:
            return self.gcs.is_joined
        return not self.joining

    def dial(self, address: str) -> None:
        """Join whoever listens at an address."""
        link = address.encode()
        self.joining[link] = address
        self.links.connect(link, address)
        self._greet(link)

    def dial_again(self, address: str) -> None:
        """Reach a node that is alive, unless that is under way."""
        link = address.encode()
        if link not in self.joining or not self.links.knows(link):
            self.dial(address)

    def stop_dialling(self, address: str) -> None:
        """Whom we have tried to reach there is dead."""
        link = address.encode()
        if self.joining.pop(link, None) is not None:
            self.links.drop(link)

    def _greet(self, peer: bytes, answers: str = "") -> None:
        node = self.node
        details = {
            "node": node.process,
            "address": self.inbox.address,
            "to": peer.decode(),
            "answers": answers,
            "gcs": None if self.gcs is None else self.gcs.endpoint,
            "incarnation": self.membership.incarnation,
            "losses": self.losses,
            "bulk": self.objects.greeting,
            "total": node.resources.total,
            "load": node.scheduler.borrowing.report(node.now).fields(),
            "directory": node.directory,
            "hostname": os.uname().nodename,
            "labels": node.settings.get("labels", {}),
            "members": [[each.node, each.address] for each in self.members.values()],
        }
        self.links.send(peer, frames.pack(link_messages.LINK_HELLO, details))

    def welcome(self, sender: Sender, details: dict[str, Any]) -> None:
        """LINK_HELLO: somebody is there; we greet it back, and whom it knows."""
        identity, address = details["node"], details["address"]
        if identity == self.node.process:
            self.stop_dialling(details["to"])
            return
        incarnation = details["incarnation"]
        if identity != sender.peer or not self.membership.admits(identity, incarnation):
            raise errors.RemoteProtocolError(
                f"LINK_HELLO of incarnation {incarnation} of a node that is dead, or another one"
            )
        if details["gcs"] is not None:
            self.use_gcs(details["gcs"])
        known = self.members.get(identity)
        if known is not None and details["losses"] <= known.details["losses"]:
            known.stream = sender.stream
            return
        if known is not None:
            self.lost(identity, "it had lost this node, and is there again")
        # We may have dialled it by another name than it is known by.
        dialled = details["answers"].encode()
        link = dialled if dialled in self.joining else address.encode()
        if self.joining.pop(link, None) is None:
            self.links.connect(link, address)
            self._greet(link, details["to"])
        self.membership.linked_to(identity, incarnation)
        self.members[identity] = Member(identity, address, details, link, sender.stream)
        self.objects.node_joined(identity, details["bulk"], sender.key)
        self.node.scheduler.borrowing.heard(read_load(details["load"]))
        self.loans.tell_all()
        self.lineage.node_joined(identity)
        print(f"node {identity.hex()} at {address} is there", flush=True)
        for other, where in details["members"] if self.gcs is None else ():
            if other != self.node.process and other not in self.members:
                self.dial(where)

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
        if identity not in self.members:
            return
        self.links.drop(self.members.pop(identity).link)
        node = self.node
        self.losses += 1
        node.health.node_lost(identity, reason)
        node.queries.node_lost(identity, reason)
        self.membership.link_lost(identity, node.now)
        print(f"node {identity.hex()} is gone: {reason}", flush=True)
        for worker in node.scheduler.borrowing.node_lost(identity):
            self.loans.worker_lost(worker, f"its node is gone: {reason}")
        node.scheduler.lending.node_lost(identity)
        self.objects.node_lost(identity)
        self.lineage.node_lost(identity)
        cause = f"its node {identity.hex()} is gone: {reason}"
        for worker in [each for each in self.places if node_of(each) == identity]:
            self.tell_of_death(worker, cause)
        self._end_foreign_actors(identity, cause)
        deaths.jobs_left(node, identity)

    def _end_foreign_actors(self, home: bytes, cause: str) -> None:
        for actor in [each for each in self.watchers if node_of(each) == home]:
            self._tell_dead(actor, sorted(self.watchers.pop(actor)), cause)

    def _tell_dead(self, actor: bytes, processes: Iterable[bytes], cause: str) -> None:
        found = error_outcome(errors.ActorDiedError(cause))
        row = [actor, "DEAD", None, None, 1 << 30, found]
        for process in processes:
            self.node.send(process, messages.ACTOR_STATE, [row])

    # -- sending ---------------------------------------------------------------------------------

    def send(
        self, node: bytes, kind: int, *fields: Any, payloads: tuple[Payload, ...] = ()
    ) -> bool:
        """Send to another node; False where it is gone, or does not read."""
        header = frames.pack(kind, *fields, payloads=len(payloads))
        if kind in link_messages.UNFENCED:
            return self.deliver(node, header, payloads)
        return self._send(node, header, payloads)

    def _send(self, node: bytes, header: bytes, payloads: tuple[Payload, ...]) -> bool:
        if self.objects.may_go(node, header, payloads):
            return self.deliver(node, header, payloads)
        return True

    def deliver(self, node: bytes, header: bytes, payloads: Sequence[Payload]) -> bool:
        """Hand a message to the link now, or keep it where the link is to come."""
        member = self.members.get(node)
        if member is None:
            return self.objects.keep_early(node, header, tuple(payloads))
        sent = self.links.send(member.link, header, payloads)
        if not sent:
            self.overflowed.add(node)
            self._more = True
        return sent

    def forward(self, source: bytes, destination: bytes, payloads: list[bytes]) -> None:
        """A process of ours says something to one of another node."""
        self.send(
            node_of(destination),
            link_messages.RELAY,
            destination,
            source,
            payloads=tuple(payloads),
        )

    def hand_over(self, destination: bytes, source: bytes, payloads: list[Payload]) -> None:
        """What a process of another node says to one of ours."""
        process = self.node.processes.by_id.get(destination)
        if process is not None:
            header = frames.pack(messages.FORWARDED, source, payloads=len(payloads))
            parts = [bytes(each) for each in payloads]
            self.deliveries.send(destination, process.details["endpoint"], header, parts)

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

    # -- code and jobs ---------------------------------------------------------------------------

    def job_ended(self, job: str) -> None:
        """A driver of ours is gone: its job has workers elsewhere, perhaps."""
        for member in self.members:
            self.send(member, link_messages.JOB_ENDED, job)

    def is_elsewhere(self, job: str) -> bool:
        """Return whether another node is the home of a job, and its code can be asked for."""
        home = node_of(bytes.fromhex(job))
        if not job or home == self.node.process:
            return False
        return home in self.members or self.gcs is not None

    def fetch_code(self, function: bytes, job: str) -> None:
        """A worker of ours is to run this: ask the job's home."""
        if (function, job) not in self.code_wanted and self.is_elsewhere(job):
            self.code_wanted[function, job] = self.node.now
            home = node_of(bytes.fromhex(job))
            if home in self.members:
                self.send(home, link_messages.CODE_WANTED, function, job)
            else:
                self._fetch_shared_code(function, job)

    def put_code(self, function: bytes, code: bytes, job: str) -> None:
        """A worker of ours has defined a function: whoever is to run it asks its job's home."""
        if self.is_elsewhere(job):
            self.send(node_of(bytes.fromhex(job)), link_messages.CODE, function, code, None)

    def code_is_here(self, function: bytes, code: bytes) -> None:
        """Answer the nodes that have asked for it."""
        jobs = self.node.processes.jobs
        for peer, job in sorted(self.code_asked.pop(function, ())):
            self.send(peer, link_messages.CODE, function, code, jobs.get(job))

    def _fetch_shared_code(self, function: bytes, job: str) -> None:
        """The job's home does not answer: the GCS has what it has put there."""

        def took(found: Any, error: Exception | None) -> None:
            if self.code_wanted.pop((function, job), None) is None:
                return  # It has come from its home after all.
            code, details = found if error is None else (None, None)
            if code is None or details is None:
                print(f"code {function.hex()} of job {job} is not to be found: {error}", flush=True)
                return
            self.node.processes.jobs[job] = details
            self.node.code_arrived(function, code)

        self.code_wanted[function, job] = float("inf")
        self.node.shared_tables.get_function(function, job, took)

    # -- actors ----------------------------------------------------------------------------------

    def watch(self, process: bytes, actor: bytes) -> None:
        """A process of ours wants to know where an actor of another node lives."""
        home = node_of(actor)
        if home not in self.members:
            self._tell_dead(actor, [process], "the node that made it is not there")
            return
        watchers = self.watchers.setdefault(actor, set())
        watchers.add(process)
        self.send(home, messages.WATCH_ACTOR, actor)

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
        self.deliveries.drop(identity)
        for watching in (*self.watchers.values(), *self.places.values()):
            watching.discard(identity)

    # -- people ----------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return for each other node who and where it is; what it has is in the load table."""
        return [
            {
                "node": each.node,
                "address": each.address,
                "directory": each.details["directory"],
                "hostname": each.details["hostname"],
            }
            for each in self.members.values()
        ]

    def close(self) -> None:
        """Leave; the head takes the GCS with it."""
        if self.gcs is not None:
            self.gcs.close()
        if self.gcs_process is not None:
            self.gcs_process.stop()
        self.objects.close()
        self.lineage.close()
        self.deliveries.close()
        self.links.close(50)
        self.inbox.close()
        self.context.destroy(0)
