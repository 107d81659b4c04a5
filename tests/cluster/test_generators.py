"""Generators with real processes: order, back-pressure, ends, errors.

What    Tasks and methods whose items arrive as refs while they run.
"""

import os

import numpy as np
import pytest

import zray
from tests.cluster.programs import count_to, echo
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("node")


@zray.remote
def progress(path, to):
    try:
        for each in range(to):
            with open(path, "a") as out:
                out.write("x")
            yield each
    finally:
        open(path + ".closed", "w").close()


@zray.remote
class Maker:
    def count(self, to):
        yield from range(to)

    def ping(self):
        return "pong"

    @zray.method(_generator_backpressure_num_objects=3)
    def narrow(self, path):
        for each in range(50):
            with open(path, "a") as out:
                out.write("x")
            yield each


def let_it_run():
    """Give a generator the time of many messages: one that does not wait would be far ahead."""
    for each in range(50):
        zray.get(echo.remote(each), timeout=10)


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def test_items_arrive_in_order():
    assert [zray.get(ref) for ref in count_to.remote(1000)] == list(range(1000))


def test_an_empty_generator_ends_at_once():
    assert list(count_to.remote(0)) == []


def test_large_items_come_through_shared_memory():
    @zray.remote
    def arrays():
        for each in range(5):
            yield np.full(100_000, each)

    assert [int(zray.get(ref).sum()) for ref in arrays.remote()] == [
        each * 100_000 for each in range(5)
    ]


@pytest.mark.parametrize("backlog", [1, 3, 20])
def test_a_generator_waits_for_its_consumer(tmp_path, backlog):
    path = str(tmp_path / "progress")
    generator = progress.options(_generator_backpressure_num_objects=backlog).remote(path, 100)
    wait_until(lambda: size(path) >= backlog)
    let_it_run()
    assert size(path) <= backlog + 1
    assert [zray.get(ref) for ref in generator] == list(range(100))


def test_a_closed_generator_stops_and_runs_its_finally(tmp_path):
    path = str(tmp_path / "progress")
    generator = progress.options(_generator_backpressure_num_objects=4).remote(path, 1_000_000)
    assert zray.get(next(generator), timeout=10) == 0
    generator.close()
    wait_until(lambda: os.path.exists(path + ".closed"))
    assert size(path) < 100


def test_a_dropped_generator_stops(tmp_path):
    path = str(tmp_path / "progress")
    generator = progress.remote(path, 1_000_000)
    zray.get(next(generator), timeout=10)
    del generator
    # What was dropped is told with the next message.
    wait_until(lambda: zray.get(echo.remote(1), timeout=10) and os.path.exists(path + ".closed"))


def test_an_exception_comes_after_the_items_before_it():
    @zray.remote
    def breaks():
        yield 1
        yield 2
        raise ValueError("broken")

    generator = breaks.remote()
    assert [zray.get(next(generator)), zray.get(next(generator))] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(generator)


def test_a_retried_generator_delivers_each_item_once(tmp_path):
    @zray.remote(retry_exceptions=[ConnectionError], max_retries=2)
    def flaky(path):
        for each in range(10):
            if each == 5 and size(path) < 2:
                with open(path, "a") as out:
                    out.write("x")
                raise ConnectionError
            yield each

    assert [zray.get(ref) for ref in flaky.remote(str(tmp_path / "tries"))] == list(range(10))


def test_a_generator_task_is_cancelled(tmp_path):
    path = str(tmp_path / "progress")
    generator = progress.options(_generator_backpressure_num_objects=2).remote(path, 100)
    zray.get(next(generator), timeout=10)
    zray.cancel(generator.completed())
    wait_until(lambda: os.path.exists(path + ".closed"))
    with pytest.raises(zray.exceptions.TaskCancelledError):
        list(generator)


def test_an_async_generator_is_a_task_too():
    @zray.remote
    async def numbers(to):
        for each in range(to):
            yield each

    assert [zray.get(ref) for ref in numbers.remote(20)] == list(range(20))


def test_an_actors_generator_streams_and_the_actor_lives_on():
    maker = Maker.remote()
    assert [zray.get(ref) for ref in maker.count.remote(500)] == list(range(500))
    assert zray.get(maker.ping.remote(), timeout=10) == "pong"


def test_a_methods_own_back_pressure_holds(tmp_path):
    path = str(tmp_path / "progress")
    maker = Maker.remote()
    generator = maker.narrow.remote(path)
    wait_until(lambda: size(path) >= 3)
    let_it_run()
    assert size(path) <= 4
    assert [zray.get(ref) for ref in generator] == list(range(50))


def test_the_back_pressure_of_one_call_holds(tmp_path):
    path = str(tmp_path / "progress")
    maker = Maker.remote()
    generator = maker.narrow.options(_generator_backpressure_num_objects=10).remote(path)
    wait_until(lambda: size(path) >= 10)
    assert [zray.get(ref) for ref in generator] == list(range(50))
