"""Many seeds of the simulation, on every core.

What    Runs seeds in worker processes, says how many passed, and prints the story of the first
        one that failed; its exit status tells a script.
Caller  scripts/sim.
Never   stops at the first failure: how many seeds fail tells how rare a fault is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from tests.sim.simulation import SimulationFailedError, simulate

SHOWN_MAX = 10


def run(seed: int) -> tuple[int, int, str]:
    """Run one seed: (seed, events, story or "")."""
    try:
        return seed, simulate(seed).world.events, ""
    except SimulationFailedError as error:
        return seed, 0, str(error)


def main() -> int:
    """Run the seeds asked for; returns 1 where one failed."""
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    arguments = parser.parse_args()
    started, events, failed = time.monotonic(), 0, []
    with multiprocessing.Pool(os.cpu_count()) as pool:
        seeds = range(arguments.first, arguments.first + arguments.count)
        for seed, its_events, story in pool.imap_unordered(run, seeds, chunksize=8):
            events += its_events
            if story:
                failed.append((seed, story))
    if failed:
        print(min(failed)[1], file=sys.stderr)
        print("failed seeds:", *sorted(seed for seed, _story in failed)[:SHOWN_MAX])
    print(
        f"{arguments.count - len(failed)} of {arguments.count} seeds passed: {events} events in"
        f" {time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
