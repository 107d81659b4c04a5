"""What a program finds from anywhere: named actors, key-value pairs, code, jobs.

What    One interface with answers by callback, and two that have it: OwnTables, of a node without
        a GCS process, answers at once from the tables in its own process; those of a cluster,
        which ask the GCS, are in brokers/gcs_tables.py.
Caller  the rules of brokers/, which do not know which of the two they ask.
Never   decides whether an actor lives: its home node does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from zray.protocol.ids import ActorId, ProcessId

if TYPE_CHECKING:
    from .node import Node

Done = Callable[[Any, Exception | None], None]
"""Called once with (result, None) or (None, error)."""


class SharedTables(Protocol):
    """What is the same from every node that shares it."""

    def register_actor(
        self, actor: ActorId, class_id: bytes, job: str, details: dict[str, Any], done: Done
    ) -> None:
        """Record a named actor of a job (in hex); `done` gets whether the name was free."""
        ...

    def actor_changed(
        self, actor: ActorId, state: str, worker: ProcessId, incarnation: int, restarts_left: int
    ) -> None:
        """An actor of this node is in another state, or another worker."""
        ...

    def actor_died(self, actor: ActorId, *, keeps_name: bool) -> None:
        """An actor of this node has ended: its name is free, or will be with free_name()."""
        ...

    def free_name(self, actor: ActorId) -> None:
        """Nothing of a dead actor runs any more."""
        ...

    def after_registration(self, actor: ActorId, then: Callable[[], None]) -> None:
        """Call when an actor of this node that is being registered, if so, has been."""
        ...

    def find_actor(self, name: str, namespace: str, done: Done) -> None:
        """Find a living actor; `done` gets [actor, details] or None."""
        ...

    def actor_names(self, namespace: str | None, done: Done) -> None:
        """Find all names; `done` gets [namespace, name] of each."""
        ...

    def kv(self, op: str, arguments: list[Any], done: Done) -> None:
        """Serve one KV request; `done` gets its answer."""
        ...

    def put_function(self, function: bytes, code: bytes) -> None:
        """Keep code that this node's processes have sent."""
        ...

    def get_function(self, function: bytes, job: str, done: Done) -> None:
        """Find code and where its job imports from; `done` gets [code, details], each or None."""
        ...

    def job_started(self, driver: ProcessId, pid: int, entrypoint: str, now: float) -> None:
        """A driver has connected to this node."""
        ...

    def job_ended(self, driver: ProcessId, state: str, now: float) -> None:
        """A driver of this node has gone."""
        ...


class OwnTables:
    """Those of a node that shares them with nobody.

    Args:
        node: whose catalog has them.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    def register_actor(
        self, actor: ActorId, class_id: bytes, job: str, details: dict[str, Any], done: Done
    ) -> None:
        """Record a named actor of a job (in hex); `done` gets whether the name was free."""
        done(self._node.gcs.actor_created(actor, class_id, job, details) is None, None)

    def actor_changed(
        self, actor: ActorId, state: str, worker: ProcessId, incarnation: int, restarts_left: int
    ) -> None:
        """Nobody else is to know."""

    def actor_died(self, actor: ActorId, *, keeps_name: bool) -> None:
        """Nobody else is to know."""

    def free_name(self, actor: ActorId) -> None:
        """Nobody else is to know."""

    def after_registration(self, actor: ActorId, then: Callable[[], None]) -> None:
        """Call at once: a registration never waits."""
        then()

    def find_actor(self, name: str, namespace: str, done: Done) -> None:
        """Find a living actor; `done` gets [actor, details] or None."""
        done(living_actor(self._node, name, namespace), None)

    def actor_names(self, namespace: str | None, done: Done) -> None:
        """Find all names; `done` gets [namespace, name] of each."""
        done(self._node.gcs.actor_names(namespace), None)

    def kv(self, op: str, arguments: list[Any], done: Done) -> None:
        """Serve one KV request; `done` gets its answer."""
        done(self._node.gcs.kv(op, arguments), None)

    def put_function(self, function: bytes, code: bytes) -> None:
        """Nobody else is to know; the catalog has it already."""

    def get_function(self, function: bytes, job: str, done: Done) -> None:
        """Find nothing that is not here."""
        done([self._node.gcs.tables.functions.get(function), None], None)

    def job_started(self, driver: ProcessId, pid: int, entrypoint: str, now: float) -> None:
        """Nobody else is to know; the catalog has it already."""

    def job_ended(self, driver: ProcessId, state: str, now: float) -> None:
        """Nobody else is to know; the catalog has it already."""


def living_actor(node: Node, name: str, namespace: str) -> list[Any] | None:
    """Return [actor, details] of this node's living actor of a name; a handle of it is made."""
    identity = node.gcs.actor_named(name, namespace)
    actor = None if identity is None else node.dispatcher.actors.get(identity)
    if actor is None:
        return None
    node.dispatcher.referenced(actor.actor)
    return [actor.actor, actor.details]
