"""The global decision: one request, a node's queue, and stealing.

What    choose(), shortage() and selectors; spill() for each of its reasons and for nothing else;
        no herd; steal_from() and give(). Each case is a table by hand.
Caller  pytest.
Never   runs a scheduler: tests/sim/test_cluster.py does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from zray.brokers.handover import HOPS_MAX, Handover, Waiting, give, spill, steal_from
from zray.brokers.load import DRAINING, LoadTable, NodeLoad
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


# -------------------------------------------------------------------------------- a node's queue


def handed(table: LoadTable, *queue: Waiting, now: float = 0.0) -> list[Handover]:
    handovers = spill(queue, table, counter=1, now=now)
    for index, work in enumerate(queue):
        assert sum(each.count for each in handovers if each.index == index) <= work.count
    table.check()
    return handovers


def test_a_node_alone_keeps_everything():
    assert handed(cluster(500_000), Waiting(CPU, 100, 1_000)) == []


def test_a_node_that_is_not_overloaded_keeps_everything():
    assert handed(cluster(9_000, 0, 0), Waiting(CPU, 36, 1_000)) == []


def test_an_overloaded_node_hands_over_what_levels_the_queues():
    table = cluster(24_000, 0, 0, 0)
    moved = Counter[bytes]()
    for each in handed(table, Waiting(CPU, 96, 1_000)):
        moved[each.node] += each.count
    assert moved == {node(2): 24, node(3): 24, node(4): 24}
    change(table, 1, wait_us=10_500)
    assert handed(table, Waiting(CPU, 42, 1_000))
    change(table, 1, wait_us=6_500)
    assert handed(table, Waiting(CPU, 26, 1_000)) == [], "what was sent counts at once"


def test_an_overloaded_node_among_its_like_keeps_everything():
    assert handed(cluster(40_000, 40_000, 39_800), Waiting(CPU, 160, 1_000)) == []


def test_there_is_no_herd_to_the_idle_node():
    waits = [40_000] * 29 + [0]
    got_us = 0.0
    for own in range(1, 30):
        table = cluster(*waits, own=node(own))
        for each in handed(table, Waiting(CPU, 16, 10_000)):
            assert each.node == node(30)
            got_us += each.count * 10_000
    full_us = 10_000 * 4
    assert 0.5 * full_us < got_us < 1.6 * full_us


def test_nobody_is_filled_beyond_what_would_make_it_hand_over_itself():
    table = cluster(900_000, 0, 0)
    handed(table, Waiting(CPU, 3_600, 1_000))
    for number in (2, 3):
        assert 9_000 < table.wait_us(node(number), 0.0) < 12_000


def test_asking_again_before_the_next_publication_is_no_second_chance():
    waits = [40_000] * 29 + [0]
    for own in range(1, 30):
        table = cluster(*waits, own=node(own))
        for step in range(10):
            moved = handed(table, Waiting(CPU, 16, 10_000), now=step * 1e-3)
            assert not moved or step == 0
            if moved:
                change(table, own, wait_us=table.rows[node(own)].wait_us - 2_500)


def test_the_end_of_the_queue_goes_first():
    table = cluster(20_000, 0)
    moved = handed(table, Waiting(CPU, 40, 1_000), Waiting(CPU, 40, 1_000))
    assert {each.index for each in moved} == {1}


def test_what_was_handed_over_too_often_stays():
    assert handed(cluster(90_000, 0), Waiting(CPU, 90, 1_000, hops=HOPS_MAX)) == []
    assert handed(cluster(90_000, 0), Waiting(CPU, 90, 1_000, hops=HOPS_MAX - 1))


def test_nothing_is_moved_for_less_than_a_message_costs():
    moved = handed(cluster(12_000, 0, 0, 0), Waiting(CPU, 480, 100))
    assert moved
    assert all(each.count >= 5 for each in moved)


def test_what_cannot_run_here_goes_where_it_can_also_when_nobody_is_overloaded():
    table = cluster(0, 0, 0, 0)
    change(table, 3, total={"CPU": ONE, "GPU": ONE}, available={"GPU": ONE})
    change(table, 4, total={"CPU": ONE, "GPU": ONE}, available={"GPU": ONE})
    gpu = Waiting(Request({"GPU": ONE}), 40, 1_000)
    moved = handed(table, Waiting(CPU, 4, 1_000), gpu)
    assert sum(each.count for each in moved) == 40
    assert {each.node for each in moved} == {node(3), node(4)}
    nowhere = Waiting(Request({"TPU": ONE}), 1, 1_000)
    assert handed(table, nowhere) == []


def test_a_range_goes_to_its_inputs_once():
    table = cluster(0, 0, 0)
    far = Locality(100 * MB, {node(3): 100 * MB})
    work = Waiting(CPU, 4, 1_000, far)
    assert handed(table, work) == [Handover(0, 4, node(3))]
    assert handed(cluster(0, 0, 0), replace(work, hops=1)) == []
    near = Waiting(CPU, 4, 1_000, Locality(100 * MB, {OWN: 100 * MB}))
    assert handed(table, near) == []


def test_an_overloaded_node_keeps_what_has_its_inputs_here():
    here = Locality(1_000 * MB, {OWN: 1_000 * MB})
    assert handed(cluster(40_000, 0), Waiting(CPU, 160, 1_000, here)) == []


def test_a_spread_range_is_dealt_out_at_once_and_evenly():
    spread = Waiting(Request({"CPU": ONE}, strategy="SPREAD"), 10, 1_000)
    moved = handed(cluster(0, 0, 0), spread)
    assert sorted(each.count for each in moved) == [3, 3, 4]
    assert {each.node for each in moved} == {OWN, node(2), node(3)}
    assert handed(cluster(90_000, 0, 0), replace(spread, hops=HOPS_MAX)) == []


def test_a_node_that_drains_hands_over_all_it_has():
    table = cluster(1_000, 0, 0)
    change(table, 1, state=DRAINING)
    moved = handed(table, Waiting(CPU, 4, 1_000), Waiting(CPU, 8, 1_000, hops=HOPS_MAX))
    assert sum(each.count for each in moved) == 12
    assert OWN not in {each.node for each in moved}


# -------------------------------------------------------------------------------------- stealing


def test_an_idle_node_asks_one_with_a_queue_and_the_longest_most_often():
    table = cluster(0, 90_000, 0, 30_000, 1_000)
    asked = Counter()
    for seed in range(400):
        found = steal_from(table, seed=seed, now=0.0)
        assert found is not None
        asked[found[0]] += 1
        assert 0 < found[1] <= (90_000 + 30_000) * 4
    assert asked.keys() == {node(2), node(4)}
    assert asked[node(2)] > 2 * asked[node(4)]


def test_where_nobody_has_a_queue_there_is_nothing_to_steal():
    assert steal_from(cluster(0, 0, 1_500), seed=1, now=0.0) is None


def test_a_thief_gets_what_it_asked_but_never_more_than_half():
    queue = [Waiting(CPU, 20, 1_000, hops=HOPS_MAX), Waiting(CPU, 20, 1_000)]
    table = cluster(10_000, 0)
    assert give(queue, node(2), 5_000, table, now=0.0) == [Handover(1, 5, node(2))]
    more = give(queue, node(2), 900_000, table, now=0.0)
    assert sum(each.count for each in more) == 20
    assert give([Waiting(CPU, 1, 90_000)], node(2), 1, table, now=0.0) == [
        Handover(0, 1, node(2))
    ], "half of one long task is none, and the thief is idle"


def test_a_thief_gets_only_what_it_can_run_and_what_is_not_bound():
    bound = Waiting(Request({"CPU": ONE}, node=OWN), 20, 1_000)
    gpu = Waiting(Request({"GPU": ONE}), 20, 1_000)
    far = Waiting(CPU, 20, 1_000, Locality(1_000 * MB, {OWN: 1_000 * MB}))
    table = cluster(20_000, 0)
    assert give([bound, gpu, far], node(2), 10_000, table, now=0.0) == []
    assert give([Waiting(CPU, 20, 1_000)], node(9), 10_000, table, now=0.0) == []
