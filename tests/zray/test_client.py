"""The client shell: what is sent, once and in order.

What    flush() while another thread adds to what is sent.
Never   opens a socket.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from zray.client import Client
from zray.protocol import messages
from zray.session.session import Session

ME, NODE, WORKER = b"a-client", b"the-node", b"worker-1"


class Streams:
    """The node's stream and the ways to peers; while the stream is written, somebody submits."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sent: list[bytes] = []

    def send_all(self, _calls: list[bytes]) -> None:
        self.session.outbox.message(WORKER, messages.PING)

    def send(self, peer: bytes, _header: bytes, _payloads: Sequence[bytes] = ()) -> bool:
        self.sent.append(peer)
        return True


def test_a_message_added_while_calls_are_written_is_sent_once() -> None:
    """It was sent by this flush and by the next one: tasks ran twice."""
    client = Client.__new__(Client)
    client.session = Session(ME, NODE, lambda _what, _reason: b"\x02")
    client.lock, client.send_lock = threading.RLock(), threading.Lock()
    client._sleeps_forever = False
    client._forwarded = []
    client.calls = client.peers = streams = Streams(client.session)  # type: ignore[assignment]
    client.session.outbox.call(messages.GOODBYE)
    client.flush()
    client.flush()
    assert streams.sent == [WORKER]
