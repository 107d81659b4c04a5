"""What tests of several nodes share: clusters on this machine, and places for zray-node.

What    cluster: an empty zray.testing.Cluster for one test, after which nothing of it is left.
        two_nodes: one for all tests of a module, with a driver: the first node has 1 CPU, the
        second 2 CPUs, 2 of the resource "far" and the label zone=b.
        place: a folder for one test's nodes, started by zray-node, with a home of its own.
        Every test below this folder has the mark "cluster".
Caller  pytest.
Never   lets a process or a file of a test outlive it; writes keys into the user's home.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import zray
from tests.cluster.nodes import Place
from tests.leaks import Snapshot
from zray.testing import Cluster

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that -m knows them all."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def cluster(no_leaks: Snapshot) -> Iterator[Cluster]:
    """Return an empty cluster; the fixture users get, with a look for leaks behind it."""
    with Cluster() as made:
        yield made


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """Start two nodes that the tests of a module share, and connect to the first one."""
    with Cluster() as made:
        made.add_node(num_cpus=1)
        made.add_node(num_cpus=2, resources={"far": 2}, labels={"zone": "b"})
        with zray.init(made.address):
            yield made


@pytest.fixture
def place(run_folder: Path, no_leaks: Snapshot) -> Iterator[Place]:
    """Return a fresh Place; what a test has left running there is killed."""
    made = Place(Path(tempfile.mkdtemp(prefix="p", dir=run_folder)))
    made.env["HOME"] = str(made.folder)
    yield made
    made.close()
    shutil.rmtree(made.folder)
