"""The account of a node's resources: nothing is lost, shared twice or below zero.

What    Cases by hand, and a Hypothesis machine that acquires, lends, reclaims and releases at
        random against a plain list of what is held.
Never   starts a process: the account is a pure machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from zray.brokers.resources import Grant, ResourceSet, read_request
from zray.errors import InternalError, OptionError, RemoteProtocolError

ONE = 10_000


def _granted(account: ResourceSet, **request: int) -> Grant:
    grant = account.acquire(request)
    account.check()
    assert grant is not None
    return grant


def test_a_request_is_taken_whole_or_not_at_all() -> None:
    account = ResourceSet({"CPU": 2 * ONE, "disk": ONE})
    assert account.acquire({"CPU": ONE, "disk": 2 * ONE}) is None
    assert account.available == {"CPU": 2 * ONE, "disk": ONE}
    _granted(account, CPU=ONE, disk=ONE)
    assert account.available == {"CPU": ONE, "disk": 0}


def test_three_thirds_do_not_fit_twice_into_one_but_three_fit() -> None:
    account = ResourceSet({"CPU": ONE})
    grants = [_granted(account, CPU=3_333) for _ in range(3)]
    assert not account.fits({"CPU": 3_333})
    for grant in grants:
        account.release(grant)
    assert account.available == account.total


def test_an_empty_request_always_fits() -> None:
    account = ResourceSet({})
    assert _granted(account).amounts == {}


def test_what_can_never_fit_is_told_with_what_there_is() -> None:
    account = ResourceSet({"CPU": 2 * ONE, "GPU": 2 * ONE})
    assert account.shortage({"CPU": 2 * ONE}) == {}
    assert account.shortage({"CPU": 3 * ONE, "tpu": 1}) == {
        "CPU": (3 * ONE, 2 * ONE),
        "tpu": (1, 0),
    }
    assert account.shortage({"GPU": 15_000}) == {"GPU": (15_000, 2 * ONE)}
    _granted(account, CPU=2 * ONE)
    assert account.shortage({"CPU": 2 * ONE}) == {}


def test_whole_gpus_are_given_out_by_id_and_come_back() -> None:
    account = ResourceSet({"GPU": 3 * ONE}, gpu_ids=("4", "5", "GPU-ab"))
    first = _granted(account, GPU=2 * ONE)
    assert first.gpu_ids == ("4", "5")
    assert _granted(account, GPU=ONE).gpu_ids == ("GPU-ab",)
    account.release(first)
    assert _granted(account, GPU=ONE).gpu_ids == ("4",)


def test_shares_fill_one_gpu_before_they_break_another() -> None:
    account = ResourceSet({"GPU": 2 * ONE})
    shares = [_granted(account, GPU=4_000) for _ in range(2)]
    assert [share.gpu_ids for share in shares] == [("0",), ("0",)]
    assert _granted(account, GPU=ONE).gpu_ids == ("1",)
    assert account.acquire({"GPU": 4_000}) is None
    assert _granted(account, GPU=2_000).gpu_ids == ("0",)


def test_halves_on_two_gpus_are_no_whole_one() -> None:
    account = ResourceSet({"GPU": 2 * ONE})
    held = [_granted(account, GPU=6_000) for _ in range(2)]
    assert {grant.gpu_ids for grant in held} == {("0",), ("1",)}
    assert account.available["GPU"] == 8_000
    assert not account.fits({"GPU": 8_000})
    account.release(held[0])
    assert _granted(account, GPU=ONE).gpu_ids == held[0].gpu_ids


def test_a_lent_cpu_serves_another_and_is_owed_when_taken_back() -> None:
    account = ResourceSet({"CPU": ONE})
    parent = _granted(account, CPU=ONE)
    account.lend(parent)
    child = _granted(account, CPU=ONE)
    account.reclaim(parent)
    account.check()
    assert account.available == {"CPU": 0}
    account.release(child)
    account.check()
    # The child's CPU paid the debt: the parent runs on it.
    assert account.available == {"CPU": 0}
    account.release(parent)
    assert account.available == {"CPU": ONE}


def test_a_worker_that_dies_while_its_cpu_is_lent_gives_it_back_once() -> None:
    account = ResourceSet({"CPU": ONE, "disk": ONE})
    grant = _granted(account, CPU=ONE, disk=ONE)
    account.lend(grant)
    account.lend(grant)
    assert account.available == {"CPU": ONE, "disk": 0}
    account.release(grant)
    account.check()
    assert account.available == {"CPU": ONE, "disk": ONE}


def test_lending_without_cpus_changes_nothing() -> None:
    account = ResourceSet({"disk": ONE})
    grant = _granted(account, disk=ONE)
    account.lend(grant)
    account.reclaim(grant)
    account.reclaim(grant)
    account.check()
    assert account.available == {"disk": 0}


def test_a_second_release_is_a_bug_of_zray() -> None:
    account = ResourceSet({"CPU": ONE})
    grant = _granted(account, CPU=ONE)
    account.release(grant)
    for act in (account.release, account.lend, account.reclaim):
        with pytest.raises(InternalError, match="grant 1"):
            act(grant)
    account.check()


def test_a_negative_request_is_a_bug_of_zray() -> None:
    account = ResourceSet({"CPU": ONE})
    with pytest.raises(InternalError):
        account.acquire({"CPU": -1})
    assert account.available == {"CPU": ONE}


@pytest.mark.parametrize(("total", "ids"), [({"GPU": 5_000}, ()), ({"GPU": ONE}, ("0", "1"))])
def test_gpus_of_a_node_are_whole_and_as_many_as_their_ids(
    total: Mapping[str, int], ids: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError):
        ResourceSet(total, ids)


def test_check_finds_an_account_that_does_not_balance() -> None:
    account = ResourceSet({"CPU": ONE, "GPU": ONE})
    account._free["CPU"] -= 1
    with pytest.raises(InternalError, match="CPU does not balance"):
        account.check()
    account._free["CPU"] += 1
    account._gpu_free["0"] = 0
    with pytest.raises(InternalError, match="GPU 0"):
        account.check()


def test_the_repr_shows_what_is_free() -> None:
    account = ResourceSet({"CPU": 2 * ONE})
    _granted(account, CPU=ONE)
    assert repr(account) == "[ResourceSet: CPU 10000/20000 | 1 grants]"


@pytest.mark.parametrize(
    "fields", [None, [], {1: 1}, {"CPU": 1.5}, {"CPU": -1}, {"CPU": True}, {"CPU": 2**63}]
)
def test_a_malformed_request_is_refused_at_the_door(fields: object) -> None:
    with pytest.raises(RemoteProtocolError):
        read_request(fields)


def test_a_request_is_read_without_its_zeros() -> None:
    assert read_request({"CPU": 5, "disk": 0}) == {"CPU": 5}


class Account(RuleBasedStateMachine):
    """Random life of the account of a node with 3 CPUs, 2 GPUs and a custom resource."""

    grants = Bundle("grants")

    def __init__(self) -> None:
        super().__init__()
        self.account = ResourceSet({"CPU": 3 * ONE, "GPU": 2 * ONE, "disk": ONE})
        self.held: dict[int, Grant] = {}
        self.lent: set[int] = set()

    @rule(
        target=grants,
        cpu=st.sampled_from([0, 1, 3_333, ONE, 2 * ONE]),
        gpu=st.sampled_from([0, 0, 2_500, 5_000, 7_000, ONE, 2 * ONE]),
        disk=st.sampled_from([0, 0, 4_000]),
    )
    def acquire(self, cpu: int, gpu: int, disk: int) -> Grant | None:
        request = {"CPU": cpu, "GPU": gpu, "disk": disk}
        fits = self.account.fits(request)
        grant = self.account.acquire(request)
        assert fits == (grant is not None)
        if grant is not None:
            self.held[grant.number] = grant
        return grant

    @rule(grant=consumes(grants))
    def release(self, grant: Grant | None) -> None:
        if grant is not None:
            self.account.release(grant)
            del self.held[grant.number]
            self.lent.discard(grant.number)

    @rule(grant=grants)
    def lend(self, grant: Grant | None) -> None:
        if grant is not None and grant.number in self.held:
            self.account.lend(grant)
            self.lent.add(grant.number)

    @rule(grant=grants)
    def reclaim(self, grant: Grant | None) -> None:
        if grant is not None and grant.number in self.held:
            self.account.reclaim(grant)
            self.lent.discard(grant.number)

    @invariant()
    def balances(self) -> None:
        self.account.check()
        used: Counter[str] = Counter()
        for grant in self.held.values():
            for name, units in grant.amounts.items():
                if not (name == "CPU" and grant.number in self.lent):
                    used[name] += units
        for name, total in self.account.total.items():
            assert self.account.available[name] == max(0, total - used[name])

    @invariant()
    def no_gpu_is_given_out_beyond_its_whole(self) -> None:
        shares: Counter[str] = Counter()
        for grant in self.held.values():
            gpu = grant.amounts["GPU"]
            assert len(grant.gpu_ids) == (gpu + ONE - 1) // ONE
            for gpu_id in grant.gpu_ids:
                shares[gpu_id] += min(gpu, ONE)
        assert all(units <= ONE for units in shares.values())

    def teardown(self) -> None:
        for grant in list(self.held.values()):
            self.account.release(grant)
        self.account.check()
        assert self.account.available == self.account.total


TestAccount = Account.TestCase
