"""The GCS through the head's port: its process, the link and nodes die with commands under way.

What    Drivers at a node that is not the head write keys that must be new, each exactly once, while
        the GCS process is killed, the link to the head is reset or carries nothing for a while.
Caller  pytest.
Never   sleeps but where a cable is pulled for a time.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.cluster.nodes import Place
from tests.multinode.forwarder import Forwarder, free_port
from tests.multinode.gcs_processes import gcs_pid
from tests.multinode.test_gcs import kill_gcs, known_to, log, on
from tests.waiting import wait_until
from zray import launch
from zray.observer import Observer
from zray.testing import Cluster
from zray.util import kv, list_named_actors

WRITERS = 6
PULLED_S = 0.7
"""A cable is pulled for so long: less than a lease lasts, also where the machine is busy."""


class Writing:
    """Threads that put keys of their own, one after the other, each of which must be new."""

    def __init__(self) -> None:
        self.counts = [0] * WRITERS
        self.wrong: list[str] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        while not self._stopping.is_set():
            key = f"{number}/{self.counts[number]}"
            try:
                if not kv.put(key, b"x", overwrite=False):
                    self.wrong.append(f"{key} was put twice")
            except zray.errors.ZrayError as error:
                self.wrong.append(f"{key}: {error!r}")
            self.counts[number] += 1

    def goes_on(self, more: int = 20) -> None:
        """Return when every thread has written some more."""
        goal = [count + more for count in self.counts]
        wait_until(
            lambda: (
                bool(self.wrong)
                or all(has >= want for has, want in zip(self.counts, goal, strict=True))
            ),
            30,
            what=f"more than {self.counts}",
        )
        assert not self.wrong

    def end(self) -> None:
        """Stop, and look whether all is there."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(40)
        assert not self.wrong
        assert len(kv.keys()) == sum(self.counts)


@pytest.fixture
def writing() -> Iterator[Callable[[], Writing]]:
    begun: list[Writing] = []

    def begin() -> Writing:
        begun.append(Writing())
        return begun[-1]

    yield begin
    for each in begun:
        each._stopping.set()


@dataclass
class Pair:
    """A head and a node that joined it, each behind a forwarder of its control port."""

    forwarder: Forwarder
    """Of the head."""
    back: Forwarder
    """Of the node."""
    head: str
    node: str
    process: subprocess.Popen[Any]

    def log(self, directory: str) -> str:
        return Path(directory, "node.log").read_text()

    def nodes(self) -> list[int]:
        found = []
        for directory in (self.head, self.node):
            # One that begins another life is not there for a moment.
            with contextlib.suppress(zray.errors.ClusterError), Observer(directory) as observer:
                found.append(int(observer.ask("cluster")["nodes"]))
        return found


@pytest.fixture
def pair(place: Place) -> Iterator[Pair]:
    ports = [free_port(), free_port()]
    with Forwarder(ports[0]) as forwarder, Forwarder(ports[1]) as back:
        clusters: list[dict[str, Any]] = [
            {"head": True, "port": ports[0], "advertise": forwarder.address},
            {"join": [f"tcp://{forwarder.address}"], "port": ports[1], "advertise": back.address},
        ]
        folders, started = [], []
        for name, cluster in zip(("head", "node"), clusters, strict=True):
            folders.append(place.folder / name)
            folders[-1].mkdir(mode=0o700)
            settings = {"num_cpus": 1, "parent": os.getpid(), "cluster": cluster}
            started.append(launch.launch_node(str(folders[-1]), settings))
            place.children.append(started[-1])  # type: ignore[arg-type]
        yield Pair(forwarder, back, str(folders[0]), str(folders[1]), started[1])
        zray.shutdown()
        for process in reversed(started):
            process.terminate()
            process.wait(20)


def test_commands_under_way_happen_once_though_the_gcs_is_killed(
    cluster: Cluster, writing: Callable[[], Writing]
) -> None:
    head, node = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    zray.init(node.directory)
    at_work = writing()
    for _ in range(4):
        at_work.goes_on()
        before = kill_gcs(head)
        wait_until(lambda before=before: gcs_pid(head) != before, 20)  # type: ignore[misc]
    at_work.goes_on()
    at_work.end()
    assert all("is gone" not in log(each) for each in cluster.nodes)


def test_a_session_outlives_the_link_to_the_head(
    pair: Pair, writing: Callable[[], Writing]
) -> None:
    zray.init(pair.node)
    at_work = writing()
    took = []
    for _ in range(3):
        at_work.goes_on()
        pair.forwarder.cut()
        began = time.monotonic()
        at_work.goes_on(2)
        took.append(time.monotonic() - began)
    at_work.end()
    assert min(took) < 0.9, "the head is dialled at once, and what was lost is sent again"
    assert "its connection ended" in pair.log(pair.node)
    wait_until(lambda: pair.nodes() == [2, 2])
    assert pair.process.poll() is None


def test_a_cable_that_is_pulled_for_a_moment_costs_that_moment(
    pair: Pair, writing: Callable[[], Writing]
) -> None:
    zray.init(pair.node)
    at_work = writing()
    at_work.goes_on()
    pair.forwarder.deaf()
    pair.back.deaf()
    time.sleep(PULLED_S)
    pair.forwarder.hear()
    pair.back.hear()
    at_work.goes_on()
    at_work.end()
    assert pair.nodes() == [2, 2]
    assert "is gone" not in pair.log(pair.node) + pair.log(pair.head)


def test_a_node_that_was_declared_dead_hears_so_when_the_way_is_open_again(pair: Pair) -> None:
    for forwarder in (pair.forwarder, pair.back):
        forwarder.deaf()
    began = time.monotonic()
    with Observer(pair.head) as observer:
        wait_until(lambda: observer.ask("cluster")["nodes"] == 1, 5)
    assert time.monotonic() - began < 3.5
    for forwarder in (pair.forwarder, pair.back):
        forwarder.hear()
    # By itself it would end this life when its lease has been over for ten seconds.
    wait_until(lambda: "begins another life" in pair.log(pair.node), 8)
    assert "over for" not in pair.log(pair.node)
    wait_until(lambda: pair.nodes() == [2, 2], 20)


def test_the_gcs_is_told_at_once_of_a_node_that_was_killed(cluster: Cluster) -> None:
    """Its lease would last longer than this waits."""
    cluster.add_node(num_cpus=1)
    victim = cluster.add_node(num_cpus=1)
    zray.init(cluster.address, namespace="shared")
    program = """
        @zray.remote(num_cpus=0)
        class Far:
            pass
        far = Far.options(name='far', lifetime='detached').remote()
        zray.get(far.__ray_ready__.remote(), timeout=20)
    """
    on(victim, program)
    assert list_named_actors() == ["far"]
    cluster.kill_node(victim)
    began = time.monotonic()
    wait_until(lambda: list_named_actors() == [], 10)
    assert time.monotonic() - began < 1.5
    assert known_to(cluster.nodes[0]) == 1


def test_a_value_larger_than_a_link_s_frame_goes_to_the_gcs_and_back(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    node = cluster.add_node(num_cpus=1)
    zray.init(node.directory)
    value = os.urandom(48 << 20)
    assert kv.put("large", value)
    assert kv.get("large") == value
