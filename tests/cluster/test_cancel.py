"""zray.cancel() with real processes: nothing but what was cancelled ends.

What    Tasks that run, wait, are children; calls; force; races with the end of a task.
"""

import os
import threading
import time

import pytest

import zray
from tests.cluster.programs import echo
from tests.waiting import wait_until
from zray.exceptions import TaskCancelledError, TaskError

pytestmark = pytest.mark.usefixtures("node")
MOMENT_S, SHORT_S, LONG_S = 0.01, 0.5, 60.0
"""How long tasks and methods take; the tests themselves never sleep."""


@zray.remote
def touch_and_sleep(path, seconds=60):
    open(path, "w").close()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(MOMENT_S)
    return "slept"


@zray.remote
def one_long_sleep(path):
    open(path, "w").close()
    time.sleep(LONG_S)


@zray.remote
def touch(path):
    open(path, "w").close()


@zray.remote
def waits_for(path, refs):
    open(path, "w").close()
    return zray.get(refs[0])


@pytest.mark.parametrize("function", [touch_and_sleep, one_long_sleep])
def test_a_running_task_is_interrupted(tmp_path, function):
    path = str(tmp_path / "began")
    ref = function.remote(path)
    wait_until(lambda: os.path.exists(path))
    zray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=10)
    assert zray.get(echo.remote(1), timeout=10) == 1


def test_a_task_that_waits_in_get_is_interrupted(tmp_path):
    path, child_path = str(tmp_path / "began"), str(tmp_path / "child")
    child = touch_and_sleep.remote(child_path)
    ref = waits_for.remote(path, [child])
    wait_until(lambda: os.path.exists(path))
    zray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=10)
    zray.cancel(child)
    with pytest.raises(TaskCancelledError):
        zray.get(child, timeout=10)


def test_tasks_that_wait_behind_others_never_run(tmp_path):
    began = [str(tmp_path / f"long{i}") for i in range(2)]
    long = [touch_and_sleep.remote(path) for path in began]
    wait_until(lambda: all(os.path.exists(path) for path in began))
    paths = [str(tmp_path / f"behind{i}") for i in range(20)]
    behind = [touch.remote(path) for path in paths]
    for ref in behind:
        zray.cancel(ref)
    for ref in behind:
        with pytest.raises(TaskCancelledError):
            zray.get(ref, timeout=10)
    for ref in long:
        zray.cancel(ref)
    assert zray.get([echo.remote(i) for i in range(100)], timeout=20) == list(range(100))
    assert not any(os.path.exists(path) for path in paths)


def test_items_of_a_map_are_cancelled_one_by_one(tmp_path):
    @zray.remote
    def work(item):
        if item is None:
            open(path, "w").close()
            time.sleep(LONG_S)
        return item

    path = str(tmp_path / "began")
    refs = work.map([1, 2, None, 4, 5])
    wait_until(lambda: os.path.exists(path))
    zray.cancel(refs[2])
    with pytest.raises(TaskCancelledError):
        zray.get(refs[2], timeout=10)
    assert zray.get([refs[i] for i in (0, 1, 3, 4)], timeout=10) == [1, 2, 4, 5]


def test_children_and_their_children_are_cancelled(tmp_path):
    paths = [str(tmp_path / f"{depth}") for depth in range(3)]

    @zray.remote
    def nest(depth):
        open(paths[depth], "w").close()
        if depth == 2:
            time.sleep(LONG_S)
        return zray.get(nest.remote(depth + 1))

    ref = nest.remote(0)
    wait_until(lambda: os.path.exists(paths[2]), timeout_s=20)
    zray.cancel(ref, recursive=True)
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=10)
    # Both CPUs are free again: the innermost would hold one for a minute.
    began = time.monotonic()
    zray.get([touch_and_sleep.remote(str(tmp_path / f"x{i}"), 0.2) for i in range(2)], timeout=10)
    assert time.monotonic() - began < 5


def test_a_task_that_catches_the_interrupt_returns_its_value(tmp_path):
    @zray.remote
    def stubborn(path):
        open(path, "w").close()
        try:
            time.sleep(LONG_S)
        except KeyboardInterrupt:
            return "caught", zray.get_runtime_context().is_canceled()

    path = str(tmp_path / "began")
    ref = stubborn.remote(path)
    wait_until(lambda: os.path.exists(path))
    zray.cancel(ref)
    assert zray.get(ref, timeout=10) == ("caught", True)


def test_force_ends_a_task_that_ignores_interrupts(tmp_path):
    @zray.remote(max_retries=3)
    def deaf(path):
        with open(path, "a") as out:
            out.write("x")
        while True:
            try:
                time.sleep(LONG_S)
            except KeyboardInterrupt:
                continue

    path = str(tmp_path / "began")
    ref = deaf.remote(path)
    wait_until(lambda: os.path.exists(path))
    zray.cancel(ref)
    zray.cancel(ref, force=True)
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=10)
    assert zray.get([echo.remote(i) for i in range(50)], timeout=20) == list(range(50))
    assert os.path.getsize(path) == 1, "a cancelled task was retried"


def test_a_keyboard_interrupt_of_the_users_own_is_an_error():
    @zray.remote
    def raises():
        raise KeyboardInterrupt("mine")

    with pytest.raises(TaskError, match="mine"):
        zray.get(raises.remote(), timeout=10)


def test_cancels_that_race_with_the_end_hurt_no_other_task():
    """Each task is cancelled about when it ends; its neighbours must all have their values."""

    @zray.remote
    def short(seconds):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return seconds

    for round_ in range(40):
        victims = [short.remote(0.002) for _ in range(4)]
        others = [echo.remote(i) for i in range(20)]
        time.sleep(0.0005 * (round_ % 8))
        for ref in victims:
            zray.cancel(ref)
        assert zray.get(others, timeout=20) == list(range(20))
        for ref in victims:
            try:
                assert zray.get(ref, timeout=20) == 0.002
            except TaskCancelledError:
                pass


def test_a_finished_task_keeps_its_value():
    ref = echo.remote(1)
    assert zray.get(ref, timeout=10) == 1
    zray.cancel(ref)
    assert zray.get(ref, timeout=10) == 1


def test_a_call_in_an_actors_queue_never_runs():
    @zray.remote
    class Slow:
        def __init__(self):
            self.ran = []

        def stay(self, seconds):
            time.sleep(seconds)

        def note(self, value):
            self.ran.append(value)
            return value

        def noted(self):
            return self.ran

    slow = Slow.remote()
    stay = slow.stay.remote(0.5)
    refs = [slow.note.remote(i) for i in range(10)]
    zray.cancel(refs[3])
    zray.cancel(refs[7])
    for cancelled in (3, 7):
        with pytest.raises(TaskCancelledError):
            zray.get(refs[cancelled], timeout=10)
    assert zray.get(slow.noted.remote(), timeout=10) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert zray.get(stay, timeout=10) is None


def test_a_running_call_of_a_sync_actor_is_told_and_not_interrupted(tmp_path):
    @zray.remote
    class Looking:
        def look(self, path):
            open(path, "w").close()
            while not zray.get_runtime_context().is_canceled():
                time.sleep(MOMENT_S)
            return "looked"

    path = str(tmp_path / "began")
    ref = Looking.remote().look.remote(path)
    wait_until(lambda: os.path.exists(path))
    zray.cancel(ref)
    assert zray.get(ref, timeout=10) == "looked"


def test_force_on_a_call_names_kill():
    @zray.remote
    class Idle:
        def stay(self):
            time.sleep(SHORT_S)

    idle = Idle.remote()
    ref = idle.stay.remote()
    with pytest.raises(ValueError, match=r"zray\.kill"):
        zray.cancel(ref, force=True)
    zray.get(ref, timeout=10)


def test_many_threads_cancel_at_once():
    refs = [touch_and_sleep.remote(os.devnull, 0.02) for _ in range(40)]
    threads = [threading.Thread(target=zray.cancel, args=(ref,)) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ready, _waiting = zray.wait(refs, num_returns=len(refs), timeout=20)
    assert len(ready) == len(refs)
    assert zray.get(echo.remote("alive"), timeout=10) == "alive"
