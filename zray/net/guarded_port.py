"""A TCP port of a node: one ROUTER that only receives, and only from members.

What    Both ports of a node are one of these: who may shake hands (curve.py), how many may be
        connected and what each may send (connections.py), who is behind each connection, whose
        connections end because a key was revoked, and which key the port itself shows, which
        changes while connections live.
Caller  zray/net/link_inbox.py, zray/net/bulk_link.py. One thread.
Never   sends; believes what a peer says of itself before its key; unpickles.
Spec    RFC 26 (CURVE), RFC 27 (ZAP).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

import zmq

from .addresses import advertised, check_binding
from .connections import CONNECTIONS_MAX, Connection, Connections
from .curve import ClusterKeys, Role, ZapHandler, secure_server
from .listeners import Listeners
from .poller import READABLE, new_poller

PROPERTY = "X-zray"
"""Of the handshake's metadata: what a peer calls itself, and the token of its stream."""

_PEER_BYTES_MAX = 64
_NAMES_MAX = 4096
"""Names that somebody had, remembered with whose they are."""
_KEEPALIVE_S = ((zmq.TCP_KEEPALIVE_IDLE, 10), (zmq.TCP_KEEPALIVE_INTVL, 5))
_KEEPALIVE_PROBES = 3

Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is behind a connection.

    Args:
        peer: what it calls itself, b"" where it does not.
        token: of its stream: differs for every one that it begins.
        role: of its key. NODE where the port has no keys.
        key: its public key (Z85), b"" where the port has no keys.
        member: whose key that is, "" where the port has no keys.
        address: the IP address it dialled from.
    """

    peer: bytes
    token: bytes
    role: Role
    key: bytes
    member: str
    address: str


class GuardedPort:
    """The ROUTER, and all that stands before it.

    Poll ``descriptors`` for reading; when one is, receive from ``socket`` until there is nothing,
    call serve() until it returns False, and take ``ended``. Call sweep() some times a second.

    Args:
        context: of this port alone among ports: a context has one ZAP handler.
        keys: the members; None only on loopback, where everybody on this machine is let in.
        host: IP address to bind, or "localhost"; "0.0.0.0" and "::" are all of this machine's.
        port: 0: one that is free.
        frame_bytes_max: the largest frame; a longer one ends its connection.
        queue_messages_max: messages of one peer that wait here before TCP holds it back.
        handshake_s: seconds until a peer must have shown its key.
        connections_max: TCP connections open at a time.
        role: whose key to show.

    Raises SecurityError where others than this machine could reach a port without keys; OSError
    where the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[Socket],
        keys: ClusterKeys | None,
        *,
        host: str,
        port: int,
        frame_bytes_max: int,
        queue_messages_max: int,
        handshake_s: float,
        connections_max: int = CONNECTIONS_MAX,
        role: Role = Role.NODE,
    ) -> None:
        check_binding(host, keys)
        self._keys = keys
        self._role = role
        self._revision = 0 if keys is None else keys.revision
        self.server_key = b"" if keys is None else keys.pair(role).public
        """What who dials has to expect; another one when the key in use was changed."""
        self._callers: dict[int, tuple[Connection, Caller]] = {}
        self._names: OrderedDict[bytes, tuple[str, Role]] = OrderedDict()
        self._host = host
        self._listeners = Listeners(host, port)
        # Before the bind: RFC 27 asks for it, and nobody may slip through in between.
        self._zap: ZapHandler | None = None
        try:
            self._zap = None if keys is None else ZapHandler(context, keys)
            self.socket = context.socket(zmq.ROUTER)
        except BaseException:
            self._listeners.close()
            raise
        self._set_options(frame_bytes_max, queue_messages_max, handshake_s)
        self._connections = Connections(context, self.socket, connections_max=connections_max)
        self.port = self._connections.port = self._listeners.port
        self.is_ipv6 = self._listeners.is_ipv6
        try:
            if keys is not None:
                secure_server(self.socket, keys.pair(role))
            self._listeners.hand_over(self.socket)
        except BaseException:
            self._close_sockets()
            raise
        self._control = new_poller()
        for each in (self._connections, *((self._zap,) if self._zap else ())):
            self._control.register(each.descriptor, READABLE)
        self._arrivals = new_poller()
        self.descriptors = (int(self.socket.get(zmq.FD)), self._control.fileno())
        self._arrivals.register(self.descriptors[0], READABLE)
        self.ended = self._connections.ended
        """Routing ids whose connection has ended, after their last message; for the caller."""

    def _set_options(self, frame_bytes_max: int, queue_max: int, handshake_s: float) -> None:
        socket = self.socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, queue_max)
        socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(handshake_s * 1000))
        # No ZMTP heartbeats: with a finite queue they end connections that are merely slow, and
        # have ended whole processes by an assertion. Leases tell of the dead, TCP of the reset.
        keep_alive(socket)

    def address(self, advertise: str | None) -> str:
        """Return where others reach it, as "tcp://HOST:PORT".

        Raises ValueError where ``advertise`` has a port that is no number.
        """
        return advertised(self._host, self.port, advertise)

    # -- every wake --------------------------------------------------------------------------------

    def serve(self) -> bool:
        """Answer handshakes and see who came and went; return whether there was anything."""
        if not self._control.poll(0):
            return False
        asked = self._zap is not None and self._zap.serve()
        return self._connections.serve() or asked

    def identify(self, routing_id: bytes, frame: zmq.Frame) -> tuple[Connection, Caller | None]:
        """Look at the first message of a connection: who is behind it, None where it is cut.

        What libzmq and ZAP say of it comes first in its metadata, so that a peer which claims
        another's User-Id or descriptor in its own part is not heard.
        """
        descriptor = int(frame.get(zmq.SRCFD))
        connection = self._connections.name(routing_id, descriptor)
        peer, token = _announced(frame)
        key, role, member = b"", Role.NODE, ""
        if self._keys is not None:
            key = str(frame.get("User-Id")).encode()
            found = self._keys.role_of(key, retired=True)
            if found is None:
                self.cut(connection, "revoked key")
                return connection, None
            role, member = found, self._keys.member_of(key)
        caller = Caller(peer, token, role, key, member, str(frame.get("Peer-Address")))
        if peer and not self._is_its_own(caller):
            self.cut(connection, "name of another")
            return connection, None
        self._callers[descriptor] = connection, caller
        return connection, caller

    def _is_its_own(self, caller: Caller) -> bool:
        """Tie a name to the member that has it first: nobody else is believed to be that one.

        A node takes its name from who is none. Names are of one life of a node, and who makes up
        many loses the oldest of its own first.
        """
        own = caller.member, caller.role
        owner = self._names.setdefault(caller.peer, own)
        self._names.move_to_end(caller.peer)
        if owner != own:
            if caller.role is not Role.NODE or owner[1] is Role.NODE:
                return False
            self._names[caller.peer] = own
        if len(self._names) > _NAMES_MAX:
            most, _count = Counter(self._names.values()).most_common(1)[0]
            del self._names[next(name for name, each in self._names.items() if each == most)]
        return True

    def expect(self, peer: bytes, key: bytes) -> None:
        """Believe that somebody is ``peer`` only where it shows a key of the same member."""
        if self._keys is None:
            return
        owner = self._keys.member_of(key), self._keys.role_of(key, retired=True) or Role.NODE
        self._names[peer] = owner
        self._names.move_to_end(peer)
        for connection, caller in self._callers.values():
            is_liar = caller.peer == peer and (caller.member, caller.role) != owner
            if is_liar and self._connections.has(connection):
                self.cut(connection, "name of another")

    def cut(self, connection: Connection, reason: str) -> None:
        """Shut a connection down; what it has sent and nobody has read is not to be believed."""
        self._connections.cut(connection.descriptor, reason)

    # -- some times a second -----------------------------------------------------------------------

    def sweep(self, *, drained: bool) -> list[bytes]:
        """Cut who sends without end or whose key was revoked, and show the key in use.

        Args:
            drained: all complete messages were received: see Connections.sweep().

        Returns the routing ids of those whose key was revoked. Raises SecurityError where the
        folder of keys has become unusable: nobody new is let in until it is mended, connections
        that are open stay.
        """
        # To ask the socket itself would swallow the edge that its descriptor is polled for.
        self._connections.sweep(drained=drained and not self._arrivals.poll(0))
        keys = self._keys
        if keys is None:
            return []
        keys.reload()
        if keys.revision == self._revision:
            return []
        self._revision = keys.revision
        shut_out: list[bytes] = []
        for descriptor, (connection, caller) in list(self._callers.items()):
            if not self._connections.has(connection):
                del self._callers[descriptor]
            elif keys.role_of(caller.key, retired=True) is not caller.role:
                del self._callers[descriptor]
                self.cut(connection, "revoked key")
                shut_out.append(connection.routing_id)
        self._show_key_in_use(keys)
        return shut_out

    def _show_key_in_use(self, keys: ClusterKeys) -> None:
        """Let new connections expect our new key; those that are open keep theirs."""
        pair = keys.pair(self._role)
        if pair.public == self.server_key:
            return
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        if self._listeners.renew(self.socket):
            self.server_key = pair.public

    @property
    def refused(self) -> Counter[str]:
        """Connections and handshakes refused so far, by reason; may be asked from any thread."""
        # Copied in one step each: the port's own thread goes on counting.
        found = Counter(dict(self._connections.refused))
        if self._zap is not None:
            found.update(dict(self._zap.refused))
        return found

    def __len__(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """Close the port and what belongs to it."""
        self._close_sockets()
        self._control.close()
        self._arrivals.close()

    def _close_sockets(self) -> None:
        self._connections.close()
        self._listeners.close()
        if self._zap is not None:
            self._zap.close()


def keep_alive(socket: Socket) -> None:
    """Let TCP find out within half a minute that a silent peer's machine is gone."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    for option, seconds in _KEEPALIVE_S:
        socket.setsockopt(option, seconds)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _KEEPALIVE_PROBES)


def announce(socket: Socket, peer: bytes, token: bytes) -> None:
    """Let a socket that is to be connected say, with its key, what it calls itself."""
    socket.setsockopt(zmq.METADATA, f"{PROPERTY}:{peer.hex()}.{token.hex()}".encode())
    # An empty message first: the port knows whose connection it is before anything is said.
    socket.setsockopt(zmq.PROBE_ROUTER, 1)


def _announced(frame: zmq.Frame) -> tuple[bytes, bytes]:
    """Return (peer, token) of a handshake's metadata, both b"" where there are none."""
    try:
        peer, _dot, token = str(frame.get(PROPERTY)).partition(".")
        name = bytes.fromhex(peer)
        return (name, bytes.fromhex(token)) if len(name) <= _PEER_BYTES_MAX else (b"", b"")
    except (zmq.ZMQError, ValueError):
        return b"", b""  # A client of its own making, which need not have a name.
