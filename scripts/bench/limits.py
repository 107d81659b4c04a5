"""What the machine can do at best: bare ZeroMQ, bare memory, bare processes.

What    The same shape of work as a benchmark, without zray: round trips, a pipeline of batches,
        copies, forks. Each is taken in the run it is compared in, so that a busy or a slow machine
        changes both sides of a ratio.
Caller  the questions, through Echo, Pipeline and the functions below.
Never   imports zray. The echoing processes are this file run as a program.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
import zmq.backend

from scripts.bench import measuring
from scripts.bench.measuring import Latency

BODY = b"x" * 100
WINDOW = 256
BATCH = 128
QUIT = b"quit"
_numbers = itertools.count()
_send = zmq.backend.Socket.send
_receive = zmq.backend.Socket.recv


def _program(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.bench.limits", *map(str, arguments)],
        stdout=subprocess.PIPE,
    )


class Echo:
    """A process that sends back what it receives, and a socket to it. A context manager.

    Args:
        folder: where its ipc socket lies; None: over TCP.
    """

    def __init__(self, folder: Path | None) -> None:
        where = "tcp://127.0.0.1:*" if folder is None else f"ipc://{folder}/echo-{next(_numbers)}"
        self._process = _program("echo", where)
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().decode().strip()
        self._context: zmq.Context[Any] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set_hwm(0)
        self.socket.connect(self.endpoint)
        self.round_trip(BODY)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_error: object) -> None:
        _send(self.socket, QUIT)
        self._process.wait(measuring.WAIT_S)
        self._process.communicate()
        self._context.destroy(0)

    def round_trip(self, body: bytes) -> bytes:
        """Send, wait for the answer."""
        _send(self.socket, body)
        answer: bytes = _receive(self.socket)
        return answer

    def latency(self, seconds: float) -> Latency:
        """Measure round trips of 100 B, one after the other."""
        return measuring.latency(lambda: self.round_trip(BODY), seconds)

    def per_s(self, seconds: float) -> float:
        """Return round trips of 100 B in a second with 256 of them in flight."""
        socket = self.socket
        for _ in range(WINDOW):
            _send(socket, BODY)

        def turn() -> None:
            _receive(socket)
            _send(socket, BODY)

        samples, total_s = measuring.for_seconds(turn, seconds)
        for _ in range(WINDOW):
            _receive(socket)
        return len(samples) / total_s


def clients_per_s(folder: Path, count: int, seconds: float, *, shared: bool) -> float:
    """Return synchronous round trips in a second of ``count`` client processes together.

    Args:
        folder: where sockets lie.
        count: client processes.
        seconds: how long they work.
        shared: True: all call one echo process; False: each has one of its own.
    """
    echoes = [Echo(folder) for _ in range(1 if shared else count)]
    begin = folder / f"begin-{next(_numbers)}"
    clients = [
        _program("client", echoes[number % len(echoes)].endpoint, begin, seconds)
        for number in range(count)
    ]
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()
    begin.touch()
    rates = [float(client.communicate()[0]) for client in clients]
    for echo in echoes:
        echo.__exit__()
    return sum(rates)


class Pipeline:
    """Two processes that unpickle, call and pickle whole batches, fed directly.

    The least a task system on pickle and ZeroMQ can do: no router, no ids, no refs.

    Args:
        folder: where its ipc socket lies.
        mode: "tasks": arguments pickled one by one, 128 to a batch. "map": a list pickled whole.
    """

    def __init__(self, folder: Path, mode: str) -> None:
        self.mode = mode
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        endpoint = f"ipc://{folder}/pipe-{next(_numbers)}"
        self._socket.bind(endpoint)
        self._processes = [_program(mode, endpoint) for _ in range(2)]
        self._names = [self._socket.recv_multipart()[0] for _ in self._processes]

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_error: object) -> None:
        for name in self._names:
            self._socket.send_multipart([name, QUIT])
        for process in self._processes:
            process.wait(measuring.WAIT_S)
            process.communicate()
        self._context.destroy(0)

    def run_s(self, count: int, chunk: int) -> float:
        """Return the seconds for ``count`` tasks that return their argument, values included."""
        started = time.perf_counter()
        free = [name for name in self._names for _ in range(2)]
        done = 0
        for low in range(0, count, chunk):
            numbers = range(low, min(count, low + chunk))
            if self.mode == "tasks":
                batch = msgpack.packb([pickle.dumps((number,), 5) for number in numbers])
            else:
                batch = pickle.dumps(list(numbers), 5)
            if not free:
                done += self._take(free)
            self._socket.send_multipart([free.pop(), batch])
        while done < count:
            done += self._take(free)
        return time.perf_counter() - started

    def _take(self, free: list[bytes]) -> int:
        name, body = self._socket.recv_multipart()
        free.append(name)
        if self.mode == "tasks":
            return len([pickle.loads(value) for value in msgpack.unpackb(body)])
        return len(pickle.loads(body))


def copy_s(size_bytes: int, budget_s: float) -> float:
    """Return the seconds of np.copyto between two arrays whose pages are there already."""
    source, target = np.ones(size_bytes, np.uint8), np.ones(size_bytes, np.uint8)
    return measuring.median_s(lambda: np.copyto(target, source), budget_s=budget_s)


def python_s(program: str) -> float:
    """Return the seconds that a new interpreter takes for ``program``."""
    return measuring.elapsed_s(lambda: subprocess.run([sys.executable, "-c", program], check=True))


def forks_s(folder: Path, count: int, *, nested: bool) -> float:
    """Return the seconds in which ``count`` forked processes have answered one message each.

    Args:
        folder: where sockets lie.
        count: processes, all alive at the same time.
        nested: True: the next one is forked when the last one has answered.
    """
    endpoint = f"ipc://{folder}/forks-{next(_numbers)}"
    program = _program("forks", endpoint, count, int(nested))
    return float(program.communicate()[0])


# -- the other side ------------------------------------------------------------------------------


def _echo(endpoint: str) -> None:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.set_hwm(0)
    socket.bind(endpoint)
    print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    while True:
        who, body = _receive(socket), _receive(socket)
        if body == QUIT:
            return
        _send(socket, who, zmq.SNDMORE)
        _send(socket, body)


def _dealer(endpoint: str) -> zmq.Socket[Any]:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(endpoint)
    return socket


def _client(endpoint: str, begin: str, seconds: str) -> None:
    socket = _dealer(endpoint)

    def round_trip() -> None:
        _send(socket, BODY)
        _receive(socket)

    round_trip()
    print("ready", flush=True)
    measuring.wait_until(Path(begin).exists, "the signal to begin")
    samples, total_s = measuring.for_seconds(round_trip, float(seconds))
    print(len(samples) / total_s, flush=True)


def _worker(endpoint: str, run: Callable[[bytes], bytes]) -> None:
    socket = _dealer(endpoint)
    _send(socket, b"ready")
    while (body := _receive(socket)) != QUIT:
        _send(socket, run(body))


def _same(item: int) -> int:
    return item


def _run_tasks(body: bytes) -> bytes:
    values = [pickle.dumps(_same(*pickle.loads(args)), 5) for args in msgpack.unpackb(body)]
    packed: bytes = msgpack.packb(values)
    return packed


def _run_map(body: bytes) -> bytes:
    return pickle.dumps([_same(item) for item in pickle.loads(body)], 5)


def _forks(endpoint: str, count: str, nested: str) -> None:
    """Fork children that greet, from a process that has never made a zmq context."""
    order, go = os.pipe()
    parent = os.fork()
    if parent == 0:
        children = []
        while os.read(order, 1):
            child = os.fork()
            if child == 0:
                socket = _dealer(endpoint)
                _send(socket, b"hello")
                _receive(socket)
                os._exit(0)
            children.append(child)
    os.close(order)
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(endpoint)
    started = time.perf_counter()
    names = []
    for left in range(int(count), 0, -1):
        if int(nested):
            os.write(go, b"f")
            names.append(socket.recv_multipart()[0])
        elif not names:
            os.write(go, b"f" * left)
            names = [socket.recv_multipart()[0] for _ in range(left)]
    print(time.perf_counter() - started, flush=True)
    for name in names:
        socket.send_multipart([name, QUIT])
    context.destroy(1000)
    os.kill(parent, 9)
    os.waitpid(parent, 0)


if __name__ == "__main__":
    sides: dict[str, Callable[..., None]] = {
        "echo": _echo,
        "client": _client,
        "tasks": lambda endpoint: _worker(endpoint, _run_tasks),
        "map": lambda endpoint: _worker(endpoint, _run_map),
        "forks": _forks,
    }
    sides[sys.argv[1]](*sys.argv[2:])
