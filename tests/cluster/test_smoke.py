"""The thin path through every layer, with real processes.

What    Task, map, actor, object, error: one of each.
Caller  pytest; whoever has changed anything.
"""

import numpy as np
import pytest

import zray
from tests.cluster.programs import Counter, double


def test_a_task_returns_its_value(node):
    assert zray.get(double.remote(21), timeout=20) == 42


def test_many_tasks_return_in_order(node):
    refs = [double.remote(i) for i in range(500)]
    assert zray.get(refs, timeout=20) == [2 * i for i in range(500)]


def test_a_map_is_a_task_for_each_item(node):
    refs = double.map(range(5000))
    assert zray.get(refs[4321], timeout=20) == 8642
    assert zray.get(refs, timeout=20) == [2 * i for i in range(5000)]


def test_a_ref_is_an_argument(node):
    ref = double.remote(double.remote(double.remote(1)))
    assert zray.get(ref, timeout=20) == 8


def test_an_actor_keeps_its_state(node):
    counter = Counter.remote(10)
    assert zray.get([counter.add.remote() for _ in range(100)], timeout=20)[-1] == 110


def test_an_array_comes_back_as_a_view(node):
    array = np.arange(1 << 18)
    got = zray.get(double.remote(zray.put(array)), timeout=20)
    assert (got == array * 2).all()
    assert not got.flags.writeable


def test_a_users_error_arrives_as_its_own_type(node):
    @zray.remote
    def fail():
        raise KeyError("missing")

    with pytest.raises(KeyError):
        zray.get(fail.remote(), timeout=20)
