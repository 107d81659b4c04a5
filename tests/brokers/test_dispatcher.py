"""The dispatcher, event by event: births, places, deaths of actors, and who is told.

What    Process actors, shared ones and their hosts, restarts, kills, early watchers. Random orders
        are tests/property/test_dispatcher_machine.py's.
Never   starts a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zray.brokers.dispatcher import (
    ALIVE,
    RESTARTING,
    STARTING,
    Command,
    Dispatcher,
    End,
    KillWorker,
    ReleaseGrant,
    Start,
    Tell,
    Withdraw,
)
from zray.brokers.resources import Grant
from zray.brokers.scheduling import Claim

OWNER, FRIEND, W1, W2 = b"an-owner", b"a-friend", b"worker-1", b"worker-2"
A, B, C = (OWNER + bytes(7) + bytes([number]) for number in (1, 2, 3))
EMPTY = Grant(1, {})
SEAT = Grant(2, {"seat": 1})


class Actors:
    """A dispatcher, and what it has commanded since the last look."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(shared_hosts=2)

    def create(
        self,
        actor: bytes,
        *,
        restarts: int = 0,
        shared: bool = False,
        resources: dict[str, int] | None = None,
        arguments: bytes | None = b"arguments",
        keeps: bool = False,
    ) -> None:
        details: dict[str, Any] = {
            "restarts": restarts,
            "isolation": "shared" if shared else "process",
            "env": {},
            "placement": resources or {},
            "resources": resources or {},
            "detached": False,
            "keeps": keeps,
        }
        self.dispatcher.create(OWNER, actor, b"class", details, arguments)

    def place(self, actor: bytes, worker: bytes = W1, *, alive: bool = True) -> None:
        self.dispatcher.claimed(actor, worker, EMPTY, in_host=False)
        if alive:
            incarnation = self.dispatcher.actors[actor].incarnation
            self.dispatcher.started(worker, actor, incarnation, None)

    def commands(self, *kinds: type) -> list[Command]:
        commands, self.dispatcher.commands = self.dispatcher.commands, []
        return [each for each in commands if type(each) in kinds]

    def state(self, actor: bytes) -> str:
        return self.dispatcher.actors[actor].state


@pytest.fixture
def actors() -> Iterator[Actors]:
    made = Actors()
    yield made
    made.dispatcher.check()


def test_an_actor_claims_a_worker_and_is_started_there(actors: Actors) -> None:
    actors.create(A)
    assert actors.commands(Claim) == [Claim(A, {}, {}, ())]
    actors.dispatcher.claimed(A, W1, EMPTY, in_host=False)
    assert actors.commands(Start, Tell) == [Start(A), Tell(OWNER, A)]
    assert actors.state(A) == STARTING
    actors.dispatcher.started(W1, A, 0, None)
    assert actors.state(A) == ALIVE


def test_an_actor_whose_init_fails_is_dead_with_its_error(actors: Actors) -> None:
    actors.create(A, restarts=-1)
    actors.place(A, alive=False)
    actors.dispatcher.started(W1, A, 0, b"raised")
    assert actors.dispatcher.dead[A] == b"raised"
    assert actors.commands(KillWorker)


def test_it_restarts_as_often_as_it_may(actors: Actors) -> None:
    actors.create(A, restarts=1)
    actors.place(A)
    actors.commands()
    actors.dispatcher.worker_died(W1, b"crash")
    assert actors.state(A) == RESTARTING
    assert actors.commands(Claim, Tell) == [Tell(OWNER, A), Claim(A, {}, {}, ())]
    actors.place(A, W2)
    assert actors.dispatcher.actors[A].incarnation == 1
    actors.dispatcher.worker_died(W2, b"crash again")
    assert actors.dispatcher.dead == {A: b"crash again"}


def test_word_of_an_old_incarnation_is_ignored(actors: Actors) -> None:
    actors.create(A, restarts=1)
    actors.place(A, alive=False)
    actors.dispatcher.worker_died(W1, b"crash")
    actors.dispatcher.claimed(A, W2, EMPTY, in_host=False)
    actors.dispatcher.started(W2, A, 0, b"late")
    assert actors.state(A) == STARTING


def test_a_worker_that_dies_in_the_wake_that_gives_it_away_is_claimed_anew(actors: Actors) -> None:
    """Found by simulation (seed 2733): the actor was STARTING for ever."""
    actors.create(A)
    actors.commands()
    actors.dispatcher.claim_lost(A)
    assert actors.commands(Claim) == [Claim(A, {}, {}, ())]


def test_what_a_worker_out_of_reach_hosted_restarts_when_that_has_stopped(actors: Actors) -> None:
    actors.create(A, restarts=1)
    actors.place(A)
    actors.commands()
    actors.dispatcher.worker_died(W1, b"its node is gone", may_run=True)
    assert actors.state(A) == RESTARTING
    assert actors.commands(Claim, Tell) == [Tell(OWNER, A)]
    actors.dispatcher.stopped(W2)
    assert actors.commands(Claim) == []
    actors.dispatcher.stopped(W1)
    actors.dispatcher.stopped(W1)
    assert actors.commands(Claim) == [Claim(A, {}, {}, ())]
    actors.place(A, W2)
    assert actors.state(A) == ALIVE


def test_an_actor_that_was_killed_while_it_waited_for_that_does_not_restart(
    actors: Actors,
) -> None:
    actors.create(A, restarts=1)
    actors.place(A)
    actors.dispatcher.worker_died(W1, b"its node is gone", may_run=True)
    actors.dispatcher.kill(A, b"killed", no_restart=True)
    actors.commands()
    actors.dispatcher.stopped(W1)
    assert actors.commands(Claim) == []


def test_killing_ends_an_actor_and_its_worker(actors: Actors) -> None:
    actors.create(A, restarts=-1)
    actors.place(A)
    actors.commands()
    actors.dispatcher.kill(A, b"killed", no_restart=True)
    assert actors.commands(KillWorker, Tell) == [
        Tell(OWNER, A),
        KillWorker(W1, "its actor has ended"),
    ]
    assert actors.dispatcher.dead[A] == b"killed"


def test_killing_with_restart_leaves_that_to_the_workers_death(actors: Actors) -> None:
    actors.create(A, restarts=1)
    actors.place(A)
    actors.commands()
    actors.dispatcher.kill(A, b"killed", no_restart=False)
    assert len(actors.commands(KillWorker)) == 1
    assert actors.state(A) == ALIVE


def test_a_claim_is_withdrawn_with_its_actor(actors: Actors) -> None:
    actors.create(A)
    actors.commands()
    actors.dispatcher.unreferenced(A)
    assert actors.commands(Withdraw) == [Withdraw(A)]


def test_an_actor_without_handles_runs_what_was_sent_then_ends(actors: Actors) -> None:
    actors.create(A)
    actors.place(A, alive=False)
    actors.dispatcher.unreferenced(A)
    assert not actors.commands(End), "its constructor still runs"
    actors.dispatcher.started(W1, A, 0, None)
    assert actors.commands(End) == [End(A, W1, 0)]
    actors.dispatcher.exited(W1, A, b"")
    assert A not in actors.dispatcher.actors


# -- shared actors -------------------------------------------------------------------------------


def test_shared_actors_take_turns_over_the_hosts(actors: Actors) -> None:
    for actor in (A, B):
        actors.create(actor, shared=True)
    assert len(actors.commands(Claim)) == 2, "one for each host"
    actors.dispatcher.claimed(A, W1, EMPTY, in_host=False)
    actors.dispatcher.claimed(B, W2, EMPTY, in_host=False)
    actors.create(C, shared=True)
    assert not actors.commands(Claim)
    assert all(actor.worker is not None for actor in actors.dispatcher.actors.values())


def test_a_share_is_not_taken_for_a_host(actors: Actors) -> None:
    """Found by simulation (seed 2603): the share was lost, and a worker with it."""
    for actor in (A, B):
        actors.create(actor, shared=True, resources={"seat": 1})
    actors.dispatcher.claimed(A, W1, EMPTY, in_host=False)
    claims = [each for each in actors.commands(Claim) if isinstance(each, Claim)]
    assert [each.shared_host for each in claims if each.shared_host] == [W1, W1]
    actors.dispatcher.claimed(B, W1, SEAT, in_host=True)
    assert actors.dispatcher.actors[B].worker == W1
    actors.dispatcher.claimed(B, W2, EMPTY, in_host=False)
    assert list(actors.dispatcher.hosts) == [W1, W2]


def test_a_share_comes_back_when_its_actor_or_its_host_is_gone(actors: Actors) -> None:
    actors.create(A, shared=True, resources={"seat": 1})
    actors.dispatcher.claimed(A, W1, EMPTY, in_host=False)
    actors.dispatcher.worker_died(W1, b"crash")
    actors.commands()
    actors.dispatcher.claimed(A, W1, SEAT, in_host=True)
    assert actors.commands(ReleaseGrant) == [ReleaseGrant(SEAT)]
    actors.dispatcher.kill(A, b"killed", no_restart=True)
    actors.dispatcher.claimed(A, W1, SEAT, in_host=True)
    assert actors.commands(ReleaseGrant) == [ReleaseGrant(SEAT)]


def test_killing_a_shared_actor_leaves_its_neighbours_alone(actors: Actors) -> None:
    for actor in (A, B):
        actors.create(actor, shared=True, restarts=1)
    actors.dispatcher.claimed(A, W1, EMPTY, in_host=False)
    actors.commands()
    actors.dispatcher.kill(A, b"killed", no_restart=False)
    assert actors.commands(End, KillWorker, Start) == [End(A, W1, 0, killed=True), Start(A)]
    assert actors.dispatcher.actors[A].incarnation == 1
    assert actors.dispatcher.actors[B].incarnation == 0


def test_a_hosts_death_restarts_all_its_actors(actors: Actors) -> None:
    for actor in (A, B, C):
        actors.create(actor, shared=True, restarts=1)
    actors.dispatcher.claimed(A, W1, EMPTY, in_host=False)
    actors.dispatcher.worker_died(W1, b"crash")
    assert {actor.incarnation for actor in actors.dispatcher.actors.values()} == {1}


# -- watching ------------------------------------------------------------------------------------


def test_who_watches_is_told_now_and_at_every_change(actors: Actors) -> None:
    actors.create(A)
    actors.dispatcher.watch(FRIEND, A)
    assert actors.commands(Tell) == [Tell(FRIEND, A)]
    actors.place(A)
    assert actors.commands(Tell) == [Tell(FRIEND, A), Tell(OWNER, A)]
    actors.dispatcher.process_died(FRIEND, b"it died")
    actors.dispatcher.worker_died(W1, b"crash")
    assert actors.commands(Tell) == [Tell(OWNER, A)]


# -- arguments that come later -------------------------------------------------------------------


def test_an_actor_seeks_a_place_when_its_arguments_are_there(actors: Actors) -> None:
    actors.create(A, arguments=None)
    actors.dispatcher.watch(FRIEND, A)
    assert actors.commands(Claim, Tell) == [Tell(FRIEND, A)]
    actors.dispatcher.arguments_arrived(FRIEND, A, b"of another process", b"")
    assert not actors.commands(Claim)
    actors.dispatcher.arguments_arrived(OWNER, A, b"arguments", b"")
    assert actors.commands(Claim) == [Claim(A, {}, {}, ())]
    actors.dispatcher.arguments_arrived(OWNER, A, b"once more", b"")
    assert not actors.commands(Claim)


@pytest.mark.parametrize("no_restart", [True, False])
def test_an_actor_killed_before_it_could_start_is_dead_for_all(
    actors: Actors, no_restart: bool
) -> None:
    actors.create(A, arguments=None)
    actors.create(B)
    actors.dispatcher.watch(FRIEND, A)
    actors.commands()
    for actor in (A, B):
        actors.dispatcher.kill(actor, b"killed", no_restart=no_restart)
    assert actors.commands(Tell, Withdraw) == [
        *(Tell(FRIEND, A), Tell(OWNER, A), Withdraw(A)),
        *(Tell(OWNER, B), Withdraw(B)),
    ]
    actors.dispatcher.arguments_arrived(OWNER, A, b"arguments", b"")
    assert not actors.commands(Claim)
    assert actors.dispatcher.dead == {A: b"killed", B: b"killed"}


def test_an_actor_whose_arguments_never_come_is_dead(actors: Actors) -> None:
    for actor in (A, B):
        actors.create(actor, arguments=None)
        actors.dispatcher.watch(FRIEND, actor)
    actors.commands()
    actors.dispatcher.arguments_arrived(OWNER, A, None, b"its argument failed")
    assert actors.commands(Tell) == [Tell(FRIEND, A), Tell(OWNER, A)]
    actors.dispatcher.process_died(OWNER, b"its owner died")
    assert actors.commands(Tell) == [Tell(FRIEND, B)]
    assert actors.dispatcher.dead == {A: b"its argument failed", B: b"its owner died"}


# -- what is let go ------------------------------------------------------------------------------


def test_arguments_are_let_go_when_no_start_needs_them_any_more(actors: Actors) -> None:
    actors.create(A, restarts=1, keeps=True)
    actors.place(A)
    assert actors.dispatcher.actors[A].arguments == b"arguments"
    actors.dispatcher.worker_died(W1, b"crash")
    actors.dispatcher.claimed(A, W2, EMPTY, in_host=False)
    actors.commands()
    actors.dispatcher.started(W2, A, 1, None)
    assert actors.dispatcher.actors[A].arguments == b""
    assert actors.commands(Tell) == [Tell(OWNER, A)], "its owner holds what they refer to"
