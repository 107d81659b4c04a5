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
from collections.abc import Iterable
from dataclasses import dataclass

import zmq
from zmq.backend import Socket as _Backend

from zray.net.addresses import advertised, bind, check_binding
from zray.net.connections import CONNECTIONS_MAX, Connection, Connections
from zray.net.curve import ClusterKeys, Role, ZapHandler, secure_server
from zray.net.poller import READABLE, new_poller
from zray.protocol.limits import HELLO_TIMEOUT_S

LINK_FRAME_BYTES_MAX = 32 * 1024 * 1024
"""Largest frame on a link (ZMQ_MAXMSGSIZE): objects go over the bulk port, in chunks."""

LINK_QUEUE_MESSAGES_MAX = 1000
"""Messages that libzmq holds for a link in each direction before it pushes back."""

ZERO_COPY_BYTES_MIN = 64 * 1024
"""Below it a copy costs less than keeping the memory alive."""

PROPERTY = "X-zray"
"""Of the handshake's metadata: what a peer calls itself, and the token of its stream."""

_PEER_BYTES_MAX = 64
_CONTROL_EVERY = 256
"""Messages between two looks at handshakes while messages never end."""
_STREAMS_MAX = 4096
"""Streams that have ended, remembered so that libzmq's reconnect of one is refused."""
_KEEPALIVE_S = ((zmq.TCP_KEEPALIVE_IDLE, 10), (zmq.TCP_KEEPALIVE_INTVL, 5))
_KEEPALIVE_PROBES = 3

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
        peer: what it calls itself (Links' ``own``), b"" where it does not. Only as true as the
            key: all holders of one key can call themselves the same.
        role: of its key. NODE where the inbox has no keys.
        key: its public key (Z85), b"" where the inbox has no keys.
        address: the IP address it dialled from.
        stream: differs for every connection. A new one of the same peer: the old one has ended.
    """

    peer: bytes
    role: Role
    key: bytes
    address: str
    stream: bytes


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
    at ``departed``; call sweep() a few times a second.

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
        check_binding(host, keys)
        self._keys = keys
        self._role = role
        self._keys_revision = 0 if keys is None else keys.revision
        self.server_key = b"" if keys is None else keys.pair(role).public
        """What peers pass to Links.connect(): the same for as long as this inbox lives."""
        # Before the bind: RFC 27 asks for it, and nobody may slip through in between.
        self._zap = None if keys is None else ZapHandler(context, keys)
        self._socket = self._open(context)
        self._connections = Connections(context, self._socket, connections_max=connections_max)
        try:
            bound = bind(self._socket, host, port)
        except OSError:
            self._close_sockets()
            raise
        self.port = self._connections.port = bound
        self.address = advertised(host, bound, advertise)
        """Where others reach it, as "tcp://HOST:PORT"."""
        self._inbound: dict[bytes, _Inbound] = {}
        self._streams: OrderedDict[bytes, Sender] = OrderedDict()
        self._tokens: dict[bytes, bytes] = {}
        self._expected: dict[bytes, frozenset[bytes]] = {}
        self._until_control = _CONTROL_EVERY
        self._taken = 0
        """Messages since there were none."""
        self.departed: deque[Sender] = deque()
        """Senders whose stream has ended, after their last message; for the caller to take."""
        self._control = new_poller()
        for each in (self._connections, *((self._zap,) if self._zap else ())):
            self._control.register(each.descriptor, READABLE)
        self._arrivals = new_poller()
        self.descriptors = (int(self._socket.get(zmq.FD)), self._control.fileno())
        self._arrivals.register(self.descriptors[0], READABLE)

    def _open(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, LINK_QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.MAXMSGSIZE, LINK_FRAME_BYTES_MAX)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HELLO_TIMEOUT_S * 1000))
        socket.setsockopt(zmq.BACKLOG, 1024)
        # No ZMTP heartbeats: with a finite queue they end connections that are merely slow, and
        # have ended whole processes by an assertion. Leases tell of the dead, TCP of the reset.
        keep_alive(socket)
        if self._keys is not None:
            secure_server(socket, self._keys.pair(self._role))
        return socket

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
        return bool(self._connections.ended or self.departed)

    def _serve_control(self) -> bool:
        """Answer handshakes and read the monitor; return whether there was anything."""
        self._until_control = _CONTROL_EVERY
        if not self._control.poll(0):
            return False
        asked = self._zap is not None and self._zap.serve()
        return self._connections.serve() or asked

    def _depart(self) -> None:
        ended = self._connections.ended
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
        # To ask the socket itself would swallow the edge that its descriptor is polled for.
        drained = not self._taken and not self._arrivals.poll(0)
        self._connections.sweep(drained=drained)
        keys = self._keys
        if keys is None:
            return
        keys.reload()
        if keys.revision == self._keys_revision:
            return
        self._keys_revision = keys.revision
        for inbound in self._inbound.values():
            sender = inbound.sender
            if sender is not None and keys.role_of(sender.key, retired=True) is not sender.role:
                self._refuse(inbound, "revoked key")

    # -- who it is ---------------------------------------------------------------------------------

    def expect(self, peer: bytes, keys: Iterable[bytes]) -> None:
        """Believe from now on that somebody is ``peer`` only where it holds one of these keys."""
        self._expected[peer] = frozenset(keys)
        for inbound in self._inbound.values():
            sender = inbound.sender
            if sender is not None and sender.peer == peer and not self._is_expected(sender):
                self._refuse(inbound, "name of another")

    def refuse(self, sender: Sender, reason: str) -> None:
        """Cut a connection whose sender has broken a rule of the caller's."""
        inbound = self._inbound.get(sender.stream)
        if inbound is not None and inbound.sender is sender:
            self._refuse(inbound, reason)

    def forget(self, peer: bytes) -> None:
        """Expect nothing of this peer any more."""
        self._expected.pop(peer, None)

    @property
    def refused(self) -> Counter[str]:
        """Connections and handshakes refused so far, by reason."""
        zap = Counter[str]() if self._zap is None else self._zap.refused
        return self._connections.refused + zap

    def __len__(self) -> int:
        return len(self._connections)

    def _identify(self, routing_id: bytes, frame: zmq.Frame) -> _Inbound:
        """Look at the first message of a connection.

        What libzmq and ZAP say of it comes first in its metadata, so that a peer which claims
        another's User-Id or descriptor in its own part is not heard.
        """
        connection = self._connections.name(routing_id, int(frame.get(zmq.SRCFD)))
        address = str(frame.get("Peer-Address"))
        peer, token = _announced(frame)
        inbound = self._inbound[routing_id] = _Inbound(connection, None)
        key, role = b"", Role.NODE
        if self._keys is not None:
            key = str(frame.get("User-Id")).encode()
            found = self._keys.role_of(key, retired=True)
            if found is None:
                return self._refuse(inbound, "revoked key")
            role = found
        sender = Sender(peer, role, key, address, routing_id)
        if not peer:
            inbound.sender = sender
            return inbound
        if not self._is_expected(sender):
            return self._refuse(inbound, "name of another")
        return self._begin_stream(inbound, sender, token)

    def _begin_stream(self, inbound: _Inbound, sender: Sender, token: bytes) -> _Inbound:
        former = self._streams.get(sender.peer)
        if former is not None:
            if self._tokens[sender.peer] == token:
                # libzmq has dialled again by itself: what was in flight between is missing.
                return self._refuse(inbound, "stream with a gap")
            lives = self._inbound.get(former.stream)
            if lives is not None and lives.sender is not None:
                if sender.role is not Role.NODE and sender.key != former.key:
                    return self._refuse(inbound, "name of another")
                # Its last messages must not come after the first ones of the new stream.
                lives.sender = None
                self.departed.append(former)
        self._streams[sender.peer] = sender
        self._streams.move_to_end(sender.peer)
        self._tokens[sender.peer] = token
        while len(self._streams) > _STREAMS_MAX + len(self._inbound):
            oldest, _sender = self._streams.popitem(last=False)
            del self._tokens[oldest]
        inbound.sender = sender
        return inbound

    def _is_expected(self, sender: Sender) -> bool:
        expected = self._expected.get(sender.peer)
        return expected is None or sender.key in expected

    def _refuse(self, inbound: _Inbound, reason: str) -> _Inbound:
        if inbound.sender is not None:
            self.departed.append(inbound.sender)
            inbound.sender = None
        self._connections.cut(inbound.connection.descriptor, reason)
        return inbound

    def close(self) -> None:
        """Close the port and what belongs to it."""
        self._close_sockets()
        self._control.close()
        self._arrivals.close()

    def _close_sockets(self) -> None:
        self._connections.close()
        if self._zap is not None:
            self._zap.close()


def keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Let TCP find out within half a minute that a silent peer's machine is gone."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    for option, seconds in _KEEPALIVE_S:
        socket.setsockopt(option, seconds)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _KEEPALIVE_PROBES)


def _announced(frame: zmq.Frame) -> tuple[bytes, bytes]:
    """Return (peer, token) of a handshake's metadata, both b"" where there are none."""
    try:
        peer, _dot, token = str(frame.get(PROPERTY)).partition(".")
        name = bytes.fromhex(peer)
        return (name, bytes.fromhex(token)) if len(name) <= _PEER_BYTES_MAX else (b"", b"")
    except (zmq.ZMQError, ValueError):
        return b"", b""  # A client of its own making, which need not have a name.
