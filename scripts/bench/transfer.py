"""Transfer: how fast does an object get from one node to another, and what does it cost others?

What    Two processes, each a segment and a bulk thread, and a loop as thin as a node's: seconds for
        objects of growing size, next to a bare ZeroMQ loop of the same chunks into touched memory
        in the same run, without keys and with CURVE; and the round trip of a small message on a
        control socket while bulk runs.
Caller  run.py. The other node, and the bare sender, are this file run as a program.
Never   starts a node.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve, Row
from zray.brokers.bulk import Bulk
from zray.brokers.transferring import Allocate, Arrived, Failed, Locate, Priority
from zray.net.curve import ClusterKeys, Role, secure_client, secure_server
from zray.net.poller import READABLE, new_poller
from zray.net.wake import Wake
from zray.store.segment import Segment

TITLE = "Transfer"
ABOUT = """Objects move over a port of their own, in chunks of 1 MiB that the receiver asks for,
from shared memory into shared memory. The limit is a bare DEALER that pushes the same chunks over
TCP to a ROUTER, which writes them into memory that is there already."""
CHUNK = 1 << 20
SOURCE, PULLER = b"bench-source", b"bench-puller"


class End:
    """One node's end: a segment with one object's room, and a bulk thread."""

    def __init__(self, name: bytes, nbytes: int, folder: str = "") -> None:
        self.nbytes = nbytes
        self.keys = ClusterKeys.load(folder) if folder else None
        self.segment = Segment.create(nbytes)
        self.segment.commit(0, nbytes)
        np.frombuffer(self.segment.writable(0, nbytes), np.uint8)[:] = len(name)
        self.wake = Wake()
        self.bulk = Bulk(
            self.segment,
            name,
            self.keys,
            budget_bytes=nbytes,
            wake=self.wake.set,
        )
        self._poller = new_poller()
        self._poller.register(self.wake.fileno(), READABLE)
        self._number = 0

    def connect(self, peer: bytes, endpoint: str) -> None:
        """Open the way to the other end."""
        key = b"" if self.keys is None else self.keys.pair(Role.NODE).public
        self.bulk.connect(peer, endpoint, key)

    def serve(self, timeout_s: float = 1.0) -> list[Any]:
        """Wait for the bulk thread, answer it, return what it said."""
        self._poller.poll(timeout_s)
        self.wake.clear()
        events: list[Any] = list(self.bulk.events())
        for event in events:
            if isinstance(event, Allocate):
                self.bulk.allocated(event.pull, 0, fresh=False)
            elif isinstance(event, Locate):
                self.bulk.located(event.object, 0, event.nbytes)
        return events

    def pull(self, nbytes: int) -> None:
        """Pull one object from the source."""
        self._number += 1
        identity = self._number.to_bytes(16, "big")
        self.bulk.want(identity, nbytes, [SOURCE], Priority.GET)
        while True:
            for event in self.serve():
                if isinstance(event, Arrived):
                    return
                if isinstance(event, Failed):
                    raise RuntimeError(event.reason)

    def close(self) -> None:
        """Stop the thread, unmap."""
        self.bulk.close()
        self._poller.close()
        self.wake.close()
        self.segment.close()


def _program(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.bench.transfer", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _source(nbytes: str, folder: str) -> None:
    """The other process of a transfer: serves until its standard input ends; echoes on the side."""
    end = End(SOURCE, int(nbytes), folder)
    context: zmq.Context[Any] = zmq.Context()
    echo = context.socket(zmq.ROUTER)
    port = echo.bind_to_random_port("tcp://127.0.0.1")
    print(end.bulk.endpoint, port, flush=True)
    end.connect(PULLER, sys.stdin.readline().strip())
    over = threading.Event()

    def await_end() -> None:
        sys.stdin.read()
        over.set()
        end.wake.set()

    threading.Thread(target=await_end).start()
    poller = zmq.Poller()
    poller.register(echo, zmq.POLLIN)
    poller.register(end.wake.fileno(), zmq.POLLIN)
    while not over.is_set():
        for ready, _ in poller.poll():
            if ready is echo:
                echo.send_multipart(echo.recv_multipart())
        end.serve(0)
    end.close()
    context.destroy(0)


def _bare_sender(port: str, nbytes: str, folder: str) -> None:
    """Push chunks as fast as ZeroMQ takes them, once for every message that comes."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    if folder:
        pair = ClusterKeys.load(folder).pair(Role.NODE)
        secure_client(socket, pair, pair.public)
    socket.setsockopt(zmq.SNDHWM, 8)
    socket.connect(f"tcp://127.0.0.1:{port}")
    total = int(nbytes)
    view = np.ones(total, np.uint8).data
    socket.send(b"ready")
    while socket.recv() != b"quit":
        for start in range(0, total, CHUNK):
            socket.send(view[start : start + CHUNK], copy=False)
    context.destroy(0)


class Bare:
    """The least that moves an object: no credit, no names, one ROUTER that receives chunks."""

    def __init__(self, nbytes: int, folder: str = "") -> None:
        self.nbytes = nbytes
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        if folder:
            secure_server(self._socket, ClusterKeys.load(folder).pair(Role.NODE))
            self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 0)  # Nobody is asked who is a member.
        self._socket.setsockopt(zmq.RCVHWM, 8)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._process = _program("bare", port, nbytes, folder)
        self._who, _ready = self._socket.recv_multipart()
        self._view = np.ones(nbytes, np.uint8).data

    def pull(self) -> None:
        """Receive the object once."""
        self._socket.send_multipart([self._who, b"go"])
        for start in range(0, self.nbytes, CHUNK):
            self._socket.recv()
            self._socket.recv_into(self._view[start : start + CHUNK])

    def close(self) -> None:
        """End the sender."""
        self._socket.send_multipart([self._who, b"quit"])
        self._process.communicate(timeout=measuring.WAIT_S)
        self._context.destroy(0)


class Pair:
    """Two ends in two processes."""

    def __init__(self, nbytes: int, folder: str = "") -> None:
        self.end = End(PULLER, nbytes, folder)
        self._process = _program("source", nbytes, folder)
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        endpoint, port = self._process.stdout.readline().decode().split()
        self.end.connect(SOURCE, endpoint)
        self._process.stdin.write(self.end.bulk.endpoint.encode() + b"\n")
        self._process.stdin.flush()
        self._context: zmq.Context[Any] = zmq.Context()
        self._echo = self._context.socket(zmq.DEALER)
        self._echo.connect(f"tcp://127.0.0.1:{port}")

    def round_trip(self) -> None:
        """Send a small message to the other process's loop and wait for it to come back."""
        self._echo.send(b"x" * 100)
        self._echo.recv()

    def close(self) -> None:
        """End both."""
        self._context.destroy(0)
        self._process.communicate(timeout=measuring.WAIT_S)
        self.end.close()


def _rates(mib: int, rounds: int, folder: str) -> Row:
    """Return GB/s of both, taken in turns so that a busy moment falls on both."""
    nbytes = mib * CHUNK
    bare, pair = Bare(nbytes, folder), Pair(nbytes, folder)
    try:
        samples: dict[str, list[float]] = {"bare": [], "zray": []}
        for number in range(rounds + 1):
            raw = measuring.elapsed_s(bare.pull)
            ours = measuring.elapsed_s(lambda: pair.end.pull(nbytes))
            if number:  # The first warms up.
                samples["bare"].append(raw)
                samples["zray"].append(ours)
    finally:
        bare.close()
        pair.close()
    raw_s, ours_s = measuring.median(samples["bare"]), measuring.median(samples["zray"])
    return {
        "MiB": mib,
        "GB/s": nbytes / ours_s / 1e9,
        "raw GB/s": nbytes / raw_s / 1e9,
        "ratio": raw_s / ours_s,
        "ratio of the best": min(samples["bare"]) / min(samples["zray"]),
    }


def _latency(nbytes: int, seconds: float) -> list[Row]:
    """Return round trips of a control message, alone and while objects are pulled."""
    pair = Pair(nbytes)
    rows: list[Row] = []
    try:
        pair.end.pull(nbytes)
        alone = measuring.latency(pair.round_trip, seconds)
        rows.append({"beside": "nothing", "p50 µs": alone.p50_us, "p99 µs": alone.p99_us})
        over = threading.Event()

        def keep_pulling() -> None:
            while not over.is_set():
                pair.end.pull(nbytes)

        thread = threading.Thread(target=keep_pulling)
        thread.start()
        busy = measuring.latency(pair.round_trip, seconds)
        over.set()
        thread.join()
        rows.append({"beside": "objects pulled", "p50 µs": busy.p50_us, "p99 µs": busy.p99_us})
    finally:
        pair.close()
    return rows


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    keys = ClusterKeys.create(str(bench.folder / "keys")).directory
    rounds = 5 if bench.quick else 15
    speeds = []
    for name, title, folder in (
        ("plain", "An object from one node to another", ""),
        ("curve", "The same with CURVE", keys),
    ):
        speed = Curve(
            name,
            title,
            size="MiB",
            plotted=("GB/s", "raw GB/s"),
            unit="GB/s",
            note="Raw is ZeroMQ pushing the same chunks without asking who wants them. Ratio: of "
            "the medians.",
        )
        for mib in bench.sizes(1, 64, 256, quick=64):
            speed.add(_rates(mib, rounds * 4 if mib == 1 else rounds, folder))
        speeds.append(speed)
    control = Curve(
        "control",
        "A control message while objects move",
        note="Round trip of 100 bytes through the loop of the node that sends the objects.",
    )
    for row in _latency(64 * CHUNK, bench.seconds(2.0)):
        control.add(row)
    return [*speeds, control]


if __name__ == "__main__":
    sides: dict[str, Callable[..., None]] = {"source": _source, "bare": _bare_sender}
    sides[sys.argv[1]](*sys.argv[2:])
