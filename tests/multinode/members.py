"""A member of a cluster that says what it likes: links under any key, without a node behind it.

What    Member greets a node as a node does, and then sends whatever a test gives it.
Caller  tests/multinode/test_roles.py.
Never   runs code of brokers/.
"""

from __future__ import annotations

import os
from typing import Any

from tests.waiting import wait_until
from zray.net.curve import ClusterKeys
from zray.net.link_inbox import LinkInbox
from zray.net.links import Links, LinkState
from zray.net.mailbox import new_context
from zray.protocol import frames, link_messages
from zray.protocol.envelopes import Reassembly, destination_of, seal
from zray.protocol.ids import node_id
from zray.protocol.roles import Role


class Member:
    """One link to a node, and what came back.

    Args:
        address: "tcp://HOST:PORT" of the node.
        keys: whose key is shown.
        key_role: which of them.
        claims: the role that LINK_HELLO says.
        identity: whose name it takes; None: one of its own.
    """

    def __init__(
        self,
        address: str,
        keys: ClusterKeys,
        key_role: Role,
        claims: Role | str,
        identity: bytes | None = None,
    ) -> None:
        self.identity = identity or node_id(os.urandom(4))
        self.driver = self.identity[:4] + b"driv"
        self.context = new_context()
        self.inbox = LinkInbox(self.context, keys, role=key_role)
        self.links = Links(self.context, self.identity, keys, key_role)
        self.address = address.encode()
        self.received: list[tuple[list[Any], list[bytes]]] = []
        self.states: list[LinkState] = []
        self.links.connect(self.address, address, keys.server_keys())
        self.say(link_messages.LINK_HELLO, self.hello(claims))

    def hello(self, claims: Role | str, **others: Any) -> dict[str, Any]:
        """Return a greeting as a node would send it."""
        row = [self.identity, 1, 1, {}, {}, {}, 0, 0, 0, 0, "DRAINING"]
        return {
            "node": self.identity,
            "address": self.inbox.address,
            "to": self.address.decode(),
            "answers": "",
            "gcs": None,
            "role": str(claims),
            "incarnation": 1,
            "losses": [],
            "bulk": [self.inbox.address, self.identity + os.urandom(8)],
            "total": {},
            "load": row,
            "directory": "",
            "hostname": "",
            "labels": {},
            "members": [],
        } | others

    def say(self, kind: int, *fields: Any, payloads: tuple[bytes, ...] = ()) -> None:
        """Send one message."""
        header = frames.pack(kind, *fields, payloads=len(payloads))
        assert self.links.send(self.address, header, payloads)
        self.step()

    def relay(self, destination: bytes, *parts: bytes, source: bytes = b"") -> None:
        """Say something to a process in the name of this member's driver, or of another source."""
        sealed = tuple(seal(destination, source or self.driver, parts))
        self.say(link_messages.RELAY, payloads=sealed)

    def told(self) -> list[tuple[bytes, list[Any]]]:
        """Return for whom, and the header, of what processes of the node have said."""
        found = []
        for _header, sealed in self.heard(link_messages.RELAY):
            for envelope in sealed:
                message = Reassembly().add(envelope)
                assert message is not None
                found.append((destination_of(envelope), frames.unpack(message[1])))
        return found

    def step(self) -> None:
        """Take in what has come."""
        self.states += [event.state for event in self.links.events()]
        while (message := self.inbox.receive()) is not None:
            _sender, header, payloads = message
            self.received.append((frames.unpack(header), [bytes(each) for each in payloads]))

    def heard(self, kind: int) -> list[tuple[list[Any], list[bytes]]]:
        """Return the messages of a kind that have come."""
        self.step()
        return [each for each in self.received if each[0][1] == kind]

    def await_welcome(self) -> None:
        """Wait until the node has greeted back."""
        wait_until(lambda: self.heard(link_messages.LINK_HELLO), what="a greeting")

    def await_end(self) -> None:
        """Wait until the node has cut this member off."""

        def is_over() -> bool:
            self.step()
            return LinkState.DISCONNECTED in self.states

        wait_until(is_over, what="the end of the connection")

    def close(self) -> None:
        """Leave."""
        self.links.close()
        self.inbox.close()
        self.context.destroy(0)
