"""Who speaks to the GCS through the head's node: names, windows, links that end."""

from __future__ import annotations

from collections import deque

import pytest

from zray.brokers.gcs import relayed
from zray.brokers.gcs.relayed import (
    DEAD,
    RENEWALS_MAX,
    TAKEN,
    UNLINKED,
    WINDOW_BYTES,
    WINDOW_FRAMES,
    Ended,
    Peers,
    Said,
    news,
)
from zray.brokers.gcs.wire import RENEWED, pack
from zray.errors import RemoteProtocolError
from zray.protocol.packing import packb
from zray.protocol.roles import Role

HEAD = b"head" + bytes(4)
NODE = b"node" + bytes(4)
OTHER = b"othr" + bytes(4)


class Link:
    """A link that only does what it is told."""

    def __init__(self) -> None:
        self.coming: deque[tuple[bytes, list[bytes]]] = deque()
        self.sent: list[tuple[bytes, tuple[bytes, ...]]] = []
        self.cut: list[bytes] = []

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        return self.coming.popleft() if self.coming else None

    def broken(self) -> list[bytes]:
        cut, self.cut = self.cut, []
        return cut

    def send(self, peer: bytes, *frames: bytes) -> bool:
        self.sent.append((peer, frames))
        return True


class World:
    def __init__(self) -> None:
        self.link = Link()
        self.peers = Peers(self.link)

    def says(self, *frames: bytes, by: bytes = HEAD) -> Said | Ended | None:
        self.link.coming.append((by, list(frames)))
        said = self.peers.receive()
        self.peers.check()
        return said


@pytest.fixture
def world() -> World:
    made = World()
    assert made.says(NODE, b"node", b"hello") == Said(NODE, Role.NODE, NODE, b"hello")
    return made


def test_each_is_answered_where_it_spoke(world: World) -> None:
    assert world.says(b"own") == Said(HEAD, Role.NODE, b"", b"own")
    assert world.says(OTHER, b"client", b"x") == Said(OTHER, Role.CLIENT, OTHER, b"x")
    for peer in (HEAD, NODE, OTHER):
        assert world.peers.send(peer, b"answer")
    assert world.link.sent == [
        (HEAD, (b"answer",)),
        (HEAD, (NODE, b"answer")),
        (HEAD, (OTHER, b"answer")),
    ]


def test_a_window_that_is_full_refuses_that_peer_alone_until_its_link_has_taken(
    world: World,
) -> None:
    world.says(OTHER, b"node", b"x")
    for _ in range(WINDOW_FRAMES):
        assert world.peers.send(NODE, b"12")
    assert not world.peers.send(NODE, b"12")
    assert world.peers.send(OTHER, b"12")
    assert world.peers.send(HEAD, b"12")
    assert world.says(b"", news(TAKEN, NODE, 3, 6)) is None
    for _ in range(3):
        assert world.peers.send(NODE, b"12")
    assert not world.peers.send(NODE, b"12")
    world.peers.check()


def test_one_frame_larger_than_a_window_goes_and_the_next_waits(world: World) -> None:
    assert world.peers.send(NODE, bytes(WINDOW_BYTES + 1))
    assert not world.peers.send(NODE, b"x")
    world.says(b"", news(TAKEN, NODE, 1, WINDOW_BYTES + 1))
    assert world.peers.send(NODE, b"x")


def test_an_answer_to_a_beat_goes_though_the_window_is_full(world: World) -> None:
    world.says(NODE, b"node", b"frame")
    renewed = pack(RENEWED, bytes(8), bytes(16), 1.5, 1, 0, 7)
    assert world.peers.send(NODE, bytes(WINDOW_BYTES))
    assert not world.peers.send(NODE, b"not now")
    for _ in range(RENEWALS_MAX):
        assert world.peers.send(NODE, renewed)
    world.peers.check()
    for _ in range(WINDOW_FRAMES):
        world.peers.send(NODE, renewed)
    world.peers.check()
    assert not world.peers.send(NODE, renewed), "of these too there is a bound"


def test_all_peers_of_one_connection_together_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "RELAY_BYTES_MAX", 100)
    world.says(OTHER, b"node", b"x")
    assert world.peers.send(NODE, bytes(100))
    assert not world.peers.send(OTHER, b"x")
    assert world.says(b"", news(UNLINKED, NODE)) == Ended(NODE, is_dead=False)
    assert world.peers.send(OTHER, b"x")
    world.peers.check()


def test_a_link_that_ends_empties_its_window_and_is_told_in_order(world: World) -> None:
    assert world.peers.send(NODE, bytes(WINDOW_BYTES))
    world.link.coming.extend(
        [
            (HEAD, [NODE, b"node", b"before"]),
            (HEAD, [b"", news(UNLINKED, NODE)]),
            (HEAD, [NODE, b"node", b"after"]),
            (HEAD, [b"", news(DEAD, NODE)]),
        ]
    )
    told = [world.peers.receive() for _ in range(5)]
    assert told == [
        Said(NODE, Role.NODE, NODE, b"before"),
        Ended(NODE, is_dead=False),
        Said(NODE, Role.NODE, NODE, b"after"),
        Ended(NODE, is_dead=True),
        None,
    ]
    world.says(NODE, b"node", b"again")
    assert world.peers.send(NODE, b"x")


def test_more_taken_than_was_sent_is_what_an_earlier_gcs_had_sent(world: World) -> None:
    assert world.peers.send(NODE, b"123")
    world.says(b"", news(TAKEN, NODE, 50, 5000))
    world.says(b"", news(TAKEN, OTHER, 50, 5000))
    assert world.peers.send(NODE, b"123")


def test_with_the_head_s_connection_all_it_brought_are_cut_off_and_only_it_is_dead(
    world: World,
) -> None:
    world.link.cut = [HEAD]
    assert world.peers.broken() == [Ended(HEAD, is_dead=True), Ended(NODE, is_dead=False)]
    world.peers.check()


def test_who_brings_others_is_heard_with_whatever_it_says(world: World) -> None:
    assert world.peers.take_relay_heard()
    assert not world.peers.take_relay_heard()
    world.says(b"own")
    assert world.peers.take_relay_heard()
    world.says(b"alone", by=OTHER)
    assert not world.peers.take_relay_heard()


@pytest.mark.parametrize(
    "frames",
    [
        (b"x", b"y"),
        (b"", b""),
        (b"", packb([TAKEN, NODE, -1, 0])),
        (b"", packb([TAKEN, NODE, 0])),
        (b"", packb([9, NODE, 0, 0])),
        (b"", packb({})),
        (OTHER, b"king", b"x"),
        (b"", b"node", b"x"),
        (NODE, b"node", b"x", b"y"),
    ],
)
def test_what_is_malformed_is_refused_and_changes_nothing(
    world: World, frames: tuple[bytes, ...]
) -> None:
    with pytest.raises(RemoteProtocolError):
        world.says(*frames)
    world.peers.check()
    assert world.says(NODE, b"node", b"x") == Said(NODE, Role.NODE, NODE, b"x")


def test_another_connection_has_no_news_of_peers_that_it_does_not_bring(world: World) -> None:
    with pytest.raises(RemoteProtocolError):
        world.says(b"", news(DEAD, NODE), by=OTHER)
