"""Clusters whose nodes are on different machines of one network, as far as the kernel can tell.

What    fleet: a head, where the test's driver is, and two more nodes, each in a network namespace;
        the second and third have the resource "far". Where namespaces can't be made the tests
        are skipped, and say why; tests/multinode has what needs none.
Caller  pytest.
Never   leaves a namespace, an interface, a process or a file behind.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.cluster.nodes import COMMAND, Place
from tests.leaks import Snapshot
from tests.netns.network import Machine, Network, reason_for_none
from tests.waiting import wait_until
from zray.errors import ClusterError
from zray.observer import Observer

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that -m knows them all."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip where there are none."""
    reason = reason_for_none()
    if reason:
        pytest.skip(reason)


class Node:
    """A node on a machine of its own."""

    def __init__(self, machine: Machine, directory: Path, pid: int) -> None:
        self.machine, self.directory, self.pid = machine, directory, pid
        self._told = ""

    @property
    def node_id(self) -> str:
        """What it told last: another one in another life."""
        with contextlib.suppress(OSError, ValueError):
            self._told = str(json.loads((self.directory / "node.json").read_text())["node"])
        return self._told

    def ask(self, what: str) -> Any:
        with Observer(str(self.directory)) as observer:
            return observer.ask(what)

    def log(self) -> str:
        return (self.directory / "node.log").read_text()

    def known(self) -> int:
        """Return how many nodes it knows, 0 where it does not answer."""
        try:
            return int(self.ask("cluster")["nodes"])
        except ClusterError:
            return 0

    def is_idle(self) -> bool:
        resources = self.ask("status")["resources"]
        return bool(resources["available"] == resources["total"])


class Fleet:
    """Nodes on machines."""

    def __init__(self, place: Place, network: Network) -> None:
        self.place, self.network = place, network
        self.nodes: list[Node] = []

    def start(self, *options: str, on: Machine | None = None, at: Path | None = None) -> Node:
        """Start a node, on a new machine unless one is given."""
        machine = on or self.network.add()
        directory = at or self.place.folder / f"n{len(self.nodes)}"
        if self.nodes and "--head" not in options:
            options = ("--join", f"{self.nodes[0].machine.address}:6380", *options)
        done = subprocess.run(
            [
                *(*machine.prefix, *COMMAND, "start", "--json", "--dir", str(directory)),
                *("--host", machine.address, "--port", "6380", "--object-store-memory", "64MiB"),
                *options,
            ],
            env=self.place.env,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        node = Node(machine, directory, int(json.loads(done.stdout)["pid"]))
        self.nodes.append(node)
        return node

    def await_all(self, timeout_s: float = 30.0) -> None:
        """Wait until all nodes know each other."""
        count = len(self.nodes)
        wait_until(lambda: {node.known() for node in self.nodes} == {count}, timeout_s)

    def stop(self) -> None:
        """End all nodes in order, and look that nothing of them is left."""
        self.place.run("stop", "--all")
        self.place.await_no_process()


@pytest.fixture
def fleet(namespaces: None, run_folder: Path, no_leaks: Snapshot) -> Iterator[Fleet]:
    del namespaces
    place = Place(Path(tempfile.mkdtemp(prefix="n", dir=run_folder)))
    place.env["HOME"] = str(place.folder)
    network = Network()
    made = Fleet(place, network)
    try:
        made.start("--head", "--num-cpus", "1")
        for _ in range(2):
            made.start("--num-cpus", "2", "--resources", '{"far": 2}')
        made.await_all()
        with zray.init(str(made.nodes[0].directory), log_to_driver=False):
            yield made
        made.stop()
    finally:
        place.close()
        network.close()
        shutil.rmtree(place.folder)
