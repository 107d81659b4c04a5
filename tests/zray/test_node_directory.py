"""What a node's directory tells those who come to it.

What    The ids of processes that are to connect.
Never   starts a node.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zray.errors import NodeStartError
from zray.node_directory import new_process
from zray.protocol.ids import node_id, node_of


def test_a_process_gets_an_id_of_the_node_that_has_told_of_itself_there(tmp_path: Path) -> None:
    node = node_id(b"home")
    (tmp_path / "node.json").write_text(json.dumps({"node": node.hex()}))
    made = {new_process(str(tmp_path)) for _ in range(20)}
    assert len(made) > 10
    assert {node_of(identity) for identity in made} == {node}
    assert node not in made


@pytest.mark.parametrize("said", [None, "", "[]", "{}", '{"node": "xyz"}', '{"node": 7}'])
def test_where_no_node_has_told_of_itself_the_error_says_what_to_start(
    tmp_path: Path, said: str | None
) -> None:
    if said is not None:
        (tmp_path / "node.json").write_text(said)
    with pytest.raises(NodeStartError, match=r"no node answers at .*zray-node start --dir"):
        new_process(str(tmp_path))
