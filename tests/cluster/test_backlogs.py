"""Senders that are faster than their receivers: what is kept where, and who waits for whom.

What    A caller that does not read, callers that wait for each other, an actor that is called
        faster than it answers. Limits are made small, so that a few MB fill them.
Never   loses a message.
"""

import asyncio
import os

import pytest

import zray
from tests.waiting import wait_until
from zray import api, runtime
from zray.errors import PendingCallsLimitError

MB = 1 << 20
LIMIT, SIZE, COUNT = 4 * MB, 60_000, 400
FEW = 150
"""More than LIMIT, a socket's buffer and the calls that run at the same time come to."""
pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.node(num_cpus=2)]


def count_one(path):
    with open(path, "ab", buffering=0) as file:
        file.write(b".")


def count(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


class _Maker:
    def __init__(self):
        from zray.actors import host

        host.EDGE_BACKLOG_BYTES_MAX = LIMIT

    def make(self, index, path):
        count_one(path)
        return bytes([index % 256]) * SIZE

    def take(self, value, path):
        wait_until(lambda: os.path.exists(path), 20)
        return len(value)


class _AsyncMaker(_Maker):
    async def make(self, index, path):
        return super().make(index, path)

    async def call(self, other, path):
        refs = [other.make.remote(index, path) for index in range(COUNT)]
        return sum(len(value) for value in await asyncio.gather(*refs))


MAKERS = {
    "sync": zray.remote(num_cpus=0)(_Maker),
    "shared": zray.remote(num_cpus=0, isolation="shared")(_Maker),
    "threads": zray.remote(num_cpus=0, max_concurrency=4)(_Maker),
    "async": zray.remote(num_cpus=0)(_AsyncMaker),
}
ASYNC = MAKERS["async"]


@pytest.mark.parametrize("kind", MAKERS)
def test_an_actor_begins_nothing_more_for_a_caller_who_does_not_read(kind, tmp_path):
    path = str(tmp_path / "made")
    options = {"max_concurrency": 8} if kind == "async" else {}
    maker = MAKERS[kind].options(**options).remote()
    zray.get(maker.make.remote(0, os.devnull), timeout=20)
    client = api.runtime()
    with client.io_lock:  # As if this process were stopped.
        refs = [maker.make.remote(index, path) for index in range(COUNT)]
        client.flush()
        wait_until(lambda: count(path) * SIZE > LIMIT, 20)
        seen = [-1]
        wait_until(lambda: seen.append(count(path)) or seen[-1] == seen[-2], 20, interval_s=0.1)
        assert seen[-1] < FEW
    values = zray.get(refs, timeout=50)
    assert [(value[0], len(value)) for value in values] == [(i % 256, SIZE) for i in range(COUNT)]
    assert count(path) == COUNT


def test_a_worker_begins_no_more_of_a_map_for_a_caller_who_does_not_read(tmp_path):
    path = str(tmp_path / "made")

    def make(index):
        from zray.actors import host

        host.EDGE_BACKLOG_BYTES_MAX = LIMIT
        count_one(path)
        return bytes([index % 256]) * SIZE

    client = api.runtime()
    with client.io_lock:
        refs = zray.remote(make).map(range(COUNT))
        wait_until(lambda: count(path) * SIZE > LIMIT, 20)
        seen = [-1]
        wait_until(lambda: seen.append(count(path)) or seen[-1] == seen[-2], 20, interval_s=0.1)
        assert seen[-1] < 2 * FEW
    assert [len(value) for value in zray.get(refs, timeout=50)] == [SIZE] * COUNT


def test_results_are_taken_in_while_their_caller_does_something_else(tmp_path):
    path = str(tmp_path / "made")
    maker = MAKERS["sync"].remote()
    zray.get(maker.make.remote(0, os.devnull), timeout=20)
    refs = [maker.make.remote(index, path) for index in range(COUNT)]
    wait_until(lambda: count(path) == COUNT, 20)
    assert len(zray.get(refs, timeout=20)) == COUNT


def test_two_that_wait_for_each_other_both_go_on(tmp_path):
    one, two = ASYNC.remote(), ASYNC.remote()
    calls = [a.call.remote(b, os.devnull) for a, b in ((one, two), (two, one))]
    assert zray.get(calls, timeout=50) == [COUNT * SIZE] * 2


def test_calls_beyond_the_bytes_an_actor_may_owe_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "ACTOR_BACKLOG_BYTES_MAX", MB)
    path = str(tmp_path / "go")
    maker = MAKERS["sync"].remote()
    refs = []

    def call_until_refused():
        for _ in range(COUNT):
            refs.append(maker.take.remote(bytes(SIZE), path))

    with pytest.raises(PendingCallsLimitError, match="bytes"):
        call_until_refused()
    assert MB < len(refs) * (SIZE + 200) < 2 * MB
    open(path, "w").close()
    assert zray.get(refs, timeout=20) == [SIZE] * len(refs)
    assert zray.get(maker.take.remote(bytes(SIZE), path), timeout=20) == SIZE
