"""What zray.wait() costs: looks at refs, and calls that ask the kernel.

What    Waits where most or all have arrived, counted and not timed.
"""

import threading

import pytest

import zray
from tests.cluster.programs import double, echo, wait_for
from tests.waiting import wait_until
from zray.client import Client
from zray.runtime import Runtime

pytestmark = pytest.mark.usefixtures("node")
COUNT = 500
OTHERS = 100


@pytest.fixture
def arrived():
    refs = [double.remote(i) for i in range(COUNT)]
    zray.wait(refs, num_returns=COUNT, timeout=20)
    return refs


class Counted:
    """How often this thread has called a method."""

    def __init__(self, monkeypatch, owner, name):
        self.calls = 0
        self.thread = threading.get_ident()
        method = getattr(owner, name)

        def counting(*args, **kwargs):
            if threading.get_ident() == self.thread:
                self.calls += 1
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)


def test_waits_for_one_of_many_that_have_arrived_ask_the_kernel_nothing(arrived, monkeypatch):
    """Each wait sent and read what there was: n system calls and a look at n refs for each."""
    waits = Counted(monkeypatch, Client, "wait_until")
    flushes = Counted(monkeypatch, Client, "flush")
    looks = Counted(monkeypatch, Runtime, "is_ready")
    order, rest = [], list(arrived)
    while rest:
        (ready,), rest = zray.wait(rest)
        order.append(ready)
    assert order == arrived
    assert (waits.calls, flushes.calls) == (0, 0)
    assert looks.calls <= 2 * COUNT


def test_a_wait_for_the_last_of_many_does_not_look_at_all_for_every_message(
    arrived, monkeypatch, tmp_path
):
    late = wait_for.remote(str(tmp_path / "go"))
    looks = Counted(monkeypatch, Runtime, "is_ready")
    reads = Counted(monkeypatch, Client, "_read_one")
    got = []

    def others() -> None:
        # Each is a message that the waiting thread reads, and none of them is waited for.
        wait_until(lambda: reads.calls > 0)
        got.extend(zray.get(echo.remote(i), timeout=20) for i in range(OTHERS))
        (tmp_path / "go").touch()

    thread = threading.Thread(target=others)
    thread.start()
    ready, rest = zray.wait([*arrived, late], num_returns=COUNT + 1, timeout=30)
    thread.join()
    assert got == list(range(OTHERS))
    assert (ready, rest) == ([*arrived, late], [])
    assert reads.calls > OTHERS / 10, "the messages were read while it waited"
    assert looks.calls < 5 * COUNT


def test_a_wait_that_only_looks_returns_at_once_with_what_is_there(arrived, tmp_path, monkeypatch):
    late = wait_for.remote(str(tmp_path / "go"))
    reads = Counted(monkeypatch, Client, "_read_one")
    ready, rest = zray.wait([late, *arrived], num_returns=COUNT + 1, timeout=0)
    assert (ready, rest) == (arrived, [late])
    assert reads.calls == 0, "nothing blocked"
    (tmp_path / "go").touch()
    assert zray.get(late, timeout=20)
