"""Leases of hosts: no copy of an actor beside an older one, whatever is lost, late or slow.

What    Grants within grants, what a node may believe and how long a home waits; and the world of
        lease_world.py under delays, cuts, standstills, restarts of the GCS and clocks that differ.
Caller  pytest.
Never   waits: time is a number.
"""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.brokers.lease_world import HOST, Span, World
from zray.brokers.host_leases import (
    ASK_S,
    LEASE_MARGIN_S,
    LEASE_S,
    AskHome,
    Grant,
    HostLeases,
)
from zray.errors import RemoteProtocolError

OWN, A, B = (bytes([each]) * 4 + bytes(4) for each in (1, 2, 3))
WORKER, OTHER = OWN[:4] + b"work", OWN[:4] + b"othr"


def taken(leases: HostLeases) -> list[AskHome | Grant]:
    leases.check()
    commands, leases.commands = leases.commands, []
    return commands


def test_what_another_node_hosts_for_us_stands_still_until_we_have_answered() -> None:
    leases = HostLeases(OWN)
    leases.hosts(WORKER, A, 10.0)
    assert leases.until(A) < 10.0
    assert taken(leases) == [AskHome(A, 10.0)]
    leases.granted(A, 10.0, 1.9, 10.5)
    assert leases.until(A) == pytest.approx(11.9)


def test_a_host_asks_again_for_as_long_as_it_hosts_and_no_longer() -> None:
    leases = HostLeases(OWN)
    leases.hosts(WORKER, A, 10.0)
    leases.hosts(OTHER, A, 10.0)
    assert len(taken(leases)) == 1
    leases.tick(10.0 + ASK_S / 2)
    assert taken(leases) == []
    leases.tick(10.0 + ASK_S)
    assert taken(leases) == [AskHome(A, 10.0 + ASK_S)]
    leases.worker_gone(WORKER)
    leases.tick(11.0)
    assert len(taken(leases)) == 1
    leases.worker_gone(OTHER)
    leases.tick(12.0)
    assert taken(leases) == []


def test_a_late_answer_counts_from_when_it_was_asked_for_and_an_older_one_takes_nothing() -> None:
    leases = HostLeases(OWN)
    leases.granted(A, 10.0, 1.9, 11.8)
    leases.granted(A, 9.0, 1.9, 11.8)
    assert leases.until(A) == pytest.approx(11.9)


@pytest.mark.parametrize(("stamp", "lease_s"), [(11.0, 1.0), (9.0, LEASE_S * 2), (9.0, -1.0)])
def test_a_home_that_lies_is_not_believed(stamp: float, lease_s: float) -> None:
    leases = HostLeases(OWN)
    with pytest.raises(RemoteProtocolError):
        leases.granted(A, stamp, lease_s, 10.0)
    assert leases.until(A) < 0


def test_a_home_waits_longer_than_its_host_may_run() -> None:
    leases = HostLeases(OWN)
    leases.renew(A, 500.0, 10.0)
    assert taken(leases) == [Grant(A, 500.0, LEASE_S - LEASE_MARGIN_S)]
    assert leases.stands_still_at(A) == 10.0 + LEASE_S
    assert leases.stands_still_at(B) < 0


def test_a_home_lends_no_more_than_it_has_itself() -> None:
    leases = HostLeases(OWN)
    leases.own_until = 10.5
    leases.renew(A, 500.0, 10.0)
    assert taken(leases) == [Grant(A, 500.0, 0.5)]
    leases.renew(A, 501.0, 10.5)
    assert taken(leases) == []
    assert leases.until(OWN) == 10.5
    leases.granted(B, 10.0, 1.9, 10.0)
    assert leases.until(B) == 10.5


SPANS = st.builds(
    lambda who, begin, length: Span(frozenset(who), begin, begin + length),
    st.sampled_from(
        [("home",), ("host",), ("gcs",), ("home", "host"), ("home", "gcs"), ("host", "gcs")]
    ),
    st.floats(0.0, 6.0),
    st.floats(0.0, 6.0),
)
RATES = st.tuples(*[st.floats(0.995, 1.005)] * 3)
TIMES = st.lists(st.floats(0.5, 9.0), max_size=2)


@settings(max_examples=400, deadline=None)
@given(RATES, st.lists(SPANS, max_size=4), TIMES, TIMES, TIMES, st.integers())
def test_no_two_copies_whatever_is_cut_late_still_or_started_again(
    rates: tuple[float, float, float],
    spans: list[Span],
    restarts: list[float],
    breaks: list[float],
    losses: list[float],
    seed: int,
) -> None:
    chance = random.Random(seed)
    slow = chance.choice((0.001, 0.1, 1.0))
    world = World(rates, lambda: chance.uniform(0.0, slow), spans)
    for at in restarts:
        world.later(world.works_at(at, "gcs"), world.gcs_restarts)
    for at in breaks:
        name = chance.choice(("home", "host"))
        world.later(world.works_at(at, "gcs"), partial(world.declare_dead, name))
    for at in losses:
        world.later(world.works_at(at, "home"), world.home_loses_host)
    world.run(15.0)


@pytest.mark.parametrize("lost", ["link", "cut", "host stands still"])
def test_a_copy_does_begin_soon_after_its_host_is_out_of_reach(lost: str) -> None:
    spans = {
        "link": [],
        "cut": [Span(frozenset(("host", each)), 3.0, 99.0) for each in ("home", "gcs")],
        "host stands still": [Span(frozenset(("host",)), 3.0, 99.0)],
    }[lost]
    world = World((1.0, 1.0, 1.0), lambda: 0.001, spans)
    if lost == "link":
        world.later(3.0, world.home_loses_host)
    world.run(2.9)
    assert world.runs()
    world.run(3.0 + LEASE_S + 0.5)
    assert world.is_replaced


def test_while_nothing_is_lost_a_host_runs_on_through_a_short_restart_of_the_gcs() -> None:
    world = World((1.0, 1.0, 1.0), lambda: 0.001, [Span(frozenset(("gcs",)), 3.0, 4.2)])
    world.later(4.2, world.gcs_restarts)
    while world.now < 10.0:
        world.run(world.now + 0.05)
        assert world.runs() or world.now < 0.3


def test_a_host_whose_home_is_cut_off_goes_on_when_that_was_short() -> None:
    world = World((1.0, 1.0, 1.0), lambda: 0.001, [Span(frozenset(("home", "host")), 3.0, 5.5)])
    world.run(5.4)
    assert not world.runs()
    world.run(6.0)
    assert world.runs()
    assert world.home.leases.stands_still_at(HOST) > 7.0
