"""Placement groups: plans, the two phases, and crashes in the middle of them.

What    The four strategies; a coordinator and nodes joined by queues that a case delivers by hand;
        and a Hypothesis machine that crashes coordinator and nodes at any point, loses what was
        under way and delivers things twice. In the end every group that should be there is whole,
        and nothing is reserved for any other.
Caller  pytest.
Never   opens a socket: a link is a list.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zray.brokers.bundles import Accounts
from zray.brokers.group_plan import STRATEGIES, plan
from zray.brokers.groups import (
    CREATED,
    PENDING,
    REMOVED,
    RESCHEDULING,
    Ask,
    Changed,
    Forget,
    GroupRecord,
    Groups,
    Save,
)
from zray.brokers.load import LoadTable, NodeLoad
from zray.brokers.placement import Request
from zray.brokers.reservations import (
    Committed,
    Evict,
    Inquire,
    Prepared,
    Removed,
    ReservationCommand,
    Reservations,
)
from zray.errors import OptionError
from zray.protocol.labels import read_selector

ONE = 10_000


def node(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(4)


def bundle(cpus: int = 1, **selector: str) -> Request:
    return Request({"CPU": cpus * ONE}, read_selector(selector))


def table_of(*cpus: int, **labels: str) -> LoadTable:
    """Return a table of idle nodes; a keyword gives the label "zone" of node n as ``n1="a"``."""
    table = LoadTable(bytes(8))
    for number, count in enumerate(cpus, 1):
        total = {"CPU": count * ONE}
        zone = labels.get(f"n{number}")
        table.heard(NodeLoad(node(number), 1, 1, total, total, {"zone": zone} if zone else {}))
    return table


# ------------------------------------------------------------------------------------------ plans


def test_pack_takes_as_few_nodes_as_possible():
    found = plan([bundle()] * 6, "PACK", table_of(2, 4, 4))
    assert found is not None
    assert sorted(Counter(found.values()).values()) == [2, 4]


def test_spread_takes_as_many_nodes_as_possible():
    found = plan([bundle()] * 4, "SPREAD", table_of(4, 4, 4))
    assert found is not None
    assert sorted(Counter(found.values()).values()) == [1, 1, 2]


def test_strict_pack_is_one_node_or_none():
    found = plan([bundle(2), bundle(1)], "STRICT_PACK", table_of(2, 3, 2))
    assert found == {0: node(2), 1: node(2)}
    assert plan([bundle(2), bundle(2)], "STRICT_PACK", table_of(3, 3)) is None


def test_strict_spread_is_a_node_each_or_none():
    found = plan([bundle()] * 3, "STRICT_SPREAD", table_of(4, 4, 4))
    assert found is not None
    assert len(set(found.values())) == 3
    assert plan([bundle()] * 4, "STRICT_SPREAD", table_of(4, 4, 4)) is None


def test_strict_spread_finds_the_only_plan_there_is():
    table = table_of(1, 1, 1, n1="a", n2="b", n3="b")
    bundles = [bundle(), bundle(zone="in(a, b)"), bundle(zone="a")]
    for seed in range(20):
        found = plan(bundles, "STRICT_SPREAD", table, seed=seed)
        assert found is not None
        assert found[2] == node(1)
        assert len(set(found.values())) == 3


def test_the_rest_of_a_group_goes_with_what_is_placed():
    table = table_of(4, 4, 4)
    there = {0: node(2)}
    assert plan([bundle()] * 2, "PACK", table, placed=there) == {1: node(2)}
    assert plan([bundle()] * 2, "STRICT_PACK", table, placed=there) == {1: node(2)}
    for strategy in ("SPREAD", "STRICT_SPREAD"):
        found = plan([bundle()] * 3, strategy, table, placed=there)
        assert found is not None
        assert sorted(found.values()) == [node(1), node(3)]


def test_a_plan_by_total_asks_what_idle_nodes_could_hold():
    table = table_of(4, 4)
    for number in (1, 2):
        table.heard(replace(table.rows[node(number)], revision=2, available={}))
    for strategy in STRATEGIES:
        assert plan([bundle()] * 2, strategy, table) is None
        assert plan([bundle()] * 2, strategy, table, by_total=True)
        assert plan([bundle(5)], strategy, table, by_total=True) is None


# ------------------------------------------------------------------------------------------ world


class World:
    """A coordinator, its disk, and nodes; every message waits in a link until it is delivered."""

    def __init__(self, *cpus: int) -> None:
        self.now = 0.0
        self.epoch = 0
        self.disk: dict[bytes, GroupRecord] = {}
        self.cpus = dict(enumerate(cpus, 1))
        self.lives = dict.fromkeys(self.cpus, 0)
        self.nodes: dict[int, Reservations] = {}
        self.to_node: dict[int, deque[Ask]] = {}
        self.from_node: dict[int, deque[ReservationCommand]] = {}
        self.working: set[tuple[int, bytes]] = set()
        self.saves: deque[Save | Forget] = deque()
        self.told: list[tuple[bytes, str]] = []
        self.revision = 0
        self.groups = Groups(LoadTable(bytes(8)), epoch=0)
        for number in self.cpus:
            self.start_node(number)

    def start_node(self, number: int) -> None:
        self.lives[number] += 1
        self.nodes[number] = Reservations(Accounts({"CPU": self.cpus[number] * ONE}))
        self.to_node[number] = deque()
        self.from_node[number] = deque()
        self.working = {each for each in self.working if each[0] != number}
        self.report()

    def report(self) -> None:
        """Every node reports its load, twice, so that nothing is counted as sent any more."""
        for _ in range(2):
            self.revision += 1
            self.groups.table.published(
                NodeLoad(
                    node(number),
                    self.lives[number],
                    self.revision,
                    each.resources.total,
                    each.resources.available,
                )
                for number, each in self.nodes.items()
            )

    def kill_node(self, number: int) -> None:
        """A node dies and comes back; the coordinator hears of the death."""
        life = self.lives[number]
        self.groups.table.died(node(number), life)
        self.start_node(number)
        self.groups.node_died(node(number), life, self.now)
        self.collect()

    def kill_coordinator(self) -> None:
        """It comes back with what was on its disk; what was sent to it is lost."""
        self.epoch += 1
        self.saves.clear()
        for answers in self.from_node.values():
            answers.clear()
        table = LoadTable(bytes(8))
        self.groups = Groups(table, epoch=self.epoch, records=list(self.disk.values()))
        self.report()
        lives = {(node(number), life) for number, life in self.lives.items()}
        for where, life in sorted(self.groups.lives_expected() - lives):
            self.groups.node_died(where, life, self.now)
        self.collect()

    def collect(self) -> None:
        """Put what the machines command into the links."""
        commands, self.groups.commands = self.groups.commands, []
        for command in commands:
            if isinstance(command, Ask):
                self.to_node[int.from_bytes(command.node[:4], "big")].append(command)
            elif isinstance(command, Changed):
                self.told.append((command.group, command.state))
            else:
                self.saves.append(command)
        for number, each in self.nodes.items():
            answers, each.commands = each.commands, []
            for answer in answers:
                if isinstance(answer, Evict):
                    self.working.add((number, answer.group))
                else:
                    self.from_node[number].append(answer)

    def save(self) -> None:
        """The disk has done the next write."""
        write = self.saves.popleft()
        if isinstance(write, Forget):
            self.disk.pop(write.group, None)
        else:
            self.disk[write.record.group] = write.record
            self.groups.saved(write.record.group, write.version, self.now)
        self.collect()

    def deliver_to(self, number: int, *, twice: bool = False) -> None:
        """A node gets its next message."""
        ask = self.to_node[number].popleft()
        for _ in range(1 + twice):
            self._tell_node(self.nodes[number], ask)
        self.collect()

    def _tell_node(self, target: Reservations, ask: Ask) -> None:
        match ask.what:
            case "PREPARE":
                target.prepare(ask.group, ask.attempt, ask.wanted, self.now)
            case "COMMIT":
                target.commit(ask.group, ask.attempt)
            case "CANCEL":
                target.cancel(ask.group, ask.attempt)
            case _:
                target.remove(ask.group, ask.attempt)

    def deliver_from(self, number: int) -> None:
        """The coordinator gets a node's next message."""
        answer = self.from_node[number].popleft()
        where, groups, now = node(number), self.groups, self.now
        if isinstance(answer, Prepared):
            groups.prepared(where, answer.group, answer.attempt, answer.ok, now)
        elif isinstance(answer, Committed):
            groups.committed(where, answer.group, answer.attempt, answer.ok, now)
        elif isinstance(answer, Inquire):
            groups.inquired(where, answer.group, answer.attempt, now)
        else:
            assert isinstance(answer, Removed)
            groups.released(where, answer.group, now)
        self.collect()

    def evicted(self) -> None:
        """Who worked in a removed group's bundles has ended."""
        for number, group in sorted(self.working):
            self.nodes[number].evicted(group)
        self.working.clear()
        self.collect()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.groups.tick(self.now)
        for each in self.nodes.values():
            each.tick(self.now)
        self.collect()

    def deliver_all(self) -> None:
        """Deliver everything until nothing is under way."""
        for _ in range(100_000):
            links = [n for n in self.cpus if self.to_node[n] or self.from_node[n]]
            if not (self.saves or links or self.working):
                return
            if self.saves:
                self.save()
            for number in links:
                if self.to_node[number]:
                    self.deliver_to(number)
                if self.from_node[number]:
                    self.deliver_from(number)
            self.evicted()
        raise AssertionError("the machines talk without end")

    def settle(self) -> None:
        """Let time pass until nothing changes any more."""
        for _ in range(12):
            self.deliver_all()
            self.report()
            self.pass_time(2.5)
        self.deliver_all()

    def create(self, number: int, strategy: str, *bundles: Request) -> bytes:
        identity = number.to_bytes(16, "big")
        self.groups.create(GroupRecord(identity, strategy, bundles), self.now)
        self.collect()
        return identity

    def held(self, identity: bytes) -> dict[int, int]:
        """Return the node of each committed bundle of a group."""
        return {
            index: number
            for number, each in self.nodes.items()
            for (group, index), found in each.bundles.items()
            if group == identity and found.committed
        }

    def free(self) -> dict[int, int]:
        return {n: each.resources.available["CPU"] // ONE for n, each in self.nodes.items()}

    def check(self) -> None:
        self.groups.check()
        self.groups.table.check()
        for each in self.nodes.values():
            each.check()


@pytest.fixture
def world() -> Iterator[World]:
    made = World(4, 4, 4)
    yield made
    made.check()


def test_a_group_is_ready_when_every_node_has_committed(world: World):
    group = world.create(1, "STRICT_SPREAD", bundle(2), bundle(2), bundle(2))
    assert world.groups.state(group) == PENDING
    world.deliver_all()
    assert world.groups.state(group) == CREATED
    assert sorted(world.held(group).values()) == [1, 2, 3]
    assert world.free() == {1: 2, 2: 2, 3: 2}
    assert world.told == [(group, PENDING), (group, CREATED)]


def test_a_group_that_does_not_fit_waits_and_takes_nothing(world: World):
    first = world.create(1, "PACK", bundle(4), bundle(4))
    world.settle()
    second = world.create(2, "STRICT_SPREAD", bundle(1), bundle(1))
    world.settle()
    assert world.groups.state(second) == PENDING
    assert world.groups.can_ever_be_placed(second)
    assert sorted(world.free().values()) == [0, 0, 4]
    world.groups.remove(first, world.now)
    world.collect()
    world.settle()
    assert world.groups.state(first) == REMOVED
    assert world.groups.state(second) == CREATED


def test_a_group_that_can_never_fit_is_known_as_such(world: World):
    group = world.create(1, "STRICT_PACK", bundle(4), bundle(4))
    world.settle()
    assert world.groups.state(group) == PENDING
    assert not world.groups.can_ever_be_placed(group)


def test_one_refusal_cancels_all_and_another_plan_is_made(world: World):
    taken = world.nodes[2].resources.acquire({"CPU": 4 * ONE})
    assert taken is not None
    group = world.create(1, "STRICT_SPREAD", bundle(), bundle(), bundle())
    world.deliver_all()
    assert world.free() == {1: 4, 2: 0, 3: 4}, "what was prepared has been given back"
    world.nodes[2].resources.release(taken)
    world.settle()
    assert world.groups.state(group) == CREATED


def test_a_coordinator_that_dies_before_it_has_decided_lets_go(world: World):
    group = world.create(1, "STRICT_SPREAD", bundle(), bundle(), bundle())
    world.save()
    for number in (1, 2, 3):
        world.deliver_to(number)
        world.deliver_from(number)
    assert world.saves, "the decision is not on the disk yet"
    world.kill_coordinator()
    del world.disk[group]
    world.kill_coordinator()
    world.settle()
    assert world.free() == {1: 4, 2: 4, 3: 4}
    assert world.groups.state(group) == REMOVED


def test_a_coordinator_that_dies_after_it_has_decided_commits(world: World):
    group = world.create(1, "STRICT_SPREAD", bundle(), bundle(), bundle())
    world.save()
    for number in (1, 2, 3):
        world.deliver_to(number)
        world.deliver_from(number)
    world.save()
    decided = {index: seat.attempt for index, seat in world.disk[group].seats.items()}
    for link in world.to_node.values():
        link.clear()
    world.kill_coordinator()
    world.settle()
    assert world.groups.state(group) == CREATED
    assert {i: seat.attempt for i, seat in world.disk[group].seats.items()} == decided


def test_a_prepared_node_that_hears_nothing_asks_and_keeps_until_it_knows(world: World):
    group = world.create(1, "STRICT_SPREAD", bundle(), bundle(), bundle())
    world.save()
    world.deliver_to(1)
    world.from_node[1].clear()
    world.now = 100.0
    world.nodes[1].tick(world.now)
    (asked,) = world.nodes[1].commands
    assert isinstance(asked, Inquire)
    assert world.free()[1] == 3
    assert asked.group == group
    world.settle()
    assert world.groups.state(group) == CREATED


def test_nobody_hears_of_a_decision_before_it_is_safe(world: World):
    group = world.create(1, "STRICT_SPREAD", bundle(), bundle(), bundle())
    world.save()
    for number in (1, 2, 3):
        world.deliver_to(number)
        world.deliver_from(number)
    (decision,) = world.saves
    assert isinstance(decision, Save)
    world.groups.inquired(node(1), group, decision.record.attempt, world.now)
    world.pass_time(5.0)
    assert not any(world.to_node.values())
    world.save()
    assert [ask.what for link in world.to_node.values() for ask in link] == ["COMMIT"] * 3


def test_attempts_of_a_new_coordinator_are_later_than_all_before(world: World):
    world.create(1, "PACK", bundle(), bundle())
    world.save()
    (before,) = (ask for link in world.to_node.values() for ask in link)
    for link in world.to_node.values():
        link.clear()
    world.kill_coordinator()
    world.pass_time(1.0)
    (after,) = (ask for link in world.to_node.values() for ask in link)
    assert after.what == before.what == "PREPARE"
    assert after.attempt > before.attempt


def test_a_group_that_is_removed_while_it_is_prepared_is_let_go_at_once(world: World):
    group = world.create(1, "STRICT_SPREAD", bundle(), bundle(), bundle())
    world.save()
    world.deliver_to(1)
    for number in (1, 2, 3):
        world.from_node[number].clear()
        world.to_node[number].clear()
    world.groups.remove(group, world.now)
    world.collect()
    world.deliver_all()
    assert world.free() == {1: 4, 2: 4, 3: 4}
    assert not world.disk


def test_a_dead_node_takes_only_its_own_bundles_along(world: World):
    group = world.create(1, "SPREAD", bundle(), bundle(), bundle())
    world.deliver_all()
    before = world.held(group)
    world.kill_node(2)
    world.save()
    assert world.groups.state(group) == RESCHEDULING
    world.settle()
    assert world.groups.state(group) == CREATED
    after = world.held(group)
    assert {index: n for index, n in before.items() if n != 2}.items() <= after.items()
    assert len(after) == 3


def test_a_bundle_is_released_when_nobody_works_in_it_any_more(world: World):
    group = world.create(1, "PACK", bundle(3))
    world.deliver_all()
    where = world.held(group)[0]
    world.groups.remove(group, world.now)
    world.collect()
    world.save()
    world.deliver_to(where)
    assert world.free()[where] == 1, "its workers have not ended yet"
    assert not world.from_node[where]
    world.evicted()
    assert world.free()[where] == 4
    world.deliver_all()
    assert group not in world.disk


def test_a_late_prepare_of_a_removed_group_is_refused(world: World):
    node_1 = world.nodes[1]
    node_1.remove(bytes(16), 7)
    node_1.prepare(bytes(16), 7, {0: {"CPU": ONE}}, 0.0)
    assert node_1.commands == [Removed(bytes(16)), Prepared(bytes(16), 7, False)]
    assert world.free()[1] == 4
    node_1.commands.clear()


def test_a_group_without_bundles_or_with_an_unknown_strategy_is_refused():
    with pytest.raises(OptionError, match="bundle"):
        GroupRecord(bytes(16), "PACK", ())
    with pytest.raises(OptionError, match="STRICT_PACK"):
        GroupRecord(bytes(16), "HEAP", (bundle(),))


# ----------------------------------------------------------------------------------------- random


class GroupsMachine(RuleBasedStateMachine):
    """Anything may happen between any two messages."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2, 3, 4)
        self.created: dict[bytes, GroupRecord] = {}
        self.removed: set[bytes] = set()

    @rule(
        strategy=st.sampled_from(STRATEGIES),
        sizes=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    )
    def create(self, strategy: str, sizes: list[int]) -> None:
        if len(self.created) < 4:
            bundles = tuple(bundle(size) for size in sizes)
            number = len(self.created) + 1
            self.created[self.world.create(number, strategy, *bundles)] = GroupRecord(
                number.to_bytes(16, "big"), strategy, bundles
            )

    @precondition(lambda self: self.created)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        group = data.draw(st.sampled_from(sorted(self.created)))
        # A removal that a crash forgets was never confirmed: the user asks again.
        self.removed.add(group)
        self.world.groups.remove(group, self.world.now)
        self.world.collect()

    @rule(number=st.integers(1, 3), twice=st.booleans())
    def deliver_to(self, number: int, twice: bool) -> None:
        if self.world.to_node[number]:
            self.world.deliver_to(number, twice=twice)

    @rule(number=st.integers(1, 3))
    def deliver_from(self, number: int) -> None:
        if self.world.from_node[number]:
            self.world.deliver_from(number)

    @rule()
    def save(self) -> None:
        if self.world.saves:
            self.world.save()

    @rule(rounds=st.integers(1, 4))
    def deliver_much(self, rounds: int) -> None:
        for _ in range(rounds):
            for number in (1, 2, 3):
                self.deliver_to(number, False)
                self.deliver_from(number)
            self.save()

    @rule()
    def evicted(self) -> None:
        self.world.evicted()

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.5]), report=st.booleans())
    def pass_time(self, seconds: float, report: bool) -> None:
        if report:
            self.world.report()
        self.world.pass_time(seconds)

    @rule(number=st.integers(1, 3))
    def kill_node(self, number: int) -> None:
        self.world.kill_node(number)

    @rule()
    def kill_coordinator(self) -> None:
        self.world.kill_coordinator()

    @rule(number=st.integers(1, 3))
    def cut_the_link(self, number: int) -> None:
        """What was under way is lost, in both directions."""
        self.world.to_node[number].clear()
        self.world.from_node[number].clear()

    @invariant()
    def nothing_is_held_twice(self) -> None:
        self.world.check()
        for group in self.created:
            indexes = [
                index
                for each in self.world.nodes.values()
                for (found, index), held in each.bundles.items()
                if found == group and held.committed and not held.leaving
            ]
            assert len(indexes) == len(set(indexes)), "a bundle is committed on two nodes"

    @invariant()
    def who_is_ready_is_whole(self) -> None:
        for group, record in self.created.items():
            if self.world.groups.state(group) == CREATED:
                held = self.world.held(group)
                assert held.keys() == set(range(len(record.bundles)))

    def teardown(self) -> None:
        world = self.world
        world.settle()
        for group in sorted(self.removed):
            world.groups.remove(group, world.now)
        # Who was never confirmed before a crash is asked for again, as a client does.
        for group, record in self.created.items():
            if group not in self.removed:
                world.groups.create(record, world.now)
        world.collect()
        world.settle()
        world.check()
        held = dict.fromkeys(world.cpus, 0)
        for group, record in self.created.items():
            where = world.held(group)
            for index, number in where.items():
                held[number] += record.bundles[index].amounts["CPU"] // ONE
            if group in self.removed:
                assert world.groups.state(group) == REMOVED
                assert not where
            elif world.groups.state(group) != CREATED:
                assert not where or world.groups.state(group) == RESCHEDULING
                assert plan_is_impossible(world, group, record)
        assert world.free() == {n: world.cpus[n] - held[n] for n in world.cpus}, "leaked"
        assert world.disk.keys() == self.created.keys() - self.removed


def plan_is_impossible(world: World, group: bytes, record: GroupRecord) -> bool:
    placed = {index: node(number) for index, number in world.held(group).items()}
    world.report()
    return plan(record.bundles, record.strategy, world.groups.table, placed=placed) is None


TestGroupsMachine = GroupsMachine.TestCase
TestGroupsMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
