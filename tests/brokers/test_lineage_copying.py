"""Who keeps copies of a node's lineage, and what is sent to whom.

What    Examples, then any order of events: in the end every chosen node has all there is.
Caller  pytest.
Never   writes a file.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zray.brokers.lineage_copying import RETRY_S, Copying, EndLineage, SendLineage

OWN = b"own-\0\0\0\0"
NODES = [bytes([n]) * 4 + bytes(4) for n in range(1, 6)]
JOB, OTHER = "aa" * 8, "bb" * 8


def taken(copying: Copying) -> list[Any]:
    copying.check()
    commands, copying.commands = copying.commands, []
    return commands


def test_as_many_nodes_as_wanted_get_it_and_stay_chosen() -> None:
    copying = Copying(OWN, 2)
    copying.written(JOB, 0, 5, 0.0)
    for node in NODES[:2]:
        copying.node_joined(node, 0.0)
    assert set(taken(copying)) == {SendLineage(node, JOB, 0) for node in NODES[:2]}
    for node in NODES[2:]:
        copying.node_joined(node, 0.0)
    assert taken(copying) == []
    assert copying.backups.keys() == set(NODES[:2])


def test_one_message_at_a_time_and_the_rest_when_it_is_kept() -> None:
    copying = Copying(OWN, 1)
    copying.node_joined(NODES[0], 0.0)
    copying.written(JOB, 0, 5, 0.0)
    assert taken(copying) == [SendLineage(NODES[0], JOB, 0)]
    copying.written(JOB, 0, 9, 0.0)
    assert taken(copying) == []
    copying.kept(NODES[0], JOB, 5, 0.0)
    assert taken(copying) == [SendLineage(NODES[0], JOB, 5)]
    copying.kept(NODES[0], JOB, 9, 0.0)
    assert taken(copying) == []
    assert copying.behind() == 0


def test_another_node_gets_all_when_one_is_lost() -> None:
    copying = Copying(OWN, 1)
    copying.node_joined(NODES[0], 0.0)
    copying.written(JOB, 3, 5, 0.0)
    copying.kept(NODES[0], JOB, 5, 0.0)
    taken(copying)
    copying.node_joined(NODES[1], 0.0)
    copying.node_lost(NODES[0], 0.0)
    assert taken(copying) == [SendLineage(NODES[1], JOB, 3)]


def test_a_node_that_keeps_nothing_is_left_alone_for_a_while() -> None:
    copying = Copying(OWN, 1)
    copying.node_joined(NODES[0], 0.0)
    copying.written(JOB, 0, 5, 0.0)
    taken(copying)
    copying.kept(NODES[0], JOB, 0, 0.0)
    assert taken(copying) == []
    copying.tick(RETRY_S / 2)
    assert taken(copying) == []
    copying.tick(RETRY_S)
    assert taken(copying) == [SendLineage(NODES[0], JOB, 0)]


def test_who_has_a_copy_hears_of_the_end_of_the_job() -> None:
    copying = Copying(OWN, 1)
    copying.node_joined(NODES[0], 0.0)
    copying.written(JOB, 0, 5, 0.0)
    taken(copying)
    copying.job_ended(JOB)
    copying.job_ended(OTHER)
    assert taken(copying) == [EndLineage(NODES[0], JOB)]
    copying.kept(NODES[0], JOB, 5, 0.0)
    assert taken(copying) == []


@given(st.data())
def test_in_the_end_every_chosen_node_has_all(data: st.DataObject) -> None:
    copying = Copying(OWN, data.draw(st.integers(0, 3)))
    disks: dict[bytes, dict[str, int]] = {node: {} for node in NODES}
    ends: dict[str, int] = {}
    firsts: dict[str, int] = {}
    base = 0
    on_their_way: list[tuple[bytes, str, int | None]] = []
    now = 0.0

    def perform() -> None:
        for command in taken(copying):
            if isinstance(command, EndLineage):
                on_their_way.append((command.node, command.job, None))
                continue
            end = min(ends[command.job], command.position + 3)
            copying.sent(command.node, command.job, end - command.position)
            on_their_way.append((command.node, command.job, end))

    def deliver(node: bytes, job: str, end: int | None) -> None:
        if end is None:
            disks[node].pop(job, None)
        else:
            disks[node][job] = end
            copying.kept(node, job, end, now)

    for _ in range(data.draw(st.integers(0, 40))):
        now += 0.5
        event = data.draw(st.sampled_from(["join", "lose", "write", "end", "deliver", "tick"]))
        node, job = data.draw(st.sampled_from(NODES)), data.draw(st.sampled_from([JOB, OTHER]))
        if event == "join" and node not in copying.nodes:
            copying.node_joined(node, now)
        elif event == "lose" and node in copying.nodes:
            disks[node] = {}
            on_their_way = [each for each in on_their_way if each[0] != node]
            copying.node_lost(node, now)
        elif event == "write":
            first = firsts.setdefault(job, base)
            ends[job] = ends.get(job, first) + data.draw(st.integers(1, 5))
            copying.written(job, first, ends[job], now)
        elif event == "end":
            firsts.pop(job, None)
            base = max(base, ends.pop(job, 0))
            copying.job_ended(job)
        elif event == "deliver" and on_their_way:
            deliver(*on_their_way.pop(0))
        elif event == "tick":
            copying.tick(now)
        perform()
    while on_their_way:
        now += RETRY_S
        deliver(*on_their_way.pop(0))
        copying.tick(now)
        perform()
    assert copying.behind() == 0
    for node in copying.backups:
        assert {job: disks[node].get(job, 0) for job in ends} == ends
