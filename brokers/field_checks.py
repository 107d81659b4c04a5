"""What a field of a message may be: the pieces that the tables of checks are made of.

What    Each takes a value as msgpack gave it and returns whether it is one; those with arguments
        return such a function.
Caller  brokers/validation.py (of processes), brokers/link_validation.py (of other nodes).
Never   raises; changes a value; knows a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.protocol.ids import OBJECT_ID_BYTES, PROCESS_ID_BYTES

Check = Callable[[Any], bool]

COUNT_MAX = 1 << 62
"""Integers stay below this, so that sums of them fit a header."""


def is_bytes(value: Any) -> bool:
    """Any bytes."""
    return type(value) is bytes


def is_text(value: Any) -> bool:
    """A string."""
    return type(value) is str


def is_flag(value: Any) -> bool:
    """True or False."""
    return type(value) is bool


def is_count(value: Any) -> bool:
    """An integer from 0 on."""
    return type(value) is int and 0 <= value < COUNT_MAX


def is_process(value: Any) -> bool:
    """The id of a process or node."""
    return type(value) is bytes and len(value) == PROCESS_ID_BYTES


def is_object(value: Any) -> bool:
    """The id of an object or actor."""
    return type(value) is bytes and len(value) == OBJECT_ID_BYTES


def or_none(check: Check) -> Check:
    """Nothing, or what another check takes."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """A list of what another check takes."""
    return lambda value: type(value) is list and all(map(check, value))


def row_of(*checks: Check) -> Check:
    """A list with one field for each of these checks."""

    def check(value: Any) -> bool:
        return (
            type(value) is list
            and len(value) == len(checks)
            and all(one(field) for one, field in zip(checks, value, strict=True))
        )

    return check


def dict_of(key: Check, value: Check) -> Check:
    """A dict of keys and values that these checks take."""
    return lambda found: (
        type(found) is dict and all(key(name) and value(entry) for name, entry in found.items())
    )
