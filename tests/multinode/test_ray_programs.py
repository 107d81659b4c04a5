"""The ordinary Ray programs, unchanged, on three nodes of which the driver's has no CPU.

What    Every program of tests/cluster/test_ray_programs.py again: here each of its tasks and actors
        runs on another node than its driver, so each call, result and reference crosses a link.
Never   has a second copy of a program.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zray
from tests.cluster import test_ray_programs
from zray.testing import Cluster

PROGRAMS = {
    name.removeprefix("test_"): value
    for name, value in vars(test_ray_programs).items()
    if name.startswith("test_")
}


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """Start three nodes that all programs share, and connect to the one that can run nothing."""
    with Cluster() as made:
        made.add_node(num_cpus=0)
        made.add_node(num_cpus=2, resources={"licence": 2})
        made.add_node(num_cpus=2)
        with zray.init(made.address, namespace="programs"):
            yield made


@pytest.mark.usefixtures("three_nodes")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_program_runs_elsewhere(program: Callable[..., Any], request: pytest.FixtureRequest):
    wanted = program.__code__.co_varnames[: program.__code__.co_argcount]
    program(**{name: request.getfixturevalue(name) for name in wanted})
