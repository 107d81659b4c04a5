"""What a node brings to its processes from processes of other nodes: over edges, like theirs.

What    One stream to each process that somebody elsewhere speaks to, in ZMTP like all edges, so
        that the thread that waits there reads it itself: through the mailbox every message
        would pass two I/O threads more. Where there is no descriptor for one, its messages wait.
Caller  brokers/cluster.py.
Never   blocks: what the kernel does not take is kept and leaves when it can. Receives.
Spec    RFC 37/ZMTP.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from . import tokens
from .edges import MORE, frame, prefix, ready
from .link_inbox import Payload
from .poller import READABLE, WRITABLE, new_poller

_READ_BYTES = 4096
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class _Way:
    """The stream to one process."""

    __slots__ = ("endpoint", "outbound", "process", "socket")

    def __init__(self, process: bytes, endpoint: str, sock: socket.socket | None) -> None:
        self.endpoint = endpoint
        self.process = process
        self.socket = sock
        """None: there was no descriptor for it yet."""
        self.outbound = bytearray()


class Deliveries:
    """Streams to the processes of this node.

    Poll ``descriptor`` for reading and call serve() when it is.

    Args:
        node: this node's id.
        secret: of the node: who has it is believed.
        header: of each message, as frames.pack() made it.
    """

    def __init__(self, node: bytes, secret: bytes, header: bytes) -> None:
        self._first = frame(MORE, header)
        self._hello = ready(node, tokens.token(secret, node))
        self._ways: dict[bytes, _Way] = {}
        self._by_descriptor: dict[int, _Way] = {}
        self._poller = new_poller()
        self.descriptor = self._poller.fileno()

    def send(self, process: bytes, endpoint: str, envelopes: Sequence[Payload]) -> bool:
        """Send a message for each envelope, all at once; False where the process is gone.

        Args:
            process: of this node.
            endpoint: of its mailbox, "ipc://…".
            envelopes: as they came (zray/protocol/envelopes.py).
        """
        way = self._ways.get(process) or self._open(process, endpoint)
        if way is None:
            return False
        parts: list[Payload] = []
        for envelope in envelopes:
            parts += (self._first, prefix(0, len(envelope)), envelope)
        self._write(way, b"".join(parts))
        return True

    def _open(self, process: bytes, endpoint: str) -> _Way | None:
        way = _Way(process, endpoint, None)
        try:
            self._connect(way)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                return None  # It has died; its lifeline is about to tell.
        self._ways[process] = way
        self._write(way, self._hello)
        return way

    def _connect(self, way: _Way) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(way.endpoint.removeprefix("ipc://") + ".e")
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        way.socket = sock
        self._by_descriptor[sock.fileno()] = way
        self._poller.register(sock.fileno(), READABLE)

    def retry(self) -> None:
        """Connect those for whom there was no descriptor; a few times a second."""
        for way in [each for each in self._ways.values() if each.socket is None]:
            try:
                self._connect(way)
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    self.drop(way.process)
                continue
            data = bytes(way.outbound)
            way.outbound.clear()
            self._write(way, data)

    def _write(self, way: _Way, data: bytes) -> None:
        if way.outbound or way.socket is None:
            way.outbound += data
            return
        try:
            sent = way.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.drop(way.process)
            return
        if sent < len(data):
            way.outbound += memoryview(data)[sent:]
            self._poller.modify(way.socket.fileno(), READABLE | WRITABLE)

    def serve(self) -> None:
        """Send on what has waited; forget the dead."""
        for descriptor, events in self._poller.poll(0):
            way = self._by_descriptor.get(descriptor)
            if way is None:
                continue
            if events & WRITABLE:
                self._flush(way)
            if events & ~WRITABLE:
                self._read(way)

    def _flush(self, way: _Way) -> None:
        assert way.socket is not None
        try:
            sent = way.socket.send(way.outbound)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.drop(way.process)
            return
        del way.outbound[:sent]
        if not way.outbound:
            self._poller.modify(way.socket.fileno(), READABLE)

    def _read(self, way: _Way) -> None:
        """Its READY, which says nothing we do not know, or its end."""
        assert way.socket is not None
        try:
            data = way.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.drop(way.process)

    def drop(self, process: bytes) -> None:
        """A process is gone."""
        way = self._ways.pop(process, None)
        if way is not None and way.socket is not None:
            descriptor = way.socket.fileno()
            del self._by_descriptor[descriptor]
            self._poller.unregister(descriptor)
            way.socket.close()

    def backlog_bytes(self, process: bytes) -> int:
        """Return how many bytes wait for a process that does not read."""
        way = self._ways.get(process)
        return 0 if way is None else len(way.outbound)

    def close(self) -> None:
        """Close all."""
        for process in list(self._ways):
            self.drop(process)
        self._poller.close()
