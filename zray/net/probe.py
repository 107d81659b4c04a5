"""Is somebody still there? One TCP connection that asks the kernel of another machine.

What    Prober tries, in a thread beside the loop, whether a port is still listened to. A process
        that was killed leaves a port that refuses; one that only lost its connections greets who
        connects, however busy its own loop is.
Caller  brokers/gcs_relay.py, when a node's link has ended.
Never   takes silence for an answer: a cable that is cut says nothing, and the lease decides then.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

_TIMEOUT_S = 1.0


class Prober:
    """Asks, and keeps what was found until it is taken; one thread may call it.

    Args:
        wake: called, from another thread, when take_gone() has something.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._gone: deque[bytes] = deque()

    def ask(self, name: bytes, address: str) -> None:
        """Find out whether nobody listens at "tcp://HOST:PORT" any more; take_gone() tells."""
        threading.Thread(
            target=self._ask, args=(name, address), name="zray-probe", daemon=True
        ).start()

    def _ask(self, name: bytes, address: str) -> None:
        if is_gone(address):
            self._gone.append(name)
            self._wake()

    def take_gone(self) -> list[bytes]:
        """Return the names of those who were found to be gone since the last call."""
        gone = []
        while self._gone:
            gone.append(self._gone.popleft())
        return gone


def is_gone(address: str) -> bool:
    """Return whether a port is certainly not listened to; False where that can't be known.

    Blocks for up to two seconds.

    Args:
        address: "tcp://HOST:PORT", IPv6 in brackets.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S) as probe:
            # Whoever speaks ZMTP greets first. One that was about to die hangs up instead, and so
            # does what stands before a port that nobody listens at.
            return not probe.recv(1)
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError:
        return False  # No way there, or no answer in time.
