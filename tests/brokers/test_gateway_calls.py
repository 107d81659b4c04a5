"""The door for gateways: only messages that were looked at as a whole come through it.

What    Envelopes of one gateway in any order and any pieces, against a reader behind the door.
Caller  pytest.
Never   opens a socket.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.brokers import gateway_calls
from zray.brokers.gateway_calls import GatewayCalls
from zray.brokers.link_roles import RoleError
from zray.errors import RemoteProtocolError
from zray.protocol import envelopes
from zray.protocol.envelopes import Reassembly, seal

PEER = b"gate" + bytes(4)
DRIVER, OTHER = b"gatedrv1", b"gatedrv2"
WORKER, SECOND = b"node0001", b"node0002"
FINE, CODE = b"fine" * 40, b"code" * 40


class Door:
    """A door that lets in what does not begin with code, and who stands behind it."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes, bytes]] = []
        self.calls = GatewayCalls(self.refuse)
        self.readers = {WORKER: Reassembly(), SECOND: Reassembly()}
        self.read: list[tuple[bytes, bytes, bytes]] = []

    def refuse(self, destination: bytes, source: bytes, parts: list[bytes]) -> bool:
        self.seen.append((destination, source, parts[0]))
        return parts[0].startswith(b"code")

    def bring(self, *sealed: bytes) -> None:
        """Bring envelopes; whoever they pass to puts them together."""
        for envelope in self.calls.admitted(PEER, sealed):
            destination = envelopes.destination_of(envelope)
            message = self.readers[destination].add(envelope)
            if message is not None:
                self.read.append((destination, message[0], message[1]))


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zray.protocol.envelopes.ENVELOPE_BYTES_MAX", 64)


def test_a_message_in_pieces_comes_through_when_all_of_it_is_fine() -> None:
    door = Door()
    *begun, last = seal(WORKER, DRIVER, [FINE])
    assert len(begun) >= 2
    door.bring(*begun)
    assert door.read == []
    door.bring(*seal(WORKER, OTHER, [b"short"]))  # Another of its processes, in between.
    door.bring(last)
    assert door.read == [(WORKER, OTHER, b"short"), (WORKER, DRIVER, FINE)]
    door.bring(*seal(WORKER, DRIVER, [CODE]))
    assert len(door.read) == 2


def test_pieces_for_several_processes_are_a_lie() -> None:
    door = Door()
    first, second, *_rest = seal(WORKER, DRIVER, [FINE])
    door.bring(first)
    with pytest.raises(RoleError, match="several processes"):
        door.bring(SECOND + second[8:])


def test_a_message_without_end_is_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_calls, "INCOMPLETE_BYTES_MAX", 200)
    door = Door()
    sealed = seal(WORKER, DRIVER, [bytes(10_000)])
    with pytest.raises(RoleError, match="more begun messages"):
        list(map(door.bring, sealed))


def _pieces() -> list[bytes]:
    return [
        envelope
        for destination in (WORKER, SECOND)
        for source in (DRIVER, OTHER)
        for message in (FINE, CODE, b"fine", b"code")
        for envelope in _sealed(destination, source, message)
    ]


def _sealed(destination: bytes, source: bytes, message: bytes) -> list[bytes]:
    with patch.object(envelopes, "ENVELOPE_BYTES_MAX", 64):
        return seal(destination, source, [message])


PIECES = _pieces()


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_whatever_pieces_come_nobody_reads_what_was_not_seen_and_let_in(
    sealed: list[bytes],
) -> None:
    door = Door()
    for envelope in sealed:
        try:
            door.bring(envelope)
        except RoleError:
            break  # The gateway is cut off, with all that it had begun.
        except RemoteProtocolError as error:  # Of a reader: pieces that do not fit have come to it.
            raise AssertionError("the door has let in what its reader can't read") from error
    allowed = [each for each in door.seen if not each[2].startswith(b"code")]
    assert door.read == allowed
