"""Start a node process and wait until it is ready.

What    launch_node() runs ``python -m zray.brokers node`` and reads one line from it: ready, or
        why not.
Caller  zray/api.py, zray/cli.py.
Never   imports brokers or actors: processes are started by module name.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from zray import errors
from zray.node_directory import temporary_base
from zray.protocol.limits import NODE_JOIN_TIMEOUT_S, NODE_START_TIMEOUT_S

_POLL_S = 0.01


def new_directory(base: str | None = None) -> str:
    """Make a fresh private directory for one node: short, because socket paths are."""
    base = base or temporary_base()
    os.makedirs(base, exist_ok=True)
    return tempfile.mkdtemp(prefix="zray-", dir=base)


def package_environment() -> dict[str, str]:
    """Return an environment in which a child finds this same zray."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH", "")
    if root not in path.split(os.pathsep):
        environment["PYTHONPATH"] = root + (os.pathsep + path if path else "")
    return environment


def launch_node(
    directory: str, settings: dict[str, Any], meanwhile: Callable[[], object] = lambda: None
) -> subprocess.Popen[bytes]:
    """Start a node in ``directory``; returns its process once it accepts connections.

    Args:
        directory: its own, private.
        settings: those of a node (zray/configuration.py). ``embedded`` makes it end, and remove
            its directory, with its first driver; ``parent``, a pid, with the process that started
            it; without either the node stays. ``cluster`` is of a node among others: host, port,
            bulk_port, advertise, bulk_advertise, keys (a folder; without it only this machine's),
            join (addresses).
        meanwhile: what the caller can do while the node starts.

    Where it is to join others, it has when this returns.

    Raises NodeStartError with what the node printed where it does not come up, or who does not
    let it in.
    """
    ready_read, ready_write = os.pipe()
    log_path = os.path.join(directory, "node.log")
    command = [
        sys.executable,
        "-m",
        "zray.brokers",
        "node",
        "--dir",
        directory,
        "--ready-fd",
        str(ready_write),
        "--settings",
        json.dumps(settings),
    ]
    try:
        with open(log_path, "ab") as log:
            # A session of its own: Ctrl-C in the driver's terminal is the driver's.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(ready_write,),
                start_new_session=True,
                env=package_environment(),
                cwd=None if settings.get("embedded") else "/",
            )
    finally:
        os.close(ready_write)
    try:
        meanwhile()
        _wait_ready(ready_read, process, log_path)
        cluster = settings.get("cluster") or {}
        if cluster.get("join"):
            _wait_joined(directory, cluster)
    except BaseException:
        if process.poll() is None:
            process.kill()
        process.wait()
        raise
    finally:
        os.close(ready_read)
    return process


def _wait_ready(descriptor: int, process: subprocess.Popen[bytes], log_path: str) -> None:
    deadline = time.monotonic() + NODE_START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        readable = select.select([descriptor], [], [], max(0.0, left))[0]
        if not readable:
            raise errors.NodeStartError(
                f"the node was not ready after {NODE_START_TIMEOUT_S} s; its log: {_tail(log_path)}"
            )
        part = os.read(descriptor, 65536)
        if not part:
            raise errors.NodeStartError(
                f"the node ended with status {process.wait()} before it was ready; its log:"
                f" {_tail(log_path)}"
            )
        line += part
    report = json.loads(line)
    if report.get("error"):
        raise errors.NodeStartError(report["error"])


def _wait_joined(directory: str, cluster: dict[str, Any]) -> None:
    from zray.observer import Observer  # An embedded node starts without it.

    deadline = time.monotonic() + NODE_JOIN_TIMEOUT_S
    is_driver = cluster.get("role", "node") != "node"
    with Observer(directory) as observer:
        while not (found := observer.ask("cluster"))["has_joined"]:
            for address, why in found["refused"].items():
                who = "driver" if is_driver else "node"
                keys = "keys=, ZRAY_KEYS" if is_driver else "--keys"
                raise errors.NodeStartError(
                    f"{address.removeprefix('tcp://')} does not let this {who} join: {why}. Do both"
                    f" have keys of the same cluster ({keys}), and run the same release of zray?"
                )
            if time.monotonic() > deadline:
                raise errors.NodeStartError(_why_alone(found, cluster["join"], is_driver=is_driver))
            time.sleep(_POLL_S)


def _why_alone(found: dict[str, Any], addresses: list[str], *, is_driver: bool) -> str:
    """Say what a node has waited for in vain, and what to look at."""
    waited = f"{NODE_JOIN_TIMEOUT_S:g} s"
    asked = ", ".join(each.removeprefix("tcp://") for each in addresses)
    if found["silent"]:
        option = "driver_host, driver_advertise" if is_driver else "--host, --advertise"
        here, bulk = (found[name].removeprefix("tcp://") for name in ("address", "bulk_address"))
        return (
            f"{asked} lets this machine in, and has not answered for {waited}: its nodes must be"
            f" able to connect to {here} and {bulk} here. Open the ports, or say how this machine"
            f" is reached ({option})"
        )
    if found["nodes"] > 1 or (is_driver and found["nodes"]):
        return (
            f"the GCS of the cluster of {asked}, at {found['gcs']}, has not answered for {waited}:"
            " may this machine connect to it?"
        )
    return (
        f"nobody at {asked} has answered for {waited}: does a node run there (`zray-node status`"
        " shows its address), and may this machine connect?"
    )


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as log:
            return log.read()[-2000:].decode(errors="replace") or "(empty)"
    except FileNotFoundError:
        return "(gone: the node removed its directory)"
