"""This node's objects among other nodes': what is pulled, what is served, who counts whom.

What    ObjectsElsewhere owns the bulk thread. It performs what the directory commands about other
        nodes, and hands the bulk thread's events to the directory and the store. What is said to
        another node passes its fence (hold_fence.py).
Caller  brokers/cluster.py, brokers/link_rules.py, brokers/node_commands.py.
Never   decides who holds what or where a value is: brokers/directory.py does.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net import addresses
from zray.net.curve import ClusterKeys
from zray.net.link_inbox import Payload
from zray.protocol import link_messages, messages
from zray.protocol.ids import NodeId, ObjectId, node_of
from zray.protocol.roles import Role

from . import sharing, transferring
from .allocator import Extent
from .bulk import Bulk
from .hold_fence import HoldFence
from .node_outcomes import error_outcome
from .transferring import Priority
from .unreached_pulls import UnreachedPulls

if TYPE_CHECKING:
    from .cluster import Cluster

_BUDGET_SHARE = 2
"""Half of the store may be on its way here at a time."""
_BURY_S = 0.25
"""What a dead node held stays for so long: holds of what it had passed on are under way."""
_ROWS_MAX = 500
"""Objects in one TAKE_OVER."""
_EARLY_S = 10.0
"""A node that others know of and we do not is waited for: links are made one by one."""

Message = tuple[bytes, tuple[Payload, ...]]


@dataclass(slots=True)
class _Early:
    """What is to be said to a node that is not there yet."""

    since: float
    messages: deque[Message] = field(default_factory=deque)


class ObjectsElsewhere:
    """The objects part of a cluster's member.

    Args:
        cluster: whose links carry the messages.
        keys: of the cluster's members; None: on this machine only.
        host: to bind.
        port: of bulk transfers; 0: a free one.
        advertise: "HOST" or "HOST:PORT" that others reach it by; None: the host of the links.
    """

    def __init__(
        self,
        cluster: Cluster,
        keys: ClusterKeys | None,
        *,
        host: str,
        port: int = 0,
        advertise: str | None = None,
    ) -> None:
        node = cluster.node
        self.cluster = cluster
        self.node = node
        self.own = node.process + os.urandom(8)
        """Our name among bulk peers: of this life alone."""
        self.bulk = Bulk(
            node.store.segment,
            self.own,
            keys,
            budget_bytes=max(1, node.store.segment.capacity_bytes // _BUDGET_SHARE),
            wake=node.wake.set,
            host=host,
            port=port,
            role=cluster.key_role,
        )
        reached = cluster.inbox.address.removeprefix("tcp://").rpartition(":")[0]
        self.address = addresses.advertised(reached, self.bulk.port, advertise)
        """Where others reach the bulk port."""
        self.fence = HoldFence()
        self.peers: dict[NodeId, bytes] = {}
        """Names of other nodes among bulk peers."""
        self._early: dict[NodeId, _Early] = {}
        self._dying: dict[NodeId, float] = {}
        """Lost nodes whose holds still count, and since when."""
        self._uncounted: Counter[NodeId] = Counter()
        """HOLDs that were counted and not acknowledged yet."""
        self._pulls: Counter[Priority] = Counter()
        """How many objects were asked for, by why."""
        self._unreached = UnreachedPulls()
        self._no_room: dict[ObjectId, Exception] = {}
        self._expected: set[ObjectId] = set()
        """The bulk thread was asked for these before it heard that it is to pull them."""
        node.objects.home_died_outcome = error_outcome(
            errors.OwnerDiedError("the node of the process that owns this object is gone")
        )
        node.objects.copies_died_outcome = error_outcome(
            errors.ObjectLostError("every node that had this object is gone")
        )

    @property
    def greeting(self) -> list[Any]:
        """What LINK_HELLO says of the bulk port."""
        return [self.address, self.own]

    # -- who is there ----------------------------------------------------------------------------

    def node_joined(
        self, node: NodeId, greeting: list[Any], key: bytes, role: Role = Role.NODE
    ) -> None:
        """A node is a member now; ``key`` is the public key it has shown.

        What a gateway has is not pulled: bytes that it sends could be a pickle.
        """
        address, peer = greeting
        self.peers[node] = peer
        self.bulk.connect(peer, address, key, is_source=role is not Role.GATEWAY)
        if self._dying.pop(node, None) is not None:
            self.node.objects.bury(node)
        self.node.objects.node_joined(node)
        for pull in self._unreached.joined(node):
            self._pull(pull)
        early = self._early.pop(node, None)
        if early is not None:
            for header, payloads in early.messages:
                self.cluster.deliver(node, header, payloads)

    def node_lost(self, node: NodeId) -> None:
        """A node is gone."""
        from .node_commands import perform_objects

        peer = self.peers.pop(node, None)
        if peer is not None:
            self.bulk.disconnect(peer)
        self._early.pop(node, None)
        self._uncounted.pop(node, None)
        self.node.objects.node_lost(node)
        # What was to be said to it is not to be said to its next life.
        perform_objects(self.node)
        self._dying[node] = self.node.now
        self.fence.node_lost(node)
        self._send_ready()

    def sweep(self) -> None:
        """A few times a second."""
        now = self.node.now
        self.bulk.sweep()
        for node in [node for node, since in self._dying.items() if now - since >= _BURY_S]:
            del self._dying[node]
            self.node.objects.bury(node)
        for node in [node for node, early in self._early.items() if now - early.since >= _EARLY_S]:
            print(f"node {node.hex()} is not there: what waited for it is dropped", flush=True)
            self.node_lost(node)
        for identity in self._unreached.failed(now, self._is_coming):
            self._failed(identity, "the nodes that have it can't be reached")
        for identity in [each for each in self._expected if not self._is_expected(each)]:
            self._expected.discard(identity)
            self.node.objects.serve(identity)

    # -- sending ---------------------------------------------------------------------------------

    def may_go(self, node: NodeId, header: bytes, payloads: tuple[Payload, ...]) -> bool:
        """Return whether a message may be sent now; where not, it is sent when it may."""
        if self.node.objects.commands:
            from .node_commands import perform_objects

            perform_objects(self.node)  # HOLDs and STORED_ATs of this very wake go first.
        return self.fence.is_open or self.fence.admit(node, (header, payloads))

    def keep_early(self, node: NodeId, header: bytes, payloads: tuple[Payload, ...]) -> bool:
        """Keep a message for a node that is not a member yet; False where it was one."""
        if node in self.node.objects.gone:
            return False
        early = self._early.get(node)
        if early is None:
            early = self._early[node] = _Early(self.node.now)
        early.messages.append((header, payloads))
        return True

    def _send_ready(self) -> None:
        for node, (header, payloads) in self.fence.ready():
            self.cluster.deliver(node, header, payloads)

    # -- counting --------------------------------------------------------------------------------

    def hold(self, peer: NodeId, identities: list[ObjectId]) -> None:
        """HOLD of another node."""
        self.node.objects.hold(peer, [each for each in identities if self.is_ours(each)])
        self._uncounted[peer] += 1

    def counted(self, peer: NodeId, count: int) -> None:
        """HOLDS_COUNTED: the other node has counted so many HOLDs of ours."""
        self.fence.counted(peer, count)
        self._send_ready()

    def after_wake(self) -> None:
        """Acknowledge what was counted in this wake."""
        if self._uncounted:
            counted, self._uncounted = self._uncounted, Counter()
            for peer, count in counted.items():
                self.cluster.send(peer, link_messages.HOLDS_COUNTED, count)

    def is_ours(self, identity: ObjectId) -> bool:
        """Return whether this node is an object's home."""
        return node_of(identity) == self.node.process

    # -- what the directory commands -------------------------------------------------------------

    def perform(self, commands: Iterable[sharing.Command]) -> None:
        """Perform commands of the directory that are about other nodes.

        HOLDs first: the sooner they are counted, the less waits for them; RELEASEs last.
        """
        holds: dict[NodeId, list[ObjectId]] = {}
        rows: dict[int, dict[NodeId, list[Any]]] = {
            link_messages.COPY_GONE: {},
            link_messages.FOUND: {},
        }
        asked: dict[tuple[NodeId, int], list[ObjectId]] = {}
        stored: list[sharing.StoredHere] = []
        releases: dict[NodeId, list[Any]] = {}
        for command in commands:
            match command:
                case sharing.HoldAt(identity):
                    holds.setdefault(node_of(identity), []).append(identity)
                case sharing.ReleaseAt(node, identity):
                    releases.setdefault(node, []).append([identity, 1])
                case sharing.LocateAt(identity, purpose):
                    asked.setdefault((node_of(identity), purpose), []).append(identity)
                case sharing.CopyGone(identity):
                    gone = rows[link_messages.COPY_GONE]
                    gone.setdefault(node_of(identity), []).append(identity)
                case sharing.Found(node, identity, found, nbytes, sources):
                    answers = rows[link_messages.FOUND].setdefault(node, [])
                    answers.append([identity, found, nbytes, list(sources)])
                case sharing.StoredHere():
                    stored.append(command)
                case _:
                    self._perform_bulk(command)
        for home, identities in holds.items():
            if home not in self.node.objects.gone:
                self.fence.held(home)
                self.cluster.send(home, messages.HOLD, identities, False)
        for row in stored:
            home = node_of(row.object)
            self.cluster.send(home, link_messages.STORED_AT, row.object, row.nbytes, row.holder)
        for (home, purpose), identities in asked.items():
            self.cluster.send(home, link_messages.LOCATE_FOREIGN, identities, purpose)
        for kind, by_node in rows.items():
            for node, each in by_node.items():
                self.cluster.send(node, kind, each)
        for node, deltas in releases.items():
            self.cluster.send(node, messages.RELEASE, deltas, [])

    def _perform_bulk(self, command: sharing.Command) -> None:
        match command:
            case sharing.Pull():
                self._pull(command)
            case sharing.CancelPull(identity):
                if not self._unreached.cancel(identity):
                    self.bulk.cancel(identity)
            case sharing.Serve(identity, offset, nbytes):
                self.node.store.pin(offset)
                self.bulk.located(identity, offset, nbytes)
            case sharing.Absent(identity):
                self.bulk.absent(identity, "it is not there")
            case _:
                raise errors.InternalError(f"nobody performs {command}")

    def _pull(self, command: sharing.Pull) -> None:
        identity, purpose = command.object, Priority(command.purpose)
        self._no_room.pop(identity, None)
        if identity in self._expected:
            self._expected.discard(identity)
            self.bulk.absent(identity, "it is on its way here")
        known = [self.peers[node] for node in command.sources if self._may_send(node)]
        if not known and any(map(self._is_coming, command.sources)):
            self._unreached.wait(command, self.node.now)
            return
        self._pulls[purpose] += 1
        self.bulk.want(identity, command.nbytes, known, purpose)

    def _is_coming(self, node: NodeId) -> bool:
        """Whether a node lives as far as is known, and the link to it is to be made still."""
        if node in self.peers:
            return False
        is_new = node not in self.node.objects.gone
        return is_new or self.cluster.membership.is_on_its_way(node)

    @property
    def kept_for_others(self) -> int:
        """How many objects are kept here for processes of nodes that are there."""
        kept = self.node.objects.evacuation.kept_for(set(self.cluster.members))
        return sum(map(len, kept.values()))

    def move_out(self) -> None:
        """Have the homes of what is kept here take it over; again for what has not gone yet."""
        kept = self.node.objects.evacuation.kept_for(set(self.cluster.members))
        for home, rows in kept.items():
            for low in range(0, len(rows), _ROWS_MAX):
                part = rows[low : low + _ROWS_MAX]
                self.cluster.send(home, link_messages.TAKE_OVER, [list(row) for row in part])

    # -- what the bulk thread says ---------------------------------------------------------------

    def serve(self) -> None:
        """Take what the bulk thread has to say."""
        for event in self.bulk.events():
            match event:
                case transferring.Allocate(pull, identity, nbytes):
                    self._allocate(pull, identity, nbytes)
                case transferring.FreeExtent(offset):
                    self.node.store.freed(self.node.process, [offset])
                case transferring.Arrived(identity, offset, nbytes, pinned):
                    self.node.store.registered(offset)
                    if pinned:
                        self.node.store.pin(offset)
                    self._no_room.pop(identity, None)
                    self.node.objects.pulled(identity, offset, nbytes)
                case transferring.Failed(identity, reason):
                    self._failed(identity, reason)
                case transferring.Locate(identity):
                    if self._is_expected(identity):
                        self._expected.add(identity)
                    else:
                        self.node.objects.serve(identity)
                case transferring.Unpin(_identity, offset):
                    self.node.store.unpin(offset)

    def _may_send(self, node: NodeId) -> bool:
        """Whether a node is a source."""
        member = self.cluster.members.get(node)
        return node in self.peers and member is not None and member.role is not Role.GATEWAY

    def _is_expected(self, identity: ObjectId) -> bool:
        """Whether the home named us as a source, and its word to us is still under way."""
        entry = self.node.objects.entries.get(identity)
        return entry is not None and entry.asked is not None and entry.outcome is None

    def _allocate(self, pull: int, identity: ObjectId, nbytes: int) -> None:
        def done(extent: Extent | None, error: Exception | None) -> None:
            if extent is not None:
                self.bulk.allocated(pull, extent.offset, fresh=extent.fresh)
            elif error is not None:
                self._no_room[identity] = error
                self.bulk.refused(pull, str(error))

        self.node.store.allocate(self.node.process, nbytes, self.node.now, done)

    def _failed(self, identity: ObjectId, reason: str) -> None:
        error = self._no_room.pop(identity, None)
        no_room = error is not None
        if error is None:
            error = errors.ObjectLostError(f"object {identity.hex()} cannot be had: {reason}")
        self.node.objects.pull_failed(identity, error_outcome(error), no_room=no_room)

    # -- for people, tests and the end -----------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counts for status and tests."""
        pulls = {f"pulls_{each.name.lower()}": self._pulls[each] for each in Priority}
        return {**self.bulk.statistics(), **self.fence.statistics(), **pulls}

    def close(self) -> None:
        """Stop the bulk thread: the segment may be unmapped after it."""
        self.bulk.close()
