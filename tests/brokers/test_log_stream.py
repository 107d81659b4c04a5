"""The log of a node whose disk is full: lines are lost, and counted; nothing is raised."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import pytest

from zray.brokers.log_stream import LogStream


def test_what_a_full_disk_does_not_take_is_lost_and_told_of_when_there_is_room(
    tmp_path: Path,
) -> None:
    # A device that is always full: a limit of this process would hold for its own output as well.
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = LogStream(descriptor)
    print("lost", file=stream, flush=True)
    try:
        raise ValueError("lost as well")
    except ValueError:
        traceback.print_exc(file=stream)
    lost = stream.lost
    assert lost >= 2
    log = tmp_path / "log"
    room = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(room, descriptor)
    print("room \udcff", file=stream, flush=True)
    text = log.read_text()
    assert text == f"({lost} pieces of this log are lost: it could not be written)\nroom \\udcff\n"
    assert stream.lost == 0
    os.close(room)
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
