"""The TCP port of a node: one ROUTER that only receives, from members of the cluster.

What    Every message comes with the key that its sender has proven to hold. A *stream* is what one
        DEALER of zray/net/links.py sends over one connection: in order and without gaps, or it
        ends and both sides are told.
Caller  brokers/node.py, brokers/gcs. One thread.
Never   sends; believes what a peer says of itself before its key; unpickles.
Spec    RFC 26 (CURVE), RFC 27 (ZAP), RFC 36 (ZRE).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

import zmq
from zmq.backend import Socket as _Backend

from zray.net.connections import CONNECTIONS_MAX, Connection
from zray.net.curve import ClusterKeys, Role
from zray.net.guarded_port import Caller, GuardedPort
from zray.protocol.limits import HELLO_TIMEOUT_S

LINK_FRAME_BYTES_MAX = 32 * 1024 * 1024
"""Largest frame on a link (ZMQ_MAXMSGSIZE): objects go over the bulk port, in chunks."""

LINK_QUEUE_MESSAGES_MAX = 1000
"""Messages that libzmq holds for a link in each direction before it pushes back."""

ZERO_COPY_BYTES_MIN = 64 * 1024
"""Below it a copy costs less than keeping the memory alive."""

_CONTROL_EVERY = 256
"""Messages between two looks at handshakes while messages never end."""
_STREAMS_MAX = 4096
"""Streams that have ended, remembered so that libzmq's reconnect of one is refused."""
# As in mailbox.py: pyzmq's Python layer costs more than the message.
_recv = _Backend.recv
_get = _Backend.get
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_DONTWAIT = 1

Payload = bytes | memoryview
"""A memoryview where it is large: of memory that libzmq owns and this view keeps alive."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a message: one per stream.

    Args:
        peer: what it calls itself (Links' ``own``), b"" where it does not. The first member that
            calls itself so is believed, no other one.
        role: of its key. NODE where the inbox has no keys.
        key: its public key (Z85), b"" where the inbox has no keys.
        address: the IP address it dialled from.
        stream: differs for every connection. A new one of the same peer: the old one has ended.
        member: whose key that is, "" where the inbox has no keys.
    """

    peer: bytes
    role: Role
    key: bytes
    address: str
    stream: bytes
    member: str = ""


LinkMessage = tuple[Sender, bytes, list[Payload]]


class _Inbound:
    """One connection as the inbox knows it; ``sender`` is None where its messages are dropped."""

    __slots__ = ("connection", "sender")

    def __init__(self, connection: Connection, sender: Sender | None) -> None:
        self.connection = connection
        self.sender = sender


class LinkInbox:
    """The one ROUTER that others' Links send to.

    Poll ``descriptors`` for reading; when one is, call receive() until it returns None, then look
    at ``departed``; call sweep() some times a second.

    Args:
        context: of this inbox alone among inboxes: a context has one ZAP handler.
        keys: the members; None only on loopback, where everybody on this machine is let in.
        host: IP address to bind, or "localhost"; "0.0.0.0" and "::" are all of this machine's.
        port: 0: one that is free.
        advertise: "HOST" or "HOST:PORT" that others reach it by, where that is not what is bound.
        connections_max: TCP connections open at a time.
        role: whose key to show.

    Raises SecurityError where others than this machine could reach a port without keys; OSError
    (zmq.ZMQError's errno) where the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: ClusterKeys | None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        connections_max: int = CONNECTIONS_MAX,
        role: Role = Role.NODE,
    ) -> None:
        self._port = GuardedPort(
            context,
            keys,
            host=host,
            port=port,
            frame_bytes_max=LINK_FRAME_BYTES_MAX,
            queue_messages_max=LINK_QUEUE_MESSAGES_MAX,
            handshake_s=HELLO_TIMEOUT_S,
            connections_max=connections_max,
            role=role,
        )
        self._socket = self._port.socket
        self.port = self._port.port
        self.address = self._port.address(advertise)
        """Where others reach it, as "tcp://HOST:PORT"."""
        self._inbound: dict[bytes, _Inbound] = {}
        self._streams: OrderedDict[bytes, Sender] = OrderedDict()
        self._tokens: dict[bytes, bytes] = {}
        self._until_control = _CONTROL_EVERY
        self._taken = 0
        """Messages since there were none."""
        self.departed: deque[Sender] = deque()
        """Senders whose stream has ended, after their last message; for the caller to take."""
        self.descriptors = self._port.descriptors

    @property
    def server_key(self) -> bytes:
        """What peers pass to Links.connect(); another one when the key in use was changed."""
        return self._port.server_key

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self) -> LinkMessage | None:
        """Return (sender, header, payloads) of the next message, or None where there is none.

        Also answers handshakes. None says that all descriptors have been read: poll again.
        """
        while True:
            received = self.arrived()
            if received is not None:
                return received
            if not self._serve_control():
                self._depart()
                return None
            # A connection that ended has put its last messages here before.

    def arrived(self) -> LinkMessage | None:
        """Return the next message as receive() does, None where the first descriptor is read.

        For who is told of handshakes and ends by the other descriptor, and looks at ``has_ended``.
        """
        socket = self._socket
        while True:
            if self._until_control == 0:
                self._serve_control()
            self._until_control -= 1
            # Mostly one comes at a time: then to ask costs half of what the exception does.
            if self._taken == 1 and not int(_get(socket, _EVENTS)) & _POLLIN:
                self._taken = 0
                return None
            try:
                routing_id = _recv(socket, _DONTWAIT)
            except zmq.Again:
                self._taken = 0
                return None
            self._taken += 1
            frame = _recv(socket, 0, False)
            inbound = self._inbound.get(routing_id) or self._identify(routing_id, frame)
            inbound.connection.messages += 1
            header: bytes = frame.bytes
            payloads: list[Payload] = []
            while frame.more:
                frame = _recv(socket, 0, False)
                large = len(frame) >= ZERO_COPY_BYTES_MIN
                payloads.append(frame.buffer if large else frame.bytes)
            if inbound.sender is None:
                continue
            if header or payloads:  # The empty one is how a stream begins.
                return inbound.sender, header, payloads

    @property
    def has_ended(self) -> bool:
        """Whether receive() has to be called for ``departed`` to be complete."""
        return bool(self._port.ended or self.departed)

    def _serve_control(self) -> bool:
        """Answer handshakes and see who came and went; return whether there was anything."""
        self._until_control = _CONTROL_EVERY
        return self._port.serve()

    def _depart(self) -> None:
        ended = self._port.ended
        while ended:
            inbound = self._inbound.pop(ended.popleft(), None)
            if inbound is not None and inbound.sender is not None:
                self.departed.append(inbound.sender)
                if self._streams.get(inbound.sender.peer) is inbound.sender:
                    self._streams.move_to_end(inbound.sender.peer, last=False)

    def sweep(self) -> None:
        """Cut who has no right or no end; read changed keys. Some times a second.

        Raises SecurityError where the folder of keys has become unusable: nobody new is let in
        until it is mended, connections that are open stay.
        """
        for routing_id in self._port.sweep(drained=not self._taken):
            self._silence(self._inbound.get(routing_id))

    # -- who it is ---------------------------------------------------------------------------------

    def _identify(self, routing_id: bytes, frame: zmq.Frame) -> _Inbound:
        connection, caller = self._port.identify(routing_id, frame)
        inbound = self._inbound[routing_id] = _Inbound(connection, None)
        if caller is None:
            return inbound
        sender = Sender(
            caller.peer, caller.role, caller.key, caller.address, routing_id, caller.member
        )
        if caller.peer:
            return self._begin_stream(inbound, sender, caller)
        inbound.sender = sender
        return inbound

    def _begin_stream(self, inbound: _Inbound, sender: Sender, caller: Caller) -> _Inbound:
        former = self._streams.get(sender.peer)
        if former is not None:
            if self._tokens[sender.peer] == caller.token:
                # libzmq has dialled again by itself: what was in flight between is missing.
                return self._refuse(inbound, "stream with a gap")
            lives = self._inbound.get(former.stream)
            if lives is not None and lives.sender is not None:
                # Its last messages must not come after the first ones of the new stream.
                lives.sender = None
                self.departed.append(former)
        self._streams[sender.peer] = sender
        self._streams.move_to_end(sender.peer)
        self._tokens[sender.peer] = caller.token
        while len(self._streams) > _STREAMS_MAX + len(self._inbound):
            oldest, _sender = self._streams.popitem(last=False)
            del self._tokens[oldest]
        inbound.sender = sender
        return inbound

    def refuse(self, sender: Sender, reason: str) -> None:
        """Cut a connection whose sender has broken a rule of the caller's."""
        inbound = self._inbound.get(sender.stream)
        if inbound is not None and inbound.sender is sender:
            self._refuse(inbound, reason)

    def _refuse(self, inbound: _Inbound, reason: str) -> _Inbound:
        self._silence(inbound)
        self._port.cut(inbound.connection, reason)
        return inbound

    def _silence(self, inbound: _Inbound | None) -> None:
        if inbound is not None and inbound.sender is not None:
            self.departed.append(inbound.sender)
            inbound.sender = None

    @property
    def refused(self) -> Counter[str]:
        """Connections and handshakes refused so far, by reason."""
        return self._port.refused

    def __len__(self) -> int:
        return len(self._port)

    def close(self) -> None:
        """Close the port and what belongs to it."""
        self._port.close()
