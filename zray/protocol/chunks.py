"""What two nodes say to each other on their bulk ports: who asks for which chunks of an object.

What    Five messages, each a msgpack array [version, kind, pull, ...]; CHUNK alone has a second
        frame, the bytes themselves. `pull` is a number that the pulling node counts up: what
        comes late, for a pull that has ended, is known by it and dropped. Chunk n of an object is
        its bytes from n x CHUNK_BYTES on; the last one may be shorter.
            ASK    puller -> source  send me these chunks, and tell me of more while you get them
            CHUNK  source -> puller  the bytes of one
            HAVE   source -> puller  I have a part of it: these I can't send yet, these are new
            GONE   source -> puller  I can't help you with this pull
            DROP   puller -> source  this pull is over
Caller  brokers/transfer*.py, brokers/bulk.py.
Never   holds the bytes of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from zray.errors import RemoteProtocolError

from .ids import OBJECT_ID_BYTES, ObjectId
from .limits import PROTOCOL_VERSION
from .packing import packb, unpackb

CHUNK_BYTES = 1 << 20
"""The piece that an object travels in: larger ones stall what is behind them, smaller ones cost."""

ASK_CHUNKS_MAX = 4096
"""Chunks that one ASK names; a longer list is a broken peer."""

_ASK, _CHUNK, _HAVE, _GONE, _DROP = range(1, 6)
_NUMBER_MAX = (1 << 64) - 1
_CHUNKS_MAX = 1 << 40
_HAVE_CHUNKS_MAX = 1 << 20
_REASON_CHARACTERS_MAX = 1000


@dataclass(slots=True)
class Ask:
    """Send these chunks of an object.

    Attributes:
        pull: the asker's number of this pull.
        object: 16 bytes.
        nbytes: length of the object as the asker knows it.
        priority: 0 get, 1 argument, 2 prefetch.
        chunks: numbers; empty to learn only whether the source is alive and what it has.
    """

    pull: int
    object: ObjectId
    nbytes: int
    priority: int
    chunks: list[int]


@dataclass(slots=True)
class Chunk:
    """The frame behind this one has the bytes of a chunk."""

    pull: int
    chunk: int


@dataclass(slots=True)
class Have:
    """The source has not got all of it (yet).

    Attributes:
        pull: the asker's number.
        refused: chunks asked for that are not there.
        gained: chunks that are there, of which the asker was not told before.
    """

    pull: int
    refused: list[int]
    gained: list[int]


@dataclass(slots=True)
class Gone:
    """The source has nothing for this pull."""

    pull: int
    reason: str


@dataclass(slots=True)
class Drop:
    """The asker needs nothing more for this pull."""

    pull: int


Message = Ask | Chunk | Have | Gone | Drop


def chunk_count(nbytes: int) -> int:
    """Return how many chunks an object of ``nbytes`` has."""
    return -(-nbytes // CHUNK_BYTES)


def chunk_span(nbytes: int, chunk: int) -> tuple[int, int]:
    """Return (offset in the object, length), in bytes, of one of its chunks."""
    start = chunk * CHUNK_BYTES
    return start, min(CHUNK_BYTES, nbytes - start)


def pack(message: Message) -> bytes:
    """Return the header frame of a message."""
    match message:
        case Chunk(pull, chunk):
            return packb((PROTOCOL_VERSION, _CHUNK, pull, chunk))
        case Ask(pull, identity, nbytes, priority, chunks):
            return packb((PROTOCOL_VERSION, _ASK, pull, identity, nbytes, priority, chunks))
        case Have(pull, refused, gained):
            fields = (_runs(refused), _runs(gained))
            return packb((PROTOCOL_VERSION, _HAVE, pull, *fields))
        case Gone(pull, reason):
            return packb((PROTOCOL_VERSION, _GONE, pull, reason[:_REASON_CHARACTERS_MAX]))
        case Drop(pull):
            return packb((PROTOCOL_VERSION, _DROP, pull))


def unpack(header: bytes) -> Message:
    """Return the message of a header frame, every field checked.

    Raises:
        RemoteProtocolError: the bytes are no message of this version.
    """
    try:
        fields = unpackb(header, strict_map_key=False)
    except Exception as error:  # msgpack raises a dozen types for malformed input
        raise RemoteProtocolError(f"a bulk header that is not msgpack: {error}") from None
    if type(fields) is not list or len(fields) < 3 or fields[0] != PROTOCOL_VERSION:
        raise RemoteProtocolError(f"not a bulk header of version {PROTOCOL_VERSION}")
    _number(fields[2], _NUMBER_MAX)
    match fields[1:]:
        case [1, pull, bytes(identity), nbytes, priority, list(chunks)]:
            if len(identity) != OBJECT_ID_BYTES or len(chunks) > ASK_CHUNKS_MAX:
                raise RemoteProtocolError("ASK names no object, or too many chunks at once")
            count = chunk_count(_number(nbytes, _CHUNKS_MAX * CHUNK_BYTES))
            for chunk in chunks:
                _number(chunk, count - 1)
            return Ask(pull, identity, nbytes, _number(priority, 2), chunks)
        case [2, pull, chunk]:
            return Chunk(pull, _number(chunk, _CHUNKS_MAX))
        case [3, pull, list(refused), list(gained)]:
            return Have(pull, _numbers(refused), _numbers(gained))
        case [4, pull, str(reason)]:
            return Gone(pull, reason[:_REASON_CHARACTERS_MAX])
        case [5, pull]:
            return Drop(pull)
        case _:
            text = f"unknown bulk message {fields[1]!r} of {len(fields)} fields"
            raise RemoteProtocolError(text)


def _number(value: Any, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise RemoteProtocolError(f"a bulk header with {value!r} for a number up to {largest}")
    return value


def _runs(chunks: Iterable[int]) -> list[int]:
    """Flatten chunks into [first, count, first, count ...]: what is there are mostly long runs."""
    runs: list[int] = []
    after = -1
    for chunk in sorted(chunks):
        if chunk == after:
            runs[-1] += 1
        else:
            runs += (chunk, 1)
        after = chunk + 1
    return runs


def _numbers(runs: list[Any]) -> list[int]:
    """Undo _runs. Bounded by what could be asked for: two numbers must not become a terabyte."""
    chunks: list[int] = []
    if len(runs) % 2:
        raise RemoteProtocolError("HAVE with half a run of chunks")
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        _number(first, _CHUNKS_MAX)
        _number(count, _HAVE_CHUNKS_MAX)
        if len(chunks) + count > _HAVE_CHUNKS_MAX:
            raise RemoteProtocolError("HAVE names more chunks than an object can have")
        chunks.extend(range(first, first + count))
    return chunks
