"""What the fields of a message to a node may be: looked at before any machine sees them.

What    One check for each field of each kind: types, lengths and bounds of all that is stored,
        counted with or sent on. A machine may then trust that an id is 16 bytes and a bound an
        integer; whether the sender may use it is still the machine's affair.
Caller  brokers/node.py, before every rule.
Never   changes a message, or opens a payload.
"""

from __future__ import annotations

from typing import Any

from zray.errors import OptionError, RemoteProtocolError
from zray.protocol import messages
from zray.protocol.ids import TASK_NUMBER_MAX
from zray.protocol.limits import EVENTS_BATCH_BYTES_MAX, MAP_CHUNK_TASKS
from zray.protocol.messages import MESSAGES
from zray.protocol.purposes import Purpose

from .field_checks import (
    COUNT_MAX,
    Check,
    dict_of,
    is_bytes,
    is_count,
    is_flag,
    is_object,
    is_process,
    is_text,
    list_of,
    or_none,
    row_of,
)
from .placement import read_where

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


def _number(value: Any) -> bool:
    """A task number: what a client counts up itself."""
    return type(value) is int and 0 <= value <= TASK_NUMBER_MAX


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < COUNT_MAX


def _purpose(value: Any) -> bool:
    return type(value) is int and Purpose.GET <= value <= Purpose.PLACE


def _units(value: Any) -> bool:
    return type(value) is int and -COUNT_MAX < value < COUNT_MAX


_objects = list_of(is_object)


def _batch(row: Any) -> bool:
    """[class_no, first, count, low, high, mode, retries] of a SUBMIT, perhaps with inputs."""
    if type(row) is not list or not 7 <= len(row) <= 8:
        return False
    if not all(type(field) is int for field in row[:7]) or not all(map(_objects, row[7:])):
        return False
    class_number, first, count, low, high, mode, retries = row[:7]
    return (
        0 <= class_number < COUNT_MAX
        and 0 <= first <= TASK_NUMBER_MAX
        and 0 <= low < high <= count <= _BATCH_TASKS_MAX
        and mode in (0, 1)
        and -1 <= retries < COUNT_MAX
    )


def _report(row: Any) -> bool:
    """[client, first, low, high, busy_us] of a FINISHED, and the items of it that failed if any."""
    return (
        type(row) is list
        and len(row) in (5, 6)
        and is_process(row[0])
        and all(map(is_count, row[1:5]))
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
        and is_process(row[0])
        and all(map(is_count, row[1:]))
        and row[2] < row[3] <= _BATCH_TASKS_MAX
    )


def _asked(row: Any) -> bool:
    """[first, low, high] of a RECONCILE."""
    return (
        type(row) is list
        and len(row) == 3
        and all(map(is_count, row))
        and row[1] < row[2] <= _BATCH_TASKS_MAX
    )


_environment = dict_of(is_text, is_text)
_amounts = dict_of(is_text, is_count)


def _class_spec(spec: Any) -> bool:
    """A function and its options: zray/remote_function.py writes it, workers read it."""
    return (
        type(spec) is list
        and len(spec) >= 9
        and is_bytes(spec[0])
        and is_text(spec[1])
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
    "name": or_none(is_text),
    "namespace": or_none(is_text),
    "class": is_text,
    "restarts": _units,
    "detached": is_flag,
    "isolation": is_text,
    "env": _environment,
    "placement": _amounts,
    "resources": _amounts,
}


def _actor_details(details: Any) -> bool:
    return (
        dict_of(is_text, _any)(details)
        and all(name in details and check(details[name]) for name, check in _ACTOR_DETAILS.items())
        and _where(details.get("where"))
    )


def _events(value: Any) -> bool:
    """Packed events of an EVENTS: a worker's that the ring keeps as they are."""
    return type(value) is bytes and len(value) <= EVENTS_BATCH_BYTES_MAX


_CHECKS: dict[int, tuple[Check, ...]] = {
    # Mailbox.
    messages.SUBMIT: (list_of(_batch),),
    messages.FINISHED: (list_of(_report),),
    messages.ACTOR_STARTED: (list_of(row_of(is_object, is_count, or_none(is_bytes))),),
    # Calls.
    messages.DECLARE_CLASS: (is_count, _class_spec),
    messages.PUT_FUNCTION: (is_bytes, is_bytes),
    messages.GET_FUNCTION: (is_bytes,),
    messages.ALLOCATE: (is_count,),
    messages.FREE: (list_of(is_count),),
    messages.REGISTER: (is_object, is_count, is_count, _objects, is_process),
    messages.SHARE: (is_object, or_none(is_bytes), _objects, is_flag),
    messages.HOLD: (_objects, is_flag),
    messages.HOLD_FOR: (is_object, _objects),
    messages.TRANSFER: (is_process, _objects),
    messages.RELEASE: (list_of(row_of(is_object, _units)), _objects),
    messages.LOCATE: (_objects, _purpose),
    messages.UNPINNED: (_objects,),
    messages.CREATE_ACTOR: (is_object, is_bytes, _actor_details, or_none(is_bytes)),
    messages.ACTOR_ARGUMENTS: (is_object, or_none(is_bytes), is_bytes),
    messages.WATCH_ACTOR: (is_object,),
    messages.KILL_ACTOR: (is_object, is_flag),
    messages.NAMED_ACTOR: (is_text, is_text),
    messages.LIST_NAMED: (or_none(is_text),),
    messages.CANCEL: (or_none(is_process), _number, is_count, is_flag, is_flag),
    messages.RECLAIMED: (list_of(_taken_back),),
    messages.LEASE: (is_count,),
    messages.UNLEASE: (is_process,),
    messages.RECONCILE: (list_of(_asked),),
    messages.KV: (is_text, list_of(_any)),
    messages.GROUP: (is_text, list_of(_any)),
    messages.INSPECT: (is_text, dict_of(is_text, _any)),
    messages.STOP: (is_text,),
    messages.DRAIN_NODE: (is_process, _seconds, is_flag),
    messages.ACTOR_EXIT: (is_object, is_bytes),
    messages.EVENTS: (_events, is_count, or_none(is_count)),
    messages.STATE: (is_count, dict_of(is_text, _any)),
}
