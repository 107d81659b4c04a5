"""zray-node as its users see it: what it prints, what it leaves, with which exit code.

What    Every command with its --json, its refusals, and the files it keeps.
Never   touches the user's own node: every test has a folder of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cluster.nodes import COMMAND, Place, line_of
from tests.waiting import wait_until

# -- without a node ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["start", "status", "stop", "keygen", "run", "logs", "doctor", "bench"]
)
def test_every_command_explains_itself_with_examples(place: Place, command: str) -> None:
    done = place.run(command, "--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout
    assert f"zray-node {command}" in done.stdout


def test_help_states_the_exit_codes_and_version_the_version(place: Place) -> None:
    import zray

    done = place.run("--help")
    assert all(text in done.stdout for text in ("Exit codes", "3 no node runs there"))
    assert place.run("--version").stdout == f"zray-node {zray.__version__}\n"


def test_the_shell_completes_commands_and_options(place: Place) -> None:
    env = {"_ZRAY_NODE_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "zray-node st"}
    program = "import sys; sys.argv[0] = 'zray-node'\nfrom zray.cli import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        text=True,
        capture_output=True,
        env={**place.env, **env},
        check=False,
        timeout=20,
    )
    assert set(done.stdout.split()) == {"start", "status", "stop"}, done.stderr


def test_without_a_node_status_says_how_to_start_one(place: Place) -> None:
    done = place.run("status")
    assert done.returncode == 3
    assert "zray-node start" in done.stderr
    assert "Traceback" not in done.stderr
    told = place.run("status", "--json")
    assert told.returncode == 3
    assert json.loads(told.stdout)["type"] == "NoNodeError"


def test_stop_without_a_node_succeeds(place: Place) -> None:
    done = place.run("stop", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["stopped"] is False


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["start", "--num-cpu", "2"], {}, "--num-cpus"),
        (["start", "--resources", "{"], {}, "JSON"),
        (["start", "--object-store-memory", "many"], {}, "4GiB"),
        (["start"], {"ZRAY_NUM_CPU": "2"}, "ZRAY_NUM_CPUS"),
        (["run", "missing.py"], {}, "missing.py"),
        (["stat"], {}, "status"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_a_hint(
    place: Place, arguments: list[str], env: dict[str, str], said: str
) -> None:
    done = place.run(*arguments, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not place.processes()


def test_a_directory_too_long_for_sockets_is_refused(place: Place) -> None:
    done = place.run("start", "--dir", str(place.folder / ("d" * 100)))
    assert done.returncode == 1
    assert "too long" in done.stderr


def test_a_directory_open_to_others_is_refused(place: Place) -> None:
    place.node.mkdir()
    place.node.chmod(0o777)
    done = place.run("start", "--dir", str(place.node))
    assert done.returncode == 1
    assert "chmod 700" in done.stderr


# -- with a node ---------------------------------------------------------------------------------


def test_a_node_outlives_the_command_and_is_found_by_address_auto(place: Place) -> None:
    done = place.run(
        "start", "--dir", str(place.node), "--num-cpus", "1", "--resources", '{"license": 2}'
    )
    assert done.returncode == 0, done.stderr
    assert str(place.node) in done.stdout
    assert 'address="auto"' in done.stdout
    context = place.folder / f"zray-node-{os.getuid()}.json"
    assert context.stat().st_mode & 0o777 == 0o600
    assert place.node.stat().st_mode & 0o777 == 0o700
    program = """
    import zray
    with zray.init("auto") as context:
        print(context.address, context.resources["CPU"], context.resources["license"])
    """
    out = place.drive(program, env={"ZRAY_ADDRESS": ""})
    assert out.split() == [str(place.node), "1.0", "2.0"]
    assert place.run("stop").returncode == 0
    place.await_no_process()
    assert not context.exists()
    gone = place.launch(program, env={"ZRAY_ADDRESS": ""})
    _out, err = gone.communicate(timeout=20)
    assert "NodeStartError: address 'auto'" in err


def test_a_second_node_in_one_directory_is_refused_with_the_pid_of_the_first(place: Place) -> None:
    pid = place.start()["pid"]
    done = place.run("start", "--dir", str(place.node))
    assert done.returncode == 1
    assert f"pid {pid}" in done.stderr
    assert place.ask()["pid"] == pid
    other = place.run("start", "--dir", str(place.folder / "other"), "--num-cpus", "1", "--json")
    assert json.loads(other.stdout)["pid"] != pid
    assert place.run("stop", "--dir", str(place.folder / "other")).returncode == 0
    assert place.ask()["pid"] == pid


def test_of_two_starts_at_once_one_wins(place: Place) -> None:
    words = [*COMMAND, "start", "--dir", str(place.node), "--num-cpus", "1"]
    starts = [
        subprocess.Popen(
            words, env=place.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    told = [start.communicate(timeout=30) for start in starts]
    assert sorted(start.returncode for start in starts) == [0, 1], told
    assert any("already, with pid" in err for _out, err in told)
    assert place.ask()["uptime_s"] > 0


BUSY = """
    import sys, threading, numpy, zray
    zray.init(namespace="shop")

    @zray.remote
    def forever():
        threading.Event().wait()

    @zray.remote(num_cpus=0)
    class Till:
        def call(self):
            return 1

    till = Till.options(name="till").remote()
    zray.get(till.call.remote())
    array = zray.put(numpy.ones(1_000_000))
    refs = [forever.remote() for _ in range(5)]
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_status_shows_what_runs(place: Place) -> None:
    place.start()
    driver = place.launch(BUSY)
    assert line_of(driver) == "ready"
    wait_until(lambda: place.ask()["scheduler"]["running_tasks"] == 2)
    report = json.loads(place.run("status", "--json").stdout)
    assert report["resources"]["available"]["CPU"] == 0.0
    assert sum(row["count"] for row in report["tasks"]) == 5
    assert report["store"]["used_bytes"] >= 8_000_000
    assert [(row["name"], row["namespace"], row["state"]) for row in report["actors"]] == [
        ("till", "shop", "ALIVE")
    ]
    assert [row["state"] for row in report["jobs"]] == ["running"]
    assert report["problems"] == []
    shown = place.run("status")
    assert shown.returncode == 0
    assert "\x1b[" not in shown.stdout, "colours, though nobody looks at a terminal"
    for text in ("till", "Till", "shop", "driver0.py", "tasks queued", "object store"):
        assert text in shown.stdout
    before = place.ask("jobs")
    place.run("status")
    assert place.ask("jobs") == before, "looking at a node made it a job"


def test_stop_ends_a_busy_node_and_all_its_processes(place: Place) -> None:
    place.start()
    driver = place.launch(BUSY)
    assert line_of(driver) == "ready"
    assert place.run("stop").returncode == 0
    assert not place.processes()
    assert place.run("stop").returncode == 0


STOP_AND_LOOK = """
    import json, sys
    import psutil
    from zray import cli_node, node_directory

    where, pids = sys.argv[1], [int(pid) for pid in sys.argv[2:]]

    def lives(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    cli_node.stop(where, force=False, as_json=True)
    print(json.dumps([node_directory.holder_pid(where), list(filter(lives, pids))]))
"""


def test_the_moment_stop_returns_nothing_lives_and_a_node_may_start_there_again(
    place: Place,
) -> None:
    """It looks in the process of stop: the start of another one would give the node time to end."""
    place.start()
    driver = place.launch(BUSY)
    assert line_of(driver) == "ready"
    pids = [str(process.pid) for process in place.processes()]
    assert len(pids) >= 4
    told = place.drive(STOP_AND_LOOK, str(place.node), *pids)
    assert json.loads(told.splitlines()[-1]) == [None, []]
    assert place.start()["pid"] not in map(int, pids)


def test_stop_force_ends_a_node_that_does_not_answer(place: Place) -> None:
    pid = place.start()["pid"]
    os.kill(pid, signal.SIGSTOP)
    done = place.run("stop", "--force")
    assert done.returncode == 0, done.stderr
    place.await_no_process()


def test_start_block_stays_until_it_is_interrupted(place: Place) -> None:
    words = [*COMMAND, "start", "--dir", str(place.node), "--num-cpus", "1", "--block"]
    blocked = subprocess.Popen(
        words, env=place.env, text=True, stdout=subprocess.PIPE, start_new_session=True
    )
    assert blocked.stdout is not None
    with blocked.stdout as out:
        assert "A node runs in" in out.readline()
        assert blocked.poll() is None
        os.killpg(blocked.pid, signal.SIGINT)
        assert blocked.wait(20) == 0
    place.await_no_process()


# -- run -----------------------------------------------------------------------------------------


PROGRAM = """
    import os, signal, sys
    import zray
    context = zray.init()
    print(context.address)
    print(sys.argv[1:])
    if "wait" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        print("waiting", flush=True)
        signal.pause()
    sys.exit(7)
"""


def test_run_uses_the_last_node_and_hands_on_arguments_and_exit_code(place: Place) -> None:
    place.start()
    path = str(place.program(PROGRAM))
    done = place.run("run", path, "--epochs", "3", "-h")
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == [str(place.node), "['--epochs', '3', '-h']"]
    own = place.run("run", "--embedded", path)
    assert own.returncode == 7, own.stderr
    assert own.stdout.splitlines()[0] != str(place.node)


def test_run_without_a_node_brings_one_along(place: Place) -> None:
    done = place.run("run", str(place.program(PROGRAM)))
    assert done.returncode == 7, done.stderr
    place.await_no_process()
    refused = place.run("run", "--dir", str(place.node), str(place.program(PROGRAM)))
    assert refused.returncode == 3


def test_run_hands_on_signals(place: Place) -> None:
    place.start()
    child = subprocess.Popen(
        [*COMMAND, "run", str(place.program(PROGRAM)), "wait"],
        env=place.env,
        text=True,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    with child.stdout as out:
        while out.readline() != "waiting\n":
            assert child.poll() is None
        child.terminate()
        assert child.wait(20) == 9


def test_run_takes_a_module(place: Place) -> None:
    place.program("import sys; print(sys.argv[1:])", "main.py", "part")
    done = subprocess.run(
        [*COMMAND, "run", "-m", "part.main", "x"],
        env=place.env,
        text=True,
        cwd=place.folder,
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.stdout == "['x']\n", done.stderr


# -- logs, doctor, bench -------------------------------------------------------------------------


def test_logs_follows_what_is_printed_until_the_node_ends(place: Place) -> None:
    place.start()
    follower = subprocess.Popen(
        [*COMMAND, "logs", "--follow"], env=place.env, text=True, stdout=subprocess.PIPE
    )
    assert follower.stdout is not None
    with follower.stdout as out:
        place.drive("""
        import zray
        zray.init()

        @zray.remote
        def say():
            print("something")

        zray.get(say.remote())
        """)
        assert out.readline().endswith(") something\n")
        assert place.run("stop").returncode == 0
        assert follower.wait(20) == 0


def test_doctor_finds_this_machine_fit(place: Place) -> None:
    place.start()
    done = place.run("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    found = {row["check"]: row["level"] for row in report["findings"]}
    assert {
        "python",
        "pyzmq",
        "lmdb",
        "shared memory",
        "open files",
        "memory",
        "clock",
        "temporary folder",
        "settings",
        "node",
    } <= set(found)
    assert "what to do" in place.run("doctor").stdout


def test_doctor_says_when_every_process_compiles_anew(place: Place) -> None:
    def bytecode(**env: str) -> dict[str, str]:
        found = json.loads(place.run("doctor", "--json", env=env).stdout)["findings"]
        return next(row for row in found if row["check"] == "bytecode")

    nowhere = str(place.folder / "compiled")
    refused = bytecode(PYTHONPYCACHEPREFIX=nowhere, PYTHONDONTWRITEBYTECODE="1")
    assert refused["level"] == "warning"
    assert "compileall" in refused["advice"]
    allowed = bytecode(PYTHONPYCACHEPREFIX=nowhere, PYTHONDONTWRITEBYTECODE="")
    assert allowed["level"] == "ok"


def test_doctor_fails_where_sockets_cannot_be_made(place: Place) -> None:
    deep = place.folder / ("d" * 90)
    deep.mkdir()
    done = place.run("doctor", "--json", env={"ZRAY_TMPDIR": str(deep)})
    assert done.returncode == 1
    (row,) = [
        row for row in json.loads(done.stdout)["findings"] if row["check"] == "temporary folder"
    ]
    assert row["level"] == "failure"
    assert "ZRAY_TMPDIR" in row["advice"]


def test_doctor_clean_removes_what_dead_nodes_left_and_nothing_else(place: Place) -> None:
    living = place.start()
    dead = place.launch(
        """
    import sys, zray
    print(zray.init().address, flush=True)
    sys.stdin.read()
    """,
        embedded=True,
    )
    directory = line_of(dead)
    nodes = [
        process for process in place.processes(directory) if "zray.brokers" in process.cmdline()
    ]
    # The node first, so that nobody is left to remove the directory.
    nodes[0].kill()
    dead.kill()
    dead.wait()
    wait_until(lambda: not place.processes(directory))
    (place.folder / "zray-notes").mkdir()
    assert os.path.exists(directory)
    told = {row["found"] for row in json.loads(place.run("doctor", "--json").stdout)["findings"]}
    assert f"dead, left {directory}" in told
    report = json.loads(place.run("doctor", "--clean", "--json").stdout)
    assert report["removed"] == [directory]
    assert not os.path.exists(directory)
    assert (place.folder / "zray-notes").exists()
    assert place.ask()["pid"] == living["pid"]
    os.kill(living["pid"], signal.SIGKILL)
    place.await_no_process()
    assert place.run("doctor", "--clean").returncode == 0
    assert (place.node / "gcs").exists(), "the tables of a node that stays are not rubbish"
    assert not [path for path in place.node.iterdir() if path.is_socket()]
    assert not (place.folder / f"zray-node-{os.getuid()}.json").exists()


def test_bench_measures_and_leaves_nothing(place: Place) -> None:
    done = place.run("bench", "--quick", "--json", "--num-cpus", "2", timeout_s=50)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 9
    assert all(row["value"] > 0 for row in rows)
    place.await_no_process()
    assert not list(place.folder.glob("zray-*"))
