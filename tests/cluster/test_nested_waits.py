"""Tasks that wait for tasks claimed by the same worker in the same breath.

What    A worker takes quick tasks several at a time. One that waits for another of them must find
        its outcome sent; one behind it must be free to go to another worker.
"""

import pytest

import zray

pytestmark = pytest.mark.node(num_cpus=1)


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


@zray.remote
def chained(depth, path):
    with open(path, "a") as file:
        file.write(f"{depth}\n")
    return 0 if depth == 0 else 1 + zray.get(chained.remote(depth - 1, path))


@pytest.mark.node(num_cpus=2)
def test_each_task_of_a_chain_runs_once(node, tmp_path):
    """A lease's answer that came while its caller said that it waits had the task sent twice."""
    path = str(tmp_path / "ran")
    for _ in range(12):
        assert zray.get(chained.remote(25, path), timeout=30) == 25
    with open(path) as file:
        ran = file.read().split()
    assert sorted(ran) == sorted(str(depth) for depth in range(26) for _ in range(12))


@zray.remote(num_cpus=0)
class Counter:
    def add(self):
        return 1


@zray.remote
def leaf():
    return 1


@zray.remote
def patiences(counter):
    """Return what was known of each wait: of calls of an actor, then of queued tasks."""
    runtime, known = zray.api.runtime(), []
    patience = runtime.patience_s
    runtime.patience_s = lambda queued: known.append(queued) or patience(queued)
    try:
        for _ in range(5):
            zray.get(counter.add.remote())
        zray.get([leaf.remote() for _ in range(3)])
        zray.get(leaf.options(num_cpus=0).remote())
        return known
    finally:
        runtime.patience_s = patience


@pytest.mark.node(num_cpus=2)
def test_only_who_waits_for_a_queued_task_lends_its_cpu_at_once(node):
    """A call of an actor takes 0.1 ms: two more messages would double it."""
    counter = Counter.remote()
    zray.get(counter.add.remote())
    known = zray.get(patiences.remote(counter), timeout=20)
    assert known[:5] == [False] * 5
    assert known[5:] == [True, True]


@zray.remote(num_cpus=0)
class Caller:
    def patience(self, queued):
        return zray.api.runtime().patience_s(queued)


def test_an_actor_without_a_cpu_never_reports_that_it_waits(node):
    """It would wake in the middle of each longer call, for nothing."""
    caller = Caller.remote()
    assert zray.get([caller.patience.remote(True), caller.patience.remote(False)]) == [None, None]
