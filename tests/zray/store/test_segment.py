"""The segment: shared bytes, read-only readers, releases exactly once, errors instead of signals.

What    Segment in this process, in forked children and over an interpreter's end.
Never   leaves memory behind: nothing of a segment has a name.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from tests.waiting import wait_until
from zray.errors import ForkedProcessError, ObjectStoreFullError
from zray.serialization import blob
from zray.store.segment import Segment, default_capacity_bytes

MIB = 1 << 20


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(8 * MIB)
    yield made
    made.close()


def attached(segment: Segment) -> Segment:
    """Attach as another process would, through descriptors of its own."""
    rw_fd, ro_fd = segment.fds()
    return Segment.attach(os.dup(rw_fd), os.dup(ro_fd), segment.capacity_bytes)


def allocated_bytes(segment: Segment) -> int:
    return os.fstat(segment.fds()[0]).st_blocks * 512


def test_what_one_process_writes_another_reads(segment: Segment) -> None:
    other = attached(segment)
    other.writable(4096, 5)[:] = b"hello"
    assert bytes(segment.readable(4096, 5)) == b"hello"
    other.close()


def test_a_new_segment_takes_no_memory(segment: Segment) -> None:
    assert allocated_bytes(segment) == 0
    segment.commit(MIB, MIB)
    assert allocated_bytes(segment) == MIB


def test_readers_cannot_write(segment: Segment) -> None:
    view = segment.readable(0, 4096)
    assert view.readonly
    array = np.frombuffer(view, "u1")
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fds()[1], MIB)


def test_no_process_can_change_the_size(segment: Segment) -> None:
    for nbytes in (MIB, 16 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fds()[0], nbytes)


def test_release_is_called_once_when_the_last_derived_array_is_gone(segment: Segment) -> None:
    released: list[str] = []
    value = [np.arange(9000), {"b": np.ones(9000)}]
    encoded = blob.encode(value)
    blob.write_into(encoded, segment.writable(0, encoded.nbytes))
    back = blob.decode(segment.readable(0, encoded.nbytes, lambda: released.append("gone")))
    part = back[1]["b"][5:7].reshape(2, 1).T
    view = memoryview(back[0])
    del back
    assert (released, segment.view_count) == ([], 1)
    del view
    assert released == []
    assert part.tolist() == [[1.0, 1.0]]
    del part
    assert (released, segment.view_count) == (["gone"], 0)
    gc.collect()
    assert released == ["gone"]


def test_a_value_without_arrays_is_released_at_once(segment: Segment) -> None:
    released: list[int] = []
    encoded = blob.encode(list(range(1000)))
    blob.write_into(encoded, segment.writable(0, encoded.nbytes))
    view = segment.readable(0, encoded.nbytes, lambda: released.append(1))
    assert blob.decode(view)[-1] == 999
    del view
    assert released == [1]


def test_views_in_a_cycle_are_released_by_the_collector(segment: Segment) -> None:
    released: list[int] = []
    holder: list[object] = [segment.readable(0, 100, lambda: released.append(1))]
    holder.append(holder)
    del holder
    gc.collect()
    assert released == [1]


def test_releases_from_many_threads_are_all_counted(segment: Segment) -> None:
    released: list[int] = []

    def read_often() -> None:
        for _ in range(500):
            segment.readable(0, 4096, lambda: released.append(1))

    threads = [threading.Thread(target=read_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(released) == 2000
    assert segment.view_count == 0


def test_views_outlive_close_and_close_reports_nothing(segment: Segment) -> None:
    released: list[int] = []
    other = attached(segment)
    other.writable(0, 5)[:] = b"alive"
    writable = other.writable(0, 5)
    view = other.readable(0, 5, lambda: released.append(1))
    other.close()
    other.close()
    assert bytes(view) == bytes(writable) == b"alive"
    del view
    assert released == []
    with pytest.raises(ValueError, match="closed"):
        other.readable(0, 5)


def test_a_closed_segment_without_views_unmaps_its_memory(segment: Segment) -> None:
    other = attached(segment)
    other.writable(0, 5)
    other.readable(0, 5)
    assert other._readable is not None
    gone = weakref.ref(other._readable)
    other.close()
    assert gone() is None


def test_a_forked_child_reads_but_does_not_write_or_report(segment: Segment) -> None:
    released: list[int] = []
    segment.writable(0, 5)[:] = b"mommy"
    view = segment.readable(0, 5, lambda: released.append(1))
    child = os.fork()
    if not child:
        try:
            code = 10
            if bytes(view) == b"mommy" == bytes(segment.readable(0, 5)):
                code = 20
            try:
                segment.writable(0, 5)
            except ForkedProcessError:
                code += 1
            del view
            os._exit(code + len(released))
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 21
    assert released == []
    del view
    assert released == [1]


def test_arrays_alive_at_the_end_of_the_interpreter_make_no_noise() -> None:
    program = """
import numpy as np
from zray.store.segment import Segment, default_capacity_bytes
segment = Segment.create(1 << 20)
arrays = [np.frombuffer(segment.readable(0, 4096, lambda: print("released")), "u1")]
loop = [arrays, segment]
loop.append(loop)
writable = segment.writable(0, 10)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=os.getcwd(),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_lack_of_memory_is_an_error_and_not_a_signal(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _offset: int, _nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(ObjectStoreFullError, match="memory") as caught:
        segment.commit(0, MIB)
    assert (caught.value.wanted_bytes, caught.value.capacity_bytes) == (MIB, 8 * MIB)


def test_a_commit_beyond_the_end_is_an_error_and_not_a_growth(segment: Segment) -> None:
    with pytest.raises(OSError, match=r"not permitted|too large"):
        segment.commit(8 * MIB, MIB)


def test_punched_memory_goes_back_to_the_system_and_reads_as_zeros(segment: Segment) -> None:
    segment.commit(0, 2 * MIB)
    segment.writable(0, 2 * MIB)[:5] = b"bytes"
    segment.punch(0, MIB)
    assert allocated_bytes(segment) == MIB
    assert bytes(segment.readable(0, 5)) == bytes(5)


def test_prefault_commits_from_the_start_and_reports_its_progress(segment: Segment) -> None:
    progress: list[int] = []
    segment.prefault(6 * MIB, progress.append)
    wait_until(lambda: progress and progress[-1] == 6 * MIB, what="the last step")
    segment.stop_prefault()
    assert progress == [4 * MIB, 6 * MIB]
    assert allocated_bytes(segment) == 6 * MIB
    with pytest.raises(RuntimeError, match="once"):
        segment.prefault(MIB)


def test_prefault_stops_when_it_is_told_to() -> None:
    large = Segment.create(64 * MIB)
    stepped = threading.Event()
    stop = threading.Event()

    def pause(_done: int) -> None:
        stepped.set()
        stop.wait(10)

    large.prefault(64 * MIB, pause)
    assert stepped.wait(10)
    large._prefault_stop.set()
    stop.set()
    large.close()
    assert large._prefault_thread is not None
    assert not large._prefault_thread.is_alive()


def test_an_extent_of_no_bytes_is_refused(segment: Segment) -> None:
    with pytest.raises(ValueError, match="no bytes"):
        segment.readable(0, 0, lambda: None)


def test_a_capacity_is_rounded_up_to_pages() -> None:
    small = Segment.create(5000)
    assert small.capacity_bytes == 8192
    small.close()


def test_the_default_capacity_is_a_share_of_memory_and_never_tiny_or_huge() -> None:
    assert default_capacity_bytes(10_000 * 4096) == 64 * MIB
    assert default_capacity_bytes(10_000_000 * 4096) == 3_000_000 * 4096
    assert default_capacity_bytes(4096 << 30) == 200 << 30
    assert default_capacity_bytes((16 << 30) + 12345) % 4096 == 0
