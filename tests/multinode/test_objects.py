"""Objects between real nodes: what is transferred, what is not, what is freed.

What    Large arrays both ways, results that stay where they were made, references passed on
        between three nodes, broadcasts. What is lost: test_objects_lost.py.
Caller  pytest.
Never   sleeps: what the nodes tell of themselves is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import zray
from tests.multinode.objects import (
    MB,
    Keeper,
    at,
    await_nothing_left,
    large_objects,
    ones,
    received,
    total,
)
from zray.testing import Cluster

LARGE = 100 * MB


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """Start three nodes: each has a resource by which tasks are sent to it."""
    with Cluster() as made:
        for name in ("first", "second", "third"):
            made.add_node(num_cpus=2, resources={name: 4})
        with zray.init(made.address):
            yield made


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look, after each test on the shared nodes, whether all it made is gone."""
    yield
    if "three_nodes" in request.fixturenames:
        await_nothing_left(request.getfixturevalue("three_nodes"))


def test_an_array_goes_there_and_another_comes_back(three_nodes: Cluster) -> None:
    array = np.ones(LARGE, dtype=np.uint8)
    assert zray.get(at(total, "second").remote(array), timeout=60) == LARGE
    back = zray.get(at(ones, "second").remote(LARGE), timeout=60)
    assert back.nbytes == LARGE
    assert int(back[0]) == int(back[-1]) == 1


def test_a_result_that_is_used_where_it_was_made_is_not_transferred(three_nodes: Cluster) -> None:
    before = [received(node) for node in three_nodes.nodes]
    ref = at(ones, "second").remote(LARGE)
    assert zray.get(at(total, "second").remote(ref), timeout=60) == LARGE
    assert [received(node) for node in three_nodes.nodes] == before
    del ref
    await_nothing_left(three_nodes)


def test_two_other_nodes_hand_an_object_to_each_other(three_nodes: Cluster) -> None:
    """Its home only counts: the value goes from the second to the third."""
    ref = at(ones, "second").remote(10 * MB)
    home = three_nodes.nodes[0]
    before = received(home)
    assert zray.get(at(total, "third").remote(ref), timeout=60) == 10 * MB
    assert received(home) == before


def test_a_reference_survives_being_handed_on_by_who_drops_it(three_nodes: Cluster) -> None:
    one, other = at(Keeper, "second").remote(), at(Keeper, "third").remote()
    for _ in range(20):
        ref = zray.put(np.ones(MB, dtype=np.uint8))
        assert zray.get(one.keep.remote([ref]), timeout=20) == 1
        del ref
        assert zray.get(one.hand_on.remote(other), timeout=20) == 1
        assert zray.get(other.total.remote(), timeout=20) == MB
    zray.kill(one)
    zray.kill(other)


def test_an_object_is_broadcast_to_all(three_nodes: Cluster) -> None:
    first, second, third = three_nodes.nodes
    before = received(first)
    ref = zray.put(np.ones(LARGE, dtype=np.uint8))
    keepers = [at(Keeper, name).remote() for name in ("first", "second", "third")]
    zray.get([keeper.keep.remote([ref]) for keeper in keepers], timeout=20)
    counts = {node: received(node) for node in (second, third)}
    totals = [keeper.total.remote() for keeper in keepers for _ in range(2)]
    assert zray.get(totals, timeout=120) == [LARGE] * 6
    assert received(first) == before
    for node in (second, third):
        assert LARGE <= received(node) - counts[node] < LARGE + MB, "it came once"
    where = [row["where"] for _node, row in large_objects(three_nodes)]
    assert where == ["memory"] * 3
    for keeper in keepers:
        zray.kill(keeper)


def test_an_object_goes_everywhere_within_a_second(three_nodes: Cluster) -> None:
    ref = zray.put(np.ones(10 * MB, dtype=np.uint8))
    keepers = [at(Keeper, name).remote() for name in ("second", "third")]
    zray.get([keeper.keep.remote([ref]) for keeper in keepers], timeout=20)
    zray.get([keeper.total.remote() for keeper in keepers], timeout=60)
    assert len(large_objects(three_nodes)) == 3
    del ref
    zray.get([keeper.keep.remote([]) for keeper in keepers], timeout=20)
    await_nothing_left(three_nodes)
    for keeper in keepers:
        zray.kill(keeper)
