"""Frames to and from the GCS in pieces: whole again, or not at all."""

from __future__ import annotations

import os

import pytest

from zray.brokers.gcs_frames import FRAME_BYTES_MAX, PIECE_BYTES, Assembly, pieces
from zray.errors import RemoteProtocolError

LARGE = os.urandom(2 * PIECE_BYTES + 7)


def joined(assembly: Assembly, frame: bytes) -> list[bytes | None]:
    return [assembly.take(offset, len(frame), piece) for offset, piece in pieces(frame)]


@pytest.mark.parametrize("frame", [b"", b"x", LARGE[:PIECE_BYTES], LARGE])
def test_a_frame_is_whole_again_with_its_last_piece(frame: bytes) -> None:
    assembly = Assembly()
    for _ in range(2):
        *before, last = joined(assembly, frame)
        assert before == [None] * len(before)
        assert last == frame


def test_of_a_frame_that_was_given_up_nothing_is_left() -> None:
    assembly, frame = Assembly(), LARGE
    begun = list(pieces(frame))[:2]
    for offset, piece in begun:
        assert assembly.take(offset, len(frame), piece) is None
    assert joined(assembly, frame)[-1] == frame
    for offset, piece in begun:
        assembly.take(offset, len(frame), piece)
    assert assembly.take(0, len(frame), begun[0][1]) is None
    assert assembly.take(*last_of(frame)) is None, "there is a hole before it"


def test_a_short_frame_overtakes_a_long_one() -> None:
    assembly, frame = Assembly(), LARGE
    *begun, last = pieces(frame)
    for offset, piece in begun:
        assert assembly.take(offset, len(frame), piece) is None
    assert joined(assembly, b"short") == [b"short"]
    assert assembly.take(last[0], len(frame), last[1]) == frame


def last_of(frame: bytes) -> tuple[int, int, bytes]:
    offset, piece = list(pieces(frame))[-1]
    return offset, len(frame), piece


@pytest.mark.parametrize(
    ("offset", "nbytes", "piece"),
    [
        (0, FRAME_BYTES_MAX + 1, b"x"),
        (-1, 5, b"x"),
        (5, 5, b"x"),
        (0, 5, b""),
        (0, -1, b"x"),
        ("0", 5, b"x"),
        (0, None, b"x"),
    ],
)
def test_a_piece_of_nothing_is_refused(offset: int, nbytes: int, piece: bytes) -> None:
    assembly = Assembly()
    with pytest.raises(RemoteProtocolError):
        assembly.take(offset, nbytes, piece)
    assert joined(assembly, LARGE)[-1] == LARGE
