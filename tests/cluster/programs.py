"""The tasks and the actor that most tests with a node call.

What    Remote functions that return at once, fail, or wait for a file; an actor that counts.
Caller  tests/cluster; by reference also the workers, which import this module.
Never   holds what only one test module needs: that stands in that module.
"""

from __future__ import annotations

import os
import time

import zray

PAUSE_S = 0.005
"""Between two looks at a file. Tasks may sleep; tests use tests.waiting."""


@zray.remote
def double(x):
    return x * 2


@zray.remote
def echo(value):
    return value


@zray.remote
def count_to(n):
    yield from range(n)


@zray.remote
def pid():
    return os.getpid()


@zray.remote
def wait_for(path):
    """Return the path once there is a file."""
    while not os.path.exists(path):
        time.sleep(PAUSE_S)
    return path


@zray.remote
class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, k=1):
        self.n += k
        return self.n
