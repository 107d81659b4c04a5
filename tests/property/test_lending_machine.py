"""Schedulers that lend each other workers, while messages cross, links end and nodes die.

What    A Hypothesis state machine: at every moment each open task of a node is queued there once
        or at one worker, resources balance at each node, and who has lent and borrowed what is
        consistent; at the end, when everything is let run, all tasks end and all workers are back.
Never   sleeps: time is a number that rules move.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.property.lending_world import KINDS, ONE, LendingWorld, SimulatedNode
from zray.brokers.scheduling import Claim


class LendingMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.world = LendingWorld()
        self.next_number = 1

    def some_node(self, data: st.DataObject) -> SimulatedNode:
        return self.world.nodes[data.draw(st.sampled_from(sorted(self.world.nodes)))]

    # -- clients ----------------------------------------------------------------------------------

    @rule(data=st.data(), kind=st.integers(0, len(KINDS) - 1), count=st.integers(1, 20))
    def submit(self, data: st.DataObject, kind: int, count: int) -> None:
        node = self.some_node(data)
        if not any(
            all(
                units <= each.resources.total.get(name, 0) for name, units in KINDS[kind][0].items()
            )
            for each in self.world.nodes.values()
        ):
            return
        first, self.next_number = self.next_number, self.next_number + count
        node.open.update((node.client, first, item) for item in range(count))
        row = [kind, first, count, 0, count, 0, KINDS[kind][1]]
        node.scheduler.submit(node.client, [row], [b""])
        node.perform()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        if not node.open:
            return
        client, first, item = data.draw(st.sampled_from(sorted(node.open)))
        removed, where = node.scheduler.cancel(client, first, item)
        assert removed == (where is None)
        if removed:
            node.open.remove((client, first, item))

    @rule(data=st.data())
    def force_cancel(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        given = [
            (client, first, item)
            for client, first, item in sorted(node.open)
            for worker in node.scheduler.workers.values()
            if any(work.holds(client, first, item) for work in worker.outstanding)
        ]
        if not given:
            return
        client, first, item = data.draw(st.sampled_from(given))
        _removed, worker = node.scheduler.cancel(client, first, item)
        assert worker is not None
        node.scheduler.forgive(worker, client, first, item)
        node.open.remove((client, first, item))
        node._to_worker(worker, "end")
        node.perform()

    @rule(data=st.data(), number=st.integers(1, 9), cpus=st.integers(0, 2), disk=st.booleans())
    def claim(self, data: st.DataObject, number: int, cpus: int, disk: bool) -> None:
        node = self.some_node(data)
        actor = node.id + b"act%05d" % number
        scheduler = node.scheduler
        if actor in node.actors or any(each.actor == actor for each in scheduler.claims):
            return
        amounts = {"CPU": cpus * ONE, "disk": ONE if disk else 0}
        amounts = {name: units for name, units in amounts.items() if units}
        scheduler.claim(Claim(actor, {"CPU": ONE, **amounts}, amounts, ()))
        scheduler.pump()
        node.perform()

    @rule(data=st.data(), number=st.integers(1, 9))
    def end_actor(self, data: st.DataObject, number: int) -> None:
        node = self.some_node(data)
        actor = node.id + b"act%05d" % number
        worker = node.actors.pop(actor, None)
        if worker is not None:
            node._to_worker(worker, "end")
        else:
            node.scheduler.withdraw(actor)
        node.perform()

    # -- workers ----------------------------------------------------------------------------------

    @rule(data=st.data())
    def worker_says_hello(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        waiting = [process for process, worker in node.workers.items() if not worker.ready]
        if waiting:
            process = data.draw(st.sampled_from(waiting))
            node.workers[process].ready = True
            node.scheduler.worker_ready(process)
            node.perform()

    @rule(data=st.data(), busy_us=st.sampled_from((1, 1000, 50_000)), count=st.integers(1, 30))
    def worker_finishes(self, data: st.DataObject, busy_us: int, count: int) -> None:
        node = self.some_node(data)
        busy = [
            process
            for process, worker in node.workers.items()
            if worker.ranges and not worker.blocked
        ]
        if busy:
            self.world.now += busy_us / 1e6
            self.world.finish(node, data.draw(st.sampled_from(busy)), count, busy_us)

    @rule(data=st.data())
    def worker_blocks_or_goes_on(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        busy = [process for process, worker in node.workers.items() if worker.ranges]
        if busy:
            process = data.draw(st.sampled_from(busy))
            worker = node.workers[process]
            worker.blocked = not worker.blocked
            node.tell(process, "blocked" if worker.blocked else "unblocked")

    @rule(data=st.data(), hurry=st.booleans())
    def worker_gives_back(self, data: st.DataObject, hurry: bool) -> None:
        node = self.some_node(data)
        if node.reclaims:
            self.world.give_back(node, hurry=hurry)

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        if node.workers:
            node.worker_died(data.draw(st.sampled_from(sorted(node.workers))), "test")

    @rule(data=st.data())
    def killed_worker_dies(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        if node.doomed:
            process = node.doomed.pop(0)
            if process in node.workers:
                node.worker_died(process, "killed")

    # -- the network, and time --------------------------------------------------------------------

    @precondition(lambda self: any(self.world.under_way.values()))
    @rule(data=st.data(), count=st.integers(1, 10))
    def messages_arrive(self, data: st.DataObject, count: int) -> None:
        ways = sorted(way for way, waiting in self.world.under_way.items() if waiting)
        way = data.draw(st.sampled_from(ways))
        for _ in range(min(count, len(self.world.under_way[way]))):
            self.world.deliver(way)

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.3, 10.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        for node in self.world.nodes.values():
            node.passes()

    @rule(data=st.data(), arrive=st.integers(0, 5))
    def a_link_ends(self, data: st.DataObject, arrive: int) -> None:
        ways = sorted(
            (one, other)
            for one in self.world.nodes
            for other in self.world.nodes[one].members
            if one < other
        )
        if ways:
            self.world.break_link(*data.draw(st.sampled_from(ways)), arrive)

    @rule()
    def links_are_made_again(self) -> None:
        self.join_all()

    def join_all(self) -> None:
        for node in self.world.nodes.values():
            for other in self.world.nodes.values():
                if other is not node and other.id not in node.members:
                    self.world.join(node, other)

    @precondition(lambda self: len(self.world.nodes) > 2)
    @rule(data=st.data(), arrive=st.integers(0, 5))
    def a_node_dies(self, data: st.DataObject, arrive: int) -> None:
        # One that has what the others may wait for stays.
        self.world.kill_node(data.draw(st.sampled_from(sorted(self.world.nodes))), arrive)

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def every_machine_is_sound(self) -> None:
        for node in self.world.nodes.values():
            node.scheduler.check()

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        for node in self.world.nodes.values():
            scheduler = node.scheduler
            handed_out = [
                work for worker in scheduler.workers.values() for work in worker.outstanding
            ]
            everywhere = [
                (work.task_class.client, work.first, item)
                for work in [*scheduler.queues.all_ranges(), *handed_out]
                for item in range(work.low, work.high)
            ]
            assert len(everywhere) == len(set(everywhere)), "a task in two places"
            assert set(everywhere) == node.open, "a task was lost, or runs after its end"

    def teardown(self) -> None:
        """When everything is let run, all tasks end, and all that was lent is back."""
        world = self.world
        self.join_all()
        for node in world.nodes.values():
            for actor, worker in list(node.actors.items()):
                del node.actors[actor]
                node._to_worker(worker, "end")
            for claim in list(node.scheduler.claims):
                if not claim.is_loan:
                    node.scheduler.withdraw(claim.actor)
            node.perform()
        if any("disk" in node.resources.total for node in world.nodes.values()):
            assert world.settle(), "what could run did not end"
            for node in world.nodes.values():
                node.scheduler.check()
                assert not node.scheduler.lending.loans, "lent, and nobody has it"
                assert node.resources.available == node.resources.total


TestLendingMachine = LendingMachine.TestCase
TestLendingMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
