"""What the fields of a message to a node may be: looked at before any machine sees them.

What    One check for each field of each kind: types, lengths and bounds of all that is stored,
        counted with or sent on. A machine may then trust that an id is 16 bytes and a bound an
        integer; whether the sender may use it is still the machine's affair.
Caller  brokers/node.py, before every rule.
Never   changes a message, or opens a payload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.errors import OptionError, RemoteProtocolError
from zray.protocol import messages
from zray.protocol.ids import OBJECT_ID_BYTES, PROCESS_ID_BYTES, TASK_NUMBER_MAX
from zray.protocol.limits import EVENTS_BATCH_BYTES_MAX, MAP_CHUNK_TASKS
from zray.protocol.messages import MESSAGES
from zray.protocol.purposes import Purpose

from .placement import read_where

Check = Callable[[Any], bool]

_COUNT_MAX = 1 << 62
"""Integers stay below this, so that sums of them fit a header."""
_BATCH_TASKS_MAX = MAP_CHUNK_TASKS
_FIELDS = {row.kind: row.fields for row in MESSAGES}


def check_fields(message: list[Any]) -> None:
    """Raise RemoteProtocolError where a field of this message is not what its kind says."""
    kind = message[1]
    at = 3
    for check in _CHECKS.get(kind, ()):
        if not check(message[at]):
            name = messages.NAMES[kind]
            raise RemoteProtocolError(f"{name} with a malformed field {_FIELDS[kind][at - 3]!r}")
        at += 1


def _any(_value: Any) -> bool:
    return True


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _text(value: Any) -> bool:
    return type(value) is str


def _flag(value: Any) -> bool:
    return type(value) is bool


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _COUNT_MAX


def _number(value: Any) -> bool:
    """A task number: what a client counts up itself."""
    return type(value) is int and 0 <= value <= TASK_NUMBER_MAX


def _process(value: Any) -> bool:
    return type(value) is bytes and len(value) == PROCESS_ID_BYTES


def _object(value: Any) -> bool:
    return type(value) is bytes and len(value) == OBJECT_ID_BYTES


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: type(value) is list and all(map(check, value))


def _row(*checks: Check) -> Check:
    def check(value: Any) -> bool:
        return (
            type(value) is list
            and len(value) == len(checks)
            and all(one(field) for one, field in zip(checks, value, strict=True))
        )

    return check


def _dict_of(key: Check, value: Check) -> Check:
    return lambda found: (
        type(found) is dict and all(key(name) and value(entry) for name, entry in found.items())
    )


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _COUNT_MAX


def _purpose(value: Any) -> bool:
    return type(value) is int and Purpose.GET <= value <= Purpose.PLACE


def _units(value: Any) -> bool:
    return type(value) is int and -_COUNT_MAX < value < _COUNT_MAX


_objects = _list_of(_object)


def _batch(row: Any) -> bool:
    """[class_no, first, count, low, high, mode, retries] of a SUBMIT, perhaps with inputs."""
    if type(row) is not list or not 7 <= len(row) <= 8:
        return False
    if not all(type(field) is int for field in row[:7]) or not all(map(_objects, row[7:])):
        return False
    class_number, first, count, low, high, mode, retries = row[:7]
    return (
        0 <= class_number < _COUNT_MAX
        and 0 <= first <= TASK_NUMBER_MAX
        and 0 <= low < high <= count <= _BATCH_TASKS_MAX
        and mode in (0, 1)
        and -1 <= retries < _COUNT_MAX
    )


def _report(row: Any) -> bool:
    """[client, first, low, high, busy_us] of a FINISHED, and the items of it that failed if any."""
    return (
        type(row) is list
        and len(row) in (5, 6)
        and _process(row[0])
        and all(map(_count, row[1:5]))
        and row[2] < row[3] <= _BATCH_TASKS_MAX
        and (len(row) == 5 or _failed_items(row[5], row[2], row[3]))
    )


def _failed_items(items: Any, low: int, high: int) -> bool:
    return (
        type(items) is list
        and len(items) <= high - low
        and all(type(item) is int and low <= item < high for item in items)
    )


def _taken_back(row: Any) -> bool:
    """[client, first, low, high] of a RECLAIMED."""
    return (
        type(row) is list
        and len(row) == 4
        and _process(row[0])
        and all(map(_count, row[1:]))
        and row[2] < row[3] <= _BATCH_TASKS_MAX
    )


def _asked(row: Any) -> bool:
    """[first, low, high] of a RECONCILE."""
    return (
        type(row) is list
        and len(row) == 3
        and all(map(_count, row))
        and row[1] < row[2] <= _BATCH_TASKS_MAX
    )


_environment = _dict_of(_text, _text)
_amounts = _dict_of(_text, _count)


def _class_spec(spec: Any) -> bool:
    """A function and its options: zray/remote_function.py writes it, workers read it."""
    return (
        type(spec) is list
        and len(spec) >= 9
        and _bytes(spec[0])
        and _text(spec[1])
        and _amounts(spec[2])
        and type(spec[3]) is int
        and type(spec[4]) is int
        and _environment(spec[7])
        and (len(spec) == 9 or _where(spec[9]))
    )


def _where(fields: Any) -> bool:
    """[strategy, node, soft, label selector] of a task or actor, or nothing."""
    try:
        read_where(fields)
    except (RemoteProtocolError, OptionError):
        return False
    return True


_ACTOR_DETAILS: dict[str, Check] = {
    "name": _or_none(_text),
    "namespace": _or_none(_text),
    "class": _text,
    "restarts": _units,
    "detached": _flag,
    "isolation": _text,
    "env": _environment,
    "placement": _amounts,
    "resources": _amounts,
}


def _actor_details(details: Any) -> bool:
    return (
        _dict_of(_text, _any)(details)
        and all(name in details and check(details[name]) for name, check in _ACTOR_DETAILS.items())
        and _where(details.get("where"))
    )


def _events(value: Any) -> bool:
    """Packed events of an EVENTS: a worker's that the ring keeps as they are."""
    return type(value) is bytes and len(value) <= EVENTS_BATCH_BYTES_MAX


_CHECKS: dict[int, tuple[Check, ...]] = {
    # Mailbox.
    messages.SUBMIT: (_list_of(_batch),),
    messages.FINISHED: (_list_of(_report),),
    messages.ACTOR_STARTED: (_list_of(_row(_object, _count, _or_none(_bytes))),),
    # Calls.
    messages.DECLARE_CLASS: (_count, _class_spec),
    messages.PUT_FUNCTION: (_bytes, _bytes),
    messages.GET_FUNCTION: (_bytes,),
    messages.ALLOCATE: (_count,),
    messages.FREE: (_list_of(_count),),
    messages.REGISTER: (_object, _count, _count, _objects, _process),
    messages.SHARE: (_object, _or_none(_bytes), _objects, _flag),
    messages.HOLD: (_objects, _flag),
    messages.HOLD_FOR: (_object, _objects),
    messages.TRANSFER: (_process, _objects),
    messages.RELEASE: (_list_of(_row(_object, _units)), _objects),
    messages.LOCATE: (_objects, _purpose),
    messages.UNPINNED: (_objects,),
    messages.CREATE_ACTOR: (_object, _bytes, _actor_details, _or_none(_bytes)),
    messages.ACTOR_ARGUMENTS: (_object, _or_none(_bytes), _bytes),
    messages.WATCH_ACTOR: (_object,),
    messages.KILL_ACTOR: (_object, _flag),
    messages.NAMED_ACTOR: (_text, _text),
    messages.LIST_NAMED: (_or_none(_text),),
    messages.CANCEL: (_or_none(_process), _number, _count, _flag, _flag),
    messages.RECLAIMED: (_list_of(_taken_back),),
    messages.LEASE: (_count,),
    messages.UNLEASE: (_process,),
    messages.RECONCILE: (_list_of(_asked),),
    messages.KV: (_text, _list_of(_any)),
    messages.GROUP: (_text, _list_of(_any)),
    messages.INSPECT: (_text, _dict_of(_text, _any)),
    messages.STOP: (_text,),
    messages.DRAIN_NODE: (_process, _seconds, _flag),
    messages.ACTOR_EXIT: (_object, _bytes),
    messages.EVENTS: (_events, _count, _or_none(_count)),
    messages.STATE: (_count, _dict_of(_text, _any)),
}
