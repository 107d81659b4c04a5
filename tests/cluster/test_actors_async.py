"""Async actors with real processes: coroutines, their order, awaits, cancels, generators.

What    What users write with `async def` methods, and what must not hold up their loop.
"""

import asyncio
import time

import pytest

import zray
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("node")
MOMENT_S = 0.01


@zray.remote
def later(value, delay_s=0.05):
    time.sleep(delay_s)
    return value


class Box:
    def __init__(self):
        self.items = asyncio.Queue()
        self.running = 0
        self.most = 0

    async def put(self, item):
        await self.items.put(item)

    async def take(self):
        return await self.items.get()

    async def stay(self, seconds):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        return self.most

    def state(self):
        return self.running, self.most

    async def value_of(self, boxed):
        return await boxed[0]

    async def value_of_task(self, value):
        return await later.remote(value)

    async def blocking_get(self, value):
        return zray.get(later.remote(value))

    async def count(self, to):
        for each in range(to):
            yield each

    def plain_count(self, to):
        yield from range(to)

    async def fail(self):
        await asyncio.sleep(0)
        raise KeyError("missing")

    async def task_id(self):
        await asyncio.sleep(MOMENT_S)
        return zray.get_runtime_context().get_task_id()


Actor = zray.remote(Box)


@pytest.fixture(params=["process", "shared"])
def box(request):
    return Actor.options(isolation=request.param).remote()


def test_a_call_that_waits_lets_a_later_one_run(box):
    taken = box.take.remote()
    zray.get(box.put.remote("x"), timeout=10)
    assert zray.get(taken, timeout=10) == "x"


def test_hundreds_of_coroutines_wait_at_the_same_time(box):
    began = time.monotonic()
    assert max(zray.get([box.stay.remote(0.3) for _ in range(300)], timeout=20)) > 100
    assert time.monotonic() - began < 10


def test_max_concurrency_bounds_what_runs(box):
    narrow = Actor.options(max_concurrency=3).remote()
    assert max(zray.get([narrow.stay.remote(0.02) for _ in range(12)], timeout=20)) == 3


def test_plain_methods_run_between_coroutines(box):
    stays = box.stay.remote(30)
    wait_until(lambda: zray.get(box.state.remote(), timeout=10)[0] == 1)
    zray.cancel(stays)


def test_refs_are_awaited_inside(box):
    assert zray.get(box.value_of.remote([later.remote(7)]), timeout=10) == 7
    assert zray.get([box.value_of_task.remote(i) for i in range(20)], timeout=20) == list(range(20))


def test_a_blocking_get_inside_a_coroutine_still_ends(box):
    assert zray.get(box.blocking_get.remote(5), timeout=10) == 5
    assert zray.get(box.state.remote(), timeout=10) == (0, 0)


def test_async_and_plain_generators_stream(box):
    assert [zray.get(ref) for ref in box.count.remote(300)] == list(range(300))
    assert [zray.get(ref) for ref in box.plain_count.remote(300)] == list(range(300))


def test_a_generators_back_pressure_does_not_hold_up_the_loop(box):
    generator = box.count.options(_generator_backpressure_num_objects=2).remote(100)
    assert zray.get(next(generator), timeout=10) == 0
    assert zray.get(box.state.remote(), timeout=10) == (0, 0)
    assert [zray.get(ref) for ref in generator] == list(range(1, 100))


def test_an_exception_arrives_as_its_own_type(box):
    with pytest.raises(KeyError):
        zray.get(box.fail.remote(), timeout=10)


def test_a_waiting_coroutine_is_cancelled(box):
    stays = box.stay.remote(60)
    wait_until(lambda: zray.get(box.state.remote(), timeout=10)[0] == 1)
    zray.cancel(stays)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(stays, timeout=10)
    # Its finally clause has run, and the actor lives on.
    assert zray.get(box.state.remote(), timeout=10)[0] == 0


def test_a_call_that_waits_for_its_turn_is_cancelled():
    narrow = Actor.options(max_concurrency=1).remote()
    first, second = narrow.stay.remote(60), narrow.stay.remote(60)
    zray.cancel(second)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(second, timeout=10)
    zray.cancel(first)
    with pytest.raises(zray.exceptions.TaskCancelledError):
        zray.get(first, timeout=10)


def test_each_coroutine_knows_its_own_call(box):
    refs = [box.task_id.remote() for _ in range(20)]
    assert zray.get(refs, timeout=10) == [ref.hex() for ref in refs]
