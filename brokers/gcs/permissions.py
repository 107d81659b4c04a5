"""What the holder of a key may ask of the GCS.

What    A node may do all. A client, which is a driver's node, reads, writes the key-value table,
        puts code, and speaks of itself: it joins without resources, and tells of its own jobs and
        actors. A gateway reads, and tells of itself and its jobs. What is refused is answered
        like any command that is refused, so that its session goes on.
Caller  server.py, for messages of peers that are no nodes; brokers/gcs_tables.py, to say so early.
Never   does what was asked; changes a node's message; lets one speak for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol.packing import packb
from zray.protocol.roles import Role, may_claim

from .commands import COMMANDS
from .rules import NODE_PREFIX_BYTES, job_place
from .wire import COMMANDS as NUMBERED
from .wire import pack, unpack, unpack_plain

Speaker = tuple[bytes, str]
"""The node that a session speaks for, b"" for none, and the role it has joined with."""

_SESSION = frozenset(("SESSION_OPEN", "NOOP", "JOIN", "LEAVE", "JOB_START", "JOB_FINISH"))
_READS = frozenset(name for name, row in COMMANDS.items() if row.effect in ("read", "soft")) - {
    "LOAD"  # Who has nothing to offer is asked for nothing.
}
_KEY_VALUE = frozenset(("KV_PUT", "KV_DELETE"))
_WORK = frozenset(("FUNCTION_CHUNK", "FUNCTION_PUT", "ACTOR_REGISTER", "ACTOR_UPDATE", "TRANSACT"))

_ALLOWED: dict[Role, frozenset[str]] = {
    Role.CLIENT: _SESSION | _READS | _KEY_VALUE | _WORK,
    Role.GATEWAY: _SESSION | _READS,
}


def may_ask(role: Role, name: str) -> bool:
    """Return whether a role may ask for a command at all, whatever its fields."""
    return role is Role.NODE or name in _ALLOWED[role]


class Permissions:
    """Looks at the messages of clients and gateways.

    Args:
        speaker: returns for a session what the tables say of whom it speaks for.
    """

    def __init__(self, speaker: Callable[[bytes], Speaker]) -> None:
        self._speaker = speaker

    def screened(self, role: Role, frame: bytes) -> bytes:
        """Return a message with a refusal in the place of each command that is not allowed.

        Args:
            role: of the sender's key.
            frame: as it came.

        Raises:
            RemoteProtocolError: it is malformed, or of a session that is a node's.
        """
        if role is Role.NODE:
            return frame
        kind, fields = unpack(frame, to_gcs=True)
        session = fields[0]
        node, joined_as = self._speaker(session)
        if node and joined_as not in (Role.CLIENT, Role.GATEWAY):
            raise RemoteProtocolError(f"a {role} speaks in the session of a node")
        screened: list[bytes] = []
        for packed in fields[-1]:
            name, arguments = _read(packed)
            why = _why_not(role, node, name, arguments)
            if why and kind != NUMBERED:
                raise RemoteProtocolError(why)
            screened.append(packb(("REFUSED", (why,))) if why else packed)
        return pack(kind, *fields[:-1], screened)


def _read(packed: bytes) -> tuple[str, list[Any]]:
    command = unpack_plain(packed)
    if (
        type(command) is not list
        or len(command) != 2
        or type(command[0]) is not str
        or type(command[1]) is not list
    ):
        raise RemoteProtocolError("a command is an array of its name and its fields")
    return command[0], command[1]


def _why_not(role: Role, node: bytes, name: str, fields: list[Any]) -> str:
    """Return why a command is refused, "" where it is not."""
    if name not in _ALLOWED[role]:
        return f"{name} is refused to the key of a {role}"
    rule = _OF_ITSELF.get(name)
    if rule is None:
        return ""
    if not node and name != "JOIN":
        # Not even behind its JOIN in one message: that may be refused as well.
        return f"{name} is refused to a {role} before it has joined"
    try:
        is_own = rule(role, node, *fields)
    except (TypeError, ValueError, AttributeError, LookupError):
        return ""  # Malformed: whoever checks the fields says so.
    return "" if is_own else f"{name} is refused to a {role}, but of itself and what it has made"


# -- what is its own -------------------------------------------------------------------------------


def _is_of(node: bytes, identity: Any) -> bool:
    return type(identity) is bytes and identity[:NODE_PREFIX_BYTES] == node[:NODE_PREFIX_BYTES]


def _join(role: Role, node: bytes, identity: bytes, *fields: Any) -> bool:
    """It joins as what its key says or as less, and without anything to offer."""
    resources, claimed = fields[1], fields[-1]
    claims = Role(claimed)
    return (
        node in (b"", identity)
        and not resources
        and claims is not Role.NODE
        and may_claim(role, claims)
    )


def _leave(_role: Role, node: bytes, identity: bytes, _incarnation: int) -> bool:
    return identity == node


def _record(_role: Role, node: bytes, record: dict[str, Any]) -> bool:
    """An actor or a job of one of its processes."""
    of_actor = "actor_id" not in record or (
        _is_of(node, record["actor_id"]) and record.get("node_id", node) == node
    )
    return of_actor and _is_of(node, record.get("job_id"))


def _update(_role: Role, node: bytes, actor: bytes, changes: dict[str, Any]) -> bool:
    return _is_of(node, actor) and changes.get("node_id", node) == node


def _job_end(_role: Role, node: bytes, job: bytes, *_fields: Any) -> bool:
    return _is_of(node, job)


def _transact(_role: Role, node: bytes, *branches: list[list[Any]]) -> bool:
    """It says where its own jobs import from, and nothing else."""
    own = job_place(node[:NODE_PREFIX_BYTES])
    writes = [row for branch in branches[1:] for row in branch]
    return all(
        row[0] == "get" or (row[1] == "cluster" and row[2].startswith(own)) for row in writes
    )


_OF_ITSELF: dict[str, Callable[..., bool]] = {
    "JOIN": _join,
    "LEAVE": _leave,
    "ACTOR_REGISTER": _record,
    "ACTOR_UPDATE": _update,
    "JOB_START": _record,
    "JOB_FINISH": _job_end,
    "TRANSACT": _transact,
}
