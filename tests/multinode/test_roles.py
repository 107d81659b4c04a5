"""Roles among real nodes: a gateway's program, and members that send what is not for them.

What    What a gateway may do, what it is refused and how it hears of it; clients and gateways
        that lie, with nothing but a key and the protocol.
Caller  pytest.
Never   uses keys of the user's home.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from tests.house.sources import ROOT
from tests.multinode.members import Member
from tests.waiting import wait_until
from zray.net.curve import ClusterKeys
from zray.observer import Observer
from zray.protocol import frames, link_messages, messages
from zray.protocol.roles import Role
from zray.serialization.data import encode_data
from zray.serialization.exceptions import decode_exception
from zray.testing import Cluster


@zray.remote(num_cpus=0)
class Service(zray.Actor):
    """What a gateway calls."""

    def __init__(self) -> None:
        self.calls = 0

    def echo(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self.calls += 1
        return args, kwargs

    def large(self, count: int) -> Any:
        import numpy as np

        return np.arange(count)

    def items(self, count: int) -> Iterator[int]:
        yield from range(count)

    def count(self) -> int:
        return self.calls


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Cluster, zray.ActorHandle]]:
    """Start a cluster of two with a driver of its own, which has made the service."""
    with Cluster() as cluster:
        cluster.add_node(num_cpus=1)
        cluster.add_node(num_cpus=1)
        with zray.init(cluster.address, namespace="shop"):
            actor: Any = Service.options(name="service").remote()
            zray.get(actor.count.remote(), timeout=20)
            yield cluster, actor


@pytest.fixture
def exported(service: tuple[Cluster, Any], tmp_path: Path) -> Callable[[Role], ClusterKeys]:
    def export(role: Role) -> ClusterKeys:
        assert service[0].keys is not None
        return ClusterKeys.load(service[0].keys).export(str(tmp_path / role), role)

    return export


@pytest.fixture
def join(
    service: tuple[Cluster, Any], exported: Callable[[Role], ClusterKeys]
) -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def member(key: Role, claims: Role | None = None, **how: Any) -> Member:
        address = f"tcp://{service[0].nodes[0].address}"
        made.append(Member(address, exported(key), key, claims or key, **how))
        return made[-1]

    yield member
    for each in made:
        each.close()


def log_of(cluster: Cluster) -> str:
    return Path(cluster.nodes[0].directory, "node.log").read_text()


def asked(cluster: Cluster) -> dict[str, Any]:
    with Observer(cluster.nodes[0].directory) as observer:
        found: dict[str, Any] = observer.ask("cluster")
    return found


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


GATEWAY = """
import sys
import numpy as np
import zray
zray.init(sys.argv[1], keys=sys.argv[2], namespace="shop")
service = zray.get_actor("service")
args, kwargs = zray.get(service.echo.remote(np.arange(3), [1, (2, {3})], key="v"), timeout=20)
assert args[0].tolist() == [0, 1, 2] and args[1] == [1, (2, {3})] and kwargs == {"key": "v"}
assert zray.get(service.large.remote(1 << 20), timeout=20).sum() == sum(range(1 << 20))
assert [zray.get(each) for each in service.items.remote(5)] == [0, 1, 2, 3, 4]
assert zray.get(service.echo.options(name="x").remote(1), timeout=20) == ((1,), {})
assert zray.get(zray.put([1])) == [1]

@zray.remote
def task():
    pass

@zray.remote
class Actor:
    pass

class Thing:
    pass

ref = service.count.remote()
for refused, kind in [
    (lambda: task.remote(), zray.errors.SecurityError),
    (lambda: task.map([1]), zray.errors.SecurityError),
    (lambda: Actor.remote(), zray.errors.SecurityError),
    (lambda: zray.kill(service), zray.errors.SecurityError),
    (lambda: service.echo.remote(Thing()), zray.errors.SerializationError),
    (lambda: service.echo.remote(len), zray.errors.SerializationError),
    (lambda: service.echo.remote(ref), zray.errors.SerializationError),
    (lambda: service.echo.remote(bytes(17 << 20)), zray.errors.OptionError),
    (lambda: service.echo.options(retry_exceptions=[OSError]).remote(), zray.errors.OptionError),
    (lambda: zray.get(service.__ray_call__.remote(1), timeout=20), zray.errors.SecurityError),
]:
    try:
        refused()
    except kind:
        continue
    raise AssertionError(kind)
print(zray.get(service.echo.remote("still"), timeout=20))
"""


def test_a_gateway_calls_actors_with_data_and_is_refused_early_what_is_code(
    service: tuple[Cluster, Any], exported: Callable[[Role], ClusterKeys]
) -> None:
    cluster = service[0]
    keys = exported(Role.GATEWAY)
    out = run(GATEWAY, f"zray://{cluster.nodes[0].address}", keys.directory)
    assert out == "(('still',), {})\n"
    wait_until(lambda: asked(cluster)["drivers_elsewhere"] == 0)
    assert "shut out" not in log_of(cluster)


SINGS = b"cos\nmkdir\n(V%s\ntR."


def find_service(actor: Any, member: Member) -> tuple[bytes, bytes]:
    """Return the actor's id, and the worker that it lives in, as a member is told."""
    member.say(messages.WATCH_ACTOR, actor._actor_id)
    states = wait_until(lambda: member.heard(messages.ACTOR_STATE))
    row = states[-1][0][3][0]
    return row[0], row[2]


def test_pickled_arguments_of_a_gateway_are_never_unpickled(
    service: tuple[Cluster, Any], join: Callable[..., Member], tmp_path: Path
) -> None:
    """A driver that goes round zray/gateway.py: its node brings on what it says."""
    member = join(Role.GATEWAY)
    member.await_welcome()
    actor, worker = find_service(service[1], member)
    canary = tmp_path / "canary"
    for number, arguments in enumerate(
        (
            SINGS % str(canary).encode(),  # Protocol 0 has no tag.
            pickle.dumps((1,)),
            b"\x80\x04" + SINGS % str(canary).encode(),
            b"\x01\x01\x00\x00" + bytes(12) + SINGS % str(canary).encode(),
        ),
        start=1,
    ):
        packed = frames.pack(messages.CALL, [[actor, number, "echo", 1, arguments]], 0)
        member.relay(worker, packed)
    replies = wait_until(lambda: (found := member.told())[3:] and found)
    for number, (receiver, told) in enumerate(replies, start=1):
        assert receiver == member.driver
        assert told[1] == messages.REPLIES
        assert told[3] == [number]
        with pytest.raises(zray.errors.SecurityError, match="pickled"):
            raise decode_exception(told[4][0][1:])
    fine = frames.pack(messages.CALL, [[actor, 9, "count", 1, encode_data(())]], 0)
    member.relay(worker, fine)
    answer = wait_until(lambda: member.told()[4:])
    assert pickle.loads(answer[0][1][4][0]) >= 0
    assert not canary.exists()


@pytest.mark.parametrize(
    "lie",
    [
        lambda member: (messages.KILL_ACTOR, b"a" * 16, True),
        lambda member: (link_messages.CODE, b"f" * 16, b"code", None),
        lambda member: (link_messages.BORROW, 1, {}, {}, [], False, False),
        lambda member: (link_messages.FOUND, [[b"o" * 16, pickle.dumps(1), 5, []]]),
        lambda member: (link_messages.JOB_ENDED, (b"x" * 8).hex()),
    ],
)
def test_a_gateway_that_sends_what_is_not_for_it_is_cut_off_for_good(
    service: tuple[Cluster, Any],
    join: Callable[..., Member],
    lie: Callable[[Member], tuple[Any, ...]],
) -> None:
    cluster, actor = service
    member = join(Role.GATEWAY)
    member.await_welcome()
    kind, *fields = lie(member)
    member.say(kind, *fields)
    member.await_end()
    wait_until(lambda: f"{member.identity.hex()} at" in log_of(cluster))
    assert "is shut out: " in log_of(cluster)
    # It may dial again, and is told why nobody answers.
    before = len(member.heard(link_messages.LINK_HELLO))

    def is_back() -> bool:
        member.step()
        return member.links.is_connected(member.address)

    wait_until(is_back)
    member.say(link_messages.LINK_HELLO, member.hello(Role.GATEWAY))
    told = wait_until(lambda: member.heard(link_messages.LINK_HELLO)[before:])
    assert "refused" in told[0][0][3]
    assert zray.get(actor.count.remote(), timeout=20) >= 0


@pytest.mark.parametrize("role", [Role.CLIENT, Role.GATEWAY])
def test_who_speaks_for_processes_of_others_is_cut_off(
    service: tuple[Cluster, Any], join: Callable[..., Member], role: Role
) -> None:
    member = join(role)
    member.await_welcome()
    worker = find_service(service[1], member)[1]
    stranger = bytes.fromhex(service[0].nodes[1].node_id)[:4] + b"0001"
    member.relay(worker, frames.pack(messages.PING), source=stranger)
    member.await_end()
    assert zray.get(service[1].count.remote(), timeout=20) >= 0


def test_a_client_that_lends_is_cut_off(
    service: tuple[Cluster, Any], join: Callable[..., Member]
) -> None:
    member = join(Role.CLIENT)
    member.await_welcome()
    member.say(link_messages.STOPPED, member.identity[:4] + b"0001")
    member.await_end()
    assert zray.get(service[1].count.remote(), timeout=20) >= 0


@pytest.mark.parametrize(
    ("key", "claims"),
    [(Role.CLIENT, Role.NODE), (Role.GATEWAY, Role.CLIENT), (Role.GATEWAY, Role.NODE)],
)
def test_a_role_is_the_keys_and_who_claims_more_is_told_so(
    service: tuple[Cluster, Any], join: Callable[..., Member], key: Role, claims: Role
) -> None:
    member = join(key, claims)
    told = wait_until(lambda: member.heard(link_messages.LINK_HELLO))
    assert f"its key is that of a {key}" in told[0][0][3]["refused"]
    assert asked(service[0])["nodes"] == 2


def test_a_client_is_no_node_for_others(
    service: tuple[Cluster, Any], join: Callable[..., Member]
) -> None:
    cluster = service[0]
    member = join(Role.CLIENT)
    member.await_welcome()
    assert asked(cluster)["drivers_elsewhere"] == 1
    assert asked(cluster)["nodes"] == 2
    assert len(zray.nodes()) == 2

    @zray.remote(num_cpus=0)
    def where() -> str:
        return str(zray.get_runtime_context().get_node_id())

    found = set(zray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(8)]))
    assert member.identity.hex() not in found
    kinds = {each[0][1] for each in member.received}
    assert link_messages.BORROW not in kinds, "it was asked to run something"


def test_a_client_cannot_take_the_name_of_a_node_that_is_there(
    service: tuple[Cluster, Any], join: Callable[..., Member]
) -> None:
    cluster = service[0]
    victim = bytes.fromhex(cluster.nodes[1].node_id)
    member = join(Role.CLIENT, Role.CLIENT, identity=victim)
    member.await_end()
    assert asked(cluster)["nodes"] == 2
