"""Question: how fast does an object get from one node to another, and what does it cost others?

What    Two processes, each a segment and a bulk thread, and a loop as thin as a node's: seconds for
        objects of growing size, next to a bare ZeroMQ loop of the same chunks into touched memory
        in the same run; and the round trip of a small message on a control socket while bulk runs.
Caller  scripts/bench/run, as a question; python -m scripts.bench.transfer [--quick].
Never   starts a node.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from scripts.bench import measuring
from scripts.bench.curve import Curve, shown
from zray.brokers.bulk import Bulk
from zray.brokers.transferring import Allocate, Arrived, Failed, Locate, Priority
from zray.net.poller import READABLE, new_poller
from zray.net.wake import Wake
from zray.store.segment import Segment

CHUNK = 1 << 20
SIZES_MB = (1, 64, 256)
SOURCE, PULLER = b"bench-source", b"bench-puller"


class End:
    """One node's end: a segment with one object's room, and a bulk thread."""

    def __init__(self, name: bytes, nbytes: int) -> None:
        self.nbytes = nbytes
        self.segment = Segment.create(nbytes)
        self.segment.commit(0, nbytes)
        np.frombuffer(self.segment.writable(0, nbytes), np.uint8)[:] = len(name)
        self.wake = Wake()
        self.bulk = Bulk(
            self.segment, name, "tcp://127.0.0.1:*", budget_bytes=nbytes, wake=self.wake.set
        )
        self._poller = new_poller()
        self._poller.register(self.wake.fileno(), READABLE)
        self._number = 0

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


def _source(nbytes: str) -> None:
    """The other process of a transfer: serves until its standard input ends; echoes on the side."""
    end = End(SOURCE, int(nbytes))
    context: zmq.Context[Any] = zmq.Context()
    echo = context.socket(zmq.ROUTER)
    port = echo.bind_to_random_port("tcp://127.0.0.1")
    print(end.bulk.endpoint, port, flush=True)
    end.bulk.connect(PULLER, sys.stdin.readline().strip())
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


def _bare_sender(port: str, nbytes: str) -> None:
    """Push chunks as fast as ZeroMQ takes them, once for every message that comes."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.DEALER)
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

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVHWM, 8)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._process = _program("bare", port, nbytes)
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

    def __init__(self, nbytes: int) -> None:
        self.end = End(PULLER, nbytes)
        self._process = _program("source", nbytes)
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        endpoint, port = self._process.stdout.readline().decode().split()
        self.end.bulk.connect(SOURCE, endpoint)
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


def _rates(mb: int, rounds: int) -> dict[str, float | int | str | None]:
    """Return GB/s of both, taken in turns so that a busy moment falls on both."""
    nbytes = mb * CHUNK
    bare, pair = Bare(nbytes), Pair(nbytes)
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
        "MiB": mb,
        "GB/s": nbytes / ours_s / 1e9,
        "raw GB/s": nbytes / raw_s / 1e9,
        "of raw": raw_s / ours_s,
        "best of raw": min(samples["bare"]) / min(samples["zray"]),
    }


def _latency(nbytes: int, seconds: float) -> list[dict[str, float | int | str | None]]:
    """Return round trips of a control message, alone and while objects are pulled."""
    pair = Pair(nbytes)
    rows: list[dict[str, float | int | str | None]] = []
    try:
        pair.end.pull(nbytes)
        alone = measuring.latency(pair.round_trip, seconds)
        rows.append({"beside": "nothing", "p50 us": alone.p50_us, "p99 us": alone.p99_us})
        over = threading.Event()

        def keep_pulling() -> None:
            while not over.is_set():
                pair.end.pull(nbytes)

        thread = threading.Thread(target=keep_pulling)
        thread.start()
        busy = measuring.latency(pair.round_trip, seconds)
        over.set()
        thread.join()
        rows.append({"beside": "objects pulled", "p50 us": busy.p50_us, "p99 us": busy.p99_us})
    finally:
        pair.close()
    return rows


def ask(*, quick: bool) -> list[Curve]:
    """Return the tables of this question."""
    speed = Curve(
        "transfer",
        "An object from one node to another",
        size="MiB",
        plotted=("GB/s", "raw GB/s"),
        unit="GB/s",
        note="Raw is ZeroMQ pushing the same chunks without asking who wants them.",
    )
    rounds = 5 if quick else 15
    for mb in SIZES_MB:
        speed.add(_rates(mb, rounds * 4 if mb == 1 else rounds))
    control = Curve(
        "transfer_control",
        "A control message while objects move",
        note="Round trip of 100 bytes through the loop of the node that sends the objects.",
    )
    for row in _latency(64 * CHUNK, 0.5 if quick else 2.0):
        control.add(row)
    return [speed, control]


def _main() -> None:
    parser = argparse.ArgumentParser(description="Measure object transfer between two nodes.")
    parser.add_argument("--quick", action="store_true", help="few rounds, some seconds")
    for curve in ask(quick=parser.parse_args().quick):
        print(curve.title)
        for row in curve.rows:
            print("  " + "  ".join(f"{name} {shown(cell)}" for name, cell in row.items()))


if __name__ == "__main__":
    sides: dict[str, Callable[..., None]] = {"source": _source, "bare": _bare_sender}
    if len(sys.argv) > 1 and sys.argv[1] in sides:
        sides[sys.argv[1]](*sys.argv[2:])
    else:
        os.environ.setdefault("PYTHONUNBUFFERED", "1")
        _main()
