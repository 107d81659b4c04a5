"""Messages between the GCS process and who uses it, to bytes and back.

What    A message is one msgpack array [version, kind, *fields]. Commands travel packed one by one
        inside it, so that a repetition costs no packing and a broken one spoils only itself.
            to the GCS      COMMANDS [session, acknowledged, first, [command, ...]]
                            SOFT [session, acknowledged, [command, ...]]
            from the GCS    ANSWERS [boot, session, first, [[ok, value], ...]]
                            EXPECTED [boot, session, number]
                            REFUSED [boot, session, reason, text]
                            RENEWED [boot, session, stamp, incarnation, watches, revision]
                            EVENTS [boot, table, prefix, after, upto, [change, ...]]
                            COMPACTED [boot, table, prefix, oldest]
                            LOADS [boot, first, last, {node: row}], changes with these numbers
                            UNAVAILABLE [boot, session, text]
        `boot` is new with each start of the GCS process. A change is [revision, key, value or
        None, create_revision].
Caller  replica.py and client.py.
Never   opens a socket; knows what a command does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol.packing import packb, unpackb

VERSION = 1
SESSION_BYTES = 16

NODE_LEASE_S = 2.0
"""A node that has not renewed for so long is dead."""

COMMANDS = 1
SOFT = 2
ANSWERS = 16
EXPECTED = 17
REFUSED = 18
RENEWED = 19
EVENTS = 20
COMPACTED = 21
LOADS = 22
UNAVAILABLE = 23

Check = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _text(value: Any) -> bool:
    return type(value) is str


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _session(value: Any) -> bool:
    return type(value) is bytes and len(value) == SESSION_BYTES


def _blobs(value: Any) -> bool:
    return type(value) is list and all(type(item) is bytes for item in value)


def _answers(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is list and len(item) == 2 and type(item[0]) is bool for item in value
    )


def _changes(value: Any) -> bool:
    return type(value) is list and all(
        type(row) is list
        and len(row) == 4
        and _count(row[0])
        and _bytes(row[1])
        and (row[2] is None or _bytes(row[2]))
        and _count(row[3])
        for row in value
    )


def _rows(value: Any) -> bool:
    return type(value) is dict and all(
        type(node) is bytes and type(row) is bytes for node, row in value.items()
    )


_FIELDS: dict[int, tuple[str, tuple[Check, ...]]] = {
    COMMANDS: ("COMMANDS", (_session, _count, _count, _blobs)),
    SOFT: ("SOFT", (_session, _count, _blobs)),
    ANSWERS: ("ANSWERS", (_bytes, _session, _count, _answers)),
    EXPECTED: ("EXPECTED", (_bytes, _session, _count)),
    REFUSED: ("REFUSED", (_bytes, _session, _text, _text)),
    RENEWED: ("RENEWED", (_bytes, _session, _number, _count, _count, _count)),
    EVENTS: ("EVENTS", (_bytes, _text, _bytes, _count, _count, _changes)),
    COMPACTED: ("COMPACTED", (_bytes, _text, _bytes, _count)),
    LOADS: ("LOADS", (_bytes, _count, _count, _rows)),
    UNAVAILABLE: ("UNAVAILABLE", (_bytes, _session, _text)),
}
_UPWARD = frozenset((COMMANDS, SOFT))


def pack(kind: int, *fields: Any) -> bytes:
    """Return the one frame of a message."""
    return packb((VERSION, kind, *fields))


def is_renewal(frame: bytes) -> bool:
    """Return whether a frame that pack() has made is RENEWED: it may overtake all others."""
    return frame[2:3] == bytes((RENEWED,))


def is_soft(frame: bytes) -> bool:
    """Return whether a frame that pack() has made is SOFT: it may overtake COMMANDS."""
    # An array of less than 16 has a head of one byte, and so has each of its small numbers.
    return frame[2] == SOFT


def unpack(frame: bytes, *, to_gcs: bool) -> tuple[int, list[Any]]:
    """Return (kind, fields) of a message that travels in this direction.

    Raises:
        RemoteProtocolError: the bytes are no such message of this version.
    """
    message = unpack_plain(frame)
    if type(message) is not list or len(message) < 2 or message[0] != VERSION:
        raise RemoteProtocolError(
            f"not a message to or from a GCS of version {VERSION}; let all nodes run one release"
        )
    kind, *fields = message[1:]
    known = _FIELDS.get(kind) if type(kind) is int else None
    if known is None or (kind in _UPWARD) is not to_gcs:
        raise RemoteProtocolError(f"unknown kind {kind!r} of a message of the GCS")
    name, checks = known
    if len(fields) != len(checks):
        raise RemoteProtocolError(f"{name} has {len(fields)} fields, not {len(checks)}")
    for place, (check, field) in enumerate(zip(checks, fields, strict=True)):
        if not check(field):
            raise RemoteProtocolError(f"{name} with a malformed field {place}")
    return kind, fields


def unpack_plain(packed: bytes) -> Any:
    """Return what msgpack has packed.

    Raises:
        RemoteProtocolError: the bytes are not msgpack.
    """
    try:
        return unpackb(packed, strict_map_key=False)
    except Exception as error:  # msgpack raises a dozen types for malformed input
        raise RemoteProtocolError(f"bytes that are not msgpack: {error}") from None
