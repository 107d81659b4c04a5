"""Every way a driver with a node of its own can end, and that nothing stays behind.

What    Ctrl-C, kill -9, kill -9 with a forked child, death of the node under it.
Never   leaves a process: the fixture kills what a failed test has left.
"""

from __future__ import annotations

import os
import signal
import subprocess

import psutil

from tests.cluster.nodes import Place, line_of
from tests.waiting import wait_until

BUSY = """
    import sys, threading, time
    import numpy, zray

    context = zray.init(num_cpus=2)

    @zray.remote
    def forever():
        print("running", flush=True)
        threading.Event().wait()

    @zray.remote
    class Actor:
        def call(self):
            return 1

    @zray.remote
    def quick(x):
        return x + 1

    actor = Actor.remote()
    zray.get(actor.call.remote())
    array = zray.put(numpy.ones(1_000_000))
    ref = forever.remote()
"""


def _busy(place: Place, text: str) -> subprocess.Popen[str]:
    """Launch a driver that has a node and every kind of thing on it, and goes on with ``text``."""
    return place.launch(BUSY + text, embedded=True)


def _interrupt_its_wait(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Press Ctrl-C once the driver says and does "waiting"; returns what it printed to its end."""
    while line_of(child) != "waiting":
        continue
    process = psutil.Process(child.pid)
    wait_until(lambda: process.status() == psutil.STATUS_SLEEPING)
    # As a terminal does: the whole foreground process group.
    os.killpg(child.pid, signal.SIGINT)
    return child.communicate(timeout=20)


def _node_of(place: Place, directory: str) -> psutil.Process:
    (node,) = [
        process for process in place.processes(directory) if "zray.brokers" in process.cmdline()
    ]
    return node


def _nothing_is_left(place: Place, directory: str, timeout_s: float = 5.0) -> None:
    wait_until(
        lambda: not place.processes(directory) and not os.path.exists(directory),
        timeout_s,
        what="the end of the node and its directory",
    )


def test_a_killed_driver_takes_its_node_and_all_files_with_it(place: Place) -> None:
    child = _busy(
        place,
        """
    print(context.address, flush=True)
    zray.get(ref)
    """,
    )
    directory = line_of(child)
    assert len(place.processes(directory)) >= 3
    child.kill()
    child.wait()
    _nothing_is_left(place, directory)


def test_a_forked_child_of_a_killed_driver_does_not_keep_the_node(place: Place) -> None:
    child = _busy(
        place,
        """
    import os
    pid = os.fork()
    if pid == 0:
        # The child holds every socket of its parent open.
        threading.Event().wait()
    print(pid, flush=True)
    print(context.address, flush=True)
    zray.get(ref)
    """,
    )
    forked = int(line_of(child))
    directory = line_of(child)
    child.kill()
    child.wait()
    try:
        _nothing_is_left(place, directory)
    finally:
        os.kill(forked, signal.SIGKILL)


def test_ctrl_c_reaches_user_code_and_the_session_goes_on(place: Place) -> None:
    child = _busy(
        place,
        """
    print(context.address, flush=True)
    try:
        print("waiting", flush=True)
        zray.get(ref)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(zray.get(quick.remote(1), timeout=10), zray.get(actor.call.remote(), timeout=10))
    print(zray.get(array)[0])
    """,
    )
    directory = line_of(child)
    out, err = _interrupt_its_wait(child)
    assert child.returncode == 0, err
    assert [line for line in out.splitlines() if not line.startswith("(")] == [
        "interrupted",
        "2 1",
        "1.0",
    ]
    _nothing_is_left(place, directory)


def test_an_uncaught_ctrl_c_ends_the_driver_and_leaves_nothing(place: Place) -> None:
    child = _busy(
        place,
        """
    print(context.address, flush=True)
    print("waiting", flush=True)
    zray.get(ref)
    """,
    )
    directory = line_of(child)
    _out, err = _interrupt_its_wait(child)
    assert child.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    _nothing_is_left(place, directory)


def test_a_driver_whose_node_is_killed_gets_node_died_error(place: Place) -> None:
    child = _busy(
        place,
        """
    print(context.address, flush=True)
    try:
        zray.get(ref)
    except zray.exceptions.NodeDiedError as error:
        print("died", error)
    try:
        quick.remote(1)
        zray.put(1)
    except zray.exceptions.NodeDiedError:
        print("still dead")
    zray.shutdown()
    print(zray.is_initialized())
    """,
    )
    directory = line_of(child)
    wait_until(lambda: len(place.processes(directory)) >= 4)
    _node_of(place, directory).kill()
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, out + err
    words = [line.split()[0] for line in out.splitlines() if not line.startswith("(")]
    assert words == ["died", "still", "False"], out + err
    _nothing_is_left(place, directory)


def test_sigterm_of_an_embedded_node_is_told_to_its_driver(place: Place) -> None:
    child = _busy(
        place,
        """
    print(context.address, flush=True)
    try:
        zray.get(ref)
    except zray.exceptions.NodeDiedError as error:
        print("died")
    """,
    )
    directory = line_of(child)
    _node_of(place, directory).terminate()
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, out + err
    assert "died" in out
    _nothing_is_left(place, directory)


def test_what_tasks_print_last_is_printed_before_the_driver_ends(place: Place) -> None:
    program = """
    import sys, zray
    zray.init(num_cpus=1, log_to_driver=sys.argv[1] == "yes")

    @zray.remote
    def chatter():
        for line in range(500):
            print("line", line)
        print("no newline", end="", flush=True)
        print("oops", file=sys.stderr)

    zray.get(chatter.remote())
    """
    told = place.launch(program, "yes", embedded=True)
    out, err = told.communicate(timeout=20)
    assert told.returncode == 0, err
    lines = out.splitlines()
    assert len(lines) == 501
    assert lines[-1].startswith("(chatter ")
    assert lines[-1].endswith(") no newline")
    assert ") oops" in err
    silent = place.launch(program, "no", embedded=True)
    assert silent.communicate(timeout=20) == ("", "")
