"""The log of a node whose disk is full: lines are lost, and counted; nothing is raised."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from zray.brokers.log_stream import LogStream

ROOM_BYTES = 4096


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Return a file that this process may not make longer than ROOM_BYTES."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, limits[1]))
    yield tmp_path / "log"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_what_a_full_disk_does_not_take_is_lost_and_told_of_when_there_is_room(log: Path) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    stream = LogStream(descriptor)
    while not stream.lost:
        print("x" * 100, file=stream, flush=True)
    print("lost", file=stream, flush=True)
    try:
        raise ValueError("lost as well")
    except ValueError:
        traceback.print_exc(file=stream)
    lost = stream.lost
    assert lost >= 3
    os.truncate(log, 0)
    print("room \udcff", file=stream, flush=True)
    text = log.read_text()
    assert text == f"({lost} pieces of this log are lost: it could not be written)\nroom \\udcff\n"
    assert stream.lost == 0
    os.close(descriptor)


def test_it_can_stand_in_for_a_standard_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", LogStream(writer))
    print("one", 2, sep="\n", flush=True)
    sys.stdout.flush()
    assert sys.stdout.fileno() == writer
    os.close(writer)
    with open(reader, encoding="utf-8") as found:
        assert found.read() == "one\n2\n"
