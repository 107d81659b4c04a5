"""Clusters of up to 30 nodes on a virtual clock, and what must hold of how they share their work.

What    No task is lost, no resource oversubscribed, no idle node gets everybody's work, and no
        CPU idles long while a queue elsewhere is long. One case is the figure of
        docs/explanation/scaling.md in small.
Caller  pytest.
Never   compares real times: the clock is virtual, and a seed is a run.
"""

from __future__ import annotations

from itertools import product
from statistics import median

import pytest

from tests.sim.cluster import BOTTOM_UP, CENTRAL, RANDOM, Cluster, Costs, Load, Outcome

pytestmark = pytest.mark.sim

MIX = Load(task_us=(100, 1_000, 10_000, 100_000), batch_us=20_000, seconds=0.3)
IDLE = Load(task_us=(5_000,), batch_us=80_000, seconds=0.0)
"""Nothing is submitted but by the test: batches of 16 tasks of 5 ms."""


def ran(cluster: Cluster) -> Outcome:
    outcome = cluster.run()
    cluster.rest(1.5)
    cluster.check()
    assert outcome.done == outcome.submitted > 0, "tasks were lost, or ran twice"
    for node in cluster.nodes:
        assert node.resources.available == node.resources.total, "resources were not given back"
    return outcome


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("hot", [1.0, 0.2])
def test_every_task_runs_once_and_every_account_balances(seed: int, hot: float):
    load = Load(MIX.task_us, MIX.batch_us, per_slot=0.7 + seed % 3 * 0.2, hot=hot, seconds=0.1)
    ran(Cluster(2 + seed * 2, BOTTOM_UP, load, seed=seed))


def test_no_cpu_is_used_by_two_tasks_at_once():
    cluster = Cluster(10, BOTTOM_UP, MIX, seed=3)
    busy_max = dict.fromkeys(cluster.by_id, 0)

    def look() -> None:
        for node in cluster.nodes:
            node.scheduler.check()
            busy = sum(worker.busy for worker in node.workers.values())
            busy_max[node.id] = max(busy_max[node.id], busy)
        cluster.after(0.002, look)

    look()
    ran(cluster)
    assert set(busy_max.values()) == {4}, "all CPUs were used, and never more"


@pytest.mark.parametrize("seed", range(4))
def test_a_burst_at_one_node_is_worked_off_by_all(seed: int):
    """30 nodes of 4 CPUs, 608 tasks of 5 ms: 30 ms if they were everywhere from the start."""
    cluster = Cluster(30, BOTTOM_UP, IDLE, seed=seed)
    cluster.publish()
    tasks = 0
    while tasks < 600:
        cluster.submit(cluster.nodes[0])
        tasks += 16
    outcome = ran(cluster)
    assert outcome.seconds < 0.045
    assert max(node.done for node in cluster.nodes) < 1.6 * outcome.done / 30


@pytest.mark.parametrize("seed", range(4))
def test_the_only_idle_node_is_not_run_over(seed: int):
    """29 nodes have 400 ms of work, one has none: it gets its share, and not everybody's."""
    cluster = Cluster(30, BOTTOM_UP, IDLE, seed=seed)
    cluster.publish()
    for node in cluster.nodes[:-1]:
        for _ in range(20):
            cluster.submit(node)
    idle = cluster.nodes[-1]
    outcome = ran(cluster)
    fair = outcome.done / 30
    assert 0.8 * fair < idle.done < 1.2 * fair
    assert outcome.received[idle.id] < 1.3 * fair, "what it can't do would be handed on"
    ideal_s = outcome.done * 0.005 / cluster.slots
    assert outcome.seconds < 1.08 * ideal_s


def test_where_all_are_equally_busy_little_is_moved():
    cluster = Cluster(10, BOTTOM_UP, IDLE)
    cluster.publish()
    for node in cluster.nodes:
        for _ in range(20):
            cluster.submit(node)
    outcome = ran(cluster)
    assert outcome.moved < 0.05 * outcome.done


def test_no_cpu_idles_long_while_a_queue_is_long():
    cluster = Cluster(20, BOTTOM_UP, MIX, seed=5)
    looks = wasted = 0

    def look() -> None:
        nonlocal looks, wasted
        busy = sum(worker.busy for node in cluster.nodes for worker in node.workers.values())
        # What waits is looked at by others after 5 ms; what is in workers' hands is no queue.
        waiting = sum(
            work.high - work.low
            for node in cluster.nodes
            for work in node.scheduler.queues.all_ranges()
            if cluster.waited_s(work) > 0.015
        )
        looks += cluster.slots
        wasted += min(cluster.slots - busy, waiting)
        cluster.after(0.001, look)

    look()
    ran(cluster)
    assert wasted < 0.05 * looks, "CPUs were idle while tasks waited elsewhere"


def test_the_scaling_figure_in_small():
    """Bottom-up keeps its delay at any size; random queues; the central one falls behind.

    A central decision is made several times as long as it is, so that 30 nodes are too many.
    """
    costs = Costs(central_us=300.0, local_us=6.0, look_us=50.0, loan_us=20.0, message_us=10.0)
    p99: dict[tuple[str, int], float] = {}
    rate: dict[tuple[str, int], float] = {}
    for way, nodes in product((BOTTOM_UP, RANDOM, CENTRAL), (10, 30)):
        # In a third of a second one busy moment of a small cluster is a hundredth of all tasks.
        runs = [ran(Cluster(nodes, way, MIX, costs=costs, seed=seed)) for seed in (1, 2, 3)]
        p99[way, nodes] = median(outcome.delay_ms(0.99) for outcome in runs)
        rate[way, nodes] = median(each.done_in_time / each.submitted for each in runs)
    assert p99[BOTTOM_UP, 30] < 0.3 * p99[RANDOM, 30]
    assert p99[BOTTOM_UP, 30] < 1.5 * p99[BOTTOM_UP, 10] < 45
    assert p99[CENTRAL, 30] > 3 * p99[BOTTOM_UP, 30]
    assert rate[BOTTOM_UP, 30] > 0.95
    assert rate[CENTRAL, 30] < 0.9


def test_the_same_seed_is_the_same_run():
    first, second = (Cluster(8, BOTTOM_UP, MIX, seed=4).run() for _ in range(2))
    assert (first.seconds, first.moved, first.delays_ms) == (
        second.seconds,
        second.moved,
        second.delays_ms,
    )
