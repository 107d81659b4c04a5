"""A driver under load: tasks, nested tasks, actors, large objects, generators, maps, at random.

What    Runs ``python -m tests.chaos.load SEED SECONDS`` as a driver of the node ZRAY_ADDRESS names.
        Every get must end within its limit, in the right value or in a typed error.
Caller  tests/chaos/rounds.py.
Never   counts on anything to survive.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

import zray
from zray.errors import GetTimeoutError, InternalError, NodeDiedError, ZrayError

GET_TIMEOUT_S = 40.0
LARGE_BYTES = 400_000
WORK_S = 0.003
"""How long a task takes that is to be caught in the act."""


@zray.remote
def square(x):
    return x * x


@zray.remote
def nap(x):
    time.sleep(0.01 * (x % 4))
    return x


@zray.remote
def nested(depth, x):
    return x if depth == 0 else zray.get(nested.remote(depth - 1, x)) + 1


@zray.remote
def array_of(x):
    return np.full(LARGE_BYTES, x % 251, "u1")


@zray.remote
def sum_of(array):
    return int(array.sum())


@zray.remote
def refs_to(x):
    return [zray.put(np.full(LARGE_BYTES, x % 251, "u1")), square.remote(x)]


@zray.remote(num_returns="streaming")
def items(count, x):
    for i in range(count):
        yield np.full(LARGE_BYTES, (x + i) % 251, "u1") if i % 2 else x + i


@zray.remote(max_retries=0)
def fragile(x):
    time.sleep(WORK_S)
    return x


class Plain:
    """What both kinds of actors do."""

    def __init__(self):
        self.last = 0

    def add(self, x):
        self.last += x
        return x

    def large(self, x):
        return np.full(LARGE_BYTES, x % 251, "u1")

    def echo(self, x):
        time.sleep(WORK_S)
        return x


Mortal: Any = zray.remote(Plain)
Restarting: Any = zray.remote(max_restarts=-1, max_task_retries=-1)(Plain)


class Load:
    """One driver's random work."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def expect(self, ref: Any, right: Any) -> None:
        """Get one ref: right(value) must hold, or its error be a typed one."""
        try:
            value = zray.get(ref, timeout=GET_TIMEOUT_S)
        except (GetTimeoutError, InternalError, NodeDiedError):
            raise
        except ZrayError as error:
            self.outcomes[type(error).__name__] += 1
            return
        assert right(value), f"a wrong value: {str(value)[:200]}"
        self.outcomes["value"] += 1

    def tasks(self) -> None:
        """Submit many small tasks, and get them."""
        base = self.random.randrange(1000)
        refs = [square.remote(base + i) for i in range(self.random.randrange(1, 200))]
        naps = [nap.remote(base + i) for i in range(6)]
        for i, ref in enumerate(refs):
            self.expect(ref, lambda value, i=i: value == (base + i) ** 2)
        for i, ref in enumerate(naps):
            self.expect(ref, lambda value, i=i: value == base + i)

    def map(self) -> None:
        """Map over many items."""
        refs = square.map(range(1000))
        self.expect(refs, lambda values: values == [i * i for i in range(1000)])

    def nesting(self) -> None:
        """Tasks that wait for tasks."""
        refs = [nested.remote(self.random.randrange(4), i) for i in range(6)]
        for i, ref in enumerate(refs):
            self.expect(ref, lambda value, i=i: i <= value < i + 4)

    def large(self) -> None:
        """Objects in shared memory, made by and passed to tasks."""
        x = self.random.randrange(251)
        mine = zray.put(np.full(LARGE_BYTES, x, "u1"))
        made = [array_of.remote(x) for _ in range(4)]
        for ref in [mine, *made]:
            self.expect(sum_of.remote(ref), lambda value: value == x * LARGE_BYTES)
            self.expect(ref, lambda array: bool((array == x).all()))

    def containers(self) -> None:
        """References inside of results."""
        x = self.random.randrange(251)

        def check(found: list[Any]) -> bool:
            self.expect(found[0], lambda array: bool((array == x).all()))
            self.expect(found[1], lambda value: value == x * x)
            return True

        self.expect(refs_to.remote(x), check)

    def generators(self) -> None:
        """Generators, read to the end or abandoned."""
        count, x = self.random.randrange(1, 20), self.random.randrange(100)
        stream = items.remote(count, x)
        try:
            for i, ref in enumerate(stream):
                self.expect(ref, lambda value, i=i: int(np.max(value)) == x + i)
                if self.random.random() < 0.05:
                    return
        except (GetTimeoutError, InternalError, NodeDiedError):
            raise
        except ZrayError as error:
            self.outcomes[type(error).__name__] += 1

    def actors(self) -> None:
        """Actors that die with their worker, and one that comes back."""
        actor = Mortal.remote()
        back = Restarting.remote()
        refs = [actor.add.remote(i) for i in range(30)]
        echoes = [back.echo.remote(i) for i in range(20)]
        large = actor.large.remote(7)
        for i, ref in enumerate(refs):
            self.expect(ref, lambda value, i=i: value == i)
        for i, ref in enumerate(echoes):
            self.expect(ref, lambda value, i=i: value == i)
        self.expect(large, lambda array: bool((array == 7).all()))

    def once(self) -> None:
        """Tasks that may not run again."""
        refs = [fragile.remote(i) for i in range(10)]
        for i, ref in enumerate(refs):
            self.expect(ref, lambda value, i=i: value == i)

    def forgotten(self) -> None:
        """Work that nobody waits for."""
        for i in range(10):
            array_of.remote(i)
            nap.remote(i)

    def run(self, seconds: float) -> None:
        """Do a random one of these until the time is over."""
        kinds = [
            self.tasks,
            self.map,
            self.nesting,
            self.large,
            self.containers,
            self.generators,
            self.actors,
            self.once,
            self.forgotten,
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.random.choice(kinds)()


def main() -> None:
    """Run one load; exit status 0 where every get ended as it must."""
    seed, seconds = int(sys.argv[1]), float(sys.argv[2])
    zray.init(log_to_driver=False)
    print("ready", flush=True)
    load = Load(seed)
    load.run(seconds)
    zray.shutdown()
    print("done", dict(load.outcomes), flush=True)


if __name__ == "__main__":
    main()
