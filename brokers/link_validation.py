"""What a node may say to another: looked at before any rule sees it.

What    For each kind of a link's messages one check a field (types, lengths, ranges), how many
        payloads it has, and of whom it may speak: a node speaks for its own processes, objects,
        actors and jobs, and to those of its receiver. What is a race of honest nodes (a worker that
        was given back meanwhile) is no breach, and the machines' affair.
Caller  brokers/link_rules.py.
Never   changes a message, or opens a payload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol import link_messages, messages, outcome
from zray.protocol.ids import GROUP_ID_BYTES, NodeId, node_of
from zray.protocol.link_messages import LINK_MESSAGES
from zray.protocol.messages import NAMES
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
from .load import read_load
from .resources import read_request

_FUNCTION_BYTES = 16
_NAME_BYTES_MAX = 64
_NAMES = NAMES | {row.kind: row.name for row in LINK_MESSAGES}
_FIELDS = {row.kind: row.fields for row in (*messages.MESSAGES, *LINK_MESSAGES)}
_ADDRESS = re.compile(r"tcp://(\[[0-9A-Fa-f:.%a-z]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}")
_ADDRESS_LEN_MAX = 300
_JOB = re.compile(r"[0-9a-f]{16}")
_NOT_IN_A_HOLDING = (b"", bytes((outcome.STORED,)), bytes((outcome.HOLDING,)))


class BreachError(RemoteProtocolError):
    """A node has sent what no node of this release sends.

    Who acts: whoever runs it. What to do: if the program is zray's, report it; if not, revoke the
    node's key (`zray-node keys revoke`).
    """


def check_link_message(
    message: Sequence[Any], payload_count: int, sender: NodeId, receiver: NodeId
) -> None:
    """Raise BreachError where a message is not what its kind says, or not its sender's to say.

    Args:
        message: the header, as frames.unpack() gives it.
        payload_count: frames behind it.
        sender: the node it comes from.
        receiver: this node.
    """
    kind = message[1]
    checks = LINK_CHECKS.get(kind)
    if checks is None:
        raise BreachError(f"{_NAMES.get(kind, kind)} is not for a node")
    if message[2] != payload_count or not _fits(kind, payload_count):
        raise BreachError(f"{_NAMES[kind]} with {payload_count} payloads")
    for at, check in enumerate(checks, 3):
        if not check(message[at]):
            raise BreachError(f"{_NAMES[kind]} with a malformed field {_FIELDS[kind][at - 3]!r}")
    speaks = _SPEAKERS.get(kind)
    if speaks is not None and not speaks(message[3:], sender, receiver):
        raise BreachError(f"{_NAMES[kind]} of what is not its own, or not this node's")


def _fits(kind: int, payload_count: int) -> bool:
    if kind in (link_messages.RELAY, link_messages.TO_WORKER):
        return payload_count >= 1
    if kind in (link_messages.GCS_CALL, link_messages.GCS_ANSWER):
        return payload_count == 1
    return payload_count == 0 or kind == link_messages.LINEAGE


# -- fields ----------------------------------------------------------------------------------------


def _any(_value: Any) -> bool:
    return True


def _reads(read: Callable[[Any], object]) -> Check:
    """Return the check of what another module reads, and refuses."""

    def check(value: Any) -> bool:
        try:
            read(value)
        except (RemoteProtocolError, TypeError, ValueError):
            return False
        return True

    return check


def _node(value: Any) -> bool:
    return is_process(value) and node_of(value) == value


def _job(value: Any) -> bool:
    return type(value) is str and _JOB.fullmatch(value) is not None


def _address(value: Any) -> bool:
    """Where a node is reached: it will be dialled."""
    return type(value) is str and len(value) <= _ADDRESS_LEN_MAX and bool(_ADDRESS.fullmatch(value))


def _length(value: Any) -> bool:
    """Of an object in bytes; -1: of nothing but what it contains, or unknown."""
    return type(value) is int and -1 <= value < COUNT_MAX


def _purpose(value: Any) -> bool:
    """Why an object is asked for."""
    return type(value) is int and Purpose.GET <= value <= Purpose.PLACE


def _seconds(value: Any) -> bool:
    """A time, at the sender, or how long."""
    return type(value) in (int, float) and 0 <= value < COUNT_MAX


def _group(value: Any) -> bool:
    """A placement group."""
    return type(value) is bytes and len(value) == GROUP_ID_BYTES


def _name(value: Any) -> bool:
    """What a node is called among bulk peers."""
    return type(value) is bytes and 0 < len(value) <= _NAME_BYTES_MAX


def _function(value: Any) -> bool:
    return type(value) is bytes and len(value) == _FUNCTION_BYTES


def _foreign_outcome(value: Any) -> bool:
    """An outcome of another node; one that lies in *our* memory is not its to tell."""
    if type(value) is not bytes:
        return False
    if value[:1] != bytes((outcome.HOLDING,)):
        return value[:1] != bytes((outcome.STORED,))
    try:
        contained, inner = outcome.held(value)
    except Exception:  # msgpack raises a dozen types for malformed input
        return False
    return _objects(contained) and is_bytes(inner) and inner[:1] not in _NOT_IN_A_HOLDING


def _with(**fields: Check) -> Check:
    """Return the check of a dict with at least these keys, all of them text."""
    return lambda value: (
        type(value) is dict
        and all(type(name) is str for name in value)
        and all(name in value and check(value[name]) for name, check in fields.items())
    )


_objects = list_of(is_object)
_texts = list_of(is_text)
_amounts = _reads(read_request)
_labels = dict_of(is_text, is_text)

_greeting = _with(
    node=_node,
    address=_address,
    to=is_text,
    answers=is_text,
    gcs=or_none(row_of(_node, _address)),
    role=is_text,
    incarnation=is_count,
    losses=list_of(row_of(_node, is_count)),
    bulk=row_of(_address, _name),
    total=_amounts,
    load=_reads(read_load),
    directory=is_text,
    hostname=is_text,
    labels=_labels,
    members=list_of(row_of(_node, _address)),
)
_refusal = _with(refused=is_text, answers=is_text)
_job_details = _with(
    job=_job,
    cwd=or_none(is_text),
    path=_texts,
)


def _hello(details: Any) -> bool:
    return _refusal(details) or _greeting(details)


LINK_CHECKS: dict[int, tuple[Check, ...]] = {
    link_messages.LINK_HELLO: (_hello,),
    link_messages.RELAY: (),
    link_messages.OFFER: (_reads(read_load),),
    link_messages.BORROW: (
        is_count,
        _amounts,
        _amounts,
        list_of(row_of(is_text, is_text)),
        is_flag,
        is_flag,
    ),
    link_messages.LENT: (
        is_count,
        or_none(is_process),
        is_count,
        _texts,
        or_none(_reads(read_load)),
    ),
    link_messages.GIVE_BACK: (is_process, is_flag),
    link_messages.WANTED_BACK: (is_process, is_flag),
    link_messages.TO_WORKER: (is_process,),
    link_messages.TELL_WORKER: (is_process, is_bytes),
    link_messages.END_WORKER: (is_process,),
    link_messages.FROM_WORKER: (is_process, is_bytes),
    link_messages.WORKER_DIED: (is_process, is_text),
    link_messages.SUSPECTED: (is_process,),
    link_messages.STOPPED: (is_process,),
    link_messages.JOB_ENDED: (_job,),
    link_messages.OUTPUT: (_job, list_of(row_of(is_text, is_flag, is_text))),
    link_messages.CODE_WANTED: (_function, _job),
    link_messages.CODE: (_function, is_bytes, or_none(_job_details)),
    link_messages.STORED_AT: (is_object, _length, is_process),
    link_messages.LOCATE_FOREIGN: (_objects, _purpose),
    link_messages.FOUND: (
        list_of(row_of(is_object, or_none(_foreign_outcome), _length, list_of(_node))),
    ),
    link_messages.HOLDS_COUNTED: (is_count,),
    link_messages.COPY_GONE: (_objects,),
    link_messages.ROSTER: (_any,),
    link_messages.HOST_RENEW: (_seconds,),
    link_messages.HOST_RENEWED: (_seconds, _seconds),
    link_messages.HOSTS_ENDED: (),
    link_messages.TAKE_OVER: (list_of(row_of(is_object, _objects)),),
    link_messages.DRAIN: (_seconds, is_flag),
    link_messages.LEAVING: (or_none(_texts),),
    link_messages.GROUP_ASK: (
        is_text,
        _group,
        is_count,
        list_of(row_of(is_count, _amounts)),
    ),
    link_messages.GROUP_SAID: (is_text, _group, is_count, is_flag),
    link_messages.GROUP_GONE: (_group, is_text),
    link_messages.GCS_CALL: (is_count, is_count),
    link_messages.GCS_ANSWER: (is_count, is_count),
    link_messages.LINEAGE: (is_count, _job, list_of(is_count)),
    link_messages.LINEAGE_KEPT: (_job, is_count),
    link_messages.LINEAGE_ENDED: (is_count, _job),
    link_messages.QUERY: (is_count, is_text, dict_of(is_text, _any)),
    link_messages.QUERY_ROWS: (
        is_count,
        list_of(_any),
        is_flag,
        or_none(is_text),
        _seconds,
        _seconds,
    ),
    link_messages.QUERY_NEXT: (is_count,),
    messages.HOLD: (_objects, is_flag),
    messages.RELEASE: (list_of(row_of(is_object, is_count)), _objects),
    messages.WATCH_ACTOR: (is_object,),
    messages.KILL_ACTOR: (is_object, is_flag),
    messages.ACTOR_STATE: (
        list_of(
            row_of(
                is_object,
                is_text,
                or_none(is_process),
                or_none(is_text),
                is_count,
                or_none(_foreign_outcome),
            )
        ),
    ),
    messages.PROCESS_DIED: (is_process, is_text),
}
"""One check a field; ROSTER's is read by who knows keys."""


# -- who may say it --------------------------------------------------------------------------------

Speaks = Callable[[Sequence[Any], NodeId, NodeId], bool]


def _first_is_senders(fields: Sequence[Any], sender: NodeId, _receiver: NodeId) -> bool:
    return node_of(fields[0]) == sender


def _first_is_ours(fields: Sequence[Any], _sender: NodeId, receiver: NodeId) -> bool:
    return node_of(fields[0]) == receiver


def _job_is_senders(fields: Sequence[Any], sender: NodeId, _receiver: NodeId) -> bool:
    return _job_home(fields[0]) == sender


def _job_home(job: str) -> NodeId:
    return node_of(bytes.fromhex(job))


def _hello_speaks(fields: Sequence[Any], sender: NodeId, _receiver: NodeId) -> bool:
    (details,) = fields
    return "refused" in details or details["node"] == sender


def _offer_speaks(fields: Sequence[Any], sender: NodeId, _receiver: NodeId) -> bool:
    return bool(fields[0][0] == sender)


def _lent_speaks(fields: Sequence[Any], sender: NodeId, _receiver: NodeId) -> bool:
    worker, load = fields[1], fields[4]
    return (worker is None or node_of(worker) == sender) and (load is None or load[0] == sender)


def _code_speaks(fields: Sequence[Any], sender: NodeId, _receiver: NodeId) -> bool:
    """Where a job imports from is its home's word."""
    job = fields[2]
    return job is None or _job_home(job["job"]) == sender


def _released_speaks(fields: Sequence[Any], sender: NodeId, receiver: NodeId) -> bool:
    """Its hold of what is ours, or our hold of what is its own."""
    deltas, _results = fields
    return all(node_of(identity) in (sender, receiver) for identity, _units in deltas)


_SPEAKERS: dict[int, Speaks] = {
    link_messages.LINK_HELLO: _hello_speaks,
    link_messages.OFFER: _offer_speaks,
    link_messages.LENT: _lent_speaks,
    link_messages.GIVE_BACK: _first_is_ours,
    link_messages.WANTED_BACK: _first_is_senders,
    link_messages.TO_WORKER: _first_is_ours,
    link_messages.TELL_WORKER: _first_is_ours,
    link_messages.END_WORKER: _first_is_ours,
    link_messages.FROM_WORKER: _first_is_senders,
    link_messages.WORKER_DIED: _first_is_senders,
    link_messages.SUSPECTED: _first_is_ours,
    link_messages.STOPPED: _first_is_senders,
    link_messages.JOB_ENDED: _job_is_senders,
    link_messages.OUTPUT: lambda fields, _sender, receiver: _job_home(fields[0]) == receiver,
    link_messages.CODE_WANTED: lambda fields, _sender, receiver: _job_home(fields[1]) == receiver,
    link_messages.CODE: _code_speaks,
    link_messages.STORED_AT: _first_is_ours,
    link_messages.LOCATE_FOREIGN: lambda fields, _sender, receiver: all(
        node_of(identity) == receiver for identity in fields[0]
    ),
    link_messages.FOUND: lambda fields, sender, _receiver: all(
        node_of(row[0]) == sender for row in fields[0]
    ),
    link_messages.TAKE_OVER: lambda fields, _sender, receiver: all(
        node_of(row[0]) == receiver for row in fields[0]
    ),
    link_messages.COPY_GONE: lambda fields, _sender, receiver: all(
        node_of(identity) == receiver for identity in fields[0]
    ),
    messages.HOLD: lambda fields, _sender, receiver: all(
        node_of(identity) == receiver for identity in fields[0]
    ),
    messages.RELEASE: _released_speaks,
    messages.WATCH_ACTOR: _first_is_ours,
    messages.KILL_ACTOR: _first_is_ours,
    messages.ACTOR_STATE: lambda fields, sender, _receiver: all(
        node_of(row[0]) == sender for row in fields[0]
    ),
}
"""By kind; of the others the machines know who may say them."""
