"""Objects that move home from a node that leaves: what their values refer to stays held.

What    A home's directory that is told TAKE_OVER.
Never   moves a byte.
"""

from __future__ import annotations

from zray.brokers.directory import Directory
from zray.brokers.sharing import ReleaseAt
from zray.protocol.ids import node_id, object_id, process_id

HOME, LEAVING = node_id(b"home"), node_id(b"away")
DRIVER = process_id(HOME, b"driv")
NEAR, FAR = process_id(HOME, b"near"), process_id(LEAVING, b"-far")


def test_a_home_takes_over_references_of_the_second_execution_though_it_has_those_of_the_first():
    directory = Directory(HOME)
    directory.node_joined(LEAVING)
    for process in (DRIVER, NEAR):
        directory.process_joined(process)
    result, first, second = object_id(DRIVER, 1), object_id(NEAR, 1), object_id(FAR, 1)
    directory.hold_for(result, [first])
    directory.stored_at(LEAVING, result, -1, DRIVER)
    for _ in range(2):  # The second time nothing is new.
        directory.evacuation.take_over(LEAVING, [(result, [second])])
        assert directory.entries[result].contained == [first, second]
        assert result in directory.entries[second].holders
    assert directory.commands.count(ReleaseAt(LEAVING, result)) == 1
    directory.check()
