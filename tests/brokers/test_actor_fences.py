"""What waits for a host out of reach: successors and names, until it has certainly stopped.

What    A lost host, one that is dead by its node's word, names of dead actors, random orders.
Caller  pytest.
Never   waits: time is a number.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zray.brokers.actor_fences import ActorFences, Command, FreeName, Stopped

W1, W2 = b"worker-1", b"worker-2"
A, B = b"a" * 16, b"b" * 16


def taken(fences: ActorFences) -> list[Command]:
    fences.check()
    commands, fences.commands = fences.commands, []
    return commands


def test_what_a_lost_host_ran_may_start_elsewhere_when_its_lease_is_over() -> None:
    fences = ActorFences()
    fences.started(A, W1, is_shared=False)
    fences.lost(W1, 12.0, 10.0)
    fences.tick(11.9)
    assert taken(fences) == []
    assert fences.next_due == 12.0
    fences.tick(12.0)
    assert taken(fences) == [Stopped(W1)]
    assert fences.next_due == float("inf")


def test_a_host_whose_lease_has_been_over_is_not_waited_for() -> None:
    fences = ActorFences()
    fences.started(A, W1, is_shared=False)
    fences.lost(W1, 9.0, 10.0)
    fences.lost(W2, 20.0, 10.0)
    assert taken(fences) == [Stopped(W1), Stopped(W2)], "W2 hosted nothing"


def test_a_name_is_free_when_its_actors_worker_is_dead() -> None:
    fences = ActorFences()
    fences.started(A, W1, is_shared=False)
    assert not fences.ended(A)
    assert taken(fences) == []
    fences.stopped(W1)
    assert taken(fences) == [FreeName(A), Stopped(W1)]
    assert fences.ended(B)


def test_a_dead_actor_of_a_lost_host_keeps_its_name_until_that_has_stopped() -> None:
    fences = ActorFences()
    fences.started(A, W1, is_shared=False)
    fences.lost(W1, 12.0, 10.0)
    assert not fences.ended(A)
    fences.tick(12.0)
    assert taken(fences) == [FreeName(A), Stopped(W1)]


def test_an_actor_among_others_frees_its_name_at_once_unless_their_host_is_lost() -> None:
    fences = ActorFences()
    fences.started(A, W1, is_shared=True)
    fences.started(B, W1, is_shared=True)
    assert fences.ended(A)
    fences.lost(W1, 12.0, 10.0)
    assert not fences.ended(B)
    assert taken(fences) == []


def test_an_actor_that_ended_after_its_worker_frees_its_name_at_once() -> None:
    fences = ActorFences()
    fences.started(A, W1, is_shared=False)
    fences.stopped(W1)
    assert taken(fences) == [Stopped(W1)]
    assert fences.ended(A)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("start", "end", "lost", "stopped", "tick")),
        st.sampled_from((A, B)),
        st.sampled_from((W1, W2)),
        st.booleans(),
    ),
    max_size=30,
)


@given(STEPS)
def test_nothing_is_let_go_early_and_nothing_is_kept_for_ever(
    steps: list[tuple[str, bytes, bytes, bool]],
) -> None:
    fences, now = ActorFences(), 0.0
    kept: set[bytes] = set()
    until: dict[bytes, float] = {}
    for what, actor, worker, flag in steps:
        now += 0.5
        if what == "start" and worker not in until:
            fences.started(actor, worker, is_shared=flag)
        elif what == "end" and not fences.ended(actor):
            kept.add(actor)
        elif what == "lost":
            fences.lost(worker, now + 2.0, now)
            until.setdefault(worker, now + 2.0)
        elif what == "stopped":
            fences.stopped(worker)
        elif what == "tick":
            fences.tick(now)
        for command in taken(fences):
            if isinstance(command, FreeName):
                kept.discard(command.actor)
            else:
                until.pop(command.worker, None)
    for worker in (W1, W2):
        fences.lost(worker, now + 2.0, now)
    fences.tick(now + 10.0)
    assert kept <= {each.actor for each in taken(fences) if isinstance(each, FreeName)}
