"""The ring of scheduling events: order, cap, drop counter, batches packed elsewhere."""

import os
import subprocess
import sys
import textwrap

import msgpack
import pytest

from zray.brokers.gcs.events import EventRing, packed_len
from zray.errors import GcsError, GcsUnavailableError

FIELDS = {"started": ("task", "worker"), "ended": ("task",)}


@pytest.fixture
def ring(tmp_path):
    opened = EventRing(tmp_path / "events", fields=FIELDS)
    yield opened
    opened.close(1e9)


def packed(*records):
    return msgpack.packb(records)


def test_events_are_listed_in_order_before_and_after_a_flush(ring):
    ring.record("started", 1.0, b"t1", b"w1")
    ring.flush(2.0)
    ring.record_batch(packed(["ended", 3.0, b"t1"], ["started", 4.0, b"t2", b"w1"]))
    ring.record("ended", 5.0, b"t2")
    for _ in range(2):
        events = ring.select()
        assert [event.number for event in events] == [0, 1, 2, 3]
        assert [event.kind for event in events] == ["started", "ended", "started", "ended"]
        assert [event.at_s for event in events] == [1.0, 3.0, 4.0, 5.0]
        assert events[2].fields == {"task": b"t2", "worker": b"w1"}
        ring.flush(6.0)


def test_a_query_chooses_by_kind_time_and_number(ring):
    for second in range(100):
        ring.record(
            "ended" if second % 2 else "started", float(second), b"t", *[b"w"] * (1 - second % 2)
        )
        if second % 10 == 0:
            ring.flush(float(second))
    assert [event.at_s for event in ring.select(limit=3)] == [97.0, 98.0, 99.0]
    assert [event.at_s for event in ring.select(kind="started", limit=2)] == [96.0, 98.0]
    assert [event.at_s for event in ring.select(since=40.0)] == [float(n) for n in range(40, 100)]
    assert [event.at_s for event in ring.select(kind="ended", since=95.0)] == [95.0, 97.0, 99.0]
    assert ring.select(kind="unheard of") == []


def test_beyond_the_cap_the_oldest_are_dropped_and_counted(tmp_path):
    ring = EventRing(tmp_path, len_max=100, fields=FIELDS)
    for number in range(1000):
        ring.record("ended", float(number), b"%d" % number)
        if number % 7 == 0:
            ring.flush(float(number))
    ring.flush(1000.0)
    numbers = ring.statistics()
    assert numbers.recorded == 1000
    assert numbers.kept + numbers.dropped == 1000
    assert 90 <= numbers.kept <= 100
    events = ring.select(limit=1000)
    assert [event.number for event in events] == list(range(1000 - numbers.kept, 1000))
    ring.close(1000.0)


def test_a_queue_that_nobody_flushes_is_bounded_and_the_loss_is_counted(tmp_path):
    ring = EventRing(tmp_path, pending_len_max=100, fields=FIELDS)
    for number in range(500):
        ring.record("ended", float(number), b"t")
        ring.record_batch(packed(["ended", float(number), b"a"], ["ended", float(number), b"b"]))
        assert ring.statistics().pending <= 100
    numbers = ring.statistics()
    assert numbers.recorded == 1500
    assert numbers.dropped + numbers.pending == 1500
    assert ring.select()[-1].at_s == 499.0
    ring.close(500.0)


def test_events_survive_a_restart_and_numbers_go_on(tmp_path):
    ring = EventRing(tmp_path, fields=FIELDS)
    ring.record("ended", 1.0, b"t1")
    ring.close(1.0)
    ring = EventRing(tmp_path, fields=FIELDS)
    ring.record("ended", 2.0, b"t2")
    assert [(event.number, event.fields["task"]) for event in ring.select()] == [
        (0, b"t1"),
        (1, b"t2"),
    ]
    assert ring.statistics().recorded == 2
    ring.close(2.0)
    with pytest.raises(GcsUnavailableError, match="closed"):
        ring.select()


def test_an_event_that_does_not_fit_the_table_is_refused(ring):
    with pytest.raises(GcsError, match="'stopped'"):
        ring.record("stopped", 1.0)
    with pytest.raises(GcsError, match="3 values"):
        ring.record("started", 1.0, b"t", b"w", b"surplus")
    assert ring.statistics().recorded == 0


def test_a_kind_or_value_of_a_newer_release_is_shown_without_a_name(ring):
    ring.record_batch(packed(["paused", 1.0, b"t"], ["ended", 2.0, b"t", 7]))
    assert [event.fields for event in ring.select()] == [
        {"value_0": b"t"},
        {"task": b"t", "value_1": 7},
    ]


@pytest.mark.parametrize(
    "bad", [msgpack.packb([1, 2]), msgpack.packb([["ended"]]), packed(["ended", 1.0, b"t"])[:-1]]
)
def test_a_batch_that_cannot_be_read_is_counted_and_hides_no_other(ring, bad):
    ring.record("ended", 1.0, b"before")
    ring.record_batch(bad)
    ring.record("ended", 2.0, b"after")
    for _ in range(2):
        assert [event.fields["task"] for event in ring.select()] == [b"before", b"after"]
        assert ring.statistics().malformed_batches == 1
        ring.flush(3.0)


def test_a_batch_that_is_no_array_is_refused_at_once(ring):
    for bad in (b"", msgpack.packb({"kind": "ended"}), b"\xdc\x00"):
        with pytest.raises(GcsError, match="msgpack array"):
            ring.record_batch(bad)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65535, 65536])
def test_the_length_of_a_batch_is_read_from_its_first_bytes(count):
    assert packed_len(msgpack.packb([None] * count)) == count


def test_an_empty_batch_is_no_event(ring):
    ring.record_batch(packed())
    ring.flush(1.0)
    assert ring.statistics().recorded == 0


def test_a_flipped_bit_costs_its_batch_only(tmp_path):
    ring = EventRing(tmp_path, fields=FIELDS)
    for task in (b"first", b"unmistakable", b"last"):
        ring.record("ended", 1.0, task)
        ring.flush(1.0)
    ring.close(1.0)
    data = tmp_path / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"unmistakable", b"unmistakaple"))
    ring = EventRing(tmp_path, fields=FIELDS)
    assert [event.fields["task"] for event in ring.select()] == [b"first", b"last"]
    assert ring.statistics().malformed_batches == 1
    ring.close(2.0)


def test_a_ring_without_room_is_refused(tmp_path):
    with pytest.raises(GcsError, match="room"):
        EventRing(tmp_path, len_max=0)


FULL_DISK = """
    import resource, sys
    from zray.brokers.gcs.events import EventRing
    from zray.errors import GcsUnavailableError
    ring = EventRing(sys.argv[1], pending_len_max=8, fields={"ended": ("task",)})
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    for number in range(6):
        ring.record("ended", float(number), bytes(100_000))
    try:
        ring.flush(9.0)
    except GcsUnavailableError as error:
        assert "room on the disk" in str(error), error
    else:
        sys.exit("the disk took more than its limit")
    assert [event.at_s for event in ring.select()] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert ring.statistics().pending == 6
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    ring.flush(9.0)
    assert [event.number for event in ring.select()] == [0, 1, 2, 3, 4, 5]
    assert ring.statistics().pending == 0
    ring.close(9.0)
"""


def test_a_full_disk_loses_nothing_that_is_queued(tmp_path, pytestconfig):
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
        check=True,
    )
