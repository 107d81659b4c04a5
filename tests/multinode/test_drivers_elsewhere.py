"""A driver anywhere: zray://HOST:PORT, with a node of its own that has no resources.

What    That programs run the same, leave nothing behind, find a node of theirs where there is
        one, and hear soon and clearly why they cannot connect.
Caller  pytest.
Never   uses keys or the context file of the user.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import zray
from tests.cluster.nodes import Place, line_of
from tests.leaks import Snapshot
from tests.multinode.test_start_join import start
from tests.waiting import wait_until
from zray import errors
from zray.net.curve import ClusterKeys
from zray.observer import Observer
from zray.protocol.roles import Role
from zray.testing import Cluster


@pytest.fixture
def nodes(cluster: Cluster) -> Cluster:
    """Start two nodes that end with the test."""
    cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=1, resources={"far": 1})
    return cluster


@pytest.fixture(scope="module")
def standing() -> Iterator[Cluster]:
    """Start a node for those who do not get in."""
    with Cluster() as made:
        made.add_node(num_cpus=1)
        yield made


def address_of(cluster: Cluster) -> str:
    return f"zray://{cluster.nodes[0].address}"


@pytest.fixture
def connect(nodes: Cluster) -> Iterator[Callable[..., Any]]:
    def init(**options: Any) -> Any:
        return zray.init(address_of(nodes), keys=nodes.keys, **options)

    yield init
    zray.shutdown()


def drivers_elsewhere(cluster: Cluster) -> int:
    with Observer(cluster.nodes[0].directory) as observer:
        return int(observer.ask("cluster")["drivers_elsewhere"])


@zray.remote
class Counter(zray.Actor):
    def __init__(self, start: Any = 0) -> None:
        self.value = start

    def add(self, amount: Any) -> Any:
        self.value += amount
        return self.value

    def node(self) -> str:
        return str(zray.get_runtime_context().get_node_id())


@zray.remote
def total(array: Any) -> tuple[float, str]:
    return float(array.sum()), str(zray.get_runtime_context().get_node_id())


def test_programs_run_on_the_nodes_of_the_cluster_and_not_here(
    connect: Callable[..., Any], nodes: Cluster
) -> None:
    began = time.monotonic()
    context = connect()
    known = {node.node_id for node in nodes.nodes}
    assert {row["NodeID"] for row in zray.nodes()} == known
    assert context.node_id not in known
    assert context.resources == {}
    assert zray.cluster_resources()["CPU"] == 3
    large = zray.put(np.ones(1 << 20))
    found = zray.get([total.remote(large) for _ in range(6)], timeout=30)
    assert {value for value, _node in found} == {float(1 << 20)}
    assert {node for _value, node in found} <= known
    # A task that needs nothing would fit anywhere.
    assert zray.get(total.options(num_cpus=0).remote(large), timeout=30)[1] in known
    far = zray.get(total.options(resources={"far": 1}).remote(large), timeout=30)
    assert far[1] == nodes.nodes[1].node_id
    result = zray.get(_made.remote(1 << 20), timeout=30)
    assert result.sum() == 1 << 20
    assert time.monotonic() - began < 30


@zray.remote
def _made(count: int) -> Any:
    return np.ones(count)


@zray.remote
def _nested(depth: int) -> int:
    return depth if depth == 0 else zray.get(_nested.remote(depth - 1)) + 1


@zray.remote
def _fails() -> None:
    raise LookupError("as it should")


def test_actors_names_keys_values_nested_tasks_and_errors(connect: Callable[..., Any]) -> None:
    connect(namespace="elsewhere")
    actor: Any = Counter.options(name="named", num_cpus=0).remote(1)
    assert zray.get(actor.add.remote(2), timeout=30) == 3
    assert zray.get(zray.get_actor("named").add.remote(1), timeout=30) == 4
    assert zray.get([actor.add.remote(1) for _ in range(100)], timeout=30)[-1] == 104
    from zray.util import kv

    kv.put(b"key", b"value")
    assert kv.get(b"key") == b"value"
    assert zray.get(_nested.remote(3), timeout=30) == 3
    assert list(zray.get(_identity.map(range(50)), timeout=30)) == list(range(50))
    with pytest.raises(LookupError, match="as it should"):
        zray.get(_fails.remote(), timeout=30)
    zray.kill(actor)
    with pytest.raises(errors.ActorDiedError):
        zray.get(actor.add.remote(1), timeout=30)


@zray.remote
def _identity(value: Any) -> Any:
    return value


def test_nothing_is_left_when_the_driver_ends(connect: Callable[..., Any], nodes: Cluster) -> None:
    directory = connect().address
    (node,) = [
        each for each in psutil.Process().children() if directory in " ".join(each.cmdline())
    ]
    assert node.children() == [], "a node without work has no workers and no zygote"
    actor: Any = Counter.options(name="gone", namespace="here").remote()
    zray.get(actor.add.remote(1), timeout=30)
    assert drivers_elsewhere(nodes) == 1
    zray.shutdown()
    assert not node.is_running()
    assert not os.path.exists(directory)
    wait_until(lambda: drivers_elsewhere(nodes) == 0)
    with zray.init(nodes.address, namespace="here"):
        wait_until(lambda: zray.available_resources().get("CPU") == 3)
        with pytest.raises(errors.ActorNotFoundError):
            zray.get_actor("gone")


DETACHES = """
import sys, zray
zray.init(sys.argv[1], keys=sys.argv[2], namespace="kept")

@zray.remote(num_cpus=0)
class Kept:
    def __init__(self, start, *, more=0):
        self.value = start + more
    def get(self):
        self.value += 1
        return self.value

made = Kept.options(name="kept", lifetime="detached").remote(40, more=1)
print(zray.get(made.get.remote(), timeout=20))
again = Kept.options(name="kept", lifetime="detached", get_if_exists=True).remote(0)
print(zray.get(again.get.remote(), timeout=20))
try:
    Kept.options(name="kept", lifetime="detached").remote(0)
except zray.errors.NameTakenError:
    print("taken", flush=True)
"""


def test_a_detached_actor_outlives_the_driver_that_made_it(
    place: Place, nodes: Cluster, connect: Callable[..., Any]
) -> None:
    assert nodes.keys is not None
    child = place.launch(DETACHES, address_of(nodes), nodes.keys, embedded=True)
    out, err = child.communicate(timeout=40)
    assert out == "42\n43\ntaken\n", out + err
    wait_until(lambda: drivers_elsewhere(nodes) == 0)
    connect(namespace="kept")
    kept = zray.get_actor("kept")
    assert zray.get(kept.get.remote(), timeout=30) == 44
    zray.kill(kept)


WAITS = """
import sys, zray
zray.init(sys.argv[1], keys=sys.argv[2])

@zray.remote
def forever():
    import time
    time.sleep(1000)

refs = [forever.remote() for _ in range(2)]
print(len(zray.wait(refs, timeout=1)[1]), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_a_killed_driver_held_is_free_again(place: Place, nodes: Cluster, how: int) -> None:
    assert nodes.keys is not None
    child = place.launch(WAITS, address_of(nodes), nodes.keys, embedded=True)
    assert line_of(child) == "2"
    child.send_signal(how)
    child.communicate(timeout=20)
    place.await_no_process()
    wait_until(lambda: drivers_elsewhere(nodes) == 0)
    with zray.init(nodes.address):
        wait_until(lambda: zray.available_resources().get("CPU") == 3, 20)
    assert not list(place.folder.glob("zray-*"))


@pytest.mark.usefixtures("no_leaks")
def test_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    with Cluster() as cluster:
        from zray import launch

        assert cluster.keys is not None
        directory = launch.new_directory()
        head = {"head": True, "host": "::1", "keys": cluster.keys, "join": []}
        process = launch.launch_node(
            directory, {"num_cpus": 1, "cluster": head, "parent": os.getpid()}
        )
        try:
            with Observer(directory) as observer:
                address = observer.ask("cluster")["address"].removeprefix("tcp://")
            assert address.startswith("[::1]:")
            with zray.init(f"zray://{address}", keys=cluster.keys):
                assert zray.get(_identity.remote(5), timeout=30) == 5
                assert zray.get(_made.remote(1 << 20), timeout=30).nbytes == 8 << 20
        finally:
            process.terminate()
            process.wait(10)
            shutil.rmtree(directory)


# -- who cannot connect ----------------------------------------------------------------------------


def refused(address: str, within_s: float = 25.0, **options: Any) -> str:
    """Return what init() says; it says so in time, and starts nothing that stays."""
    began, before = time.monotonic(), set(psutil.Process().children())
    with pytest.raises((errors.NodeStartError, errors.SecurityError)) as caught:
        zray.init(address, **options)
    assert time.monotonic() - began < within_s
    assert not zray.is_initialized()
    wait_until(lambda: set(psutil.Process().children()) <= before)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_nobody_there(no_leaks: Snapshot) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = refused(f"zray://127.0.0.1:{port}", 10.0)
    assert f"nobody answers at 127.0.0.1:{port}" in said
    assert "zray-node status" in said


def test_somebody_else_there(standing: Cluster) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = refused(f"zray://127.0.0.1:{other.getsockname()[1]}", keys=standing.keys)
    assert "has answered for" in said or "no port of zray" in said


def test_no_keys(standing: Cluster, tmp_path: Path) -> None:
    said = refused(address_of(standing), keys=str(tmp_path / "missing"))
    assert said.startswith("SecurityError")
    assert "ZRAY_KEYS" in said


def test_keys_of_another_cluster(standing: Cluster, tmp_path: Path) -> None:
    other = ClusterKeys.create(str(tmp_path / "other"))
    said = refused(address_of(standing), keys=other.directory)
    assert "does not let this driver join" in said
    assert "keys of the same cluster" in said


def test_a_key_that_was_revoked(no_leaks: Snapshot, tmp_path: Path) -> None:
    with Cluster() as cluster:
        cluster.add_node(num_cpus=1)
        assert cluster.keys is not None
        keys = ClusterKeys.load(cluster.keys)
        exported = keys.export(str(tmp_path / "client"), Role.CLIENT)
        keys.revoke(exported.pair(Role.CLIENT).public)
        said = refused(address_of(cluster), keys=exported.directory)
    assert "it does not know our key" in said


def test_keys_where_the_cluster_has_none(standing: Cluster) -> None:
    assert "does not let this driver join" in refused(address_of(standing), keys="none")


OTHER_VERSION = """
import zray.protocol.limits
zray.protocol.limits.PROTOCOL_VERSION = 99
"""


def test_another_version(place: Place, cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    assert cluster.keys is not None
    (place.folder / "sitecustomize.py").write_text(OTHER_VERSION)
    path = os.pathsep.join([str(place.folder), *sys.path])
    child = place.launch(
        "import sys, zray; zray.init(sys.argv[1], keys=sys.argv[2])",
        *(address_of(cluster), cluster.keys),
        embedded=True,
        env={"PYTHONPATH": path},
    )
    _out, err = child.communicate(timeout=40)
    assert "NodeStartError" in err
    assert "it speaks version 1 of the protocol, and this is version 99" in err
    assert "same release" in err


def test_a_cluster_that_cannot_reach_the_driver(standing: Cluster) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # Bound, and not listening: nobody gets through to it.
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        said = refused(address_of(standing), 30.0, keys=standing.keys, driver_advertise=address)
    assert f"must be able to connect to {address}" in said
    assert "driver_advertise" in said


def test_settings_of_a_node_are_not_for_a_driver_elsewhere(standing: Cluster) -> None:
    for options in ({"num_cpus": 1}, {"labels": {"a": "b"}}, {"resources": {"x": 1}}):
        with pytest.raises(errors.OptionError, match="which has its settings already"):
            zray.init(address_of(standing), keys=standing.keys, **options)
    assert not zray.is_initialized()


# -- a node of the user's own ----------------------------------------------------------------------

SHOWS = """
import os, sys, zray
context = zray.init(logging_level="INFO")
print(context.address, context.node_id, len(zray.nodes()))
"""


def test_a_node_of_the_cluster_on_this_machine_is_used(place: Place) -> None:
    head = start(place, "--head", "--num-cpus", "1", "--dir", str(place.folder / "a"))
    other = start(
        place,
        *("--join", head["address"], "--dir", str(place.folder / "b"), "--num-cpus", "1"),
    )
    assert head["driver"] == f"zray://{head['address']}"
    by_head = place.drive(SHOWS, env={"ZRAY_ADDRESS": head["driver"]})
    assert by_head.split()[2] == "2"
    assert by_head.split()[0] in (head["directory"], other["directory"])
    # Named by another node than the one that it is attached to.
    place.run("stop", "--dir", head["directory"])
    wait_until(lambda: place.run("status", "--json", env={"ZRAY_ADDRESS": ""}).returncode == 0)
    localhost = other["driver"].replace("127.0.0.1", "localhost")
    by_other = place.drive(SHOWS, env={"ZRAY_ADDRESS": localhost})
    assert by_other.split()[:2] == [other["directory"], other["node"]]
    # The command line means the same node by that address.
    shown = place.run("status", "--json", env={"ZRAY_ADDRESS": other["driver"]})
    assert other["node"] in shown.stdout
    assert place.run("stop", "--all").returncode == 0
    gone = place.run("status", env={"ZRAY_ADDRESS": other["driver"]})
    assert gone.returncode == 3
    assert "no node of the cluster" in gone.stderr


def test_without_an_address_it_is_the_last_node_that_runs_and_else_one_of_its_own(
    place: Place,
) -> None:
    env = {"ZRAY_ADDRESS": ""}
    place.start()
    assert place.drive(SHOWS, env=env).split()[0] == str(place.node)
    own = "import zray; print(zray.init(num_cpus=1, object_store_memory=100<<20).address)"
    assert not place.drive(own, env=env).startswith(str(place.node))
    local = "import zray; print(zray.init('local', object_store_memory=100<<20).address)"
    assert not place.drive(local, env=env).startswith(str(place.node))
    # Killed, it leaves its line in the context file, and nobody waits for it.
    pid = place.ask()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    child = place.launch(SHOWS, embedded=True, env=env | {"ZRAY_OBJECT_STORE_MEMORY": "100MiB"})
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert not out.startswith(str(place.node))


def test_run_takes_an_address_and_keys(place: Place, nodes: Cluster) -> None:
    assert nodes.keys is not None
    program = place.program(SHOWS, "shows.py")
    done = place.run(
        *("run", "--address", address_of(nodes), "--keys", nodes.keys, str(program)),
        timeout_s=40,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[2] == "2"
    both = place.run("run", "--embedded", "--address", address_of(nodes), str(program))
    assert both.returncode == 2
    assert "exclude each other" in both.stderr
    wrong = place.run("run", "--address", "ray://host:1", str(program))
    assert wrong.returncode == 2
    assert "zray://HOST:PORT" in wrong.stderr
