"""Frames to and from the GCS in pieces that a link carries.

What    A link is shared with what must not wait, and bounds its frames; a value of the key-value
        table may be larger. Each piece says where in its frame it belongs.
Caller  brokers/gcs_relay.py, brokers/gcs_connection.py.
Never   opens a frame; hands out one with a hole.
"""

from __future__ import annotations

from collections.abc import Iterator

from zray.errors import RemoteProtocolError

PIECE_BYTES = 1 << 20
FRAME_BYTES_MAX = 80 << 20
"""A value of 64 MiB and what is around it."""


def pieces(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, piece) of a frame, in order."""
    if len(frame) <= PIECE_BYTES:
        yield 0, frame
        return
    for offset in range(0, len(frame), PIECE_BYTES):
        yield offset, frame[offset : offset + PIECE_BYTES]


class Assembly:
    """One direction of a link, where frames come in pieces, one after the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have_bytes = 0

    def take(self, offset: int, nbytes: int, piece: bytes) -> bytes | None:
        """Return the frame of `nbytes` that this piece completes, or None.

        A piece that does not follow the one before it ends the frame, which was given up: who
        sent it will repeat it whole.

        Raises:
            RemoteProtocolError: no frame is as large, or has such a piece.
        """
        if offset == 0 and len(piece) == nbytes:
            return piece  # It may overtake one that is under way.
        is_whole = type(offset) is int and type(nbytes) is int and 0 < nbytes <= FRAME_BYTES_MAX
        if not is_whole or not piece or not 0 <= offset <= nbytes - len(piece):
            self._forget()
            raise RemoteProtocolError("a piece of no frame to or from the GCS")
        if offset != self._have_bytes:
            self._forget()
            if offset != 0:
                return None
        self._parts.append(piece)
        self._have_bytes += len(piece)
        if self._have_bytes < nbytes:
            return None
        frame = b"".join(self._parts)
        self._forget()
        return frame

    def _forget(self) -> None:
        self._parts = []
        self._have_bytes = 0
