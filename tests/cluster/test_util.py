"""zray.util with real actors: ActorPool, Queue, as_completed, map_unordered, serializers.

What    Each as Ray's documentation uses it, and what goes wrong: timeouts, errors, full and empty.
"""

import asyncio
import io
import os
import queue as standard_queue
import threading
import time

import pytest

import zray
from tests.cluster.programs import PAUSE_S
from tests.waiting import wait_until
from zray.api import runtime
from zray.util import ActorPool, as_completed, map_unordered
from zray.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("node")


@zray.remote
def double(x):
    if x == "bad":
        raise KeyError(x)
    return x * 2


@zray.remote
class Worker:
    def double(self, x):
        if x == "bad":
            raise KeyError(x)
        return x * 2

    def wait_for(self, path):
        while not os.path.exists(path):
            time.sleep(PAUSE_S)
        return path


def _double(actor, value):
    return actor.double.remote(value)


def _wait_for(actor, path):
    return actor.wait_for.remote(path)


# -- ActorPool -------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    return ActorPool([Worker.options(num_cpus=0).remote() for _ in range(2)])


def test_a_pool_maps_in_order(pool):
    assert list(pool.map(_double, range(20))) == [2 * i for i in range(20)]
    assert list(pool.map(_double, [])) == []


def test_a_pool_maps_as_results_come(pool):
    assert sorted(pool.map_unordered(_double, range(20))) == [2 * i for i in range(20)]


def test_get_next_returns_in_order_of_submission_and_then_stops(pool):
    for i in range(5):
        pool.submit(_double, i)
    taken = []
    while pool.has_next():
        taken.append(pool.get_next())
    assert taken == [0, 2, 4, 6, 8]
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_ordered_and_unordered_results_are_mixed(pool, tmp_path):
    go = str(tmp_path / "go")
    pool.submit(_wait_for, go)
    pool.submit(_double, 1)
    pool.submit(_double, 2)
    assert pool.get_next_unordered(timeout=20) == 2
    (tmp_path / "go").touch()
    assert pool.get_next(timeout=20) == go
    assert pool.get_next(timeout=20) == 4
    assert not pool.has_next()


def test_a_late_result_is_kept_or_left_out(pool, tmp_path):
    go = str(tmp_path / "go")
    pool.submit(_wait_for, go)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.01)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.01)
    assert pool.has_next()
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.01, ignore_if_timedout=True)
    assert not pool.has_next()
    (tmp_path / "go").touch()
    assert list(pool.map(_double, [1])) == [2]


def test_an_error_frees_its_actor(pool):
    for value in ("bad", "bad", "bad", 1):
        pool.submit(_double, value)
    for _ in range(3):
        with pytest.raises(KeyError):
            pool.get_next(timeout=20)
    assert pool.get_next(timeout=20) == 2


def test_actors_come_and_go(pool, tmp_path):
    actor = pool.pop_idle()
    other = pool.pop_idle()
    assert pool.pop_idle() is None
    assert not pool.has_free()
    pool.submit(_double, 1)
    with pytest.raises(ValueError, match="push"):
        pool.get_next()
    pool.push(actor)
    assert pool.get_next(timeout=20) == 2
    with pytest.raises(ValueError, match="already"):
        pool.push(actor)
    pool.push(other)
    assert pool.has_free()


def test_a_pool_refuses_a_function_that_returns_no_ref(pool):
    with pytest.raises(TypeError, match="ObjectRef"):
        pool.submit(lambda actor, value: value, 1)
    assert list(pool.map(_double, [1, 2, 3])) == [2, 4, 6]


# -- Queue -----------------------------------------------------------------------------------------


@pytest.fixture
def queue():
    made = Queue(maxsize=3)
    yield made
    made.shutdown(force=True)


def test_a_queue_is_first_in_first_out(queue):
    assert queue.empty()
    for i in range(3):
        queue.put(i)
    assert len(queue) == queue.qsize() == queue.size() == 3
    assert queue.full()
    assert [queue.get() for _ in range(3)] == [0, 1, 2]


def test_a_full_and_an_empty_queue_say_so(queue):
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(standard_queue.Empty):
        queue.get(timeout=0.01)
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full):
        queue.put_nowait(4)
    with pytest.raises(standard_queue.Full):
        queue.put(4, timeout=0.01)
    with pytest.raises(Full):
        queue.put_nowait_batch([4])
    with pytest.raises(Empty):
        queue.get_nowait_batch(4)
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.get_nowait_batch(0) == []
    assert queue.size() == 1
    for wrong in (
        lambda: queue.get(timeout=-1),
        lambda: queue.put(1, timeout=-1),
        lambda: queue.get_nowait_batch(-1),
    ):
        with pytest.raises(ValueError, match="0 or more"):
            wrong()
    with pytest.raises(TypeError):
        queue.get_nowait_batch("2")


def test_get_waits_for_put_and_put_for_get(queue):
    found = []
    taker = threading.Thread(target=lambda: found.append(queue.get(timeout=20)))
    taker.start()
    queue.put("x")
    taker.join(20)
    assert found == ["x"]
    queue.put_nowait_batch([1, 2, 3])
    putter = threading.Thread(target=lambda: queue.put(4, timeout=20))
    putter.start()
    assert queue.get() == 1
    putter.join(20)
    assert [queue.get(timeout=20) for _ in range(3)] == [2, 3, 4]


def test_a_queue_is_used_from_tasks_and_from_loops(queue):
    @zray.remote
    def produce(queue, count):
        for i in range(count):
            queue.put(i)

    async def consume(count):
        # Beside the taking: where the task has filled the queue already, it waits for room.
        put = asyncio.ensure_future(queue.put_async("mine"))
        found = [await queue.get_async() for _ in range(count + 1)]
        await put
        return found

    ref = produce.remote(queue, 10)
    assert set(asyncio.run(consume(10))) == {*range(10), "mine"}
    zray.get(ref)

    async def nothing():
        with pytest.raises(Empty):
            await queue.get_async(block=False)

    asyncio.run(nothing())


def test_a_queue_carries_refs_and_none(queue):
    queue.put(None)
    queue.put([zray.put(7)])
    assert queue.get() is None
    assert zray.get(queue.get()[0]) == 7


def test_a_queue_that_was_shut_down_raises():
    queue = Queue()
    queue.put(1)
    queue.shutdown()
    with pytest.raises(zray.exceptions.RayActorError):
        queue.get()


def test_a_queue_has_a_name_to_be_found_by():
    queue = Queue(actor_options={"name": "orders"})
    queue.put(1)
    assert zray.util.list_named_actors() == ["orders"]
    del queue
    wait_until(lambda: not zray.util.list_named_actors())


# -- results as they come --------------------------------------------------------------------------


def test_as_completed_yields_values_and_refs():
    assert sorted(as_completed([double.remote(i) for i in range(50)])) == [2 * i for i in range(50)]
    refs = [double.remote(i) for i in range(5)]
    assert set(as_completed(refs, yield_obj_refs=True)) == set(refs)
    assert list(as_completed([])) == []
    with pytest.raises(ValueError, match="chunk_size"):
        as_completed(refs, chunk_size=0)


def test_as_completed_does_not_wait_for_the_slow_ones(tmp_path):
    worker = Worker.options(num_cpus=0).remote()
    late = worker.wait_for.remote(str(tmp_path / "go"))
    found = as_completed([late, double.remote(1), double.remote(2)])
    assert sorted([next(found), next(found)]) == [2, 4]
    (tmp_path / "go").touch()
    assert list(found) == [str(tmp_path / "go")]


def test_who_polls_with_no_timeout_sees_results_come():
    """The time was over before the first look: such a loop never ended."""
    refs = [double.remote(i) for i in range(20)]
    ready = []

    def all_are_there():
        nonlocal refs
        done, refs = zray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        ready.extend(done)
        return not refs

    wait_until(all_are_there)
    assert sorted(zray.get(ready)) == [2 * i for i in range(20)]
    late = double.remote(4)

    def is_there():
        try:
            return zray.get(late, timeout=0) == 8
        except zray.exceptions.GetTimeoutError:
            return False

    wait_until(is_there)


def test_as_completed_refuses_what_it_could_never_yield():
    ref = double.remote(1)
    with pytest.raises(ValueError, match="twice"):
        list(as_completed([ref, ref]))
    with pytest.raises(TypeError, match="as_completed"):
        list(as_completed([1]))


def test_an_error_among_completed_ones_is_raised_at_its_turn():
    found = as_completed([double.remote("bad")])
    with pytest.raises(KeyError):
        next(found)


def test_map_unordered_takes_items_as_results_make_room():
    taken = []

    def endless():
        i = 0
        while True:
            taken.append(i)
            yield i
            i += 1

    found = map_unordered(double, endless(), backpressure_size=5, chunk_size=1)
    assert len([next(found) for _ in range(20)]) == 20
    assert len(taken) <= 26
    assert sorted(map_unordered(double, range(30), backpressure_size=None)) == [
        2 * i for i in range(30)
    ]
    with pytest.raises(TypeError, match="remote function"):
        map_unordered(len, [])
    with pytest.raises(ValueError, match="backpressure_size"):
        map_unordered(double, [], backpressure_size=2, chunk_size=3)


def test_an_error_is_raised_at_its_turn():
    with pytest.raises(KeyError):
        list(map_unordered(double, [1, "bad"]))


# -- serializers -----------------------------------------------------------------------------------


class Locked:
    def __init__(self, value):
        self.value = value
        self.lock = threading.Lock()


def test_a_registered_serializer_is_used_for_arguments_and_puts():
    from zray.util import deregister_serializer, register_serializer

    with pytest.raises(zray.exceptions.SerializationError, match="lock"):
        zray.put(Locked(1))
    register_serializer(Locked, serializer=lambda v: v.value, deserializer=Locked)
    try:
        assert zray.get(zray.put(Locked(5))).value == 5
    finally:
        deregister_serializer(Locked)
    with pytest.raises(zray.exceptions.SerializationError):
        zray.put(Locked(1))


def test_inspect_serializability_finds_the_lock():
    from zray.util import inspect_serializability

    said = io.StringIO()
    fine, failures = inspect_serializability(Locked(1), print_file=said)
    assert not fine
    assert {failure.name for failure in failures} == {"Locked.lock"}
    assert inspect_serializability({"a": 1}, print_file=said) == (True, set())


def test_names_of_ray_that_are_missing_say_why():
    for name in ("metrics", "collective"):
        with pytest.raises(AttributeError, match="release"):
            getattr(zray.util, name)
    with pytest.raises(AttributeError):
        zray.util.no_such_name
    assert runtime().node_died is None
