"""The tables that nodes share: several nodes' GcsTables on one replica, over a network made here.

What    Who gets a name when two want it, what becomes of what was asked when the GCS dies, code
        and job details found without the job's home, answers that wait for a link.
Caller  pytest.
Never   opens a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.brokers.gcs.gcs_world import World
from zray.brokers.cluster import Cluster
from zray.brokers.code_elsewhere import CodeElsewhere
from zray.brokers.dispatcher import Dispatcher
from zray.brokers.gcs.catalog import Catalog
from zray.brokers.gcs.tables import code_hash
from zray.brokers.gcs_tables import GcsTables
from zray.brokers.membership import Membership, NodeRow
from zray.brokers.scheduling import JOB_VARIABLE
from zray.errors import ClusterError, GcsError, GcsUnavailableError
from zray.protocol.ids import object_id, process_id
from zray.protocol.roles import Role

A, B = b"AAAA" + bytes(4), b"BBBB" + bytes(4)


class Side:
    """One node, as far as shared tables see of it."""

    def __init__(self, world: World, node: bytes, folder: Path) -> None:
        self.world = world
        self.identity = node
        self.driver = process_id(node, b"drv\0")
        self.client = world.client(node)
        job = {"job": self.driver.hex(), "path": ["/x"], "namespace": ""}
        self.node: Any = SimpleNamespace(
            process=node,
            now=world.now,
            gcs=Catalog(str(folder), node=node, durable=False, resources={}),
            dispatcher=Dispatcher(shared_hosts=1),
            processes=SimpleNamespace(jobs={self.driver.hex(): job}, drivers={}),
        )
        cluster: Any = SimpleNamespace(
            node=self.node, members={}, membership=Membership(node), role=Role.NODE
        )
        self.cluster: Any = cluster
        self.tables = GcsTables(cast(Cluster, cluster), self.client.session)
        self.client.join(node)
        self.told: list[Any] = []
        self.made = 0

    def done(self, result: Any, error: Exception | None) -> None:
        self.told.append(error if error is not None else result)

    def answer(self) -> Any:
        """Let everything arrive; returns the one answer that was given."""
        self.world.settle()
        (told,) = self.told
        self.told.clear()
        return told

    def details(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "namespace": "space",
            "class": "Class",
            "methods": {"add": [1]},
            "pending": -1,
            "restarts": 0,
            "detached": False,
            "isolation": "process",
            "env": {JOB_VARIABLE: self.driver.hex()},
            "placement": {},
            "resources": {},
        }

    def register(self, name: str) -> bytes:
        """Begin a named actor as brokers/node_calls.py does; returns its id."""
        self.made += 1
        actor = object_id(self.driver, self.made)
        details = self.details(name)

        def registered(is_free: bool, error: Exception | None) -> None:
            if is_free:
                self.node.dispatcher.create(self.driver, actor, b"class", details, b"")
            self.done(is_free, error)

        self.tables.register_actor(actor, b"class", self.driver.hex(), details, registered)
        return actor

    def ends(self, actor: bytes, *, keeps_name: bool = False) -> None:
        self.node.dispatcher.kill(actor, b"", no_restart=True)
        self.node.gcs.actor_died(actor)
        self.tables.actor_died(actor, keeps_name=keeps_name)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(str(tmp_path / "gcs"))
    yield made
    made.close()


@pytest.fixture
def sides(world: World, tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """Return two nodes with a link between them."""
    one, two = Side(world, A, tmp_path / "a"), Side(world, B, tmp_path / "b")
    one.cluster.members[B] = two.cluster.members[A] = object()
    yield one, two
    for side in (one, two):
        side.node.gcs.close(0.0)


def test_of_two_that_want_a_name_at_once_one_gets_it(sides: tuple[Side, Side]) -> None:
    one, two = sides
    one.register("n")
    two.register("n")
    assert sorted([one.answer(), *two.told]) == [False, True]


def test_a_name_is_free_again_when_its_actor_has_ended(sides: tuple[Side, Side]) -> None:
    one, two = sides
    actor = one.register("n")
    assert one.answer() is True
    two.tables.find_actor("n", "space", two.done)
    assert two.answer() == [actor, {"class": "Class", "methods": {"add": [1]}, "pending": -1}]
    one.ends(actor)
    two.tables.find_actor("n", "space", two.done)
    assert two.answer() is None
    two.register("n")
    assert two.answer() is True


def test_a_name_that_a_dead_actors_host_may_not_know_of_is_given_when_it_has_stopped(
    sides: tuple[Side, Side],
) -> None:
    one, two = sides
    actor = one.register("n")
    assert one.answer() is True
    one.ends(actor, keeps_name=True)
    two.tables.find_actor("n", "space", two.done)
    assert two.answer() is None
    two.tables.actor_names(None, two.done)
    assert two.answer() == []
    two.register("n")
    for _ in range(3):
        two.node.now += 0.2
        two.tables.tick(two.node.now)
        two.world.settle()
    assert two.told == []
    one.tables.free_name(actor)
    two.world.settle()
    two.node.now += 0.2
    two.tables.tick(two.node.now)
    assert two.answer() is True


def test_names_of_all_nodes_are_listed_by_namespace(sides: tuple[Side, Side]) -> None:
    one, two = sides
    one.register("a")
    two.register("b")
    assert one.answer() is True
    for namespace, found in ((None, 2), ("space", 2), ("other", 0)):
        one.tables.actor_names(namespace, one.done)
        assert len(one.answer()) == found
    assert two.answer() is True


def test_who_asks_an_actors_home_before_it_knows_that_the_actor_is_registered_waits(
    sides: tuple[Side, Side],
) -> None:
    one, _two = sides
    actor = one.register("n")
    seen: list[bool] = []
    one.tables.after_registration(actor, lambda: seen.append(actor in one.node.dispatcher.actors))
    assert seen == []
    assert one.answer() is True
    one.tables.after_registration(actor, lambda: seen.append(True))
    assert seen == [True, True]


def test_an_actor_of_a_node_that_is_not_linked_yet_is_answered_when_it_is(
    sides: tuple[Side, Side],
) -> None:
    one, two = sides
    actor = one.register("n")
    assert one.answer() is True
    two.cluster.members.clear()
    two.cluster.membership.table_changed(NodeRow(A, 1, "tcp://a", True), 0.0)
    two.tables.find_actor("n", "space", two.done)
    two.world.settle()
    assert two.told == []
    two.cluster.members[A] = object()
    two.tables.tick(two.node.now + 0.1)
    assert two.answer()[0] == actor


@pytest.mark.parametrize("is_dead", [True, False])
def test_an_actor_whose_home_stays_out_of_reach_is_not_waited_for_without_end(
    sides: tuple[Side, Side], is_dead: bool
) -> None:
    one, two = sides
    one.register("n")
    assert one.answer() is True
    two.cluster.members.clear()
    two.cluster.membership.table_changed(NodeRow(A, 1, "tcp://a", True), 0.0)
    two.tables.find_actor("n", "space", two.done)
    two.world.settle()
    if is_dead:
        two.cluster.membership.table_changed(NodeRow(A, 1, "tcp://a", False), 0.0)
        two.tables.tick(two.node.now + 0.1)
        assert two.answer() is None
    else:
        two.tables.tick(two.node.now + 60)
        assert isinstance(two.answer(), ClusterError)


def test_a_registration_that_was_not_answered_in_time_holds_no_name(
    world: World, sides: tuple[Side, Side]
) -> None:
    one, two = sides
    world.takes = lambda _peer: False
    one.register("n")
    world.settle()  # It has happened, and the answer is lost.
    one.client.is_connected = False
    world.passes(31.0)
    assert [type(each) for each in one.told] == [GcsUnavailableError]
    one.told.clear()
    one.client.is_connected = True
    world.takes = lambda _peer: True
    world.passes(5.0)
    # Its node was declared dead in the meantime: either way the name is free.
    two.tables.actor_names(None, two.done)
    world.settle()
    assert [each for each in two.told if isinstance(each, list)] == [[]]


def test_key_values_are_those_of_the_one_table(sides: tuple[Side, Side]) -> None:
    one, two = sides

    def kv(side: Side, op: str, *arguments: Any) -> Any:
        side.tables.kv(op, list(arguments), side.done)
        return side.answer()

    assert kv(one, "put", "n", b"k", b"1", True) is True
    assert kv(two, "put", "n", b"k", b"2", False) is False
    assert kv(two, "get", "n", b"k") == b"1"
    for number in range(1500):  # More than one page.
        one.tables.kv("put", ["n", b"p%04d" % number, b"", True], lambda *_done: None)
    assert kv(two, "keys", "n", b"p") == [b"p%04d" % number for number in range(1500)]
    assert kv(two, "delete", "n", b"k") is True
    assert kv(one, "exists", "n", b"k") is False
    assert isinstance(kv(one, "get", "n", b"k" * 600), GcsError)
    assert isinstance(kv(one, "steal", "n", b"k"), Exception)


def test_code_and_where_it_runs_are_found_without_the_jobs_home(
    world: World, sides: tuple[Side, Side]
) -> None:
    one, two = sides
    code = bytes(range(256)) * 10_000
    one.tables.job_started(one.driver, 7, "program", 5.0)
    one.tables.put_function(code_hash(code), code)
    one.client.session.flush()
    world.settle()
    two.tables.get_function(code_hash(code), one.driver.hex(), two.done)
    assert two.answer() == [code, one.node.processes.jobs[one.driver.hex()]]
    one.tables.job_ended(one.driver, "succeeded", 6.0)
    world.settle()
    two.tables.get_function(code_hash(b"other"), one.driver.hex(), two.done)
    assert two.answer() == [None, None]
    assert one.tables.failures == 0


def test_a_node_that_dies_takes_its_names_and_jobs_with_it(
    world: World, sides: tuple[Side, Side]
) -> None:
    one, two = sides
    one.register("n")
    assert one.answer() is True
    one.tables.job_started(one.driver, 7, "program", 5.0)
    world.settle()
    world.replica.disconnected(A)
    world.run()
    two.tables.find_actor("n", "space", two.done)
    assert two.answer() is None
    two.tables.get_function(b"f" * 16, one.driver.hex(), two.done)
    assert two.answer() == [None, None]


def test_a_node_that_joins_again_tells_all_that_is_true_there(
    world: World, sides: tuple[Side, Side]
) -> None:
    one, two = sides
    actor = one.register("n")
    assert one.answer() is True
    one.node.processes.drivers[one.driver] = SimpleNamespace(pid=7, details={})
    world.store.close(sync=False)
    world.folder += "-new"  # The GCS has lost its files.
    world.store = None
    world.open()
    world.passes(1.0)
    assert len(one.client.lost) == 1
    one.client.join(A)
    one.tables.joined(world.now)
    world.settle()
    two.tables.find_actor("n", "space", two.done)
    world.settle()
    assert two.told[-1][0] == actor
    two.tables.get_function(b"f" * 16, one.driver.hex(), two.done)
    world.settle()
    assert two.told[-1][1]["path"] == ["/x"]


def test_a_jobs_home_that_does_not_send_code_is_passed_by() -> None:
    """After a second, and at once where there is no link; a late answer changes nothing."""
    asked: list[tuple[bytes, str]] = []
    arrived: list[bytes] = []
    answers: list[Any] = []

    def get_function(function: bytes, job: str, done: Any) -> None:
        asked.append((function, job))
        answers.append(done)

    job = process_id(A, b"drv\0").hex()
    node = SimpleNamespace(
        process=B,
        now=10.0,
        shared_tables=SimpleNamespace(get_function=get_function),
        processes=SimpleNamespace(jobs={}),
        code_arrived=lambda function, _code: arrived.append(function),
    )
    cluster: Any = SimpleNamespace(node=node, members={}, gcs=object())
    code = CodeElsewhere(cluster)
    code.fetch(b"f", job)
    code.fetch(b"f", job)
    assert asked == [(b"f", job)]
    answers[0]([b"code", {"job": job}], None)
    answers[0]([b"code", {"job": job}], None)
    assert arrived == [b"f"]
    assert node.processes.jobs == {job: {"job": job}}
    code.sweep()
    assert len(asked) == 1, "it has come"
