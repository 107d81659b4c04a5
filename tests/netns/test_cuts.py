"""Cables that are pulled, for a moment or for long, in both directions or in one.

What    Who gets which typed error in which time; what goes on as if nothing had been; that an
        actor never runs beside its successor; that the cluster is whole again afterwards.
Caller  pytest.
Never   sleeps but for as long as a cable is out: what changes by itself is waited for.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.netns.conftest import Fleet, Node
from tests.waiting import wait_until
from zray.errors import ActorDiedError, NodeDiedError, WorkerCrashedError
from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TICK_S = 0.005
STEP_S = 0.01
BRIEF_S = 1.0
"""Shorter than a lease."""
LONG_S = 3.0
"""Longer than one."""
DEAD_S = 3.0
SLACK_S = 1.5
"""A machine that is busy with other tests is late."""


@zray.remote(num_cpus=0, resources={"far": 1})
class _Ticker:
    """It counts, and writes down when it ran, also between two calls."""

    def __init__(self, folder: str) -> None:
        self.count = 0
        self.node = str(zray.get_runtime_context().get_node_id())
        path = Path(folder, f"{os.getpid()}.ticks")
        threading.Thread(target=self._tick, args=(path,), daemon=True).start()

    def _tick(self, path: Path) -> None:
        with path.open("a") as file:
            while True:
                file.write(f"{time.monotonic()}\n")
                file.flush()
                time.sleep(TICK_S)

    def add(self) -> int:
        self.count += 1
        return self.count

    def where(self) -> tuple[str, int]:
        return self.node, os.getpid()


Ticker: Any = _Ticker


@zray.remote(num_cpus=1, resources={"far": 1})
def marks_and_waits(folder: str, item: int) -> str:
    node = str(zray.get_runtime_context().get_node_id())
    Path(folder, f"{item}.{node}").touch()
    while not Path(folder, "go").exists():
        time.sleep(STEP_S)
    return node


@zray.remote(num_cpus=0, resources={"far": 0.001})
def here() -> str:
    return str(zray.get_runtime_context().get_node_id())


def ticks(folder: Path, pid: int) -> list[float]:
    lines = (folder / f"{pid}.ticks").read_text().split("\n")
    return [float(line) for line in lines[:-1]]


def host_of(fleet: Fleet, actor: Any) -> tuple[Node, int]:
    """Return the node where an actor lives, and the pid of its worker."""
    identity, pid = zray.get(actor.where.remote(), timeout=20)
    return next(node for node in fleet.nodes if node.node_id == identity), pid


def gaps(times: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(times))


def await_use(fleet: Fleet) -> None:
    """Wait until every node serves the driver again."""
    far = {node.node_id for node in fleet.nodes[1:]}
    wait_until(lambda: set(zray.get([here.remote() for _ in range(8)], timeout=20)) <= far, 20)
    wait_until(lambda: all(node.is_idle() for node in fleet.nodes), 20)


def test_a_cable_that_is_out_for_a_second_costs_nothing_but_the_second(
    fleet: Fleet, tmp_path: Path
) -> None:
    actor = Ticker.remote(str(tmp_path))
    host, pid = host_of(fleet, actor)
    tasks = [marks_and_waits.remote(str(tmp_path), item) for item in range(3)]
    wait_until(lambda: len(list(tmp_path.glob("[0-9].*"))) == 3, 20)
    before = [node.node_id for node in fleet.nodes]
    host.machine.pull_cable()
    pending = [actor.add.remote() for _ in range(50)]
    time.sleep(BRIEF_S)
    host.machine.plug_in()
    assert zray.get(pending, timeout=20) == list(range(1, 51))
    (tmp_path / "go").touch()
    assert len(zray.get(tasks, timeout=20)) == 3
    assert gaps(ticks(tmp_path, pid)) < 1.0, "it was stopped though its lease stood"
    assert [node.node_id for node in fleet.nodes] == before
    assert all("is gone" not in node.log() for node in fleet.nodes)


@pytest.mark.parametrize("direction", ["both", "from the host", "to the host"])
def test_a_node_cut_off_is_dead_in_three_seconds_and_comes_back_as_another_one(
    fleet: Fleet, tmp_path: Path, direction: str
) -> None:
    folder = str(tmp_path)
    mortal = Ticker.options(resources={"far": 0.1}).remote(folder)
    host, _pid = host_of(fleet, mortal)
    there = NodeAffinitySchedulingStrategy(host.node_id, soft=True)
    restarts = Ticker.options(
        resources={"far": 0.1}, max_restarts=3, max_task_retries=5, scheduling_strategy=there
    ).remote(folder)
    assert host_of(fleet, restarts)[0] is host
    old_pid = host_of(fleet, restarts)[1]
    again = marks_and_waits.options(scheduling_strategy=there).remote(folder, 1)
    once = marks_and_waits.options(scheduling_strategy=there, max_retries=0, resources={}).remote(
        folder, 2
    )
    wait_until(lambda: len(list(tmp_path.glob(f"*.{host.node_id}"))) == 2, 20)
    old = host.node_id
    began = time.monotonic()
    cut(fleet, host, direction)
    with pytest.raises(ActorDiedError):
        zray.get(mortal.add.remote(), timeout=20)
    told_s = time.monotonic() - began
    assert told_s < DEAD_S + SLACK_S
    with pytest.raises(WorkerCrashedError):
        zray.get(once, timeout=20)
    assert zray.get(restarts.add.remote(), timeout=20) == 1
    node, pid = zray.get(restarts.where.remote(), timeout=20)
    assert node != old
    assert max(ticks(tmp_path, old_pid)) < min(ticks(tmp_path, pid)), "two copies of an actor"
    (tmp_path / "go").touch()
    assert zray.get(again, timeout=20) != old
    time.sleep(max(0.0, 5.0 - (time.monotonic() - began)))
    mend(fleet, host, direction)
    wait_until(lambda: host.node_id != old, 20)
    fleet.await_all()
    assert max(ticks(tmp_path, old_pid)) < min(ticks(tmp_path, pid))
    assert zray.get(restarts.add.remote(), timeout=20) == 2
    del restarts
    await_use(fleet)
    print(f"told after {told_s:.2f} s")


def cut(fleet: Fleet, host: Node, direction: str) -> None:
    if direction == "both":
        host.machine.pull_cable()
    for other in (node.machine for node in fleet.nodes if node is not host):
        if direction == "from the host":
            host.machine.drop_towards(other)
        elif direction == "to the host":
            other.drop_towards(host.machine)


def mend(fleet: Fleet, host: Node, direction: str) -> None:
    if direction == "both":
        host.machine.plug_in()
    for other in (node.machine for node in fleet.nodes if node is not host):
        if direction == "from the host":
            host.machine.restore_towards(other)
        elif direction == "to the host":
            other.restore_towards(host.machine)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_node_cut_off_for_half_a_minute_gives_up_and_joins_when_it_can(
    fleet: Fleet, tmp_path: Path
) -> None:
    actor = Ticker.remote(str(tmp_path))
    host, pid = host_of(fleet, actor)
    old = host.node_id
    host.machine.pull_cable()
    began = time.monotonic()
    # Nobody can tell it of its death: it finds out by itself, and waits in another life.
    wait_until(lambda: host.node_id != old, 25)
    assert time.monotonic() - began > 10.0
    assert max(ticks(tmp_path, pid)) < began + 2.0
    time.sleep(max(0.0, 30.0 - (time.monotonic() - began)))
    host.machine.plug_in()
    fleet.await_all()
    with pytest.raises(ActorDiedError):
        zray.get(actor.add.remote(), timeout=20)
    await_use(fleet)


def test_a_head_cut_off_for_longer_than_a_lease_finds_the_others_in_other_lives(
    fleet: Fleet, tmp_path: Path
) -> None:
    head, *others = fleet.nodes
    zray.shutdown()
    before = {node.node_id for node in others}
    with zray.init(str(others[0].directory), log_to_driver=False):
        actor = Ticker.options(resources={}).remote(str(tmp_path))
        assert zray.get(actor.add.remote(), timeout=20) == 1
        _node, pid = zray.get(actor.where.remote(), timeout=20)
        head.machine.pull_cable()
        began = time.monotonic()
        time.sleep(LONG_S)
        assert ticks(tmp_path, pid)[-1] < began + 2.0, "it ran on without a lease"
        head.machine.plug_in()
        # Where the GCS is, is the cluster; a driver elsewhere hears that its node's life is over.
        with pytest.raises(NodeDiedError):
            zray.get(actor.add.remote(), timeout=20)
    wait_until(lambda: not before & {node.node_id for node in others}, 20)
    fleet.await_all()
    zray.init(str(head.directory), log_to_driver=False)
    await_use(fleet)
