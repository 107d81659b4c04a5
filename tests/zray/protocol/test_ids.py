"""Identities name their home, and no two processes of a node have the same.

What    Ids of nodes, workers and guests, and of what they create.
Never   starts a process.
"""

from __future__ import annotations

import os

from zray.protocol.ids import guest_id, node_id, node_of, object_id, worker_id

NODE = node_id(b"\x01\x02\x03\x04")


def test_every_id_names_the_node_it_belongs_to() -> None:
    worker, guest = worker_id(NODE, 7), guest_id(NODE, b"abcd")
    for identity in (NODE, worker, guest, object_id(worker, 1), object_id(guest, 1 << 63)):
        assert node_of(identity) == NODE
    assert node_of(worker_id(node_id(b"\x01\x02\x03\x05"), 7)) != NODE


def test_workers_are_counted_so_no_two_are_equal_and_none_is_the_node() -> None:
    workers = {worker_id(NODE, count) for count in range(1, 100_001)}
    assert len(workers) == 100_000
    assert NODE not in workers


def test_no_guest_is_a_worker_whatever_the_dice_say() -> None:
    for random in (bytes(4), b"\0\0\0\1", b"\xff" * 4, os.urandom(4)):
        guest = guest_id(NODE, random)
        assert len(guest) == 8
        assert guest >= worker_id(NODE, 1 << 31)
