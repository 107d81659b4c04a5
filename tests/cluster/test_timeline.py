"""The timeline with real processes: what workers ran past the node is in it.

What    Leased tasks, methods of every kind of actor, failures, floods; workers that end, or stand
        still.
Never   measures.
"""

import asyncio
import os
import signal
import time
from collections import Counter

import pytest

import zray
from tests.waiting import wait_until
from zray.state import ask


@pytest.fixture(scope="module", autouse=True)
def node():
    zray.init(num_cpus=2)
    yield
    zray.shutdown()


@zray.remote
def leased(value):
    return value


@zray.remote
def failing():
    raise KeyError("missing")


class Calls:
    def quick(self):
        return os.getpid()

    def other(self):
        return None

    def fail(self):
        raise KeyError("missing")

    def leave(self):
        zray.actor.exit_actor()


class AsyncCalls:
    async def doze(self, seconds):
        await asyncio.sleep(seconds)

    async def fail(self):
        await asyncio.sleep(0)
        raise KeyError("missing")

    def plain(self):
        return None


class SharedCalls(Calls):
    pass


class ThreadedCalls:
    def rest(self, seconds):
        time.sleep(seconds)


def spans(name):
    return [each for each in zray.timeline() if each["ph"] == "X" and each["name"] == name]


def tasks_in(found):
    return sum(each["args"]["tasks"] for each in found)


def fails(ref, error=KeyError):
    with pytest.raises(error):
        zray.get(ref)


def test_every_task_of_a_synchronous_caller_is_there_when_it_has_its_result():
    for number in range(50):
        zray.get(leased.remote(number))
    found = spans("leased")
    assert tasks_in(found) == 50
    assert [each["args"]["failed"] for each in found] == [False] * len(found)
    assert all(each["args"]["pid"] for each in found)


def test_a_task_that_raises_is_a_span_that_says_so_leased_or_queued():
    fails(failing.remote())
    queued = spans("failing")
    assert [each["args"]["failed"] for each in queued] == [True]
    for _ in range(20):
        fails(failing.remote())
    found = spans("failing")
    assert all(each["args"]["failed"] for each in found)
    assert tasks_in(found) == 21


@pytest.mark.parametrize("made", [Calls, SharedCalls], ids=["own worker", "shared worker"])
def test_each_synchronous_call_of_an_actor_is_a_span_with_the_workers_pid(made):
    isolation = "shared" if made is SharedCalls else "process"
    actor = zray.remote(made).options(isolation=isolation).remote()
    began = time.time()
    (pid,) = {zray.get(actor.quick.remote()) for _ in range(10)}
    fails(actor.fail.remote())
    found = spans(f"{made.__name__}.quick")
    assert [each["args"]["tasks"] for each in found] == [1] * 10
    for span in found:
        assert span["args"]["pid"] == pid
        assert not span["args"]["failed"]
        assert began - 0.1 < span["ts"] / 1e6 <= time.time()
    assert [each["args"]["failed"] for each in spans(f"{made.__name__}.fail")] == [True]
    assert tasks_in(spans(f"{made.__name__}.__init__")) == 1


def test_calls_that_wait_in_a_queue_are_spans_with_a_count():
    actor = zray.remote(Calls).remote()
    before = tasks_in(spans("Calls.quick"))
    zray.get([actor.quick.remote() for _ in range(3000)])
    found = spans("Calls.quick")
    assert tasks_in(found) - before == 3000
    assert len(found) < 2000


def test_async_calls_are_spans_as_long_as_they_took_in_lanes_of_their_own():
    actor = zray.remote(AsyncCalls).remote()
    zray.get([actor.doze.remote(0.05) for _ in range(3)])
    fails(actor.fail.remote())
    zray.get(actor.plain.remote())
    found = spans("AsyncCalls.doze")
    assert len(found) == 3
    assert all(each["dur"] >= 0.045e6 for each in found)
    assert len({each["tid"] for each in found}) == 3
    assert [each["args"]["failed"] for each in spans("AsyncCalls.fail")] == [True]
    assert tasks_in(spans("AsyncCalls.plain")) == 1


def test_calls_of_a_threaded_actor_are_spans():
    actor = zray.remote(ThreadedCalls).options(max_concurrency=2).remote()
    zray.get([actor.rest.remote(0.02) for _ in range(4)])
    found = spans("ThreadedCalls.rest")
    assert len(found) == 4
    assert all(each["dur"] >= 0.015e6 for each in found)


def test_events_reach_the_node_soon_though_nobody_asks_for_them():
    actor = zray.remote(Calls).remote()
    zray.get(actor.quick.remote())
    zray.timeline()
    before = ask("status")["gcs"]["events_recorded"]
    zray.get(actor.other.remote())
    wait_until(lambda: ask("status")["gcs"]["events_recorded"] > before, 5.0)


def test_what_an_actor_ran_before_it_ended_itself_is_there():
    class Leaving(Calls):
        pass

    actor = zray.remote(Leaving).remote()
    zray.get(actor.quick.remote())
    fails(actor.leave.remote(), zray.exceptions.ActorDiedError)
    wait_until(lambda: spans("Leaving.leave"), 5.0)
    assert tasks_in(spans("Leaving.quick")) == 1


def test_a_worker_that_stands_still_keeps_nobody_waiting():
    actor = zray.remote(Calls).remote()
    pid = zray.get(actor.quick.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert zray.timeline()
        assert time.monotonic() - began < 5.0
    finally:
        os.kill(pid, signal.SIGCONT)
    assert zray.get(actor.quick.remote()) == pid


def test_a_flood_is_bounded_and_what_is_left_out_is_counted():
    class Flooded(Calls):
        def shrink(self, rows_max):
            # So that a few calls are a flood on the slowest machine.
            buffer = zray.api.runtime().on_due.__self__.buffer
            buffer._rows_max = buffer._crowded = rows_max

    actor = zray.remote(Flooded).remote()
    zray.get(actor.shrink.remote(100))
    calls = 5000  # Two methods by turns: no two calls are of one stretch.
    refs = [(actor.quick if at % 2 else actor.other).remote() for at in range(calls)]
    zray.get(refs)
    pid = zray.get(actor.quick.remote())
    trace = zray.timeline()
    kept = Counter()
    for each in trace:
        if each["ph"] == "X" and each["args"]["pid"] == pid:
            kept[each["name"]] += each["args"]["tasks"]
    dropped = sum(
        each["args"]["count"]
        for each in trace
        if each.get("cat") == "events_dropped" and each["args"]["pid"] == pid
    )
    assert dropped > 0
    assert kept["Flooded.quick"] + kept["Flooded.other"] + dropped == calls + 1
    assert ask("status")["gcs"]["events_unsent"] >= dropped
