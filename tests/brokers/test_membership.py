"""Who is a member: what the table of nodes, the links and this node's lease make of each other.

What    Dialling, losing, refusing the dead, and the end of a node that is dead to the others.
Caller  pytest.
Never   waits: time is a number.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from zray.brokers.host_leases import LEASE_MARGIN_S
from zray.brokers.membership import (
    REDIAL_S,
    Command,
    Dial,
    End,
    Forget,
    Lost,
    Membership,
    NodeRow,
)
from zray.protocol.roles import Role

OWN, A, B = (bytes([each]) * 4 + bytes(4) for each in (1, 2, 3))


def row(node: bytes, incarnation: int = 1, *, alive: bool = True) -> NodeRow:
    return NodeRow(node, incarnation, f"tcp://{node[0]}", alive)


def taken(membership: Membership) -> list[Command]:
    membership.check()
    commands, membership.commands = membership.commands, []
    return commands


def linked(membership: Membership, node: bytes, incarnation: int) -> None:
    membership.linked_to(node, incarnation, row(node).address)


def test_nodes_that_the_table_names_are_dialled_once_and_again_later() -> None:
    membership = Membership(OWN)
    membership.table_read([row(OWN), row(A)], 0.0)
    assert taken(membership) == [Dial(A, "tcp://2")]
    membership.tick(REDIAL_S / 2, 10.0)
    assert taken(membership) == []
    membership.tick(REDIAL_S, 10.0)
    assert taken(membership) == [Dial(A, "tcp://2")]


def test_a_linked_node_is_not_dialled_until_its_link_is_lost() -> None:
    membership = Membership(OWN)
    linked(membership, A, 1)
    membership.table_changed(row(A), 0.0)
    assert taken(membership) == []
    membership.link_lost(A, 5.0)
    membership.tick(5.0, 10.0)
    assert taken(membership) == []
    assert membership.is_on_its_way(A)
    membership.tick(5.0 + REDIAL_S, 10.0)
    assert taken(membership) == [Dial(A, "tcp://2")]


def test_a_node_that_is_declared_dead_is_lost_though_its_link_stands() -> None:
    membership = Membership(OWN)
    membership.table_changed(row(A), 0.0)
    linked(membership, A, 0)
    taken(membership)
    membership.table_changed(row(A, alive=False), 1.0)
    assert [type(each) for each in taken(membership)] == [Lost]
    membership.link_lost(A, 1.0)
    membership.tick(10.0, 20.0)
    assert taken(membership) == []
    assert not membership.is_on_its_way(A)


def test_a_dead_node_that_was_never_reached_is_dialled_no_more() -> None:
    membership = Membership(OWN)
    membership.table_changed(row(A), 0.0)
    taken(membership)
    membership.table_changed(row(A, alive=False), 1.0)
    assert taken(membership) == [Forget("tcp://2")]


def test_what_a_dead_incarnation_says_is_refused_and_a_new_one_is_heard() -> None:
    membership = Membership(OWN)
    assert membership.admits(A, 0)
    membership.table_changed(row(A, 2, alive=False), 0.0)
    assert [membership.admits(A, each) for each in (0, 1, 2, 3)] == [False, False, False, True]
    assert not membership.admits(OWN, 9)


def test_a_late_row_of_an_older_incarnation_changes_nothing() -> None:
    membership = Membership(OWN)
    membership.table_changed(row(A, 2, alive=False), 0.0)
    membership.table_changed(row(A, 1), 0.0)
    membership.table_changed(row(A, 2), 0.0)
    assert taken(membership) == []
    linked(membership, A, 3)
    membership.table_changed(row(A, 2, alive=False), 0.0)
    assert taken(membership) == []


def test_tables_that_were_lost_take_nobody_down() -> None:
    membership = Membership(OWN)
    membership.table_read([row(OWN), row(A)], 0.0)
    linked(membership, A, 1)
    taken(membership)
    membership.table_read([row(OWN)], 1.0)
    assert taken(membership) == []
    assert A in membership.linked


def test_a_node_ends_when_its_lease_has_been_over_for_long_and_not_before() -> None:
    membership = Membership(OWN, fence_s=5.0)
    membership.tick(100.0, 0.0)
    assert taken(membership) == []
    membership.joined(1)
    assert membership.lease_until == float("inf"), "nobody knows of it before"
    membership.tick(100.0, 102.0)
    assert membership.lease_until == 102.0 - LEASE_MARGIN_S
    membership.tick(106.9, 102.0)
    assert taken(membership) == []
    membership.tick(107.1, 102.0)
    membership.tick(108.0, 102.0)
    assert [type(each) for each in taken(membership)] == [End]


def test_a_session_that_begins_anew_does_not_make_the_lease_older() -> None:
    membership = Membership(OWN, fence_s=5.0)
    membership.joined(1)
    membership.tick(100.0, 102.0)
    membership.tick(103.0, 0.0)
    assert taken(membership) == []
    assert membership.lease_until == 102.0 - LEASE_MARGIN_S


def test_a_node_that_reads_of_its_own_death_ends() -> None:
    membership = Membership(OWN)
    membership.joined(2)
    membership.table_changed(row(OWN, 1, alive=False), 0.0)
    assert taken(membership) == []
    membership.table_changed(row(OWN, 2, alive=False), 0.0)
    membership.fenced("it said so")
    assert [type(each) for each in taken(membership)] == [End]


STEPS = st.one_of(
    st.tuples(st.just("row"), st.sampled_from((A, B, OWN)), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("link"), st.sampled_from((A, B)), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("lost"), st.sampled_from((A, B)), st.just(0), st.booleans()),
    st.tuples(st.just("read"), st.sampled_from((A, B)), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("tick"), st.just(A), st.integers(0, 3), st.booleans()),
)


@given(st.lists(STEPS, max_size=30))
def test_whatever_comes_in_whatever_order_the_dead_stay_dead(
    steps: list[tuple[str, bytes, int, bool]],
) -> None:
    membership, now = Membership(OWN), 0.0
    dead: set[tuple[bytes, int]] = set()
    for what, node, number, flag in steps:
        now += number / 2
        if what == "row":
            membership.table_changed(row(node, number, alive=flag), now)
            if not flag:
                dead |= {(node, each) for each in range(number + 1)}
        elif what == "read":
            dead = {(node, each) for each in range(number + 1)} if not flag else set()
            membership.table_read([row(node, number, alive=flag)], now)
        elif what == "link" and membership.admits(node, number):
            assert (node, number) not in dead
            linked(membership, node, number)
        elif what == "lost":
            membership.link_lost(node, now)
        elif what == "tick":
            membership.tick(now, now + 1)
        for command in taken(membership):
            if isinstance(command, Lost):
                membership.link_lost(command.node, now)
            elif isinstance(command, Dial):
                assert command.node != OWN
                assert command.node in membership.living
                assert command.node not in membership.linked


def test_clients_are_not_dialled_and_not_waited_for() -> None:
    membership = Membership(OWN)
    client = NodeRow(A, 1, "tcp://2", alive=True, role=Role.CLIENT)
    membership.table_read([row(OWN), client, row(B)], 0.0)
    assert taken(membership) == [Dial(B, "tcp://3")]
    whole = [membership.is_whole]
    linked(membership, B, 1)
    whole.append(membership.is_whole)
    assert whole == [False, True]
    membership.tick(REDIAL_S, 10.0)
    assert taken(membership) == []
    # It comes by itself; when it is dead it is lost like others.
    linked(membership, A, 1)
    membership.link_lost(A, 2.0)
    membership.tick(2.0 + REDIAL_S, 10.0)
    assert taken(membership) == []
    linked(membership, A, 1)
    membership.table_changed(NodeRow(A, 1, "tcp://2", alive=False, role=Role.CLIENT), 5.0)
    assert [type(each) for each in taken(membership)] == [Lost]


def test_who_listened_where_another_life_does_is_not_dialled_there_nor_that_one_hung_up_on() -> (
    None
):
    """A node begins another life, with the same port, while the GCS is away."""
    membership = Membership(OWN)
    linked(membership, A, 0)
    former = NodeRow(B, 1, row(A).address, alive=True)
    membership.table_changed(former, 0.0)
    membership.tick(2 * REDIAL_S, 10.0)
    membership.table_changed(replace(former, alive=False), 0.0)
    assert taken(membership) == []


def test_an_address_is_dialled_as_long_as_one_who_lives_is_to_be_reached_there() -> None:
    membership = Membership(OWN)
    later = NodeRow(B, 1, row(A).address, alive=True)
    membership.table_read([row(A), later], 0.0)
    assert taken(membership) == [Dial(A, later.address), Dial(B, later.address)]
    membership.table_changed(row(A, alive=False), 0.0)
    assert taken(membership) == []
    membership.table_changed(replace(later, alive=False), 0.0)
    assert taken(membership) == [Forget(later.address)]
