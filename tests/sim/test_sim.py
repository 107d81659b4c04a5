"""The simulation over many seeds, and what of it must hold for the simulation itself.

What    Each seed is a cluster of its own; a failing one is printed with its story. ``--seed N``
        runs one; scripts/sim runs thousands.
Never   runs for long: about a tenth of a second a seed.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.simulation import simulate

ROOT = Path(__file__).parents[2]
SEEDS = 180
GROUPS = 8

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Every run collects garbage; not that of the thousand tests before it, which takes minutes."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_get_ends_and_nothing_is_left_behind(group: int, seed: int | None) -> None:
    if seed is not None:
        seeds = [seed] if group == 0 else []
    else:
        seeds = list(range(group, SEEDS, GROUPS))
    for number in seeds:
        simulate(number)


def test_the_same_seed_tells_the_same_story() -> None:
    first, second = simulate(7), simulate(7)
    assert first.world.lines() == second.world.lines()


def test_a_seed_means_the_same_in_every_process() -> None:
    """Python orders sets differently in each: no machine may let that decide."""
    program = "from tests.sim.simulation import simulate; print(simulate(9).world.digest())"
    stories = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert stories[0] == stories[1]
