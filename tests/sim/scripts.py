"""What simulated tasks and actor methods do: scripts, and what each of them must return.

What    A script is data that travels as arguments: how long it runs, what it submits, whether it
        waits for it, what it returns. want() says what its value must be, so that every get of a
        run can be checked. Order watches the calls that reach each actor.
Caller  tests/sim/worker.py runs them, tests/sim/driver.py makes them.
Never   draws a random number while it runs: a second execution does what the first did.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tests.sim.process import Program, SimError, SimRef, Wait

if TYPE_CHECKING:
    from tests.sim.runtime import SimRuntime
    from zray.actors.work import ActorCall

Want = int | str
BOOM = "boom"
ANY = "any"


def make(
    rng: random.Random, numbers: list[int], depth: int, *, crashes: bool, far: bool = False
) -> dict[str, Any]:
    """Return a random script. ``numbers`` counts scripts up; far: there are other nodes."""
    numbers[0] += 1
    outs, weights = (FAR_OUTS, (8, 4, 3, 1, 3, 3, 3)) if far else (OUTS, (10, 4, 3, 1))
    out = rng.choices(outs, weights)[0]
    children = rng.choice((0, 0, 1, 2)) if depth > 0 else 0
    kinds = CHILD_KINDS
    if far:
        # Who has children never holds what only one node has: they might wait for it for ever.
        kinds = (*CHILD_KINDS, "spread", *(("side",) if depth == 1 else ()))
    return {
        "id": numbers[0],
        "v": rng.randint(1, 1000),
        "out": out,
        "us": rng.choice((0, 0, 20, 300, 3000, 20000)),
        "spawn": [make(rng, numbers, depth - 1, crashes=crashes, far=far) for _ in range(children)],
        # A child that needs what its parent holds while it waits would wait for ever: not "disk".
        "kinds": [rng.choice(kinds) for _ in range(children)],
        "get": rng.random() < 0.7,
        "open": rng.random() < 0.6,
        "crash": rng.choice((1, 1, 2, 5)) if crashes and rng.random() < 0.08 else 0,
        "refs": [],
        "actors": [],
        "items": 0,
    }


KINDS: dict[str, tuple[dict[str, int], int, int]] = {
    "plain": ({"CPU": 10000}, 1, 3),
    "half": ({"CPU": 5000}, 1, 3),
    "free": ({}, 1, 3),
    "disk": ({"CPU": 10000, "disk": 10000}, 1, 3),
    "two": ({"CPU": 10000}, 2, 3),
    "once": ({"CPU": 10000}, 1, 0),
    "ever": ({"CPU": 10000}, 1, -1),
    "stream": ({"CPU": 10000}, -1, 3),
    "spread": ({"CPU": 10000}, 1, 3),
    "left": ({"CPU": 10000}, 1, 3),
    "side": ({"side": 10000}, 1, 3),
    "on": ({"CPU": 10000}, 1, 3),
    "near": ({"CPU": 10000}, 1, 3),
    "in": ({"berth": 10000}, 1, 3),
}
"""Resources, returns and max_retries by the name of a task class."""

OUTS = ("plain", "stored", "refs", BOOM)
FAR_OUTS = (*OUTS, "pass", "put", "put stored")
"""What comes of a script: also the references it was given, and new objects with those inside."""

WHERE: dict[str, list[Any]] = {
    "spread": ["SPREAD", b"", False, {}],
    "left": ["DEFAULT", b"", False, {"side": "left"}],
}
"""Where a task of a kind is to run, where that is said."""


def kind_of(name: str) -> tuple[dict[str, int], int, int, list[Any] | None]:
    """Return (resources, returns, max_retries, where) of a kind.

    "on:NODE" and "near:NODE" go to a node, "in:GROUP:BUNDLE" into a placement group.
    """
    kind, _colon, place = name.partition(":")
    where = WHERE.get(kind)
    if kind == "in":
        where = in_group(*place.split(":"))
    elif place:
        where = ["DEFAULT", bytes.fromhex(place), kind == "near", {}]
    return *KINDS[kind], where


def in_group(group: str, bundle: str) -> list[Any]:
    """Return where something runs that runs in a bundle of a placement group, -1 is any."""
    return ["DEFAULT", b"", False, {}, [bytes.fromhex(group), int(bundle), False], {}]


CHILD_KINDS = ("plain", "plain", "half", "free", "once", "ever")
KIND_NAMES = (*CHILD_KINDS, "disk")


def want(script: dict[str, Any], arguments: list[Want]) -> Want:
    """Return what the script's value must be, or the error it must raise."""
    if any(isinstance(argument, str) for argument in arguments):
        return _error(arguments)
    total: int = script["v"] + sum(int(argument) for argument in arguments)
    if script["open"]:
        inner: list[Want] = [wanted for _ref, wanted in script["refs"]]
        if any(isinstance(wanted, str) for wanted in inner):
            return _error(inner)
        total += sum(int(wanted) for wanted in inner)
    if script["get"]:
        got = [want(child, []) for child in script["spawn"]]
        if any(isinstance(value, str) for value in got):
            return _error(got)
        total += sum(int(value) for value in got)
    return BOOM if script["out"] == BOOM else total


def _error(wanted: list[Want]) -> str:
    return ANY if ANY in wanted else BOOM


class Order:
    """The calls of one caller to one actor: each once in an incarnation, in the order sent."""

    def __init__(self) -> None:
        self.last: dict[tuple[bytes, int, bytes], int] = {}

    def called(self, call: ActorCall, incarnation: int) -> None:
        """A call begins."""
        key = (call.actor, incarnation, call.client)
        assert call.number > self.last.get(key, 0), (
            f"call {call.number} of {call.client!r} ran after {self.last[key]}"
        )
        self.last[key] = call.number


class Scripts:
    """Runs scripts in one worker."""

    def __init__(self, worker: SimRuntime) -> None:
        self.worker = worker
        self.order = Order()

    def run(
        self, script: dict[str, Any], arguments: list[Any], kept: list[Any] | None = None
    ) -> Program:
        """Do what the script says; returns its value, or raises SimError.

        Args:
            script: of a task or call, arguments: values of what it takes.
            kept: references that the actor it is called on has kept from call to call.
        """
        worker = self.worker
        if script["us"]:
            yield Wait(None, script["us"] / 1e6, reads=False)
        self._crash(script)
        total = script["v"] + sum(argument["v"] for argument in arguments)
        spawned: list[tuple[SimRef, Want]] = []
        for child, kind in zip(script["spawn"], script["kinds"], strict=True):
            ref = (yield from worker.submit(kind, child))[0]
            spawned.append((ref, want(child, [])))
        for actor in script["actors"]:
            handle = worker.handle(actor)
            child = {
                **script,
                "spawn": [],
                "kinds": [],
                "actors": [],
                "refs": [],
                "out": "plain",
                "crash": 0,
            }
            for _ in range(2):
                (ref,) = yield from worker.call_actor(handle, child, [])
                yield from self._tolerant(ref)
                del ref
        if script["open"]:
            for ref, _wanted in script["refs"]:
                total += (yield from worker.get(ref))["v"]
        if script["get"]:
            for ref, _wanted in spawned:
                total += (yield from worker.get(ref))["v"]
        if script["out"] == BOOM:
            raise SimError(BOOM)
        refs = spawned if script["out"] == "refs" else []
        if kept is not None and script.get("keep"):
            refs = [*refs, *kept]
            kept[:] = script["refs"]
        elif script["out"] == "pass":
            refs = script["refs"]
        elif script["out"].startswith("put"):
            inner = script["refs"]
            value = {"v": total, "wants": [wanted for _ref, wanted in inner]}
            stored = script["out"] == "put stored"
            ref = yield from worker.put(value, [each for each, _wanted in inner], stored=stored)
            refs = [(ref, total)]
        return {"v": total, "refs": refs, "stored": script["out"] == "stored"}

    def _tolerant(self, ref: SimRef) -> Program:
        """The actor may be gone: its users drop it when they please."""
        try:
            yield from self.worker.get(ref)
        except SimError as error:
            if error.kind not in ("ActorDiedError", BOOM):
                raise

    def _crash(self, script: dict[str, Any]) -> None:
        attempts = self.worker.world.attempts
        if script["crash"] > attempts.get(script["id"], 0):
            attempts[script["id"]] = attempts.get(script["id"], 0) + 1
            self.worker.crash_from_within(f"script {script['id']}")
