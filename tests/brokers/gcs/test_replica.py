"""The GCS without sockets: exactly once over loss, repetition and crashes; sessions, functions."""

from __future__ import annotations

import pytest

from tests.brokers.gcs.gcs_world import World
from zray.brokers.gcs import commands, machine, replica
from zray.brokers.gcs.client import QUEUE_LEN_MAX
from zray.brokers.gcs.commands import Command, Row
from zray.brokers.gcs.replica import UNFINISHED_S
from zray.brokers.gcs.tables import code_hash
from zray.brokers.gcs.wire import (
    ANSWERS,
    COMMANDS,
    EXPECTED,
    SOFT,
    pack,
    unpack,
)
from zray.errors import (
    GcsError,
    GcsSessionLostError,
    GcsUnavailableError,
    LocalProtocolError,
    RemoteProtocolError,
)
from zray.protocol.packing import packb

NODE = b"node" + bytes(4)


@pytest.fixture
def world(tmp_path):
    opened = World(tmp_path / "gcs")
    yield opened
    opened.close()


def frame_of(*names_and_fields, session=b"s" * 16, acknowledged=1, first=1):
    packed = [packb(one) for one in names_and_fields]
    return pack(COMMANDS, session, acknowledged, first, packed)


def told(world, kind):
    opened = [unpack(frame, to_gcs=False) for _, frame in world.coming]
    return [fields for one, fields in opened if one == kind]


OPEN = ("SESSION_OPEN", ("me",))


def put(key, value=b"v", overwrite=True):
    return ("KV_PUT", ("n", key, value, overwrite))


# ---------------------------------------------------------------------------------- exactly once


def test_a_command_that_comes_twice_happens_once_and_has_one_answer(world):
    once = frame_of(OPEN, put(b"k", b"v", False))
    for _ in range(3):
        world.arrive(b"p", once)
    world.run()
    world.arrive(b"p", once)
    world.run()
    answers = [fields[3] for fields in told(world, ANSWERS)]
    assert answers == [[[True, None], [True, True]]] * 4
    assert world.replica.commits == 2
    assert world.replica.repeated == 6


def test_an_answer_is_remembered_over_a_crash_between_commit_and_answer(world):
    frame = frame_of(OPEN, put(b"k", b"v", False))
    world.arrive(b"p", frame)
    world.takes = lambda peer: False
    world.run()
    world.open()
    world.takes = lambda peer: True
    world.arrive(b"p", frame)
    world.run()
    # True: the key was new, which it would not be the second time.
    assert told(world, ANSWERS)[0][3] == [[True, None], [True, True]]


def test_an_answer_is_forgotten_when_it_is_acknowledged_and_its_number_never_used_again(world):
    for number in range(2, 50):
        first = OPEN if number == 2 else put(b"%d" % (number - 1))
        sent = frame_of(first, put(b"%d" % number), acknowledged=number - 1, first=number - 1)
        world.arrive(b"p", sent)
        world.run()
    assert len(world.store.scan("answers").entries) <= 3
    world.open()
    revision = world.store.revision
    world.coming.clear()
    world.arrive(b"p", frame_of(OPEN, put(b"late")))
    world.run()
    assert world.store.get("kv", b"n\0late") is None
    assert not told(world, ANSWERS)
    assert world.store.revision == revision


def test_a_command_that_comes_too_early_waits_for_those_before_it(world):
    world.arrive(b"p", frame_of(OPEN))
    world.arrive(b"p", frame_of(put(b"c"), first=3))
    world.run()
    assert told(world, EXPECTED) == [[b"boot0001", b"s" * 16, 2]]
    assert world.store.get("kv", b"n\0c") is None


def test_reads_see_the_writes_before_them_and_are_read_again_when_asked_again(world):
    world.arrive(b"p", frame_of(OPEN, put(b"k", b"1"), ("KV_GET", ("n", b"k"))))
    world.run()
    assert told(world, ANSWERS)[0][3][2] == [True, b"1"]
    world.arrive(b"q", frame_of(OPEN, put(b"k", b"2"), session=b"t" * 16))
    world.run()
    world.coming.clear()
    world.arrive(b"p", frame_of(("KV_GET", ("n", b"k")), first=3, acknowledged=3))
    world.run()
    assert told(world, ANSWERS)[0][3] == [[True, b"2"]]


def test_a_batch_is_one_commit(world):
    before = world.store.statistics().commits
    for number in range(20):
        session = b"%016d" % number
        world.arrive(b"p", frame_of(OPEN, put(b"%d" % number), put(b"x"), session=session))
    world.run()
    assert world.store.statistics().commits == before + 1


def test_a_commit_that_fails_has_no_answer_and_leaves_nothing(world, monkeypatch):
    client = world.client()
    assert client.ask("KV_PUT", "n", b"a", b"1", True) is True

    def full(transactions):
        raise GcsUnavailableError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "commit", full)
        put_late = client.start("KV_PUT", "n", b"b", b"1", True)
        gave_up = client.start("KV_PUT", "n", b"a", b"2", True, timeout_s=1.0)
        client.session.flush()
        sent, client.sent = client.sent, []
        for frame in sent:
            world.arrive(client.name, frame)
        world.replica.run(world.now, 0.0, world.post)
        assert world.replica.failed_commits == 1
        for _, frame in world.coming:
            client.session.received(frame, world.now)
        world.now += 2.0
        client.session.tick(world.now)
        client.sent.clear()
        assert not put_late
        ((_, error),) = gave_up
        assert isinstance(error, GcsUnavailableError)
        assert "the disk is full" in str(error)
    world.passes(2.0)
    assert put_late == [(True, None)]
    assert client.ask("KV_GET", "n", b"a") == b"1", "what was given up has happened later"


def test_a_command_that_meets_a_bug_is_answered_and_the_next_one_done(world, monkeypatch, capsys):
    def broken(state, fields, now):
        raise ZeroDivisionError("a bug")

    row = commands.COMMANDS["KV_DELETE"]
    monkeypatch.setitem(
        commands.COMMANDS, "KV_DELETE", Row(row.name, row.effect, row.fields, broken, row.text)
    )
    client = world.client()
    bad = client.start("KV_DELETE", "n", b"k")
    good = client.start("KV_PUT", "n", b"k", b"v", True)
    world.settle()
    assert isinstance(bad[0][1], GcsError)
    assert "ZeroDivisionError" in str(bad[0][1])
    assert good == [(True, None)]
    assert "a bug" in capsys.readouterr().err


def test_no_more_answers_are_kept_than_the_bound_and_the_rest_comes_later(world, monkeypatch):
    monkeypatch.setattr(machine, "ANSWERS_LEN_MAX", 10)
    client = world.client()
    answers = [client.start("KV_PUT", "n", b"%d" % n, b"", True) for n in range(35)]
    client.session.flush()
    world.passes(10.0)
    assert answers == [[(True, None)]] * 35


# ------------------------------------------------------------------------------ sessions and asks


def test_a_session_that_is_not_known_fails_what_it_asked_and_begins_anew(world, tmp_path):
    client = world.client()
    seen = []
    client.session.watch("kv", b"", seen.append)
    client.ask("KV_PUT", "n", b"k", b"v", True)
    world.store.close(sync=False)
    world.folder = tmp_path / "wiped"
    world.store = None
    world.open()
    got = client.start("KV_PUT", "n", b"k", b"v", True)
    client.session.flush()
    world.settle()
    assert isinstance(got[0][1], GcsSessionLostError)
    assert isinstance(client.lost[0], GcsSessionLostError)
    assert client.ask("KV_EXISTS", "n", b"k") is False
    assert seen[-1].reset
    assert seen[-1].changes == ()


def test_an_idle_session_learns_by_its_beat_that_it_is_lost(world, tmp_path):
    client = world.client()
    client.ask("NOOP")
    world.store.close(sync=False)
    world.folder = tmp_path / "wiped"
    world.store = None
    world.open()
    world.passes(0.5)
    assert isinstance(client.lost[0], GcsSessionLostError)


def test_sessions_that_are_silent_for_long_end_but_not_those_of_living_nodes(world):
    node, idle = world.client(b"node"), world.client(b"idle")
    node.join(NODE)
    idle.ask("NOOP")
    idle.is_connected = False
    world.passes(replica.SESSION_IDLE_S + 5, step=0.9)
    assert len(world.replica.machine.sessions) == 1
    assert {key[:4] for key, _ in world.store.scan("answers").entries} == {b"node"}


def test_malformed_asks_are_refused_before_they_are_sent(world):
    client = world.client()
    for wrong in (
        Command("KV_GET", ("n", 7)),
        Command("DROP"),
        Command("NODE_DIED", (NODE, 1, "")),
    ):
        with pytest.raises(LocalProtocolError):
            client.session.ask(wrong, lambda *_: None)
    with pytest.raises(LocalProtocolError):
        client.session.watch("answers", b"", lambda _: None)


def test_the_queue_of_asks_is_bounded(world):
    client = world.client()
    client.is_connected = False
    for number in range(QUEUE_LEN_MAX - 1):
        client.start("KV_GET", "n", b"%d" % number)
    with pytest.raises(GcsUnavailableError, match="wait for the GCS already"):
        client.start("KV_GET", "n", b"k")
    client.session.check()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        packb([1]),
        packb([9, 1, b"s" * 16, 1, 1, []]),
        packb([1, 99, b""]),
        packb([1, [], b""]),
        packb([1, ANSWERS, b"boot", b"s" * 16, 1, []]),
        pack(COMMANDS, b"short", 1, 1, []),
        pack(COMMANDS, b"s" * 16, -1, 1, []),
        pack(COMMANDS, b"s" * 16, 1, 1, [7]),
        pack(COMMANDS, b"s" * 16, 1, 1),
        pack(SOFT, b"s" * 16, 1, [b"\xc1"]),
        pack(SOFT, b"s" * 16, 1, [packb(["KV_GET", ["n", b"k"]])]),
        pack(SOFT, b"s" * 16, 1, [packb(["WATCH", ["answers", b"", 0]])]),
        pack(SOFT, b"s" * 16, 1, [packb([["WATCH"], []])]),
    ],
)
def test_a_malformed_message_is_refused_and_counted(world, frame):
    with pytest.raises(RemoteProtocolError):
        world.arrive(b"p", frame)
    assert world.replica.malformed == 1
    world.run()


@pytest.mark.parametrize(
    "command",
    [
        ("NODE_DIED", (NODE, 1, "")),
        ("PRUNE", ()),
        ("RENEW", (1.0, 0.0, None)),
        ("KV_GET", (1, 2)),
        7,
    ],
)
def test_a_malformed_command_is_answered_and_uses_its_number(world, command):
    world.arrive(b"p", frame_of(OPEN, command, put(b"k")))
    world.run()
    ((_, _, first, answers),) = told(world, ANSWERS)
    assert first == 1
    assert answers[1][0] is False
    assert answers[1][1][0] == "malformed"
    assert answers[2] == [True, True]


def test_chunks_whose_sender_died_are_swept_also_by_the_next_gcs(world):
    one = world.client()
    dead, whole = b"d" * 16, code_hash(b"ab")
    for index in (1, 2):
        one.ask("FUNCTION_CHUNK", dead, index, b"x")
    one.session.put_function(b"ab", lambda *_done: None)
    world.passes(UNFINISHED_S / 2, step=5.0)
    world.open()
    world.passes(UNFINISHED_S - 20, step=5.0)
    assert len(world.store.scan("functions").entries) == 3
    late = b"l" * 16
    one.ask("FUNCTION_CHUNK", late, 1, b"y")
    world.passes(40, step=5.0)
    left = {key for key, _entry in world.store.scan("functions").entries}
    assert left == {whole, late + b"\0\1"}
    assert one.ask("FUNCTION_GET", whole, 0) == [2, b"ab"]
    world.passes(UNFINISHED_S, step=5.0)
    assert [key for key, _entry in world.store.scan("functions").entries] == [whole]
    assert not world.store.scan("unfinished").entries


def test_functions_are_put_and_got_through_a_session(world):
    client = world.client()
    code = bytes(range(256)) * 10_000
    got = []
    name = client.session.put_function(code, lambda *done: got.append(done))
    world.settle()
    client.session.get_function(name, lambda *done: got.append(done))
    world.settle()
    assert got == [(True, None), (code, None)]


def test_answers_of_several_batches_survive_a_crash_until_they_are_acknowledged(world):
    frames = [frame_of(OPEN)]
    frames += [frame_of(put(b"k%d" % n, b"v", False), first=n) for n in range(2, 6)]
    world.takes = lambda peer: False
    for frame in frames:
        world.arrive(b"p", frame)
        world.run()
    world.open()
    world.takes = lambda peer: True
    for frame in frames:
        world.arrive(b"p", frame)
    world.run()
    assert [fields[3] for fields in told(world, ANSWERS)] == [[[True, None]], *[[[True, True]]] * 4]


def test_a_session_whose_first_message_was_lost_is_asked_for_it(world):
    world.arrive(b"p", frame_of(put(b"k"), first=2))
    world.run()
    assert told(world, EXPECTED) == [[b"boot0001", b"s" * 16, 1]]
