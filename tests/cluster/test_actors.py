"""Sync actors with real processes: births, order, ends, hooks, contexts.

What    What a user sees of an actor's life, in a process of its own and in a shared one.
"""

import os
import sys
import threading

import pytest

import zray
from tests.waiting import wait_until
from zray.exceptions import ActorDiedError, SerializationError, TaskError

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.node(num_cpus=4, namespace="here")]


@pytest.fixture(params=["process", "shared"])
def isolation(request):
    return request.param


class Counter:
    def __init__(self, start=0):
        self.n = start
        self.failures = 0

    def add(self, k=1):
        self.n += k
        return self.n

    def two(self):
        return 1, 2

    def none(self):
        return 3

    def exit(self):
        zray.actor.exit_actor()

    def sys_exit(self):
        sys.exit(3)

    def swallow_and_exit(self):
        try:
            zray.actor.exit_actor()
        except Exception:
            return "swallowed"

    def unpicklable(self):
        return threading.Lock()

    def call_other(self, other):
        return zray.get(other[0].add.remote(5))

    def recurse(self):
        return self.recurse()

    @zray.method(num_returns=2)
    def pair(self):
        return "a", "b"

    @zray.method(retry_exceptions=[ConnectionError], max_task_retries=5)
    def flaky(self, fail_times):
        self.failures += 1
        if self.failures <= fail_times:
            raise ConnectionError(f"try {self.failures}")
        return self.failures

    @zray.method(name="a name of its own")
    def named(self):
        raise ValueError("named")

    def context(self):
        found = zray.get_runtime_context()
        return {
            "actor": found.get_actor_id(),
            "task": found.get_task_id(),
            "job": found.get_job_id(),
            "name": found.get_actor_name(),
            "namespace": found.namespace,
            "resources": found.get_assigned_resources(),
            "again": found.was_current_actor_reconstructed,
            "call": found.get_task_name(),
        }

    def myself(self):
        return zray.get_runtime_context().current_actor


Actor = zray.remote(Counter)


def test_calls_of_a_caller_run_in_the_order_sent(isolation):
    counter = Actor.options(isolation=isolation).remote(10)
    assert zray.get([counter.add.remote() for _ in range(500)], timeout=20) == list(range(11, 511))


def test_num_returns_of_a_method(isolation):
    counter = Actor.options(isolation=isolation).remote()
    assert zray.get(counter.pair.remote(), timeout=10) == ["a", "b"]
    assert zray.get(counter.two.options(num_returns=2).remote(), timeout=10) == [1, 2]
    assert counter.none.options(num_returns=0).remote() is None
    wrong = counter.two.options(num_returns=3).remote()
    with pytest.raises(ValueError, match="num_returns=3"):
        zray.get(wrong[2], timeout=10)


def test_a_failed_init_reaches_every_caller_with_its_cause(isolation):
    @zray.remote(isolation=isolation)
    class Broken:
        def __init__(self):
            raise ValueError("cannot begin")

        def ping(self):
            return "pong"

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="cannot begin") as caught:
            zray.get(broken.ping.remote(), timeout=10)
        assert "test_actors.py" in str(caught.value), "the remote traceback is missing"
        assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("method", ["exit", "sys_exit", "swallow_and_exit", "__ray_terminate__"])
def test_an_actor_ends_itself(isolation, method):
    counter = Actor.options(isolation=isolation).remote()
    before = counter.add.remote()
    ends = getattr(counter, method).remote()
    behind = counter.add.remote()
    assert zray.get(before, timeout=10) == 1
    for ref in (ends, behind):
        with pytest.raises(ActorDiedError, match="ended itself"):
            zray.get(ref, timeout=10)
    with pytest.raises(ActorDiedError):
        zray.get(counter.add.remote(), timeout=10)


def test_exit_actor_outside_of_an_actor_is_refused():
    with pytest.raises(TypeError, match="actor"):
        zray.actor.exit_actor()


def test_system_methods(isolation):
    counter = Actor.options(isolation=isolation).remote(4)
    assert zray.get(counter.__ray_ready__.remote(), timeout=10) is True
    assert zray.get(counter.__ray_call__.remote(lambda self, k: self.n * k, 3), timeout=10) == 12


def test_an_actors_last_moment(tmp_path, isolation):
    class Neat:
        def __init__(self, folder):
            self.folder = folder

        def ping(self):
            return "pong"

        def end(self):
            zray.actor.exit_actor()

        def __ray_shutdown__(self):
            open(f"{self.folder}/shutdown", "w").close()

        def __del__(self):
            open(f"{self.folder}/del", "w").close()

    for name in ("exit", "dropped"):
        folder = tmp_path / name
        folder.mkdir()
        neat = zray.remote(Neat).options(isolation=isolation).remote(str(folder))
        assert zray.get(neat.ping.remote(), timeout=10) == "pong"
        if name == "exit":
            neat.end.remote()
        del neat
        wait_until(lambda folder=folder: zray.get(zray.put(1)) and (folder / "del").exists())
        assert (folder / "shutdown").exists()


def test_unpicklable_results_are_the_callers_error(isolation):
    counter = Actor.options(isolation=isolation).remote()
    with pytest.raises(SerializationError):
        zray.get(counter.unpicklable.remote(), timeout=10)
    assert zray.get(counter.add.remote(), timeout=10) == 1


def test_endless_recursion_is_an_error_and_the_actor_lives_on(isolation):
    counter = Actor.options(isolation=isolation).remote()
    with pytest.raises(RecursionError):
        zray.get(counter.recurse.remote(), timeout=20)
    assert zray.get(counter.add.remote(), timeout=10) == 1


def test_retry_exceptions_run_the_method_again():
    counter = Actor.remote()
    assert zray.get(counter.flaky.remote(3), timeout=10) == 4
    limited = Actor.remote()
    with pytest.raises(ConnectionError, match="try 2"):
        zray.get(limited.flaky.options(max_task_retries=1).remote(3), timeout=10)
    other = Actor.remote()
    with pytest.raises(ConnectionError, match="try 1"):
        zray.get(other.flaky.options(retry_exceptions=[KeyError]).remote(3), timeout=10)


def test_the_name_of_a_method_is_in_its_errors():
    counter = Actor.remote()
    with pytest.raises(TaskError, match="a name of its own"):
        zray.get(counter.named.remote(), timeout=10)
    with pytest.raises(TaskError, match="another"):
        zray.get(counter.named.options(name="another").remote(), timeout=10)


def test_a_method_that_is_not_there_is_named():
    counter = Actor.remote()
    with pytest.raises(AttributeError, match="missing"):
        counter.missing.remote()


def test_shared_actors_call_each_other_without_deadlock():
    counters = [Actor.options(isolation="shared").remote() for _ in range(12)]
    refs = [
        counter.call_other.remote([counters[(i + 4) % 12]])
        for i, counter in enumerate(counters[:4])
    ]
    assert zray.get(refs, timeout=20) == [5] * 4


def test_a_chain_of_shared_actors_may_be_deep():
    class Link:
        def __init__(self, following):
            self.following = following

        def depth(self):
            return 1 + (zray.get(self.following.depth.remote()) if self.following else 0)

    link = None
    for _ in range(30):
        link = zray.remote(Link).options(isolation="shared").remote(link)
    assert zray.get(link.depth.remote(), timeout=30) == 30


def test_a_killed_shared_actor_takes_no_other_along():
    victim, witness = (Actor.options(isolation="shared").remote() for _ in range(2))
    assert zray.get([victim.add.remote(), witness.add.remote()], timeout=10) == [1, 1]
    zray.kill(victim)
    with pytest.raises(ActorDiedError, match="kill"):
        zray.get(victim.add.remote(), timeout=10)
    assert zray.get(witness.add.remote(), timeout=10) == 2


def test_killing_a_shared_actor_drops_its_queue(tmp_path):
    class Slow:
        def wait_for(self, path):
            wait_until(lambda: os.path.exists(path))

        def touch(self, path):
            open(path, "w").close()

    slow = zray.remote(Slow).options(isolation="shared").remote()
    started, touched = str(tmp_path / "go"), str(tmp_path / "touched")
    waiting = slow.wait_for.remote(started)
    touch = slow.touch.remote(touched)
    zray.kill(slow)
    with pytest.raises(ActorDiedError):
        zray.get([waiting, touch], timeout=10)
    open(started, "w").close()
    others = [Actor.options(isolation="shared").remote() for _ in range(8)]
    zray.get([other.add.remote() for other in others], timeout=20)
    assert not os.path.exists(touched)


def test_the_runtime_context_of_an_actor(isolation):
    name = f"context-{isolation}"
    counter = Actor.options(name=name, num_cpus=0.5, isolation=isolation).remote()
    ref = counter.context.remote()
    found = zray.get(ref, timeout=10)
    assert found == {
        "actor": counter._actor_id.hex(),
        "task": ref.hex(),
        "job": zray.get_runtime_context().get_job_id(),
        "name": name,
        "namespace": "here",
        "resources": {"CPU": 0.5},
        "again": False,
        "call": "Counter.context",
    }
    assert zray.get(counter.myself.remote(), timeout=10) == counter


def test_a_restarted_actor_knows_that_it_is_one():
    @zray.remote(max_restarts=1, max_task_retries=1)
    class Phoenix:
        def pid(self):
            return os.getpid()

        def again(self):
            return zray.get_runtime_context().was_current_actor_reconstructed

    phoenix = Phoenix.remote()
    assert zray.get(phoenix.again.remote(), timeout=10) is False
    os.kill(zray.get(phoenix.pid.remote(), timeout=10), 9)
    assert zray.get(phoenix.again.remote(), timeout=20) is True


def test_what_an_actor_prints_before_it_crashes_arrives(capfd):
    @zray.remote
    class Talker:
        def crash(self):
            print("last words")
            os._exit(7)

    talker = Talker.remote()
    with pytest.raises(ActorDiedError, match="status 7"):
        zray.get(talker.crash.remote(), timeout=10)
    seen = []
    wait_until(lambda: seen.append(capfd.readouterr().out) or "last words" in "".join(seen))
    assert "(Talker" in "".join(seen)
