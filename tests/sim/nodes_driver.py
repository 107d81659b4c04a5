"""A simulated driver on one of several nodes: the random program of driver.py, and what is far.

What    Also asks for places (SPREAD, labels, affinity, what only one node has), makes and finds
        named actors, has actors keep references and takes them back, so that references go round
        between nodes and jobs.
Caller  tests/sim/nodes_simulation.py.
Never   accepts an error that nothing in the run can have caused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.driver import CHAOS_ERRORS, Held, SimDriver
from tests.sim.process import Program, SimError
from tests.sim.scripts import ANY, WHERE, want

NAMES = ("ann", "bob")
KEEPERS_MAX = 3


class NodesDriver(SimDriver):
    """One driver process among others."""

    last_wait_s = 0.1
    far = True
    chaos_errors = CHAOS_ERRORS | {"TaskUnschedulableError", "ActorUnschedulableError"}
    chaos_errors |= {"ClusterError", "GcsUnavailableError"}

    def __init__(
        self,
        world: Any,
        identity: bytes,
        *,
        steps: int,
        crashes: bool,
        members: list[bytes],
        early: bool,
    ) -> None:
        self.members = members
        self.early = early
        """Not all nodes are there: what is to run elsewhere may find nobody."""
        super().__init__(world, identity, steps=steps, crashes=crashes, small_store=False)
        self.leaves = self.rng.random() < 0.5

    def actions(self) -> list[tuple[int, Callable[[], Program]]]:
        return [
            *super().actions(),
            (8, self._far_tasks),
            (4, self._named),
            (6, self._keep),
        ]

    def bears(self, error: SimError) -> bool:
        if error.kind == "NameTakenError":
            return True
        return self.world.chaos and error.kind in ("GcsUnavailableError", "ClusterError")

    def finished(self) -> None:
        if self.leaves:
            self.leave()

    def _far_tasks(self) -> Program:
        rng = self.rng
        node = rng.choice(self.members).hex()
        kind = rng.choice(("spread", "left", "side", f"on:{node}", f"near:{node}"))
        for _ in range(rng.choice((1, 2, 5))):
            script = self._script(0 if kind == "side" else 2)
            script["open"] = script["open"] and kind != "side"
            arguments = self._some(rng.choice((0, 1)))
            script["refs"] = [
                (held.ref, held.wanted) for held in self._some(rng.choice((0, 0, 1, 2)))
            ]
            refs = yield from self.submit(
                kind, script, [held.ref for held in arguments], large=rng.random() < 0.1
            )
            wanted = want(script, [held.wanted for held in arguments])
            if self.early or (kind.startswith("on:") and self.world.chaos):
                wanted = ANY  # The node may be dead by now, or not be there yet.
            self.held += [Held(ref, wanted) for ref in refs]

    def actor_options(self) -> dict[str, Any]:
        rng = self.rng
        options = super().actor_options()
        if self.early:
            return options
        if options["isolation"] == "process" and rng.random() < 0.5:
            node = rng.choice(self.members)
            places = (*WHERE.values(), ["DEFAULT", node, True, {}], ["DEFAULT", node, False, {}])
            options["where"] = rng.choice(places)
        return options

    def _named(self) -> Program:
        """Find an actor by its name, or make it; whoever has it may end it at any time."""
        name = self.rng.choice(NAMES)
        handle = yield from self.named(name)
        if handle is None:
            script = {**self._script(0), "crash": 0}
            handle = yield from self.create_actor(
                script, [], {**self.actor_options(), "name": name}
            )
        self.handles.append((handle, True))

    def _keep(self) -> Program:
        """Give an actor references to keep, and get those that it has kept."""
        if not self.handles:
            yield from self._new_actor()
        handle, _fails = self.rng.choice(self.handles)
        script = {**self._script(0), "keep": True, "out": "plain", "open": False}
        script["refs"] = [(held.ref, held.wanted) for held in self._some(self.rng.choice((1, 2)))]
        (ref,) = yield from self.call_actor(handle, script, [])
        self.held.append(Held(ref, ANY))
