"""What a process says to one of another node, as the nodes between them carry it.

What    seal() makes envelopes of a message: who it is for, who it is from, a piece of it.
        Reassembly makes messages of them again. Nodes read the two addresses and nothing else;
        a message longer than one envelope goes in pieces, so that no way has to bear all of it at
        once and small messages of others pass between them.
Caller  zray/client.py and zray/net/edges.py at the ends, brokers/relays.py on the way.
Never   believes the source: each node checks those that it is told by its own side.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from zray.errors import RemoteProtocolError

from .ids import NODE_PREFIX_BYTES, PROCESS_ID_BYTES, NodeId, ProcessId
from .limits import EDGE_MESSAGE_BYTES_MAX, ENVELOPE_BYTES_MAX
from .packing import packb, unpackb

_HEAD = struct.Struct(f"<{PROCESS_ID_BYTES}s{PROCESS_ID_BYTES}sI")
_HEAD_BYTES = _HEAD.size
_PIECE = struct.Struct("<I")
_PIECE_AT = 2 * PROCESS_ID_BYTES
_MORE = 1
"""Of a piece: another one follows. The bits above it count the pieces from 0."""
_NODE_ITSELF = bytes(PROCESS_ID_BYTES - NODE_PREFIX_BYTES)
_WHOLE = bytes(_PIECE.size)


def seal(destination: ProcessId, source: ProcessId, frames: Sequence[bytes]) -> list[bytes]:
    """Return the envelopes of one message, in the order in which they are to be sent.

    Args:
        destination: process it is for.
        source: process (or node) it is from.
        frames: header and payloads.
    """
    body = packb(frames)
    if len(body) <= ENVELOPE_BYTES_MAX:
        return [destination + source + _WHOLE + body]
    view = memoryview(body)
    starts = range(0, len(body), ENVELOPE_BYTES_MAX)
    return [
        _HEAD.pack(destination, source, number << 1 | (number < len(starts) - 1))
        + view[start : start + ENVELOPE_BYTES_MAX]
        for number, start in enumerate(starts)
    ]


def check_envelope(envelope: bytes | memoryview, source: bytes) -> None:
    """Raise RemoteProtocolError where it has no head, or is of somebody else.

    Args:
        envelope: as it came.
        source: what the id of its source begins with: all of a process's, or its node's part.
    """
    if (
        type(envelope) not in (bytes, memoryview)
        or not _HEAD_BYTES < len(envelope) <= _HEAD_BYTES + ENVELOPE_BYTES_MAX
        or envelope[PROCESS_ID_BYTES : PROCESS_ID_BYTES + len(source)] != source
    ):
        raise RemoteProtocolError("an envelope of somebody else than its sender")


def destination_of(envelope: bytes | memoryview) -> ProcessId:
    """Return the process that an envelope is for."""
    return bytes(envelope[:PROCESS_ID_BYTES])


def source_of(envelope: bytes) -> ProcessId:
    """Return the process that an envelope is from."""
    return envelope[PROCESS_ID_BYTES:_PIECE_AT]


def destination_node(envelope: bytes) -> NodeId:
    """Return the node of the process that it is for."""
    return envelope[:NODE_PREFIX_BYTES] + _NODE_ITSELF


class Reassembly:
    """Messages of other nodes' processes, of envelopes in the order of each source."""

    def __init__(self) -> None:
        self._begun: dict[ProcessId, tuple[int, bytearray]] = {}
        """By source: how many pieces of a message are here, and they."""

    def add(self, envelope: bytes) -> tuple[ProcessId, bytes, list[bytes]] | None:
        """Return (source, header, payloads) where this envelope completes a message.

        A first piece ends what its source has left incomplete: its node's link broke off there.

        Raises RemoteProtocolError where it is malformed, or a piece that follows none.
        """
        if envelope[_PIECE_AT:_HEAD_BYTES] == _WHOLE:
            source = envelope[PROCESS_ID_BYTES:_PIECE_AT]
            if self._begun:
                self._begun.pop(source, None)
            return source, *_opened(memoryview(envelope)[_HEAD_BYTES:])
        if len(envelope) < _HEAD_BYTES:
            raise RemoteProtocolError("an envelope without a head")
        return self._add_piece(envelope)

    @staticmethod
    def continues(envelope: bytes) -> bool:
        """Return whether an envelope has a later piece of a message, not its first or only one."""
        return bool(int.from_bytes(envelope[_PIECE_AT:_HEAD_BYTES], "little") >> 1)

    def _add_piece(self, envelope: bytes) -> tuple[ProcessId, bytes, list[bytes]] | None:
        _destination, source, piece = _HEAD.unpack_from(envelope)
        count, body = self._begun.pop(source, (0, bytearray()))
        number = piece >> 1
        if number == 0:
            body = bytearray()
        elif number != count:
            raise RemoteProtocolError(f"piece {number} of a message, after {count}")
        body += memoryview(envelope)[_HEAD_BYTES:]
        if not piece & _MORE:
            return source, *_opened(body)
        if len(body) > EDGE_MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"a message of more than {EDGE_MESSAGE_BYTES_MAX} bytes")
        self._begun[source] = number + 1, body
        return None

    def forget(self, source: ProcessId) -> None:
        """A process is gone: what it has begun to say will not be ended."""
        self._begun.pop(source, None)


def _opened(body: bytearray | memoryview) -> tuple[bytes, list[bytes]]:
    try:
        frames = unpackb(body)
    except Exception as error:  # msgpack raises a dozen types for malformed input
        raise RemoteProtocolError(f"an envelope that is not msgpack: {error}") from None
    # Payloads are looked at by whoever decodes them; a header that is none is looked at by nobody.
    if type(frames) is not list or not frames or type(frames[0]) is not bytes:
        raise RemoteProtocolError("an envelope without a message")
    return frames[0], frames[1:]
