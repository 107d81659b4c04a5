"""A node's process: it starts a node, says so to who waits, and cleans up behind it.

What    serve() makes the node, writes node.json, reports on a descriptor when the first worker is
        there, and runs the node's loop to its end. Where the settings name a cluster, the node
        enters it; where that has declared it dead, it is to begin another life.
Caller  brokers/__main__.py.
Never   handles a message: the loop is brokers/node.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from typing import Any

from zray import errors
from zray.protocol.roles import Role

from .next_life import ENDING_SIGNALS, settings_of
from .node import Node
from .workers import NoZygote, Zygote

_PORT = "node.port"


def serve(
    directory: str, settings: dict[str, Any], ready_fd: int, zygote: Zygote | NoZygote
) -> tuple[int, dict[str, Any] | None]:
    """Run a node until it is stopped; report on ready_fd first.

    Returns the exit status, and the settings of its next life where there is to be one.
    """
    try:
        node = Node(directory, settings, zygote)
        if settings.get("cluster") is not None:
            _enter_cluster(node, settings["cluster"])
    except (errors.ZrayError, OSError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
        _note(f"the node did not start: {text}")
        os.write(ready_fd, json.dumps({"error": text}).encode() + b"\n")
        os.close(ready_fd)
        return 1, None
    temporary = node.embedded or "parent" in settings
    for signum in ENDING_SIGNALS:
        signal.signal(signum, lambda number, _frame: _signalled(node, number))
    report = {
        "directory": directory,
        "pid": os.getpid(),
        "node": node.process.hex(),
        "started_at": node.started_at,
        "temporary": temporary,
        "role": node.role,
        "address": None if node.cluster is None else node.cluster.inbox.address,
    }
    with open(os.path.join(directory, "node.json"), "w") as file:
        json.dump(report, file)
    node.on_ready = lambda: _report_ready(node, report, ready_fd)
    _note(f"node {node.process.hex()} runs in {directory}, pid {os.getpid()}")
    crashed = True
    try:
        node.run()
        crashed = False
        _note(f"node {node.process.hex()} has ended: {node.stopping}")
    finally:
        # A driver removes the directory too, unless it was killed; after a crash of ours it reads
        # the log first, to say why. Whoever lives and is no driver may want to read it as well.
        orphaned = os.getppid() != settings.get("parent", os.getppid())
        if (node.embedded or orphaned) and not (crashed and node.processes.drivers):
            shutil.rmtree(directory, ignore_errors=True)
        if orphaned and settings.get("keys_end_with_parent"):
            # Made for a test that was killed: its nodes all end now.
            shutil.rmtree(settings["cluster"]["keys"], ignore_errors=True)
    # Whoever wants this process to end from here on ends the next life: see next_life.begin().
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    if node.cluster is not None and node.begins_anew:
        return 0, settings_of(node.cluster, settings)
    return 0, None


def _enter_cluster(node: Node, settings: dict[str, Any]) -> None:
    from zray.net.addresses import is_free
    from zray.net.curve import ClusterKeys

    from .cluster import Cluster
    from .gcs_connection import enter

    keys = None if settings.get("keys") is None else ClusterKeys.load(settings["keys"])
    host = settings.get("host", "127.0.0.1")
    port = int(settings.get("port") or 0)
    if not port:
        # Others look for a node that is started again where it was, for a head above all.
        before = _last_port(node.directory)
        port = before if is_free(host, before) else 0
    node.cluster = Cluster(
        node,
        keys,
        host=host,
        port=port,
        advertise=settings.get("advertise"),
        bulk_port=settings.get("bulk_port", 0),
        role=node.role,
        key_role=Role(settings.get("key_role", node.role)),
        bulk_advertise=settings.get("bulk_advertise"),
    )
    _remember_port(node.directory, node.cluster.inbox.port)
    enter(node.cluster, settings)


def _remember_port(directory: str, port: int) -> None:
    """Write down at which port other nodes reach the one in a directory."""
    path = os.path.join(directory, _PORT)
    try:
        with open(f"{path}.new", "w") as file:
            file.write(f"{port}\n")
        os.replace(f"{path}.new", path)
    except OSError as error:
        _note(f"{path} can't be written: started again, this node will have another port: {error}")


def _last_port(directory: str) -> int:
    """Return the port of the last node in a directory, 0 where there was none."""
    try:
        with open(os.path.join(directory, _PORT)) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _report_ready(node: Node, report: dict[str, Any], ready_fd: int) -> None:
    try:
        os.write(ready_fd, json.dumps(report).encode() + b"\n")
    except BrokenPipeError:
        node.stop("its driver has died")  # Nobody is left to wait for a node that is embedded.
    os.close(ready_fd)


def _note(text: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, flush=True)


def _signalled(node: Node, number: int) -> None:
    node.begins_anew = False
    node.stop(f"signal {signal.Signals(number).name}")
    node.wake.set()
