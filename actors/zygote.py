"""The zygote: a process that has imported everything and forks workers in 2 ms.

What    Imports once, then forks at every FORK; reaps its children and reports how they ended.
        Stops those that host actors while their lease is over (guards.py).
        It never makes a zmq context: a fork after one would keep its peers' descriptors open.
Caller  brokers/workers.py, through ``python -m zray.actors zygote``.
Never   runs user code, starts a thread, or outlives its node.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import math
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from zray.net.channel import Channel
from zray.net.wake import Wake
from zray.protocol import frames, messages
from zray.store.lease_table import LeaseTable

from .guards import Guards


def serve(descriptor: int, directory: str) -> int:
    """Serve FORK until the node goes; then end every child."""
    channel = Channel(socket.socket(fileno=descriptor))
    _import_everything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; its EOF reaches us.
    wake = Wake()
    signal.signal(signal.SIGCHLD, lambda _number, _frame: wake.set())
    gc.collect()
    gc.freeze()  # Collections in children must not touch, and so copy, these pages.
    channel.send(frames.pack(messages.ZYGOTE_READY, os.getpid()))
    children: dict[int, bytes] = {}
    guards: Guards | None = None
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    poller.register(wake.fileno(), select.POLLIN)
    channel.socket.setblocking(False)
    alive = True
    while alive:
        due_s = None if guards is None else guards.enforce(time.monotonic())
        poller.poll(None if due_s is None else math.ceil(due_s * 1000))
        wake.clear()
        received, alive = channel.drain()
        for packed in received:
            message = frames.unpack(packed)
            if message[1] == messages.FORK:
                _fork(channel, children, message[3], message[4], directory)
            elif message[1] == messages.GUARD:
                guards = guards or Guards(_lease_table(channel))
                _guard(guards, children, message[3], message[4])
        alive = _reap(channel, children, guards) and alive
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while children:
        pid, _status = os.wait()
        children.pop(pid, None)
    return 0


def _import_everything() -> None:
    import cloudpickle
    import msgpack
    import numpy

    from zray import actor, remote_decorators

    from . import host

    del actor, cloudpickle, host, msgpack, numpy, remote_decorators


def _lease_table(channel: Channel) -> LeaseTable:
    """Return the node's table of leases, which came with its first GUARD."""
    return LeaseTable(channel.descriptors.popleft(), writable=False)


def _guard(guards: Guards, children: dict[int, bytes], process: bytes, slot: int) -> None:
    for pid, child in children.items():
        if child == process:
            guards.add(pid, slot)


def _reap(channel: Channel, children: dict[int, bytes], guards: Guards | None) -> bool:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return True
        children.pop(pid, None)
        if guards is not None:
            guards.forget(pid)
        try:
            _send(channel, frames.pack(messages.CHILD_EXITED, pid, status))
        except OSError:
            return False
    return True


def _send(channel: Channel, message: bytes) -> None:
    channel.socket.setblocking(True)
    try:
        channel.send(message)
    finally:
        channel.socket.setblocking(False)


def _fork(
    channel: Channel,
    children: dict[int, bytes],
    process: bytes,
    arguments: dict[str, Any],
    directory: str,
) -> None:
    out, err = channel.descriptors.popleft(), channel.descriptors.popleft()
    pid = os.fork()
    if pid == 0:
        _become_worker(channel, process, arguments, directory, out, err)
    os.close(out)
    os.close(err)
    children[pid] = process
    _send(channel, frames.pack(messages.FORKED, process, pid))


def _become_worker(
    channel: Channel, process: bytes, arguments: dict[str, Any], directory: str, out: int, err: int
) -> None:
    """Turn this forked child into a worker. Never returns."""
    status = 1
    try:
        channel.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        # What can't be encoded must not fail a print of the user's.
        sys.stdout, sys.stderr = (
            os.fdopen(
                descriptor,
                "w",
                buffering=1,
                encoding="utf-8",
                errors="backslashreplace",
                closefd=False,
            )
            for descriptor in (1, 2)
        )
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        os.environ.update(arguments["env"])
        from .host import run

        status = run(directory, process)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
