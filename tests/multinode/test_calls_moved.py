"""Calls of an actor while it starts again on another node: the order of each caller holds.

What    Callers on several nodes number their calls, three hundred at a time, until the actor has
        had a second life: its node is killed in between, and drained. It writes down what runs,
        in which life.
Caller  pytest.
Never   sleeps but inside actors.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.waiting import wait_until
from zray.errors import ActorError
from zray.testing import Cluster, TestNode

BURST = 300
CALL_S = 0.001
CALLERS = ("near", "far", "third")


@zray.remote(num_cpus=0, resources={"home": 1}, max_restarts=3)
class Writer(zray.Actor):
    """Writes down whose calls come, in which life."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.life = os.getpid()

    def note(self, who: str, number: int) -> int:
        os.write(self.file, f"{self.life} {who} {number}\n".encode())
        time.sleep(CALL_S)
        return number

    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())


@zray.remote(num_cpus=0)
class Caller(zray.Actor):
    """Calls without waiting, then tells which calls came to their end."""

    def call(self, writer: Any, who: str, over: str) -> tuple[int, list[int]]:
        return ended(writer, who, over)


def ended(writer: Any, who: str, over: str) -> tuple[int, list[int]]:
    """Call in bursts until a file is there: returns how many, and what came back."""
    found: list[int] = []
    called = 0
    last = False
    while not last:
        last = os.path.exists(over)
        refs = [writer.note.remote(who, called + number) for number in range(BURST)]
        called += BURST
        for ref in refs:
            try:
                found.append(zray.get(ref, timeout=60))
            except ActorError:
                continue
    return called, found


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("retries", [0, -1])
@pytest.mark.parametrize("way", ["killed", "drained"])
def test_each_callers_calls_run_in_order_in_each_life(
    cluster: Cluster, tmp_path: Path, retries: int, way: str
) -> None:
    cluster.add_node(num_cpus=1, resources={"near": 1})
    first: TestNode = cluster.add_node(num_cpus=1, resources={"home": 1})
    cluster.add_node(num_cpus=1, resources={"far": 1})
    zray.init(cluster.address, log_to_driver=False)
    path = tmp_path / "calls"
    writer: Any = Writer.options(max_task_retries=retries).remote(str(path))
    assert zray.get(writer.node.remote(), timeout=30) == first.node_id
    cluster.add_node(num_cpus=1, resources={"home": 1})
    callers: list[Any] = [Caller.options(resources={who: 1}).remote() for who in CALLERS[:2]]
    callers.append(Caller.remote())
    over = tmp_path / "over"
    told = [
        each.call.remote(writer, who, str(over)) for each, who in zip(callers, CALLERS, strict=True)
    ]
    wait_until(lambda: {who for _, who, _ in lines(path)} == set(CALLERS), 30)
    if way == "killed":
        cluster.kill_node(first)
    else:
        cluster.remove_node(first)
    wait_until(lambda: len({life for life, _, _ in lines(path)}) == 2, 60)
    over.touch()
    came = dict(zip(CALLERS, zray.get(told, timeout=120), strict=True))
    ran: dict[str, dict[str, list[int]]] = {who: defaultdict(list) for who in CALLERS}
    for life, who, number in lines(path):
        ran[who][life].append(int(number))
    for who in CALLERS:
        called, back = came[who]
        for numbers in ran[who].values():
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), (who, numbers)
        assert back == sorted(back)
        # A later life goes on where an earlier one was, or with what that did not finish.
        for before, after in itertools.pairwise(ran[who].values()):
            assert after[0] <= before[-1] + 1 or retries == 0, (who, before[-1], after[0])
        if retries:
            assert back == list(range(called))
    assert len({life for who in CALLERS for life in ran[who]}) == 2
