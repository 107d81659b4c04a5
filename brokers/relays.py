"""What passes through this node between its processes and those of other nodes.

What    Envelopes from a process's stream go to the link of the node they are for, those from a
        link to the process they are for. Relays reads their two addresses and checks that the
        sender is who it says; what it hands on is not opened.
Caller  brokers/node.py (FORWARD), brokers/link_rules.py (RELAY), brokers/cluster.py.
Never   changes the order of what goes from one process to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from zray.errors import RemoteProtocolError
from zray.net.link_inbox import Payload
from zray.net.links import LINK_BACKLOG_BYTES_MAX
from zray.net.poller import READABLE, WRITABLE
from zray.protocol import envelopes, frames, link_messages, messages
from zray.protocol.envelopes import check_envelope, destination_node, destination_of
from zray.protocol.ids import NODE_PREFIX_BYTES, NodeId, ProcessId, node_of
from zray.protocol.limits import ENVELOPE_BYTES_MAX

from .peers import Process

if TYPE_CHECKING:
    from .cluster import Cluster

_ENVELOPES_MAX = 256
"""In one RELAY: its receiver serves others in between."""
_LARGE_BYTES = 16 * 1024
"""Shorter ones alone do not fill a link, so nobody looks how full it is."""
_PAUSE_BYTES = LINK_BACKLOG_BYTES_MAX // 2
_RESUME_BYTES = LINK_BACKLOG_BYTES_MAX // 8
_KIND_AT = slice(2, 3)
"""Where the kind is in a packed call."""
_FORWARD = bytes((messages.FORWARD,))
RELAY_ONE = frames.pack(link_messages.RELAY, payloads=1)
"""The header of a RELAY with one envelope: most have one."""


class Relays:
    """The way between processes of two nodes.

    Args:
        cluster: whose links and deliveries carry the envelopes.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self.paused: list[tuple[Process, NodeId]] = []
        """Processes that are not read until a node has taken more of what they said to it."""

    def passed(self, process: Process, calls: list[bytes]) -> Iterator[bytes]:
        """Carry the FORWARDs among a process's calls, and yield the others, each in its turn."""
        forwards: list[bytes] = []
        for packed in calls:
            if packed[_KIND_AT] == _FORWARD:
                forwards.append(packed)
                continue
            if forwards:
                self.forward(process, forwards)
                forwards = []
            yield packed
        if forwards:
            self.forward(process, forwards)

    def forward(self, process: Process, calls: list[bytes]) -> None:
        """Carry what a process of ours says to others' processes; one RELAY a node.

        Args:
            process: who says it.
            calls: FORWARDs as they came, with nothing between them.
        """
        by_node: dict[NodeId, list[bytes]] = {}
        for packed in calls:
            try:
                envelope = frames.unpack(packed)[3]
                check_envelope(envelope, process.identity)
                home = destination_node(envelope)
                if home == self._node.process:
                    raise RemoteProtocolError("FORWARD to a process of this node")
            except RemoteProtocolError as error:
                self._node.refuse(process, error)
                continue
            by_node.setdefault(home, []).append(envelope)
        for home, sealed in by_node.items():
            self._send(home, sealed)
            if len(sealed) > 1 or len(sealed[0]) >= _LARGE_BYTES:
                self._pause_if_full(process, home)

    # -- when a node takes less than it is sent --------------------------------------------------

    def _pause_if_full(self, process: Process, home: NodeId) -> None:
        """A burst beyond what a link holds must not end the link: its sender waits instead."""
        if self._queued_bytes(home) > _PAUSE_BYTES and process.calls is not None:
            self.paused.append((process, home))
            self._node.poller.modify(process.calls.fileno(), 0)

    def _queued_bytes(self, home: NodeId) -> int:
        member = self._cluster.members.get(home)
        return 0 if member is None else self._cluster.links.queued(member.link)[1]

    def resume(self) -> None:
        """Read those again whose node has caught up, or is gone."""
        still: list[tuple[Process, NodeId]] = []
        for process, home in self.paused:
            if self._node.processes.by_id.get(process.identity) is not process:
                continue
            if self._queued_bytes(home) > _RESUME_BYTES:
                still.append((process, home))
            else:
                self._listen_again(process)
        self.paused = still

    def _listen_again(self, process: Process) -> None:
        calls = process.calls
        if calls is not None:
            wanted = READABLE | WRITABLE if calls.outbound_bytes else READABLE
            self._node.poller.modify(calls.fileno(), wanted)

    # -- sending ---------------------------------------------------------------------------------

    def say(
        self, destination: ProcessId, parts: Sequence[bytes], source: ProcessId | None = None
    ) -> bool:
        """Send what this node has to say to another node's process; False: it is gone.

        Args:
            destination: the other node's process.
            parts: header and payloads.
            source: a process of ours in whose place the node speaks; None: the node itself.
        """
        sealed = envelopes.seal(destination, source or self._node.process, parts)
        return self._send(node_of(destination), sealed)

    def _send(self, home: NodeId, sealed: list[bytes]) -> bool:
        send = self._cluster.send_header
        if len(sealed) == 1:
            return send(home, RELAY_ONE, tuple(sealed))
        sent = True
        for group in _grouped(sealed):
            header = frames.pack(link_messages.RELAY, payloads=len(group))
            sent = send(home, header, tuple(group)) and sent
        return sent

    def hand_over(self, peer: NodeId, sealed: Sequence[Payload]) -> None:
        """Give envelopes of another node to the processes of ours they are for.

        Raises RemoteProtocolError where one is not of a process of that node.
        """
        prefix = peer[:NODE_PREFIX_BYTES]
        if len(sealed) == 1:
            check_envelope(sealed[0], prefix)
            self._deliver(destination_of(sealed[0]), sealed)
            return
        by_process: dict[ProcessId, list[Payload]] = {}
        for envelope in sealed:
            check_envelope(envelope, prefix)
            by_process.setdefault(destination_of(envelope), []).append(envelope)
        for destination, each in by_process.items():
            self._deliver(destination, each)

    def _deliver(self, destination: ProcessId, sealed: Sequence[Payload]) -> None:
        process = self._node.processes.by_id.get(destination)
        if process is not None:  # Or it has died, and its callers are about to hear of it.
            endpoint = process.details["endpoint"]
            deliveries = self._cluster.deliveries
            deliveries.send(destination, endpoint, sealed)
            if deliveries.backlog_bytes(destination) > LINK_BACKLOG_BYTES_MAX:
                self._node.kill_worker(destination)
                self._node.process_gone(destination, "it does not read what others send it")


def _grouped(sealed: list[bytes]) -> Iterator[list[bytes]]:
    """Yield envelopes by as many as go into one RELAY."""
    group: list[bytes] = []
    nbytes = 0
    for envelope in sealed:
        if group and (len(group) >= _ENVELOPES_MAX or nbytes > ENVELOPE_BYTES_MAX):
            yield group
            group, nbytes = [], 0
        group.append(envelope)
        nbytes += len(envelope)
    yield group
