"""One link between two processes: messages a second and round trips, beside bare ZeroMQ.

What    The same two sockets a direction, in the same run: bare DEALER to ROUTER, and Links to
        LinkInbox served from a poll as a node does; both with and without CURVE.

            python -m scripts.bench.links            about 15 s
            python -m scripts.bench.links --quick    about 4 s

Caller  people; the answering process is this file run as a program.
Never   writes files, but for keys in a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq
import zmq.backend

from scripts.bench import measuring
from zray.net.curve import ClusterKeys, Role, secure_client, secure_server
from zray.net.link_inbox import LinkInbox
from zray.net.links import Links
from zray.net.mailbox import new_context

HEADER = b"h" * 40
BODY = b"x" * 100
BURST = 500
QUIT, COUNT, ECHO = b"quit", b"count", b"echo"
_send = zmq.backend.Socket.send
_receive = zmq.backend.Socket.recv


class End(Protocol):
    """One process's side."""

    address: str

    def connect(self, address: str) -> None: ...
    def send(self, header: bytes, body: bytes) -> None: ...
    def receive(self) -> tuple[bytes, bytes]: ...


class Bare:
    """A ROUTER and a DEALER, two frames a message, nothing else."""

    def __init__(self, keys: ClusterKeys | None) -> None:
        self._keys = keys
        self._context: zmq.Context[Any] = new_context()
        self._inbox = self._context.socket(zmq.ROUTER)
        self._outbox = self._context.socket(zmq.DEALER)
        for socket in (self._inbox, self._outbox):
            socket.set_hwm(0)
        if keys is not None:
            secure_server(self._inbox, keys.pair(Role.NODE))
            self._inbox.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 0)
        self._inbox.bind("tcp://127.0.0.1:*")
        self.address = self._inbox.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, address: str) -> None:
        if self._keys is not None:
            pair = self._keys.pair(Role.NODE)
            secure_client(self._outbox, pair, pair.public)
        self._outbox.connect(address)

    def send(self, header: bytes, body: bytes) -> None:
        _send(self._outbox, header, zmq.SNDMORE.value)
        _send(self._outbox, body, 0)

    def receive(self) -> tuple[bytes, bytes]:
        _receive(self._inbox, 0)
        return _receive(self._inbox, 0), _receive(self._inbox, 0)


class Linked:
    """Links and LinkInbox, and the poll that a node's loop makes around them."""

    def __init__(self, keys: ClusterKeys | None) -> None:
        context = new_context()
        self._inbox = LinkInbox(context, keys)
        self._links = Links(context, os.urandom(8), keys)
        self._poll = select.epoll()
        for descriptor in (*self._inbox.descriptors, self._links.descriptor):
            self._poll.register(descriptor, select.EPOLLIN)
        self.address = self._inbox.address

    def connect(self, address: str) -> None:
        self._links.connect(b"peer", address)

    def send(self, header: bytes, body: bytes) -> None:
        while not self._links.send(b"peer", header, (body,)):
            self._turn()

    def _turn(self) -> None:
        for descriptor, _events in self._poll.poll(1.0):
            if descriptor == self._links.descriptor:
                self._links.events()

    def receive(self) -> tuple[bytes, bytes]:
        while (message := self._inbox.receive()) is None:
            self._turn()
        return message[1], bytes(message[2][0])


KINDS: dict[str, Callable[[ClusterKeys | None], End]] = {"bare": Bare, "links": Linked}


def _answer(kind: str, folder: str, address: str) -> None:
    end = KINDS[kind](ClusterKeys.load(folder) if folder else None)
    print(end.address, flush=True)
    end.connect(address)
    while True:
        header, body = end.receive()
        if header == QUIT:
            return
        if header == ECHO:
            end.send(header, body)
        elif header == COUNT:
            for _ in range(int(body)):
                end.receive()
            end.send(header, body)


def measure(kind: str, folder: str, seconds: float) -> tuple[float, float]:
    """Return (messages a second one way, median round trip in microseconds)."""
    end = KINDS[kind](ClusterKeys.load(folder) if folder else None)
    program = [sys.executable, "-m", "scripts.bench.links", "--answer", kind, folder, end.address]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        end.connect(process.stdout.readline().strip())

        def round_trip() -> None:
            end.send(ECHO, BODY)
            end.receive()

        round_trip()
        latency = measuring.latency(round_trip, seconds / 2)
        count, taken_s = BURST, 0.0
        while taken_s < seconds / 4:
            count *= 2
            started = time.perf_counter()
            end.send(COUNT, b"%d" % count)
            for _ in itertools.repeat(None, count):
                end.send(HEADER, BODY)
            end.receive()
            taken_s = time.perf_counter() - started
        end.send(QUIT, b"")
        process.wait(measuring.WAIT_S)
    return count / taken_s, latency.p50_us


def main() -> None:
    """Measure all four and print them with the ratio to bare ZeroMQ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    parser.add_argument("--answer", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer:
        _answer(*given.answer)
        return
    seconds = 1.0 if given.quick else 4.0
    with tempfile.TemporaryDirectory() as base:
        keys = ClusterKeys.create(os.path.join(base, "keys")).directory
        print(f"{'':14}{'messages/s':>12}{'of bare':>9}{'round trip':>14}{'of bare':>9}")
        for name, folder in (("NULL", ""), ("CURVE", keys)):
            bare_rate, bare_us = measure("bare", folder, seconds)
            rate, us = measure("links", folder, seconds)
            print(f"{name + ' bare':14}{bare_rate:12,.0f}{'':9}{bare_us:11.1f} us")
            print(
                f"{name + ' links':14}{rate:12,.0f}{rate / bare_rate:9.2f}{us:11.1f} us"
                f"{us / bare_us:9.2f}"
            )


if __name__ == "__main__":
    main()
