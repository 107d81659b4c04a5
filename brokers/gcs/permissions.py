"""What the holder of a key may ask of the GCS.

What    A node may do all. A client reads, and writes the key-value table; a gateway only reads.
Caller  server.py, for messages of peers that are no nodes.
Never   does what was asked; opens a node's message.
"""

from __future__ import annotations

from zray.errors import RemoteProtocolError
from zray.protocol.roles import Role

from .commands import COMMANDS
from .wire import unpack, unpack_plain

_SESSION = frozenset(("SESSION_OPEN", "NOOP"))
_READS = frozenset(name for name, row in COMMANDS.items() if row.effect in ("read", "soft"))
_KEY_VALUE = frozenset(("KV_PUT", "KV_DELETE"))

_ALLOWED: dict[Role, frozenset[str]] = {
    Role.CLIENT: _SESSION | _READS | _KEY_VALUE,
    Role.GATEWAY: _SESSION | _READS,
}


def check_allowed(role: Role, frame: bytes) -> None:
    """Look at every command of a message.

    Raises:
        RemoteProtocolError: one of them is none for this role, or the message is malformed.
    """
    if role is Role.NODE:
        return
    allowed = _ALLOWED[role]
    _kind, fields = unpack(frame, to_gcs=True)
    for packed in fields[-1]:
        command = unpack_plain(packed)
        name = command[0] if type(command) is list and command else None
        if type(name) is not str or name not in allowed:
            raise RemoteProtocolError(f"{name!r} is refused to the key of a {role}")
