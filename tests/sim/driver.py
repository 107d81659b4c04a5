"""A simulated driver: a random program whose every get is checked.

What    Submits tasks, maps, generators and actors, passes references around, drops them, cancels
        and kills, and at its end gets everything it still holds.
Caller  tests/sim/simulation.py.
Never   accepts an error that nothing in the run can have caused.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.sim.process import Program, SimError, SimRef, Wait
from tests.sim.runtime import SimHandle, SimMap, SimRuntime
from tests.sim.scripts import ANY, BOOM, KIND_NAMES, Want, make, want
from zray.protocol import messages

CHAOS_ERRORS = {
    "WorkerCrashedError",
    "ActorDiedError",
    "OwnerDiedError",
    "ObjectLostError",
    "TaskCancelledError",
}
KINDS = KIND_NAMES


class Held:
    """A ref, and what its value must be."""

    def __init__(self, ref: SimRef, wanted: Want) -> None:
        self.ref = ref
        self.wanted = wanted


class SimDriver(SimRuntime):
    """One driver process."""

    last_wait_s = 1.0
    far = False
    """Whether there are other nodes."""
    chaos_errors = CHAOS_ERRORS

    def __init__(
        self, world: Any, identity: bytes, *, steps: int, crashes: bool, small_store: bool
    ) -> None:
        self.rng = random.Random(world.rng.random())
        self.numbers = [int.from_bytes(identity[-1:], "big") * 100000]
        self.steps = steps
        self.crashes = crashes
        self.small_store = small_store
        self.held: list[Held] = []
        self.handles: list[tuple[SimHandle, bool]] = []
        """Handles, and whether the actor's methods may fail."""
        self.maps: list[tuple[SimMap, list[Want]]] = []
        super().__init__(world, identity)

    def program(self) -> Program:
        actions = self.actions()
        for _ in range(self.steps):
            action = self.rng.choices([do for _w, do in actions], [w for w, _do in actions])[0]
            self.world.tell(f"{self.name}: {action.__name__}")
            try:
                yield from action()
            except SimError as error:  # A put that found no room: user code sees it at once.
                if not self.bears(error):
                    raise
        self.world.tell(f"{self.name}: ends")
        yield from self.ends()
        while self.maps:
            yield from self._get_map()
        while self.held:
            yield from self._check(self.held.pop(0))
        self.handles.clear()
        for _ in range(4):
            self.flush()
            yield Wait(lambda: False, self.last_wait_s)
        self.flush()

    def ends(self) -> Program:
        """Give up what others may wait for."""
        yield Wait(None, 0.0, reads=False)

    def bears(self, error: SimError) -> bool:
        """Whether user code may see this at any time."""
        return self.small_store and error.kind == "ObjectStoreFullError"

    def actions(self) -> list[tuple[int, Callable[[], Program]]]:
        """What it does, and how often."""
        return [
            (8, self._tasks),
            (4, self._synchronous),
            (8, self._get),
            (6, self._drop),
            (3, self._put),
            (2, self._map),
            (2, self._get_map),
            (2, self._new_actor),
            (6, self._calls),
            (1, self._kill),
            (2, self._cancel),
            (2, self._stream),
            (2, self._pause),
        ]

    # -- making --------------------------------------------------------------------------------

    def _script(self, depth: int = 2) -> dict[str, Any]:
        return make(self.rng, self.numbers, depth, crashes=self.crashes, far=self.far)

    def _some(self, count: int) -> list[Held]:
        return self.rng.sample(self.held, min(len(self.held), count))

    def _tasks(self) -> Program:
        rng = self.rng
        kind = rng.choice((*KINDS, "two"))
        for _ in range(rng.choice((1, 2, 5, 12))):
            # Who holds the disk must not wait for another who needs it: nobody could end.
            script = self._script(0 if kind == "disk" else 2)
            script["open"] = script["open"] and kind != "disk"
            arguments = self._some(rng.choice((0, 0, 1, 2)))
            script["refs"] = [
                (held.ref, held.wanted) for held in self._some(rng.choice((0, 0, 0, 1, 2)))
            ]
            if self.handles and kind != "disk" and rng.random() < 0.1:
                script["actors"] = [rng.choice(self.handles)[0]]
            refs = yield from self.submit(
                kind, script, [held.ref for held in arguments], large=rng.random() < 0.1
            )
            wanted = want(script, [held.wanted for held in arguments])
            for ref in refs:
                self.held.append(Held(ref, wanted))

    def _synchronous(self) -> Program:
        kind = self.rng.choice(KINDS)
        for _ in range(self.rng.choice((3, 6))):
            script = self._script(0 if kind == "disk" else self.rng.choice((0, 0, 1)))
            (ref,) = yield from self.submit(kind, script)
            yield from self._check(Held(ref, want(script, [])))
            del ref

    def _put(self) -> Program:
        inner = self._some(self.rng.choice((0, 0, 1, 2)))
        wants = [held.wanted for held in inner]
        value: dict[str, Any] = {"v": self.rng.randint(1, 99), "wants": wants}
        ref = yield from self.put(
            value, [held.ref for held in inner], stored=self.rng.random() < 0.5
        )
        self.held.append(Held(ref, value["v"]))

    def _map(self) -> Program:
        count = self.rng.choice((3, 8, 20))
        scripts = [{**self._script(0), "us": self.rng.choice((0, 10))} for _ in range(count)]
        arguments = {}
        wants = []
        for index, script in enumerate(scripts):
            taken: list[Want] = []
            if self.held and self.rng.random() < 0.05:
                held = self.rng.choice(self.held)
                arguments[index] = held.ref
                taken.append(held.wanted)
            wants.append(want(script, taken))
        refs = self.submit_map(scripts, arguments)
        for index in self.rng.sample(range(count), self.rng.choice((0, 0, 2))):
            self.held.append(Held(refs.ref(index), wants[index]))
        if self.rng.random() < 0.8:
            self.maps.append((refs, wants))
        yield Wait(None, 0.0, reads=False)

    def _get_map(self) -> Program:
        if not self.maps:
            return
        refs, wants = self.maps.pop(self.rng.randrange(len(self.maps)))
        values = yield from self.get_map(refs)
        for value, wanted in zip(values, wants, strict=True):
            try:
                found = value
                if isinstance(value, int):
                    while not self.ready(value):
                        yield from self.await_keys([value])
                    found = self.value(self.object_id(value), value, self.results[value])
            except SimError as error:
                self._judge(error, wanted)
            else:
                self._compare(found, wanted)

    def _stream(self) -> Program:
        script = {**self._script(0), "items": self.rng.randint(0, 6), "crash": 0}
        wanted = want(script, [])
        items = yield from self.submit_stream(script)
        taken = 0
        try:
            for _ in range(self.rng.choice((0, 3, 100))):
                ref = yield from self.next_item(items)
                if ref is None:
                    assert taken == script["items"], f"{taken} items of {script['items']}"
                    break
                taken += 1
                self.held.append(Held(ref, wanted))
        except SimError as error:
            self._judge(error, wanted if script["items"] else script["v"])

    # -- taking --------------------------------------------------------------------------------

    def _check(self, held: Held) -> Program:
        try:
            value = yield from self.get(held.ref)
        except SimError as error:
            self._judge(error, held.wanted, held.ref)
            return
        self._compare(value, held.wanted)
        for ref, wanted in value.get("refs", ()):
            if self.rng.random() < 0.5:
                self.held.append(Held(ref, wanted))

    def _judge(self, error: SimError, wanted: Want, ref: SimRef | None = None) -> None:
        if wanted in (ANY, error.kind):
            return
        if self.world.chaos and error.kind in self.chaos_errors:
            return
        if self.small_store and error.kind == "ObjectStoreFullError":
            return
        what = "a map's item" if ref is None else self.world.name(ref.id)
        raise AssertionError(f"{self.name} got {error.kind} of {what} where it wanted {wanted}")

    def _compare(self, value: dict[str, Any], wanted: Want) -> None:
        assert wanted == ANY or value["v"] == wanted, f"{self.name} got {value}, not {wanted}"

    def _get(self) -> Program:
        for held in self._some(self.rng.choice((1, 3))):
            yield from self._check(held)

    def _drop(self) -> Program:
        for held in self._some(self.rng.choice((1, 4))):
            self.held.remove(held)
        if self.maps and self.rng.random() < 0.2:
            self.maps.pop()
        if self.handles and self.rng.random() < 0.3:
            self.handles.pop(self.rng.randrange(len(self.handles)))
        yield Wait(None, 0.0, reads=False)

    def _pause(self) -> Program:
        yield from self.sleep(self.rng.choice((0.0001, 0.005, 0.3)))

    def _cancel(self) -> Program:
        for held in self._some(1):
            self.cancel(held.ref, force=self.rng.random() < 0.3)
        yield Wait(None, 0.0, reads=False)

    # -- actors --------------------------------------------------------------------------------

    def _new_actor(self) -> Program:
        rng = self.rng
        script = {**self._script(rng.choice((0, 1))), "crash": 0}
        arguments = self._some(rng.choice((0, 0, 1)))
        options = self.actor_options()
        handle = yield from self.create_actor(script, [held.ref for held in arguments], options)
        wanted = want(script, [held.wanted for held in arguments])
        self.handles.append((handle, isinstance(wanted, str)))

    def actor_options(self) -> dict[str, Any]:
        """Return the options of a new actor."""
        rng = self.rng
        resources = rng.choice(({}, {}, {"seat": 1}))
        options = {
            "restarts": rng.choice((0, 1, -1)),
            "resources": resources,
            "placement": {"CPU": 10000, **resources},
            "isolation": rng.choice(("process", "process", "shared")),
        }
        if options["isolation"] == "shared":
            options["placement"] = resources
        return options

    def _calls(self) -> Program:
        if not self.handles:
            return
        handle, fails = self.rng.choice(self.handles)
        retries = self.rng.choice((0, 0, 2, -1))
        for _ in range(self.rng.choice((1, 4, 10))):
            script = self._script(self.rng.choice((0, 0, 1)))
            arguments = self._some(self.rng.choice((0, 0, 0, 1)))
            refs = yield from self.call_actor(
                handle,
                script,
                [held.ref for held in arguments],
                retries=retries,
                returns=self.rng.choice((1, 1, 2)),
            )
            wanted: Want = want(script, [held.wanted for held in arguments])
            for ref in refs:
                self.held.append(Held(ref, ANY if fails else wanted))

    def _kill(self) -> Program:
        if self.handles:
            handle, _fails = self.rng.choice(self.handles)
            self.world.chaos = True
            self.world.witness.actor_killed(handle.route.actor)
            self.call(messages.KILL_ACTOR, handle.route.actor, self.rng.random() < 0.7)
        yield Wait(None, 0.0, reads=False)


__all__ = ["BOOM", "SimDriver"]
