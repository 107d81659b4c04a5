"""One run of the simulation: a seed makes a cluster, its programs, its crashes.

What    simulate(seed) runs to the end and raises SimulationFailed with the story where an
        invariant broke, a get never ended, a value was wrong, or something was left behind.
Caller  tests/sim/test_sim.py, scripts/sim.
Never   depends on anything but the seed and the code.
"""

from __future__ import annotations

import gc
import random

from tests.sim.driver import SimDriver
from tests.sim.node import NODE, SimNode
from tests.sim.process import STORED_BYTES, SimProcess
from tests.sim.worker import SimWorker
from tests.sim.world import World
from zray.protocol.ids import process_id

TIME_MAX_S = 100.0
EVENTS_MAX = 200_000
STORY_SHOWN = 3000


class SimulationFailedError(AssertionError):
    """A seed that breaks a promise; says how to see it again."""


class Simulation:
    """A node, drivers and workers."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        rng = world.rng
        cpus = rng.choice((1, 2, 2, 4))
        small = rng.random() < 0.2
        extents = rng.randint(6, 12) if small else 4000
        self.node = SimNode(
            world,
            self._start_worker,
            capacity_bytes=extents * STORED_BYTES,
            total={"CPU": cpus * 10000, "disk": 10000, "seat": 1000},
        )
        # Whoever kills needs luck of its own, so that the programs do not change with it.
        self.fate = random.Random(rng.random())
        self.kills = self.fate.choice((0, 0, 0, 1, 3, 8))
        crashes = self.kills > 0 and self.fate.random() < 0.5
        self.drivers = []
        for number in range(rng.choice((1, 1, 2, 3))):
            identity = process_id(NODE, b"d" + (number + 1).to_bytes(3, "big"))
            world.names[identity] = f"d{number + 1}"
            self.drivers.append(
                SimDriver(
                    world,
                    identity,
                    steps=rng.choice((4, 12, 30)),
                    crashes=crashes,
                    small_store=small,
                )
            )
        for _ in range(self.kills):
            world.after(self.fate.expovariate(1 / 0.05), "fate", self._kill_somebody)

    def _start_worker(self, identity: bytes) -> None:
        SimWorker(self.world, identity)

    def _kill_somebody(self) -> None:
        living = [process for process in self.world.processes.values() if not process.dead]
        workers = [process for process in living if isinstance(process, SimWorker)]
        drivers = [
            process for process in living if isinstance(process, SimDriver) and not process.done
        ]
        victims: list[SimProcess] = [*workers]
        if len(self.drivers) > 1 and self.fate.random() < 0.15:
            victims = [*drivers]
        if victims:
            self.fate.choice(victims).crash("fate")

    def run(self) -> None:
        """Run to the end; raises AssertionError where something is wrong."""
        world = self.world
        while not all(driver.done or driver.dead for driver in self.drivers):
            self._step("a driver still waits")
        self._settle()
        left = self.node.leaks()
        for driver in self.drivers:
            if not driver.dead:
                left += driver.leaks()
        for process in world.processes.values():
            if isinstance(process, SimWorker) and not process.dead:
                left += process.leaks()
        assert not left, "left behind:\n" + "\n".join(left)

    def _settle(self) -> None:
        """Everybody has dropped everything: let the last words arrive."""
        until = self.world.now + 3.0
        while self.world.now < until:
            self._step("it does not settle")
        gc.collect()
        for process in list(self.world.processes.values()):
            process.give_back()
        until = self.world.now + 1.0
        while self.world.now < until:
            self._step("it does not settle")

    def _step(self, what: str) -> None:
        world = self.world
        if world.now > TIME_MAX_S or world.events > EVENTS_MAX:
            drivers = "; ".join(f"{driver.name} {driver.held_for()}" for driver in self.drivers)
            raise AssertionError(
                f"{what} at {world.now:.1f} s after {world.events} events:"
                f" {drivers}; node: {self.node.state()}"
            )
        world.step()


def simulate(seed: int) -> Simulation:
    """Run one seed; raises SimulationFailedError with the end of its story."""
    enabled = gc.isenabled()
    gc.disable()  # The collector's moment must not be part of the story.
    try:
        simulation = Simulation(seed)
        try:
            simulation.run()
        except Exception as error:
            story = "\n".join(simulation.world.lines()[-STORY_SHOWN:])
            raise SimulationFailedError(
                f"{story}\n\nseed {seed}: {type(error).__name__}: {error}\n"
                f"see it again: scripts/test tests/sim --seed {seed}"
            ) from error
    finally:
        if enabled:
            gc.enable()
        gc.collect()
    return simulation
