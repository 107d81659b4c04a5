"""How many descriptors a process has left, before the last one is gone.

What    The kernel gives the lowest free number, so a new descriptor's number says how full the
        table is. A node stops starting workers, then taking processes in, while links, tables and
        files still find what they need.
Caller  zray/net/channel.py, brokers/workers.py.
Never   opens anything, or changes a limit.
"""

from __future__ import annotations

import resource

FORK_RESERVE = 256
"""Descriptors that starting a worker leaves."""

WORKER_DESCRIPTORS = 10
"""What a worker takes at its node in all."""

ACCEPT_RESERVE = 64
"""Descriptors that taking a process in leaves."""


def is_scarce(descriptor: int, reserve: int) -> bool:
    """Return whether a new descriptor is one of the last.

    Args:
        descriptor: just opened.
        reserve: how many are to be left of a table of 1024 or more; of a smaller one as large a
            part of it.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    return descriptor >= limit - reserve * min(limit, 1024) // 1024
