"""The way between the GCS process and who uses it on this machine: unix streams.

What    GcsEndpoint, where the GCS receives and answers; GcsPeer, the other end: the head's node,
        which brings the frames of all other nodes too. Both ends are read and written by the thread
        that uses them: a ZeroMQ socket would hand each message through an I/O thread on both sides,
        four more wake-ups an answer (docs/explanation/architecture.md, D32). Both have what a poll
        loop needs: a descriptor that stays the same, and has_message() before each wait.
Caller  brokers/gcs/server.py; brokers/gcs_relay.py.
Never   blocks; binds what others than this user of this machine can reach: the folder says who may,
        and the kernel who it is.

On the wire a message is the number of its frames, the length of each, 32 bits little-endian, and
the frames. The first one of a connection names who has connected.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence

from zray.errors import NodeStartError, RemoteProtocolError

from .channel import Listener
from .poller import READABLE, WRITABLE, new_poller

FRAME_BYTES_MAX = 80 << 20
"""Of a message: a value of 64 MiB and what is around it."""

_FRAMES_MAX = 4
_UNSENT_BYTES_MAX = 64 << 20
"""So much may wait for one slow connection; then send() says no."""

_UNSENT_LEN_MAX = 2048
_SMALL_BYTES = 64 << 10
_LARGE_BYTES = 1 << 20
_READS_MAX = 32
"""Of one connection before others are read."""

_CONNECT_S = 0.02
_DESCRIPTORS_LEFT = 16
_HELLO = b"zray gcs 1"
_COUNT = struct.Struct("<I")
_LENGTHS = tuple(struct.Struct(f"<{count}I") for count in range(_FRAMES_MAX + 1))


def check_local(endpoint: str) -> None:
    """Raise NodeStartError where an endpoint could be reached from elsewhere."""
    if not endpoint.startswith("ipc://"):
        raise NodeStartError(
            f"{endpoint!r} is refused: the GCS does what any peer asks, so it binds nothing but "
            "ipc:// in a folder of its user; other nodes reach it by the head's own port"
        )


def packed(frames: Sequence[bytes]) -> bytes:
    """Return a message as it is on the wire."""
    lengths = _LENGTHS[len(frames)].pack(*map(len, frames))
    return b"".join((_COUNT.pack(len(frames)), lengths, *frames))


class Unpacker:
    """Puts messages together from what arrives."""

    def __init__(self) -> None:
        self._inbound = bytearray()
        self._wanted = 0

    @property
    def read_bytes(self) -> int:
        """How much to read at a time."""
        return _LARGE_BYTES if self._wanted > _SMALL_BYTES else _SMALL_BYTES

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Take what has arrived; returns the messages that are whole.

        Raises:
            RemoteProtocolError: no message looks like this, or it is longer than it may be.
        """
        if self._inbound:
            self._inbound += data
            if len(self._inbound) < self._wanted:
                return []
            data = bytes(self._inbound)
            self._inbound.clear()
        messages: list[list[bytes]] = []
        at, end = 0, len(data)
        while end - at >= 4:
            (count,) = _COUNT.unpack_from(data, at)
            if not 0 < count <= _FRAMES_MAX:
                raise RemoteProtocolError(f"a message of {count} frames on the way to the GCS")
            begin = at + 4 + 4 * count
            if end < begin:
                break
            lengths = _LENGTHS[count].unpack_from(data, at + 4)
            stop = begin + sum(lengths)
            if stop - begin > FRAME_BYTES_MAX:
                raise RemoteProtocolError(
                    f"a message of {stop - begin} bytes on the way to the GCS, where"
                    f" {FRAME_BYTES_MAX} are the most"
                )
            if end < stop:
                self._wanted = stop - at
                self._inbound += data[at:]
                return messages
            frames: list[bytes] = []
            for length in lengths:
                frames.append(data[begin : begin + length])
                begin += length
            messages.append(frames)
            at = stop
        self._wanted = 0
        self._inbound += data[at:]
        return messages


class _Stream:
    """A connection in a poller, and what waits to be sent by it.

    Its methods raise OSError where the other end is gone; but receive(), which says so.
    """

    def __init__(self, sock: socket.socket, poller: select.epoll) -> None:
        self.socket = sock
        self._poller = poller
        poller.register(sock.fileno(), READABLE)
        self.name = b""
        self.unpacker = Unpacker()
        self.unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.unsent_bytes > _UNSENT_BYTES_MAX or len(self.unsent) >= _UNSENT_LEN_MAX

    def send(self, data: bytes) -> None:
        """Send, or keep what the kernel does not take for flush()."""
        sent = 0
        if not self.unsent:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                sent = self.socket.send(data)
        if sent < len(data):
            if not self.unsent:
                self._poller.modify(self.socket.fileno(), READABLE | WRITABLE)
            self.unsent.append(memoryview(data)[sent:])
            self.unsent_bytes += len(data) - sent

    def flush(self) -> None:
        """Send what is kept, as far as the kernel takes it."""
        if not self.unsent:
            return
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent[0])
            except (BlockingIOError, InterruptedError):
                return
            self.unsent_bytes -= sent
            if sent < len(self.unsent[0]):
                self.unsent[0] = self.unsent[0][sent:]
            else:
                self.unsent.popleft()
        self._poller.modify(self.socket.fileno(), READABLE)

    def close(self) -> None:
        """Hang up; what is kept is dropped."""
        self._poller.unregister(self.socket.fileno())
        self.socket.close()

    def receive(self) -> tuple[list[list[bytes]], bool]:
        """Return the messages that have arrived, and whether the other end is still there."""
        messages: list[list[bytes]] = []
        try:
            for _ in range(_READS_MAX):
                size = self.unpacker.read_bytes
                data = self.socket.recv(size)
                if not data:
                    return messages, False
                messages += self.unpacker.feed(data)
                if len(data) < size:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except (OSError, RemoteProtocolError):
            return messages, False
        return messages, True


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
        self._path = endpoint.removeprefix("ipc://")
        try:
            self._listener = Listener(self._path, descriptors_left=_DESCRIPTORS_LEFT)
        except OSError as error:
            raise NodeStartError(
                f"the GCS can't bind {endpoint!r} ({error.strerror or error}); choose a shorter "
                "directory that exists and is yours"
            ) from error
        self._poller = new_poller()
        self._poller.register(self._listener.fileno(), READABLE)
        self._streams: dict[int, _Stream] = {}
        self._named: dict[bytes, _Stream] = {}
        self._received: deque[tuple[bytes, list[bytes]]] = deque()
        self._broken: list[bytes] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to poll for reading."""
        return (self._poller.fileno(),)

    def has_message(self) -> bool:
        """Return whether receive() or broken() would return something now."""
        return bool(self._received or self._broken)

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """Return (connection, frames) of the next message that broken() has read, or None."""
        return self._received.popleft() if self._received else None

    def broken(self) -> list[bytes]:
        """Read what has arrived; returns connections that broke since the last call."""
        for descriptor, events in self._poller.poll(0):
            if descriptor == self._listener.fileno():
                self._accept()
            else:
                self._serve(descriptor, events)
        broken, self._broken = self._broken, []
        return broken

    def _accept(self) -> None:
        while (sock := self._listener.accept_socket()) is not None:
            self._streams[sock.fileno()] = _Stream(sock, self._poller)

    def _serve(self, descriptor: int, events: int) -> None:
        stream = self._streams.get(descriptor)
        if stream is not None and events & WRITABLE:
            self._flush(stream)
        if stream is not None and events & ~WRITABLE:
            self._read(stream)

    def _read(self, stream: _Stream) -> None:
        messages, is_there = stream.receive()
        for frames in messages:
            if stream.name:
                self._received.append((stream.name, frames))
            elif len(frames) == 2 and frames[0] == _HELLO and frames[1]:
                stream.name = frames[1]
                before = self._named.get(stream.name)
                self._named[stream.name] = stream
                if before is not None:
                    self._close(before)  # It has connected anew, before we read its end.
            else:
                is_there = False
                break
        if not is_there:
            self._end(stream)

    def _flush(self, stream: _Stream) -> None:
        try:
            stream.flush()
        except OSError:
            self._end(stream)

    def _end(self, stream: _Stream) -> None:
        if self._named.get(stream.name) is stream:
            del self._named[stream.name]
            self._broken.append(stream.name)
        self._close(stream)

    def _close(self, stream: _Stream) -> None:
        if self._streams.pop(stream.socket.fileno(), None) is not None:
            stream.close()

    def send(self, peer: bytes, *frames: bytes) -> bool:
        """Send one message; False where the connection is gone or takes no more for now."""
        stream = self._named.get(peer)
        if stream is None or stream.is_full:
            return False
        try:
            stream.send(packed(frames))
        except OSError:
            self._end(stream)
            return False
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        self._poller.unregister(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        deadline = time.monotonic() + linger_ms / 1000
        while any(each.unsent for each in self._streams.values()):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            for descriptor, events in self._poller.poll(left_s):
                self._serve(descriptor, events)
        for stream in list(self._streams.values()):
            self._close(stream)
        self._poller.close()


class GcsPeer:
    """One process's way to the GCS; connects by itself, again and again. One thread uses it.

    Args:
        endpoint: as the GCS reports it.
        identity: this process's id, 1 byte or more.
    """

    def __init__(self, endpoint: str, identity: bytes) -> None:
        check_local(endpoint)
        self._path = endpoint.removeprefix("ipc://")
        self._hello = packed((_HELLO, identity))
        self._poller = new_poller()
        self._stream: _Stream | None = None
        self._received: deque[list[bytes]] = deque()
        self._connect_at = 0.0
        self._connect()

    @property
    def descriptor(self) -> int:
        """What to poll for reading."""
        return self._poller.fileno()

    def has_message(self) -> bool:
        """Return whether receive() would return something without a look at the descriptor."""
        return bool(self._received)

    def _connect(self) -> None:
        now = time.monotonic()
        if now < self._connect_at:
            return
        self._connect_at = now + _CONNECT_S
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()  # It is not there, or about to be: whoever sends next tries again.
            return
        self._stream = _Stream(sock, self._poller)
        self._send(self._stream, self._hello)

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _send(self, stream: _Stream, data: bytes) -> bool:
        try:
            stream.send(data)
        except OSError:
            self._end()
            return False
        return True

    def send(self, *frames: bytes) -> bool:
        """Send one message; False where the GCS is not connected or takes no more for now."""
        if self._stream is None:
            self._connect()
        stream = self._stream
        return stream is not None and not stream.is_full and self._send(stream, packed(frames))

    def receive(self) -> list[bytes] | None:
        """Return the frames of the next message, or None."""
        if not self._received:
            self._read()
        return self._received.popleft() if self._received else None

    def _read(self) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            stream.flush()
        except OSError:
            self._end()
            return
        messages, is_there = stream.receive()
        self._received.extend(messages)
        if not is_there:
            self._end()

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        deadline = time.monotonic() + linger_ms / 1000
        while self._stream is not None and self._stream.unsent:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._poller.poll(left_s):
                break
            self._read()
        self._end()
        self._poller.close()
