"""Links: how much is lost of bare ZeroMQ between two nodes, with and without keys?

What    The same two sockets a direction, in the same run: bare DEALER to ROUTER, and Links to
        LinkInbox served from a poll as a node does; both with and without CURVE.
Caller  run.py. The answering process is this file run as a program.
Never   starts a node; writes files, but for keys in the folder of the run.
"""

from __future__ import annotations

import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq
import zmq.backend

from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve
from zray.net.curve import ClusterKeys, Role, secure_client, secure_server
from zray.net.link_inbox import LinkInbox
from zray.net.links import Links
from zray.net.mailbox import new_context

TITLE = "Links"
ABOUT = """All that two nodes say to each other goes over one link: ZeroMQ over TCP, with CURVE
where the cluster has keys. The limit is a bare DEALER and ROUTER with the same frames in the same
run, which knows no peers, no limits and no end of a connection."""
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


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    keys = ClusterKeys.create(str(bench.folder / "keys")).directory
    seconds = bench.seconds(4.0)
    curve = Curve(
        "links",
        "One link, two processes",
        note="Messages of 140 B one way, and round trips one at a time. Ratio: messages to those "
        "of bare ZeroMQ. Slower: round trip over that of bare ZeroMQ.",
    )
    for name, folder in (("without keys", ""), ("CURVE", keys)):
        raw_rate, raw_us = _rate_and_round_trip("bare", folder, seconds)
        rate, us = _rate_and_round_trip("links", folder, seconds)
        curve.add(
            {
                "what": name,
                "messages per s": rate,
                "raw messages per s": raw_rate,
                "ratio": rate / raw_rate,
                "round trip µs": us,
                "raw round trip µs": raw_us,
                "slower": us / raw_us,
            }
        )
    return [curve]


def _rate_and_round_trip(kind: str, folder: str, seconds: float) -> tuple[float, float]:
    """Return (messages a second one way, median round trip in microseconds)."""
    end = KINDS[kind](ClusterKeys.load(folder) if folder else None)
    program = [sys.executable, "-m", "scripts.bench.links", kind, folder, end.address]
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


if __name__ == "__main__":
    _answer(*sys.argv[1:])
