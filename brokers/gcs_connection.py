"""This node's session with the GCS process of its cluster.

What    GcsConnection drives the session from the node's loop, feeds what the GCS says of nodes to
        the membership, performs what that commands, and gives the node the cluster's tables.
        enter() starts the GCS process where this node is the head.
Caller  brokers/cluster.py; brokers/node_process.py for enter().
Never   waits for the GCS; decides who is a member (brokers/membership.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net.gcs_link import GcsPeer
from zray.protocol.roles import Role

from .gcs.client import GcsSession
from .gcs.client_ranges import RangeUpdate
from .gcs.commands import Command
from .gcs.store import Change
from .gcs.tables import NodeRecord
from .gcs_process import GcsProcess
from .gcs_tables import GcsTables
from .membership import Dial, End, Forget, Lost, NodeRow

if TYPE_CHECKING:
    from .cluster import Cluster

_TICK_S = 0.1
_SILENT_S = 3.0
"""The GCS answers beats four times a second: after so long it is dialled anew."""
_LINGER_MS = 200


class GcsConnection:
    """The session, its link, and who is fed by it.

    Args:
        cluster: of this node.
        endpoint: of the GCS, "tcp://HOST:PORT".

    Raises:
        SecurityError: there is no key to show.
    """

    def __init__(self, cluster: Cluster, endpoint: str) -> None:
        node = cluster.node
        self.endpoint = endpoint
        self.is_joined = False
        self._cluster = cluster
        self._node = node
        self._link = GcsPeer(endpoint, node.process, cluster.keys, cluster.key_role)
        self._more = True
        self._tick_at = node.now
        self._dialled_at = node.now
        self._descriptor = self._link.descriptor
        node.watch(self._descriptor, self._readable)
        self.session = GcsSession(
            send=self._link.send,
            new_id=lambda: os.urandom(16),
            now=node.now,
            client=f"node {node.process.hex()}",
            on_lost=self._lost,
        )
        self.tables = GcsTables(cluster, self.session)
        self.session.watch("nodes", b"", self._nodes_changed)
        self._join()

    def _readable(self) -> None:
        self._more = True

    # -- joining ---------------------------------------------------------------------------------

    def _join(self) -> None:
        node, cluster = self._node, self._cluster
        self.session.join(
            node.process,
            self._joined,
            addresses={"links": cluster.inbox.address, "directory": node.directory},
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
            rows = [_row(change) for change in update.changes]
            membership.table_read([row for row in rows if row is not None], now)
            return
        for change in update.changes:
            row = _row(change)
            if row is None:
                membership.table_forgot(change.key)
            else:
                membership.table_changed(row, now)

    def _perform(self) -> None:
        cluster = self._cluster
        membership = cluster.membership
        while membership.commands:
            commands, membership.commands = membership.commands, []
            for command in commands:
                if isinstance(command, Dial):
                    cluster.dial_again(command.address)
                elif isinstance(command, Forget):
                    cluster.stop_dialling(command.address)
                elif isinstance(command, Lost):
                    cluster.lost(command.node, command.reason)
                elif isinstance(command, End):
                    self._end(command.reason)

    def _end(self, reason: str) -> None:
        print(
            f"this node ends, and all its actors and workers: {reason}; to the rest of the cluster"
            " it is dead",
            flush=True,
        )
        self._node.stop(f"fenced: {reason}")

    # -- the node's loop -------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called, whatever is readable."""
        # Sending on the socket may have swallowed the edge of what has come.
        if self._more or self._link.has_message():
            self._more = True
            return 0.0
        return max(0.0, self._tick_at - self._node.now)

    def serve(self) -> None:
        """Take what the GCS has sent, and do what is due."""
        now = self._node.now
        if self._more:
            self._more = False
            while (frame := self._link.receive()) is not None:
                try:
                    self.session.received(frame, now)
                except errors.RemoteProtocolError as error:
                    print(f"the GCS has sent a malformed message: {error}", flush=True)
        if now >= self._tick_at:
            self._tick_at = now + _TICK_S
            self.session.tick(now)
            self._cluster.membership.tick(now, self.session.lease_expires_at)
            self.tables.tick(now)
            if now - max(self.session.heard_at, self._dialled_at) > _SILENT_S:
                self._redial(now)
        self._perform()

    def flush(self) -> None:
        """Send what was asked in this wake."""
        self.session.flush()

    def _redial(self, now: float) -> None:
        """The GCS may show another of the nodes' keys than the one we expect."""
        self._dialled_at = now
        self._node.unwatch(self._descriptor)
        try:
            self._link.redial()
        except errors.SecurityError as error:
            print(f"the GCS can't be dialled: {error}", flush=True)
        self._descriptor = self._link.descriptor
        self._node.watch(self._descriptor, self._readable)
        self._more = True

    def close(self) -> None:
        """Tell the GCS that this node ends in order, and hang up."""
        if self.is_joined and not self._cluster.membership.is_over:
            leave = Command("LEAVE", (self._node.process, self.session.incarnation))
            self.session.ask(leave, lambda _result, _error: None)
            self.session.flush()
        self._node.unwatch(self._descriptor)
        self._link.close(_LINGER_MS)


def _row(change: Change) -> NodeRow | None:
    if change.value is None:
        return None
    record = NodeRecord.unpack(change.value)
    address = record.addresses.get("links", "")
    alive = record.state == "alive"
    return NodeRow(record.node_id, record.epoch, address, alive, Role(record.role))


def enter(cluster: Cluster, settings: dict[str, Any]) -> None:
    """Begin the life in a cluster: start its GCS as the head, dial whom the settings name.

    Args:
        cluster: of this node.
        settings: ``head``: start the GCS, at ``gcs_port``. ``gcs``: where it is, if it is known.
            ``join``: addresses of nodes. ``fence_s``: see membership.FENCE_S.

    Raises:
        NodeStartError: the GCS did not start.
        SecurityError: there is no key to show.
    """
    node, membership = cluster.node, cluster.membership
    membership.fence_s = float(settings.get("fence_s", membership.fence_s))
    if settings.get("head"):
        cluster.gcs_process = GcsProcess(
            os.path.join(node.directory, "cluster-gcs"),
            watch=node.watch,
            unwatch=node.unwatch,
            host=settings.get("host", "127.0.0.1"),
            port=settings.get("gcs_port", 0),
            advertise=settings.get("advertise"),
            keys=settings.get("keys"),
        )
        cluster.use_gcs(cluster.gcs_process.endpoint)
    elif settings.get("gcs"):
        cluster.use_gcs(settings["gcs"])
    for address in settings.get("join", ()):
        cluster.dial(address)
