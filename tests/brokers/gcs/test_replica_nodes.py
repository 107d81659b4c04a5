"""Leases, loads and watches of the GCS, without sockets."""

from __future__ import annotations

import pytest

from tests.brokers.gcs.gcs_world import Follower, World
from zray.brokers.gcs import loads, replica
from zray.brokers.gcs.commands import Command
from zray.brokers.gcs.wire import COMMANDS, EVENTS, NODE_LEASE_S, pack, unpack
from zray.errors import GcsFencedError, RemoteProtocolError
from zray.protocol.packing import packb

NODE = b"node" + bytes(4)
OTHER = b"othr" + bytes(4)


@pytest.fixture
def world(tmp_path):
    opened = World(tmp_path / "gcs")
    yield opened
    opened.close()


# -------------------------------------------------------------------------------- leases of nodes


def test_a_node_that_renews_lives_and_one_that_does_not_is_dead_after_its_lease(world):
    quiet, other = world.client(b"quiet"), world.client(b"other")
    assert quiet.join(NODE) == 1
    other.join(OTHER)
    world.passes(3.0)
    assert world.replica.machine.alive == {NODE: 1, OTHER: 1}
    quiet.is_connected = False
    renewed_at = quiet.session.lease_expires_at - NODE_LEASE_S
    world.passes(NODE_LEASE_S - 0.3)
    assert NODE in world.replica.machine.alive
    world.passes(0.6)
    assert world.replica.machine.alive == {OTHER: 1}
    # The node knew first, by the clock it started when it sent its last answered beat.
    assert world.now > renewed_at + NODE_LEASE_S
    assert quiet.session.lease_expires_at <= world.now


def test_a_dead_incarnation_is_refused_whatever_it_asks_and_may_join_anew(world):
    node, other = world.client(b"node"), world.client(b"other")
    node.join(NODE)
    node.is_connected = False
    asked = node.start("KV_PUT", "n", b"k", b"old life", True)
    read = node.start("KV_GET", "n", b"k")
    world.passes(NODE_LEASE_S + 0.3)
    node.is_connected = True
    world.settle()
    assert isinstance(asked[0][1], GcsFencedError)
    assert isinstance(read[0][1], GcsFencedError)
    assert [type(error) for error in node.lost] == [GcsFencedError]
    assert other.ask("KV_GET", "n", b"k") is None
    assert node.session.incarnation == 0
    assert node.join(NODE) == 2
    assert node.ask("KV_PUT", "n", b"k", b"new life", True) is True


def test_a_second_process_of_the_same_node_ends_the_first_one(world):
    first, second = world.client(b"first"), world.client(b"second")
    assert first.join(NODE) == 1
    assert second.join(NODE) == 2
    with pytest.raises(GcsFencedError):
        first.ask("NOOP")
    assert second.ask("NOOP") is None


def test_a_broken_connection_is_death_at_once_also_after_a_restart(world):
    node = world.client(b"node")
    node.join(NODE)
    world.open()
    world.passes(0.5)
    assert world.replica.machine.alive == {NODE: 1}
    world.replica.disconnected(b"node")
    world.run()
    assert world.replica.machine.alive == {}
    world.replica.disconnected(b"node")
    world.run()
    assert world.replica.deaths == 1


def test_a_restart_gives_every_node_its_full_lease(world):
    node = world.client(b"node")
    node.join(NODE)
    node.is_connected = False
    world.passes(NODE_LEASE_S - 0.2)
    world.open()
    world.passes(NODE_LEASE_S - 0.2)
    assert world.replica.machine.alive == {NODE: 1}
    world.passes(0.4)
    assert world.replica.machine.alive == {}


def test_nobody_dies_because_the_gcs_stood_still(world):
    node = world.client(b"node")
    node.join(NODE)
    world.now += 60.0
    world.run()
    assert world.replica.machine.alive == {NODE: 1}
    node.is_connected = False
    world.passes(NODE_LEASE_S + 0.3)
    assert world.replica.machine.alive == {}


def test_a_link_that_is_cut_is_no_death_and_watches_are_set_again(world):
    node, other = world.client(b"node"), world.client(b"other")
    node.join(NODE)
    follower = Follower()
    node.session.watch("kv", b"", follower)
    world.settle()
    node.is_connected = False
    world.replica.unlinked(b"node")
    other.ask("KV_PUT", "n", b"k", b"1", True)
    asked = node.start("KV_PUT", "n", b"mine", b"1", False)
    world.passes(1.0)
    node.is_connected = True
    world.passes(1.0)
    assert asked == [(True, None)]
    assert world.replica.machine.alive == {NODE: 1}
    assert not node.lost
    assert follower.state == {b"n\0k": b"1", b"n\0mine": b"1"}
    assert follower.resets == 1, "its place in the history was kept"


def test_nobody_dies_while_who_brings_their_frames_is_silent(world):
    node, other = world.client(b"node"), world.client(b"other")
    node.join(NODE)
    other.join(OTHER)
    world.replica.relay_heard(world.now)
    node.is_connected = other.is_connected = False
    world.passes(20.0)
    assert world.replica.machine.alive == {NODE: 1, OTHER: 1}
    other.is_connected = True
    # It speaks again: whoever is silent from now on is silent by himself.
    for _ in range(8):
        world.replica.relay_heard(world.now)
        world.passes(0.2)
    assert NODE in world.replica.machine.alive
    for _ in range(8):
        world.replica.relay_heard(world.now)
        world.passes(0.2)
    assert world.replica.machine.alive == {OTHER: 1}


def test_a_gcs_that_stood_still_with_the_head_waits_once_and_not_twice(world):
    node = world.client(b"node")
    node.join(NODE)
    world.replica.relay_heard(world.now)
    node.is_connected = False
    world.now += 60.0
    world.replica.relay_heard(world.now)
    world.run()
    assert world.replica.machine.alive == {NODE: 1}
    for _ in range(12):
        world.replica.relay_heard(world.now)
        world.passes(0.2)
    assert world.replica.machine.alive == {}


def test_nobody_speaks_in_another_s_session(world):
    node, thief = world.client(b"node"), world.client(b"thief")
    node.join(NODE)
    thief.ask("NOOP")
    leave = packb(("LEAVE", (NODE, 1)))
    with pytest.raises(RemoteProtocolError, match="another peer"):
        world.arrive(b"thief", pack(COMMANDS, node.session.session, 1, 3, [leave]))


def test_a_node_that_is_heard_and_does_not_hear_is_dead_within_three_seconds(world):
    node, other = world.client(b"node"), world.client(b"other")
    node.join(NODE)
    other.join(OTHER)
    world.passes(1.0)
    # A cut in one direction: what it says arrives, and what it is told does not.
    world.takes = lambda peer: peer != b"node"
    began = world.now
    while NODE in world.replica.machine.alive:
        world.passes(0.05)
    assert world.now - began < 3.0
    assert node.session.lease_expires_at < world.now
    assert world.replica.machine.alive == {OTHER: 1}


def test_a_node_that_is_heard_again_before_that_lives_on(world):
    node = world.client(b"node")
    node.join(NODE)
    for _ in range(5):
        world.takes = lambda _peer: False
        world.passes(1.2)
        world.takes = lambda _peer: True
        world.passes(0.5)
        assert node.session.lease_expires_at > world.now + NODE_LEASE_S - 0.6
    assert world.replica.machine.alive == {NODE: 1}


def test_a_node_that_leaves_is_gone_at_once(world):
    node = world.client(b"node")
    node.join(NODE)
    assert node.ask("LEAVE", NODE, 1) is True
    assert world.replica.machine.alive == {}


def named(name: str) -> dict[str, object]:
    return {"actor_id": NODE[:4] + bytes(12), "class_id": b"c", "name": name}


def test_the_names_of_a_node_that_is_declared_dead_early_are_free_when_its_lease_is_over(world):
    node, other = world.client(b"node"), world.client(b"other")
    node.join(NODE)
    assert node.ask("ACTOR_REGISTER", named("n")) is None
    rival = {**named("n"), "actor_id": OTHER[:4] + bytes(12)}
    lease_ends = node.session.lease_expires_at
    node.is_connected = False
    world.replica.disconnected(b"node")
    world.run()
    assert world.replica.machine.alive == {}
    # Its process may live on behind a broken connection, and its actors with it.
    assert other.ask("ACTOR_REGISTER", rival) == b""
    assert other.ask("NAME_LIST", None, 10, b"") == [[], None]
    while other.ask("ACTOR_REGISTER", rival) is not None:
        world.passes(0.1)
        assert world.now < lease_ends + 1.0
    assert world.now >= lease_ends


def test_names_that_were_to_be_freed_are_freed_though_the_gcs_started_again(world):
    node, other = world.client(b"node"), world.client(b"other")
    node.join(NODE)
    assert node.ask("ACTOR_REGISTER", named("n")) is None
    node.is_connected = False
    world.replica.disconnected(b"node")
    world.run()
    world.open()
    rival = {**named("n"), "actor_id": OTHER[:4] + bytes(12)}
    assert other.ask("ACTOR_REGISTER", rival) == b""
    world.passes(NODE_LEASE_S + 0.2)
    assert other.ask("ACTOR_REGISTER", rival) is None


# ------------------------------------------------------------------------------------------ loads


class Table:
    """The rows that a session was told, put together."""

    def __init__(self, session):
        self.rows = {}
        self.messages = []
        session.watch_loads(self)

    def __call__(self, rows):
        self.messages.append(dict(rows))
        self.rows.update(rows)


def test_rows_are_told_whole_once_and_then_as_they_change(world):
    one, two = world.client(b"one"), world.client(b"two")
    one.join(NODE)
    two.join(OTHER)
    one.session.set_load(b"1")
    two.session.set_load(b"2")
    table = Table(two.session)
    world.passes(0.5)
    assert table.messages == [{NODE: b"1", OTHER: b"2"}]
    one.session.set_load(b"3")
    world.passes(0.5)
    assert table.messages[1:] == [{NODE: b"3"}]
    one.session.set_load(b"3")
    world.passes(2.0)
    assert len(table.messages) == 2, "what has not changed was told again"
    world.open()
    world.passes(1.0)
    # A new GCS knows no rows until the beats repeat them.
    assert table.rows == {NODE: b"3", OTHER: b"2"}
    one.session.set_load(b"4")
    world.passes(0.3)
    assert table.rows == {NODE: b"4", OTHER: b"2"}


def test_however_often_a_row_changes_it_is_told_a_hundred_times_a_second(world):
    one, two = world.client(b"one"), world.client(b"two")
    one.join(NODE)
    table = Table(two.session)
    for number in range(1000):
        one.session.set_load(b"%d" % number)
        world.now += 0.001
        world.settle()
    world.passes(0.5)
    assert table.rows == {NODE: b"999"}
    assert 50 <= len(table.messages) <= 110


def test_what_was_told_over_a_link_that_broke_is_told_again(world):
    one, two = world.client(b"one"), world.client(b"two")
    one.join(NODE)
    table = Table(two.session)
    one.session.set_load(b"1")
    world.passes(0.5)
    two.is_connected = False
    one.session.set_load(b"2")
    world.passes(0.1)
    world.replica.unlinked(b"two")
    two.is_connected = True
    world.passes(1.0)
    assert table.rows == {NODE: b"2"}


def test_a_watcher_that_takes_no_more_gets_the_newest_when_it_does(world):
    one, two = world.client(b"one"), world.client(b"two")
    one.join(NODE)
    table = Table(two.session)
    world.passes(0.2)
    world.takes = lambda peer: peer != b"two"
    for number in range(5):
        one.session.set_load(b"%d" % number)
        world.passes(0.05)
    assert table.rows == {}
    world.takes = lambda peer: True
    world.passes(0.5)
    assert table.messages == [{NODE: b"4"}]


def test_the_row_of_a_dead_node_is_told_to_nobody_who_comes_after(world):
    one, two, late = world.client(b"one"), world.client(b"two"), world.client(b"late")
    one.join(NODE)
    two.join(OTHER)
    one.session.set_load(b"1")
    two.session.set_load(b"2")
    world.passes(0.2)
    one.is_connected = False
    world.passes(NODE_LEASE_S + 1)
    # What it says after its death is nobody's row, either.
    one.is_connected = True
    one.session.set_load(b"3")
    table = Table(late.session)
    world.passes(0.5)
    assert table.rows == {OTHER: b"2"}


def test_publications_get_rarer_with_what_they_carry():
    assert loads.spacing_s(3, 500) == loads.SPACING_S
    assert loads.spacing_s(100, 15_000) == pytest.approx(0.1)
    # A thousand nodes whose rows all change: no more than the head's link has to spare.
    nbytes = 150_000
    assert 1000 * nbytes / loads.spacing_s(1000, nbytes) <= loads.BYTES_PER_S


# ---------------------------------------------------------------------------------------- watches


def test_a_watch_begins_with_what_is_there_and_tells_each_change_once(world):
    writer, reader = world.client(b"w"), world.client(b"r")
    writer.ask("KV_PUT", "n", b"a", b"1", True)
    follower = Follower()
    reader.session.watch("kv", b"n\0", follower)
    world.settle()
    writer.ask("KV_PUT", "n", b"b", b"2", True)
    writer.ask("KV_PUT", "m", b"c", b"3", True)
    writer.ask("KV_DELETE", "n", b"a")
    assert follower.state == {b"n\0b": b"2"}
    assert follower.resets == 1
    assert len(follower.revisions) == len(set(follower.revisions)) == 2
    reader.session.unwatch("kv", b"n\0")
    world.settle()
    writer.ask("KV_PUT", "n", b"d", b"4", True)
    assert b"n\0d" not in follower.state


def test_who_has_an_answer_has_the_change_it_watches_too(world):
    client = world.client()
    follower = Follower()
    client.session.watch("kv", b"", follower)
    world.settle()
    seen = []
    client.session.ask(
        Command("KV_PUT", ("n", b"k", b"v", True)), lambda *_: seen.append(dict(follower.state))
    )
    world.settle()
    assert seen == [{b"n\0k": b"v"}]


def test_a_lost_message_of_changes_shows_as_a_gap_and_is_told_again(world):
    writer, reader = world.client(b"w"), world.client(b"r")
    follower = Follower()
    reader.session.watch("kv", b"", follower)
    world.settle()
    got = writer.start("KV_PUT", "n", b"a", b"1", True)
    writer.session.flush()
    for frame in writer.sent:
        world.arrive(b"w", frame)
    writer.sent.clear()
    world.run()
    lost = [one for one in world.coming if unpack(one[1], to_gcs=False)[0] == EVENTS]
    assert len(lost) == 1
    world.coming = [one for one in world.coming if one not in lost]
    world.settle()
    assert got
    assert follower.state == {}
    writer.ask("KV_PUT", "n", b"b", b"2", True)
    assert follower.state == {b"n\0a": b"1", b"n\0b": b"2"}
    assert follower.resets == 1


def test_a_slow_watcher_is_held_back_and_told_the_rest_from_the_history(world):
    writer, slow = world.client(b"w"), world.client(b"slow")
    follower = Follower()
    slow.session.watch("kv", b"", follower)
    world.settle()
    world.takes = lambda peer: peer != b"slow"
    for number in range(50):
        writer.ask("KV_PUT", "n", b"%d" % number, b"v", True)
    assert follower.state == {}
    world.takes = lambda peer: True
    world.settle()
    assert len(follower.state) == 50
    assert follower.resets == 1
    assert world.replica.statistics().held_back


def test_a_watcher_behind_what_is_kept_is_told_to_read_again(tmp_path):
    world = World(tmp_path / "gcs", history_len_max=20)
    writer, slow = world.client(b"w"), world.client(b"slow")
    follower = Follower()
    slow.session.watch("kv", b"", follower)
    world.settle()
    world.takes = lambda peer: peer != b"slow"
    for number in range(60):
        writer.ask("KV_PUT", "n", b"%d" % number, b"v", True)
    world.takes = lambda peer: True
    world.settle()
    assert len(follower.state) == 60
    assert follower.resets == 2
    world.close()


def test_a_watch_goes_on_after_a_restart(world):
    writer, reader = world.client(b"w"), world.client(b"r")
    follower = Follower()
    reader.session.watch("kv", b"", follower)
    world.settle()
    writer.ask("KV_PUT", "n", b"a", b"1", True)
    world.open()
    writer.start("KV_PUT", "n", b"b", b"2", True)
    world.passes(1.0)
    assert follower.state == {b"n\0a": b"1", b"n\0b": b"2"}


def test_a_peer_that_was_silent_for_long_watches_again_when_it_returns(world):
    writer, reader = world.client(b"w"), world.client(b"r")
    follower = Follower()
    reader.session.watch("kv", b"", follower)
    world.settle()
    reader.is_connected = False
    world.passes(replica.PEER_SILENT_S + 2, step=0.5)
    writer.ask("KV_PUT", "n", b"a", b"1", True)
    reader.sent.clear()
    reader.is_connected = True
    world.passes(1.0)
    assert follower.state == {b"n\0a": b"1"}


def test_a_range_of_many_pages_is_read_whole_while_it_changes(world, monkeypatch):
    writer, reader = world.client(b"w"), world.client(b"r")
    for number in range(30):
        writer.start("KV_PUT", "n", b"%02d" % number, b"old", True)
    world.settle()
    monkeypatch.setattr("zray.brokers.gcs.client_ranges.PAGE_LEN_MAX", 4)
    follower = Follower()
    reader.session.watch("kv", b"", follower)
    for number in range(30):
        writer.start("KV_PUT", "n", b"%02d" % (29 - number), b"new", True)
        writer.start("KV_DELETE", "n", b"%02d" % ((7 * number) % 30))
        for client in (reader, writer):
            client.session.flush()
            sent, client.sent = client.sent, []
            for frame in sent:
                world.arrive(client.name, frame)
        world.run()
        coming, world.coming = world.coming, []
        for peer, frame in coming:
            world.clients[peer].session.received(frame, world.now)
    world.settle()
    expected = {key: entry.value for key, entry in world.store.scan("kv").entries}
    assert follower.state == expected
