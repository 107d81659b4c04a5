"""What runs where, as the workers see it: the other side of what the schedulers promise.

What    Witness is told when a task or an actor begins and ends in a worker, and asserts what its
        user was promised: no node runs more than it has, what is not to be retried runs once, where
        it must, and of an actor there is one copy that moves, and of a name one actor.
Caller  tests/sim/worker.py tells.
Never   looks into the books of the nodes: it is what they are compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.sim.scripts import kind_of

if TYPE_CHECKING:
    from tests.sim.worker import SimWorker
    from tests.sim.world import World


HEARD_S = 0.5
"""In this time a node has certainly heard that a worker of its has waited, or waits no more."""


class Witness:
    """All that runs, and what of it was promised."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._tasks: dict[SimWorker, dict[str, int]] = {}
        """What the task of each worker holds."""
        self._waited_at: dict[SimWorker, float] = {}
        self._begun: set[tuple[bytes, int]] = set()
        self._details: dict[bytes, dict[str, Any]] = {}
        self._killed: set[bytes] = set()
        self._copies: dict[bytes, dict[SimWorker, int]] = {}
        """By actor: the workers that have an instance, and its incarnation."""

    # -- tasks -----------------------------------------------------------------------------------

    def task_begins(self, worker: SimWorker, kind: str, client: bytes, number: int) -> None:
        """A worker has begun a task."""
        resources, _returns, retries, where = kind_of(kind)
        if retries == 0:
            assert (client, number) not in self._begun, (
                f"{worker.name} runs {number:x} of {self.world.name(client)} once more"
            )
            self._begun.add((client, number))
        self._check_place(worker, where, kind)
        self._tasks[worker] = dict(resources)
        self._check_load(worker.node)

    def task_blocked(self, worker: SimWorker) -> None:
        """A task waits: its CPU is somebody else's."""
        self._waited_at[worker] = self.world.now
        self._tasks.get(worker, {}).pop("CPU", None)

    def task_ended(self, worker: SimWorker) -> None:
        """A task has ended."""
        self._tasks.pop(worker, None)

    def _check_place(self, worker: SimWorker, where: list[Any] | None, what: str) -> None:
        if where is None:
            return
        _strategy, node, soft, labels = where[:4]
        if node and not soft:
            assert worker.node == node, f"{worker.name} runs {what}, which must not run there"
        has = self.world.nodes[worker.node].settings.get("labels", {})
        for label, value in labels.items():
            assert has.get(label) == value, f"{worker.name} runs {what}, and {label} is another"

    def _check_load(self, node: bytes) -> None:
        held = {"CPU": 0}
        for worker, resources in self._tasks.items():
            if worker.node == node and not worker.dead:
                _add(held, resources)
                if self.world.now - self._waited_at.get(worker, -HEARD_S) < HEARD_S:
                    held["CPU"] -= resources.get("CPU", 0)
        for actor, copies in self._copies.items():
            for worker in copies:
                if worker.node == node and not worker.dead:
                    _add(held, self._details[actor]["resources"])
        accounts = self.world.nodes[node].resources
        total = dict(accounts.total)
        # Who has waited goes on at once, and its worker with it: what that takes is owed.
        total["CPU"] += accounts._cpu_owed
        for name, amount in held.items():
            assert amount <= total.get(name, 0), (
                f"{self.world.name(node)} runs what takes {amount} of {name}, and has {total}"
            )

    # -- actors ----------------------------------------------------------------------------------

    def actor_created(self, actor: bytes, details: dict[str, Any]) -> None:
        """Somebody has made an actor."""
        self._details[actor] = details

    def actor_killed(self, actor: bytes) -> None:
        """Somebody wants an actor to end."""
        self._killed.add(actor)

    def actor_begins(self, worker: SimWorker, actor: bytes, incarnation: int) -> None:
        """A worker is about to run the constructor of an actor."""
        details = self._details[actor]
        self._check_place(worker, details.get("where"), self.world.name(actor))
        self._copies.setdefault(actor, {})[worker] = incarnation
        self.actor_moves(worker, actor)
        self._check_name(worker, actor, details)
        self._check_load(worker.node)

    def actor_moves(self, worker: SimWorker, actor: bytes) -> None:
        """User code of an actor runs: nowhere else may it."""
        if actor in self._killed and self._details[actor]["isolation"] == "shared":
            return  # Its host serves others: what runs of it there runs to its end.
        for other in self._copies.get(actor, {}):
            assert other is worker or other.dead or other.stopped, (
                f"{self.world.name(actor)} runs in {worker.name} and in {other.name}"
            )

    def _check_name(self, worker: SimWorker, actor: bytes, details: dict[str, Any]) -> None:
        for other, copies in self._copies.items():
            its = self._details[other]
            if other == actor or details["name"] is None or its["name"] != details["name"]:
                continue
            moving = [each.name for each in copies if not each.dead and not each.stopped]
            assert not moving or its["isolation"] == "shared", (
                f"{self.world.name(actor)} begins in {worker.name} under the name of"
                f" {self.world.name(other)}, which runs in {moving}"
            )

    def actor_ended(self, worker: SimWorker, actor: bytes) -> None:
        """A worker has given an actor up."""
        self._copies.get(actor, {}).pop(worker, None)

    # -- deaths ----------------------------------------------------------------------------------

    def worker_died(self, worker: SimWorker) -> None:
        """Nothing runs there any more."""
        self._tasks.pop(worker, None)
        for copies in self._copies.values():
            copies.pop(worker, None)


def _add(held: dict[str, int], resources: dict[str, int]) -> None:
    for name, amount in resources.items():
        held[name] = held.get(name, 0) + amount
