"""Kill -9 at random points under load, and nothing is left behind.

What    15 rounds here; ``python -m tests.chaos.rounds --rounds 200`` for the long run.
Never   hides a seed: a failure names it.
"""

import pytest

from tests.chaos.rounds import Chaos

ROUNDS = 15


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_random_deaths_leave_no_trace_and_no_get_hangs(no_leaks, seed):
    chaos = Chaos(seed if seed is not None else 1)
    try:
        for number in range(ROUNDS):
            print(chaos.round(number))
    finally:
        chaos.close()
    assert chaos.kills >= ROUNDS
