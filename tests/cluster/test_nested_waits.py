"""Tasks that wait for tasks claimed by the same worker in the same breath.

What    A worker takes quick tasks several at a time. One that waits for another of them must find
        its outcome sent; one behind it must be free to go to another worker.
Caller  pytest.
Never   measures.
"""

import pytest

import zray

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def node():
    zray.init(num_cpus=1)
    yield
    zray.shutdown()


@zray.remote
def after(inner):
    return 0 if inner is None else zray.get(inner[0]) + 1


def test_a_task_may_wait_for_the_one_before_it_in_its_step(node):
    """It waited for an outcome that lay unsent in its own worker."""
    zray.get(after.remote(None), timeout=20)
    for _ in range(20):
        refs = []
        for index in range(60):
            refs.append(after.remote([refs[-1]] if index % 3 == 0 and refs else None))
        wanted = [1 if index % 3 == 0 and index else 0 for index in range(60)]
        assert zray.get(refs, timeout=20) == wanted


def test_items_of_a_map_may_wait_for_those_of_another(node):
    quick = after.map([None] * 50)
    waiting = after.map([[quick[index]] for index in range(50)])
    assert zray.get(waiting, timeout=20) == [1] * 50
