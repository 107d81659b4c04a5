"""Spill files: all or nothing on disk, and never wrong bytes back.

What    SpillStore on a real directory; a full disk by a file size limit and by its own bound.
Never   leaves files behind.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from zray.brokers.spill import SpillStore
from zray.errors import ObjectLostError, OutOfDiskError
from zray.serialization import blob

ONE, TWO = b"1" * 16, b"2" * 16
LARGE = memoryview(np.random.default_rng(1).bytes(20_000_000))


@pytest.fixture
def store(tmp_path: Path) -> SpillStore:
    return SpillStore(str(tmp_path / "spill"))


@pytest.mark.parametrize("nbytes", [0, 1, 5000, len(LARGE)])
def test_an_object_comes_back_as_it_was(store: SpillStore, nbytes: int) -> None:
    file = store.write(ONE, LARGE[:nbytes])
    assert os.stat(file.path).st_size == file.nbytes == store.used_bytes == nbytes
    dest = bytearray(nbytes)
    store.read_into(file, memoryview(dest))
    assert dest == LARGE[:nbytes]
    assert store.map_readonly(file) == LARGE[:nbytes]


def test_a_mapped_blob_is_decoded_in_place_and_outlives_its_file(store: SpillStore) -> None:
    encoded = blob.encode({"a": np.arange(9000)})
    file = store.write(ONE, memoryview(blob.to_bytes(encoded)))
    view = store.map_readonly(file)
    array = blob.decode(view)["a"]
    store.delete(file)
    assert not os.path.exists(file.path)
    assert np.shares_memory(array, np.frombuffer(view, "u1"))
    assert array[-1] == 8999


def test_a_descriptor_serves_ranges(store: SpillStore) -> None:
    fd = store.open_readonly(store.write(ONE, LARGE))
    assert os.pread(fd, 10, 12_345_678) == LARGE[12_345_678:12_345_688]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    os.close(fd)


def test_deleting_gives_the_room_back_and_twice_does_no_harm(store: SpillStore) -> None:
    first, second = store.write(ONE, LARGE[:10]), store.write(TWO, LARGE[:20])
    store.delete(first)
    store.delete(first)
    assert store.used_bytes == 20
    assert os.listdir(store.directory) == [os.path.basename(second.path)]
    assert store.write(ONE, LARGE[:30]).nbytes == 30


def test_an_object_is_spilled_once(store: SpillStore) -> None:
    store.write(ONE, LARGE[:10])
    with pytest.raises(ValueError, match="spilled already"):
        store.write(ONE, LARGE[:10])
    assert store.used_bytes == 10


def test_over_its_bound_it_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = SpillStore(str(tmp_path), capacity_bytes=100)
    file = store.write(ONE, LARGE[:60])
    with pytest.raises(OutOfDiskError, match="limit of 100 bytes") as caught:
        store.write(TWO, LARGE[:41])
    assert (caught.value.wanted_bytes, caught.value.capacity_bytes) == (41, 100)
    assert len(os.listdir(tmp_path)) == 1
    store.read_into(file, memoryview(bytearray(60)))


@pytest.mark.parametrize("step", ["posix_fallocate", "pwrite"])
def test_a_full_disk_leaves_nothing_half_written(
    store: SpillStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, step)
    calls: list[int] = []

    def fail_late(*arguments: object) -> object:
        calls.append(1)
        if step == "posix_fallocate" or len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, step, fail_late)
    with pytest.raises(OutOfDiskError, match="disk is full"):
        store.write(ONE, LARGE)
    assert os.listdir(store.directory) == []
    assert store.used_bytes == 0
    monkeypatch.undo()
    assert store.write(ONE, LARGE).nbytes == len(LARGE)


def test_short_writes_of_the_system_are_continued(
    store: SpillStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3000], offset))
    file = store.write(ONE, LARGE[:10_000])
    dest = bytearray(10_000)
    store.read_into(file, memoryview(dest))
    assert dest == LARGE[:10_000]


def test_changed_bytes_are_a_lost_object_and_not_a_wrong_value(store: SpillStore) -> None:
    file = store.write(ONE, LARGE)
    with open(file.path, "r+b") as damaged:
        damaged.seek(17_000_000)
        damaged.write(bytes([LARGE[17_000_000] ^ 1]))
    with pytest.raises(ObjectLostError, match="checksum") as caught:
        store.read_into(file, memoryview(bytearray(file.nbytes)))
    assert caught.value.object_id == ONE.hex()
    with pytest.raises(ObjectLostError, match="checksum"):
        store.map_readonly(file)
    assert len(store.map_readonly(file, verify=False)) == file.nbytes


def test_a_short_or_missing_file_is_a_lost_object(store: SpillStore) -> None:
    file = store.write(ONE, LARGE)
    os.truncate(file.path, 1000)
    with pytest.raises(ObjectLostError, match="ends after 1000"):
        store.read_into(file, memoryview(bytearray(file.nbytes)))
    with pytest.raises(ObjectLostError, match="too short"):
        store.map_readonly(file)
    os.unlink(file.path)
    with pytest.raises(ObjectLostError, match="No such file"):
        store.read_into(file, memoryview(bytearray(file.nbytes)))


def test_files_of_an_earlier_run_are_removed_at_the_start_and_all_at_the_end(
    tmp_path: Path,
) -> None:
    first = SpillStore(str(tmp_path / "spill"))
    first.write(ONE, LARGE[:10])
    second = SpillStore(str(tmp_path / "spill"))
    assert os.listdir(second.directory) == []
    assert os.stat(second.directory).st_mode & 0o777 == 0o700
    second.write(TWO, LARGE[:10])
    second.close()
    assert not os.path.exists(second.directory)
