"""Unix streams between a process and its node: framed messages, descriptors, EOF.

What    Channel frames messages with a 4-byte length. Bytes that the kernel accepted reach the
        node even if the sender is killed in the next instruction, descriptors can ride along,
        and EOF tells of a death within a millisecond: three things ZeroMQ's pipes don't do.
Caller  zray/client.py (blocking use), brokers/node.py (Server, never blocking), actors/zygote.
Never   reads a message's fields.
"""

import array
import os
import socket
import struct
from collections import deque

from zray.errors import RemoteProtocolError
from zray.protocol.limits import CHANNEL_MESSAGE_BYTES_MAX

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 * 1024
_DESCRIPTORS_MAX = 8


class Channel:
    """One end of a stream. Blocking or not is the socket's own setting."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.descriptors: deque[int] = deque()
        self._inbound = bytearray()
        self._outbound = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self.socket.fileno()

    def send(self, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send all of one message, blocking while the kernel's buffer is full.

        Raises OSError (BrokenPipeError, ConnectionResetError) where the peer is gone.
        """
        data = _LENGTH.pack(len(message)) + message
        if descriptors:
            sent = socket.send_fds(self.socket, [data], list(descriptors))
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def receive(self) -> bytes | None:
        """Block for one message; None at EOF."""
        while True:
            message = self._next()
            if message is not None:
                return message
            if not self._read():
                return None

    def queue(self, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send without ever blocking: what the kernel does not take is kept for flush()."""
        data = _LENGTH.pack(len(message)) + message
        if descriptors and not self._outbound:
            sent = socket.send_fds(self.socket, [data], list(descriptors))
            self._outbound += data[sent:]
            return
        self._outbound += data
        self.flush()

    def flush(self) -> bool:
        """Send what is kept; True when nothing is left. A dead peer's bytes are dropped."""
        while self._outbound:
            try:
                sent = self.socket.send(self._outbound)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self._outbound.clear()  # Its EOF arrives on the reading side.
                return True
            del self._outbound[:sent]
        return True

    @property
    def outbound_bytes(self) -> int:
        """Bytes kept because the peer does not read."""
        return len(self._outbound)

    def drain(self) -> tuple[list[bytes], bool]:
        """Read all there is without blocking: (messages, whether the peer is still there)."""
        alive = True
        try:
            while True:
                got = self._read()
                if got == 0:
                    alive = False
                if got < _READ_BYTES:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            alive = False
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages, alive

    def _read(self) -> int:
        data, ancillary, _flags, _address = self.socket.recvmsg(
            _READ_BYTES, socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % 4])
                self.descriptors.extend(received)
        self._inbound += data
        return len(data)

    def _next(self) -> bytes | None:
        inbound = self._inbound
        if len(inbound) < 4:
            return None
        (length,) = _LENGTH.unpack_from(inbound)
        if length > CHANNEL_MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"a message of {length} bytes on a lifeline")
        if len(inbound) < 4 + length:
            return None
        message = bytes(inbound[4 : 4 + length])
        del inbound[: 4 + length]
        return message

    def close(self) -> None:
        """Close the socket and any descriptor nobody took."""
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.popleft())


def listen(path: str) -> socket.socket:
    """Bind and listen on a unix stream path, never blocking."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(path):
        os.unlink(path)
    server.bind(path)
    server.listen(1024)
    server.setblocking(False)
    return server


def connect(path: str) -> Channel:
    """Connect to a node's unix stream path, blocking."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Channel(sock)


def accept(server: socket.socket) -> Channel | None:
    """Accept one process of the same user, None where nobody waits.

    A process of another user is refused here, by the kernel's word for who it is.
    """
    try:
        sock, _address = server.accept()
    except (BlockingIOError, InterruptedError):
        return None
    if hasattr(socket, "SO_PEERCRED"):
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _pid, uid, _gid = struct.unpack("iII", credentials)
        if uid not in (os.getuid(), 0):
            sock.close()
            return None
    sock.setblocking(False)
    return Channel(sock)
