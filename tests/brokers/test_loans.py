"""Rows of the load table as the GCS tells them: whose count, and when."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zray.brokers.cluster import Cluster
from zray.brokers.load import ALIVE, DRAINING, LoadTable, NodeLoad
from zray.brokers.loans import Loans
from zray.brokers.membership import Membership, NodeRow
from zray.errors import RemoteProtocolError
from zray.protocol.packing import packb, unpackb
from zray.protocol.roles import Role

OWN, A, B = b"OWN_" + bytes(4), b"AAAA" + bytes(4), b"BBBB" + bytes(4)
CPU = {"CPU": 40_000}


class World:
    """What Loans sees of its node and cluster when rows come."""

    def __init__(self) -> None:
        self.table = LoadTable(OWN)
        borrowing = SimpleNamespace(table=self.table, heard=self.table.heard)
        node: Any = SimpleNamespace(
            process=OWN, now=0.0, scheduler=SimpleNamespace(borrowing=borrowing)
        )
        self.cluster: Any = SimpleNamespace(node=node, members={}, membership=Membership(OWN))
        self.loans = Loans(cast(Cluster, self.cluster))

    def joins(self, node: bytes, role: Role = Role.NODE, revision: int = 1) -> None:
        self.cluster.members[node] = SimpleNamespace(role=role)
        if role is Role.NODE:
            self.loans.node_joined(node, row(node, revision).fields())

    def told(self, *rows: NodeLoad) -> None:
        self.loans.published({each.node: packb(each.fields()) for each in rows})

    def revisions(self) -> dict[bytes, int]:
        return {node: each.revision for node, each in self.table.rows.items()}


def row(node: bytes, revision: int, incarnation: int = 1) -> NodeLoad:
    return NodeLoad(node, incarnation, revision, CPU, CPU)


@pytest.fixture
def world() -> World:
    return World()


def test_newer_rows_of_members_count_and_older_ones_do_not(world: World) -> None:
    world.joins(A)
    world.told(row(A, 5), row(OWN, 9))
    world.told(row(A, 4))
    assert world.revisions() == {A: 5}


def test_what_was_told_of_a_node_before_it_was_a_member_is_not_lost(world: World) -> None:
    world.told(row(A, 7))
    assert not world.table.rows
    world.joins(A, revision=3)
    assert world.revisions() == {A: 7}


def test_nobody_asks_a_client_for_workers_whatever_it_says_of_itself(world: World) -> None:
    world.joins(B, Role.CLIENT)
    world.told(row(B, 5))
    assert not world.table.rows


def test_rows_of_a_dead_life_and_rows_in_another_s_name_do_not_count(world: World) -> None:
    world.joins(A)
    world.cluster.membership.table_changed(NodeRow(A, 1, "tcp://a:1", alive=False), 0.0)
    world.told(row(A, 9))
    world.loans.published({A: packb(row(B, 9, incarnation=2).fields())})
    assert world.revisions() == {A: 1}
    world.told(row(A, 1, incarnation=2))
    assert world.table.rows[A].incarnation == 2


def test_a_malformed_row_is_said_to_be_one(world: World) -> None:
    world.joins(A)
    with pytest.raises(RemoteProtocolError):
        world.loans.published({A: packb([A, 1])})


def test_a_node_that_leaves_or_stays_after_all_says_so_though_nothing_else_has_changed() -> None:
    given: list[Any] = []
    states = [ALIVE, ALIVE, DRAINING, DRAINING, ALIVE]
    rows = [replace(row(OWN, 1), state=each) for each in states]
    reports = iter(rows)
    scheduler = SimpleNamespace(
        resources=SimpleNamespace(offered=CPU),
        borrowing=SimpleNamespace(report=lambda _now: next(reports)),
    )
    session = SimpleNamespace(set_load=lambda packed: given.append(unpackb(packed)))
    gcs = SimpleNamespace(is_joined=True, session=session)
    node: Any = SimpleNamespace(process=OWN, now=0.0, scheduler=scheduler)
    loans = Loans(cast(Cluster, SimpleNamespace(node=node, gcs=gcs)))
    for _ in rows:
        node.now += 1.0
        loans._report_load(node.now)
    assert given == [unpackb(packb(each.fields())) for each in (rows[0], rows[2], rows[4])]
