"""This node among others: its links, and what it does there for its own processes.

What    Cluster holds the link inbox and the links, knows who is there, and carries: what processes
        of two nodes say to each other, work for borrowed workers, holds of foreign objects.
        The rules per message are in brokers/link_rules.py.
Caller  brokers/node.py: poll, serve(), after_wake(), sweep().
Never   decides where work goes (brokers/borrowing.py) or who holds what (brokers/directory.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net import mailbox
from zray.net.curve import ClusterKeys
from zray.net.deliveries import Deliveries
from zray.net.link_inbox import LinkInbox, Payload, Sender
from zray.net.links import Links, LinkState
from zray.protocol import frames, link_messages, messages
from zray.protocol.ids import node_of
from zray.protocol.limits import LINEAGE_COPIES
from zray.protocol.roles import Role

from . import deaths
from .code_elsewhere import CodeElsewhere
from .draining import Draining
from .gcs_connection import GcsConnection
from .gcs_relay import GcsRelay
from .hosting import Hosting
from .lineage_copies import LineageCopies
from .link_rules import handle
from .loans import Loans
from .membership import Membership
from .node_outcomes import error_outcome
from .objects_elsewhere import ObjectsElsewhere
from .peers import Process
from .refusals import Refusals
from .relays import Relays
from .roster_sharing import RosterSharing

if TYPE_CHECKING:
    from .node import Node

_CLOGGED_MESSAGES = 100
_CLOGGED_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_MESSAGE_BYTES = 4096
"""Of the batch that a message takes at least: what it costs to handle one."""
_PAUSED_S = 0.002
"""Nothing tells that a link has room again for who waits for it."""


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
    role: Role = Role.NODE
    key: bytes = b""
    """The public key it has shown."""


class Cluster:
    """The other nodes, seen from this one.

    Args:
        node: whose loop this is a part of.
        keys: of the cluster's members; None: on this machine only.
        host: to bind, port: 0 for a free one, advertise: see LinkInbox.
        bulk_port: of object transfers; 0: a free one. bulk_advertise: see ObjectsElsewhere.
        role: of this node among the others; key_role: of the key it shows them.
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
        bulk_advertise: str | None = None,
        role: Role = Role.NODE,
        key_role: Role = Role.NODE,
    ) -> None:
        self.node = node
        self.keys = keys
        self.role = role
        self.key_role = key_role
        self.membership = Membership(node.process)
        self.gcs: GcsConnection | None = None
        """None where the cluster has no GCS process, or this node does not know it yet."""
        self.gcs_relay: GcsRelay | None = None
        """In the head node."""
        self.losses: Counter[bytes] = Counter()
        """How often each node was lost: one that we greet after that has to begin anew with us."""
        self.context = mailbox.new_context()
        self.inbox = LinkInbox(
            self.context, keys, host=host, port=port, advertise=advertise, role=key_role
        )
        self.links = Links(self.context, node.process, keys, key_role, ipv6_names=":" in host)
        arrivals, control = self.inbox.descriptors
        node.watch(arrivals, self._readable, carries=True)
        for descriptor in (control, self.links.descriptor):
            node.watch(descriptor, self._readable)
        forwarded = frames.pack(messages.FORWARDED, payloads=1)
        self.deliveries = Deliveries(node.process, node.secret, forwarded)
        node.watch(self.deliveries.descriptor, self.deliveries.serve, carries=True)
        self.relays = Relays(self)
        self.members: dict[bytes, Member] = {}
        self.joining: dict[bytes, str] = {}
        """Addresses that we dial without knowing who is there."""
        self.refusals = Refusals(self)
        self.hosting = Hosting(self)
        self.roster = RosterSharing(self, keys)
        self.loans = Loans(self)
        self.borrowed = self.loans.borrowed
        self.overflowed: set[bytes] = set()
        """Nodes that did not take a message: without it nothing they are told makes sense."""
        self.watchers: dict[bytes, set[bytes]] = {}
        """Local processes that watch an actor whose home is elsewhere."""
        self.places: dict[tuple[bytes, bytes], set[bytes]] = {}
        """Homes of actors and foreign workers, and the local processes that the home has told that
        an actor lives there."""
        self.objects = ObjectsElsewhere(
            self, keys, host=host, port=bulk_port, advertise=bulk_advertise
        )
        is_node = role is Role.NODE
        self.lineage = LineageCopies(
            self,
            os.path.join(node.directory, "copies"),
            # What a driver's node has submitted is of no use to anybody when it is gone.
            copies=node.settings.get("lineage_copies", LINEAGE_COPIES) if is_node else 0,
        )
        self.draining = Draining(self)
        self.code = CodeElsewhere(self)
        self.refused = 0
        self.has_more = True
        """Whether the inbox may have a message, or something here waits for serve()."""

    # -- polling ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        self.has_more = True

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called, whatever is readable."""
        if self.has_more:
            return 0.0
        due = _PAUSED_S if self.relays.paused else min(self.loans.due_s, self.hosting.due_s)
        if self.gcs is not None:
            due = min(due, self.gcs.due_s)
        return due if self.gcs_relay is None else min(due, self.gcs_relay.due_s)

    def serve(self) -> None:
        """Handle what other nodes have sent."""
        self.hosting.serve()
        self.objects.serve()
        for event in self.links.events():
            if event.state is LinkState.DISCONNECTED:
                self._disconnected(event.peer)
            elif event.state is LinkState.REFUSED:
                self.refusals.refused_us(event.peer, event.reason)
            elif event.peer in self.joining:
                self.refusals.let_us_in(event.peer)
        if self.relays.paused:
            self.relays.resume()
        if self.gcs_relay is not None:
            self.gcs_relay.serve()
        if self.gcs is not None:
            self.gcs.serve()
        self.roster.serve()
        if not self.has_more:
            return
        nbytes = 0
        while nbytes < _BATCH_BYTES:
            received = self.inbox.receive()
            if received is None:
                self.has_more = False
                break
            handle(self, *received)
            nbytes += _MESSAGE_BYTES + sum(map(len, received[2]))
        while self.inbox.departed:
            self._departed(self.inbox.departed.popleft())
        while self.overflowed:
            member = self.overflowed.pop()
            if member in self.members:
                self.lost(member, "it does not read what it is sent")

    def carry(self) -> None:
        """Hand over what has come for processes; anything else stirs the node."""
        node, inbox = self.node, self.inbox
        nbytes = 0
        while self.has_more and nbytes < _BATCH_BYTES:
            received = inbox.arrived()
            if received is None:
                self.has_more = False
                break
            handle(self, *received)
            if node.stirred:
                return
            nbytes += _MESSAGE_BYTES + sum(map(len, received[2]))
        if self.has_more or inbox.has_ended:
            self.has_more = node.stirred = True

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
        self.roster.sweep()
        self.deliveries.retry()
        self.code.sweep()
        self.objects.sweep()
        self.lineage.sweep()
        self.refusals.sweep()
        self.draining.sweep()

    # -- who is there ----------------------------------------------------------------------------

    def use_gcs(self, head: bytes, address: str) -> None:
        """Share the tables of the GCS beside this head from now on; who is there hears of it."""
        if self.gcs is not None:
            return
        print(f"the cluster's GCS is at node {head.hex()}, {address}", flush=True)
        self.gcs = GcsConnection(self, head, address)
        self.node.shared_tables = self.gcs.tables
        self.node.placement_groups.use_gcs(self.gcs.session)
        for member in self.members.values():
            self._greet(member.link)

    @property
    def is_settled(self) -> bool:
        """Whether what is shared is found from here, or nobody lets us in."""
        if self.refusals.by_address:
            return True
        if self.gcs is not None:
            # A client has nobody but the others: it waits until it sees all of them.
            return self.gcs.is_joined and (self.role is Role.NODE or self.membership.is_whole)
        return not self.joining

    @property
    def nodes(self) -> list[Member]:
        """The members that lend and run: neither clients nor gateways."""
        return [each for each in self.members.values() if each.role is Role.NODE]

    def role_of(self, identity: bytes) -> Role:
        """Return the role of a node that is there, as its link or the GCS says."""
        known = self.members.get(identity) or self.membership.living.get(identity)
        return Role.NODE if known is None else known.role

    def dial(self, address: str) -> None:
        """Join whoever listens at an address."""
        link = address.encode()
        self.joining[link] = address
        self.links.connect(link, address, self.roster.expected_at(address))
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
            "gcs": None if self.gcs is None else [self.gcs.head, self.gcs.address],
            "role": self.role,
            "incarnation": self.membership.incarnation,
            "losses": [list(each) for each in self.losses.items()],
            "bulk": self.objects.greeting,
            "total": node.resources.total,
            "load": node.scheduler.borrowing.report(node.now).fields(),
            "directory": node.directory,
            "hostname": os.uname().nodename,
            "labels": node.settings.get("labels", {}),
            "members": [[each.node, each.address] for each in self.nodes],
        }
        self.links.send(peer, frames.pack(link_messages.LINK_HELLO, details))

    def welcome(self, sender: Sender, details: dict[str, Any]) -> None:
        """LINK_HELLO: somebody is there; we greet it back, and whom it knows."""
        if "refused" in details:
            self.refusals.heard(details)
            return
        identity, address = details["node"], details["address"]
        if identity == self.node.process:
            self.stop_dialling(details["to"])
            return
        incarnation = details["incarnation"]
        if identity != sender.peer:
            raise errors.RemoteProtocolError("LINK_HELLO of another node")
        role = self.refusals.check_role(sender, details)
        if not self.membership.admits(identity, incarnation):
            if self.gcs_relay is not None:
                self.gcs_relay.visited(sender, address, role)
            raise errors.RemoteProtocolError(
                f"LINK_HELLO of incarnation {incarnation} of a node that is dead"
            )
        if details["gcs"] is not None and role is Role.NODE:
            self.use_gcs(*details["gcs"])
            if self.gcs is not None and details["gcs"][0] == identity:
                self.gcs.moved(*details["gcs"])
        known = self.members.get(identity)
        if known is not None and self._losses_in(details) <= self._losses_in(known.details):
            known.stream = sender.stream
            return
        if known is not None:
            self.lost(identity, "it had lost this node, and is there again")
        # We may have dialled it by another name than it is known by.
        dialled = details["answers"].encode()
        link = dialled if dialled in self.joining else address.encode()
        if self.joining.pop(link, None) is None:
            self.links.connect(link, address, [sender.key] if sender.key else [])
            self._greet(link, details["to"])
        self.refusals.silent.discard(link.decode())
        self.membership.linked_to(identity, incarnation, address)
        self.members[identity] = member = Member(
            identity, address, details, link, sender.stream, role, sender.key
        )
        self.roster.joined(member)
        if self.gcs_relay is not None:
            self.gcs_relay.welcomed(identity)
        self.objects.node_joined(identity, details["bulk"], sender.key, role)
        if role is Role.NODE:
            self.loans.node_joined(identity, details["load"])
            self.lineage.node_joined(identity)
        print(f"{role} {identity.hex()} at {address} is there", flush=True)
        for other, where in details["members"] if self.gcs is None else ():
            if other != self.node.process and other not in self.members:
                self.dial(where)

    def _losses_in(self, details: dict[str, Any]) -> int:
        """Return how often who says this in LINK_HELLO had lost this node."""
        return int(dict(details["losses"]).get(self.node.process, 0))

    def _disconnected(self, link: bytes) -> None:
        for member in list(self.members.values()):
            if member.link == link:
                self.lost(member.node, "its connection ended")
        if link in self.joining:
            self._greet(link)  # Who listens there from now on may be another one.

    def _departed(self, sender: Sender) -> None:
        member = self.members.get(sender.peer)
        if member is not None and member.stream == sender.stream:
            self.lost(sender.peer, "its connection ended")
        elif self.gcs_relay is not None:
            self.gcs_relay.departed(sender)

    def lost(self, identity: bytes, reason: str) -> None:
        """A node is gone, and all its processes."""
        if identity not in self.members:
            return
        member = self.members.pop(identity)
        self.links.drop(member.link)
        node = self.node
        self.losses[identity] += 1
        if member.role is Role.NODE:  # Drivers come and go.
            node.health.node_lost(identity, reason)
        node.queries.node_lost(identity, reason)
        if self.gcs_relay is not None:
            self.gcs_relay.link_ended(identity, member.address)
        self.membership.link_lost(identity, node.now)
        print(f"{member.role} {identity.hex()} is gone: {reason}", flush=True)
        cause = f"its node {identity.hex()} is gone: {reason}"
        for worker in node.scheduler.borrowing.node_lost(identity):
            self.loans.worker_lost(worker, cause)
        node.scheduler.lending.node_lost(identity)
        node.scheduler.pump()  # What had only preferred that node may begin here.
        self.objects.node_lost(identity)
        self.lineage.node_lost(identity)
        self.refusals.gateways.forget(identity)
        self.draining.node_lost(identity)
        for worker in {each for _home, each in self.places if node_of(each) == identity}:
            self.tell_of_death(identity, worker, cause)
        self._end_foreign_actors(identity, cause)
        deaths.jobs_left(node, identity)

    def _end_foreign_actors(self, home: bytes, cause: str) -> None:
        for actor in [each for each in self.watchers if node_of(each) == home]:
            self._tell_dead(actor, sorted(self.watchers.pop(actor)), cause)
        # Nobody else says when the workers of those actors end.
        self.places = {place: told for place, told in self.places.items() if place[0] != home}

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
        return self.send_header(node, header, payloads)

    def send_header(self, node: bytes, header: bytes, payloads: tuple[Payload, ...]) -> bool:
        """Send what is packed already, when what was held before it is counted."""
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
            self.has_more = self.node.stirred = True
        return sent

    def send_by(
        self, link: bytes, kind: int, *fields: Any, payloads: tuple[Payload, ...] = ()
    ) -> bool:
        """Send by a link to whoever is there, member or not; False where it is full, or gone."""
        return self.links.send(link, frames.pack(kind, *fields, payloads=len(payloads)), payloads)

    def is_clogged(self, link: bytes) -> bool:
        """Return whether so much waits for a link already that what can wait should."""
        messages_len, nbytes = self.links.queued(link)
        return messages_len > _CLOGGED_MESSAGES or nbytes > _CLOGGED_BYTES

    def to_process(self, peer: bytes, header: bytes, payloads: tuple[bytes, ...]) -> bool:
        """What this node says to a process (or a node) that is not of it."""
        home = node_of(peer)
        if peer == home:
            return self.send_header(home, header, payloads)
        if peer in self.borrowed:
            return self.send(home, link_messages.TO_WORKER, peer, payloads=(header, *payloads))
        return self.relays.say(peer, (header, *payloads))

    # -- jobs ------------------------------------------------------------------------------------

    def job_ended(self, job: str) -> None:
        """A driver of ours is gone: its job has workers elsewhere, perhaps."""
        for member in self.nodes:
            self.send(member.node, link_messages.JOB_ENDED, job)

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
                    self.places.setdefault((node_of(actor), worker), set()).add(process)
                self.node.send(
                    process,
                    messages.ACTOR_STATE,
                    [[actor, state, worker, endpoint, incarnation, cause]],
                )
            if state == "DEAD":
                self.watchers.pop(actor, None)

    def tell_of_death(self, sender: bytes, worker: bytes, reason: str) -> None:
        """PROCESS_DIED: pass on to who had dealings with it here.

        Its own node knows, and who has borrowed it, of which all know by an actor of its own there.
        """
        if node_of(worker) == sender:
            told = [each for each in self.places if each[1] == worker]
        else:
            told = [each for each in ((sender, worker),) if each in self.places]
        processes: set[bytes] = set()
        for place in told:
            processes |= self.places.pop(place)
        for process in sorted(processes):
            self.node.send(process, messages.PROCESS_DIED, worker, reason)

    def process_left(self, identity: bytes) -> None:
        """A process of ours is gone."""
        self.deliveries.drop(identity)
        self.hosting.worker_gone(identity)
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
                "leaving": self.draining.others.get(each.node),
            }
            for each in self.nodes
        ]

    def close(self, *, all_ended: bool) -> None:
        """Leave; the head takes the GCS with it. all_ended: no worker of this node lives."""
        self.hosting.close(all_ended=all_ended and self.role is Role.NODE)
        if self.gcs is not None:
            self.gcs.close()
        if self.gcs_relay is not None:
            self.gcs_relay.close()
        self.objects.close()
        self.lineage.close()
        self.deliveries.close()
        self.links.close(50)
        self.inbox.close()
        self.context.destroy(0)
