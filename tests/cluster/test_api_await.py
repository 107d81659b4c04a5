"""Refs in event loops and with concurrent.futures.

What    await, gather, wait, wait_for, shield, as_completed, timeouts, a loop that runs before
        init(); ObjectRef.future(); awaiting a map and a generator.
"""

import asyncio
import concurrent.futures
import threading

import pytest

import zray
from tests.cluster.programs import count_to, double, wait_for
from zray.api import runtime

pytestmark = pytest.mark.usefixtures("node")


@zray.remote
def fail():
    raise KeyError("missing")


@zray.remote
def lookup(key):
    return {}[key]


def test_a_ref_is_awaited_for_its_value_or_its_error():
    async def main():
        assert await double.remote(2) == 4
        assert await zray.put(5) == 5
        ref = double.remote(3)
        assert await ref == 6
        assert await ref == 6
        with pytest.raises(KeyError, match="missing"):
            await fail.remote()

    asyncio.run(main())


def test_gather_and_as_completed_take_refs():
    async def main():
        assert await asyncio.gather(*[double.remote(i) for i in range(50)]) == [
            2 * i for i in range(50)
        ]
        found = await asyncio.gather(double.remote(1), fail.remote(), return_exceptions=True)
        assert found[0] == 2
        assert isinstance(found[1], KeyError)
        values = [await each for each in asyncio.as_completed([double.remote(i) for i in range(9)])]
        assert sorted(values) == [2 * i for i in range(9)]

    asyncio.run(main())


def test_wait_returns_the_refs_themselves(tmp_path):
    async def main():
        fast, slow = double.remote(1), wait_for.remote(str(tmp_path / "go"))
        done, pending = await asyncio.wait([fast, slow], return_when=asyncio.FIRST_COMPLETED)
        assert done == {fast}
        assert pending == {slow}
        done, pending = await asyncio.wait([slow], timeout=0.01)
        assert not done
        assert not runtime().session.callbacks, "a wait that is over leaves no callback"
        (tmp_path / "go").touch()
        done, pending = await asyncio.wait(pending, timeout=20)
        assert {ref.result() for ref in done} == {str(tmp_path / "go")}
        done, _ = await asyncio.wait([fail.remote()], return_when=asyncio.FIRST_EXCEPTION)
        assert isinstance(done.pop().exception(), KeyError)

    asyncio.run(main())


def test_wait_for_and_timeout_stop_waiting_and_leave_the_task_alone(tmp_path):
    async def main():
        slow = wait_for.remote(str(tmp_path / "go"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, 0.02)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await slow
        shielded = asyncio.shield(slow)
        assert not shielded.done()
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(shielded, 20) == str(tmp_path / "go")
        assert await slow == str(tmp_path / "go")

    asyncio.run(main())


def test_a_thousand_coroutines_wait_at_once():
    async def one(i):
        return await double.remote(i)

    async def main():
        return await asyncio.gather(*[one(i) for i in range(1000)])

    assert asyncio.run(main()) == [2 * i for i in range(1000)]


def test_get_in_a_running_loop_works_as_in_a_notebook_cell():
    async def cell():
        zray.init(ignore_reinit_error=True)
        blocking = zray.get(double.remote(1))
        return blocking, await double.remote(2), zray.wait([double.remote(3)])[1]

    assert asyncio.run(cell()) == (2, 4, [])


def test_refs_are_awaited_in_two_loops_of_two_threads():
    results = []

    def run():
        async def main():
            results.append(sum(await asyncio.gather(*[double.remote(i) for i in range(100)])))

        asyncio.run(main())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [9900, 9900]


def test_a_loop_that_closes_before_the_result_harms_nobody(tmp_path):
    slow = wait_for.remote(str(tmp_path / "go"))

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, 0.01)
        slow.add_done_callback(print)

    asyncio.run(give_up())
    (tmp_path / "go").touch()
    assert zray.get(slow, timeout=20) == str(tmp_path / "go")
    assert asyncio.run(asyncio.wait_for(_value(double.remote(1)), 20)) == 2


async def _value(ref):
    return await ref


def test_a_map_is_awaited_whole():
    async def main():
        assert await double.map(range(5000)) == [2 * i for i in range(5000)]
        assert await double.map([]) == []
        assert await double.map(range(10))[7] == 14
        with pytest.raises(KeyError):
            await lookup.map(["a"])

    asyncio.run(main())


def test_a_generator_is_iterated_asynchronously():
    async def main():
        return [await ref async for ref in count_to.remote(200)]

    assert asyncio.run(main()) == list(range(200))


def test_futures_of_refs_work_with_concurrent_futures():
    refs = [double.remote(i) for i in range(20)]
    done, pending = concurrent.futures.wait([ref.future() for ref in refs], timeout=20)
    assert not pending
    assert sorted(future.result() for future in done) == [2 * i for i in range(20)]
    waiting = [double.remote(i).future() for i in range(5)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(waiting, timeout=20)) == [
        0,
        2,
        4,
        6,
        8,
    ]
    with pytest.raises(KeyError):
        fail.remote().future().result(timeout=20)


def test_a_future_calls_back_once(tmp_path):
    called = threading.Event()
    ref = wait_for.remote(str(tmp_path / "go"))
    ref.future().add_done_callback(lambda future: called.set())
    assert not called.is_set()
    (tmp_path / "go").touch()
    assert called.wait(20)


def test_a_loop_that_ran_before_init_uses_zray():
    zray.shutdown()

    async def main():
        await asyncio.sleep(0)
        zray.init(num_cpus=2)
        return await double.remote(21)

    assert asyncio.run(main()) == 42
