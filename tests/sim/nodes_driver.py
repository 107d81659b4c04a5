"""A simulated driver on one of several nodes: the random program of driver.py, and what is far.

What    Also asks for places (SPREAD, labels, affinity, what only one node has), makes and finds
        named actors, has actors keep references and takes them back, so that references go round
        between nodes and jobs.
Caller  tests/sim/nodes_simulation.py.
Never   accepts an error that nothing in the run can have caused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.sim.driver import CHAOS_ERRORS, Held, SimDriver
from tests.sim.process import Program, SimError
from tests.sim.runtime import SimHandle
from tests.sim.scripts import ANY, WHERE, in_group, want
from zray.protocol import messages

if TYPE_CHECKING:
    from tests.sim.member import NodesWorld

NAMES = ("ann", "bob")
GROUP_ERRORS = ("TaskPlacementGroupRemovedError", "ActorPlacementGroupRemovedError")
GROUPS_MAX = 2
LASTING_MAX = 3
KEEPERS_MAX = 3


class NodesDriver(SimDriver):
    """One driver process among others."""

    world: NodesWorld
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
        self.lingers = self.rng.random() < 0.25
        self.groups: dict[bytes, list[Held]] = {}
        """Placement groups, and what is made in each."""
        self.lasting: list[SimHandle] = []

    def actions(self) -> list[tuple[int, Callable[[], Program]]]:
        return [
            *super().actions(),
            (8, self._far_tasks),
            (4, self._named),
            (6, self._keep),
            (4, self._group),
            (60 if self.lingers else 0, self._linger),
        ]

    def bears(self, error: SimError) -> bool:
        if error.kind == "NameTakenError":
            return True
        return self.world.chaos and error.kind in ("GcsUnavailableError", "ClusterError")

    def ends(self) -> Program:
        """At the end, and where it has many, a group is removed; nobody waits in it for ever."""
        while self.groups:
            yield from self._end_group()
        self.lasting.clear()

    def on_lifeline(self, message: list[Any]) -> None:
        """Lines for people."""
        assert message[1] == messages.LOG, f"{self.name} was told {message}"

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

    def _linger(self) -> Program:
        """Have actors that may restart live through faults that last longer than leases do."""
        if len(self.lasting) < LASTING_MAX:
            script = {**self._script(0), "out": "plain", "crash": 0}
            options = {**self.actor_options(), "restarts": -1, "isolation": "process"}
            self.lasting.append((yield from self.create_actor(script, [], options)))
        for handle in self.lasting:
            script = {**self._script(0), "open": False}
            (ref,) = yield from self.call_actor(handle, script, [], retries=-1)
            self.held.append(Held(ref, want(script, [])))
        yield from self.sleep(self.rng.uniform(0.2, 1.2))

    # -- placement groups ------------------------------------------------------------------------

    def _group(self) -> Program:
        """Reserve berths, which nothing else needs, and have tasks and an actor in them."""
        rng = self.rng
        if len(self.groups) >= GROUPS_MAX:
            yield from self._end_group()
        strategy = rng.choice(("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"))
        count = rng.choice((1, 2, 2, 3))
        bundles = [[{"berth": rng.choice((10000, 20000))}, {}] for _ in range(count)]
        fields = ["", "", strategy, bundles, False]
        group = yield from self.request(messages.GROUP, "create", fields)
        held = self.groups[group] = []
        for _ in range(rng.choice((1, 3))):
            bundle = rng.choice((-1, rng.randrange(count)))
            script = {**self._script(0), "open": False}
            refs = yield from self.submit(f"in:{group.hex()}:{bundle}", script)
            held += [Held(ref, want(script, [])) for ref in refs]
        if rng.random() < 0.5:
            options = {
                "restarts": rng.choice((0, -1)),
                "resources": {"berth": 10000},
                "placement": {"berth": 10000},
                "isolation": "process",
                "where": in_group(group.hex(), "-1"),
            }
            handle = yield from self.create_actor(
                {**self._script(0), "out": "plain", "crash": 0}, [], options
            )
            script = {**self._script(0), "open": False}
            (ref,) = yield from self.call_actor(handle, script, [])
            held.append(Held(ref, want(script, [])))
        yield from self.sleep(rng.choice((0.0, 0.01, 0.3)))

    def _end_group(self) -> Program:
        group, held = next(iter(self.groups.items()))
        yield from self.wait_until(
            lambda: all(self.ready(each.ref.key) for each in held), self.rng.choice((0.0, 0.1, 1.0))
        )
        while True:
            try:
                yield from self.request(messages.GROUP, "remove", [group])
                break
            except SimError as error:
                if not self.bears(error):
                    raise
        del self.groups[group]
        for each in held:
            try:
                value = yield from self.get(each.ref)
            except SimError as error:
                if error.kind not in GROUP_ERRORS:
                    self._judge(error, each.wanted, each.ref)
            else:
                self._compare(value, each.wanted)
                self.world.in_groups += 1
