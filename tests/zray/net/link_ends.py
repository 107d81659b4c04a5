"""An inbox and links to it in one process, for tests.

What    Both ends, each in its own context, driven by one poll as a node's loop is.
Caller  tests of links.
Never   leaves the loopback.
"""

from __future__ import annotations

import os
import select
import socket

import zmq

from tests.waiting import wait_until
from zray.net.curve import KeyPair, Role, secure_client
from zray.net.link_inbox import LinkInbox
from zray.net.links import Links
from zray.net.mailbox import new_context

HERE, THERE, OTHER = b"node-aaa", b"node-bbb", b"node-ccc"


class Ends:
    """An inbox and the links to it, served by one loop."""

    def __init__(self, keys, **options) -> None:
        self.keys = keys
        self.contexts: list = []
        self.inbox = LinkInbox(self.context(), keys, **options)
        self.messages: list = []
        self.events: list = []
        self.departed: list = []
        self._links: list = []
        self._raw: list = []
        self._poll = select.epoll()
        for descriptor in self.inbox.descriptors:
            self._poll.register(descriptor, select.EPOLLIN)
        self.reading = True

    def context(self):
        self.contexts.append(new_context())
        return self.contexts[-1]

    def links(self, own=HERE, keys=None, role=Role.NODE, **options) -> Links:
        made = Links(self.context(), own, keys or self.keys, role, **options)
        self._links.append(made)
        self._poll.register(made.descriptor, select.EPOLLIN)
        return made

    def raw(self, pair: KeyPair | None = None, name=b"", connect=True, **options):
        """Return a DEALER as a client might make one, connected."""
        made = self.context().socket(zmq.DEALER)
        self._raw.append(made)
        for option, value in options.items():
            made.setsockopt(getattr(zmq, option), value)
        if name:
            made.setsockopt(zmq.METADATA, b"X-zray:" + name)
        if pair is not None:
            secure_client(made, pair, self.inbox.server_key)
        if connect:
            made.connect(self.inbox.address)
        return made

    def tcp(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.inbox.port), timeout=10)
        self._raw.append(made)
        return made

    def turn(self, timeout_s=0.005) -> None:
        self._poll.poll(timeout_s)
        for each in self._links:
            self.events += each.events()
        while self.reading and (message := self.inbox.receive()) is not None:
            self.messages.append(message)
        while self.inbox.departed:
            self.departed.append(self.inbox.departed.popleft())

    def until(self, condition, what="", timeout_s=10.0):
        def turned():
            self.turn()
            return condition()

        return wait_until(turned, timeout_s, what=what, interval_s=0.0001)

    def states(self, peer=THERE):
        return [event.state for event in self.events if event.peer == peer]

    def headers(self):
        return [header for _sender, header, _payloads in self.messages]

    def assert_alive(self) -> None:
        """Somebody honest gets in and is heard."""
        own = os.urandom(8)
        link = self.links(own)
        link.connect(b"alive", self.inbox.address)
        assert link.send(b"alive", own)
        self.until(lambda: own in self.headers(), "a message of an honest node")

    def close(self) -> None:
        """Close everything; a second time does nothing."""
        if self._poll.closed:
            return
        for each in self._raw:
            each.close()
        for each in self._links:
            each.close()
        self.inbox.close()
        for context in self.contexts:
            context.destroy(0)
        self._poll.close()
