"""How tasks end with real processes: exits, crashes, retries, results that cannot travel.

What    Each way out of a task, as its caller sees it.
"""

import ctypes
import os
import sys
import threading

import pytest

import zray
from tests.cluster.programs import echo
from tests.waiting import wait_until
from zray.exceptions import SerializationError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("node")


def tries(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def note(path):
    with open(path, "a") as out:
        out.write("x")


def segfault():
    ctypes.string_at(0)


ENDS = {"sys.exit": lambda: sys.exit(3), "os._exit": lambda: os._exit(3), "segfault": segfault}


@pytest.mark.parametrize("way", list(ENDS))
def test_a_task_that_ends_its_worker_is_tried_again_then_fails(tmp_path, way):
    end = ENDS[way]

    @zray.remote(max_retries=2)
    def ends(path):
        note(path)
        end()

    path = str(tmp_path / "tries")
    neighbours = [echo.remote(i) for i in range(20)]
    with pytest.raises(WorkerCrashedError):
        zray.get(ends.remote(path), timeout=30)
    assert tries(path) == 3
    assert zray.get(neighbours, timeout=20) == list(range(20))


def test_results_before_a_sys_exit_stand(tmp_path):
    @zray.remote(max_retries=0)
    def maybe_exit(item, path):
        note(path)
        if item == 5:
            sys.exit(1)
        return item

    refs = [maybe_exit.remote(i, str(tmp_path / f"{i}")) for i in range(10)]
    with pytest.raises(WorkerCrashedError):
        zray.get(refs[5], timeout=20)
    others = [i for i in range(10) if i != 5]
    assert zray.get([refs[i] for i in others], timeout=20) == others
    assert [tries(str(tmp_path / f"{i}")) for i in range(10)] == [1] * 10


def test_retry_exceptions_run_the_task_again(tmp_path):
    @zray.remote(retry_exceptions=[ConnectionError], max_retries=3)
    def flaky(path, fail_times, kind):
        note(path)
        if tries(path) <= fail_times:
            raise kind("not yet")
        return tries(path)

    assert zray.get(flaky.remote(str(tmp_path / "a"), 3, ConnectionError), timeout=10) == 4
    with pytest.raises(ConnectionError):
        zray.get(flaky.remote(str(tmp_path / "b"), 9, ConnectionError), timeout=10)
    assert tries(str(tmp_path / "b")) == 4
    with pytest.raises(KeyError):
        zray.get(flaky.remote(str(tmp_path / "c"), 9, KeyError), timeout=10)
    assert tries(str(tmp_path / "c")) == 1


def test_a_map_retries_its_items(tmp_path):
    @zray.remote(retry_exceptions=True, max_retries=1)
    def flaky(path):
        note(path)
        if tries(path) < 2:
            raise ConnectionError
        return tries(path)

    paths = [str(tmp_path / f"{i}") for i in range(5)]
    assert zray.get(flaky.map(paths), timeout=10) == [2] * 5


@pytest.mark.parametrize("max_calls", [1, 7])
def test_a_worker_retires_after_max_calls_and_no_task_is_lost(max_calls):
    @zray.remote(max_calls=max_calls)
    def pid(_item):
        return os.getpid()

    pids = zray.get([pid.remote(i) for i in range(28)], timeout=60)
    for each in set(pids):
        assert pids.count(each) <= max_calls
    assert zray.get([pid.remote(i) for i in range(3)], timeout=30)
    assert zray.get(pid.map(range(20)), timeout=60)


def test_one_call_after_the_other_counts_too():
    @zray.remote(max_calls=1)
    def pid():
        return os.getpid()

    pids = [zray.get(pid.remote(), timeout=20) for _ in range(5)]
    assert len(set(pids)) == 5


def test_environment_variables_reach_their_task_only():
    @zray.remote
    def read():
        return os.environ.get("ZRAY_TEST_SETTING")

    with_it = read.options(runtime_env={"env_vars": {"ZRAY_TEST_SETTING": "on"}})
    for _ in range(3):
        # One at a time: each could go straight to a leased worker of the other kind.
        assert zray.get([with_it.remote() for _ in range(1)], timeout=20) == ["on"]
        assert zray.get(read.remote(), timeout=20) is None


def test_num_returns():
    @zray.remote(num_returns=3)
    def three(values):
        return values

    assert zray.get(three.remote([1, 2, 3]), timeout=10) == [1, 2, 3]
    assert zray.get(three.remote(range(3)), timeout=10) == [0, 1, 2]
    for wrong in ([1, 2], 5):
        with pytest.raises(ValueError, match="num_returns=3"):
            zray.get(three.remote(wrong)[0], timeout=10)
    assert echo.options(num_returns=0).remote(1) is None


def test_one_return_that_cannot_travel_does_not_spoil_the_others():
    @zray.remote(num_returns=2)
    def mixed():
        return 1, threading.Lock()

    good, bad = mixed.remote()
    assert zray.get(good, timeout=10) == 1
    with pytest.raises(SerializationError):
        zray.get(bad, timeout=10)


def test_one_item_of_a_map_that_cannot_travel_does_not_spoil_the_others():
    @zray.remote
    def maybe(item):
        return threading.Lock() if item == 3 else item

    refs = maybe.map(range(6))
    assert zray.get([refs[i] for i in (0, 1, 2, 4, 5)], timeout=10) == [0, 1, 2, 4, 5]
    with pytest.raises(SerializationError):
        zray.get(refs[3], timeout=10)


def test_the_runtime_context_of_a_task():
    @zray.remote(num_cpus=0.5, name="my task")
    def look():
        found = zray.get_runtime_context()
        return (
            found.get_task_id(),
            found.get_task_name(),
            found.get_assigned_resources(),
            found.get_actor_id(),
            found.get_job_id(),
            found.is_canceled(),
        )

    ref = look.remote()
    assert zray.get(ref, timeout=10) == (
        ref.hex(),
        "my task",
        {"CPU": 0.5},
        None,
        zray.get_runtime_context().get_job_id(),
        False,
    )


def test_the_items_of_a_map_have_ids_of_their_own():
    @zray.remote
    def look(_item):
        return zray.get_runtime_context().get_task_id()

    refs = look.map(range(50))
    assert zray.get(refs, timeout=10) == [ref.hex() for ref in refs]


def test_a_crash_leaves_its_stack_at_the_driver(capfd):
    @zray.remote(max_retries=0)
    def crash_here():
        print("before the crash")
        segfault()

    with pytest.raises(WorkerCrashedError, match="SIGSEGV"):
        zray.get(crash_here.remote(), timeout=20)
    seen = []

    def all_seen():
        out, err = capfd.readouterr()
        seen.append(out + err)
        text = "".join(seen)
        return "before the crash" in text and "crash_here" in text and "Segmentation" in text

    wait_until(all_seen)
