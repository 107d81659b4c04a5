"""What passes through a node: to the right one, in order, and only what is its sender's own.

What    Relays between lists that stand for links and streams; a wake of the node that only carries.
Never   opens a socket.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import MagicMock

import pytest

from zray.brokers.deaths import process_gone
from zray.brokers.node import Node
from zray.brokers.relays import RELAY_ONE, Relays
from zray.errors import RemoteProtocolError
from zray.net.links import LINK_BACKLOG_BYTES_MAX
from zray.net.poller import READABLE, WRITABLE
from zray.protocol import frames, link_messages, messages
from zray.protocol.envelopes import Reassembly, seal
from zray.protocol.ids import node_id, process_id

HERE, B, C = node_id(b"here"), node_id(b"bbbb"), node_id(b"cccc")
ME, YOU = process_id(HERE, b"-me-"), process_id(HERE, b"-you")
AT_B, AT_C = process_id(B, b"-one"), process_id(C, b"-one")


class Stub:
    """Attributes as given."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


class World:
    """A node with two processes, and what stands for its links, streams and poller."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, list[bytes]]] = []
        self.delivered: list[tuple[bytes, list[bytes]]] = []
        self.refused: list[bytes] = []
        self.queued = {B: 0, C: 0}
        self.listening: dict[int, int] = {}
        self.backlog_bytes = 0
        self.ended: list[tuple[str, bytes]] = []
        self.processes = {
            identity: Stub(
                identity=identity,
                details={"endpoint": identity.hex()},
                calls=Stub(fileno=lambda number=number: number, outbound_bytes=0),
            )
            for number, identity in enumerate((ME, YOU))
        }
        node: Any = Stub(
            process=HERE,
            processes=Stub(by_id=self.processes),
            poller=Stub(modify=self.listening.__setitem__),
            refuse=lambda process, _error: self.refused.append(process.identity),
            kill_worker=lambda process: self.ended.append(("killed", process)),
            process_gone=lambda process, _reason: self.ended.append(("gone", process)),
        )
        cluster: Any = Stub(
            node=node,
            members={node: Stub(link=node) for node in (B, C)},
            links=Stub(queued=lambda link: (0, self.queued[link])),
            deliveries=Stub(send=self._deliver, backlog_bytes=lambda _process: self.backlog_bytes),
            send_header=self._send,
        )
        self.relays = Relays(cluster)

    def _send(self, node: bytes, header: bytes, sealed: tuple[bytes, ...]) -> bool:
        self.sent.append((node, header, list(sealed)))
        return True

    def _deliver(self, process: bytes, endpoint: str, sealed: list[bytes]) -> bool:
        assert endpoint == process.hex()
        self.delivered.append((process, list(sealed)))
        return True

    def forward(self, source: bytes, *sealed: bytes) -> None:
        process: Any = self.processes[source]
        calls = [frames.pack(messages.FORWARD, each) for each in sealed]
        assert list(self.relays.passed(process, calls)) == []

    def arrived(self, node: bytes) -> list[bytes]:
        """Return what was sent to a node, each RELAY as its header says."""
        found: list[bytes] = []
        for to, header, sealed in self.sent:
            assert frames.unpack(header)[1:3] == [link_messages.RELAY, len(sealed)]
            if to == node:
                found += sealed
        return found


@pytest.fixture
def world() -> World:
    return World()


def say(source: bytes, to: bytes, *said: bytes) -> list[bytes]:
    return [envelope for each in said for envelope in seal(to, source, [each])]


def test_one_message_is_one_relay_with_the_header_that_receivers_know_by_its_bytes(world):
    (envelope,) = say(ME, AT_B, b"hello")
    world.forward(ME, envelope)
    assert world.sent == [(B, RELAY_ONE, [envelope])]


def test_many_messages_go_to_each_node_together_and_in_order(world):
    to_b, to_c = say(ME, AT_B, *(b"%d" % n for n in range(600))), say(ME, AT_C, b"x", b"y")
    world.forward(ME, to_c[0], *to_b, to_c[1])
    assert world.arrived(B) == to_b
    assert world.arrived(C) == to_c
    assert len(world.sent) == 4, "as few messages as their bounds allow"


def test_a_relay_is_not_longer_than_a_link_bears(world):
    sealed = seal(AT_B, ME, [b"x" * (200 << 20)])
    world.forward(ME, *sealed)
    assert world.arrived(B) == sealed
    assert max(sum(map(len, each)) for _to, _header, each in world.sent) < 4 << 20


def test_what_a_process_says_in_anothers_name_or_to_its_own_node_is_refused(world):
    good = say(ME, AT_B, b"good")
    world.forward(ME, *say(YOU, AT_B, b"liar"), *say(ME, YOU, b"near"), b"short", *good)
    assert world.refused == [ME, ME, ME]
    assert world.arrived(B) == good
    assert world.arrived(HERE) == []


def test_a_call_of_another_kind_has_its_turn_between_what_was_said_before_and_after_it(world):
    one, two = say(ME, AT_B, b"before", b"after")
    hold = frames.pack(messages.HOLD, [], False)
    calls = [frames.pack(messages.FORWARD, one), hold, b"", frames.pack(messages.FORWARD, two)]
    others = world.relays.passed(world.processes[ME], calls)
    assert next(others) == hold
    assert world.arrived(B) == [one]
    assert list(others) == [b""]
    assert world.arrived(B) == [one, two]


def test_a_process_that_does_not_read_what_comes_is_ended(world):
    world.backlog_bytes = LINK_BACKLOG_BYTES_MAX
    world.relays.hand_over(B, say(AT_B, ME, b"fits"))
    assert world.ended == []
    world.backlog_bytes += 1
    world.relays.hand_over(B, say(AT_B, ME, b"more"))
    assert world.ended == [("killed", ME), ("gone", ME)]


def test_what_comes_goes_to_the_processes_in_order_and_past_the_dead(world):
    one, two = say(AT_B, ME, b"1", b"2"), say(AT_B, YOU, b"3")
    dead = say(AT_B, process_id(HERE, b"dead"), b"4")
    world.relays.hand_over(B, [one[0], *two, *dead, one[1]])
    assert sorted(world.delivered) == sorted([(ME, one), (YOU, two)])


def test_a_node_speaks_for_its_own_processes_alone(world):
    with pytest.raises(RemoteProtocolError, match="somebody else"):
        world.relays.hand_over(C, say(AT_B, ME, b"liar"))
    assert world.delivered == []


def test_what_the_node_itself_says_comes_from_it(world):
    assert world.relays.say(AT_B, [b"header", b"payload"])
    (envelope,) = world.arrived(B)
    assert Reassembly().add(envelope) == (HERE, b"header", [b"payload"])


def test_who_sends_more_than_a_link_takes_is_not_read_until_it_has(world):
    large = seal(AT_B, ME, [b"x" * 100_000])
    world.queued[B] = LINK_BACKLOG_BYTES_MAX // 4
    world.forward(ME, *large)
    assert world.listening == {}, "there is room yet"
    world.queued[B] = LINK_BACKLOG_BYTES_MAX * 3 // 4
    world.forward(ME, *large)
    world.forward(YOU, *say(YOU, AT_C, b"x" * 100_000))
    assert world.listening == {0: 0}, "the sender alone, and only of that node"
    world.relays.resume()
    assert world.listening == {0: 0}
    world.queued[B] = 0
    world.processes[ME].calls.outbound_bytes = 1
    world.relays.resume()
    assert world.listening == {0: READABLE | WRITABLE}
    assert world.relays.paused == []


def test_whoever_waits_is_read_again_when_the_node_is_gone_and_forgotten_when_it_dies(world):
    world.queued[B] = LINK_BACKLOG_BYTES_MAX
    for each in (ME, YOU):
        world.forward(each, *seal(AT_B, each, [b"x" * 100_000]))
    assert world.listening == {0: 0, 1: 0}
    del world.processes[YOU]
    world.relays._cluster.members.clear()
    world.relays.resume()
    assert world.listening == {0: READABLE, 1: 0}
    assert world.relays.paused == []


class Loop:
    """A node's loop whose wakes are counted."""

    def __init__(self) -> None:
        self.carried = 0
        self.node: Any = Node.__new__(Node)
        self.node.callbacks = {}
        self.node.carriers = {1, 2}
        cluster: Any = Stub(has_more=True, carry=self._carry)
        self.node.cluster = cluster

    def _carry(self) -> None:
        self.carried += 1

    def wakes(self, *descriptors: int) -> bool:
        found: bool = self.node._only_carries([(each, READABLE) for each in descriptors])
        return found


def test_a_wake_in_which_nothing_changes_is_over_when_all_is_carried():
    loop = Loop()
    assert loop.wakes(1, 2)
    assert loop.carried == 1


def test_a_wake_with_anything_else_is_left_to_the_whole_loop():
    loop = Loop()
    loop.node.callbacks = {1: pytest.fail}
    assert not loop.wakes(1, 3), "a descriptor that nobody said carries"
    assert not loop.wakes(), "the time is over"
    assert loop.carried == 0


def test_a_stream_that_brings_a_call_of_its_own_ends_the_short_wake_before_links_are_read():
    loop = Loop()
    loop.node.callbacks = {1: lambda: setattr(loop.node, "stirred", True)}
    assert not loop.wakes(1, 2)
    assert loop.carried == 0, "streams before links"


def test_a_message_of_a_node_for_a_node_ends_the_short_wake():
    loop = Loop()
    loop.node.cluster.carry = lambda: setattr(loop.node, "stirred", True)
    assert not loop.wakes(2)
    loop.node.cluster.carry = lambda: None
    assert loop.wakes(2), "only that one wake"


def test_the_last_words_of_a_process_to_other_nodes_go_on_and_the_rest_is_obeyed_in_order(world):
    sealed = say(ME, AT_B, b"result")
    hold = frames.pack(messages.HOLD, [], False)
    words = [hold, frames.pack(messages.FORWARD, *sealed)]
    process = world.processes[ME]
    process.__dict__.update(role="worker", acquainted=set(), lifeline=MagicMock())
    process.calls = MagicMock(drain=lambda: (words, False))
    node = MagicMock(cluster=MagicMock(relays=world.relays), embedded=False)
    node.scheduler.failed_starts = 0
    node.processes.by_id = {ME: process}
    node.own_calls = partial(Node.own_calls, node)
    process_gone(node, ME, "killed")
    node.handle_call.assert_called_once_with(process, hold)
    assert world.arrived(B) == sealed
