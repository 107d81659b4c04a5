"""Objects counted between nodes: nothing is freed while anybody refers to it, nothing stays.

What    Cases by hand, then a Hypothesis machine of three nodes with arbitrary orders between their
        links, processes that hold, pass, drop and ask, results that stay where they were made,
        dropped copies, and nodes that die.
Never   opens a socket: the real thing is tests/multinode/test_objects.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.brokers.nodes_world import COPIES_DIED, HOME_DIED, PLAIN, Node, NodesWorld, is_there
from zray.brokers.hold_fence import HoldFence
from zray.protocol import outcome
from zray.protocol.ids import node_of

OBJECTS_MAX = 4
"""So few that the rules meet at the same ones."""


class Trio:
    """The world, and its nodes' first processes by name."""

    def __init__(self) -> None:
        self.world = NodesWorld()
        self.nodes: list[Node] = list(self.world.nodes.values())
        self.a, self.b, self.c = (next(iter(node.processes)) for node in self.nodes)

    def step(self) -> None:
        for node in self.nodes:
            node.perform()

    def link(self, source: int, receiver: int) -> bool:
        """Deliver all that one link carries."""
        moved = False
        while self.world.deliver(self.nodes[source].process, self.nodes[receiver].process):
            moved = True
        self.step()
        return moved


@pytest.fixture
def trio() -> Trio:
    return Trio()


def _given_to_all(trio: Trio) -> bytes:
    """Return an object of A that processes of B and C have."""
    world = trio.world
    made = world.put(trio.a, [], large=True)
    world.give(trio.a, trio.b, made)
    world.give(trio.a, trio.c, made)
    world.settle()
    return made


def test_a_release_does_not_overtake_the_hold_of_who_was_given_the_reference(trio: Trio) -> None:
    """B passes A's object to C and drops it; C's HOLD is slow, all other links are quick."""
    world = trio.world
    made = world.put(trio.a, [], large=True)
    world.give(trio.a, trio.b, made)
    world.settle()
    world.drop(trio.a, made)
    world.give(trio.b, trio.c, made)
    trio.step()
    trio.link(1, 2)
    assert world.read(trio.c)
    trio.step()
    assert not trio.link(2, 1), "C's answer waits until A has counted it"
    assert not world.read(trio.b)
    trio.link(2, 0)
    trio.link(0, 2)
    assert trio.link(2, 1)
    assert world.read(trio.b)
    world.drop(trio.b, made)
    world.settle()
    world.check()
    world.finish()


def test_what_goes_to_the_home_itself_does_not_wait(trio: Trio) -> None:
    world = trio.world
    made = world.put(trio.a, [], large=True)
    world.give(trio.a, trio.b, made)
    trio.step()
    trio.link(0, 1)
    assert world.read(trio.b)
    trio.step()
    trio.link(1, 0)
    assert world.read(trio.a), "B's answer came with its HOLD"
    world.finish()


def test_a_hold_goes_before_an_answer_of_the_same_wake(trio: Trio) -> None:
    """The command is performed at the end of a wake, the answer is sent in the midst of it."""
    world = trio.world
    made = world.put(trio.a, [], large=True)
    world.give(trio.a, trio.b, made)
    trio.step()
    trio.link(0, 1)
    world.read(trio.b)  # Nobody performs B's commands.
    while world.deliver(trio.nodes[1].process, trio.nodes[0].process):
        continue
    assert world.read(trio.a)
    world.drop(trio.a, made)
    world.settle()
    world.check()
    world.finish()


def test_a_result_used_where_it_was_made_is_freed_there(trio: Trio) -> None:
    """The keeper's own hold and the home's waited for each other for ever."""
    world = trio.world
    made = world.compute(trio.b, trio.a, [], large=True)
    world.settle()
    world.give(trio.a, trio.b, made)
    world.settle()
    world.locate(trio.b, made)
    world.settle()
    assert world.process(trio.b).told[made][0] == outcome.STORED
    assert not trio.nodes[0].store.objects, "nothing was transferred"
    world.drop(trio.b, made)
    world.drop(trio.a, made)
    world.settle()
    assert not trio.nodes[1].store.objects
    world.finish()


def test_who_asks_later_is_told_of_those_who_asked_before(trio: Trio) -> None:
    made = _given_to_all(trio)
    world = trio.world
    world.locate(trio.b, made)
    world.locate(trio.c, made)
    for node in (1, 2):
        trio.step()
        trio.link(node, 0)
        trio.link(0, node)
    first: Any = trio.nodes[1].cluster.objects.bulk
    second: Any = trio.nodes[2].cluster.objects.bulk
    assert [peer[:8] for peer in first.wanted[made][1]] == [trio.nodes[0].process]
    assert [peer[:8] for peer in second.wanted[made][1]] == [
        trio.nodes[0].process,
        trio.nodes[1].process,
    ]
    world.settle()
    assert is_there(world.process(trio.c).told[made])
    world.finish()


def test_a_copy_is_dropped_and_fetched_again(trio: Trio) -> None:
    made = _given_to_all(trio)
    world = trio.world
    world.locate(trio.b, made)
    world.settle()
    node = trio.nodes[1]
    assert not node.objects.drop_copy(made), "a process has it mapped"
    node.objects.unpinned(trio.b, [made])
    assert node.objects.drop_copy(made)
    world.settle()
    assert not node.store.objects
    assert node.process not in trio.nodes[0].objects.entries[made].places
    world.process(trio.b).told.clear()
    world.locate(trio.b, made)
    world.settle()
    assert is_there(world.process(trio.b).told[made])
    world.finish()


def test_the_only_copy_is_no_copy(trio: Trio) -> None:
    world = trio.world
    made = world.compute(trio.b, trio.a, [], large=True)
    world.settle()
    keeper, home = trio.nodes[1], trio.nodes[0]
    assert not keeper.objects.drop_copy(made), "its home counts on it"
    world.locate(trio.a, made)
    world.settle()
    home.objects.unpinned(trio.a, [made])
    assert home.objects.drop_copy(made), "the keeper has it"
    own = world.put(trio.a, [], large=True)
    home.objects.unpinned(trio.a, [own])
    assert not home.objects.drop_copy(own)
    world.finish()


def test_what_only_a_dead_node_had_is_lost(trio: Trio) -> None:
    world = trio.world
    made = world.compute(trio.b, trio.a, [], large=True)
    world.settle()
    world.give(trio.a, trio.c, made)
    world.settle()
    world.kill(trio.nodes[1].process)
    for node in world.living:
        world.notice(node, trio.nodes[1].process)
    world.locate(trio.a, made)
    world.locate(trio.c, made)
    world.settle()
    assert world.process(trio.a).told[made] == COPIES_DIED
    assert world.process(trio.c).told[made] == COPIES_DIED
    world.finish()


def test_a_copy_elsewhere_survives_the_node_that_kept_the_first(trio: Trio) -> None:
    world = trio.world
    made = world.compute(trio.b, trio.a, [], large=True)
    world.settle()
    world.give(trio.a, trio.c, made)
    world.settle()
    world.locate(trio.c, made)
    world.settle()
    world.kill(trio.nodes[1].process)
    for node in world.living:
        world.notice(node, trio.nodes[1].process)
    world.locate(trio.a, made)
    world.settle()
    assert is_there(world.process(trio.a).told[made])
    world.finish()


def test_an_object_whose_home_is_dead_is_its_owners_death(trio: Trio) -> None:
    made = _given_to_all(trio)
    world = trio.world
    world.locate(trio.c, made)
    world.settle()
    world.kill(trio.nodes[0].process)
    for node in world.living:
        world.notice(node, trio.nodes[0].process)
    world.process(trio.c).told.clear()
    world.locate(trio.b, made)
    world.locate(trio.c, made)
    world.settle()
    assert world.process(trio.b).told[made] == HOME_DIED
    assert is_there(world.process(trio.c).told[made]), "its copy is as good as before"
    world.finish()


def test_a_dead_node_is_not_waited_for(trio: Trio) -> None:
    """C answers B, though A, whose object C holds, will never count it."""
    world = trio.world
    made = world.put(trio.a, [], large=True)
    world.give(trio.a, trio.b, made)
    world.settle()
    world.give(trio.b, trio.c, made)
    trio.step()
    trio.link(1, 2)
    world.read(trio.c)
    trio.step()
    assert not trio.link(2, 1)
    world.kill(trio.nodes[0].process)
    world.notice(trio.nodes[2], trio.nodes[0].process)
    assert trio.link(2, 1)
    world.finish()


def test_nodes_that_lost_each_other_count_anew(trio: Trio) -> None:
    made = _given_to_all(trio)
    world = trio.world
    world.part(trio.nodes[0], trio.nodes[1])
    world.settle()
    assert trio.nodes[1].process in trio.nodes[0].objects.entries[made].holders
    world.locate(trio.b, made)
    world.settle()
    assert is_there(world.process(trio.b).told[made])
    world.finish()


def test_a_home_that_is_not_known_yet_is_told_when_it_joins(trio: Trio) -> None:
    """Links are made one by one: C hears of A's object before it hears of A."""
    world = trio.world
    c, home = trio.nodes[2], trio.nodes[0].process
    del c.cluster.members[home]
    c.objects.nodes.discard(home)
    made = world.put(trio.a, [], large=True)
    world.give(trio.a, trio.b, made)
    world.settle()
    world.give(trio.b, trio.c, made)
    trio.step()
    trio.link(1, 2)
    world.read(trio.c)
    world.locate(trio.c, made)
    trio.step()
    assert not trio.link(2, 1)
    world.join(c, home)
    world.settle()
    assert is_there(world.process(trio.c).told[made])
    assert not world.process(trio.b).lent
    world.finish()


def test_only_what_was_held_before_is_waited_for() -> None:
    fence = HoldFence()
    fence.held(b"a")
    assert not fence.admit(b"b", "first")
    fence.held(b"c")
    assert not fence.admit(b"b", "second")
    assert not fence.admit(b"a", "for a"), "c's is to be counted first"
    fence.counted(b"a", 1)
    assert fence.ready() == [(b"b", "first")]
    fence.counted(b"c", 1)
    assert sorted(fence.ready()) == [(b"a", "for a"), (b"b", "second")]
    assert fence.is_open


def test_what_a_leaving_node_keeps_goes_home_with_the_references_in_it(trio: Trio) -> None:
    world, (home, keeper, _third) = trio.world, trio.nodes
    inner = world.put(trio.c, [], large=True)
    world.give(trio.c, trio.b, inner)
    world.settle()
    made = world.compute(trio.b, trio.a, [inner], large=True)
    small = world.compute(trio.b, trio.a, [inner], large=False)
    world.settle()
    assert keeper.cluster.objects.kept_for_others == 2
    keeper.cluster.objects.move_out()
    world.drop(trio.b, inner)
    world.drop(trio.c, inner)
    world.settle()
    assert list(home.store.objects.values()) == [made]
    assert made not in keeper.store.objects.values()
    assert keeper.cluster.objects.kept_for_others == 0
    world.kill(keeper.process)
    for node in (home, trio.nodes[2]):
        world.notice(node, keeper.process)
        node.objects.bury(keeper.process)
    world.settle()
    world.locate(trio.a, made)
    world.settle()
    assert world.process(trio.a).told[made][0] == outcome.STORED
    assert inner in trio.nodes[2].store.objects.values(), "what it contains is held by its home"
    world.drop(trio.a, made)
    world.drop(trio.a, small)
    world.settle()
    assert not home.store.objects
    assert not trio.nodes[2].store.objects


class NodesMachine(RuleBasedStateMachine):
    """Any order of deliveries, reads, wakes, passes and drops."""

    def __init__(self) -> None:
        super().__init__()
        self.world = NodesWorld()
        self.count = 0
        self.slow = (b"", b"")
        """A link that is behind all others: most races need just that."""

    @initialize(data=st.data(), large=st.booleans())
    def begin(self, data: st.DataObject, large: bool) -> None:
        nodes = list(self.world.nodes.values())
        self.world.put(next(iter(nodes[0].processes)), [], large=large)
        ends = data.draw(st.permutations([node.process for node in nodes]))
        self.slow = (ends[0], ends[1])

    def processes(self) -> list[bytes]:
        return [identity for node in self.world.living for identity in node.processes]

    def one_with_something(self, data: st.DataObject) -> tuple[bytes, bytes] | None:
        pairs = [
            (identity, each)
            for identity in self.processes()
            for process in (self.world.process(identity),)
            for each in sorted(process.held | process.results.keys())
        ]
        return data.draw(st.sampled_from(pairs)) if pairs else None

    def some_held(self, data: st.DataObject, identity: bytes) -> list[bytes]:
        held = sorted(self.world.process(identity).held)
        return data.draw(st.lists(st.sampled_from(held), max_size=2, unique=True)) if held else []

    @precondition(lambda self: self.count < OBJECTS_MAX)
    @rule(data=st.data(), large=st.booleans())
    def put(self, data: st.DataObject, large: bool) -> None:
        owner = data.draw(st.sampled_from(self.processes()))
        self.count += 1
        self.world.put(owner, self.some_held(data, owner), large=large)

    @precondition(lambda self: self.count < OBJECTS_MAX)
    @rule(data=st.data(), large=st.booleans())
    def compute(self, data: st.DataObject, large: bool) -> None:
        worker, caller = (data.draw(st.sampled_from(self.processes())) for _ in range(2))
        self.count += 1
        self.world.compute(worker, caller, self.some_held(data, worker), large=large)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        found = self.one_with_something(data)
        others = [each for each in self.processes() if found and each != found[0]]
        if found and others:
            giver, subject = found
            if subject in self.world.process(giver).results:
                self.world.hold(giver, subject)  # As a session that shares a result.
            self.world.give(giver, data.draw(st.sampled_from(others)), subject)

    @rule(data=st.data())
    def hand_on(self, data: st.DataObject) -> None:
        """Pass on and drop, as fast as everything but the slow link allows."""
        found = self.one_with_something(data)
        others = [each for each in self.processes() if found and node_of(each) != node_of(found[0])]
        if found and others:
            giver, subject = found
            if subject in self.world.process(giver).results:
                self.world.hold(giver, subject)
            self.world.give(giver, data.draw(st.sampled_from(others)), subject)
            self.world.settle(self.slow)
            if self.world.process(giver).may_drop(subject):
                self.world.drop(giver, subject)
            self.world.settle(self.slow)

    @rule(data=st.data())
    def open_result(self, data: st.DataObject) -> None:
        found = self.one_with_something(data)
        if found:
            identity, subject = found
            for inner in self.world.process(identity).results.get(subject, ()):
                self.world.hold(identity, inner)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        found = self.one_with_something(data)
        if found and self.world.process(found[0]).may_drop(found[1]):
            self.world.drop(*found)

    @rule(data=st.data())
    def locate(self, data: st.DataObject) -> None:
        found = self.one_with_something(data)
        if found and found[1] in self.world.primary:
            self.world.locate(*found)

    @rule(data=st.data(), count=st.integers(1, 3))
    def deliver(self, data: st.DataObject, count: int) -> None:
        busy = sorted(link for link, waiting in self.world.links.items() if waiting)
        if busy:
            link = data.draw(st.sampled_from(busy))
            for _ in range(count):
                self.world.deliver(*link)

    @rule()
    def flow(self) -> None:
        self.world.settle(self.slow)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        ready = [each for each in self.processes() if self.world.process(each).mailbox]
        if ready:
            self.world.read(data.draw(st.sampled_from(ready)))

    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.world.living)).perform()

    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        pairs = [
            (node, identity)
            for node in self.world.living
            for identity in node.cluster.objects.bulk.wanted  # type: ignore[attr-defined]
        ]
        if pairs:
            self.world.pull(*data.draw(st.sampled_from(pairs)))

    @rule(data=st.data())
    def drop_copies(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.world.living))
        for identity, entry in node.objects.stored():
            for process in list(entry.pinned):
                node.objects.unpinned(process, [identity])
            node.objects.drop_copy(identity)

    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        """A node that means to leave, and may think better of it, sends home what it keeps."""
        data.draw(st.sampled_from(self.world.living)).cluster.objects.move_out()

    @precondition(lambda self: not self.world.dead)
    @rule(data=st.data(), chance=st.integers(0, 3))
    def die(self, data: st.DataObject, chance: int) -> None:
        if not chance:
            self.world.kill(data.draw(st.sampled_from(self.world.living)).process)

    @precondition(lambda self: self.world.dead)
    @rule(data=st.data())
    def notice(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.world.living))
        for victim in self.world.dead & node.cluster.members.keys():
            self.world.notice(node, victim)

    @precondition(lambda self: not self.world.dead)
    @rule(data=st.data(), chance=st.integers(0, 3))
    def part(self, data: st.DataObject, chance: int) -> None:
        if not chance:
            one, other = data.draw(st.permutations(self.world.living))[:2]
            self.world.part(one, other)

    @invariant()
    def what_is_referred_to_is_there(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.finish()


TestNodes = NodesMachine.TestCase
TestNodes.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_plain_value_travels_with_the_answer(trio: Trio) -> None:
    world = trio.world
    made = world.put(trio.a, [], large=False)
    world.give(trio.a, trio.b, made)
    world.settle()
    world.locate(trio.b, made)
    world.settle()
    assert world.process(trio.b).told[made] == PLAIN
    world.finish()
