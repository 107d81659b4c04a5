"""A member of a cluster that says whatever a test wants, and a look at the node that hears it.

What    HostileNode has a valid key and a port of its own; it greets a node as one does, and then
        sends frames. Vitals are what a node has in memory and descriptors.
Caller  tests/multinode/test_hostile_members.py.
Never   answers as a node would, or leaves the loopback.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Self

import psutil

from tests.waiting import wait_until
from zray.net.curve import ClusterKeys
from zray.net.link_inbox import LinkInbox
from zray.net.links import Links, LinkState
from zray.net.mailbox import new_context
from zray.protocol import frames, link_messages
from zray.protocol.ids import node_id

NODE = b"the node"
_PATIENCE_S = 30.0


class HostileNode:
    """Both ends of a node's links, driven by whoever calls; a context manager.

    Args:
        keys: of a member.
        address: "HOST:PORT" of the node to speak to.
    """

    def __init__(self, keys: ClusterKeys, address: str) -> None:
        self.own = node_id(os.urandom(4))
        self.address = f"tcp://{address}"
        self.contexts = [new_context(), new_context()]
        self.inbox = LinkInbox(self.contexts[0], keys)
        self.links = Links(self.contexts[1], self.own, keys)
        self.heard: list[list[Any]] = []
        self.states: list[LinkState] = []
        self.links.connect(NODE, self.address)

    def turn(self) -> None:
        """Do once what a node's loop does."""
        self.states += [event.state for event in self.links.events()]
        while (found := self.inbox.receive()) is not None:
            with contextlib.suppress(Exception):
                self.heard.append(frames.unpack(found[1]))
        self.inbox.departed.clear()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Turn until a condition holds."""

        def turned() -> Any:
            self.turn()
            return condition()

        wait_until(turned, _PATIENCE_S, what=f"{what}, after {self.states}", interval_s=0.0001)

    def greeting(self, **other: Any) -> dict[str, Any]:
        """Return what LINK_HELLO says of a node that has nothing."""
        load = [self.own, 1, 1, {}, {}, {}, 0, 0, 0, 0, "ALIVE"]
        return {
            "node": self.own,
            "address": self.inbox.address,
            "to": self.address,
            "answers": "",
            "gcs": None,
            "role": "node",
            "incarnation": 0,
            "losses": [],
            "bulk": [self.inbox.address, self.own],
            "total": {},
            "load": load,
            "directory": "/nowhere",
            "hostname": "nowhere",
            "labels": {},
            "members": [],
            **other,
        }

    def join(self) -> Self:
        """Greet the node, and wait until it has greeted us."""
        self.send(link_messages.LINK_HELLO, self.greeting())
        self.until(
            lambda: any(each[1] == link_messages.LINK_HELLO for each in self.heard), "a greeting"
        )
        return self

    def send(self, kind: int, *fields: Any, payloads: tuple[bytes, ...] = ()) -> None:
        """Send a message that is well-formed, whatever it says."""
        self.send_raw(frames.pack(kind, *fields, payloads=len(payloads)), payloads)

    def send_raw(self, header: bytes, payloads: tuple[bytes, ...] = ()) -> None:
        """Send any frames; they are dropped where the node has cut us off."""
        self.links.send(NODE, header, payloads)
        self.turn()

    def await_cut(self) -> None:
        """Wait until the node has ended the connection."""
        self.until(
            lambda: LinkState.DISCONNECTED in self.states or LinkState.REFUSED in self.states,
            "the end of the connection",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.links.close()
        self.inbox.close()
        for context in self.contexts:
            context.destroy(0)


class Vitals:
    """What a node's process holds, now and when this was made.

    Args:
        pid: of the node.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.rss_then = self._process.memory_info().rss
        self.descriptors_then = self._process.num_fds()

    @property
    def grown_bytes(self) -> int:
        """By how much its resident memory has grown."""
        return int(self._process.memory_info().rss - self.rss_then)

    @property
    def more_descriptors(self) -> int:
        """By how much its open descriptors have grown."""
        return int(self._process.num_fds() - self.descriptors_then)
