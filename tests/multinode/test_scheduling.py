"""Where tasks and actors of one driver run in a cluster, and that all they can do works there.

What    Work spreads over nodes, goes where an option says, submits more work, yields, is cancelled
        and retired from there as from here; what is borrowed goes back.
Caller  pytest.
Never   sleeps but inside tasks: what changes by itself is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest

import zray
from tests.waiting import wait_until
from zray.errors import (
    ActorDiedError,
    ActorUnschedulableError,
    OptionError,
    TaskCancelledError,
    TaskUnschedulableError,
)
from zray.testing import Cluster
from zray.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)

FAR = {"far": 1}
NOBODY = "0123456700000000"


@zray.remote
def here() -> str:
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
def here_after(seconds: float) -> str:
    time.sleep(seconds)
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
class Resident:
    def __init__(self) -> None:
        self.calls = 0

    def node(self) -> str:
        self.calls += 1
        return str(zray.get_runtime_context().get_node_id())

    async def node_soon(self) -> str:
        await asyncio.sleep(0)
        return str(zray.get_runtime_context().get_node_id())

    def die(self) -> None:
        import os

        os._exit(1)


@zray.remote
class Plain:
    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())


# -- spreading -------------------------------------------------------------------------------------


def test_what_waits_here_runs_where_there_is_room(two_nodes: Cluster) -> None:
    began = time.monotonic()
    where = Counter(zray.get([here_after.remote(0.1) for _ in range(30)], timeout=30))
    # One CPU here and two there: alone the first node would need 3 s.
    assert time.monotonic() - began < 2.0
    assert set(where) == {node.node_id for node in two_nodes.nodes}


def test_tasks_handed_to_a_worker_at_once_are_taken_back_for_another_node(
    two_nodes: Cluster,
) -> None:
    # So few that all of them are with the one local worker before anybody knows they are long.
    began = time.monotonic()
    where = set(zray.get([here_after.remote(0.5) for _ in range(3)], timeout=30))
    assert time.monotonic() - began < 1.4
    assert len(where) == 2


def test_borrowed_workers_go_back_when_nothing_is_left(two_nodes: Cluster) -> None:
    zray.get([here_after.remote(0.05) for _ in range(12)], timeout=30)
    wait_until(lambda: zray.available_resources() == zray.cluster_resources())


# -- where an option says --------------------------------------------------------------------------


def test_affinity_to_a_node_is_kept(two_nodes: Cluster) -> None:
    for node in two_nodes.nodes:
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        refs = [here.options(scheduling_strategy=strategy).remote() for _ in range(8)]
        assert set(zray.get(refs, timeout=20)) == {node.node_id}
        actor = Plain.options(scheduling_strategy=strategy).remote()  # type: ignore[attr-defined]
        assert zray.get(actor.node.remote(), timeout=20) == node.node_id
        zray.kill(actor)


def test_a_label_selector_is_kept_by_tasks_and_actors(two_nodes: Cluster) -> None:
    second = two_nodes.nodes[1].node_id
    labels = NodeLabelSchedulingStrategy({"zone": In("a", "b")})
    refs = [
        here.options(label_selector={"zone": "b"}).remote(),
        here.options(scheduling_strategy=labels).remote(),
    ]
    assert zray.get(refs, timeout=20) == [second, second]
    first = here.options(label_selector={"zone": "!b"}).remote()
    assert zray.get(first, timeout=20) == two_nodes.nodes[0].node_id
    actor = Plain.options(label_selector={"zone": "b"}).remote()  # type: ignore[attr-defined]
    assert zray.get(actor.node.remote(), timeout=20) == second
    zray.kill(actor)


def test_a_soft_condition_on_labels_is_met_where_it_can_be(two_nodes: Cluster) -> None:
    second = two_nodes.nodes[1].node_id
    wish = NodeLabelSchedulingStrategy({}, soft={"zone": In("b")})
    assert zray.get(here.options(scheduling_strategy=wish).remote(), timeout=20) == second
    vain = NodeLabelSchedulingStrategy({}, soft={"zone": In("nowhere")})
    found = zray.get(here.options(scheduling_strategy=vain).remote(), timeout=20)
    assert found in {node.node_id for node in two_nodes.nodes}


@zray.remote(resources=FAR)
def makes_bytes(count: int) -> bytes:
    return bytes(count)


@zray.remote
def here_with(_value: bytes) -> str:
    return str(zray.get_runtime_context().get_node_id())


def test_a_task_goes_to_its_large_argument(two_nodes: Cluster) -> None:
    first, second = (node.node_id for node in two_nodes.nodes)
    large, small = makes_bytes.remote(16 << 20), makes_bytes.remote(150 << 10)
    zray.wait([large, small], num_returns=2, timeout=30, fetch_local=False)
    assert zray.get(here_with.remote(large), timeout=20) == second
    assert zray.get(here_with.remote(small), timeout=20) == first
    zray.get(large, timeout=20)
    assert zray.get(here_with.remote(large), timeout=20) == first, "it is here as well by now"


def test_hard_affinity_to_a_node_that_is_not_there_fails(two_nodes: Cluster) -> None:
    hard = NodeAffinitySchedulingStrategy(NOBODY, soft=False)
    with pytest.raises(TaskUnschedulableError, match="not alive"):
        zray.get(here.options(scheduling_strategy=hard).remote(), timeout=20)
    actor = Plain.options(scheduling_strategy=hard).remote()  # type: ignore[attr-defined]
    with pytest.raises((ActorUnschedulableError, ActorDiedError), match="not alive"):
        zray.get(actor.node.remote(), timeout=20)


def test_soft_affinity_to_a_node_that_is_not_there_runs_anywhere(two_nodes: Cluster) -> None:
    soft = NodeAffinitySchedulingStrategy(NOBODY, soft=True)
    found = zray.get(here.options(scheduling_strategy=soft).remote(), timeout=20)
    assert found in {node.node_id for node in two_nodes.nodes}


def test_spread_goes_round_the_nodes(two_nodes: Cluster) -> None:
    spread = here.options(scheduling_strategy="SPREAD")
    refs = [spread.remote() for _ in range(40)]
    where = Counter(zray.get(refs, timeout=20))
    assert set(where.values()) == {20}
    light = Plain.options(scheduling_strategy="SPREAD", num_cpus=0)  # type: ignore[attr-defined]
    actors = [light.remote() for _ in range(4)]
    found = Counter(zray.get([actor.node.remote() for actor in actors], timeout=20))
    assert set(found.values()) == {2}
    for actor in actors:
        zray.kill(actor)


def test_a_strategy_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="scheduling_strategy"):
        here.options(scheduling_strategy="PACK")  # type: ignore[call-overload]


# -- what runs there -------------------------------------------------------------------------------


@zray.remote(resources=FAR, num_cpus=1)
def many(count: int) -> list[str]:
    found: list[str] = zray.get([here.remote() for _ in range(count)], timeout=20)
    return found


def test_a_task_elsewhere_submits_tasks_and_waits_for_them(two_nodes: Cluster) -> None:
    # Two of them hold both CPUs there, so their tasks run only if a waiting one lends its CPU.
    found = zray.get([many.remote(6) for _ in range(2)], timeout=30)
    assert [len(each) for each in found] == [6, 6]


@zray.remote(label_selector={"zone": "b"})
def deep(levels: int) -> int:
    return 1 + zray.get(near.remote(levels - 1), timeout=30) if levels else 0


@zray.remote(label_selector={"zone": "!b"})
def near(levels: int) -> int:
    return 1 + zray.get(deep.remote(levels - 1), timeout=30) if levels else 0


def test_a_chain_of_waiting_tasks_goes_to_and_fro(two_nodes: Cluster) -> None:
    assert zray.get(deep.remote(8), timeout=40) == 8


def test_functions_defined_by_a_task_elsewhere_run_on_every_node(two_nodes: Cluster) -> None:
    @zray.remote(resources=FAR)
    def defines() -> list[int]:
        @zray.remote(label_selector={"zone": "!b"})
        def inner(number: int) -> int:
            return number * 2

        found: list[int] = zray.get([inner.remote(number) for number in range(3)], timeout=20)
        return found

    assert zray.get(defines.remote(), timeout=30) == [0, 2, 4]


@zray.remote(resources=FAR, num_returns="streaming", _generator_backpressure_num_objects=2)
def counts(count: int) -> Iterator[int]:
    yield from range(count)


def test_a_generator_elsewhere_yields_and_waits_for_its_consumer(two_nodes: Cluster) -> None:
    assert [zray.get(ref, timeout=20) for ref in counts.remote(30)] == list(range(30))


@zray.remote(resources=FAR, max_retries=0)
def sleeps(seconds: float = 60.0) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("force", [False, True])
def test_a_task_elsewhere_is_cancelled(two_nodes: Cluster, force: bool) -> None:
    ref = sleeps.remote()
    wait_until(lambda: zray.available_resources().get("far", 0) == 1)
    zray.cancel(ref, force=force)
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=10)
    wait_until(lambda: zray.available_resources() == zray.cluster_resources())


def test_children_of_a_cancelled_task_elsewhere_are_cancelled_too(two_nodes: Cluster) -> None:
    @zray.remote(resources=FAR)
    def parent() -> None:
        zray.get(sleeps.remote())

    ref = parent.remote()
    wait_until(lambda: "far" not in zray.available_resources())
    zray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        zray.get(ref, timeout=10)
    wait_until(lambda: zray.available_resources() == zray.cluster_resources())


def test_a_queued_task_that_waits_for_another_node_is_cancelled(two_nodes: Cluster) -> None:
    running = [sleeps.remote() for _ in range(2)]
    wait_until(lambda: "far" not in zray.available_resources())
    queued = sleeps.remote()
    zray.cancel(queued)
    with pytest.raises(TaskCancelledError):
        zray.get(queued, timeout=10)
    for ref in running:
        zray.cancel(ref, force=True)


@zray.remote(resources=FAR, max_calls=2)
def pid() -> int:
    import os

    return os.getpid()


def test_max_calls_is_counted_elsewhere(two_nodes: Cluster) -> None:
    found = Counter(zray.get([pid.remote() for _ in range(8)], timeout=30))
    assert max(found.values()) <= 2


# -- actors ----------------------------------------------------------------------------------------


def test_an_async_actor_lives_elsewhere(two_nodes: Cluster) -> None:
    actor = Resident.options(resources=FAR).remote()  # type: ignore[attr-defined]
    refs = [actor.node_soon.remote() for _ in range(20)]
    assert set(zray.get(refs, timeout=20)) == {two_nodes.nodes[1].node_id}
    zray.kill(actor)


def test_a_shared_actor_whose_resources_are_elsewhere_lives_there(two_nodes: Cluster) -> None:
    actor = Plain.options(isolation="shared", resources=FAR).remote()  # type: ignore[attr-defined]
    assert zray.get(actor.node.remote(), timeout=20) == two_nodes.nodes[1].node_id
    zray.kill(actor)
    wait_until(lambda: zray.available_resources() == zray.cluster_resources())


def test_an_actor_elsewhere_starts_again_when_its_process_dies(two_nodes: Cluster) -> None:
    actor = Resident.options(  # type: ignore[attr-defined]
        resources=FAR, max_restarts=1, max_task_retries=2
    ).remote()
    assert zray.get(actor.node.remote(), timeout=20) == two_nodes.nodes[1].node_id
    actor.die.options(max_task_retries=0).remote()
    assert zray.get(actor.node.remote(), timeout=20) == two_nodes.nodes[1].node_id
    zray.kill(actor)


def test_an_actor_that_is_dropped_elsewhere_gives_back_what_it_held(two_nodes: Cluster) -> None:
    actor = Plain.options(resources=FAR).remote()  # type: ignore[attr-defined]
    zray.get(actor.node.remote(), timeout=20)
    del actor
    wait_until(lambda: zray.available_resources() == zray.cluster_resources())
