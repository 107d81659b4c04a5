"""Messages to bytes and back.

What    A header is a msgpack array [version, kind, payload_count, *fields]. Reading checks the
        version, the kind and the number of fields, so that a rule never sees a short message.
Caller  the shells: zray/client.py, brokers/node.py, actors/host.py.
Never   opens a payload frame.
Spec    docs/reference/protocol.md.
"""

from typing import Any

from zray.errors import RemoteProtocolError

from .limits import PROTOCOL_VERSION
from .link_messages import LINK_MESSAGES
from .messages import MESSAGES
from .packing import packb, unpackb

_FIELD_COUNT = {row.kind: len(row.fields) for row in (*MESSAGES, *LINK_MESSAGES)}
_NAMES = {row.kind: row.name for row in (*MESSAGES, *LINK_MESSAGES)}
_unpack = unpackb


def pack(kind: int, *fields: Any, payloads: int = 0) -> bytes:
    """Return the header frame of a message with ``payloads`` frames behind it."""
    # Not a shared Packer, though it saves 0.2 us: the collector may run a __del__ that packs.
    return packb((PROTOCOL_VERSION, kind, payloads, *fields))


def other_version(header: bytes) -> tuple[int, int, dict[str, Any]] | None:
    """Return (version, kind, details) of a greeting in another version; None: it is none.

    Greetings of all versions are [version, kind, 0, details], with which one can answer.
    """
    try:
        message = _unpack(header, strict_map_key=False)
    except Exception:  # msgpack raises a dozen types for malformed input
        return None
    if type(message) is not list or len(message) != 4 or message[0] == PROTOCOL_VERSION:
        return None
    version, kind, count, details = message
    if type(version) is not int or type(kind) is not int or count != 0 or type(details) is not dict:
        return None
    return version, kind, details


def unpack(header: bytes) -> list[Any]:
    """Return [version, kind, payload_count, *fields] of a well-formed header.

    Raises RemoteProtocolError where the bytes are no header of this version.
    """
    try:
        message = _unpack(header, strict_map_key=False)
    except Exception as error:  # msgpack raises a dozen types for malformed input
        raise RemoteProtocolError(f"a header that is not msgpack: {error}") from None
    if type(message) is not list or len(message) < 3 or message[0] != PROTOCOL_VERSION:
        raise RemoteProtocolError(f"not a zray header of version {PROTOCOL_VERSION}")
    kind = message[1]
    expected = _FIELD_COUNT.get(kind) if type(kind) is int else None
    if expected is None or type(message[2]) is not int:
        raise RemoteProtocolError(f"unknown message kind {kind!r}")
    if len(message) != expected + 3:
        name = _NAMES[kind]
        raise RemoteProtocolError(f"{name} has {len(message) - 3} fields, not {expected}")
    return message
