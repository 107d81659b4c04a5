"""This node's session with the GCS process of its cluster.

What    GcsConnection drives the session from the node's loop, feeds what the GCS says of nodes to
        the membership, performs what that commands, and gives the node the cluster's tables. Its
        frames go to the head by the link; in the head itself, straight to the GCS process. A link
        that ends is dialled at once: the session lives on. enter() begins all this.
Caller  brokers/cluster.py; brokers/node_process.py for enter().
Never   waits for the GCS; decides who is a member (brokers/membership.py).
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import link_messages
from zray.protocol.ids import NodeId
from zray.protocol.roles import Role

from .gcs.client import GcsSession
from .gcs.client_ranges import RangeUpdate
from .gcs.commands import Command
from .gcs.store import Change
from .gcs.tables import NodeRecord
from .gcs.wire import is_soft
from .gcs_frames import PIECE_BYTES, Assembly, pieces
from .gcs_relay import GcsRelay
from .gcs_tables import GcsTables
from .membership import Dial, End, Forget, Lost, NodeRow

if TYPE_CHECKING:
    from .cluster import Cluster

_TICK_S = 0.1
_PIECE_S = 0.005
"""Between two looks at a link that had no room for more of a large frame."""
_DIAL_S = 1.5
"""A head that has not greeted us for so long is dialled anew: TCP and libzmq wait ever longer
between their own attempts, and the lease does not."""


class GcsConnection:
    """The session, and who is fed by it.

    Args:
        cluster: of this node.
        head: the node beside whose process the GCS runs; may be this one.
        address: where the head is reached, "tcp://HOST:PORT".
    """

    def __init__(self, cluster: Cluster, head: NodeId, address: str) -> None:
        node = cluster.node
        self.head = head
        self.address = address
        self.is_joined = False
        self._cluster = cluster
        self._node = node
        self._incoming = Assembly()
        self._large: deque[tuple[int, bytes]] = deque()
        """What is left of a frame that is larger than what one message carries."""
        self._large_bytes = 0
        self._large_link = b""
        self._tick_at = node.now
        self._dial_at = node.now
        relay = cluster.gcs_relay
        self.session = GcsSession(
            send=self._call if relay is None else relay.send,
            new_id=lambda: os.urandom(16),
            now=node.now,
            client=f"node {node.process.hex()}",
            on_lost=self._lost,
        )
        self.tables = GcsTables(cluster, self.session)
        self.session.watch("nodes", b"", self._nodes_changed)
        self.session.watch_loads(cluster.loans.published)
        self._join()

    # -- the way to the GCS ----------------------------------------------------------------------

    def _call(self, frame: bytes) -> bool:
        """Send a frame to the head; False where it was not greeted, or its link is full."""
        cluster = self._cluster
        member = cluster.members.get(self.head)
        # Before it has answered, too: the greeting goes before this on the same stream.
        link = self.address.encode() if member is None else member.link
        if (member is None and link not in cluster.joining) or cluster.is_clogged(link):
            return False
        if self._large and not is_soft(frame):
            return False
        if len(frame) > PIECE_BYTES:
            self._large.extend(pieces(frame))
            self._large_bytes, self._large_link = len(frame), link
            self._send_large()
            return True
        kind, nbytes = link_messages.GCS_CALL, len(frame)
        return cluster.send_by(link, kind, 0, nbytes, payloads=(frame,))

    def _send_large(self) -> None:
        """Send on, as the link has room: beats and what else it carries go in between."""
        cluster, link = self._cluster, self._large_link
        while self._large and not cluster.is_clogged(link):
            offset, piece = self._large.popleft()
            message = (link_messages.GCS_CALL, offset, self._large_bytes)
            if not cluster.send_by(link, *message, payloads=(piece,)):
                self._large.clear()  # The session will repeat it.

    def take(self, offset: int, nbytes: int, piece: bytes) -> None:
        """GCS_ANSWER: a piece of what the GCS says.

        Raises:
            RemoteProtocolError: it is none, or what it completes is malformed.
        """
        self.session.heard_at = self._node.now  # A large frame takes its time.
        frame = self._incoming.take(offset, nbytes, piece)
        if frame is not None:
            self.received(frame)

    def received(self, frame: bytes) -> None:
        """Take what the GCS says; malformed, it is noted and ignored."""
        try:
            self.session.received(frame, self._node.now)
        except errors.RemoteProtocolError as error:
            print(f"the GCS has sent a malformed message: {error}", flush=True)
        self._perform()

    def moved(self, head: NodeId, address: str) -> None:
        """The head says where the GCS is: it may be a head that was started again."""
        if (head, address) != (self.head, self.address):
            print(f"the cluster's GCS is at node {head.hex()}, {address} now", flush=True)
            self.head, self.address = head, address

    def _reach_head(self, now: float) -> None:
        """See to it that there is a link to the head."""
        if self.head == self._node.process or self.head in self._cluster.members:
            self._dial_at = now
        elif now >= self._dial_at:
            self._dial_at = now + _DIAL_S
            self._cluster.stop_dialling(self.address)
            self._cluster.dial(self.address)
            self.session.rerouted()  # It goes behind the greeting.

    # -- joining ---------------------------------------------------------------------------------

    def _join(self) -> None:
        node, cluster = self._node, self._cluster
        self.session.join(
            node.process,
            self._joined,
            addresses={
                "links": cluster.inbox.address,
                "directory": node.directory,
                "key": cluster.inbox.server_key.decode(),
            },
            resources=dict(node.resources.total),
            labels=dict(node.settings.get("labels") or {}),
            host=os.uname().nodename,
            pid=os.getpid(),
            role=cluster.role,
        )

    def _joined(self, incarnation: Any, error: Exception | None) -> None:
        if error is None:
            self.is_joined = True
            self._cluster.membership.joined(incarnation)
            self._node.scheduler.borrowing.incarnation = incarnation
            self.tables.joined(self._node.now)
        elif isinstance(error, errors.GcsUnavailableError):
            self._join()
        elif not isinstance(error, (errors.GcsFencedError, errors.GcsSessionLostError)):
            print(f"the GCS does not take this node in: {error}", flush=True)

    def _lost(self, error: errors.GcsError) -> None:
        if isinstance(error, errors.GcsFencedError):
            self._cluster.membership.fenced(str(error))
            return
        print(f"the session with the GCS has ended: {error}; joining again", flush=True)
        self._join()

    # -- the table of nodes ----------------------------------------------------------------------

    def _nodes_changed(self, update: RangeUpdate) -> None:
        membership, now = self._cluster.membership, self._node.now
        if update.reset:
            rows = [self._row(change) for change in update.changes]
            membership.table_read([row for row in rows if row is not None], now)
            return
        for change in update.changes:
            row = self._row(change)
            if row is None:
                membership.table_forgot(change.key)
            else:
                membership.table_changed(row, now)

    def _row(self, change: Change) -> NodeRow | None:
        if change.value is None:
            return None
        record = NodeRecord.unpack(change.value)
        address = record.addresses.get("links", "")
        self._cluster.roster.shows(address, record.addresses.get("key", "").encode())
        alive = record.state == "alive"
        return NodeRow(record.node_id, record.epoch, address, alive, Role(record.role))

    def _perform(self) -> None:
        cluster = self._cluster
        membership = cluster.membership
        while membership.commands:
            commands, membership.commands = membership.commands, []
            for command in commands:
                if isinstance(command, Dial):
                    if not cluster.refusals.is_shut_out(command.node):
                        cluster.dial_again(command.address)
                elif isinstance(command, Forget):
                    cluster.stop_dialling(command.address)
                elif isinstance(command, Lost):
                    cluster.lost(command.node, command.reason)
                elif isinstance(command, End):
                    self._end(command.reason)

    def _end(self, reason: str) -> None:
        node = self._node
        node.begins_anew = not node.embedded
        then = "begins another life" if node.begins_anew else "ends"
        print(
            f"this node {then}, all its actors and workers end: {reason}; to the rest of the"
            " cluster it is dead",
            flush=True,
        )
        node.stop(f"fenced: {reason}")

    # -- the node's loop -------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called, whatever is readable."""
        due_s = max(0.0, self._tick_at - self._node.now)
        return min(due_s, _PIECE_S) if self._large else due_s

    def serve(self) -> None:
        """Do what is due."""
        now = self._node.now
        if self._large:
            self._send_large()
        if now >= self._tick_at:
            self._tick_at = now + _TICK_S
            self._reach_head(now)
            self.session.tick(now)
            self._cluster.membership.tick(now, self.session.lease_expires_at)
            self.tables.tick(now)
        self._perform()

    def flush(self) -> None:
        """Send what was asked in this wake."""
        self.session.flush()

    def close(self) -> None:
        """Tell the GCS that this node ends in order."""
        if self.is_joined and not self._cluster.membership.is_over:
            leave = Command("LEAVE", (self._node.process, self.session.incarnation))
            self.session.ask(leave, lambda _result, _error: None)
            self.session.flush()


def enter(cluster: Cluster, settings: dict[str, Any]) -> None:
    """Begin the life in a cluster: start its GCS as the head, dial whom the settings name.

    Args:
        cluster: of this node.
        settings: ``head``: start the GCS. ``join``: addresses of nodes. ``fence_s``: see
            membership.FENCE_S. ``life``: of this process, counted from 1.

    Raises:
        NodeStartError: the GCS did not start.
        OSError: the node's directory has too long a path for the GCS's socket.
        SecurityError: there is no key to show.
    """
    node, membership = cluster.node, cluster.membership
    membership.fence_s = float(settings.get("fence_s", membership.fence_s))
    if settings.get("head"):
        cluster.gcs_relay = GcsRelay(cluster)
        cluster.use_gcs(node.process, cluster.inbox.address)
    for address in settings.get("join", ()):
        cluster.dial(address)
