"""Mailboxes: what a process receives from and sends to over ZeroMQ.

What    Inbox, the one bound ROUTER of a process, which only receives; Peers, a send-only DEALER
        for each process it talks to (the pattern of RFC 36/ZRE). One socket to poll, whoever
        writes; and the edge-triggered descriptor can't be swallowed by a send on the same socket.
Caller  zray/client.py, brokers/node.py.
Never   blocks in send: what a receiver has no room for stays in the process that sent it, where
        credits above bound it.
"""

import contextlib
import os
import socket as _socket
import threading
from collections.abc import Sequence

import zmq
from zmq.backend import Socket as _Backend

from zray.protocol.limits import (
    INBOX_MESSAGES_MAX,
    IPC_PATH_BYTES_MAX,
    MAILBOX_MESSAGE_BYTES_MAX,
)

# The methods of pyzmq's C layer: its Python layer costs 0.15 us a call and 3 us for each Again.
_send = _Backend.send
_recv = _Backend.recv
_SNDMORE = 2
_DONTWAIT = 1

Again = zmq.Again
Message = tuple[bytes, bytes, list[bytes]]


def new_context() -> "zmq.Context[zmq.Socket[bytes]]":
    """Return zray's own context: its own I/O thread, no collision with the user's ZAP handler."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 16384)
    context.set(zmq.BLOCKY, 0)
    return context


def ipc_endpoint(directory: str, name: str) -> str:
    """Return the endpoint ``name`` in a process's socket directory.

    Raises OSError where the path is longer than unix sockets allow.
    """
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
        raise OSError(
            f"socket path longer than {IPC_PATH_BYTES_MAX} bytes: {path}; choose a"
            " shorter directory (--dir or TMPDIR)"
        )
    return f"ipc://{path}"


class Inbox:
    """The ROUTER that a process receives from. One thread at a time, whoever holds its lock."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str) -> None:
        self.endpoint = endpoint
        self.socket = context.socket(zmq.ROUTER)
        self.socket.set_hwm(INBOX_MESSAGES_MAX)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAILBOX_MESSAGE_BYTES_MAX)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        admit_same_user(self.socket)
        self.socket.bind(endpoint)
        self.descriptor = int(self.socket.get(zmq.FD))

    def receive(self, blocking: bool = False) -> Message | None:
        """Return (sender, header, payloads) of the next message, or None where there is none.

        Blocking waits as long as the socket's RCVTIMEO says.
        The sender is its socket's routing id, which is believed for the token in it.
        """
        socket = self.socket
        try:
            sender = _recv(socket, 0 if blocking else _DONTWAIT)
        except Again:
            return None
        payloads: list[bytes] = []
        # A Frame knows for 0.4 us whether more follow (RCVMORE: 1.3 us); counting by the header
        # instead would let a lying peer shift the framing of every message behind its own.
        frame = _recv(socket, 0, False)
        header: bytes = frame.bytes
        while frame.more:
            frame = _recv(socket, 0, False)
            payloads.append(frame.bytes)
        return sender, header, payloads

    def close(self) -> None:
        """Close the socket and remove its path."""
        self.socket.close(0)
        with contextlib.suppress(FileNotFoundError):  # The node removes what the dead have left.
            os.unlink(self.endpoint.removeprefix("ipc://"))


def admit_same_user(socket: "zmq.Socket[bytes]") -> None:
    """Let a socket that is to be bound to ipc take this user and root alone, by the kernel's word.

    The folder it is in keeps others out already; this is for one whose mode was changed.
    """
    if hasattr(_socket, "SO_PEERCRED"):
        for uid in {os.getuid(), 0}:
            socket.setsockopt(zmq.IPC_FILTER_UID, uid)


class Peers:
    """Send-only DEALERs by the peer's process id. Any thread may send.

    Args:
        context: of the process.
        routing_id: what receivers see of the sender, zray/net/tokens.py; may be set until the
            first connect().
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", routing_id: bytes = b"") -> None:
        self._context = context
        self.routing_id = routing_id
        self._sockets: dict[bytes, zmq.Socket[bytes]] = {}
        self._lock = threading.Lock()

    def connect(self, peer: bytes, endpoint: str) -> None:
        """Open the way to ``peer``; a second call for the same peer does nothing."""
        with self._lock:
            if peer in self._sockets:
                return
            socket = self._context.socket(zmq.DEALER)
            socket.set_hwm(0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.ROUTING_ID, self.routing_id)
            socket.setsockopt(zmq.RECONNECT_STOP, zmq.RECONNECT_STOP_CONN_REFUSED)
            socket.connect(endpoint)
            self._sockets[peer] = socket

    def knows(self, peer: bytes) -> bool:
        """Return whether connect() was called for this peer."""
        return peer in self._sockets

    def send(self, peer: bytes, header: bytes, payloads: Sequence[bytes] = ()) -> bool:
        """Send one message; False where the peer is not connected (it died, or never was)."""
        with self._lock:
            socket = self._sockets.get(peer)
            if socket is None:
                return False
            if not payloads:
                _send(socket, header, _DONTWAIT)
                return True
            _send(socket, header, _SNDMORE)
            for payload in payloads[:-1]:
                _send(socket, payload, _SNDMORE)
            _send(socket, payloads[-1], _DONTWAIT)
        return True

    def drop(self, peer: bytes) -> None:
        """Close the way to a peer that is gone."""
        with self._lock:
            socket = self._sockets.pop(peer, None)
            if socket is not None:
                socket.close(0)

    def close(self, linger_ms: int = 0) -> None:
        """Close all; what is queued gets ``linger_ms`` to leave."""
        with self._lock:
            for socket in self._sockets.values():
                socket.close(linger_ms)
            self._sockets.clear()
