"""The Slurm script, with srun and scontrol played on this machine.

What    Order of head, members and driver, exit codes, and that nothing is left in any case.
Caller  scripts/test.
Never   needs Slurm.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess

import pytest

from tests.deploy.fakes import DEPLOY, RUN_TIMEOUT_S, Play, check_command_line
from tests.waiting import wait_until

SCRIPT = DEPLOY / "slurm.sh"
# One process a host at once, as the real one.
SRUN = r"""
printf 'srun %s\n' "$*" >>"$PLAY/log"
hosts=""
while :; do
  case "$1" in
    --nodelist=*) hosts=${1#*=}; shift ;;
    --nodes=*) nodes=${1#*=}; shift ;;
    -*) shift ;;
    *) break ;;
  esac
done
count=$(tr , '\n' <<<"$hosts" | wc -l)
[ "$count" -eq "$nodes" ] || { echo "srun: $nodes nodes, and $count in the list" >&2; exit 1; }
pids=""
for host in ${hosts//,/ }; do
  HOST=$host SLURMD_NODENAME=$host "$@" &
  pids="$pids $!"
done
status=0
for pid in $pids; do wait "$pid" || status=$?; done
exit $status
"""
SCONTROL = r"""
[ "$1 $2" = "show hostnames" ] && tr , '\n' <<<"$3"
"""


@pytest.fixture
def slurm(play: Play) -> Play:
    """Return a play with Slurm's commands in it."""
    play.command("srun", SRUN)
    play.command("scontrol", SCONTROL)
    return play


def job(play: Play, hosts: str, **more: str) -> dict[str, str]:
    """Return the variables that Slurm gives the script of a job; it runs on the first node."""
    return {
        "SLURM_JOB_ID": "70001",
        "SLURM_JOB_NODELIST": hosts,
        "SLURM_SUBMIT_DIR": str(play.folder / "home"),
        "HOST": hosts.split(",")[0],
        **more,
    }


def test_the_others_join_the_head_before_the_program_runs_and_all_stop_after_it(slurm):
    done = slurm.run(SCRIPT, "program.py", "--epochs", "3", **job(slurm, "a1,b2,c3"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    words = [line.split() for line in slurm.told("")]
    order = [(line[0], line[2]) for line in words if line[2] not in ("status", "keygen")]
    assert order[0] == ("a1", "start")
    assert sorted(order[1:3]) == [("b2", "start"), ("c3", "start")]
    assert order[3] == ("a1", "run")
    assert sorted(order[4:]) == [("a1", "stop"), ("b2", "stop"), ("c3", "stop")]
    assert slurm.nodes == []


def test_every_node_tells_its_own_name_and_all_have_the_same_ports_and_keys(slurm):
    slurm.run(SCRIPT, "program.py", **job(slurm, "a1,b2"))
    head, member = (line.split()[3:] for line in slurm.told("start"))

    def value(words: list[str], option: str) -> str:
        return words[words.index(option) + 1]

    assert "--head" in head
    assert "--join" not in head
    assert value(member, "--join") == f"a1:{value(head, '--port')}"
    assert [value(words, "--advertise") for words in (head, member)] == ["a1", "b2"]
    for option in ("--port", "--keys", "--dir"):
        assert value(head, option) == value(member, option)
    (made,) = slurm.told("keygen")
    assert made.split()[-1] == value(head, "--keys")


def test_one_node_is_a_cluster_too(slurm):
    done = slurm.run(SCRIPT, "program.py", **job(slurm, "a1"))
    assert done.returncode == 0, done.stderr
    assert len(slurm.told("start")) == 1


def test_the_jobs_exit_code_is_the_programs(slurm):
    done = slurm.run(SCRIPT, "program.py", **job(slurm, "a1,b2", PROGRAM="exit 7"))
    assert done.returncode == 7
    assert slurm.nodes == []


def test_the_keys_are_private_while_the_job_runs_and_gone_after_it(slurm):
    look = 'stat -c %a "$HOME"/.zray-keys.* "$HOME"/.zray-keys.*/keys.json'
    done = slurm.run(SCRIPT, "program.py", **job(slurm, "a1", PROGRAM=look))
    assert done.stdout.split() == ["700", "600"]
    assert list((slurm.folder / "home").iterdir()) == []


def test_a_node_that_does_not_start_ends_the_job_at_once(slurm):
    body = (slurm.folder / "bin" / "zray-node").read_text(encoding="utf-8")
    broken = body.replace("start)\n", 'start)\n    [ "$me" != b2 ] || exit 1\n')
    (slurm.folder / "bin" / "zray-node").write_text(broken, encoding="utf-8")
    done = slurm.run(SCRIPT, "program.py", **job(slurm, "a1,b2"))
    assert done.returncode != 0
    assert "did not start" in done.stderr
    assert slurm.told("run") == []
    assert slurm.nodes == []


def test_the_end_of_the_time_limit_ends_the_program_and_the_nodes(slurm):
    process = subprocess.Popen(
        [str(SCRIPT), "program.py"],
        env=slurm.environment(**job(slurm, "a1,b2", PROGRAM='touch "$PLAY/runs"; exec sleep 60')),
        cwd=slurm.folder / "home",
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until((slurm.folder / "runs").exists, RUN_TIMEOUT_S, what="the program")
        process.send_signal(signal.SIGTERM)
        assert process.wait(RUN_TIMEOUT_S) == 143
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert slurm.nodes == []
    assert list((slurm.folder / "home").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # Nothing of the job's session is left.


def test_two_jobs_on_one_host_have_ports_of_their_own(slurm):
    for number in ("70001", "70002"):
        slurm.run(SCRIPT, "program.py", **job(slurm, "a1") | {"SLURM_JOB_ID": number})
    ports = [word for line in slurm.told("start") for word in line.split() if word.isdigit()]
    assert len(set(ports)) == 2
    assert all(1024 < int(port) < 32768 for port in ports)


def test_without_a_program_it_says_how_it_is_called(slurm):
    done = slurm.run(SCRIPT)
    assert done.returncode == 2
    assert "sbatch --nodes" in done.stderr
    assert slurm.log == []


def test_every_command_line_is_one_that_zray_node_knows(slurm):
    slurm.run(SCRIPT, "program.py", "--epochs", "3", **job(slurm, "a1,b2"))
    for line in slurm.told(""):
        check_command_line(shlex.split(line)[1:])
