"""Messages between processes of two nodes: in pieces and whole again, whatever is cut off between.

What    seal() and Reassembly against each other, with sources mixed and links that break off; what
        is malformed is refused and spoils nothing else.
Never   opens a socket.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.errors import RemoteProtocolError
from zray.protocol import envelopes
from zray.protocol.envelopes import (
    Reassembly,
    check_envelope,
    destination_node,
    destination_of,
    seal,
)
from zray.protocol.ids import node_id, process_id
from zray.protocol.limits import ENVELOPE_BYTES_MAX

HERE, THERE = node_id(b"here"), node_id(b"away")
TO = process_id(HERE, b"-to-")
ONE, TWO = process_id(THERE, b"-one"), process_id(THERE, b"-two")

messages = st.lists(st.binary(max_size=40), min_size=1, max_size=4)


def opened(reassembly: Reassembly, *sealed: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Return (source, frames) of all messages that these envelopes complete."""
    found = [reassembly.add(envelope) for envelope in sealed]
    return [(each[0], [each[1], *each[2]]) for each in found if each is not None]


@pytest.fixture(scope="module", autouse=True)
def short_pieces() -> object:
    """Cut after a few bytes: what is tested does not depend on how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelopes, "ENVELOPE_BYTES_MAX", 16)
        yield


@given(st.lists(st.tuples(st.sampled_from((ONE, TWO)), messages), max_size=6), st.randoms())
def test_messages_of_many_sources_come_whole_and_in_order(said, random):
    queues = {ONE: [], TWO: []}
    for source, frames in said:
        queues[source] += seal(TO, source, frames)
    reassembly = Reassembly()
    found = []
    while any(queues.values()):
        queue = queues[random.choice([source for source, queue in queues.items() if queue])]
        found += opened(reassembly, queue.pop(0))
    for source in queues:
        assert [frames for who, frames in found if who == source] == [
            frames for who, frames in said if who == source
        ]


@given(messages, st.integers(0, 20), messages)
def test_a_message_that_was_broken_off_is_forgotten_with_the_next_one(lost, count, frames):
    reassembly = Reassembly()
    cut = seal(TO, ONE, lost)[:-1][:count]
    assert opened(reassembly, *cut) == []
    assert opened(reassembly, *seal(TO, ONE, frames)) == [(ONE, frames)]


def test_nothing_goes_on_with_a_message_that_another_one_has_ended():
    reassembly = Reassembly()
    first, second, *_rest = seal(TO, ONE, [b"x" * 100])
    reassembly.add(first)
    assert opened(reassembly, *seal(TO, ONE, [b"whole"])) == [(ONE, [b"whole"])]
    with pytest.raises(RemoteProtocolError, match="piece"):
        reassembly.add(second)


def test_a_gap_in_a_message_is_seen_and_the_next_message_is_whole():
    reassembly = Reassembly()
    first, _second, *rest = seal(TO, ONE, [b"x" * 100])
    assert reassembly.add(first) is None
    for piece in rest:
        with pytest.raises(RemoteProtocolError, match="piece"):
            reassembly.add(piece)
    assert opened(reassembly, *seal(TO, ONE, [b"y" * 100])) == [(ONE, [b"y" * 100])]


def test_what_a_dead_process_had_begun_is_not_ended_by_another_one():
    reassembly = Reassembly()
    begun = seal(TO, ONE, [b"x" * 100])
    reassembly.add(begun[0])
    reassembly.forget(ONE)
    with pytest.raises(RemoteProtocolError, match="piece"):
        reassembly.add(begun[1])


def test_a_message_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(envelopes, "EDGE_MESSAGE_BYTES_MAX", 100)
    reassembly = Reassembly()
    for number in range(6):
        assert reassembly.add(TO + ONE + struct.pack("<I", number << 1 | 1) + bytes(16)) is None
    with pytest.raises(RemoteProtocolError, match="more than"):
        reassembly.add(TO + ONE + struct.pack("<I", 6 << 1 | 1) + bytes(16))
    assert opened(reassembly, *seal(TO, ONE, [b"next"])) == [(ONE, [b"next"])]


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x90", b"\x01", b"\x91\x01", b"\x91\xa1a", b"\x92\xc4"]
)
def test_a_body_that_is_no_message_is_refused(body):
    with pytest.raises(RemoteProtocolError):
        Reassembly().add(TO + ONE + bytes(4) + body)
    with pytest.raises(RemoteProtocolError):
        Reassembly().add((TO + ONE)[: len(body)])


def test_an_envelope_is_its_sources_alone():
    (envelope,) = seal(TO, ONE, [b"header"])
    assert destination_of(envelope) == TO
    assert destination_node(envelope) == HERE
    check_envelope(envelope, ONE)
    check_envelope(memoryview(envelope), THERE[:4])
    for other in (TWO, TO, HERE[:4]):
        with pytest.raises(RemoteProtocolError, match="somebody else"):
            check_envelope(envelope, other)
    for malformed in (b"", envelope[:20], envelope + bytes(17)):
        with pytest.raises(RemoteProtocolError):
            check_envelope(malformed, ONE)


def test_most_messages_take_one_envelope(monkeypatch):
    monkeypatch.setattr(envelopes, "ENVELOPE_BYTES_MAX", ENVELOPE_BYTES_MAX)
    assert len(seal(TO, ONE, [b"h", b"x" * (ENVELOPE_BYTES_MAX - 20)])) == 1
    assert len(seal(TO, ONE, [b"h", b"x" * (ENVELOPE_BYTES_MAX + 1)])) == 2
