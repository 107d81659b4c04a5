"""A poll for many descriptors, on every system.

What    epoll where there is one, else poll(2) behind the same five methods.
Caller  brokers/node.py.
Never   calls anybody back.
"""

import math
import select

READABLE = 1
WRITABLE = 4


class PollPoller:
    """poll(2) with epoll's methods: slower with thousands of descriptors, and everywhere."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._events: dict[int, int] = {}

    def register(self, descriptor: int, events: int) -> None:
        """Watch a descriptor for READABLE, WRITABLE or both."""
        if descriptor in self._events:
            raise FileExistsError(f"descriptor {descriptor} is registered already")
        self._events[descriptor] = events
        self._poll.register(descriptor, self._of(events))

    def modify(self, descriptor: int, events: int) -> None:
        """Watch a registered descriptor for something else."""
        self._events[descriptor] = events
        self._poll.modify(descriptor, self._of(events))

    def unregister(self, descriptor: int) -> None:
        """Stop watching."""
        del self._events[descriptor]
        self._poll.unregister(descriptor)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Wait up to ``timeout`` seconds; return (descriptor, what happened) of those ready."""
        if timeout is None or timeout < 0:
            return self._poll.poll()
        return self._poll.poll(math.ceil(timeout * 1000))

    def close(self) -> None:
        """Forget everything; the descriptors themselves stay open."""
        for descriptor in list(self._events):
            self.unregister(descriptor)

    @staticmethod
    def _of(events: int) -> int:
        return (select.POLLIN if events & READABLE else 0) | (
            select.POLLOUT if events & WRITABLE else 0)


if hasattr(select, "epoll"):
    Poller = select.epoll
else:  # macOS
    Poller = PollPoller
