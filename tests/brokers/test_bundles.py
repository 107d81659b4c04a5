"""Accounts of bundles: what is drawn from a bundle is the bundle's, and everything balances.

What    Cases by hand, then a Hypothesis machine that opens, draws, lends, shuts and closes in any
        order beside ordinary requests of the node.
Caller  pytest.
Never   knows a scheduler.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zray.brokers.bundles import Accounts, group_of, in_group, outside_groups
from zray.brokers.resources import Grant
from zray.errors import InternalError

ONE = 10_000
GROUP, OTHER = b"g" * 16, b"h" * 16


def accounts(**total: int) -> Accounts:
    return Accounts({name: count * ONE for name, count in (total or {"CPU": 4}).items()})


def opened(found: Accounts, group: bytes, index: int, **amounts: float) -> Grant:
    grant = found.acquire({name: int(count * ONE) for name, count in amounts.items()})
    assert grant is not None
    found.open(group, index, grant)
    return grant


def cpus(count: float, index: int = -1, group: bytes = GROUP) -> dict[str, int]:
    return in_group({"CPU": int(count * ONE)}, group, index)


def test_a_request_of_a_group_is_met_from_its_bundle_and_not_from_the_node():
    found = accounts(CPU=4)
    assert not found.fits(cpus(1))
    opened(found, GROUP, 0, CPU=2)
    assert found.available == {"CPU": 2 * ONE}
    first = found.acquire(cpus(1))
    second = found.acquire(cpus(1, 0))
    assert first is not None
    assert second is not None
    assert found.available == {"CPU": 2 * ONE}, "the node has free what it had before"
    assert found.acquire(cpus(1)) is None
    assert found.acquire(cpus(1, group=OTHER)) is None
    found.release(first)
    assert found.fits(cpus(1, 0))
    found.check()


def test_what_needs_nothing_is_placed_in_a_bundle_too():
    found = accounts()
    assert not found.fits(in_group({}, GROUP, -1))
    opened(found, GROUP, 0, CPU=1)
    assert found.acquire(cpus(1)) is not None
    assert found.acquire(in_group({}, GROUP, -1)) is not None


def test_one_request_is_met_from_one_bundle():
    found = accounts(CPU=4)
    opened(found, GROUP, 0, CPU=1)
    opened(found, GROUP, 3, CPU=2)
    assert not found.fits(cpus(3))
    assert found.shortage(cpus(3))
    assert found.shortage(cpus(2)) == {}
    assert found.shortage(cpus(2, 0))
    assert found.shortage(cpus(1, 1)), "there is no such bundle here"
    assert found.acquire(cpus(2)) is not None
    assert found.acquire(cpus(1, 3)) is None
    assert found.acquire(cpus(1)) is not None


def test_what_is_offered_names_each_bundle_and_the_group():
    found = accounts(CPU=4)
    opened(found, GROUP, 0, CPU=1)
    opened(found, GROUP, 1, CPU=2)
    assert found.acquire(cpus(1, 1)) is not None
    offered, total = found.offered, found.offered_total
    for request, free, at_all in ((cpus(1), 2, 3), (cpus(1, 0), 1, 1), (cpus(1, 1), 1, 2)):
        name = next(name for name in request if name.startswith("CPU"))
        assert (offered[name], total[name]) == (free * ONE, at_all * ONE)
        assert group_of(request) == GROUP
    assert outside_groups(offered) == {"CPU": ONE}
    assert group_of({"CPU": 1}) == group_of({}) == b""


def test_gpus_of_a_bundle_are_those_it_holds_also_a_share_of_one():
    found = accounts(CPU=4, GPU=2)
    whole = opened(found, GROUP, 0, GPU=1)
    share = opened(found, GROUP, 1, GPU=0.5)
    first = found.acquire(in_group({"GPU": ONE}, GROUP, 0))
    second = found.acquire(in_group({"GPU": ONE // 2}, GROUP, 1))
    assert first is not None
    assert second is not None
    assert first.gpu_ids == whole.gpu_ids != share.gpu_ids == second.gpu_ids
    assert not found.fits(in_group({"GPU": ONE // 2}, GROUP, -1))
    found.check()


def test_a_task_that_waits_lends_its_cpu_to_others_of_its_bundle():
    found = accounts(CPU=1)
    opened(found, GROUP, 0, CPU=1)
    first = found.acquire(cpus(1))
    assert first is not None
    found.lend(first)
    assert found.lent_count == 1
    assert not found.fits({"CPU": ONE})
    assert found.acquire(cpus(1)) is not None
    found.reclaim(first)
    found.check()
    assert not found.fits(cpus(0.5)), "it is owed"


def test_a_shut_bundle_lets_nobody_in_and_closes_when_it_is_empty():
    found = accounts(CPU=1)
    grant = opened(found, GROUP, 0, CPU=1)
    drawn = found.acquire(cpus(1))
    assert drawn is not None
    found.shut(GROUP, 0)
    assert found.offered_total == found.total
    assert found.drawn_from(GROUP, [0]) == {drawn.number}
    assert found.drawn_from(GROUP, [1]) == set()
    with pytest.raises(InternalError, match="over somebody"):
        found.close(GROUP, 0)
    found.release(drawn)
    assert not found.fits(cpus(1))
    found.close(GROUP, 0)
    found.release(grant)
    assert found.available == found.total
    with pytest.raises(InternalError, match="twice"):
        found.release(drawn)


class AccountsMachine(RuleBasedStateMachine):
    """Bundles come and go, and so do those who draw from them and from the node."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts = accounts(CPU=6)
        self.reserved: dict[tuple[bytes, int], Grant] = {}
        self.held: list[Grant] = []
        self.lent: list[Grant] = []

    @rule(
        group=st.sampled_from([GROUP, OTHER]),
        index=st.integers(0, 2),
        units=st.integers(1, 3 * ONE),
    )
    def open(self, group: bytes, index: int, units: int) -> None:
        if (group, index) not in self.reserved:
            grant = self.accounts.acquire({"CPU": units})
            if grant is not None:
                self.accounts.open(group, index, grant)
                self.reserved[group, index] = grant

    @rule(
        group=st.sampled_from([b"", GROUP, OTHER]),
        index=st.integers(-1, 2),
        units=st.integers(0, 2 * ONE),
    )
    def acquire(self, group: bytes, index: int, units: int) -> None:
        request = in_group({"CPU": units}, group, index)
        fits = self.accounts.fits(request)
        grant = self.accounts.acquire(request)
        assert (grant is not None) == fits
        if grant is not None:
            assert not self.accounts.shortage(request)
            self.held.append(grant)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def lend(self, data: Any) -> None:
        grant = data.draw(st.sampled_from(self.held))
        self.accounts.lend(grant)
        self.lent.append(grant)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def reclaim(self, data: Any) -> None:
        self.accounts.reclaim(data.draw(st.sampled_from(self.lent)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        grant = data.draw(st.sampled_from(self.held))
        self.held.remove(grant)
        self.lent = [each for each in self.lent if each is not grant]
        self.accounts.release(grant)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        """A bundle goes with all who draw from it."""
        group, index = data.draw(st.sampled_from(sorted(self.reserved)))
        self.accounts.shut(group, index)
        drawn = self.accounts.drawn_from(group, [index])
        for grant in [each for each in self.held if each.number in drawn]:
            self.held.remove(grant)
            self.lent = [each for each in self.lent if each is not grant]
            self.accounts.release(grant)
        self.accounts.close(group, index)
        self.accounts.release(self.reserved.pop((group, index)))

    @invariant()
    def everything_balances(self) -> None:
        self.accounts.check()

    def teardown(self) -> None:
        for grant in self.held:
            self.accounts.release(grant)
        for (group, index), grant in self.reserved.items():
            self.accounts.close(group, index)
            self.accounts.release(grant)
        self.accounts.check()
        assert self.accounts.offered == self.accounts.total == {"CPU": 6 * ONE}


TestAccountsMachine = AccountsMachine.TestCase
TestAccountsMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
