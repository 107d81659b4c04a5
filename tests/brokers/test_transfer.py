"""The transfer machine: priorities, budget, credit, partial holders, lost sources, the wire.

What    Each rule of the machine alone, on the network of queues of transfer_world.py.
Caller  pytest.
Never   opens a socket.
"""

from __future__ import annotations

import pytest

from tests.brokers.transfer_world import MIB, SPACE, World, name_of
from zray.brokers.transfer_pulls import PULLS_MAX, RETRY_S, SILENCES_MAX, STALL_S, WINDOW_BYTES
from zray.brokers.transfer_serving import READER_IDLE_S, SEND_BYTES
from zray.brokers.transferring import Arrived, Failed, Priority, SendChunk
from zray.errors import RemoteProtocolError
from zray.protocol.chunks import Ask, Chunk, Drop, Gone, Have, pack, unpack

OBJECT = name_of(1)


def test_an_object_arrives_whole_and_nothing_stays_behind():
    world = World()
    world[0].store(OBJECT, 20 * MIB + 5)
    world[1].want(OBJECT, 20 * MIB + 5, [world[0].name])
    world.run()
    assert isinstance(world[1].ended[0], Arrived)
    assert world[0].transfer.idle
    assert world[1].transfer.idle
    assert world[0].pins == {SPACE: 0}


def test_two_wants_for_one_object_are_one_pull():
    world = World()
    world[0].store(OBJECT, 3 * MIB)
    world[1].want(OBJECT, 3 * MIB, [world[0].name], Priority.PREFETCH)
    world[1].want(OBJECT, 3 * MIB, [world[0].name], Priority.GET)
    world.run()
    assert len(world[1].ended) == 1
    assert sum(isinstance(message, SendChunk) for _, _, message in world.carried) == 3


def test_what_is_outstanding_at_a_source_stays_within_the_window():
    world = World()
    world[1].want(OBJECT, 100 * MIB, [world[0].name])
    world[1].want(name_of(2), 50 * MIB, [world[0].name])
    world[1].settle()
    for _ in range(len(world[1].allocating)):
        world[1].answer_allocate()
    world[1].settle()
    asked = [ask for queue in world.links.values() for ask in queue]
    assert sum(len(ask.chunks) for ask in asked) * MIB == WINDOW_BYTES


def test_a_get_is_asked_for_before_what_was_wanted_earlier_with_less_haste():
    world = World()
    prefetched, got = name_of(1), name_of(2)
    world[1].want(prefetched, 30 * MIB, [world[0].name], Priority.PREFETCH)
    world[1].want(got, 4 * MIB, [world[0].name], Priority.GET)
    world[1].settle()
    world[1].answer_allocate()
    world[1].answer_allocate()
    world[1].settle()
    asked = [(ask.object, len(ask.chunks)) for ask in world.links[world[1].name, world[0].name]]
    assert asked == [(got, 4), (prefetched, 4)]


def test_equals_take_turns_at_a_source():
    world = World()
    for number in (1, 2):
        world[1].want(name_of(number), 30 * MIB, [world[0].name])
    world[1].settle()
    world[1].answer_allocate()
    world[1].answer_allocate()
    world[1].settle()
    asked = [len(ask.chunks) for ask in world.links[world[1].name, world[0].name]]
    assert asked == [4, 4]


def test_the_budget_bounds_what_is_pulled_at_a_time_but_not_a_single_giant():
    world = World(budget_bytes=10 * MIB)
    for number, size in ((1, 6), (2, 6), (3, 50)):
        world[0].store(name_of(number), size * MIB)
        world[1].want(name_of(number), size * MIB, [world[0].name])
    world[1].settle()
    assert len(world[1].allocating) == 1
    world.run()
    assert [type(ended) for ended in world[1].ended] == [Arrived] * 3


def test_the_number_of_pulls_at_a_time_is_bounded():
    world = World()
    for number in range(PULLS_MAX + 10):
        world[1].want(name_of(number), 100, [world[0].name])
    world[1].settle()
    assert len(world[1].allocating) == PULLS_MAX


def test_a_get_takes_the_memory_of_prefetches_which_begin_again_later():
    world = World(budget_bytes=10 * MIB)
    prefetched, got = name_of(1), name_of(2)
    for identity in (prefetched, got):
        world[0].store(identity, 8 * MIB)
    world[1].want(prefetched, 8 * MIB, [world[0].name], Priority.PREFETCH)
    for _ in range(4):
        world.step()
    world[1].want(got, 8 * MIB, [world[0].name], Priority.GET)
    world.run()
    assert [ended.object for ended in world[1].ended] == [got, prefetched]
    assert len(world[1].memory) == 2


def test_two_sources_share_the_work():
    world = World(3)
    world[0].store(OBJECT, 60 * MIB)
    world[1].store(OBJECT, 60 * MIB)
    world[2].want(OBJECT, 60 * MIB, [world[0].name, world[1].name])
    world.run()
    served = [sender for sender, _, message in world.carried if isinstance(message, SendChunk)]
    assert len(served) == 60
    assert 20 <= served.count(world[0].name) <= 40


def test_a_puller_is_a_source_for_the_next_before_it_has_the_whole():
    world = World(3)
    world[0].store(OBJECT, 60 * MIB)
    world[1].want(OBJECT, 60 * MIB, [world[0].name])
    world[2].want(OBJECT, 60 * MIB, [world[1].name])
    while not world[1].ended:
        world.step()
    passed_on = [
        sender
        for sender, receiver, message in world.carried
        if isinstance(message, SendChunk) and receiver == world[2].name
    ]
    assert len(passed_on) > 10
    world.run()
    assert isinstance(world[2].ended[0], Arrived)
    world.wait(READER_IDLE_S + 1)
    assert not any(world[1].pins.values())


def test_two_that_pull_from_each_other_share_what_each_has():
    world = World(3)
    world[0].store(OBJECT, 40 * MIB)
    names = [world[number].name for number in range(3)]
    world[1].want(OBJECT, 40 * MIB, [names[0], names[2]])
    world[2].want(OBJECT, 40 * MIB, [names[0], names[1]])
    world.run()
    assert isinstance(world[1].ended[0], Arrived)
    assert isinstance(world[2].ended[0], Arrived)
    served = [sender for sender, _, message in world.carried if isinstance(message, SendChunk)]
    assert len(served) == 80
    assert served.count(names[0]) < 70


@pytest.mark.parametrize(("readers", "late"), [(8, 0), (8, 10), (3, 0)])
def test_a_broadcast_costs_its_origin_little_more_than_one_copy(readers: int, late: int):
    """The home names to each who came before it; each has one wire for all that it sends."""
    count = 200
    world = World(readers + 1, budget_bytes=2 * count * MIB)
    world[0].store(OBJECT, count * MIB)
    names = [world[number].name for number in range(readers + 1)]
    turn = asked = 0
    while asked < readers or not all(world[number].ended for number in range(1, readers + 1)):
        if asked < readers and turn >= asked * late:
            asked += 1
            world[asked].want(OBJECT, count * MIB, names[:asked])
        world.step_by_uplink(turn)
        turn += 1
        assert turn < 3 * count
    sent = [sender for sender, _, message in world.carried if isinstance(message, SendChunk)]
    assert sent.count(names[0]) <= 1.35 * count
    assert turn <= 1.4 * count + readers * late
    assert len(sent) == readers * count


def test_one_that_only_others_know_of_learns_of_them_and_is_sent_what_they_have():
    world = World(3)
    world[0].store(OBJECT, 60 * MIB)
    names = [world[number].name for number in range(3)]
    world[1].want(OBJECT, 60 * MIB, names[:1])
    world[2].want(OBJECT, 60 * MIB, names[:2])
    world.run()
    served = [
        sender
        for sender, receiver, message in world.carried
        if isinstance(message, SendChunk) and receiver == names[1]
    ]
    assert len(served) == 60
    assert served.count(names[2]) > 5


def test_nothing_is_asked_of_one_that_may_not_be_a_source():
    world = World(3)
    world[0].store(OBJECT, 60 * MIB)
    names = [world[number].name for number in range(3)]
    world[1].want(OBJECT, 60 * MIB, names[:1])
    world.step()
    world[1].transfer.received(names[2], Ask(1, OBJECT, 60 * MIB, 0, [1]), 0.0, is_source=False)
    world.run()
    assert {receiver for receiver, _ in world.asks(world[1])} == {names[0]}


def test_one_that_sends_slowly_what_it_has_is_no_reason_to_leave_the_complete_one_idle():
    world = World(3)
    world[0].store(OBJECT, 100 * MIB)
    names = [world[number].name for number in range(3)]
    world[1].want(OBJECT, 100 * MIB, names[:1])
    for _ in range(90):
        world.step()
    world[2].want(OBJECT, 100 * MIB, names[:2])
    slow, still = (names[1], names[2]), (names[0], names[1])
    turn = 0
    while not world[2].ended:
        for node in world.nodes.values():
            node.settle()
            while node.allocating:
                node.answer_allocate()
        for link in world.busy_links():
            queue = world.links[link]
            while queue and not isinstance(queue[0], SendChunk):
                world.deliver(*link)
            # Now and then all that both were asked for comes at the same time.
            for _ in range(3 if turn % 10 == 0 else link != slow):
                if queue and link != still:
                    world.deliver(*link)
        turn += 1
        assert turn < 120
    assert isinstance(world[2].ended[0], Arrived)


def test_the_complete_one_helps_out_where_who_has_a_part_falls_silent(monkeypatch):
    world = World(3)
    world[0].store(OBJECT, 60 * MIB)
    names = [world[number].name for number in range(3)]
    world[1].want(OBJECT, 60 * MIB, names[:1])
    world[2].want(OBJECT, 60 * MIB, names[:2])
    for _ in range(12):
        world.step()
    assert any(names[1] == peer and ask.chunks for peer, ask in world.asks(world[2]))
    carried = world.post

    def post(sender: bytes, receiver: bytes, message: object) -> None:
        if (sender, receiver) != (names[1], names[2]):
            carried(sender, receiver, message)
        elif isinstance(message, SendChunk):
            world.nodes[sender].transfer.sent(message.serial)

    monkeypatch.setattr(world, "post", post)
    world.cut(names[1], names[2])
    while not world[2].ended:
        if not world.step():
            world.now += 0.5
            for node in world.nodes.values():
                node.transfer.tick(world.now)
        assert world.now < 100 + 2 * RETRY_S
    assert isinstance(world[2].ended[0], Arrived)


def test_parts_that_will_not_become_a_whole_fail_soon():
    world = World(3)
    world[0].store(OBJECT, 40 * MIB)
    names = [world[number].name for number in range(3)]
    world[1].want(OBJECT, 40 * MIB, [names[0], names[2]])
    world[2].want(OBJECT, 40 * MIB, [names[0], names[1]])
    for _ in range(8):
        world.step()
    world.kill(names[0])
    world.wait(2 * STALL_S + 1)
    assert [type(ended) for ended in world[1].ended + world[2].ended] == [Failed] * 2
    assert not world[1].memory
    assert not world[2].memory


def test_a_pull_goes_on_from_another_source_when_one_dies():
    world = World(3)
    world[0].store(OBJECT, 30 * MIB)
    world[1].store(OBJECT, 30 * MIB)
    world[2].want(OBJECT, 30 * MIB, [world[0].name, world[1].name])
    for _ in range(6):
        world.step()
    world.kill(world[0].name)
    world.run()
    assert isinstance(world[2].ended[0], Arrived)


def test_a_source_that_has_it_no_more_is_left_and_the_last_one_fails_the_pull():
    world = World(3)
    world[1].store(OBJECT, 5 * MIB)
    world[2].want(OBJECT, 5 * MIB, [world[0].name, world[1].name])
    world[2].want(name_of(2), 5, [world[0].name, world[1].name])
    world.run()
    by_object = {ended.object: ended for ended in world[2].ended}
    assert isinstance(by_object[OBJECT], Arrived)
    failed = by_object[name_of(2)]
    assert isinstance(failed, Failed)
    assert world[0].name.hex() in failed.reason
    assert world[1].name.hex() in failed.reason


def test_a_copy_of_another_length_is_no_source():
    world = World()
    world[0].store(OBJECT, 5 * MIB)
    world[1].want(OBJECT, 6 * MIB, [world[0].name])
    world.run()
    assert isinstance(world[1].ended[0], Failed)
    assert not any(world[0].pins.values())


def test_a_want_without_sources_fails_at_once():
    world = World()
    world[1].want(OBJECT, 5, [])
    world.run()
    assert isinstance(world[1].ended[0], Failed)


def test_a_silent_source_is_asked_again_and_given_up_in_the_end():
    world = World()
    world[0].store(OBJECT, 5 * MIB)
    world[1].want(OBJECT, 5 * MIB, [world[0].name])
    world.step()
    world.step()
    world.cut(world[1].name, world[0].name)
    world.wait(RETRY_S + 1)
    assert isinstance(world[1].ended[0], Arrived)
    world[1].want(name_of(2), 5 * MIB, [world[0].name])
    world[1].settle()
    world[1].answer_allocate()
    end = world.now + RETRY_S * (SILENCES_MAX + 2)
    while world.now < end:
        world.now += 0.5
        world[1].transfer.tick(world.now)
        world[1].settle()
        world.cut(world[1].name, world[0].name)
    failed = world[1].ended[1]
    assert isinstance(failed, Failed)
    assert "does not answer" in failed.reason


def test_a_cancelled_pull_gives_its_extent_back_only_when_nothing_is_sent_from_it():
    world = World(3)
    world[0].store(OBJECT, 20 * MIB)
    world[1].want(OBJECT, 20 * MIB, [world[0].name])
    world[2].want(OBJECT, 20 * MIB, [world[1].name])
    way = world[1].name, world[2].name
    while not any(isinstance(message, SendChunk) for message in world.links.get(way, ())):
        world.step()
    world[1].transfer.cancel(OBJECT)
    world[1].settle()
    assert isinstance(world[1].ended[0], Failed)
    assert world[1].memory
    world.run()
    assert not world[1].memory
    assert isinstance(world[2].ended[0], Failed)


def test_what_a_partial_holder_has_no_more_is_not_asked_of_it_again():
    world = World()
    world[1].want(OBJECT, 3 * MIB, [world[0].name])
    world[1].settle()
    world[1].answer_allocate()
    world[1].settle()
    (ask,) = world.links.pop((world[1].name, world[0].name))
    world[1].receive(world[0].name, Have(ask.pull, [0, 1, 2], [0, 1]))
    world[1].settle()
    (again,) = world.links.pop((world[1].name, world[0].name))
    assert again.chunks == [0, 1]
    world[1].receive(world[0].name, Have(ask.pull, [0], []))
    world[1].settle()
    assert not world.links.get((world[1].name, world[0].name))


def test_an_object_that_arrives_while_a_chunk_of_it_is_sent_is_pinned_until_that_is_done():
    world = World(3)
    world[0].store(OBJECT, 20 * MIB)
    world[1].want(OBJECT, 20 * MIB, [world[0].name])
    world[2].want(OBJECT, 20 * MIB, [world[1].name])
    way = world[1].name, world[2].name
    while not any(isinstance(message, SendChunk) for message in world.links.get(way, ())):
        world.step()
    sending = world.links.pop(way)
    world[2].transfer.cancel(OBJECT)
    while not world[1].ended:
        world.step()
    arrived = world[1].ended[0]
    assert isinstance(arrived, Arrived)
    assert arrived.pinned
    assert any(world[1].pins.values())
    world.links[way] = sending
    world.run()
    assert not any(world[1].pins.values())


def test_memory_that_comes_after_the_cancel_goes_back():
    world = World()
    world[1].want(OBJECT, 5 * MIB, [world[0].name])
    world[1].settle()
    world[1].transfer.cancel(OBJECT)
    world.run()
    assert not world[1].memory


def test_refused_memory_fails_the_pull_with_the_reason():
    world = World()
    world[1].want(OBJECT, 5 * MIB, [world[0].name])
    world[1].settle()
    world[1].answer_allocate(refuse=True)
    world.run()
    failed = world[1].ended[0]
    assert isinstance(failed, Failed)
    assert "full" in failed.reason


def test_readers_take_turns_and_none_has_more_than_its_share_in_zeromqs_hands():
    world = World(3)
    world[0].store(OBJECT, 30 * MIB)
    for number in (1, 2):
        world[0].receive(world[number].name, Ask(7, OBJECT, 30 * MIB, 0, list(range(8))))
    world[0].settle()
    world[0].answer_locate()
    commands = [each for each in world[0].transfer.take(world.now) if isinstance(each, SendChunk)]
    receivers = [each.peer for each in commands]
    assert receivers == [world[1].name, world[2].name] * (SEND_BYTES // MIB)
    world[0].transfer.sent(commands[0].serial)
    (following,) = world[0].transfer.take(world.now)
    assert isinstance(following, SendChunk)
    assert following.peer == commands[0].peer
    world[0].transfer.check()


def test_a_get_of_another_node_is_served_before_its_prefetches():
    world = World()
    for number in (1, 2):
        world[0].store(name_of(number), 8 * MIB)
    world[0].receive(world[1].name, Ask(1, name_of(1), 8 * MIB, 2, list(range(8))))
    world[0].receive(world[1].name, Ask(2, name_of(2), 8 * MIB, 0, list(range(8))))
    world[0].settle()
    world[0].answer_locate()
    world[0].answer_locate()
    commands = [each for each in world[0].transfer.take(world.now) if isinstance(each, SendChunk)]
    assert {each.pull for each in commands} == {2}


def test_a_reader_whose_drop_was_lost_is_forgotten():
    world = World()
    world[0].store(OBJECT, 3 * MIB)
    world[1].want(OBJECT, 3 * MIB, [world[0].name])
    world[1].settle()
    while not world[1].ended:
        world.step()
        world[1].settle()
    world.cut(world[1].name, world[0].name)
    world.run()
    assert any(world[0].pins.values())
    world.wait(READER_IDLE_S + 1)
    assert not any(world[0].pins.values())


@pytest.mark.parametrize(
    "message",
    [
        Ask(1, OBJECT, 5 * MIB, 2, [0, 4]),
        Chunk((1 << 64) - 1, 3),
        Have(1, [9, 3, 4], [0, 1, 2, 7]),
        Gone(5, "no"),
        Drop(0),
    ],
)
def test_messages_survive_the_wire(message):
    found = unpack(pack(message))
    if isinstance(message, Have):
        message = Have(1, sorted(message.refused), sorted(message.gained))
    assert found == message


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x90",
        pack(Drop(1))[:-1],
        b"\x93\x02\x05\x01",
        b"\x93\x01\x63\x01",
        b"\x93\x01\x05\xff",
        b"\x94\x01\x02\x01\xff",
        b"\x95\x01\x03\x01\x91\x00\x90",
        b"\x95\x01\x03\x01\x92\x00\xce\x7f\xff\xff\xff\x90",
        pack(Ask(1, b"short", 5, 0, [])),
        pack(Ask(1, OBJECT, MIB, 0, [1])),
        pack(Ask(1, OBJECT, MIB, 3, [0])),
        pack(Ask(1, OBJECT, 1 << 62, 0, [0] * 5000)),
    ],
)
def test_a_malformed_header_is_a_protocol_error(header):
    with pytest.raises(RemoteProtocolError):
        unpack(header)
