"""Keys of a live cluster: made, changed and taken away while tasks run.

What    Every key of the cluster is rotated under an actor on another node that must not notice; one
        node of three is shut out, and the others go on without it; a new key reaches nodes that
        have never seen the folder it was made in.
Caller  pytest.
Never   leaves the loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import zray
from tests.waiting import wait_until
from zray.net.curve import ClusterKeys, Role
from zray.observer import Observer
from zray.testing import Cluster, TestNode


@zray.remote
class Counter:
    """Counts calls: a restart would begin anew."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, data: bytes) -> tuple[int, int]:
        """Return how often it was called, and how much it was given."""
        self.count += 1
        return self.count, len(data)


def _keys(*arguments: str) -> Any:
    """Run `zray-node keys` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "zray.cli", "keys", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _version(node: TestNode) -> int:
    with Observer(node.directory) as observer:
        return int(observer.ask("cluster")["security"]["roster_version"])


def _await_version(cluster: Cluster, head: ClusterKeys) -> None:
    head.reload()
    wait_until(
        lambda: all(_version(node) == head.roster.version for node in cluster.nodes),
        20,
        what="all nodes to know the keys",
    )


def _log(node: TestNode) -> str:
    return Path(node.directory, "node.log").read_text()


def as_class(decorated: Any) -> Any:
    return decorated


def _says(node: Any, text: str) -> bool:
    return text in _log(node)


def test_all_keys_rotate_and_nobody_notices(cluster: Cluster) -> None:
    cluster.add_node()
    other = cluster.add_node(resources={"far": 1})
    folder = str(cluster._keys)
    head = ClusterKeys.load(folder)
    first = head.pair(Role.NODE).public
    with zray.init(cluster.address):
        counter = as_class(Counter).options(resources={"far": 1}).remote()
        large = zray.put(bytes(3 << 20))
        calls = 0

        def call() -> None:
            nonlocal calls
            calls += 1
            assert zray.get(counter.add.remote(large), timeout=30) == (calls, 3 << 20)

        call()
        for command in (["add"], ["activate"], ["retire", "head"]):
            _keys(*command, "--dir", folder)
            _await_version(cluster, head)
            call()
        # The other node: its new key is made on the head, and copied over its file.
        made = _keys("issue", "node-1", "--out", f"{folder}/again", "--dir", folder)
        own = cluster._key_folders[0]
        os.replace(f"{made['directory']}/keys.json", f"{own}/keys.json")
        assert _keys("retire", "node-1", "--dir", folder)["retired"]
        _await_version(cluster, head)
        call()
        # Both ports of both nodes show the new keys: who comes now finds them, by nothing else.
        cluster.add_node(resources={"new": 1})
        square = zray.remote(lambda number: number * number)
        assert zray.get(square.options(resources={"new": 1}).remote(5), timeout=30) == 25
        call()
        assert head.role_of(first) is None
        for node in cluster.nodes:
            assert "is gone" not in _log(node), _log(node)
            assert "is shut out" not in _log(node), _log(node)
    assert {key["state"] for key in _keys("list", "--dir", own)["keys"]} == {"valid", "retired"}
    assert other in cluster.nodes


def test_one_node_is_shut_out_and_the_others_go_on(cluster: Cluster) -> None:
    cluster.add_node()
    lost = cluster.add_node(resources={"lost": 1})
    cluster.add_node(resources={"kept": 1})
    folder = str(cluster._keys)
    with zray.init(cluster.address):
        counter = as_class(Counter).options(resources={"kept": 1}).remote()
        gone = as_class(Counter).options(resources={"lost": 1}).remote()
        large = zray.put(bytes(2 << 20))
        assert zray.get([each.add.remote(large) for each in (counter, gone)], timeout=30)
        shut_out = _keys("revoke", "node-1", "--dir", folder)["revoked"]
        assert len(shut_out) == 1
        others = [node for node in cluster.nodes if node is not lost]
        for node in others:
            wait_until(
                partial(_says, node, f"node {lost.node_id} is gone"),
                20,
                what="the node to be cut off",
            )
        assert zray.get(counter.add.remote(large), timeout=30) == (2, 2 << 20)
        refused = ("refused_connections", "refused_bulk_connections")

        def is_kept_out() -> bool:
            with Observer(others[0].directory) as observer:
                found = observer.ask("cluster")["security"]
            return any(found[each].get("key that counts no more", 0) for each in refused)

        wait_until(is_kept_out, 30, what="its attempts to come back")
        wait_until(
            lambda: sum(each["Alive"] for each in zray.nodes()) == 2, 30, what="two living nodes"
        )
