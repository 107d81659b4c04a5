"""What a client's machines have put into their outbox, read back.

What    taken() empties an outbox into [kind, *fields]; sent() keeps one kind of them.
Caller  tests/zray/session, tests/actors.
Never   reads payloads: who needs those looks into outbox.messages.
"""

from __future__ import annotations

from typing import Any

from zray.protocol import frames
from zray.session.outbox import Outbox


def taken(outbox: Outbox) -> list[list[Any]]:
    """Return [kind, *fields] of all that lies in the outbox, calls first, and empty it."""
    calls, outbox.calls = outbox.calls, []
    queued, outbox.messages = outbox.messages, []
    packed = [*calls, *(header for _peer, header, _payloads in queued)]
    return [[message[1], *message[3:]] for message in map(frames.unpack, packed)]


def sent(outbox: Outbox, kind: int) -> list[list[Any]]:
    """Return the fields of the messages and calls of a kind since the last look."""
    return [fields for each, *fields in taken(outbox) if each == kind]
