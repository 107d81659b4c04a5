"""Many seeds of the simulation, on every core.

What    Runs seeds in worker processes, says how many passed, and prints the story of the first
        one that failed; its exit status tells a script.
Caller  scripts/sim.
Never   stops at the first failure: how many seeds fail tells how rare a fault is.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from functools import partial

from tests.sim.nodes_simulation import simulate_nodes
from tests.sim.simulation import SimulationFailedError, simulate

SHOWN_MAX = 10


def run(nodes: int | None, seed: int) -> tuple[int, int, str]:
    """Run one seed: (seed, events, story or "")."""
    try:
        simulation = simulate(seed) if nodes is None else simulate_nodes(seed, nodes)
        return seed, simulation.world.events, ""
    except SimulationFailedError as error:
        return seed, 0, str(error)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    """Run the seeds asked for; returns 1 where one failed."""
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    parser.add_argument("--seeds", type=_seeds, metavar="A-B", help="in the place of a count")
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="several nodes and the GCS: so many, or as many as each seed says",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    arguments = parser.parse_args()
    seeds = arguments.seeds or range(arguments.first, arguments.first + arguments.count)
    # What was imported is looked at by no collection of a run: half of the time went into it.
    gc.collect()
    gc.freeze()
    started, events, failed = time.monotonic(), 0, []
    with multiprocessing.Pool(min(arguments.jobs, len(seeds))) as pool:
        each = partial(run, arguments.nodes)
        for seed, its_events, story in pool.imap_unordered(each, seeds, chunksize=8):
            events += its_events
            if story:
                failed.append((seed, story))
    if failed:
        print(min(failed)[1], file=sys.stderr)
        print("failed seeds:", *sorted(seed for seed, _story in failed)[:SHOWN_MAX])
    print(
        f"{len(seeds) - len(failed)} of {len(seeds)} seeds passed: {events} events in"
        f" {time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
