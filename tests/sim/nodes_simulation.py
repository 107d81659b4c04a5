"""One run of several nodes: a seed makes a cluster, its GCS, its programs and what befalls them.

What    simulate_nodes(seed) runs the real Node, Cluster, GCS replica and sessions of 2 to 5 nodes
        on one virtual clock and raises SimulationFailedError with the story where an invariant
        broke: a get that never ended or was wrong, an object that was freed while referenced, a
        name with two holders, anything that is left behind by what has ended.
Caller  tests/sim/test_nodes.py, scripts/sim.
Never   depends on anything but the seed and the code.
"""

from __future__ import annotations

import contextlib
import gc

from tests.sim.driver import SimDriver
from tests.sim.faults import Faults
from tests.sim.member import NodesWorld, SimMember, seeded
from tests.sim.nodes_driver import NodesDriver
from tests.sim.process import STORED_BYTES
from tests.sim.simulation import SimulationFailedError
from tests.sim.smallest import Case, smallest, transcript
from tests.sim.worker import SimWorker
from zray.brokers import gcs_connection, group_table
from zray.protocol.ids import node_id, process_id

TIME_MAX_S = 100.0
EVENTS_MAX = 150_000
READY_S = 5.0
CLEAN_S = 14.0
"""What waits for a node that never comes is given up after 10 s; everything else is quicker."""


class NodesSimulation:
    """Several nodes, the GCS, drivers and workers."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = world = NodesWorld(case.seed)
        rng = world.rng
        self.lives = 0
        self.drivers: list[SimDriver] = []
        self.faults = Faults(self, rng.random(), case.without)
        self.head: SimMember
        world.begin_anew = self._begin_anew
        for _ in range((case.nodes or rng.choice((2, 3, 3, 3, 4, 5))) - 1):
            world.after(rng.choice((0.0, 0.01, 0.3)), "start", self._add_another)

    # -- nodes -----------------------------------------------------------------------------------

    def add_head(self, address: str | None) -> None:
        """Start the head, and with it the GCS."""
        self.head = self.add_member(address, is_head=True)

    def add_member(self, address: str | None, *, is_head: bool = False) -> SimMember:
        """Start a node and let it join."""
        world, rng = self.world, self.world.rng
        self.lives += 1
        cpus = rng.choice((1, 1, 2, 4))
        total = {"CPU": cpus * 10000, "disk": 10000, "seat": 1000, "berth": 20000}
        if is_head:
            total["side"] = 20000
        if address is None or address in world.inboxes:
            address = f"tcp://sim:{self.lives}"
        member = SimMember(
            world,
            lambda identity: self._start_worker(identity),
            process=node_id(b"nd" + self.lives.to_bytes(2, "big")),
            name=chr(ord("A") + self.lives - 1),
            address=address,
            total=total,
            capacity_bytes=4000 * STORED_BYTES,
            labels={"side": "left" if is_head else rng.choice(("left", "right"))},
        )
        if is_head:
            gcs_connection.enter(member.cluster, {"head": True})
        else:
            join = [self.head.cluster.inbox.address]
            gcs_connection.enter(member.cluster, {"join": join})
        member.wake_soon()
        return member

    def _add_another(self) -> None:
        self.add_member(None)

    def _begin_anew(self, address: str) -> None:
        self.world.after(0.3, "start", lambda: self._add_at(address))

    def _add_at(self, address: str) -> None:
        self.add_member(address)

    def _start_worker(self, identity: bytes) -> None:
        if identity[:4] + bytes(4) in self.world.nodes:
            SimWorker(self.world, identity)

    def _start_drivers(self, *, early: bool) -> None:
        world, rng = self.world, self.world.rng
        members = [each for each in world.members if each.cluster.is_settled]
        for _ in range(rng.choice((0, 0, 1, 2)) if len(members) > 1 else 0):
            one, other = rng.sample(members, 2)
            lag_s = rng.choice((0.005, 0.03, 0.1))
            world.network.lags[one.process, other.process] = lag_s
            world.tell(f"slow: from {one.name} to {other.name}, {lag_s} s")
        for number in range(rng.choice((1, 2, 2, 3))):
            node = rng.choice(members)
            identity = process_id(node.process, b"d" + (number + 1).to_bytes(3, "big"))
            world.names[identity] = f"{node.name}.d{number + 1}"
            driver = NodesDriver(
                world,
                identity,
                steps=min(rng.choice((4, 8, 16)), self.case.steps_max),
                crashes=self.faults.crashes_scripts,
                members=[each.process for each in members],
                early=early,
            )
            self.drivers.append(driver)

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the end; raises AssertionError where something is wrong."""
        world = self.world
        self.add_head(None)
        early = world.rng.random() < 0.2
        while not early and not self._all_joined():
            self._step("the nodes do not find each other", READY_S)
        while early and not self.head.cluster.is_settled:
            self._step("the head does not find the GCS", READY_S)
        self._start_drivers(early=early)
        self.faults.begin()
        while self.faults.happening or not all(each.done or each.dead for each in self.drivers):
            self._step("a driver still waits")
        self._settle()

    def _all_joined(self) -> bool:
        members = self.world.members
        return self.lives == len(members) > 1 and all(
            each.cluster.is_settled and len(each.cluster.members) == len(members) - 1
            for each in members
        )

    def _settle(self) -> None:
        """Everybody has dropped everything: nothing may be left when the last words have come."""
        world = self.world
        until = world.now + CLEAN_S
        pause_s = 0.5
        left = ["nobody has looked"]
        while left and world.now < until:
            looks_at = world.now + pause_s
            while world.now < looks_at:
                self._step("it does not settle")
            gc.collect()
            for process in list(world.processes.values()):
                if not process.dead:
                    process.read_all()  # What it is told that nobody waits for.
                process.give_back()
            left = self._left()
        assert not left, "left behind:\n" + "\n".join(left)

    def _left(self) -> list[str]:
        left: list[str] = []
        for member in self.world.members:
            left += member.leaks()
        for process in self.world.processes.values():
            if not process.dead:
                left += process.leaks()
        tables = self.world.gcs.store.tables
        for table, kept in (("names", ()), ("groups", (group_table.TERM,))):
            rows = [key for key in tables.get(table, {}) if key not in kept]
            if rows:
                left.append(f"the GCS: {table} {rows}")
        return left

    def _step(self, what: str, time_max_s: float = TIME_MAX_S) -> None:
        world = self.world
        if world.now > time_max_s or world.events > EVENTS_MAX:
            told = [f"{each.name} {each.held_for()}" for each in self.drivers]
            told += [f"{each.name}: {each.state()}" for each in world.members]
            raise AssertionError(
                f"{what} at {world.now:.1f} s after {world.events} events:\n" + "\n".join(told)
            )
        world.step()


_OF_THE_LOST = (
    "a message of a node that is not a member",
    "of a node that is dead",
    "GCS_CALL before LINK_HELLO",
    "GCS_ANSWER of a node that is not the head",
)
"""What a node that was lost says until it hears of that is refused."""


class _Story:
    """What the nodes print goes into the story."""

    def __init__(self, world: NodesWorld) -> None:
        self.world = world

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                self.world.tell(f"    log: {line}")
            if line.startswith("refused") and not any(each in line for each in _OF_THE_LOST):
                self.world.refusals.append(line)
        return len(text)

    def flush(self) -> None:
        return


def simulate_nodes(seed: int, nodes: int = 0) -> NodesSimulation:
    """Run one seed; raises SimulationFailedError with a transcript of the smallest part that fails.

    Args:
        seed: of everything.
        nodes: how many there are at first; 0: as many as the seed says.
    """
    case = Case(seed, nodes)
    simulation, error = run_case(case)
    if error is None:
        return simulation
    small = smallest(case, lambda each: run_case(each)[1], len(simulation.faults.planned))
    simulation, error = run_case(small)
    told = f"seed {seed}: {type(error).__name__}: {error}"
    left_out = f"without the faults {list(small.without)}, at most {small.steps_max} steps"
    again = f"see it again: scripts/sim --nodes {nodes} --seeds {seed}"
    raise SimulationFailedError(
        f"{transcript(simulation.world.lines(), told)}\n\n{told}\n({left_out})\n{again}"
    ) from error


def run_case(case: Case) -> tuple[NodesSimulation, Exception | None]:
    """Run one case; returns it, and what went wrong."""
    enabled = gc.isenabled()
    gc.disable()  # The collector's moment must not be part of the story.
    failure: Exception | None = None
    try:
        simulation = NodesSimulation(case)
        world = simulation.world
        story = _Story(world)
        try:
            with seeded(world), contextlib.redirect_stdout(story):
                simulation.run()
        except Exception as error:
            failure = error
    finally:
        if enabled:
            gc.enable()
        gc.collect()
    return simulation, failure
