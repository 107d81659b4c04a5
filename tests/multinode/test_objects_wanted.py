"""Why objects come to a node, and when they do not have to.

What    wait(fetch_local=False) and arguments that are only passed on move nothing; arguments of a
        task come side by side, those of tasks behind it ahead of time.
Caller  pytest.
Never   sleeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zray
from tests.multinode.objects import MB, Maker, asked, at, await_nothing_left, received, total
from zray.testing import Cluster, TestNode


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """Start three nodes: each has a resource by which tasks are sent to it."""
    with Cluster() as made:
        for name in ("first", "second", "third"):
            made.add_node(num_cpus=1, resources={name: 4})
        with zray.init(made.address):
            yield made


@pytest.fixture(autouse=True)
def nothing_left(three_nodes: Cluster) -> Iterator[None]:
    """Look, after each test, whether all it made is gone."""
    yield
    await_nothing_left(three_nodes)


@zray.remote(num_cpus=0.1)
def sum_all(*arrays: np.ndarray[Any, Any]) -> float:
    return float(sum(array.sum() for array in arrays))


def pulls(node: TestNode, purpose: str) -> int:
    return int(asked(node, "status")["cluster"]["transfers"][f"pulls_{purpose}"])


def test_a_wait_that_does_not_fetch_moves_nothing(three_nodes: Cluster) -> None:
    maker = at(Maker, "second").remote()
    (ref,) = zray.get(maker.make.remote(4 * MB), timeout=30)
    before = received(three_nodes.nodes[0])
    ready, others = zray.wait([ref], timeout=30, fetch_local=False)
    assert (ready, others) == ([ref], [])
    assert received(three_nodes.nodes[0]) == before
    assert zray.wait([ref], timeout=30) == ([ref], [])
    assert received(three_nodes.nodes[0]) >= before + 4 * MB
    assert zray.get(ref, timeout=0).nbytes == 4 * MB
    zray.kill(maker)


def test_a_wait_that_does_not_fetch_waits_for_what_is_still_being_made(
    three_nodes: Cluster,
) -> None:
    maker = at(Maker, "third").remote()
    small = at(sum_all, "second").remote(*[np.ones(4)] * 3)
    large = maker.make.remote(2 * MB)
    ready, others = zray.wait([small, large], num_returns=2, timeout=30, fetch_local=False)
    assert (len(ready), others) == (2, [])
    zray.kill(maker)


def test_an_argument_from_elsewhere_is_passed_on_and_not_fetched(three_nodes: Cluster) -> None:
    maker = at(Maker, "second").remote()
    (ref,) = zray.get(maker.make.remote(4 * MB), timeout=30)
    first, _second, third = three_nodes.nodes
    before = received(first), received(third)
    assert zray.get(at(total, "third").remote(ref), timeout=30) == 4 * MB
    assert received(first) == before[0], "who submits has no need of the value"
    assert received(third) >= before[1] + 4 * MB
    zray.kill(maker)


def test_what_was_asked_for_its_place_can_be_got_afterwards(three_nodes: Cluster) -> None:
    maker = at(Maker, "second").remote()
    (ref,) = zray.get(maker.make.remote(4 * MB), timeout=30)
    later = at(total, "third").remote(ref)
    assert zray.get(ref, timeout=30).nbytes == 4 * MB
    assert zray.get(later, timeout=30) == 4 * MB
    zray.kill(maker)


def test_arguments_come_as_arguments_and_those_of_tasks_behind_ahead_of_time(
    three_nodes: Cluster,
) -> None:
    third = three_nodes.nodes[2]
    alone = sum_all.options(resources={"third": 4})
    zray.get([alone.remote() for _ in range(60)], timeout=60)  # Such a task is quick, it learns.
    before = {each: pulls(third, each) for each in ("get", "argument", "prefetch")}
    refs = [zray.put(np.full(MB, n, dtype=np.uint8)) for n in range(40)]
    found = zray.get([alone.remote(ref, refs[0]) for ref in refs], timeout=60)
    assert found == [float(n * MB) for n in range(40)]
    after = {each: pulls(third, each) - before[each] for each in before}
    assert after["get"] == 0
    assert after["argument"] + after["prefetch"] >= 39
