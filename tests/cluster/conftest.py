"""What tests with nodes and drivers in processes of their own share.

What    place: a folder for one test's nodes, programs and last started node.
Caller  pytest.
Never   lets a process or a file of a test outlive it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Place
from tests.leaks import Snapshot


@pytest.fixture
def place(run_folder: Path, no_leaks: Snapshot) -> Iterator[Place]:
    """Return a fresh Place; what a test has left running there is killed."""
    made = Place(Path(tempfile.mkdtemp(prefix="p", dir=run_folder)))
    yield made
    made.close()
    shutil.rmtree(made.folder)
