"""What a session wants sent, in order.

What    calls go to the node's unix stream, messages to mailboxes. A shell sends all calls
        before any message: the node handles them in that order, so whatever a message
        refers to is known when the message is handled.
Caller  the machines of this package fill it, zray/client.py empties it.
Never   sends.
"""

from typing import Any

from zray.protocol import frames
from zray.protocol.limits import PROTOCOL_VERSION
from zray.protocol.packing import packb

MailboxMessage = tuple[bytes, bytes, tuple[bytes, ...]]


class Outbox:
    """Two lists. ``calls`` holds packed messages, ``messages`` (peer, header, payloads)."""

    __slots__ = ("calls", "connections", "messages")

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.messages: list[MailboxMessage] = []
        self.connections: list[tuple[bytes, str | None]] = []

    def call(self, kind: int, *fields: Any) -> None:
        """Queue a one-way call to the node."""
        self.calls.append(frames.pack(kind, *fields))

    def message(
        self, peer: bytes, kind: int, *fields: Any, payloads: tuple[bytes, ...] = ()
    ) -> None:
        """Queue a message to a process's mailbox."""
        # frames.pack() spelled out: this is the one message in every call's way.
        header = packb((PROTOCOL_VERSION, kind, len(payloads), *fields))
        self.messages.append((peer, header, payloads))

    def connect(self, peer: bytes, endpoint: str) -> None:
        """Ask for a way to a peer before the messages that use it."""
        self.connections.append((peer, endpoint))

    def disconnect(self, peer: bytes) -> None:
        """Ask to drop the way to a dead peer."""
        self.connections.append((peer, None))

    def __bool__(self) -> bool:
        return bool(self.calls or self.messages or self.connections)
