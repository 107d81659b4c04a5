"""The poller, and systems that have none.

What    A process reports what is missing instead of an AttributeError somewhere.
Never   needs another system than the one it runs on.
"""

import os
import select

import pytest

from zray.errors import NodeStartError
from zray.net.poller import READABLE, WRITABLE, new_poller


def test_a_readable_descriptor_is_reported_until_it_is_read():
    reading, writing = os.pipe()
    poller = new_poller()
    poller.register(reading, READABLE)
    poller.register(writing, WRITABLE)
    assert poller.poll(0) == [(writing, WRITABLE)]
    os.write(writing, b"x")
    assert dict(poller.poll(1.0)) == {writing: WRITABLE, reading: READABLE}
    poller.close()
    os.close(reading)
    os.close(writing)


def test_a_system_without_epoll_is_told_what_is_missing(monkeypatch):
    monkeypatch.delattr(select, "epoll")
    with pytest.raises(NodeStartError, match="epoll"):
        new_poller()
