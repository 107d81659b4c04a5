"""The GCS: durable writes in sequence and pipelined, functions, and reads.

What    Starts a GCS process on this machine, and asks it from one session. Beside each rate stands
        that of bare LMDB commits in the same directory, fsync included: the disk's own limit.
            python -m scripts.bench.gcs [--quick] [--process]
Caller  by hand.
Never   writes outside a temporary directory; --dir chooses the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scripts.bench import measuring
from zray.brokers.gcs.client import GcsSession
from zray.brokers.gcs.commands import Command
from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.store import Put, Transaction
from zray.net.gcs_link import GcsPeer

CODE_BYTES = 8 << 20
OUTSTANDING = 2000


class Asker:
    """One session, driven by the caller."""

    def __init__(self, endpoint: str) -> None:
        self.link = GcsPeer(endpoint, os.urandom(7) + b"b")
        self.session = GcsSession(
            send=self.link.send, new_id=lambda: os.urandom(16), now=time.monotonic()
        )

    def step(self) -> None:
        """Send, wait, receive."""
        self.session.tick(time.monotonic())
        if not self.link.has_message():
            select.select([self.link.descriptor], [], [], 0.05)
        while (frame := self.link.receive()) is not None:
            self.session.received(frame, time.monotonic())

    def ask(self, *asks: Callable[[Callable[[Any, Any], None]], Any]) -> list[Any]:
        """Ask in one go and wait for all answers; raises the first error."""
        got: list[Any] = []

        def done(result: Any, error: Any) -> None:
            if error is not None:
                raise error
            got.append(result)

        for one in asks:
            one(done)
        deadline = time.monotonic() + measuring.WAIT_S
        while len(got) < len(asks):
            if time.monotonic() > deadline:
                raise TimeoutError("the GCS has not answered the benchmark")
            self.step()
        return got

    def command(self, name: str, *fields: Any) -> Any:
        """Ask one command and wait."""
        return self.ask(lambda done: self.session.ask(Command(name, fields), done))[0]


@contextmanager
def started_gcs(folder: str, durability: str) -> Iterator[str]:
    """Start a GCS process; gives its endpoint."""
    ours, its = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "zray.brokers", "gcs", "--dir", f"{folder}/gcs"),
            *("--bind", "tcp://127.0.0.1:0", "--ready-fd", str(its), "--durability", durability),
        ],
        pass_fds=(its,),
        stdout=subprocess.DEVNULL,
    )
    os.close(its)
    try:
        with os.fdopen(ours, "rb") as pipe:
            yield json.loads(pipe.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait(10)


def bare_commits_per_s(folder: str, seconds: float) -> float:
    """Return how many commits of one put the store itself does in a second."""
    with LmdbStore(f"{folder}/bare", durability="disk") as store:
        values = iter(range(1 << 60))

        def commit() -> None:
            number = next(values)
            store.transact(Transaction((), (Put("kv", b"%d" % (number % 5000), b"v" * 100),)))

        return measuring.latency(commit, seconds).per_s


def measure(folder: str, seconds: float, durability: str) -> None:
    """Print one line a figure."""
    bare = bare_commits_per_s(folder, seconds)
    show("bare LMDB commits of one put, fsync", bare, "/s")
    with started_gcs(folder, durability) as endpoint:
        asker = Asker(endpoint)
        number = iter(range(1 << 60))

        def put() -> None:
            asker.command("KV_PUT", "b", b"%d" % (next(number) % 5000), b"v" * 100, True)

        found = measuring.latency(put, seconds)
        show("one write after the other", found.per_s, "/s", found.per_s / bare)
        show("    median", found.p50_us, "us")
        show("    99th percentile", found.p99_us, "us")
        pipelined = pipelined_per_s(asker, seconds, number)
        show(f"writes, {OUTSTANDING} outstanding", pipelined, "/s", pipelined / bare)
        read = measuring.latency(lambda: asker.command("KV_GET", "b", b"1"), seconds / 2)
        show("one read after the other", read.per_s, "/s")
        functions(asker)
        asker.link.close()


def pipelined_per_s(asker: Asker, seconds: float, number: Iterator[int]) -> float:
    """Return acknowledged writes in a second with many outstanding."""
    answered = 0

    def done(_result: Any, error: Any) -> None:
        nonlocal answered
        if error is not None:
            raise error
        answered += 1

    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        while asker.session.unanswered < OUTSTANDING:
            fields = ("b", b"%d" % (next(number) % 5000), b"v" * 100, True)
            asker.session.ask(Command("KV_PUT", fields), done)
        asker.step()
    return answered / (time.perf_counter() - started)


def functions(asker: Asker) -> None:
    """Put and get one large function."""
    code = os.urandom(CODE_BYTES)
    names: list[bytes] = []

    def put(done: Callable[[Any, Any], None]) -> None:
        names.append(asker.session.put_function(code, done))

    put_s = measuring.elapsed_s(lambda: asker.ask(put))
    get_s = measuring.elapsed_s(
        lambda: asker.ask(lambda done: asker.session.get_function(names[0], done))
    )
    show(f"function of {CODE_BYTES >> 20} MiB put", CODE_BYTES / put_s / 1e6, "MB/s")
    show(f"function of {CODE_BYTES >> 20} MiB got", CODE_BYTES / get_s / 1e6, "MB/s")


def show(what: str, value: float, unit: str, ratio: float | None = None) -> None:
    """Print one figure, and its ratio to the bare store."""
    against = "" if ratio is None else f"   {ratio:.2f} x bare"
    print(f"{what:44} {value:12,.0f} {unit}{against}", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the GCS on this machine.")
    parser.add_argument("--quick", action="store_true", help="about four seconds in all")
    parser.add_argument("--process", action="store_true", help="answers do not wait for the disk")
    parser.add_argument("--dir", default=None, help="where the temporary directory is made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zray-bench-gcs", dir=arguments.dir) as folder:
        durability = "process" if arguments.process else "disk"
        measure(folder, 1.0 if arguments.quick else 5.0, durability)


if __name__ == "__main__":
    main()
