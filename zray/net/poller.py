"""A poll for many descriptors.

What    epoll, whose descriptor can itself be polled: a process has one for its edges inside the
        one of its background thread. Where there is none, an error says what is missing.
Caller  brokers/node.py, zray/net/edges.py.
Never   calls anybody back.
"""

from __future__ import annotations

import select
import sys

from zray.errors import NodeStartError

READABLE = 1
WRITABLE = 4
"""As in EPOLLIN and EPOLLOUT, which other systems do not even name."""


def new_poller() -> select.epoll:
    """Return an empty poller.

    Raises:
        NodeStartError: this system has no epoll.
    """
    if not hasattr(select, "epoll"):
        raise NodeStartError(
            f"zray's processes need epoll, and {sys.platform} has none: run them on Linux, for"
            " example in a container; importing zray and its options works here"
        )
    return select.epoll()
