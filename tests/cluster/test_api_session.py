"""The life of a session: init, shutdown, fork, and what is left behind.

What    init twice, after shutdown, with options right and wrong, in threads; refs and handles of
        a session that has ended; forked children; the leak check.
Never   shares a session between tests.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import zray
from tests.cluster.programs import Counter, double, wait_for
from tests.waiting import wait_until
from zray import errors


@pytest.fixture(autouse=True)
def nothing_before_or_after():
    assert not zray.is_initialized()
    yield
    zray.shutdown()


@zray.remote
def variable(name):
    return os.environ.get(name)


@zray.remote
class Reader:
    def variable(self, name):
        return os.environ.get(name)


# -- init ----


def test_init_returns_where_the_node_is_and_ends_it_as_a_context_manager():
    with zray.init(num_cpus=1, resources={"disk": 3}) as context:
        assert os.path.isdir(context.address)
        assert context["node_id"] == context.node_id == zray.nodes()[0]["NodeID"]
        assert context.resources["disk"] == 3
        assert zray.get(double.remote(1)) == 2
        directory = context.address
    assert not zray.is_initialized()
    assert not os.path.exists(directory)


@pytest.mark.parametrize(("given", "ledgers"), [({}, 1), ({"lineage_bytes": 0}, 0)])
def test_init_takes_what_else_a_node_can_be_told(given, ledgers):
    zray.init(num_cpus=1, **given)
    assert zray.get(double.remote(1)) == 2
    assert zray.state.ask("status")["gcs"]["ledgers"] == ledgers


def test_init_twice_is_an_error_unless_told_otherwise():
    first = zray.init(num_cpus=1)
    with pytest.raises(errors.OptionError, match="ignore_reinit_error"):
        zray.init(num_cpus=1)
    assert zray.init(ignore_reinit_error=True).node_id == first.node_id


def test_init_works_again_after_shutdown_and_functions_and_classes_go_on():
    for _ in range(3):
        zray.init(num_cpus=1)
        assert zray.get(double.remote(4)) == 8
        assert zray.get(Counter.remote().add.remote()) == 1
        zray.shutdown()
        zray.shutdown()


def test_the_first_call_starts_a_node_where_nobody_called_init():
    assert zray.get(double.remote(4)) == 8
    assert zray.is_initialized()


def test_many_threads_that_start_zray_at_once_share_one_node():
    seen, barrier = [], threading.Barrier(8)

    def start():
        barrier.wait(10)
        seen.append(
            (zray.init(num_cpus=1, ignore_reinit_error=True).node_id, zray.get(double.remote(2)))
        )

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_init_joins_a_node_by_its_directory():
    context = zray.init(num_cpus=1, namespace="shared")
    code = (
        f"import zray; zray.init({context.address!r}, namespace='shared');"
        "print(zray.get(zray.get_actor('tally').add.remote(5)))"
    )
    tally = Counter.options(name="tally").remote()
    assert zray.get(tally.add.remote(1)) == 1
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.stdout.strip() == "6", done.stderr
    assert zray.get(tally.add.remote(1)) == 7


def test_options_of_a_running_node_are_refused_when_joining_it():
    context = zray.init(num_cpus=1)
    address = context.address
    code = (
        f"import zray\ntry: zray.init({address!r}, num_cpus=0)\n"
        "except zray.exceptions.OptionError as error: print(error.option)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.stdout.strip() == "num_cpus", done.stderr


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"include_dashboard": True}, "include_dashboard"),
        ({"local_mode": True}, "local_mode"),
        ({"num_cpu": 2}, "num_cpu"),
        ({"num_cpus": -1}, "num_cpus"),
        ({"num_cpus": "two"}, "num_cpus"),
        ({"resources": {"CPU": 2}}, "resources"),
        ({"object_store_memory": 10}, "object_store_memory"),
        ({"runtime_env": {"pip": ["x"]}}, "runtime_env"),
        ({"address": "ray://somewhere:10001"}, "address"),
        ({"_system_config": {"x": 1}}, "_system_config"),
        ({"labels": {"zone": 1}}, "labels"),
        ({"head": True}, "head"),
        ({"driver_port": 70000}, "driver_port"),
    ],
)
def test_init_refuses_what_it_does_not_honour_and_names_the_option(options, option):
    with pytest.raises(errors.OptionError) as caught:
        zray.init(**options)
    assert caught.value.option == option
    assert option in str(caught.value)
    assert not zray.is_initialized()


def test_options_of_ray_that_ask_for_nothing_pass():
    zray.init(
        num_cpus=1,
        include_dashboard=False,
        local_mode=False,
        logging_level=logging.ERROR,
        dashboard_host=None,
        configure_logging=False,
    )
    assert logging.getLogger("zray").level == logging.ERROR
    logging.getLogger("zray").setLevel(logging.NOTSET)


def test_there_is_no_node_at_an_address_where_none_is(tmp_path):
    with pytest.raises(errors.NodeStartError, match="no node"):
        zray.init(str(tmp_path))


def test_the_environment_of_a_job_reaches_tasks_actors_and_nested_tasks():
    zray.init(num_cpus=2, runtime_env={"env_vars": {"COLOUR": "green"}})

    @zray.remote
    def nested():
        return zray.get(variable.remote("COLOUR"))

    assert zray.get(variable.remote("COLOUR")) == "green"
    assert zray.get(nested.remote()) == "green"
    assert zray.get(Reader.remote().variable.remote("COLOUR")) == "green"
    own = variable.options(runtime_env={"env_vars": {"COLOUR": "red"}})
    assert zray.get(own.remote("COLOUR")) == "red"
    assert "COLOUR" not in os.environ


def test_the_node_lives_in_the_folder_it_is_given(run_folder):
    context = zray.init(num_cpus=1, _temp_dir=str(run_folder / "t"))
    assert context.address.startswith(str(run_folder / "t"))


# -- after the end ----


def test_refs_and_handles_of_an_ended_session_raise_a_typed_error(tmp_path):
    zray.init(num_cpus=3)
    ready, late = double.remote(1), wait_for.remote("/nowhere")
    large = zray.put(np.ones(100_000))
    mapped = double.map(range(10))
    counter = Counter.remote()
    zray.get([ready, counter.add.remote()])
    zray.get(mapped)
    zray.shutdown()
    with pytest.raises(errors.NotInitializedError):
        mapped[3]
    for old in (ready, large, late, [ready, late], mapped):
        with pytest.raises(errors.NotInitializedError, match="shutdown"):
            zray.get(old)
    with pytest.raises(errors.NotInitializedError):
        counter.add.remote()
    with pytest.raises(errors.NotInitializedError):
        zray.wait([late], timeout=1)
    with pytest.raises(errors.NotInitializedError):
        zray.cancel(late)
    with pytest.raises(errors.NotInitializedError):
        zray.kill(counter)
    zray.init(num_cpus=1)
    with pytest.raises(errors.NotInitializedError):
        zray.get(ready)
    with pytest.raises(errors.NotInitializedError):
        double.remote(ready)
    with pytest.raises(errors.NotInitializedError):
        double.remote([ready])
    with pytest.raises(errors.NotInitializedError):
        zray.put({"old": ready})
    with pytest.raises(errors.NotInitializedError):
        double.remote(counter)
    with pytest.raises(errors.NotInitializedError):
        counter.add.remote()
    with pytest.raises(errors.NotInitializedError):
        zray.get([double.remote(1), ready])
    assert zray.get(double.remote(1)) == 2


def test_an_array_outlives_the_session_it_came_from():
    zray.init(num_cpus=1)
    array = zray.get(zray.put(np.arange(100_000)))
    zray.shutdown()
    assert array[99_999] == 99_999


def test_shutdown_ends_the_waits_of_other_threads_with_a_typed_error():
    zray.init(num_cpus=1)
    ref = wait_for.remote("/nowhere")
    future = ref.future()
    caught = []

    def wait():
        try:
            zray.get(ref)
        except BaseException as error:
            caught.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: ref.client.io_lock.locked())
    zray.shutdown()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in caught] == [errors.NotInitializedError] * 3
    with pytest.raises(errors.NotInitializedError):
        future.result(timeout=10)


def test_shutdown_ends_an_await_with_a_typed_error():
    async def main():
        zray.init(num_cpus=1)
        waiting = asyncio.ensure_future(_value(wait_for.remote("/nowhere")))
        await asyncio.sleep(0)
        zray.shutdown()
        with pytest.raises(errors.NotInitializedError):
            await asyncio.wait_for(waiting, 10)

    asyncio.run(main())


async def _value(ref):
    return await ref


# -- forks ----


def _in_child(function) -> str:
    """Run a function in a forked child and return what it returns, or its error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_zray_in_a_forked_child_is_a_typed_error_that_says_what_to_do():
    zray.init(num_cpus=3)
    late, counter = wait_for.remote("/nowhere"), Counter.remote()
    uses = [
        lambda: double.remote(1),
        lambda: zray.get(late),
        lambda: zray.put(1),
        lambda: zray.wait([late]),
        lambda: counter.add.remote(),
        lambda: Counter.remote(),
        lambda: zray.nodes(),
        lambda: double.map([1]),
        lambda: zray.kill(counter),
        lambda: zray.cancel(late),
        lambda: late.future(),
    ]
    for use in uses:
        text = _in_child(use)
        assert text.startswith("ForkedProcessError"), text
        assert "zray.init()" in text
    assert zray.get(double.remote(3)) == 6


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_a_session_of_its_own():
    node = zray.init(num_cpus=1).node_id

    def child():
        assert not zray.is_initialized()
        context = zray.init(num_cpus=1)
        assert context.node_id != node
        value = zray.get(double.remote(4))
        zray.shutdown()
        return value

    assert _in_child(child) == "8"
    assert zray.get(double.remote(3)) == 6


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_ends_or_shuts_down_leaves_the_parents_node_alone():
    zray.init(num_cpus=1)
    assert _in_child(zray.shutdown) == "None"
    assert zray.get(double.remote(3)) == 6


# -- nothing is left ----


def test_shutdown_leaves_nothing_behind(no_leaks):
    for _ in range(2):
        zray.init(num_cpus=2)
        counter = Counter.remote()
        array = np.ones(300_000)
        zray.get([double.remote(array), counter.add.remote(), *double.map(range(5000))[:3]])
        double.remote(1).future().result(timeout=20)
        asyncio.run(_value(double.remote(1)))
        wait_for.remote("/nowhere")
        Counter.options(name="left", lifetime="detached").remote()
        del counter
        zray.shutdown()


def test_an_init_that_fails_leaves_nothing_behind(no_leaks):
    with pytest.raises(errors.NodeStartError):
        zray.init("/nowhere/at/all")
    with pytest.raises(errors.OptionError):
        zray.init(num_cpus=-1)
    with pytest.raises(errors.ZrayError):
        zray.init(num_cpus=1, spill_directory="/proc/no/such/folder")


def test_a_program_that_ends_without_shutdown_leaves_nothing(tmp_path):
    code = (
        "import zray\n@zray.remote\ndef f(): return 1\n"
        f"c = zray.init(num_cpus=1, _temp_dir={str(tmp_path)!r})\n"
        "ref = f.remote()\nprint(zray.get(ref))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.stdout.strip() == "1", done.stderr
    assert not done.stderr
    assert not os.listdir(tmp_path)


def test_a_node_that_is_killed_is_a_typed_error_and_the_next_session_works():
    zray.init(num_cpus=1)
    counter = Counter.remote()
    zray.get(counter.add.remote())
    late = wait_for.remote("/nowhere")
    os.kill(zray.state.ask("status")["pid"], signal.SIGKILL)
    for use in (
        lambda: zray.get(late),
        lambda: zray.put(np.ones(100_000)),
        lambda: zray.nodes(),
        lambda: counter.add.remote(),
        lambda: zray.get(double.remote(1)),
    ):
        with pytest.raises(errors.NodeDiedError, match="gone"):
            use()
    zray.shutdown()
    zray.init(num_cpus=1)
    assert zray.get(double.remote(1)) == 2
