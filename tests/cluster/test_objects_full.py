"""A store that is full: what moves to disk, what comes back, and who is told what.

What    Small stores and small disks, so that everything happens within a second or two.
Never   loses a value: after every error the objects that were there are read again.
"""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

import zray
from tests.cluster.observing import (
    ask,
    give_back,
    node_pid,
    store,
    wait_for_empty_store,
    worker_pids,
)
from tests.waiting import wait_until
from zray import api
from zray.errors import ObjectStoreFullError, OutOfDiskError

MB = 1 << 20
pytestmark = pytest.mark.node(object_store_memory=64 * MB)


def made(value, nbytes=8 * MB - 4096):
    return np.full(nbytes, value, "u1")


def right(array, value):
    return bool((array == value).all())


@zray.remote
def check(array, value):
    return right(array, value)


@zray.remote
def make(value):
    return made(value)


def test_more_than_fits_goes_to_disk_and_comes_back_right(own_node):
    refs = [zray.put(made(i)) for i in range(30)]
    assert store()["spill_bytes"] > 100 * MB
    assert all(right(zray.get(ref), i) for i, ref in enumerate(refs))
    assert all(right(zray.get(ref), i) for i, ref in reversed(list(enumerate(refs))))
    del refs
    wait_for_empty_store()


def test_results_and_arguments_of_tasks_spill_as_well(own_node):
    refs = [make.remote(i) for i in range(24)]
    assert all(zray.get([check.remote(ref, i) for i, ref in enumerate(refs)], timeout=50))
    assert all(right(zray.get(ref), i) for i, ref in enumerate(refs))
    del refs
    wait_for_empty_store()


def test_a_hundred_puts_dropped_one_by_one_never_touch_the_disk(own_node):
    for i in range(100):
        ref = zray.put(made(i))
    assert right(zray.get(ref), 99)
    assert store()["spill_bytes"] == 0


def test_a_list_larger_than_the_store_says_who_holds_what_and_loses_nothing(own_node):
    refs = [zray.put(made(i)) for i in range(12)]
    with pytest.raises(ObjectStoreFullError, match="mapped by") as caught:
        zray.get(refs)
    assert api.runtime().process.hex() in str(caught.value)
    del caught
    assert all(right(zray.get(ref), i) for i, ref in enumerate(refs))


def test_a_put_while_arrays_pin_everything_fails_and_works_once_they_go(own_node):
    refs = [zray.put(made(i)) for i in range(8)]
    arrays = zray.get(refs)
    with pytest.raises(ObjectStoreFullError) as caught:
        zray.put(made(99))
    assert "no room" in str(caught.value)
    assert all(right(array, i) for i, array in enumerate(arrays))
    del arrays, caught
    assert right(zray.get(zray.put(made(5))), 5)
    assert all(right(zray.get(ref), i) for i, ref in enumerate(refs))


def test_an_object_larger_than_the_store_is_refused_at_once(own_node):
    with pytest.raises(ObjectStoreFullError, match="object_store_memory"):
        zray.put(np.zeros(80 * MB, "u1"))
    with pytest.raises(ObjectStoreFullError):
        zray.get(_too_large.remote(), timeout=20)


@zray.remote
def _too_large():
    return np.zeros(80 * MB, "u1")


def test_idle_extents_of_the_driver_serve_a_worker_in_need(own_node):
    for i in range(20):
        zray.put(made(i, 2 * MB - 4096))  # Dropped: kept warm by this process.
    assert store()["leased_bytes"] > 0
    refs = [make.remote(i) for i in range(7)]
    assert all(zray.get([check.remote(ref, i) for i, ref in enumerate(refs)], timeout=30))


def test_private_objects_of_the_driver_spill_for_a_worker_in_need(own_node):
    mine = [zray.put(made(i)) for i in range(7)]
    refs = [make.remote(i + 100) for i in range(6)]
    assert all(zray.get([check.remote(ref, i + 100) for i, ref in enumerate(refs)], timeout=30))
    assert all(right(zray.get(ref), i) for i, ref in enumerate(mine))


def test_values_read_under_pressure_from_many_threads_are_right(own_node):
    from concurrent.futures import ThreadPoolExecutor

    refs = [zray.put(made(i, 2 * MB)) for i in range(40)]

    def read(seed):
        order = np.random.default_rng(seed).permutation(len(refs))
        return all(right(zray.get(refs[i]), i) for i in order[:20])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB for the spill directory."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this system does not let us mount a tmpfs")
    yield str(tmp_path)
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_an_error_of_its_own_and_nothing_is_lost(small_disk):
    zray.init(num_cpus=1, object_store_memory=32 * MB, spill_directory=small_disk)
    try:
        refs = []
        with pytest.raises(OutOfDiskError, match="spill"):
            refs.extend(zray.put(made(i, 4 * MB - 4096)) for i in range(20))
        assert len(refs) >= 8
        kept = len(refs)
        assert all(right(zray.get(ref), i) for i, ref in enumerate(refs[-6:], kept - 6))
        del refs[-8:]
        refs += [zray.put(made(i, 4 * MB - 4096)) for i in range(200, 204)]
        values = [*range(kept - 8), *range(200, 204)]
        assert all(right(zray.get(ref), i) for i, ref in zip(values, refs, strict=True))
    finally:
        zray.shutdown()
    assert os.listdir(small_disk) == []


def test_a_store_of_any_size_starts():
    zray.init(num_cpus=1, object_store_memory=int(20.3e6))
    try:
        assert store()["capacity_bytes"] % 4096 == 0
        assert right(zray.get(zray.put(made(1))), 1)
    finally:
        zray.shutdown()


def test_two_nodes_share_a_spill_directory_with_a_users_files(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    program = textwrap.dedent(f"""
        import sys, numpy as np, zray
        zray.init(num_cpus=1, object_store_memory=32 << 20, spill_directory={str(tmp_path)!r})
        refs = [zray.put(np.full(4 << 20, i, "u1")) for i in range(16)]
        print("ready", flush=True)
        sys.stdin.readline()
        assert all((zray.get(ref) == i).all() for i, ref in enumerate(refs))
        zray.shutdown()
        print("right", flush=True)
        """)
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    with first, second:
        assert first.stdout.readline() == second.stdout.readline() == "ready\n"
        assert first.communicate("\n")[0] == "right\n"
        assert second.communicate("\n")[0] == "right\n"
    assert os.listdir(tmp_path) == ["precious.txt"]


def test_a_store_works_where_dev_shm_has_64_megabytes():
    if os.getuid() != 0:
        pytest.skip("only root may mount a small /dev/shm")
    program = textwrap.dedent("""
        import numpy as np, zray
        zray.init(num_cpus=1, object_store_memory=400 << 20)
        refs = [zray.put(np.full(100 << 20, i, "u1")) for i in range(3)]
        assert all((zray.get(ref) == i).all() for i, ref in enumerate(refs))
        zray.shutdown()
        print("right")
        """)
    shell = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("this system does not let us make a mount namespace")
    assert done.stdout == "right\n", done.stderr


def test_no_memory_for_new_pages_is_an_error_and_the_extent_is_committed_by_the_next(
    own_node, monkeypatch
):
    real = os.posix_fallocate
    refused = []

    def refuse_once(fd, offset, nbytes):
        if not refused:
            refused.append(offset)
            raise OSError(28, "No space left on device")
        real(fd, offset, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", refuse_once)
    with pytest.raises(ObjectStoreFullError, match="memory left"):
        zray.put(made(1, 40 * MB))
    refused.append(-1)
    committed = []
    monkeypatch.setattr(
        os,
        "posix_fallocate",
        lambda fd, offset, nbytes: (committed.append(nbytes), real(fd, offset, nbytes))[1],
    )
    ref = zray.put(made(2, 40 * MB))
    assert committed, "the same extent was written to without memory behind it"
    assert right(zray.get(ref), 2)


def test_a_worker_killed_while_it_waits_for_room_does_not_block_the_others(own_node):
    arrays = zray.get([zray.put(made(i)) for i in range(8)])

    @zray.remote(max_retries=0)
    def needs_room():
        return made(1)

    ref = needs_room.remote()
    wait_until(lambda: store()["waiting_allocations"] > 0, what="a worker to wait for room")
    for pid in worker_pids():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(zray.exceptions.ZrayError):
        zray.get(ref, timeout=20)
    del arrays
    assert right(zray.get(make.remote(3), timeout=30), 3)
    wait_until(lambda: store()["waiting_allocations"] == 0)


def test_the_node_keeps_no_descriptor_and_no_file_of_what_was_spilled(own_node):
    process = psutil.Process(node_pid())
    zray.get([check.remote(made(i), i) for i in range(20)])
    wait_until(lambda: ask("status")["scheduler"]["workers"] == {"idle": 2})
    before = process.num_fds()
    refs = [zray.put(made(i)) for i in range(20)]
    directory = os.path.join(ask("status")["directory"], "spill")
    assert [name for name in os.listdir(directory) if name.endswith(".blob")]
    del refs
    give_back()
    wait_until(lambda: not [n for n in os.listdir(directory) if n.endswith(".blob")])
    wait_until(lambda: process.num_fds() <= before + 2, what="descriptors to be closed")


def test_a_list_larger_than_the_store_comes_back_once(own_node):
    refs = [zray.put(bytes([i]) * (8 * MB - 4096)) for i in range(20)]
    before = store()["restores"]
    values = zray.get(refs, timeout=50)
    assert [(value[0], len(value)) for value in values] == [(i, 8 * MB - 4096) for i in range(20)]
    assert 12 <= store()["restores"] - before <= len(refs)


def test_a_list_that_has_come_back_raises_its_first_error(own_node):
    refs = [zray.put(made(i)) for i in range(12)]
    failing = zray.remote(lambda i: [][i])
    zray.wait(errors := [failing.remote(i) for i in range(2)], num_returns=2)
    with pytest.raises(IndexError):
        zray.get([refs[0], errors[0], *refs[1:4], errors[1]], timeout=50)
    assert right(zray.get(refs[:3], timeout=50)[2], 2)
