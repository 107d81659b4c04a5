"""What zray brings to pytest: the fixture ``zray_cluster``.

What    A fixture that gives each test a Cluster of its own and ends it afterwards. pytest finds it
        through the entry point pytest11; nothing has to be imported.
Caller  pytest.
Never   imports more than pytest before a test asks for the fixture: every run of every project
        that has zray installed loads this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zray.testing import Cluster


@pytest.fixture
def zray_cluster() -> Iterator[Cluster]:
    """Yield an empty zray.testing.Cluster; afterwards its nodes, and this driver, are gone."""
    from zray.testing import Cluster

    with Cluster() as cluster:
        yield cluster
