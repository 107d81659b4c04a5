"""Log files of a node that stays: what is in them, and that they do not grow without end.

What    Lines with time and label, the move at the limit, a file that somebody else appends to.
Never   writes megabytes: the limit is an argument.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zray.brokers.output import OutputLog, bound_log


def test_lines_are_written_with_time_and_label(tmp_path: Path) -> None:
    log = OutputLog(str(tmp_path))
    log.write([("f 12", False, "hello"), ("g 13", True, "bad \udcff")])
    log.close()
    first, second = (tmp_path / "workers.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d \(f 12\) hello", first)
    assert second.endswith("(g 13) bad ?")


def test_a_log_goes_on_in_the_next_life_of_its_node(tmp_path: Path) -> None:
    for word in ("one", "two"):
        log = OutputLog(str(tmp_path))
        log.write([("f 1", False, word)])
        log.close()
    assert [line.split()[-1] for line in (tmp_path / "workers.log").read_text().splitlines()] == [
        "one",
        "two",
    ]


def test_two_files_of_the_limit_are_all_that_is_kept(tmp_path: Path) -> None:
    log = OutputLog(str(tmp_path), max_bytes=1000)
    for number in range(200):
        log.write([("f 1", False, f"line {number}")])
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"workers.log", "workers.log.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2200
    kept = (tmp_path / "workers.log.1").read_text() + (tmp_path / "workers.log").read_text()
    assert kept.splitlines()[-1].endswith("line 199")


def test_a_log_that_another_holds_open_is_bounded_under_its_hands(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(writer, b"x" * 100 + b"\n")
    bound_log(str(path), max_bytes=200)
    assert path.stat().st_size == 101
    bound_log(str(path), max_bytes=100)
    os.write(writer, b"next\n")
    os.close(writer)
    assert path.read_bytes() == b"next\n"
    assert (tmp_path / "node.log.1").stat().st_size == 101
