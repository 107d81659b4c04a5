"""The GCS: how many changes a second does it keep, one after the other and pipelined?

What    A GCS process on this machine, asked from one session: writes that are on disk when they are
        answered, reads, functions. Beside each rate that of bare LMDB commits in the same folder,
        fsync included: the disk's own limit. And what a driver waits for a key of the whole cluster
        at the head, and at another node, whose words the head carries to the GCS and back.
Caller  run.py.
Never   leaves a process behind.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve, Row
from scripts.bench.measuring import Latency
from zray.brokers.gcs.client import GcsSession
from zray.brokers.gcs.commands import Command
from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.store import Put, Transaction
from zray.net.gcs_link import GcsPeer
from zray.testing import Cluster
from zray.util import kv

TITLE = "The GCS"
ABOUT = """What must outlive a crash is written by one process into LMDB, one transaction a change;
what comes while a commit is under way shares the next one. One session that waits for each answer
gets a commit for each; one with many under way gets many changes into one. The limit is the disk:
bare commits of one put, each brought to it."""
_NOTE = "Ratio: to bare LMDB commits of one put in a run of their own, each brought to disk."
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
        while (frames := self.link.receive()) is not None:
            self.session.received(frames[0], time.monotonic())

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
            *(sys.executable, "-m", "zray.brokers", "gcs", "--dir", f"{folder}/gcs-{durability}"),
            *("--bind", f"ipc://{folder}/{durability}.sock", "--ready-fd", str(its)),
            *("--durability", durability),
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


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    seconds = bench.seconds(4.0)
    raw = _bare_commits(bench.folder, seconds)
    disk = Curve("disk", "One session, values of 100 B, brought to disk", note=_NOTE)
    memory = Curve("process", "The same, safe from the death of the process alone", note=_NOTE)
    code = Curve("functions", f"A function of {CODE_BYTES >> 20} MiB", note="In chunks of 1 MiB.")
    for curve in (disk, memory):
        with started_gcs(str(bench.folder), curve.name) as endpoint:
            asker = Asker(endpoint)
            _figures(asker, curve, raw, seconds)
            if curve is disk:
                code.add(_functions(asker))
            asker.link.close()
    return [disk, memory, code, _from_nodes(seconds / 2)]


def _from_nodes(seconds: float) -> Curve:
    """Measure reads of the key-value table by drivers: no disk, so the way is what counts."""
    curve = Curve("nodes", "kv.get() of 100 B by a driver", note="Links with CURVE, on loopback.")
    with Cluster() as cluster:
        for where in ("at the head", "at another node"):
            node = cluster.add_node(num_cpus=1)
            with zray.init(node.directory, log_to_driver=False):
                kv.put("key", b"v" * 100)
                found = measuring.latency(lambda: kv.get("key"), seconds)
            curve.add(
                {
                    "driver": where,
                    "per s": found.per_s,
                    "p50 µs": found.p50_us,
                    "p99 µs": found.p99_us,
                }
            )
    return curve


def _bare_commits(folder: Path, seconds: float) -> Latency:
    """Measure commits of one put that the store does by itself."""
    with LmdbStore(str(folder / "bare"), durability="disk") as store:
        values = iter(range(1 << 60))

        def commit() -> None:
            number = next(values)
            store.transact(Transaction((), (Put("kv", b"%d" % (number % 5000), b"v" * 100),)))

        return measuring.latency(commit, seconds)


def _figures(asker: Asker, curve: Curve, raw: Latency, seconds: float) -> None:
    number = iter(range(1 << 60))

    def put() -> None:
        asker.command("KV_PUT", "b", b"%d" % (next(number) % 5000), b"v" * 100, True)

    def row(what: str, per_s: float, found: Latency | None) -> None:
        curve.add(
            {
                "what": what,
                "per s": per_s,
                "p50 µs": None if found is None else found.p50_us,
                "p99 µs": None if found is None else found.p99_us,
                "raw per s": raw.per_s,
                "ratio": per_s / raw.per_s,
            }
        )

    found = measuring.latency(put, seconds)
    row("writes, one after the other", found.per_s, found)
    row("writes, many under way", pipelined_per_s(asker, seconds, number), None)
    read = measuring.latency(lambda: asker.command("KV_GET", "b", b"1"), seconds / 2)
    row("reads, one after the other", read.per_s, read)


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


def _functions(asker: Asker) -> Row:
    """Put and get one large function."""
    code = os.urandom(CODE_BYTES)
    names: list[bytes] = []

    def put(done: Callable[[Any, Any], None]) -> None:
        names.append(asker.session.put_function(code, done))

    put_s = measuring.elapsed_s(lambda: asker.ask(put))
    get_s = measuring.elapsed_s(
        lambda: asker.ask(lambda done: asker.session.get_function(names[0], done))
    )
    return {"put MB/s": CODE_BYTES / put_s / 1e6, "get MB/s": CODE_BYTES / get_s / 1e6}
