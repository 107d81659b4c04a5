"""The way between the GCS process and who uses it on this machine: a ROUTER and DEALERs over ipc.

What    GcsEndpoint, where the GCS receives and answers; GcsPeer, the other end: the head's node,
        which brings the frames of all other nodes too. An endpoint knows when a connection
        breaks. Both have what a poll loop needs: a descriptor, receive() until None, has_message()
        before each wait, since a send on the same socket may swallow the descriptor's edge.
Caller  brokers/gcs/server.py; brokers/gcs_relay.py.
Never   binds what others than this user of this machine can reach: the folder says who may.
"""

from __future__ import annotations

import contextlib
import os

import zmq
from zmq.backend import Socket as _Backend

from zray.errors import NodeStartError

from .mailbox import new_context

_send = _Backend.send
_recv = _Backend.recv
_SNDMORE = 2
_DONTWAIT = 1
_SOURCE_FD = 2

FRAME_BYTES_MAX = 80 << 20
"""A value of 64 MiB and what is around it."""

_QUEUE_LEN_MAX = 2048
"""Frames that wait for one slow connection of an endpoint; then send() says no."""

_CLIENT_QUEUE_LEN_MAX = 2048
_RECONNECT_MS = 20
_RECONNECT_MS_MAX = 500


def check_local(endpoint: str) -> None:
    """Raise NodeStartError where an endpoint could be reached from elsewhere."""
    if not endpoint.startswith("ipc://"):
        raise NodeStartError(
            f"{endpoint!r} is refused: the GCS does what any peer asks, so it binds nothing but "
            "ipc:// in a folder of its user; other nodes reach it by the head's own port"
        )


class GcsEndpoint:
    """Where the GCS is reached. One thread uses it.

    Args:
        endpoint: ipc://PATH, in a folder that nobody else can enter.

    Raises:
        NodeStartError: it can't be bound, or could be reached from elsewhere.
    """

    def __init__(self, endpoint: str) -> None:
        check_local(endpoint)
        self.endpoint = endpoint
        self._context = new_context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _QUEUE_LEN_MAX),
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
            (zmq.ROUTER_HANDOVER, 1),
            # Else a message to a full queue is dropped without a word.
            (zmq.ROUTER_MANDATORY, 1),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._peer_of_fd: dict[int, bytes] = {}
        self._fd_of_peer: dict[bytes, int] = {}
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise NodeStartError(
                f"the GCS can't bind {endpoint!r} ({error.strerror}); choose a shorter directory "
                "that exists and is yours"
            ) from error

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to poll for reading; edges, so receive() and broken() are to be called till dry."""
        return (int(self._socket.get(zmq.FD)), int(self._monitor.get(zmq.FD)))

    def has_message(self) -> bool:
        """Return whether receive() or broken() would return something now."""
        ready = int(self._socket.get(zmq.EVENTS)) | int(self._monitor.get(zmq.EVENTS))
        return bool(ready & zmq.POLLIN)

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """Return (connection, frames) of the next message, or None."""
        try:
            peer = bytes(_recv(self._socket, _DONTWAIT))
        except zmq.Again:
            return None
        frame = _recv(self._socket, 0, False)
        self._seen(peer, int(frame.get(_SOURCE_FD)))
        frames = [frame.bytes]
        while frame.more:
            frame = _recv(self._socket, 0, False)
            frames.append(frame.bytes)
        return peer, frames

    def _seen(self, peer: bytes, fd: int) -> None:
        """Learn whose connection a message came by."""
        before = self._fd_of_peer.get(peer)
        if before == fd:
            return
        if before is not None and self._peer_of_fd.get(before) == peer:
            del self._peer_of_fd[before]
        self._fd_of_peer[peer] = fd
        self._peer_of_fd[fd] = peer

    def broken(self) -> list[bytes]:
        """Return connections that broke since the last call.

        To be called before receive(): a new connection may have the descriptor of a broken one.
        """
        peers: list[bytes] = []
        while int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            event = self._monitor.recv(zmq.NOBLOCK)
            self._monitor.recv(zmq.NOBLOCK)
            peer = self._peer_of_fd.pop(int.from_bytes(event[2:6], "little", signed=True), None)
            if peer is not None:
                self._fd_of_peer.pop(peer, None)
                peers.append(peer)
        return peers

    def send(self, peer: bytes, *frames: bytes) -> bool:
        """Send one message; False where the connection is gone or takes no more for now."""
        try:
            _send(self._socket, peer, _SNDMORE | _DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        for frame in frames[:-1]:
            _send(self._socket, frame, _SNDMORE | _DONTWAIT)
        _send(self._socket, frames[-1], _DONTWAIT)
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        path = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)
        self._context.term()
        if path.startswith("ipc://"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.removeprefix("ipc://"))


class GcsPeer:
    """One process's way to the GCS; connects by itself, again and again. One thread uses it.

    Args:
        endpoint: as the GCS reports it.
        identity: this process's id, 1 to 255 bytes, the first not zero.
    """

    def __init__(self, endpoint: str, identity: bytes) -> None:
        check_local(endpoint)
        self._context = new_context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _CLIENT_QUEUE_LEN_MAX),
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
            # Nothing waits for a GCS that is not there: the session repeats what it has to.
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX),
        ):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.ROUTING_ID, identity)
        self._socket.connect(endpoint)
        self.descriptor = int(self._socket.get(zmq.FD))
        """What to poll for reading; an edge, so receive() is to be called until None."""

    def has_message(self) -> bool:
        """Return whether receive() would return something now."""
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def send(self, *frames: bytes) -> bool:
        """Send one message; False where the GCS is not connected or takes no more for now."""
        try:
            _send(self._socket, frames[0], _DONTWAIT | (_SNDMORE if len(frames) > 1 else 0))
            for number, frame in enumerate(frames[1:], 2):
                _send(self._socket, frame, _DONTWAIT | (_SNDMORE if number < len(frames) else 0))
        except zmq.Again:
            # Between two frames only the end of the connection says this; libzmq takes the
            # first ones back.
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """Return the frames of the next message, or None."""
        try:
            frame = _recv(self._socket, _DONTWAIT, False)
        except zmq.Again:
            return None
        frames = [frame.bytes]
        while frame.more:
            frame = _recv(self._socket, 0, False)
            frames.append(frame.bytes)
        return frames

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        self._socket.close(linger_ms)
        self._context.term()
