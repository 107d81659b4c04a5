"""Objects between real processes: values, sharing, references and where the memory goes.

What    put and get of every kind of value, arguments and results, refs inside of things, and the
        store's used bytes, which come back to 0 when nobody refers to anything any more.
Never   fills the store: tests/cluster/test_objects_full.py does.
"""

import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import zray
from tests.cluster.observing import ask, give_back, store, wait_for_empty_store
from tests.cluster.programs import pid
from tests.waiting import wait_until
from zray import api
from zray.observer import Observer

pytestmark = pytest.mark.node(object_store_memory=512 << 20)
MB = 1_000_000


@pytest.fixture(autouse=True)
def memory_comes_back(node):
    yield
    wait_for_empty_store()


@zray.remote
def total(array):
    return int(np.asarray(array).sum())


@zray.remote
def filled(value, nbytes):
    return np.full(nbytes, value, "u1")


@zray.remote
def first_of(refs):
    return zray.get(refs[0])


@zray.remote
def put_inside(value, nbytes):
    return [zray.put(np.full(nbytes, value, "u1")), zray.put(value)]


@zray.remote
class Keeper:
    def keep(self, value):
        self.value = value
        return True

    def kept(self):
        return self.value

    def drop(self):
        self.value = None
        return True


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "text",
        b"bytes",
        [1, {"a": (2, 3)}],
        b"x" * 65_000,
        b"y" * MB,
        "ü" * MB,
        list(range(100_000)),
        {"nested": [b"z" * 200_000, {"deep": b"w" * 200_000}]},
    ],
    ids=["none", "int", "str", "bytes", "nested", "64k", "1MB", "text", "list", "dict"],
)
def test_a_value_comes_back_equal_from_put_and_from_a_task(value):
    @zray.remote
    def same(given):
        return given

    assert zray.get(zray.put(value), timeout=20) == value
    assert zray.get(same.remote(value), timeout=20) == value
    assert zray.get(same.remote(zray.put(value)), timeout=20) == value


@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", "M8[us]", "i4,f8", "S3", "bool"])
@pytest.mark.parametrize("shape", [(0,), (300_000,), (400, 500), (3, 0, 5)])
def test_an_array_of_any_type_and_shape_comes_back(dtype, shape):
    array = np.zeros(shape, dtype)
    got = zray.get(zray.put(array))
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()


def test_an_array_on_get_is_read_only_and_no_copy():
    ref = zray.put(np.arange(MB))
    one, two = zray.get(ref), zray.get(ref)
    assert not one.flags.writeable
    with pytest.raises(ValueError):
        one[0] = 1
    assert one.__array_interface__["data"][0] == two.__array_interface__["data"][0]
    assert one.__array_interface__["data"][0] % 64 == 0


def test_an_array_on_get_writable_is_a_copy_of_ones_own():
    ref = zray.put(np.arange(MB))
    mine = zray.get(ref, writable=True)
    mine[:] = -1
    assert zray.get(ref)[5] == 5


def test_a_worker_cannot_change_what_others_see():
    @zray.remote
    def scribble(array):
        array[0] = 1

    ref = zray.put(np.zeros(MB))
    with pytest.raises(ValueError):
        zray.get(scribble.remote(ref), timeout=20)
    assert zray.get(ref)[0] == 0


def test_a_table_of_pandas_and_of_arrow_comes_back_without_a_copy():
    frame = pd.DataFrame({"a": np.arange(200_000), "b": np.random.default_rng(1).random(200_000)})
    table = pa.table({"a": np.arange(200_000), "t": [str(i) for i in range(200_000)]})
    got_frame, got_table = zray.get([zray.put(frame), zray.put(table)])
    pd.testing.assert_frame_equal(got_frame, frame)
    assert got_table.equals(table)
    again = zray.get(zray.put(frame))
    assert not again["b"].to_numpy().flags.writeable


def test_arrays_outlive_their_reference():
    array = zray.get(filled.remote(3, 5 * MB), timeout=20)
    part = array[100:200]
    del array
    give_back()
    others = [zray.put(np.full(5 * MB, 9, "u1")) for _ in range(20)]
    assert (part == 3).all()
    del others


def test_memory_comes_back_when_references_are_dropped():
    refs = [zray.put(np.zeros(2 * MB)) for _ in range(10)]
    assert store()["used_bytes"] >= 160 * MB
    del refs
    wait_for_empty_store()


def test_memory_comes_back_though_the_driver_does_nothing_more():
    ref = zray.put(np.zeros(2 * MB))
    zray.get(total.remote(ref), timeout=20)  # The node has it now: it is not private any more.
    observer = Observer(api.runtime().directory)
    assert observer.ask("objects"), "the object was never shared: this would show nothing"
    del ref
    wait_until(lambda: not observer.ask("objects"))
    observer.close()


def test_results_and_arguments_of_tasks_leave_nothing_behind():
    refs = [filled.remote(i, 3 * MB) for i in range(12)]
    totals = zray.get([total.remote(ref) for ref in refs], timeout=30)
    assert totals == [i * 3 * MB for i in range(12)]
    assert zray.get(total.remote(np.ones(4 * MB, "u1")), timeout=20) == 4 * MB


def test_a_result_that_nobody_awaits_is_not_kept():
    for value in range(5):
        filled.remote(value, 4 * MB)
    zray.get([pid.remote() for _ in range(50)], timeout=20)


def test_a_ref_in_a_container_stays_a_ref_and_keeps_its_object():
    inner = zray.put(np.full(2 * MB, 7, "u1"))
    outer = zray.put([inner])
    del inner
    give_back()
    (again,) = zray.get(outer)
    assert zray.get(again)[-1] == 7
    array = zray.get(first_of.remote([again]), timeout=20)
    assert array[0] == 7


def test_refs_made_in_a_task_outlive_the_task():
    large, small = zray.get(put_inside.remote(5, 3 * MB), timeout=20)
    assert zray.get(large, timeout=20)[-1] == 5
    assert zray.get(small, timeout=20) == 5


def test_an_object_goes_from_worker_to_worker():
    keepers = [Keeper.remote() for _ in range(2)]
    ref = filled.remote(4, 6 * MB)
    assert all(zray.get([keeper.keep.remote(ref) for keeper in keepers], timeout=20))
    one, two = zray.get([keeper.kept.remote() for keeper in keepers], timeout=20)
    assert one[0] == two[-1] == 4
    del ref
    assert zray.get(keepers[0].kept.remote(), timeout=20)[1] == 4


def test_an_actor_that_holds_an_array_holds_its_memory_until_it_drops_it():
    keeper = Keeper.remote()
    ref = zray.put(np.ones(8 * MB, "u1"))
    zray.get(keeper.keep.remote(ref), timeout=20)
    del ref
    give_back()
    assert store()["used_bytes"] >= 8 * MB
    zray.get(keeper.drop.remote(), timeout=20)
    wait_until(lambda: store()["used_bytes"] == 0, what="the actor's array to be given back")


def test_a_killed_worker_gives_back_what_it_held():
    keeper = Keeper.remote()
    zray.get(keeper.keep.remote(zray.put(np.ones(8 * MB, "u1"))), timeout=20)
    give_back()
    assert store()["used_bytes"] >= 8 * MB
    zray.kill(keeper)
    wait_until(lambda: store()["used_bytes"] == 0, what="the dead actor's memory")


def test_ten_thousand_refs_are_arguments_of_one_task():
    @zray.remote
    def count(*values):
        return sum(values)

    @zray.remote
    def count_refs(refs):
        return sum(zray.get(refs))

    refs = [zray.put(i) for i in range(10_000)]
    began = time.monotonic()
    assert zray.get(count.remote(*refs), timeout=50) == sum(range(10_000))
    assert zray.get(count_refs.remote(refs), timeout=50) == sum(range(10_000))
    assert time.monotonic() - began < 20


def test_arguments_and_results_of_many_megabytes_pass():
    payload = b"q" * (40 * MB)

    @zray.remote
    def echo(data, *, also):
        return data[:-1] + also

    assert zray.get(echo.remote(payload, also=b"!"), timeout=40) == payload[:-1] + b"!"


def test_many_returns_and_generators_use_shared_memory():
    @zray.remote(num_returns=3)
    def three():
        return tuple(np.full(MB, i, "u1") for i in range(3))

    @zray.remote(num_returns="streaming")
    def stream():
        for i in range(6):
            yield np.full(MB, i, "u1")

    assert [zray.get(ref, timeout=20)[0] for ref in three.remote()] == [0, 1, 2]
    assert [int(zray.get(ref, timeout=20)[-1]) for ref in stream.remote()] == list(range(6))


def test_an_abandoned_generator_leaves_no_memory():
    @zray.remote(num_returns="streaming")
    def stream():
        for i in range(200):
            yield np.full(MB, i % 250, "u1")

    items = stream.remote()
    assert zray.get(next(items), timeout=20)[0] == 0
    del items


def test_a_map_with_large_items_and_results_leaves_no_memory():
    arrays = [np.full(MB, i, "u1") for i in range(8)]
    assert zray.get(total.map(arrays), timeout=30) == [i * MB for i in range(8)]

    @zray.remote
    def grow(value):
        return np.full(MB, value, "u1")

    refs = grow.map(range(8))
    assert [int(array[3]) for array in zray.get(refs, timeout=30)] == list(range(8))


def test_a_captured_ref_is_held_by_the_function():
    # A small one: a function is kept as long as its job lives, and with it what it captured.
    ref = zray.put(6)

    @zray.remote
    def uses():
        return zray.get(ref)

    assert zray.get(uses.remote(), timeout=20) == 6


def test_a_thousand_puts_dropped_at_once_reuse_their_memory():
    began = store()
    for value in range(300):
        ref = zray.put(np.full(50 * MB // 10, value % 251, "u1"))
    assert zray.get(ref)[0] == 299 % 251
    assert began["spill_bytes"] == store()["spill_bytes"] == 0


def test_threads_put_and_get_side_by_side():
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        for step in range(15):
            value = (seed * 31 + step) % 251
            ref = zray.put(np.full(MB, value, "u1"))
            assert zray.get(total.remote(ref), timeout=30) == value * MB
            assert zray.get(ref)[-1] == value
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_the_node_lists_what_it_holds():
    ref = filled.remote(1, 2 * MB)
    zray.get(ref, timeout=20)
    rows = [row for row in ask("objects") if row["bytes"] > MB]
    assert [row["where"] for row in rows] == ["memory"]
    del ref
