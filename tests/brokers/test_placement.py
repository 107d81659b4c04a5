"""The global decision for one request.

What    choose(), shortage() and selectors. Each case is a table by hand.
Caller  pytest.
Never   runs a scheduler: tests/sim/test_cluster.py does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from zray.brokers.load import LoadTable, NodeLoad
from zray.brokers.placement import Locality, Request, chance, choose, shortage
from zray.errors import OptionError, RemoteProtocolError
from zray.protocol.labels import read_selector

ONE = 10_000
CPU = Request({"CPU": ONE})
MB = 1_000_000


def node(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(4)


OWN = node(1)


def cluster(*waits_us: int, own: bytes = OWN) -> LoadTable:
    """Return the table of a node: node 1 waits for the first of ``waits_us``, and so on."""
    table = LoadTable(own)
    for number, wait_us in enumerate(waits_us, 1):
        total = {"CPU": 4 * ONE}
        free_now = {} if wait_us else total
        row = NodeLoad(node(number), 1, 1, total, free_now, {}, 8 if wait_us else 0, wait_us)
        table.heard(row)
        if row.node == own:
            table.changed_here(row)
    return table


def change(table: LoadTable, number: int, **changes: object) -> None:
    row = table.rows[node(number)]
    changed = replace(row, revision=row.revision + 1, **changes)  # type: ignore[arg-type]
    table.heard(changed)
    if row.node == table.own:
        table.changed_here(changed)


# ------------------------------------------------------------------------------------ one request


def test_the_shortest_wait_wins():
    table = cluster(50_000, 20_000, 3_000, 40_000)
    assert {choose(CPU, table, seed=seed, now=0.0) for seed in range(20)} == {node(3)}


def test_this_node_wins_where_it_is_nearly_as_good():
    table = cluster(300, 0, 0)
    assert choose(CPU, table, seed=1, now=0.0) == OWN


def test_of_many_equal_nodes_all_are_chosen_and_none_much_more_often():
    table = cluster(90_000, 0, 0, 0, 0, 0, 0)
    chosen = Counter(choose(CPU, table, seed=seed, now=0.0) for seed in range(600))
    assert len(chosen) == 6
    assert max(chosen.values()) < 200


def test_the_same_seed_is_the_same_choice():
    table = cluster(90_000, 0, 0, 0, 0)
    assert choose(CPU, table, seed=5, now=0.0) == choose(CPU, table, seed=5, now=0.0)
    assert chance(1, b"x") == chance(1, b"x") != chance(2, b"x")


def test_missing_inputs_count_as_the_time_to_fetch_them():
    table = cluster(0, 8_000, 0)
    there = Locality(100 * MB, {node(2): 100 * MB})
    assert choose(CPU, table, locality=there, seed=1, now=0.0) == node(2)
    little = Locality(MB, {node(2): MB})
    assert choose(CPU, table, locality=little, seed=1, now=0.0) == OWN, "2 ms are less than 8"


def test_nobody_is_chosen_who_could_never_run_it():
    table = cluster(0, 0, 0)
    gpu = Request({"GPU": 2 * ONE})
    assert choose(gpu, table, seed=1, now=0.0) is None
    assert shortage(gpu, table) == "the largest node has too little: GPU 2 of 0"
    change(table, 3, total={"CPU": ONE, "GPU": 2 * ONE})
    assert choose(gpu, table, seed=1, now=0.0) == node(3)
    assert shortage(gpu, table) == ""


def test_one_whose_gpu_is_held_is_chosen_after_one_whose_gpu_is_free():
    table = cluster(0, 0, 0)
    gpu = Request({"GPU": ONE})
    change(table, 2, total={"GPU": ONE}, available={})
    change(table, 3, total={"GPU": ONE}, available={"GPU": ONE}, wait_us=5_000)
    assert choose(gpu, table, seed=1, now=0.0) == node(3)


def test_hard_affinity_is_that_node_or_none_and_soft_is_another_where_it_is_gone():
    table = cluster(0, 90_000, 0)
    hard, soft = Request({"CPU": ONE}, node=node(2)), Request({"CPU": ONE}, node=node(2), soft=True)
    assert choose(hard, table, seed=1, now=0.0) == choose(soft, table, seed=1, now=0.0) == node(2)
    table.died(node(2), 1)
    assert choose(hard, table, seed=1, now=0.0) is None
    assert "is not alive" in shortage(hard, table)
    assert choose(soft, table, seed=1, now=0.0) == OWN


def test_spread_takes_the_nodes_in_turn_and_the_full_ones_last():
    table = cluster(0, 0, 0, 0)
    spread = Request({"CPU": ONE}, strategy="SPREAD")
    turns = [choose(spread, table, seed=counter, now=0.0) for counter in range(8)]
    assert Counter(turns) == {node(number): 2 for number in range(1, 5)}
    change(table, 2, available={})
    turns = [choose(spread, table, seed=counter, now=0.0) for counter in range(8)]
    assert node(2) not in turns


def test_labels_select():
    table = cluster(90_000, 0, 0, 0)
    change(table, 2, labels={"zone": "a"})
    change(table, 3, labels={"zone": "b", "ssd": "yes"})

    def fits(**selector: str) -> set[int]:
        request = Request({"CPU": ONE}, read_selector(selector))
        return {number for number in range(1, 5) if request.may_run_on(table, node(number))}

    assert fits(zone="a") == {2}
    assert fits(zone="!a") == {1, 3, 4}
    assert fits(zone="in(a, b)") == {2, 3}
    assert fits(zone="!in(a)") == {1, 3, 4}
    assert fits(ssd="exists()") == {3}
    assert fits(ssd="!exists()", zone="!a") == {1, 4}
    nowhere = Request({"CPU": ONE}, read_selector({"zone": "c"}))
    assert choose(nowhere, table, seed=1, now=0.0) is None
    assert shortage(nowhere, table) == "none of 4 nodes has the labels it asks for"


@pytest.mark.parametrize("condition", ["", "!", "in()", "near(a)", "in(a", "exists(a)"])
def test_a_wrong_condition_on_a_label_is_refused(condition: str):
    with pytest.raises(OptionError, match=r"label"):
        read_selector({"zone": condition})


def test_an_unknown_strategy_is_refused():
    with pytest.raises(RemoteProtocolError):
        Request({}, strategy="EVERYWHERE")
