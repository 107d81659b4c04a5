"""Threaded actors and concurrency groups with real processes.

What    Methods at the same time, limits, groups, waits inside, order.
"""

import threading
import time

import pytest

import zray
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("node")
MOMENT_S = 0.01


@zray.remote
def later(value):
    time.sleep(MOMENT_S)
    return value


class Gate:
    def __init__(self):
        self.event = threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.seen = []

    def wait_open(self):
        self._enter()
        opened = self.event.wait(30)
        self._leave()
        return opened

    def open(self):
        self.event.set()

    def stay(self, seconds):
        self._enter()
        time.sleep(seconds)
        self._leave()
        return self.most

    def _enter(self):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)

    def _leave(self):
        with self.lock:
            self.running -= 1

    def state(self):
        return self.running

    def value_of_task(self, value):
        return zray.get(later.remote(value))

    def task_id(self):
        time.sleep(MOMENT_S)
        return zray.get_runtime_context().get_task_id()

    def note(self, value):
        self.seen.append(value)

    def notes(self):
        return self.seen

    @zray.method(concurrency_group="io")
    def io_stay(self, seconds):
        return self.stay(seconds)

    def until_cancelled(self):
        self._enter()
        while not zray.get_runtime_context().is_canceled():
            time.sleep(MOMENT_S)
        self._leave()
        return "saw it"

    def count(self, to):
        yield from range(to)


Actor = zray.remote(Gate)


@pytest.mark.parametrize("isolation", ["process", "shared"])
def test_one_call_opens_the_gate_that_another_waits_at(isolation):
    gate = Actor.options(max_concurrency=2, isolation=isolation).remote()
    waiting = gate.wait_open.remote()
    zray.get(gate.open.remote(), timeout=10)
    assert zray.get(waiting, timeout=10) is True


def test_max_concurrency_bounds_what_runs():
    gate = Actor.options(max_concurrency=4).remote()
    assert max(zray.get([gate.stay.remote(0.03) for _ in range(20)], timeout=20)) == 4


def test_all_threads_may_wait_in_get():
    gate = Actor.options(max_concurrency=30).remote()
    refs = [gate.value_of_task.remote(i) for i in range(60)]
    assert zray.get(refs, timeout=30) == list(range(60))


def test_a_result_leaves_while_other_calls_run():
    gate = Actor.options(max_concurrency=2).remote()
    slow = gate.wait_open.remote()
    assert zray.get(gate.stay.remote(0), timeout=5) >= 1
    zray.get(gate.open.remote(), timeout=10)
    assert zray.get(slow, timeout=10)


def test_groups_have_limits_of_their_own():
    gate = Actor.options(concurrency_groups={"io": 2, "fast": 1}).remote()
    blocked = gate.wait_open.remote()  # The default group has one thread.
    assert zray.get([gate.io_stay.remote(0.02) for _ in range(8)], timeout=20)[-1] == 3
    assert zray.get(gate.state.options(concurrency_group="fast").remote(), timeout=10) == 1
    zray.get(gate.open.options(concurrency_group="io").remote(), timeout=10)
    assert zray.get(blocked, timeout=10)


def test_an_unknown_group_is_named():
    gate = Actor.options(max_concurrency=2).remote()
    with pytest.raises(zray.exceptions.OptionError, match="nowhere"):
        zray.get(gate.state.options(concurrency_group="nowhere").remote(), timeout=10)


def test_a_group_of_one_keeps_the_callers_order():
    gate = Actor.options(concurrency_groups={"other": 1}).remote()
    for value in range(300):
        gate.note.remote(value)
    assert zray.get(gate.notes.remote(), timeout=20) == list(range(300))


def test_each_thread_knows_its_own_call():
    gate = Actor.options(max_concurrency=8).remote()
    refs = [gate.task_id.remote() for _ in range(32)]
    assert zray.get(refs, timeout=20) == [ref.hex() for ref in refs]


def test_a_running_method_sees_that_it_was_cancelled():
    gate = Actor.options(max_concurrency=2).remote()
    ref = gate.until_cancelled.remote()
    wait_until(lambda: zray.get(gate.state.remote(), timeout=10) == 1)
    zray.cancel(ref)
    assert zray.get(ref, timeout=10) == "saw it"


def test_generators_stream_from_threads():
    gate = Actor.options(max_concurrency=4).remote()
    generators = [gate.count.remote(150) for _ in range(4)]
    for generator in generators:
        assert [zray.get(ref) for ref in generator] == list(range(150))
