"""The way from what waits to what it waits for: order, deadlocks, bounds.

What    WhyWalk with explanations that the test makes up.
Never   starts a process.
"""

import pytest

from zray.brokers.why_walk import Look, Place, WhyWalk

NODE, OTHER = b"node-one", b"node-two"


def place(name, about=b"", node=NODE):
    return Place(node, name, about)


def found(text):
    return {"state": "S", "text": text}


def walk_over(waits_for, begin, steps_max=20):
    """Explain each place by what the dict says it waits for; return the result."""
    walk = WhyWalk(place(begin), steps_max=steps_max)
    while walk.commands:
        look = walk.commands.pop(0)
        name = look.place.identity
        following = [place(each) for each in waits_for.get(name, ())]
        walk.took(look.step, found(name.decode()), following)
        walk.check()
    assert walk.is_over
    return [(row["depth"], bytes.fromhex(row["id"]), row["state"]) for row in walk.result()]


def test_it_asks_at_the_node_that_knows_and_not_twice():
    walk = WhyWalk(place(b"a"), steps_max=5)
    assert walk.commands == [Look(0, place(b"a"))]
    walk.took(0, found("a"), [place(b"b", node=OTHER)])
    assert walk.commands[1:] == [Look(1, place(b"b", node=OTHER))]
    walk.took(0, found("again"), [place(b"c")])
    assert len(walk.commands) == 2
    assert not walk.is_over


def test_steps_come_behind_what_they_explain():
    ways = {b"a": [b"b", b"c"], b"b": [b"d"]}
    assert walk_over(ways, b"a") == [
        (0, b"a", "S"),
        (1, b"b", "S"),
        (2, b"d", "S"),
        (1, b"c", "S"),
    ]


def test_what_leads_back_to_a_step_above_is_a_deadlock():
    ways = {b"a": [b"b"], b"b": [b"c"], b"c": [b"b"]}
    rows = walk_over(ways, b"a")
    assert rows[-1] == (3, b"b", "DEADLOCK")
    assert [state for _, _, state in rows].count("DEADLOCK") == 1


def test_what_was_said_on_another_way_is_no_deadlock():
    ways = {b"a": [b"b", b"c"], b"b": [b"d"], b"c": [b"d"]}
    assert walk_over(ways, b"a")[-1] == (2, b"d", "SEEN")


def test_it_ends_however_long_the_way_is():
    ways = {bytes([at]): [bytes([at + 1])] for at in range(1, 200)}
    rows = walk_over(ways, b"\x01", steps_max=7)
    assert len(rows) == 8
    assert rows[-1][2] == "CUT"


@pytest.mark.parametrize("late", [True, False])
def test_a_node_that_says_nothing_ends_its_way_with_the_reason(late):
    walk = WhyWalk(place(b"a"), steps_max=5)
    walk.failed(0, "node one: it has not answered")
    if late:
        walk.took(0, found("too late"), [place(b"b")])
    assert walk.is_over
    (row,) = walk.result()
    assert row["state"] == "UNEXPLAINED"
    assert row["text"] == "node one: it has not answered"
