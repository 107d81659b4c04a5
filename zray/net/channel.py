"""Unix streams between a process and its node: framed messages, descriptors, EOF.

What    Channel frames messages with a 4-byte length. Bytes that the kernel accepted reach the
        node even if the sender is killed in the next instruction, descriptors can ride along,
        and EOF tells of a death within a millisecond: three things ZeroMQ's pipes don't do.
Caller  zray/client.py (blocking use), brokers/node.py (Server, never blocking), actors/zygote.
Never   reads a message's fields.
"""

import array
import contextlib
import errno
import os
import socket
import struct
from collections import deque

from zray.errors import RemoteProtocolError
from zray.net.descriptors import is_scarce
from zray.protocol.limits import CHANNEL_MESSAGE_BYTES_MAX

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 * 1024
_DRAIN_BYTES_MAX = 64 << 20
"""Read in one go: far more than a socket's buffer holds, so that what was sent before another
message is in it, and an end all the same for a peer that writes as fast as we read."""
_TOGETHER_MAX = 64
"""Messages sent at once: they are copied for it, and may be long."""
_DESCRIPTORS_MAX = 8
_ACCEPT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Channel:
    """One end of a stream. Blocking or not is the socket's own setting.

    Args:
        sock: a connected unix stream socket.
        takes_descriptors: keep those that arrive in ``descriptors``; False closes them at once,
            because a peer could fill our table with them.
    """

    def __init__(self, sock: socket.socket, *, takes_descriptors: bool = True) -> None:
        self.socket = sock
        self.descriptors: deque[int] = deque()
        self.message_bytes_max = CHANNEL_MESSAGE_BYTES_MAX
        """A longer length prefix is a broken peer."""
        self._takes_descriptors = takes_descriptors
        self._inbound = bytearray()
        self._outbound = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self.socket.fileno()

    @property
    def peer_pid(self) -> int:
        """The process that has connected, by the kernel's word; 0 where it says nothing."""
        credentials = _credentials_of(self.socket)
        return 0 if credentials is None else credentials[0]

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

    def send_all(self, messages: list[bytes]) -> None:
        """Send several messages with few system calls: the peer wakes once.

        Raises OSError where the peer is gone.
        """
        for start in range(0, len(messages), _TOGETHER_MAX):
            parts: list[bytes] = []
            for message in messages[start : start + _TOGETHER_MAX]:
                parts += (_LENGTH.pack(len(message)), message)
            self.socket.sendall(b"".join(parts))

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
            try:
                sent = socket.send_fds(self.socket, [data], list(descriptors))
            except (BrokenPipeError, ConnectionResetError):
                return  # Its EOF arrives on the reading side.
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
    def inbound_bytes(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._inbound)

    @property
    def outbound_bytes(self) -> int:
        """Bytes kept because the peer does not read."""
        return len(self._outbound)

    def drain(self, messages_max: int = 1 << 30) -> tuple[list[bytes], bool]:
        """Read all there is without blocking: (messages, whether the peer is still there).

        Beyond messages_max they stay here, and the descriptor does not tell of them.

        Raises RemoteProtocolError where a message is longer than message_bytes_max.
        """
        alive = True
        left = min(_DRAIN_BYTES_MAX, self.message_bytes_max)
        discards = not self._takes_descriptors
        try:
            while left > 0:
                data = self.socket.recv(_READ_BYTES) if discards else self._receive()
                if 4 <= len(data) < _READ_BYTES and not self._inbound:
                    (length,) = _LENGTH.unpack_from(data)
                    if len(data) == length + 4 <= self.message_bytes_max:
                        return [data[4:]], True  # One message, as mostly: nothing to put together.
                self._inbound += data
                if not data:
                    alive = False
                if len(data) < _READ_BYTES:
                    break
                left -= len(data)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            alive = False
        messages: list[bytes] = []
        while len(messages) < messages_max and (message := self._next()) is not None:
            messages.append(message)
        return messages, alive

    def _read(self) -> int:
        data = self._receive()
        self._inbound += data
        return len(data)

    def _receive(self) -> bytes:
        if not self._takes_descriptors:
            return self.socket.recv(_READ_BYTES)  # The kernel closes what comes along.
        data, ancillary, _flags, _address = self.socket.recvmsg(
            _READ_BYTES, socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4)
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % 4])
                self.descriptors.extend(received)
        return data

    def _next(self) -> bytes | None:
        inbound = self._inbound
        if len(inbound) < 4:
            return None
        (length,) = _LENGTH.unpack_from(inbound)
        if length > self.message_bytes_max:
            raise RemoteProtocolError(
                f"a message of {length} bytes on a lifeline, where"
                f" {self.message_bytes_max} are the most"
            )
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


def connect(path: str) -> Channel:
    """Connect to a node's unix stream path, blocking."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Channel(sock)


class Listener:
    """A node's listening socket, which survives the lack of descriptors.

    Args:
        path: of the unix socket, bound here; a file that is in the way is removed.
        descriptors_left: connections are refused that would leave this process fewer than that.
    """

    def __init__(self, path: str, *, descriptors_left: int = 0) -> None:
        self._descriptors_left = descriptors_left
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if os.path.exists(path):
                os.unlink(path)
            self.socket.bind(path)
        except OSError:
            self.socket.close()
            raise
        self.socket.listen(1024)
        self.socket.setblocking(False)
        # Given up for a moment when there is no descriptor left: without it a connection could
        # not even be refused, and the poll would spin on it for ever.
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.refused = 0
        """Connections closed because this process had no descriptor for them."""

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self.socket.fileno()

    def accept(self) -> Channel | None:
        """Accept one process of the same user, None where nobody waits."""
        sock = self.accept_socket()
        return None if sock is None else Channel(sock, takes_descriptors=False)

    def accept_socket(self) -> socket.socket | None:
        """Accept as accept() does, and return the bare socket, which does not block.

        A process of another user is refused here, by the kernel's word for who it is.
        """
        while True:
            try:
                sock, _address = self.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return None
            except OSError as error:
                if error.errno not in _ACCEPT_ERRORS:
                    raise
                if not self._refuse_one():
                    return None
                continue
            if self._descriptors_left and is_scarce(sock.fileno(), self._descriptors_left):
                sock.close()
                self.refused += 1
                continue
            if same_user(sock):
                sock.setblocking(False)
                return sock
            sock.close()

    def _refuse_one(self) -> bool:
        """Close the connection that waits first; False where not even that is possible."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        try:
            sock, _address = self.socket.accept()
            sock.close()
            self.refused += 1
            refused = True
        except OSError:
            refused = False
        # Another thread may have been quicker, to open a file of its own: the next one, then.
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return refused

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


def same_user(sock: socket.socket) -> bool:
    """Return whether the peer of a unix stream is this user or root, by the kernel's word."""
    credentials = _credentials_of(sock)
    if credentials is None:
        return True  # The directory's mode 0700 is what keeps others out.
    return credentials[1] in (os.getuid(), 0)


def _credentials_of(sock: socket.socket) -> tuple[int, int, int] | None:
    """Return (pid, uid, gid) of the peer of a unix stream, None where the kernel has no word."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid
