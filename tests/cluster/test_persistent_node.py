"""A node that stays: drivers come, are killed, and come again; so does the node.

What    What a dead driver leaves behind, what outlives it, which modules its workers import, what
        survives the node itself, and that one driver does not starve another.
Never   shares a node between tests.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.cluster.nodes import Place, line_of
from tests.waiting import wait_until


def _idle(place: Place) -> dict[str, Any] | None:
    """Return the node's status once nobody uses it and nothing is held, else None."""
    status: dict[str, Any] = place.ask()
    busy = (
        status["drivers"]
        or status["actor_counts"]
        or status["object_counts"]["objects"]
        or status["store"]["used_bytes"]
        or status["gcs"]["ledgers"]
        or status["scheduler"]["queued_tasks"]
        or status["scheduler"]["running_tasks"]
        or set(status["scheduler"]["workers"]) != {"idle"}
    )
    free = status["resources"]["available"] == status["resources"]["total"]
    return status if free and not busy else None


HEAVY = """
    import threading
    import numpy, zray
    zray.init()

    @zray.remote
    def forever(array):
        threading.Event().wait()

    @zray.remote(num_cpus=0)
    class Parent:
        def spawn(self):
            self.child = forever.remote(numpy.zeros(100_000))
            return zray.get(self.child)

    array = zray.put(numpy.ones(1_000_000))
    parents = [Parent.options(name=f"p{i}").remote() for i in range(2)]
    calls = [parent.spawn.remote() for parent in parents]
    waiting = [forever.remote(array) for _ in range(1000)]
    print("ready", flush=True)
    zray.get(waiting)
"""


SPAWNS = """
    import zray
    zray.init()

    @zray.remote
    def nothing():
        pass

    @zray.remote(num_cpus=0)
    def spawn():
        while True:
            zray.get([nothing.remote() for _ in range(20)])

    spawning = [spawn.remote() for _ in range(2)]
    print("ready", flush=True)
    zray.get(spawning)
"""


def test_what_tasks_submit_when_their_driver_is_dead_already_leaves_no_ledger(
    place: Place,
) -> None:
    """The words of a worker come after its driver's end: they made the job's ledger anew."""
    place.start()
    for _ in range(5):
        child = place.launch(SPAWNS)
        assert line_of(child) == "ready"
        before = place.ask()["gcs"]["ledger_records"]
        wait_until(lambda: place.ask()["gcs"]["ledger_records"] > before + 20)  # noqa: B023
        child.kill()
        child.wait()
        wait_until(lambda: _idle(place), what="an idle node")


MADE_IN_A_TASK = """
    import zray
    zray.init()

    @zray.remote
    class Keeper:
        def keep(self, handle):
            self.handle = handle

    @zray.remote
    def make_two():
        one, other = Keeper.remote(), Keeper.remote()
        zray.get([one.keep.remote(other), other.keep.remote(one)])

    zray.get(make_two.remote())
    print(zray.get_runtime_context().get_job_id())
"""


def test_actors_that_a_jobs_tasks_made_end_with_the_job(place: Place) -> None:
    """Two that hold each other: nothing but the end of their job ends them."""
    place.start("--num-cpus", "4")
    job = place.drive(MADE_IN_A_TASK).strip()
    wait_until(lambda: _idle(place), what="an idle node")
    assert [(row["job_id"], row["state"]) for row in place.ask("actors")] == [(job, "DEAD")] * 2


def test_nothing_of_a_killed_driver_stays_on_the_node(place: Place) -> None:
    place.start()
    for _ in range(2):
        child = place.launch(HEAVY)
        assert line_of(child) == "ready"
        wait_until(lambda: place.ask()["scheduler"]["queued_tasks"] > 0)
        child.kill()
        child.wait()
        wait_until(lambda: _idle(place), what="an idle node")
    states = [job["state"] for job in place.ask("jobs")]
    assert states == ["failed", "failed"]
    sockets = {path.name for path in place.node.iterdir() if path.is_socket()}
    workers = {row["worker"] for row in place.ask("workers")}
    assert {name.removesuffix(".e") for name in sockets} - workers == {"node", "node.sock"}
    assert (
        place.drive("""
    import zray
    zray.init()

    @zray.remote
    def add(x, y):
        return x + y

    print(zray.get(add.remote(1, 2), timeout=10))
    """)
        == "3\n"
    )
    wait_until(lambda: _idle(place), what="an idle node")
    assert [job["state"] for job in place.ask("jobs")].count("succeeded") == 1


COUNTER = """
    import sys, zray
    zray.init(namespace="shop")

    @zray.remote(num_cpus=0)
    class Counter:
        def __init__(self):
            self.count = 0
        def add(self):
            self.count += 1
            return self.count
"""


def test_a_detached_actor_outlives_its_driver_with_its_state(place: Place) -> None:
    place.start()
    child = place.launch(
        COUNTER
        + """
    counter = Counter.options(name="visits", lifetime="detached").remote()
    mortal = Counter.options(name="mortal").remote()
    print(zray.get([counter.add.remote(), mortal.add.remote()]), flush=True)
    sys.stdin.read()
    """
    )
    assert line_of(child) == "[1, 1]"
    child.kill()
    child.wait()
    wait_until(lambda: place.ask()["actor_counts"] == {"ALIVE": 1})
    out = place.drive("""
    import zray
    zray.init(namespace="elsewhere")
    counter = zray.get_actor("visits", namespace="shop")
    print(zray.get(counter.add.remote(), timeout=10))
    for name, namespace in (("mortal", "shop"), ("visits", None)):
        try:
            zray.get_actor(name, namespace=namespace)
        except ValueError as error:
            print(type(error).__name__)
    """)
    assert out.split() == ["2", "ActorNotFoundError", "ActorNotFoundError"]
    out = place.drive(
        COUNTER
        + """
    counter = Counter.options(name="visits", lifetime="detached", get_if_exists=True).remote()
    print(zray.get(counter.add.remote(), timeout=10))
    zray.kill(counter)
    """
    )
    assert out == "3\n"
    wait_until(lambda: _idle(place), what="an idle node")


KV = """
    import sys, zray
    from zray import api
    from zray.protocol import messages
    zray.init()

    def kv(op, *arguments):
        return api.runtime().request(messages.KV, op, list(arguments))
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_tables_survive_the_node(place: Place, end: str) -> None:
    first = place.start()
    place.drive(
        KV
        + """
    @zray.remote(num_cpus=0)
    class Actor:
        def call(self):
            return 1

    actor = Actor.options(name="name", lifetime="detached", namespace="n").remote()
    zray.get(actor.call.remote())
    kv("put", "space", b"key", b"value", True)
    """
    )
    if end == "stop":
        assert place.run("stop", "--dir", str(place.node)).returncode == 0
    else:
        os.kill(first["pid"], signal.SIGKILL)
    place.await_no_process()
    second = place.start()
    assert second["node"] != first["node"]
    out = place.drive(
        KV
        + """
    print(kv("get", "space", b"key"))

    @zray.remote(num_cpus=0)
    class Actor:
        def call(self):
            return 2

    # The actor died with its node, so its name is free.
    actor = Actor.options(name="name", lifetime="detached", namespace="n").remote()
    print(zray.get(actor.call.remote(), timeout=10))
    """
    )
    assert out == "b'value'\n2\n"
    jobs = place.ask("jobs")
    assert [job["state"] for job in jobs] == ["succeeded", "succeeded"]
    assert {actor["state"] for actor in place.ask("actors")} == {"DEAD", "ALIVE"}


IMPORTER = """
    import sys, zray
    import recipe
    zray.init()

    @zray.remote
    def cook():
        return recipe.NAME

    @zray.remote
    def nested():
        return zray.get(cook.remote())

    @zray.remote(num_cpus=0)
    class Cook:
        def cook(self):
            import recipe
            return recipe.NAME, zray.get(nested.remote())

    found = zray.get([cook.remote(), nested.remote()], timeout=20)
    shared = Cook.options(isolation="shared", num_cpus=None).remote()
    actors = [Cook.remote(), shared]
    found += [name for actor in actors for name in zray.get(actor.cook.remote(), timeout=20)]
    print(found, flush=True)
    if "stay" in sys.argv:
        sys.stdin.read()
"""


def test_workers_import_what_the_driver_of_their_task_can_import(place: Place) -> None:
    """Two drivers at once have modules of one name, and then one of them edits its own."""
    place.start()
    place.program("NAME = 'soup'\n", "recipe.py", "first")
    place.program("NAME = 'cake'\n", "recipe.py", "second")
    soup = place.launch(IMPORTER, "stay", folder="first")
    assert line_of(soup) == str(["soup"] * 6)
    assert place.drive(IMPORTER, folder="second") == f"{['cake'] * 6}\n"
    place.program("NAME = 'tart, with salt'\n", "recipe.py", "second")
    assert place.drive(IMPORTER, folder="second") == f"{['tart, with salt'] * 6}\n"
    soup.kill()
    soup.wait()
    wait_until(lambda: _idle(place), what="an idle node")


def test_output_goes_to_the_driver_of_the_job_and_to_the_log(place: Place) -> None:
    place.start()
    talker = """
    import sys, zray
    zray.init()

    @zray.remote
    def say(word):
        print(word)

    zray.get(say.remote(sys.argv[1]))
    """
    listener = place.launch("""
    import sys, zray
    zray.init()
    print("here", flush=True)
    print(sys.stdin.readline())
    """)
    assert line_of(listener) == "here"
    out = place.drive(talker, "hello")
    assert [line.split(") ")[-1] for line in out.splitlines() if line.startswith("(say ")] == [
        "hello"
    ]
    heard, _err = listener.communicate("over\n", timeout=20)
    assert heard == "over\n\n"
    logged = place.run("logs", "--dir", str(place.node))
    assert logged.stdout.rstrip().endswith(") hello")
    assert " has ended" not in place.run("logs", "--node", "--dir", str(place.node)).stdout


def test_a_killed_node_is_told_to_its_drivers_and_takes_its_workers_along(place: Place) -> None:
    report = place.start()
    child = place.launch(
        HEAVY.replace(
            "zray.get(waiting)",
            """
    try:
        zray.get(waiting)
    except zray.exceptions.NodeDiedError as error:
        print("died", flush=True)
    """,
        )
    )
    assert line_of(child) == "ready"
    wait_until(lambda: len(place.processes()) >= 4)
    os.kill(report["pid"], signal.SIGKILL)
    assert line_of(child) == "died"
    _out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    place.await_no_process()
    # It is not there, and says so; and its directory is no obstacle to the next one.
    assert place.run("status", "--dir", str(place.node)).returncode == 3
    place.start()
    assert place.drive("import zray; print(zray.get(zray.put(1)))") == "1\n"


def test_sigterm_ends_a_node_and_all_its_processes(place: Place) -> None:
    report = place.start()
    child = place.launch(HEAVY)
    assert line_of(child) == "ready"
    os.kill(report["pid"], signal.SIGTERM)
    place.await_no_process()
    _out, err = child.communicate(timeout=20)
    assert "NodeDiedError" in err
    assert not [path for path in place.node.iterdir() if path.is_socket()]
    assert "SIGTERM" in (place.node / "node.log").read_text()


def test_a_driver_that_floods_the_node_does_not_starve_another(place: Place) -> None:
    place.start()
    flood = place.launch("""
    import time, zray
    zray.init()

    @zray.remote
    def step(item):
        end = time.perf_counter() + 0.005
        while time.perf_counter() < end:
            pass

    refs = [step.remote(i) for i in range(20_000)]
    print("flooding", flush=True)
    zray.get(refs)
    """)
    assert line_of(flood) == "flooding"
    wait_until(lambda: place.ask()["scheduler"]["queued_tasks"] > 1000)
    out = place.drive("""
    import zray
    zray.init()

    @zray.remote
    def quick(x):
        return x

    print(zray.get([quick.remote(i) for i in range(3)], timeout=15))
    """)
    assert out == "[0, 1, 2]\n"
    assert place.ask()["scheduler"]["queued_tasks"] > 0, "the flood was over: nothing was shown"
