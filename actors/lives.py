"""Which life of an actor a call is meant for, and what comes before that life or after it.

What    Lives has the actors that live in this worker, by id. A call says which incarnation it is
        meant for: of() gives the actor in that life; a call for a life that has not begun waits,
        one for a life that is over is dropped: its caller hears of that from the node.
Caller  actors/actor_runner.py; the workers of tests/sim.
Never   runs anything. Who serves actors by several threads holds a lock round of() and begin().

A kill comes by the lifeline, calls by the mailbox of their caller, a start by that of the node: the
three may overtake one another, in a worker that several actors share.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from .work import ActorCall, ActorEnd, ActorStart

_REMEMBERED_MAX = 10_000


class Living(Protocol):
    """An actor in one of its lives."""

    actor: bytes
    incarnation: int


A = TypeVar("A", bound=Living)


class Lives(Generic[A]):
    """The actors of one worker."""

    def __init__(self) -> None:
        self.here: dict[bytes, A] = {}
        self._early: dict[bytes, list[ActorCall]] = {}
        self._over: dict[bytes, tuple[int, bytes]] = {}
        """Lives that have ended here, and why."""
        self._killed: dict[tuple[bytes, int], None] = {}
        """Lives that were killed: one that starts only now, or is about to, must not be."""

    def of(self, call: ActorCall) -> A | None:
        """Return the actor in the life that a call is meant for; None: it is not to run now."""
        instance = self.here.get(call.actor)
        if instance is not None:
            if instance.incarnation == call.incarnation:
                return instance
            latest = instance.incarnation
        else:
            latest = self._over[call.actor][0] if call.actor in self._over else -1
        if call.incarnation > latest:
            self._early.setdefault(call.actor, []).append(call)
        return None

    def may_begin(self, start: ActorStart) -> bool:
        """Whether a life is to begin: it was not killed before."""
        if (start.actor, start.incarnation) not in self._killed:
            return True
        self._take_early(start.actor, start.incarnation)
        return False

    def begin(self, instance: A) -> list[ActorCall] | None:
        """A life has begun: returns the calls that have come before; None: it is to end at once."""
        life = (instance.actor, instance.incarnation)
        # Before the look: a thread that kills looks here afterwards.
        self.here[instance.actor] = instance
        self._over.pop(instance.actor, None)
        calls = self._take_early(*life)
        if life in self._killed:
            del self.here[instance.actor]
            return None
        return calls

    def _take_early(self, actor: bytes, incarnation: int) -> list[ActorCall]:
        calls = self._early.pop(actor, [])
        later = [call for call in calls if call.incarnation > incarnation]
        if later:
            self._early[actor] = later
        return [call for call in calls if call.incarnation == incarnation]

    def meant_by(self, end: ActorEnd) -> A | None:
        """Return the actor whose life is to end; None: it is over, or never begins now."""
        if end.killed:
            self._killed[(end.actor, end.incarnation)] = None
            if len(self._killed) > _REMEMBERED_MAX:
                del self._killed[next(iter(self._killed))]
        instance = self.here.get(end.actor)
        return (
            instance if instance is not None and instance.incarnation == end.incarnation else None
        )

    def over(self, instance: A, cause: bytes, *, stays: bool = False) -> None:
        """A life has ended, for a reason.

        Args:
            stays: its worker ends with it: whoever looks still finds it.
        """
        if not stays and self.here.get(instance.actor) is instance:
            del self.here[instance.actor]
        self._over[instance.actor] = instance.incarnation, cause
        if len(self._over) > _REMEMBERED_MAX:
            del self._over[next(iter(self._over))]

    def cause(self, actor: bytes) -> bytes:
        """Return why an actor has ended here, or b""."""
        return self._over[actor][1] if actor in self._over else b""

    def waiting(self) -> list[ActorCall]:
        """Return the calls for lives that have not begun (any thread)."""
        return [call for calls in list(self._early.values()) for call in list(calls)]
