"""Actors that end before they could begin, and what an actor that has begun lets go.

What    zray.kill() of an actor that waits for its arguments, for resources, or is in the midst of
        __init__; the end of a job; arguments of constructors and of maps.
Never   waits for a method of an actor that must not live.
"""

import os

import numpy as np
import pytest

import zray
from tests.cluster.observing import ask, wait_for_empty_store
from tests.waiting import wait_until
from zray.exceptions import ActorDiedError, TaskError

pytestmark = [
    pytest.mark.usefixtures("node"),
    pytest.mark.node(num_cpus=2, namespace="here", object_store_memory=64 << 20),
]
MB = 1 << 20


class _Actor:
    def __init__(self, *values, begun=None, until=None):
        self.values = len(values)
        if begun is not None:
            open(begun, "w").close()
        if until is not None:
            wait_until(lambda: os.path.exists(until), 20)

    def method(self):
        return self.values

    def wait(self, path):
        wait_until(lambda: os.path.exists(path), 20)

    def call(self, handle):
        return zray.get(handle.method.remote(), timeout=20)


PROCESS = zray.remote(num_cpus=0)(_Actor)
SHARED = zray.remote(num_cpus=0, isolation="shared")(_Actor)
isolation = pytest.mark.parametrize("kind", [PROCESS, SHARED], ids=["process", "shared"])


@zray.remote(num_cpus=0)
def wait_for(path):
    wait_until(lambda: os.path.exists(path), 20)
    return path


def states():
    return {row["actor_id"]: row["state"] for row in ask("actors")}


def is_dead(actor):
    return states().get(actor._actor_id.hex()) == "DEAD"


def assert_dead(actor, call):
    """It is dead, and who calls it is told."""
    for ref in (call, actor.method.remote()):
        with pytest.raises(ActorDiedError, match="kill"):
            zray.get(ref, timeout=10)
    wait_until(lambda: is_dead(actor))


@pytest.fixture
def name(request):
    return request.node.name


@isolation
@pytest.mark.parametrize("no_restart", [True, False])
def test_an_actor_killed_at_once_is_dead(kind, no_restart, name):
    actor = kind.options(name=name).remote()
    call = actor.method.remote()
    zray.kill(actor, no_restart=no_restart)
    if no_restart:
        assert_dead(actor, call)
    else:
        wait_until(lambda: is_dead(actor))
    again = kind.options(name=name).remote()
    assert zray.get(again.method.remote(), timeout=20) == 0


@isolation
def test_an_actor_killed_while_its_arguments_are_made_is_dead(kind, tmp_path, name):
    path = str(tmp_path / "go")
    actor = kind.options(name=name).remote(wait_for.remote(path))
    call = actor.method.remote()
    zray.kill(actor)
    assert_dead(actor, call)
    again = kind.options(name=name).remote(1)
    assert zray.get(again.method.remote(), timeout=20) == 1
    open(path, "w").close()
    assert zray.get(wait_for.remote(path), timeout=20) == path
    assert is_dead(actor)


def test_an_actor_killed_while_its_arguments_are_made_is_dead_for_others(tmp_path):
    path = str(tmp_path / "go")
    other = PROCESS.remote()
    actor = PROCESS.remote(wait_for.remote(path))
    call = other.call.remote(actor)
    zray.kill(actor)
    with pytest.raises((ActorDiedError, TaskError), match="kill"):
        zray.get(call, timeout=10)
    open(path, "w").close()


def test_an_actor_killed_by_another_process_while_its_arguments_are_made_is_dead(tmp_path, name):
    path = str(tmp_path / "go")
    actor = PROCESS.options(name=name).remote(wait_for.remote(path))
    call = actor.method.remote()
    zray.get(zray.remote(lambda handle: zray.kill(handle)).remote(actor), timeout=20)
    assert_dead(actor, call)
    open(path, "w").close()


@isolation
def test_an_actor_killed_while_it_waits_for_resources_is_dead(kind, name):
    first = kind.options(num_cpus=2).remote()
    zray.get(first.method.remote(), timeout=20)
    actor = kind.options(name=name, num_cpus=2).remote()
    call = actor.method.remote()
    zray.kill(actor)
    assert_dead(actor, call)
    zray.kill(first)
    again = kind.options(name=name, num_cpus=2).remote()
    assert zray.get(again.method.remote(), timeout=20) == 0


@isolation
def test_an_actor_killed_in_the_midst_of_its_init_is_dead(kind, tmp_path, name):
    begun, until = str(tmp_path / "begun"), str(tmp_path / "until")
    actor = kind.options(name=name, num_cpus=2).remote(begun=begun, until=until)
    call = actor.method.remote()
    wait_until(lambda: os.path.exists(begun), 20)
    zray.kill(actor)
    assert_dead(actor, call)
    open(until, "w").close()
    again = kind.options(name=name, num_cpus=2).remote()
    assert zray.get(again.method.remote(), timeout=20) == 0


def test_of_an_actor_killed_in_the_midst_of_its_init_nothing_stays_in_a_shared_worker(tmp_path):
    class Heavy(_Actor):
        def __del__(self):
            open(tmp_path / "gone", "w").close()

    begun, until = str(tmp_path / "begun"), str(tmp_path / "until")
    heavy = zray.remote(num_cpus=0, isolation="shared")(Heavy)
    actor = heavy.remote(begun=begun, until=until)
    wait_until(lambda: os.path.exists(begun), 20)
    zray.kill(actor)
    wait_until(lambda: is_dead(actor))
    open(until, "w").close()
    wait_until(lambda: (tmp_path / "gone").exists())


def test_an_actor_killed_behind_others_of_its_worker_is_never_made(tmp_path):
    until = str(tmp_path / "until")
    begun = [str(tmp_path / f"begun{number}") for number in range(8)]
    actors = [SHARED.remote(begun=path, until=until) for path in begun]
    wait_until(lambda: any(map(os.path.exists, begun)), 20)
    early = [path for path in begun if os.path.exists(path)]
    for actor in actors:
        zray.kill(actor)
    wait_until(lambda: all(map(is_dead, actors)))
    open(until, "w").close()
    after = SHARED.remote()
    assert zray.get(after.method.remote(), timeout=20) == 0
    assert len(early) <= sum(map(os.path.exists, begun)) <= 2, "one for each shared worker"


def test_a_named_actor_whose_arguments_come_later_has_its_name_at_once(tmp_path, name):
    path = str(tmp_path / "go")
    actor = PROCESS.options(name=name).remote(wait_for.remote(path))
    with pytest.raises(zray.exceptions.NameTakenError):
        PROCESS.options(name=name).remote()
    found = zray.get_actor(name)
    open(path, "w").close()
    assert zray.get(found.method.remote(), timeout=20) == 1
    assert zray.get(actor.method.remote(), timeout=20) == 1


# -- jobs ------------------------------------------------------------------------------------------


@zray.remote(num_cpus=0)
def make_one():
    return PROCESS.remote()


def test_an_actor_made_by_a_task_belongs_to_the_job():
    actor = zray.get(make_one.remote(), timeout=20)
    zray.get(actor.method.remote(), timeout=20)
    job = zray.get_runtime_context().get_job_id()
    assert {row["job_id"] for row in ask("actors")} == {job}


# -- what is let go --------------------------------------------------------------------------------


@isolation
@pytest.mark.parametrize("large", [True, False])
def test_arguments_of_a_constructor_go_when_it_has_run(kind, large):
    value = np.ones(4 * MB, "u1")
    actor = kind.remote(value if large else zray.put(value), [zray.put(value)])
    assert zray.get(actor.method.remote(), timeout=20) == 2
    wait_for_empty_store()
    assert zray.get(actor.method.remote(), timeout=20) == 2


def test_arguments_of_a_constructor_stay_as_long_as_it_may_restart():
    value = np.ones(4 * MB, "u1")
    actor = PROCESS.options(max_restarts=1, max_task_retries=-1).remote(
        [zray.put(value)], zray.put(value)
    )
    assert zray.get(actor.method.remote(), timeout=20) == 2
    zray.kill(actor, no_restart=False)
    wait_until(lambda: any(row["incarnation"] and row["state"] == "ALIVE" for row in ask("actors")))
    assert zray.get(actor.method.remote(), timeout=20) == 2
    wait_for_empty_store()


def test_items_of_a_map_go_when_it_is_over():
    values = zray.get(
        zray.remote(lambda item: len(item)).map([[zray.put(np.ones(MB, "u1"))] for _ in range(8)])
    )
    assert values == [1] * 8
    wait_for_empty_store()


def test_no_call_is_lost_when_an_actor_of_a_shared_worker_starts_again_in_the_same_one(tmp_path):
    """Calls sent again can overtake both the end of the old life and the start of the new one."""
    options = {"max_restarts": -1, "max_task_retries": -1}
    stays = SHARED.options(name="stays").remote()
    zray.get(stays.method.remote(), timeout=20)  # So that the worker lives on.
    for number in range(10):
        actor = SHARED.options(**options).remote()
        hold = str(tmp_path / f"hold{number}")
        first = actor.wait.remote(hold)
        others = [actor.method.remote() for _ in range(5)]
        zray.kill(actor, no_restart=False)
        later = actor.method.remote()
        open(hold, "w").close()
        assert zray.get([*others, later], timeout=20) == [0] * 6
        zray.get(first, timeout=20)
        del actor
