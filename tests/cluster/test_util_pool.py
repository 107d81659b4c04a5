"""zray.util.multiprocessing.Pool beside multiprocessing.Pool.

What    Every method, in order and out of it, its errors, callbacks, and its end.
"""

import itertools
import multiprocessing
import operator
import os
import threading
import time

import pytest

import zray
from tests.cluster.programs import PAUSE_S
from tests.waiting import wait_until
from zray.util.multiprocessing import Pool

pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture
def pool():
    with Pool(2, ray_remote_args={"num_cpus": 0}) as made:
        yield made


def square(x):
    return x * x


def inverse(x):
    return 1 / x


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(PAUSE_S)
    return path


def test_apply_calls_once_with_arguments_and_keywords(pool):
    assert pool.apply(divmod, (17, 5)) == (3, 2)
    assert pool.apply(sorted, ([2, 1],), {"reverse": True}) == [2, 1]
    with pytest.raises(ZeroDivisionError):
        pool.apply(inverse, (0,))


def test_map_and_starmap_keep_the_order(pool):
    assert pool.map(square, range(100)) == [i * i for i in range(100)]
    assert pool.map(square, range(10), chunksize=3) == [i * i for i in range(10)]
    assert pool.map(square, []) == []
    assert pool.map(lambda x: x + 1, iter([1, 2])) == [2, 3]
    assert pool.starmap(operator.add, zip(range(20), range(20), strict=True)) == list(
        range(0, 40, 2)
    )


def test_the_work_is_done_in_other_processes(pool):
    pids = set(pool.map(lambda _: os.getpid(), range(40), chunksize=1))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_map_raises_what_a_call_raised(pool):
    with pytest.raises(ZeroDivisionError):
        pool.map(inverse, [1, 2, 0, 4])
    with pytest.raises(TypeError):
        pool.starmap(square, [(1, 2)])


def test_an_argument_that_cannot_be_sent_is_the_error_of_its_call(pool):
    with pytest.raises(zray.exceptions.SerializationError):
        pool.map(square, [threading.Lock()])
    with pytest.raises(zray.exceptions.SerializationError):
        pool.apply(threading.Lock)
    assert pool.apply(square, (3,)) == 9


def test_an_async_result_is_asked_waited_for_and_late(pool, tmp_path):
    result = pool.apply_async(wait_for, (str(tmp_path / "go"),))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    (tmp_path / "go").touch()
    result.wait(20)
    assert result.ready()
    assert result.successful()
    assert result.get() == str(tmp_path / "go")
    failed = pool.map_async(inverse, [0])
    failed.wait(20)
    assert not failed.successful()


def test_callbacks_get_the_result_or_the_error(pool):
    results, problems = [], []
    pool.map_async(square, range(5), callback=results.append, error_callback=problems.append).get(
        20
    )
    wait_until(lambda: results)
    assert results == [[0, 1, 4, 9, 16]]
    assert not problems
    pool.apply_async(inverse, (0,), callback=results.append, error_callback=problems.append).wait(
        20
    )
    wait_until(lambda: problems)
    assert isinstance(problems[0], ZeroDivisionError)
    assert len(results) == 1
    empty = pool.starmap_async(square, [], callback=results.append)
    assert empty.get(1) == []
    assert results[-1] == []


def test_imap_yields_in_order_and_takes_an_endless_iterable(pool):
    assert list(pool.imap(square, range(30))) == [i * i for i in range(30)]
    assert list(pool.imap(square, range(7), chunksize=3)) == [i * i for i in range(7)]
    assert list(itertools.islice(pool.imap(square, itertools.count(), chunksize=4), 50)) == [
        i * i for i in range(50)
    ]
    assert list(pool.imap(square, [])) == []


def test_imap_unordered_does_not_wait_for_the_slow_ones(pool, tmp_path):
    go = str(tmp_path / "go")
    found = pool.imap_unordered(lambda path: wait_for(path) if path else "fast", [go, "", "", ""])
    assert [found.next(timeout=20) for _ in range(3)] == ["fast"] * 3
    with pytest.raises(multiprocessing.TimeoutError):
        found.next(timeout=0.01)
    (tmp_path / "go").touch()
    assert next(found) == go
    with pytest.raises(StopIteration):
        next(found)
    assert sorted(pool.imap_unordered(square, range(20), chunksize=3)) == [i * i for i in range(20)]


def test_imap_goes_on_after_an_error(pool):
    found = pool.imap(inverse, [1, 0, 2], chunksize=2)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert next(found) == 0.5


def test_a_slow_chunk_delays_no_other(pool, tmp_path):
    go = str(tmp_path / "go")
    slow = pool.apply_async(wait_for, (go,))
    assert pool.map(square, range(20), chunksize=1) == [i * i for i in range(20)]
    (tmp_path / "go").touch()
    assert slow.get(20) == go


def test_the_initializer_runs_in_each_worker():
    def prepare(value):
        os.environ["POOL_COLOUR"] = value

    with Pool(2, prepare, ["blue"], ray_remote_args={"num_cpus": 0}) as pool:
        assert set(pool.map(lambda _: os.environ["POOL_COLOUR"], range(10))) == {"blue"}
    assert "POOL_COLOUR" not in os.environ


def test_workers_are_replaced_after_so_many_chunks():
    with Pool(1, maxtasksperchild=2, ray_remote_args={"num_cpus": 0}) as pool:
        pids = pool.map(lambda _: os.getpid(), range(6), chunksize=1)
    assert pids[0] == pids[1]
    assert pids[2] == pids[3]
    assert len(set(pids)) == 3


def test_a_worker_that_dies_fails_its_chunk_and_comes_back():
    with Pool(1, ray_remote_args={"num_cpus": 0}) as pool:
        with pytest.raises(zray.exceptions.ActorError):
            pool.apply(os._exit, (1,))
        assert pool.apply(square, (4,)) == 16


def test_close_and_join_let_the_calls_end(tmp_path):
    pool = Pool(1, ray_remote_args={"num_cpus": 0})
    results = [pool.apply_async(square, (i,)) for i in range(20)]
    with pytest.raises(ValueError, match="running"):
        pool.join()
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    with pytest.raises(ValueError, match="not running"):
        pool.imap(square, [1])
    pool.join()
    assert [result.get(1) for result in results] == [i * i for i in range(20)]


def test_terminate_ends_at_once_and_every_result_is_an_error():
    pool = Pool(1, ray_remote_args={"num_cpus": 0})
    results = [pool.apply_async(wait_for, ("/nowhere",)) for _ in range(3)]
    pool.terminate()
    pool.join()
    for result in results:
        with pytest.raises(zray.exceptions.ZrayError):
            result.get(20)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="processes"):
        Pool(0)
    with pytest.raises(ValueError, match="maxtasksperchild"):
        Pool(1, maxtasksperchild=0)
    with pytest.raises(TypeError, match="initializer"):
        Pool(1, initializer=3)
    with pytest.raises(zray.exceptions.OptionError, match="context"):
        Pool(1, context=multiprocessing.get_context("fork"))
    with (
        Pool(1, ray_remote_args={"num_cpus": 0}) as pool,
        pytest.raises(ValueError, match="chunksize"),
    ):
        pool.map(square, [1], chunksize=0)
