"""The dispatcher against a model of what its workers and claims are.

What    A Hypothesis state machine creates, starts, kills, drops and loses actors, alone in a worker
        or many to one: none is placed twice or forgotten, none restarts more often than it may,
        and every resource that was granted is given back once.
Never   starts a worker: claims are served when a rule says so.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zray.brokers import dispatcher
from zray.brokers.dispatcher import ALIVE, STARTING, Dispatcher
from zray.brokers.resources import Grant
from zray.brokers.scheduling import Claim
from zray.protocol.ids import object_id

OWNER, FRIEND = b"an-owner", b"a-friend"
ONE = 10_000


def details(*, shared: bool, restarts: int, seats: int, detached: bool = False) -> dict[str, Any]:
    """Return an actor's options, as CREATE_ACTOR carries them."""
    resources = {"seat": seats * ONE} if seats else {}
    return {
        "restarts": restarts,
        "isolation": "shared" if shared else "process",
        "env": {},
        "placement": resources,
        "resources": resources,
        "detached": detached,
    }


class DispatcherMachine(RuleBasedStateMachine):
    """``workers`` maps each living worker to what it was told to start: (actor, incarnation)."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(shared_hosts=2)
        self.claims: list[Claim] = []
        self.workers: dict[bytes, set[tuple[bytes, int]]] = {}
        self.doomed: set[bytes] = set()
        self.ending: list[dispatcher.End] = []
        self.shares: dict[int, Grant] = {}
        """Grants of shared actors: the dispatcher's to give back."""
        self.restarts: dict[bytes, int] = {}
        self.budgets: dict[bytes, int] = {}
        self.told: dict[tuple[bytes, bytes], int] = {}
        self.next_number = 1

    def perform(self) -> None:
        """Do what the dispatcher commands."""
        while self.dispatcher.commands:
            commands, self.dispatcher.commands = self.dispatcher.commands, []
            for command in commands:
                self._perform(command)

    def _perform(self, command: dispatcher.Command) -> None:
        if isinstance(command, Claim):
            assert command.shared_host is None or command.shared_host in self.workers
            self.claims.append(command)
        elif isinstance(command, dispatcher.Withdraw):
            self.claims = [claim for claim in self.claims if claim.actor != command.actor]
        elif isinstance(command, dispatcher.Start):
            actor = self.dispatcher.actors.get(command.actor)
            if actor is not None and actor.worker is not None:
                assert (command.actor, actor.incarnation) not in self.workers[actor.worker]
                self.workers[actor.worker].add((command.actor, actor.incarnation))
        elif isinstance(command, dispatcher.End):
            self.ending.append(command)
        elif isinstance(command, dispatcher.KillWorker):
            self.doomed.add(command.worker)
        elif isinstance(command, dispatcher.ReleaseGrant):
            del self.shares[command.grant.number]  # KeyError: released twice.
        elif isinstance(command, dispatcher.Tell):
            self.told[(command.process, command.actor)] = 1

    def some_actor(self, data: st.DataObject) -> bytes | None:
        found = sorted(self.dispatcher.actors)
        return data.draw(st.sampled_from(found)) if found else None

    # -- birth ------------------------------------------------------------------------------------

    @rule(
        shared=st.booleans(),
        restarts=st.sampled_from((0, 1, -1)),
        seats=st.integers(0, 1),
        arguments=st.sampled_from((b"", b"", None)),
    )
    def create(self, shared: bool, restarts: int, seats: int, arguments: bytes | None) -> None:
        identity = object_id(OWNER, self.next_number)
        self.next_number += 1
        self.restarts[identity], self.budgets[identity] = 0, restarts
        self.dispatcher.create(
            OWNER,
            identity,
            b"class",
            details(shared=shared, restarts=restarts, seats=seats),
            arguments,
        )
        self.perform()

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def claim_is_served(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.claims) - 1))
        claim = self.claims.pop(at)
        grant = Grant(self.next_number, claim.resources)
        self.next_number += 1
        worker = claim.shared_host
        if worker is None:
            worker = b"worker%02d" % (self.next_number % 100)
            self.workers[worker] = set()
        else:
            self.shares[grant.number] = grant
        self.dispatcher.claimed(claim.actor, worker, grant, in_host=claim.shared_host is not None)
        self.perform()

    @precondition(lambda self: self.claims)
    @rule()
    def claim_is_lost(self) -> None:
        """The worker that was to serve it died in the same wake."""
        claim = self.claims.pop(0)
        if claim.shared_host is None:
            self.dispatcher.claim_lost(claim.actor)
            self.perform()
        else:
            self.claims.append(claim)

    @rule(data=st.data(), fails=st.booleans())
    def init_ends(self, data: st.DataObject, fails: bool) -> None:
        found = sorted(
            identity
            for identity, actor in self.dispatcher.actors.items()
            if actor.state == STARTING
        )
        if found:
            actor = self.dispatcher.actors[data.draw(st.sampled_from(found))]
            assert actor.worker is not None
            self.dispatcher.started(
                actor.worker, actor.actor, actor.incarnation, b"error" if fails else None
            )
            self.perform()
            assert (actor.state == ALIVE) != fails

    # -- death ------------------------------------------------------------------------------------

    @rule(data=st.data(), no_restart=st.booleans())
    def kill(self, data: st.DataObject, no_restart: bool) -> None:
        identity = self.some_actor(data)
        if identity is None:
            return
        actor = self.dispatcher.actors[identity]
        before, had_worker = actor.incarnation, actor.worker is not None
        self.dispatcher.kill(identity, b"killed", no_restart=no_restart)
        self.perform()
        if no_restart:
            assert identity not in self.dispatcher.actors
        elif had_worker and actor.shared and identity in self.dispatcher.actors:
            assert actor.incarnation == before + 1
            self.restarts[identity] += 1

    @rule(data=st.data())
    def last_handle_goes(self, data: st.DataObject) -> None:
        identity = self.some_actor(data)
        if identity is not None:
            self.dispatcher.unreferenced(identity)
            self.perform()

    @precondition(lambda self: self.ending)
    @rule()
    def worker_ends_actor(self) -> None:
        end = self.ending.pop(0)
        if (end.actor, end.incarnation) in self.workers.get(end.worker, ()) and not end.killed:
            self.dispatcher.exited(end.worker, end.actor, b"")
            self.perform()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), doomed=st.booleans())
    def worker_dies(self, data: st.DataObject, doomed: bool) -> None:
        found = sorted(self.doomed & self.workers.keys()) if doomed else sorted(self.workers)
        if not found:
            return
        worker = data.draw(st.sampled_from(found))
        there = [actor for actor in self.dispatcher.actors.values() if actor.worker == worker]
        before = {actor.actor: actor.incarnation for actor in there}
        del self.workers[worker]
        self.claims = [
            claim
            for claim in self.claims
            if claim.shared_host != worker or self.host_claim_fails(claim)
        ]
        self.dispatcher.worker_died(worker, b"crash")
        self.perform()
        for actor in there:
            if actor.actor in self.dispatcher.actors:
                assert actor.incarnation == before[actor.actor] + 1
                self.restarts[actor.actor] += 1
            else:
                assert actor.actor in self.dispatcher.dead

    def host_claim_fails(self, claim: Claim) -> bool:
        """A share of a host that dies is granted or not before: here it is, and comes back."""
        grant = Grant(self.next_number, claim.resources)
        self.next_number += 1
        self.shares[grant.number] = grant
        host = claim.shared_host
        assert host is not None
        self.dispatcher.hosts.pop(host, None)
        self.dispatcher.claimed(claim.actor, host, grant, in_host=True)
        return False

    # -- watching ---------------------------------------------------------------------------------

    @rule(data=st.data())
    def watch(self, data: st.DataObject) -> None:
        identity = self.some_actor(data)
        if identity is not None:
            self.told.pop((FRIEND, identity), None)
            self.dispatcher.watch(FRIEND, identity)
            self.perform()
            assert (FRIEND, identity) in self.told, "who watches is told at once"

    @rule(data=st.data(), fails=st.booleans())
    def arguments_arrive(self, data: st.DataObject, fails: bool) -> None:
        found = sorted(
            identity
            for identity, actor in self.dispatcher.actors.items()
            if actor.arguments is None
        )
        if found:
            identity = data.draw(st.sampled_from(found))
            self.dispatcher.arguments_arrived(OWNER, identity, None if fails else b"", b"argument")
            self.perform()
            assert (identity in self.dispatcher.dead) == fails

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def the_machine_is_sound(self) -> None:
        self.dispatcher.check()

    @invariant()
    def no_actor_restarts_more_often_than_it_may(self) -> None:
        for identity, count in self.restarts.items():
            assert self.budgets[identity] < 0 or count <= self.budgets[identity]

    @invariant()
    def who_has_no_place_has_asked_for_one(self) -> None:
        asked = {claim.actor for claim in self.claims}
        for identity, actor in self.dispatcher.actors.items():
            if actor.worker is None and actor.arguments is None:
                assert identity not in asked, "it could not start there"
            elif actor.worker is None and identity not in asked:
                assert identity in self.dispatcher.waiting_for_host, "nobody seeks a place for it"
                assert self.dispatcher.hosts_claimed, "it waits for a host that nobody claims"
        for claimant in self.dispatcher.hosts_claimed:
            assert claimant in asked, "a host is awaited and was not claimed"

    def teardown(self) -> None:
        """End all: whatever was granted has come back."""
        for identity in sorted(self.dispatcher.actors):
            self.dispatcher.kill(identity, b"end", no_restart=True)
        self.perform()
        assert not self.dispatcher.actors
        assert not self.dispatcher.waiting_for_host
        while self.claims:
            claim = self.claims.pop()
            if claim.shared_host is not None:
                self.host_claim_fails(claim)
                self.perform()
                continue
            assert claim.actor in self.dispatcher.hosts_claimed, "a claim of the dead goes on"
            self.workers[b"the-last"] = set()
            self.dispatcher.claimed(claim.actor, b"the-last", Grant(0, {}), in_host=False)
        assert not self.shares, "resources of shared actors were not given back"


TestDispatcherMachine = DispatcherMachine.TestCase
TestDispatcherMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
