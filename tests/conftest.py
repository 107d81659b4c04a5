"""Fixtures and limits that every test shares.

What    a time limit with stacks, the leak check, the seed of simulations, a folder of this run.
Caller  pytest.
Never   imports zray: a test of the house must run in a tree whose code does not import.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from tests.leaks import Snapshot
from tests.watchdog import time_limit

STDERR = pytest.StashKey[TextIO]()
# Unix socket paths end at 107 bytes, and macOS puts 50 of them into TMPDIR.
SHORT_TMP = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --seed, for the simulation."""
    parser.addoption("--seed", type=int, default=None, help="replay one seed of tests/sim")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the terminal's stderr, since descriptor 2 will be captured; name the mark of nodes."""
    config.stash[STDERR] = os.fdopen(os.dup(2), "w")
    # A run in the background of a script ignores SIGINT, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Here and not in tests/cluster: pytest reads that folder's conftest too late for a mark.
    config.addinivalue_line("markers", "node(**options): of init() for the fixtures of that name")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close what pytest_configure opened."""
    if STDERR in config.stash:
        config.stash[STDERR].close()
        del config.stash[STDERR]


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int | None:
    """Return the seed asked for on the command line; None: the tests choose their own."""
    value: int | None = request.config.getoption("--seed")
    return value


@pytest.fixture(scope="session", autouse=True)
def run_folder() -> Iterator[Path]:
    """Give this run a temporary folder of its own, so that its leaks can be told from others'."""
    folder = Path(tempfile.mkdtemp(prefix="zt", dir=SHORT_TMP))
    before = {name: os.environ.get(name) for name in ("TMPDIR", "XDG_RUNTIME_DIR")}
    was, tempfile.tempdir = tempfile.gettempdir(), str(folder)
    # pytest keeps the last runs' folders for a look after a failure: those stay where they were.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", was)
    os.environ.update(dict.fromkeys(before, str(folder)))
    try:
        yield folder
    finally:
        tempfile.tempdir = was
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def no_leaks(run_folder: Path) -> Iterator[Snapshot]:
    """Fail the test if it leaves a descriptor, thread, process, segment or session folder."""
    before = Snapshot.take(run_folder)
    yield before
    before.assert_returned()


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs.get("timeout", 0))
    given = item.config.getoption("--timeout", None)
    return float(given if given is not None else item.config.getini("timeout") or 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Put the watchdog round set-up, call and tear-down of each test."""
    limit_s = _limit_s(item)
    # A debugger, or --timeout=0, means that somebody is looking at it.
    if limit_s <= 0 or sys.gettrace() is not None:
        return (yield)
    with time_limit(item.nodeid, limit_s, item.config.stash[STDERR]):
        return (yield)
