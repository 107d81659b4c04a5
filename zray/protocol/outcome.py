"""Outcomes: what became of a task, in bytes that travel and rest unopened.

What    The first byte says what follows. 0x80 (every pickle's first byte): the value itself;
        so the common outcome needs no wrapping. Otherwise a tag of this module.
Caller  session, client, actors/executor, brokers/directory.
Never   unpickles.
"""

from typing import Any

from .packing import packb, unpackb

PICKLE = 0x80
BLOB = 0x01
ERROR = 0x02
STORED = 0x03
HOLDING = 0x04
ARGUMENTS = 0x05
ELSEWHERE = 0x06

_ERROR, _STORED = bytes([ERROR]), bytes([STORED])
_HOLDING, _ARGUMENTS = bytes([HOLDING]), bytes([ARGUMENTS])
ELSEWHERE_OUTCOME = bytes([ELSEWHERE])
"""The value exists, ask the node where."""

DATA_HEAD = bytes([BLOB, 1, 4])
"""How a blob begins whose codec is data: nothing in it is a pickle (zray/serialization/data.py)."""


def is_data(blob: bytes) -> bool:
    """Return whether the reader of these bytes unpickles nothing, whatever they hold."""
    return blob[:3] == DATA_HEAD


def error(encoded_exception: bytes) -> bytes:
    """Outcome of a task that raised."""
    return _ERROR + encoded_exception


def stored(offset: int, nbytes: int) -> bytes:
    """Outcome that lies in the node's segment."""
    packed: bytes = packb((offset, nbytes))
    return _STORED + packed


def stored_location(outcome: bytes) -> tuple[int, int]:
    """Return (offset, nbytes) of a STORED outcome."""
    offset, nbytes = unpackb(outcome[1:])
    return offset, nbytes


def holding(contained: list[bytes], outcome: bytes) -> bytes:
    """Outcome whose value contains references; their holds travel with it."""
    packed: bytes = packb((contained, outcome))
    return _HOLDING + packed


def held(outcome: bytes) -> tuple[list[bytes], bytes]:
    """Return (contained ids, inner outcome) of a HOLDING outcome."""
    contained, inner = unpackb(outcome[1:])
    return contained, inner


def arguments(blob: bytes, filled: dict[Any, Any]) -> bytes:
    """Arguments of which some, by position or name, are [object id, outcome] pairs."""
    packed: bytes = packb((blob, filled))
    return _ARGUMENTS + packed


def arguments_parts(packed: bytes) -> tuple[bytes, dict[Any, Any]]:
    """Return (blob, {position or name: [object id, outcome]})."""
    blob, filled = unpackb(packed[1:], strict_map_key=False)
    return blob, filled
