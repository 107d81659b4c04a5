"""What tests with real processes share: nodes in their kinds, and folders for nodes that stay.

What    node: one for all tests of a module. own_node: one for a single test, which may kill it.
        ``pytest.mark.node(num_cpus=4)`` on the module (or, for own_node, on a test) gives the
        options of init(); two CPUs where it says nothing.
        place: a folder for one test's nodes, programs and last started node.
        Every test below this folder has the mark "cluster".
Caller  pytest.
Never   lets a process or a file of a test outlive it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.cluster.nodes import Place
from tests.leaks import Snapshot
from zray.api import Context

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that -m knows them all."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of init() for whom the fixture is made: a module or a test."""
    marker = request.node.get_closest_marker("node")
    return {"num_cpus": 2} | (marker.kwargs if marker is not None else {})


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Context]:
    """Start an embedded node that the tests of a module share; yields what init() returned."""
    with zray.init(**_options(request)) as context:
        yield context


@pytest.fixture
def own_node(request: pytest.FixtureRequest, no_leaks: Snapshot) -> Iterator[Context]:
    """Start an embedded node for one test; afterwards nothing of it may be left."""
    with zray.init(**_options(request)) as context:
        yield context


@pytest.fixture
def place(run_folder: Path, no_leaks: Snapshot) -> Iterator[Place]:
    """Return a fresh Place; what a test has left running there is killed."""
    made = Place(Path(tempfile.mkdtemp(prefix="p", dir=run_folder)))
    yield made
    made.close()
    shutil.rmtree(made.folder)
