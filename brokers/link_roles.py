"""What clients and gateways may say on links: looked at before any rule sees it.

What    check() refuses kinds that are not for a role (zray/protocol/roles.py), and of those that
        are, what a client says of others. Of a gateway's processes only calls of actors are
        brought on, whose arguments are data (zray/serialization/data.py): a pickle is code.
        refused_calls() finds those that are not, so that their callers hear why.
Caller  brokers/link_rules.py.
Never   unpickles; sends; looks at what a node says.
Spec    docs/explanation/threat-model.md, "Roles".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol import frames, link_messages, messages, outcome
from zray.protocol.envelopes import check_envelope
from zray.protocol.ids import (
    NODE_PREFIX_BYTES,
    OBJECT_ID_BYTES,
    TASK_NUMBER_MAX,
    NodeId,
    node_of,
    return_number,
)
from zray.protocol.packing import unpackb
from zray.protocol.roles import Role, may_send

from .scheduling import JOB_VARIABLE

_SAFE_METHODS = ("__call__", "__ray_ready__")
"""Of those that begin with two underscores: the others reach into the instance."""
_SAFE_OPTIONS = frozenset(("name", "backlog", "retries"))
"""Of a call: retry_exceptions would be pickled classes."""
_RETURNS_MAX = 1 << 16


class RoleError(RemoteProtocolError):
    """A client or gateway has sent what only others may.

    Who acts: whoever runs it. What to do: use a program of this release, or another key.
    """


@dataclass(slots=True)
class RefusedCalls:
    """Calls of a gateway that are not brought on.

    Args:
        numbers: of all their returns.
        reason: why, for people.
    """

    numbers: list[int] = field(default_factory=list)
    reason: str = ""


def check(role: Role, peer: NodeId, message: Sequence[Any]) -> None:
    """Raise RoleError where a message is not for who sends it.

    Args:
        role: of the member.
        peer: its id.
        message: the header, as frames.unpack() gives it.
    """
    kind = message[1]
    if role is Role.NODE:
        return
    if not may_send(role, kind):
        raise RoleError(f"a {role} may not send message {kind} to a node")
    about = _OF_ITSELF.get(kind)
    if about is None:
        return
    try:
        is_own = about(peer, message)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise RoleError(f"message {kind} of a {role} is malformed: {error!r}") from None
    if not is_own:
        raise RoleError(f"a {role} may send message {kind} only of itself and its own jobs")


def check_sources(role: Role, peer: NodeId, sealed: Sequence[bytes | memoryview]) -> None:
    """Raise RoleError where an envelope is not of a process of the node that brings it."""
    try:
        for envelope in sealed:
            check_envelope(envelope, peer[:NODE_PREFIX_BYTES])
    except RemoteProtocolError as error:
        raise RoleError(f"a {role} may send only what its own processes say: {error}") from None


def _is_of(peer: NodeId, identity: bytes) -> bool:
    return node_of(identity) == peer


def _is_job_of(peer: NodeId, job: str) -> bool:
    return _is_of(peer, bytes.fromhex(job))


def _borrow(peer: NodeId, message: Sequence[Any]) -> bool:
    """A worker of another job has that one's modules and memory."""
    jobs = [value for name, value in message[6] if name == JOB_VARIABLE]
    return all(_is_job_of(peer, job) for job in jobs)


def _code(peer: NodeId, message: Sequence[Any]) -> bool:
    job = message[5]
    return job is None or _is_job_of(peer, job["job"])


_OF_ITSELF: dict[int, Callable[[NodeId, Sequence[Any]], bool]] = {
    link_messages.BORROW: _borrow,
    link_messages.CODE: _code,
    link_messages.JOB_ENDED: lambda peer, message: _is_job_of(peer, message[3]),
    messages.PROCESS_DIED: lambda peer, message: _is_of(peer, message[3]),
    messages.ACTOR_STATE: lambda peer, message: all(_is_of(peer, row[0]) for row in message[3]),
}


# -- gateways --------------------------------------------------------------------------------------


def refused_calls(payloads: Sequence[Any]) -> RefusedCalls | None:
    """Look at what a process of a gateway says to another one; None: it is brought on.

    Args:
        payloads: of RELAY: the header of the inner message, and its own payloads.

    Raises RoleError for all that is neither a call nor part of one, which a driver of this release
    does not send.
    """
    inner = frames.unpack(bytes(payloads[0])) if payloads else [0, None]
    if inner[1] == messages.CONSUMED and len(payloads) == 1:
        _check_consumed(inner)
        return None
    if inner[1] != messages.CALL or len(payloads) != 1:
        raise RoleError(f"message {inner[1]!r} of a process of a gateway: it may call actors")
    rows, incarnation = inner[3:5]
    if type(rows) is not list or not rows:
        raise RoleError("calls of a gateway that are no list")
    if type(incarnation) is not int:
        raise RoleError("calls of a gateway to a life of their actor that is no number")
    refused = RefusedCalls()
    for row in rows:
        number, returns, reason = _look(row)
        refused.reason = refused.reason or reason
        # All of them: the others were made before or after it, and are to come in that order.
        refused.numbers += [return_number(number, index) for index in range(max(1, returns))]
    return refused if refused.reason else None


def _check_consumed(inner: Sequence[Any]) -> None:
    if type(inner[3]) is not int or type(inner[4]) is not int:
        raise RoleError("CONSUMED of a gateway with malformed fields")


def _look(row: Any) -> tuple[int, int, str]:
    """Return (number, returns, why it is refused or "") of one call."""
    if type(row) is not list or len(row) != 5:
        raise RoleError("a call of a gateway with malformed fields")
    actor, number, method, returns, arguments = row
    if (
        type(actor) is not bytes
        or len(actor) != OBJECT_ID_BYTES
        or type(number) is not int
        or not 0 <= number <= TASK_NUMBER_MAX
        or type(returns) is not int
        or not -1 <= returns <= _RETURNS_MAX
        or type(arguments) is not bytes
    ):
        raise RoleError("a call of a gateway with malformed fields")
    name = _method_name(method)
    if name.startswith("__") and name not in _SAFE_METHODS:
        return number, returns, f"a gateway may not call {name}"
    if not outcome.is_data(arguments):
        return number, returns, "a gateway sends data, and these arguments are pickled"
    return number, returns, ""


def _method_name(method: Any) -> str:
    """Return the name in a method's wire name: "name@group", or packed with options."""
    if type(method) is bytes:
        try:
            name, group, options = unpackb(method)
        except Exception as error:  # msgpack raises a dozen types for malformed input
            raise RoleError(f"a method of a gateway's call that is not msgpack: {error}") from None
        if type(group) is not str or type(options) is not dict or options.keys() - _SAFE_OPTIONS:
            raise RoleError("a method of a gateway's call with options that may be code")
    else:
        name = method
    if type(name) is not str:
        raise RoleError("a method of a gateway's call without a name")
    return name.partition("@")[0]
