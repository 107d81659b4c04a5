"""The TCP connections of one bound socket: how many there may be, and which one must go.

What    libzmq accepts whoever dials and bounds only single frames. Its monitor tells of each
        connection; those too many, too slow to show a key, or that send a message without end are
        shut down, which libzmq takes for a peer that left.
Caller  zray/net/guarded_port.py.
Never   touches a descriptor of anything but the port it guards.
"""

from __future__ import annotations

import itertools
import os
import socket as sockets
import struct
from collections import Counter, deque

import zmq
from zmq.backend import Socket as _Backend

from zray.protocol.limits import UNNAMED_CONNECTIONS_MAX

CONNECTIONS_MAX = 2048
"""Open TCP connections of one port; one more is shut down."""

ADDRESS_CONNECTIONS_MAX = 1024
"""Of these, such that come from one IP address: a cluster may stand behind one."""

ADDRESS_STRANGERS_MAX = 128
"""Connections from one address that have not shown a key; its own oldest makes way."""

STRANGER_BYTES_MAX = 16 * 1024
"""What a connection may send before it has shown a key; a CURVE handshake takes 600 bytes."""

UNFINISHED_BYTES_MAX = 128 * 1024 * 1024
"""What a connection may send without completing a message: twice the largest one."""

_recv = _Backend.recv
_DONTWAIT = 1
_EVENT = struct.Struct("=HI")
_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128
"""Of tcpi_bytes_received in struct tcp_info (Linux 4.2)."""
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
_FAILED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "handshake broken off",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "handshake refused",
}
_SWEEP_CONNECTIONS = 128
"""Of those with a key, looked at in one sweep."""

monitor_numbers = itertools.count()


def open_monitor(
    context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], events: int
) -> zmq.Socket[bytes]:
    """Return the socket on which libzmq tells of the events of another one.

    Call it before the bind or the connect.
    """
    endpoint = f"inproc://zray-monitor-{next(monitor_numbers)}"
    socket.monitor(endpoint, events)
    monitor = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.LINGER, 0)
    # The I/O thread blocks on a full monitor, and with it all links: this one is never full.
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.connect(endpoint)
    # A pipe tells of its first message only who has found it empty before.
    monitor.get(zmq.EVENTS)
    return monitor


def close_monitored(
    socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], linger_ms: int = 0
) -> None:
    """Close a socket and its monitor.

    The order matters: an event for a monitor that nobody holds any more blocks the I/O thread, and
    with it all other sockets of the context.
    """
    socket.disable_monitor()
    monitor.close(0)
    socket.close(linger_ms)


def read_event(monitor: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """Return (event, value) of the next event, None where there is none."""
    try:
        event, value = _EVENT.unpack(_recv(monitor, _DONTWAIT))
    except zmq.Again:
        return None
    _recv(monitor, 0)  # The endpoint: always our own.
    return event, value


class Connection:
    """One TCP connection whose peer has shown its key."""

    __slots__ = (
        *("address", "descriptor", "messages", "messages_seen", "received_then", "routing_id"),
    )

    def __init__(self, routing_id: bytes, descriptor: int) -> None:
        self.routing_id = routing_id
        self.descriptor = descriptor
        self.address = ""
        self.messages = 0
        """Complete messages, counted by whoever receives them."""
        self.messages_seen = -1
        self.received_then = 0


class Connections:
    """What is connected to one socket. Make it before the bind, and set ``port`` after it.

    Args:
        context: of the socket.
        socket: not bound yet.
        connections_max: connections in all.
        strangers_max: of these, such that have not shown a key; the oldest makes way.
        address_connections_max: of all, such that come from one IP address.
        address_strangers_max: of strangers, such that come from one IP address.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        *,
        connections_max: int = CONNECTIONS_MAX,
        strangers_max: int = UNNAMED_CONNECTIONS_MAX,
        address_connections_max: int = ADDRESS_CONNECTIONS_MAX,
        address_strangers_max: int = ADDRESS_STRANGERS_MAX,
    ) -> None:
        self.port = 0
        self.ended: deque[bytes] = deque()
        """Routing ids whose connection has ended, for the caller to take."""
        self.refused: Counter[str] = Counter()
        self._connections_max = connections_max
        self._strangers_max = strangers_max
        self._address_connections_max = address_connections_max
        self._address_strangers_max = address_strangers_max
        self._strangers: dict[int, str] = {}
        """Where they came from, the oldest first."""
        self._named: dict[int, Connection] = {}
        self._from: Counter[str] = Counter()
        """Connections in all by the address they came from."""
        self._strangers_from: Counter[str] = Counter()
        self._next_looked_at = 0
        events = _ACCEPTED | _DISCONNECTED
        for event in _FAILED:
            events |= event
        self._socket = socket
        self._monitor = open_monitor(context, socket, events)
        self.descriptor = int(self._monitor.get(zmq.FD))

    def __len__(self) -> int:
        return len(self._strangers) + len(self._named)

    def has(self, connection: Connection) -> bool:
        """Return whether a connection that was named is still there."""
        return self._named.get(connection.descriptor) is connection

    def serve(self) -> bool:
        """Take note of who came and went, and enforce the limits; return whether any did."""
        any_came = False
        while (event := read_event(self._monitor)) is not None:
            any_came = True
            kind, value = event
            if kind == _ACCEPTED:
                self._accepted(value)
            elif kind == _DISCONNECTED:
                self._stranger_left(value)
                connection = self._named.pop(value, None)
                if connection is not None:
                    self._forget(connection)
            else:
                self.refused[_FAILED[kind]] += 1
        return any_came

    def _accepted(self, descriptor: int) -> None:
        address = _peer_address(descriptor)
        self._strangers[descriptor] = address
        _count(self._from, address, 1)
        _count(self._strangers_from, address, 1)
        if len(self) > self._connections_max:
            self.cut(descriptor, "too many connections")
        elif self._from[address] > self._address_connections_max:
            self.cut(descriptor, "too many connections from one address")
        elif self._strangers_from[address] > self._address_strangers_max:
            # An honest handshake takes milliseconds, so the one that has waited longest is none.
            oldest = next(each for each, where in self._strangers.items() if where == address)
            self.cut(oldest, "too many handshakes from one address")
        elif len(self._strangers) > self._strangers_max:
            self.cut(next(iter(self._strangers)), "too many handshakes")

    def _stranger_left(self, descriptor: int) -> None:
        address = self._strangers.pop(descriptor, None)
        if address is not None:
            _count(self._from, address, -1)
            _count(self._strangers_from, address, -1)

    def _forget(self, connection: Connection) -> None:
        self.ended.append(connection.routing_id)
        _count(self._from, connection.address, -1)

    def name(self, routing_id: bytes, descriptor: int) -> Connection:
        """Take note that a message came: whoever is behind this descriptor has shown its key."""
        self.serve()
        connection = Connection(routing_id, descriptor)
        earlier = self._named.pop(descriptor, None)
        if earlier is not None:
            # The number was given anew before the first message of its former holder was read.
            self._forget(earlier)
        address = self._strangers.pop(descriptor, None)
        if address is not None:
            _count(self._strangers_from, address, -1)
        elif earlier is not None:
            address = earlier.address
            _count(self._from, address, 1)
        else:
            self.ended.append(routing_id)  # It left before its first message was read.
            return connection
        connection.address = address
        self._named[descriptor] = connection
        return connection

    def cut(self, descriptor: int, reason: str) -> None:
        """Shut a connection down; it counts no longer, libzmq tells of its end in a moment."""
        self.refused[reason] += 1
        self._stranger_left(descriptor)
        try:
            duplicate = os.dup(descriptor)
        except OSError:
            return  # It has ended by itself.
        # libzmq may have closed the descriptor meanwhile, and the process opened something else
        # under its number: only what is a connection to this port is shut down.
        try:
            connection = sockets.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            return
        with connection:
            try:
                if connection.getsockname()[1] == self.port:
                    connection.shutdown(sockets.SHUT_RDWR)
            except (OSError, IndexError, TypeError):
                return  # Not connected any more, or not of TCP.

    def sweep(self, *, drained: bool) -> None:
        """Cut those that send without end. Call it some times a second.

        Args:
            drained: all complete messages have been received, so what else has come is a part of
                one; only then is it held against a connection with a key.
        """
        for descriptor in list(self._strangers):
            if _received_bytes(descriptor) > STRANGER_BYTES_MAX:
                self.cut(descriptor, "too many bytes without a key")
        if not drained or not self._named:
            return
        start = self._next_looked_at % len(self._named)
        chosen = list(itertools.islice(self._named.values(), start, start + _SWEEP_CONNECTIONS))
        self._next_looked_at = start + _SWEEP_CONNECTIONS
        if self._next_looked_at >= len(self._named):
            self._next_looked_at = 0
        for connection in chosen:
            received = _received_bytes(connection.descriptor)
            if connection.messages != connection.messages_seen:
                connection.messages_seen = connection.messages
                connection.received_then = received
            elif received - connection.received_then > UNFINISHED_BYTES_MAX:
                self.cut(connection.descriptor, "message without end")

    def close(self) -> None:
        """Close the socket and its monitor."""
        close_monitored(self._socket, self._monitor)


def _count(counter: Counter[str], address: str, more: int) -> None:
    """Count up or down; what has come to nothing is not kept."""
    counter[address] += more
    if counter[address] <= 0:
        del counter[address]


def _peer_address(descriptor: int) -> str:
    """Return where a TCP connection comes from; "" where it has ended already."""
    try:
        connection = sockets.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        return str(connection.getpeername()[0])
    except (OSError, IndexError):
        return ""
    finally:
        connection.detach()


def _received_bytes(descriptor: int) -> int:
    """Return how many bytes a TCP connection has received; 0 where it is none any more."""
    try:
        connection = sockets.socket(fileno=descriptor)
    except OSError:
        return 0
    try:
        info = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, 192)
        return int(_BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0])
    except (OSError, struct.error):
        return 0
    finally:
        connection.detach()
