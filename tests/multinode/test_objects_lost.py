"""Objects that cannot be had: of nodes that were killed, and where there is no room.

What    Each test has a cluster of its own, and kills or fills one of its nodes.
Caller  pytest.
Never   sleeps.
"""

from __future__ import annotations

import socket

import numpy as np
import pytest

import zray
from tests.cluster.nodes import Place
from tests.multinode.objects import MB, Keeper, Maker, asked, at, ones, total
from tests.waiting import wait_until
from zray import errors
from zray.testing import Cluster


def test_what_only_a_killed_node_had_is_lost(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    victim = cluster.add_node(num_cpus=1, resources={"second": 1})
    with zray.init(cluster.address):
        ref = at(ones, "second").remote(10 * MB)
        assert zray.get(at(total, "second").remote(ref), timeout=20) == 10 * MB
        cluster.kill_node(victim)
        with pytest.raises(errors.ObjectLostError):
            zray.get(ref, timeout=20)


def test_a_copy_outlives_the_node_that_made_it(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    victim = cluster.add_node(num_cpus=1, resources={"second": 1})
    cluster.add_node(num_cpus=1, resources={"third": 1})
    with zray.init(cluster.address):
        ref = at(ones, "second").remote(10 * MB)
        keeper = at(Keeper, "third").remote()
        zray.get(keeper.keep.remote([ref]), timeout=20)
        assert zray.get(keeper.total.remote(), timeout=20) == 10 * MB
        cluster.kill_node(victim)
        assert zray.get(ref, timeout=20).nbytes == 10 * MB


def test_what_a_dead_nodes_process_owned_is_its_owners_death(cluster: Cluster) -> None:
    """The victim's worker puts an object, and the driver gets no more than its reference."""
    cluster.add_node(num_cpus=1)
    victim = cluster.add_node(num_cpus=1, resources={"second": 1})
    with zray.init(cluster.address):
        maker = at(Maker, "second").remote()
        (ref,) = zray.get(maker.make.remote(10 * MB), timeout=20)
        cluster.kill_node(victim)
        with pytest.raises(errors.OwnerDiedError):
            zray.get(ref, timeout=20)


def test_a_full_store_says_so_and_copies_make_way(cluster: Cluster) -> None:
    """The second node's store holds two of the arrays; those that are not used make way."""
    cluster.add_node(num_cpus=1)
    small = cluster.add_node(num_cpus=1, resources={"second": 4}, object_store_memory=32 * MB)
    with zray.init(cluster.address):
        refs = [zray.put(np.full(10 * MB, number, dtype=np.uint8)) for number in range(6)]
        for number, ref in enumerate(refs):
            assert zray.get(at(total, "second").remote(ref), timeout=20) == number * 10 * MB
        assert asked(small, "status")["store"]["spill_bytes"] == 0, "copies need not be written"
        whole = zray.put(np.ones(40 * MB, dtype=np.uint8))
        task = at(total, "second").options(max_retries=0).remote(whole)
        with pytest.raises(errors.ObjectStoreFullError):
            zray.get(task, timeout=20)
        assert zray.get(whole, timeout=20).nbytes == 40 * MB


def test_results_that_were_spilled_are_restored_for_who_reads_them(cluster: Cluster) -> None:
    """They are kept where they were made, and more than fit there."""
    cluster.add_node(num_cpus=1)
    small = cluster.add_node(num_cpus=1, resources={"second": 4}, object_store_memory=32 * MB)
    with zray.init(cluster.address):
        refs = [at(ones, "second").remote(10 * MB) for _ in range(6)]
        assert zray.get(at(total, "second").remote(refs[-1]), timeout=20) == 10 * MB
        wait_until(lambda: asked(small, "status")["store"]["spill_bytes"] > 0)
        while refs:
            assert int(zray.get(refs.pop(), timeout=20).sum()) == 10 * MB
        wait_until(lambda: asked(small, "status")["store"]["spill_bytes"] == 0, 2.0)


def test_the_bulk_port_is_the_one_that_was_asked_for(place: Place) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place.start("--head", "--bulk-port", str(port), "--keys", "none")
    assert place.ask()["cluster"]["bulk_address"] == f"tcp://127.0.0.1:{port}"
