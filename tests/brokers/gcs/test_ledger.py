"""The lineage ledger: order, cap, and what a crash or a flipped bit costs."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from zray.brokers.gcs.ledger import Ledger
from zray.errors import ForkedProcessError, GcsError, GcsUnavailableError


def specs(start, count, size=20):
    return [b"%08d" % number + bytes(size - 8) for number in range(start, start + count)]


def small(path, **options):
    return Ledger(path, **{"max_bytes": 1 << 20, "segment_bytes": 64 << 10, **options})


def test_records_come_back_in_order_under_their_positions(tmp_path):
    with Ledger(tmp_path) as ledger:
        assert ledger.append(specs(0, 3)) == 0
        assert ledger.append(specs(3, 2)) == 3
        assert ledger.append([]) == 5
        assert ledger.flush() == 5
        assert ledger.append(specs(5, 1)) == 5
        assert list(ledger.scan()) == list(enumerate(specs(0, 6)))


def test_a_scan_may_begin_inside_a_blob(tmp_path):
    with Ledger(tmp_path) as ledger:
        for start in range(0, 50, 10):
            ledger.append(specs(start, 10))
            ledger.flush()
        for start in (0, 9, 10, 25, 49):
            assert list(ledger.scan(start)) == list(enumerate(specs(start, 50 - start), start))
        assert list(ledger.scan(50)) == []
        assert ledger.read(17) == specs(17, 1)[0]
        assert ledger.read(50) is None


def test_records_of_any_length_survive(tmp_path):
    records = [b"", b"a", bytes(5000), bytes(200_000), b"", bytes(100_000), b"end"]
    with Ledger(tmp_path) as ledger:
        ledger.append(records)
        assert [record for _, record in ledger.scan()] == records


def test_a_scan_crosses_segments_and_leaves_no_transaction_open(tmp_path):
    with small(tmp_path) as ledger:
        for start in range(0, 100, 5):
            ledger.append(specs(start, 5, size=3000))
            ledger.flush()
        assert ledger.statistics().segments > 3
        scan = ledger.scan()
        assert next(scan)[0] == 0
        ledger.append(specs(100, 1, size=3000))
        ledger.flush()
        assert [position for position, _ in scan] == list(range(1, 101))


def test_beyond_the_cap_the_oldest_segments_go_and_are_counted(tmp_path):
    with small(tmp_path) as ledger:
        for start in range(1000):
            ledger.append(specs(start, 1, size=5000))
            ledger.flush()
        numbers = ledger.statistics()
        assert numbers.stored_bytes <= 1 << 20
        on_disk = sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("data.mdb"))
        assert on_disk <= 1 << 20
        assert 0 < numbers.dropped_records == numbers.first_position
        assert numbers.next_position == 1000
        kept = [position for position, _ in ledger.scan(0)]
        assert kept == list(range(numbers.first_position, 1000))
        assert len(kept) > 50
        assert ledger.read(0) is None


def test_released_segments_go_without_counting_as_dropped(tmp_path):
    with small(tmp_path) as ledger:
        for start in range(0, 100, 5):
            ledger.append(specs(start, 5, size=3000))
            ledger.flush()
        ledger.release(60)
        numbers = ledger.statistics()
        assert 0 < numbers.first_position <= 60
        assert numbers.dropped_records == numbers.dropped_segments == 0
        assert [position for position, _ in ledger.scan(60)] == list(range(60, 100))


def test_the_queue_is_bounded_by_flushing_itself(tmp_path):
    with Ledger(tmp_path, pending_bytes_max=10_000) as ledger:
        for start in range(100):
            ledger.append(specs(start, 1, size=1000))
            assert ledger.statistics().pending_bytes <= 10_000
        assert ledger.statistics().flushes >= 9
        assert len(list(ledger.scan())) == 100


def test_a_ledger_opened_again_goes_on_where_it_was(tmp_path):
    with small(tmp_path) as ledger:
        ledger.append(specs(0, 30, size=5000))
    with small(tmp_path) as ledger:
        assert ledger.append(specs(30, 1)) == 30
        assert [position for position, _ in ledger.scan()] == list(range(31))


def test_one_thread_may_append_while_another_flushes(tmp_path):
    with small(tmp_path, max_bytes=8 << 20) as ledger:
        done = threading.Event()

        def flush():
            while not done.is_set():
                ledger.flush()

        thread = threading.Thread(target=flush)
        thread.start()
        for number in range(3000):
            assert ledger.append(specs(number, 1)) == number
        done.set()
        thread.join()
        assert list(ledger.scan()) == list(enumerate(specs(0, 3000)))


WRITER = """
    import sys
    from zray.brokers.gcs.ledger import Ledger
    ledger = Ledger(sys.argv[1], max_bytes=1 << 20, segment_bytes=64 << 10)
    number = ledger.statistics().next_position
    while True:
        ledger.append([b"%08d" % n + bytes(992) for n in range(number, number + 7)])
        number += 7
        print(ledger.flush(), flush=True)
"""


def test_kill_minus_nine_at_any_moment_keeps_all_that_was_flushed(tmp_path, pytestconfig):
    flushed = 0
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for _ in range(random.Random(life).randrange(1, 400)):
                flushed = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            flushed = max([flushed, *map(int, writer.stdout.read().split("\n")[:-1])])
        with small(tmp_path) as ledger:
            numbers = ledger.statistics()
            assert numbers.next_position >= flushed
            found = list(ledger.scan())
            assert [position for position, _ in found] == list(
                range(numbers.first_position, numbers.next_position)
            )
            assert all(int(record[:8]) == position for position, record in found)
            assert numbers.damaged_blobs == 0


def test_a_segment_whose_dropping_was_cut_short_by_a_crash_is_gone(tmp_path):
    with small(tmp_path) as ledger:
        for number in range(0, 400, 10):
            ledger.append([b"%08d" % n + bytes(992) for n in range(number, number + 10)])
            ledger.flush()
    oldest, second, *_rest = sorted(tmp_path.glob("segment-*"))
    (oldest / "data.mdb").unlink()  # rmtree() had come this far.
    with small(tmp_path) as ledger:
        first = int(second.name.removeprefix("segment-"))
        assert ledger.statistics().first_position == first
        assert next(ledger.scan())[0] == first
        assert not oldest.exists()


def flip(path, marker):
    """Change one byte of every place where a file has `marker`."""
    content = path.read_bytes()
    assert marker in content
    path.write_bytes(content.replace(marker, marker[:-1] + b"\xff"))


def test_a_damaged_blob_at_the_end_is_cut_off_and_its_positions_are_not_used_again(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(specs(0, 10))
        ledger.flush()
        ledger.append([b"unmistakable", b"x"])
    flip(next(tmp_path.rglob("data.mdb")), b"unmistakable")
    with Ledger(tmp_path) as ledger:
        assert ledger.statistics().damaged_blobs == 1
        position = ledger.append([b"next"])
        assert position >= 12
        assert list(ledger.scan()) == [*enumerate(specs(0, 10)), (position, b"next")]


def test_a_damaged_blob_in_the_middle_is_a_gap(tmp_path):
    with Ledger(tmp_path) as ledger:
        for record in (b"first", b"unmistakable", b"last"):
            ledger.append([record])
            ledger.flush()
    flip(next(tmp_path.rglob("data.mdb")), b"unmistakable")
    with Ledger(tmp_path) as ledger:
        assert list(ledger.scan()) == [(0, b"first"), (2, b"last")]
        assert list(ledger.scan()) == [(0, b"first"), (2, b"last")]
        assert ledger.statistics().damaged_blobs == 1
        assert ledger.read(1) is None


def test_a_segment_cut_short_is_dropped_and_the_ledger_goes_on(tmp_path):
    with small(tmp_path) as ledger:
        for start in range(0, 60, 5):
            ledger.append(specs(start, 5, size=3000))
            ledger.flush()
        segments = ledger.statistics().segments
    last = max(tmp_path.glob("segment-*"))
    data = last / "data.mdb"
    data.write_bytes(data.read_bytes()[:20_000])
    with small(tmp_path) as ledger:
        numbers = ledger.statistics()
        assert (numbers.segments, numbers.dropped_segments) == (segments - 1, 1)
        kept = int(last.name.removeprefix("segment-"))
        assert [position for position, _ in ledger.scan()] == list(range(kept))
        assert ledger.append([b"next"]) >= 60
        assert next(ledger.scan(60))[1] == b"next"


FULL_DISK = """
    import resource, sys
    from zray.brokers.gcs.ledger import Ledger
    from zray.errors import GcsUnavailableError
    ledger = Ledger(sys.argv[1], pending_bytes_max=100_000)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    number = refused = 0
    while refused < 3:
        try:
            assert ledger.append([b"%08d" % number + bytes(9992)]) == number
            number += 1
        except GcsUnavailableError:
            refused += 1
    assert ledger.statistics().pending_bytes <= 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [int(record[:8]) for _, record in ledger.scan()] == list(range(number))
"""


def test_a_full_disk_is_told_to_the_appender_and_loses_nothing_queued(tmp_path, pytestconfig):
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
        check=True,
    )


def test_a_ledger_that_is_open_is_refused(tmp_path):
    with Ledger(tmp_path), pytest.raises(GcsUnavailableError, match=f"pid {os.getpid()};"):
        Ledger(tmp_path)


def test_a_forked_child_cannot_write(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.append(specs(0, 1))
        ledger.flush()
        pid = os.fork()
        if pid == 0:
            outcome = 1
            try:
                ledger.append(specs(1, 1))
                with pytest.raises(ForkedProcessError):
                    ledger.flush()
                outcome = 0
            finally:
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert list(ledger.scan()) == list(enumerate(specs(0, 1)))


@pytest.mark.parametrize("options", [{"max_bytes": 1000}, {"segment_bytes": 1 << 20}])
def test_sizes_that_contradict_each_other_are_refused(tmp_path, options):
    with pytest.raises(GcsError, match="at least two"):
        Ledger(tmp_path, **{"max_bytes": 1 << 20, **options})


def test_a_record_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Ledger, "RECORD_BYTES_MAX", 100)
    with Ledger(tmp_path) as ledger:
        assert ledger.append([bytes(100)] * 3) == 0
        with pytest.raises(GcsError, match="object store"):
            ledger.append([bytes(101)])
        assert ledger.append([b""]) == 3
