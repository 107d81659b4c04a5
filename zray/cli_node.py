"""What `zray-node start`, `stop` and `run` do.

What    Starts a node that outlives the shell, ends one with all its processes, runs a program
        against one.
Caller  zray/cli.py.
Never   kills a process that it does not know to be the node of the directory.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

from zray import cli_cluster, configuration, errors, launch_driver, node_address, node_directory
from zray.protocol.limits import SHUTDOWN_GRACE_S

_STOP_TIMEOUT_S = SHUTDOWN_GRACE_S + 10.0
_POLL_S = 0.01


class NoNodeError(errors.NodeStartError):
    """No node runs where one was looked for.

    Who acts: the caller. What to do: start one.
    """


def chosen(directory: str | None) -> str:
    """Return the directory that a command means, whether a node runs in it or not.

    Given, else ZRAY_ADDRESS or a file's address, else the last one started, else the default.
    """
    if directory is not None:
        return os.path.abspath(directory)
    address = configuration.resolve({}).values.get("address")
    if isinstance(address, str) and address not in ("auto", "local"):
        return _chosen_by(address)
    return node_address.remembered() or node_directory.default_directory()


def _chosen_by(address: str) -> str:
    joins = node_address.cluster_of(address)
    if joins is None:
        return os.path.abspath(address)
    found = launch_driver.member_here(joins)
    if found is None:
        raise NoNodeError(
            f"no node of the cluster at {address} runs on this machine: ask on a machine that has"
            " one, or name a node of yours with --dir"
        )
    return found


def running(directory: str | None) -> str:
    """Return the directory that a command means; raises NoNodeError where no node runs in it."""
    found = chosen(directory)
    if node_directory.holder_pid(found) is None:
        left = " (the last one there has ended)" if node_directory.was_a_node(found) else ""
        raise NoNodeError(f"no node runs in {found}{left}: start one with `zray-node start`")
    node_directory.check_private(found)
    return found


def living() -> str | None:
    """Return the directory of the node that a command means without naming one, if it runs."""
    try:
        return running(None)
    except (NoNodeError, errors.OptionError):
        return None


# -- start -------------------------------------------------------------------------------------


def start(given: Mapping[str, Any], directory: str | None, *, block: bool, as_json: bool) -> int:
    """Start a node that stays; returns the exit code."""
    found = configuration.resolve(given, called="zray-node start")
    settings, cluster = found.node(), found.cluster()
    default = node_directory.default_directory()
    if cluster is not None:
        settings["cluster"] = cluster = cli_cluster.node_settings(cluster)
        if cluster["join"]:
            default = cli_cluster.free_directory(default)
    where = node_directory.prepare(directory or default)
    pid = node_directory.holder_pid(where)
    if pid is not None:
        raise errors.NodeStartError(
            f"a node runs in {where} already, with pid {pid}: use it, stop it with `zray-node stop"
            f" --dir {where}`, or start another one with --dir"
        )
    from zray import launch

    process = launch.launch_node(where, settings)
    node_address.remember(where)
    if block:
        _end_with_us(process)
    _announce(where, process.pid, as_json=as_json)
    if block:
        status = process.wait()
        node_address.forget(where)
        return 0 if status == 0 else 1
    # It is init's child once we have ended; nobody here will wait for it.
    process.returncode = 0
    return 0


def _announce(where: str, pid: int, *, as_json: bool) -> None:
    from zray.observer import Observer

    with Observer(where) as observer:
        found = observer.ask("status")
    total, cluster = found["resources"]["total"], found["cluster"]
    if as_json:
        report = {"directory": where, "pid": pid, "node": found["node"], "resources": total}
        if cluster is not None:
            address, keys = cluster["address"], cluster["keys"]
            report["address"] = address.removeprefix("tcp://")
            report["nodes"] = cluster["nodes"]
            report["join"] = cli_cluster.join_command(address, keys)
            report["driver"] = cli_cluster.driver_address(address)
        print(json.dumps(report), flush=True)
        return
    offered = ", ".join(f"{amount:g} {name}" for name, amount in total.items() if name != "memory")
    lines = [
        f"A node runs in {where} (pid {pid}): {offered}.",
        "",
        f'  in Python      zray.init(address="auto")     or address={where!r}',
        "  a program      zray-node run program.py",
        "  its state      zray-node status",
        "  its end        zray-node stop",
    ]
    if cluster is not None:
        lines[1:1] = [f"It is one of {cluster['nodes']} of a cluster."] * (cluster["nodes"] > 1)
        elsewhere = cli_cluster.driver_address(cluster["address"])
        lines.insert(-3, f'  elsewhere      zray.init("{elsewhere}")')
        lines += ["", cli_cluster.invitation(cluster["address"], cluster["keys"])]
    print("\n".join(lines), flush=True)


def _end_with_us(process: subprocess.Popen[bytes]) -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        process.terminate()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)


# -- stop --------------------------------------------------------------------------------------


def stop(directory: str | None, *, force: bool, as_json: bool) -> int:
    """End a node and wait until all its processes are gone; returns the exit code."""
    report, text = _end(chosen(directory), force=force)
    print(json.dumps(report) if as_json else text, flush=True)
    return 0


def stop_all(*, force: bool, as_json: bool) -> int:
    """End all nodes that this user has started on this machine, the last one first."""
    reports = []
    for where in node_address.remembered_all():
        report, text = _end(where, force=force)
        reports.append(report)
        if not as_json:
            print(text, flush=True)
    if as_json:
        print(json.dumps(reports), flush=True)
    elif not reports:
        print("no node runs", flush=True)
    return 0


def _end(where: str, *, force: bool) -> tuple[dict[str, Any], str]:
    pid = node_directory.holder_pid(where)
    if pid is None:
        node_address.forget(where)
        return {"directory": where, "stopped": False}, f"no node runs in {where}"
    processes = _processes_of(pid)
    if force:
        # Its lock says that this pid is the node; its workers and zygote end with it.
        os.kill(pid, signal.SIGKILL)
    else:
        _ask_to_stop(where)
    if not _await_end(where, processes):
        raise errors.NodeDiedError(
            f"the node in {where} (pid {pid}) has not ended after {_STOP_TIMEOUT_S:g} s: use"
            " `zray-node stop --force`"
        )
    node_address.forget(where)
    return (
        {"directory": where, "stopped": True, "pid": pid},
        f"the node in {where} (pid {pid}) has ended",
    )


def _ask_to_stop(where: str) -> None:
    from zray.observer import Observer

    try:
        with Observer(where) as observer:
            observer.stop("zray-node stop")
    except errors.NodeStartError:
        if node_directory.holder_pid(where) is None:
            return  # It was ending already.
        raise


def _processes_of(pid: int) -> list[Any]:
    """Return the node's process and those below it, as they are now."""
    import psutil

    try:
        node = psutil.Process(pid)
        return [node, *node.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _await_end(where: str, processes: list[Any]) -> bool:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while node_directory.holder_pid(where) is not None or any(map(_lives, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _lives(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# -- run ---------------------------------------------------------------------------------------


def run(
    program: str,
    arguments: list[str],
    *,
    module: bool,
    embedded: bool,
    directory: str | None,
    address: str | None = None,
    keys: str | None = None,
) -> NoReturn:
    """Become a Python process that runs ``program``; never returns.

    Raises OptionError for a script that is not there, NoNodeError where --dir has no node.
    """
    places = {"--embedded": embedded, "--dir": directory, "--address": address}
    said = [option for option, value in places.items() if value]
    if len(said) > 1:
        raise errors.OptionError(f"{' and '.join(said)} exclude each other", option="dir")
    if not module and not os.path.isfile(program):
        raise errors.OptionError(f"there is no script {shlex.quote(program)}", option="program")
    environment = dict(os.environ)
    if keys is not None:
        environment["ZRAY_KEYS"] = keys if keys == launch_driver.NO_KEYS else os.path.abspath(keys)
    if embedded:
        environment["ZRAY_ADDRESS"] = "local"
    elif address is not None:
        node_address.cluster_of(address)  # Refused here, where the option is.
        environment["ZRAY_ADDRESS"] = address
    elif directory is not None:
        environment["ZRAY_ADDRESS"] = running(directory)
    elif "address" not in configuration.resolve({}).values:
        environment["ZRAY_ADDRESS"] = next(iter(node_address.living()), "local")
    command = [sys.executable, *(["-m"] if module else []), program, *arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)
