"""Edges between two processes' ends in one process, and what a stranger can do to one.

What    Messages of all sizes, long frames read into place, tokens, limits on whoever has shown
        none, and the count of what a peer does not read.
Never   starts a node.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.waiting import wait_until
from zray.net import edges, mailbox, tokens
from zray.net.deliveries import Deliveries
from zray.net.edges import Edges
from zray.net.mailbox import Message
from zray.protocol import frames, messages
from zray.protocol.envelopes import seal
from zray.protocol.ids import node_id, process_id
from zray.protocol.limits import EDGE_MESSAGE_BYTES_MAX, UNNAMED_CONNECTIONS_MAX

SECRET, NODE = b"s" * 32, node_id(b"home")
ONE, TWO, THREE = (process_id(NODE, own) for own in (b"-one", b"-two", b"-tre"))
ELSEWHERE = process_id(node_id(b"away"), b"-one")
FORWARDED = frames.pack(messages.FORWARDED, payloads=1)
READY_ALONE = b"\x05READY"


class Ends:
    """Processes' ends of edges and mailboxes, below one directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.context = mailbox.new_context()
        self.made: list[Edges] = []
        self.peers: list[mailbox.Peers] = []

    def __call__(self, process: bytes, secret: bytes = SECRET) -> Edges:
        endpoint = mailbox.ipc_endpoint(self.directory, process.hex())
        made = Edges(
            mailbox.Inbox(self.context, endpoint),
            mailbox.Peers(self.context),
            process,
            on_stuck=lambda: None,
        )
        made.authorize(secret, NODE)
        made.timeout_s = 0.005
        self.made.append(made)
        return made

    def connect(self, process: bytes) -> socket.socket:
        """Connect to a process as a stranger does."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(os.path.join(self.directory, process.hex() + ".e"))
        return sock

    def close(self) -> None:
        for each in self.made:
            each.close()
        for peers in self.peers:
            peers.close()
        self.context.destroy(0)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with tempfile.TemporaryDirectory() as directory:
        made = Ends(directory)
        yield made
        made.close()


def arrives(receiver: Edges, *others: Edges) -> Message:
    """Return the next message; the others write meanwhile what they have kept."""

    def look() -> Message | None:
        for other in others:
            assert other.receive() is None
        return receiver.receive(blocking=True)

    message = wait_until(look)
    assert message is not None
    return message


def frame(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return bytes((flags | 2,)) + struct.pack(">Q", len(body)) + body
    return bytes((flags, len(body))) + body


def ready(identity: bytes, token: bytes) -> bytes:
    items = [(b"Identity", identity), (b"X-Token", token), (b"Socket-Type", b"DEALER")]
    return READY_ALONE + b"".join(
        bytes((len(name),)) + name + struct.pack(">I", len(value)) + value for name, value in items
    )


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
HELLO = GREETING + frame(4, ready(TWO, tokens.token(SECRET, TWO)))


# -- messages --------------------------------------------------------------------------------------


def test_messages_of_both_directions_come_in_order(ends: Ends) -> None:
    one, two = ends(ONE), ends(TWO)
    one.connect(TWO, two.endpoint)
    for number in range(300):
        one.send(TWO, b"header %d" % number, [b"x" * number, b""] if number % 2 else [])
    for number in range(300):
        payloads = [b"x" * number, b""] if number % 2 else []
        assert arrives(two, one) == (ONE, b"header %d" % number, payloads)
    assert two.send(ONE, b"back")
    assert arrives(one) == (TWO, b"back", [])
    assert not two.send(THREE, b"to nobody")


def test_to_a_process_of_another_node_the_way_is_the_one_that_was_given(ends: Ends) -> None:
    one = ends(ONE)
    assert not one.send(ELSEWHERE, b"header"), "nobody forwards"
    forwarded: list[tuple[bytes, list[bytes]]] = []

    def forward(peer: bytes, parts: list[bytes]) -> bool:
        forwarded.append((peer, parts))
        return True

    one.forward = forward
    one.connect(ELSEWHERE, "ipc:///nowhere")
    assert one.knows(ELSEWHERE)
    assert one.send(ELSEWHERE, b"header", [b"payload"])
    assert not one.send(TWO, b"to one of our own node")
    assert forwarded == [(ELSEWHERE, [b"header", b"payload"])]


def test_what_the_node_brings_of_others_comes_as_theirs_and_one_bad_message_spoils_no_other(
    ends: Ends,
) -> None:
    one = ends(ONE)
    deliveries = Deliveries(NODE, SECRET, FORWARDED)
    try:
        long = seal(ONE, ELSEWHERE, [b"long", bytes(3 << 20)])
        assert len(long) > 1
        deliveries.send(ONE, one.endpoint, [*long, ONE + ELSEWHERE + bytes(4) + b"no message"])
        deliveries.send(ONE, one.endpoint, seal(ONE, ELSEWHERE, [b"header", b"payload"]))

        def look() -> Message | None:
            deliveries.serve()
            return one.receive(blocking=True)

        assert wait_until(look) == (ELSEWHERE, b"long", [bytes(3 << 20)])
        assert wait_until(look) == (ELSEWHERE, b"header", [b"payload"])
        assert one.malformed == 1
        assert not deliveries.send(TWO, "ipc:///nowhere", seal(TWO, ELSEWHERE, [b"to nobody"]))
    finally:
        deliveries.close()


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, (1 << 18) - 9, 1 << 18, (1 << 18) + 1])
def test_a_frame_of_any_size_arrives_whole(ends: Ends, size: int) -> None:
    one, two = ends(ONE), ends(TWO)
    one.connect(TWO, two.endpoint)
    payload = os.urandom(size)
    for _ in range(3):
        one.send(TWO, b"header", [payload, b"behind"])
    for _ in range(3):
        assert arrives(two, one) == (ONE, b"header", [payload, b"behind"])


def test_a_long_frame_is_read_into_place_and_not_copied_with_each_piece(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ends(ONE), ends(TWO)
    one.connect(TWO, two.endpoint)
    parsed: list[int] = []
    parse = Edges._parse

    def counted(self: Edges, edge: edges.Edge, data: bytes) -> bytes:
        parsed.append(len(data))
        return parse(self, edge, data)

    monkeypatch.setattr(Edges, "_parse", counted)
    payload = os.urandom(1 << 20) * 16
    one.send(TWO, b"header", [payload])
    one.send(TWO, b"next")
    sender, header, payloads = arrives(two, one)
    assert (sender, header, payloads == [payload]) == (ONE, b"header", True)
    assert arrives(two, one) == (ONE, b"next", [])
    assert sum(parsed) < 1 << 20


def test_a_frame_beyond_the_limit_ends_the_edge(ends: Ends) -> None:
    two = ends(ONE)
    with ends.connect(ONE) as sock:
        sock.sendall(HELLO + frame(0, b"fine"))
        assert arrives(two) == (TWO, b"fine", [])
        sock.sendall(b"\x02" + struct.pack(">Q", EDGE_MESSAGE_BYTES_MAX + 1))
        wait_until(lambda: two.receive() is None and two.malformed == 1)
    assert not two.knows(TWO)


def test_a_message_of_endless_frames_ends_the_edge(ends: Ends) -> None:
    one = ends(ONE)
    with ends.connect(ONE) as sock:
        sock.sendall(HELLO + frame(1, b"more") * 2000)
        wait_until(lambda: one.receive() is None and one.malformed == 1)


# -- strangers -------------------------------------------------------------------------------------

STRANGERS = {
    "no token": GREETING + frame(4, ready(TWO, b"")),
    "a token of nobody": GREETING + frame(4, ready(TWO, bytes(32))),
    "a token of another process": GREETING + frame(4, ready(TWO, tokens.token(SECRET, THREE))),
    "a token of another node": GREETING + frame(4, ready(TWO, tokens.token(b"t" * 32, TWO))),
    "no READY": GREETING,
    "another command": GREETING + frame(4, b"\x04PING\0\0"),
    "a long READY": GREETING + frame(4, ready(TWO, tokens.token(SECRET, TWO)) + bytes(600)),
    "a cut READY": GREETING + frame(4, ready(TWO, tokens.token(SECRET, TWO))[:30]),
    "a long frame": GREETING + b"\x02" + struct.pack(">Q", 1 << 28),
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_who_shows_no_token_is_refused_before_any_message(ends: Ends, said: bytes) -> None:
    one = ends(ONE)
    with ends.connect(ONE) as sock:
        sock.sendall(said + frame(0, b"believe me"))

        def refused() -> bool:
            assert one.receive() is None
            return one.malformed == 1

        wait_until(refused)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1000):
                pass
    assert not one.knows(TWO)


def test_the_way_to_a_process_is_not_taken_by_who_says_it_is_that_process(ends: Ends) -> None:
    one, two = ends(ONE), ends(TWO)
    with ends.connect(ONE) as sock:
        sock.sendall(GREETING + frame(4, ready(TWO, bytes(32))))
        wait_until(lambda: one.receive() is None and one.malformed == 1)
    one.connect(TWO, two.endpoint)
    one.send(TWO, b"for you")
    assert arrives(two) == (ONE, b"for you", [])


def test_whoever_listens_at_a_process_s_place_is_not_believed(ends: Ends) -> None:
    one, false_two = ends(ONE), ends(TWO, secret=b"another" * 4)
    one.connect(TWO, false_two.endpoint)
    one.send(TWO, b"for two")
    wait_until(lambda: false_two.receive() is None and false_two.malformed == 1)
    wait_until(lambda: one.receive() is None and one.malformed == 1)
    assert not one.knows(TWO)


def test_a_plain_zeromq_socket_with_the_token_is_a_peer(ends: Ends) -> None:
    import zmq

    one = ends(ONE)
    dealer = ends.context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.ROUTING_ID, TWO)
    dealer.setsockopt(zmq.METADATA, b"X-Token:" + tokens.token(SECRET, TWO))
    dealer.connect(one.endpoint + ".e")
    dealer.send_multipart([b"header", b"payload"])
    assert arrives(one) == (TWO, b"header", [b"payload"])
    one.send(TWO, b"answer", [b"payload"])
    assert dealer.poll(5000)
    assert dealer.recv_multipart() == [b"answer", b"payload"]
    dealer.close(0)


def test_half_open_connections_keep_nobody_out(ends: Ends) -> None:
    one, two = ends(ONE), ends(TWO)
    with contextlib.ExitStack() as stack:
        for _ in range(UNNAMED_CONNECTIONS_MAX + 20):
            stack.enter_context(ends.connect(ONE)).sendall(GREETING[:30])
            assert one.receive() is None
        assert one.malformed == 20
        two.connect(ONE, one.endpoint)
        two.send(ONE, b"let me in")
        assert arrives(one) == (TWO, b"let me in", [])


def test_who_shows_no_token_in_time_is_refused(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "HELLO_TIMEOUT_S", 0.03)
    one, two = ends(ONE), ends(TWO)
    two.connect(ONE, one.endpoint)
    two.send(ONE, b"hello")
    assert arrives(one) == (TWO, b"hello", [])
    with ends.connect(ONE), ends.connect(ONE):
        wait_until(lambda: one.receive() is None and one.malformed == 2)
    two.send(ONE, b"still here")
    assert arrives(one) == (TWO, b"still here", [])


# -- the mailbox -----------------------------------------------------------------------------------


def test_only_the_node_is_believed_at_the_mailbox(ends: Ends) -> None:
    one = ends(ONE)
    numbers = itertools.count()

    def sender(routing_id: bytes) -> Callable[[bytes], bool]:
        peers = mailbox.Peers(ends.context, routing_id)
        ends.peers.append(peers)
        name = b"%d" % next(numbers)
        peers.connect(name, one.endpoint)
        return lambda header: peers.send(name, header, [b"payload"])

    node = sender(tokens.routing_id(SECRET, NODE))
    strangers = [
        sender(each)
        for each in (NODE, NODE + bytes(32), ONE, tokens.routing_id(SECRET, ONE), b"x" * 200)
    ]
    node(b"first")
    assert arrives(one) == (NODE, b"first", [b"payload"])
    for stranger in strangers:
        stranger(b"believe me")
    wait_until(lambda: one.receive() is None and one.malformed == len(strangers))
    node(b"second")
    assert arrives(one) == (NODE, b"second", [b"payload"])


# -- what is kept ----------------------------------------------------------------------------------


def test_what_a_peer_does_not_read_is_counted_until_it_does(ends: Ends) -> None:
    one, two = ends(ONE), ends(TWO)
    one.connect(TWO, two.endpoint)
    payload = bytes(1 << 20)
    for _ in range(8):
        one.send(TWO, b"header", [payload])
    assert 7 << 20 < one.backlog_bytes <= 8 << 20 | 1 << 10
    assert one.stuck == 1
    for _ in range(8):
        assert arrives(two, one) == (ONE, b"header", [payload])
    assert (one.backlog_bytes, one.stuck) == (0, 0)


def test_what_a_dead_peer_has_not_read_is_let_go(ends: Ends) -> None:
    one, two = ends(ONE), ends(TWO)
    one.connect(TWO, two.endpoint)
    one.send(TWO, b"header", [bytes(1 << 22)])
    assert one.backlog_bytes > 1 << 20
    two.close()
    wait_until(lambda: one.receive() is None and one.backlog_bytes == 0)
    assert one.stuck == 0
