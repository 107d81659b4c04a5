"""The GCS as a process: kill -9 under load, restarts, slow watchers, dead nodes."""

from __future__ import annotations

import itertools
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.brokers.gcs.gcs_process import Driven, GcsProcess
from zray.brokers.gcs.actor_table import ActorRecord
from zray.brokers.gcs.commands import Command
from zray.errors import GcsError, GcsFencedError, GcsUnavailableError, NodeStartError
from zray.net.gcs_link import check_local

pytestmark = pytest.mark.cluster

NODE = b"node" + bytes(4)
OTHER = b"othr" + bytes(4)


@pytest.fixture
def gcs():
    with tempfile.TemporaryDirectory(prefix="gcs") as folder:
        process = GcsProcess(Path(folder))
        yield process
        process.close()


@pytest.fixture
def driven(gcs):
    opened = []

    def open_one(name=b""):
        opened.append(Driven(gcs.endpoint, name))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def actor(number, name="", home=NODE):
    actor_id = home + number.to_bytes(8, "big")
    return {"actor_id": actor_id, "class_id": b"c", "name": name, "state": "alive"}


def test_commands_are_answered_in_their_order(driven):
    one = driven()
    answers = []
    for number in range(500):
        fields = ("n", b"k", b"%d" % number, True)
        one.session.ask(Command("KV_PUT", fields), lambda result, _: answers.append(result))
    assert one.ask("KV_GET", "n", b"k") == b"499"
    assert answers == [True] + [False] * 499


def test_a_function_of_many_chunks_comes_back_whole(driven):
    one = driven()
    code = os.urandom(5 << 20)
    got = []
    name = one.session.put_function(code, lambda *done: got.append(done))
    assert one.wait(got) is True
    assert one.ask("FUNCTION_EXISTS", name) is True
    read = []
    one.session.get_function(name, lambda *done: read.append(done))
    assert one.wait(read) == code
    missing = []
    one.session.get_function(bytes(16), lambda *done: missing.append(done))
    assert one.wait(missing) is None


def test_a_stopped_gcs_keeps_its_tables(gcs, driven):
    one = driven()
    one.ask("KV_PUT", "n", b"k", b"v", True)
    assert gcs.stop() == 0
    assert "SIGTERM" in gcs.log()
    gcs.start()
    assert one.ask("KV_GET", "n", b"k") == b"v"


def test_nothing_acknowledged_is_lost_and_nothing_happens_twice_when_the_gcs_is_killed(gcs, driven):
    """Each command appends to a chain by comparing: done twice, or lost, it breaks the chain."""
    one = driven()
    dice = random.Random(7)
    counts = [0] * 4
    acknowledged = [0] * 4
    answers = {}

    def add(key):
        """Set key from n to n + 1 where it is n; true exactly if every one before was done."""
        before, counts[key] = counts[key], counts[key] + 1
        place = b"%d" % key
        compare = ["kv", place, "missing", None]
        if before:
            compare = ["kv", place, "value", b"%d" % before]
        put = ["put", "kv", place, b"%d" % (before + 1)]

        def done(result, error):
            assert error is None, error
            assert result[0] is True, f"key {key}: {before} was lost or done twice"
            acknowledged[key] = before + 1
            answers[key, before] = answers.get((key, before), 0) + 1

        one.session.ask(Command("TRANSACT", ([compare], [put], [])), done)

    for _ in range(6):
        goal = sum(acknowledged) + dice.randrange(50, 400)
        deadline = time.monotonic() + 20
        while sum(acknowledged) < goal:
            assert time.monotonic() < deadline
            if one.session.unanswered < 200:
                add(dice.randrange(4))
            else:
                one.step(0.001)
            one.session.flush()
        gcs.kill()
        had = list(acknowledged)
        gcs.start()
        for key in range(4):
            entry = one.ask("GET", "kv", b"%d" % key)
            assert entry is None or int(entry[0]) >= had[key], "an acknowledged write is lost"
    one.until(lambda: not one.session.unanswered)
    assert acknowledged == counts
    assert set(answers.values()) == {1}
    for key in range(4):
        assert int(one.ask("GET", "kv", b"%d" % key)[0]) == counts[key]


def test_a_name_has_one_actor_whoever_asks_and_whenever_the_gcs_is_killed(gcs, driven):
    one, two = driven(), driven()
    for number in range(20):
        record = [actor(2 * number + which, f"a{number}") for which in range(2)]
        first = one.start("ACTOR_REGISTER", record[0])
        second = two.start("ACTOR_REGISTER", record[1])
        one.session.flush()
        two.session.flush()
        if number % 5 == 2:
            gcs.kill()
            gcs.start()
        one.until(lambda got=(first, second): all(got), 20, two)
        (won, _), (lost, _) = sorted((first[0], second[0]), key=lambda got: got[0] is not None)
        assert won is None
        assert lost in (record[0]["actor_id"], record[1]["actor_id"])
        assert one.ask("NAME_LOOKUP", "", f"a{number}") == lost


def test_a_killed_node_is_dead_at_once_and_what_it_had_with_it(driven):
    node, watcher = driven(NODE), driven(OTHER)
    assert node.join(NODE) == 1
    assert watcher.join(OTHER) == 1
    node.ask("ACTOR_REGISTER", actor(1, "counter"))
    seen = []
    watcher.session.watch("nodes", b"", seen.append)
    watcher.until(lambda: seen)
    assert {change.key for change in seen[0].changes} == {NODE, OTHER}
    node.close()
    broke_at = time.monotonic()
    watcher.until(lambda: len(seen) > 1)
    # A lease would have lasted two seconds.
    assert time.monotonic() - broke_at < 1.5
    assert [change.key for change in seen[1].changes] == [NODE]
    assert watcher.ask("NAME_LOOKUP", "", "counter") is None
    record = ActorRecord.unpack(watcher.ask("ACTOR_LOOKUP", NODE + bytes(7) + b"\1"))
    assert record.state == "dead"
    assert "connection" in record.death_cause


def test_a_node_that_says_nothing_is_dead_after_its_lease_and_learns_so_when_it_returns(driven):
    node, other = driven(NODE), driven(OTHER)
    node.join(NODE)
    other.join(OTHER)
    seen = []
    other.session.watch("nodes", NODE, seen.append)
    began = time.monotonic()
    # It is not stepped meanwhile: connected, and silent.
    other.until(lambda: len(seen) > 1)
    assert 1.5 < time.monotonic() - began < 5
    assert node.session.lease_expires_at < time.monotonic(), "the node would not have fenced"
    with pytest.raises(GcsFencedError):
        node.ask("KV_PUT", "n", b"k", b"v", True)
    assert isinstance(node.lost[0], GcsFencedError)
    assert other.ask("KV_GET", "n", b"k") is None
    assert node.join(NODE) == 2
    node.ask("KV_PUT", "n", b"k", b"v", True)


def test_a_living_node_stays_alive_over_a_kill_of_the_gcs(gcs, driven):
    node = driven(NODE)
    node.join(NODE)
    expires_at = node.session.lease_expires_at
    gcs.kill()
    gcs.start()
    node.until(lambda: node.session.lease_expires_at > expires_at + 2.5)
    assert not node.lost
    assert node.session.incarnation == 1


def test_a_watch_sees_every_change_over_kills_of_the_gcs(gcs, driven):
    writer, watcher = driven(), driven()
    state = {}

    def follow(update):
        if update.reset:
            state.clear()
        for change in update.changes:
            if change.value is None:
                state.pop(change.key)
            else:
                state[change.key] = change.value

    watcher.session.watch("kv", b"n\0", follow)
    for number in range(300):
        writer.start("KV_PUT", "n", b"%d" % (number % 40), b"%d" % number, True)
        if number % 7 == 0:
            writer.start("KV_DELETE", "n", b"%d" % (number % 40))
        if number % 100 == 50:
            gcs.kill()
            gcs.start()
        writer.step(0)
        watcher.step(0)
    writer.until(lambda: not writer.session.unanswered, 20, watcher)
    page = writer.ask("RANGE", "kv", b"n\0", 1000, b"")
    expected = {key: value for key, value, _, _ in page[1]}
    watcher.until(lambda: state == expected, 20, writer)


def test_a_watcher_that_reads_nothing_holds_nobody_up_and_catches_up(driven):
    writer, slow = driven(), driven()
    seen = []
    slow.session.watch("kv", b"", seen.append)
    slow.until(lambda: seen)
    value = os.urandom(100_000)
    # Far more than sockets and queues hold; the slow one is connected and does not receive.
    for number in range(600):
        writer.start("KV_PUT", "n", b"%d" % number, value, True)
        if number % 20 == 0:
            writer.until(lambda: writer.session.unanswered < 20)
    writer.until(lambda: not writer.session.unanswered)
    last = b"n\x00599"
    slow.until(lambda: any(change.key == last for one in seen for change in one.changes), 40)
    known = {change.key for one in seen for change in one.changes}
    assert known >= {b"n\0%d" % number for number in range(600)}


def test_rows_of_the_load_table_reach_every_node(driven):
    one, two = driven(NODE), driven(OTHER)
    one.join(NODE)
    two.join(OTHER)
    rows = {}
    two.session.watch_loads(rows.update)
    one.session.set_load(b"1")
    two.session.set_load(b"2")
    two.until(lambda: rows == {NODE: b"1", OTHER: b"2"}, 10, one)
    one.session.set_load(b"3")
    two.until(lambda: rows == {NODE: b"3", OTHER: b"2"}, 10, one)


def test_without_a_gcs_an_ask_fails_by_its_deadline(gcs, driven):
    one = driven()
    one.ask("KV_PUT", "n", b"k", b"1", True)
    gcs.kill()
    with pytest.raises(GcsUnavailableError, match="KV_PUT"):
        one.ask("KV_PUT", "n", b"k", b"2", True, timeout_s=0.5)
    gcs.start()
    # What was given up takes no effect later.
    assert one.ask("KV_GET", "n", b"k") == b"1"


def test_refusals_are_typed(driven):
    one = driven()
    with pytest.raises(GcsError, match="not registered"):
        one.ask("ACTOR_UPDATE", bytes(16), {"state": "dead"})
    with pytest.raises(GcsError, match="hash"):
        one.ask("FUNCTION_PUT", bytes(16), 1, b"x")


def test_random_bytes_stop_nothing(gcs, driven):
    dice = random.Random(3)
    hostile = driven(b"hostile!")
    hostile.ask("NOOP")
    for _ in range(2000):
        assert hostile.link.send(dice.randbytes(dice.randrange(0, 60)))
    # By the same link, so behind all of it.
    assert hostile.ask("KV_PUT", "n", b"k", b"v", True) is True
    assert driven().ask("KV_GET", "n", b"k") == b"v"
    assert gcs.process.poll() is None
    assert "malformed" in gcs.log()


def test_a_second_gcs_in_the_same_directory_is_refused_with_the_pid(gcs, driven):
    first = gcs.process
    gcs.start()
    assert str(first.pid) in gcs.report["error"]
    assert gcs.process.wait(10) == 1
    gcs.process = first
    # Nor has it taken the address from the one that runs.
    assert driven().ask("KV_GET", "n", b"k") is None


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:1", "tcp://127.0.0.1:0", "@abstract", "x"])
def test_the_gcs_opens_no_port(endpoint):
    with pytest.raises(NodeStartError, match="nothing but ipc"):
        check_local(endpoint)


def test_a_stopped_gcs_process_is_waited_for(gcs, driven):
    """SIGSTOP for longer than a lease: nobody is declared dead by a clock that stood still."""
    node = driven(NODE)
    node.join(NODE)
    gcs.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for _ in itertools.takewhile(lambda _: time.monotonic() < began + 3, itertools.count()):
        node.step()
    assert node.session.lease_expires_at < time.monotonic()
    gcs.process.send_signal(signal.SIGCONT)
    node.until(lambda: node.session.lease_expires_at > time.monotonic() + 1)
    assert not node.lost
