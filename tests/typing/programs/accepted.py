"""What a type checker must accept, with the types it must find."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, assert_type

import zray
from zray import ObjectRef, ObjectRefGenerator


@zray.remote
def scale(count: int, factor: float = 2.0, *, label: str = "") -> float:
    return count * factor


@zray.remote
def answer() -> int:
    return 42


@zray.remote
def total(*numbers: int) -> int:
    return sum(numbers)


@zray.remote
def join(a: str, b: int, c: float, d: bytes, e: bool, f: str) -> str:
    return f"{a}{b}{c}{d!r}{e}{f}"


@zray.remote
def count_up(limit: int) -> Iterator[int]:
    yield from range(limit)


@zray.remote(num_cpus=0.5, max_retries=1, retry_exceptions=[ValueError])
def careful(x: str) -> str:
    return x


@zray.remote(num_returns=2)
def two(x: int) -> tuple[int, str]:
    return x, str(x)


@zray.remote
def of_refs(refs: list[ObjectRef[int]]) -> int:
    return sum(zray.get(refs))


# A function's parameters and result.
assert_type(scale.remote(3), ObjectRef[float])
assert_type(scale.remote(3, 1.5, label="x"), ObjectRef[float])
assert_type(scale.remote(count=3, factor=1), ObjectRef[float])
assert_type(scale.options(num_cpus=2, name="big").remote(3), ObjectRef[float])
assert_type(careful.remote("x"), ObjectRef[str])

# Refs in the place of values, by position.
number: ObjectRef[int] = answer.remote()
assert_type(scale.remote(number), ObjectRef[float])
assert_type(scale.remote(number, label="x"), ObjectRef[float])
assert_type(scale.remote(number, scale.remote(1)), ObjectRef[float])
assert_type(scale.remote(3, scale.remote(1), label="x"), ObjectRef[float])
word = careful.remote("w")
assert_type(join.remote(word, number, 1.0, b"", True, word), ObjectRef[str])
assert_type(join.remote("", 1, scale.remote(1), b"", e=True, f=""), ObjectRef[str])

# Fan-in, refs inside containers, map.
numbers = [answer.remote() for _ in range(3)]
assert_type(total.remote(*numbers), ObjectRef[int])
assert_type(total.remote(1, number, 3), ObjectRef[int])
assert_type(of_refs.remote(numbers), ObjectRef[int])
assert_type(careful.map(["a", "b"]), Sequence[ObjectRef[str]])

# Streams and several returns.
assert_type(count_up.remote(3), ObjectRefGenerator[int])
for item in count_up.remote(3):
    assert_type(item, ObjectRef[int])
assert_type(two.remote(1), list[ObjectRef[Any]])
first, second = careful.options(num_returns=2).remote("x")
assert_type(first, ObjectRef[Any])

# get, put, wait.
assert_type(zray.get(number), int)
assert_type(zray.get(numbers), list[int])
assert_type(zray.get(careful.map("ab"), timeout=1.0), list[str])
assert_type(zray.put("x"), ObjectRef[str])
ready, waiting = zray.wait(numbers, num_returns=2, timeout=1.0)
assert_type(ready, list[ObjectRef[int]])


async def in_a_loop() -> None:
    assert_type(await number, int)
    done = await asyncio.gather(number, word)
    assert_type(done, tuple[int, str])


class Counter(zray.Actor):
    def __init__(self, start: int, *, step: int = 1) -> None:
        self.value = start
        self.step = step

    @zray.method
    def add(self, amount: int) -> int:
        self.value += amount * self.step
        return self.value

    @zray.method
    async def add_later(self, amount: int) -> int:
        await asyncio.sleep(0)
        # From inside the class a method is a method.
        assert_type(self.add(amount), int)
        again: Coroutine[Any, Any, int] = self.add_later(amount)
        return self.add(await again)

    @zray.method
    def values(self) -> Iterator[int]:
        yield self.value

    @zray.method
    async def values_later(self) -> AsyncIterator[str]:
        yield str(self.value)

    @zray.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.value, self.step

    @zray.method(concurrency_group="io", max_task_retries=2)
    def save(self, path: str) -> None:
        self.add(len(path))


counter = Counter.remote(3)
assert_type(counter, Counter)
assert_type(Counter.remote(number, step=2), Counter)
assert_type(Counter.options(name="c", lifetime="detached").remote(3), Counter)
assert_type(counter.add.remote(1), ObjectRef[int])
assert_type(counter.add.remote(number), ObjectRef[int])
assert_type(counter.add.options(name="a").remote(1), ObjectRef[int])
assert_type(counter.add_later.remote(1), ObjectRef[int])
assert_type(counter.values.remote(), ObjectRefGenerator[int])
assert_type(counter.values_later.remote(), ObjectRefGenerator[str])
assert_type(counter.both.remote(), list[ObjectRef[Any]])
assert_type(counter.save.remote("p"), ObjectRef[None])
zray.kill(counter)
found: Counter = zray.get_actor("c")


class Plain:
    def __init__(self, start: int) -> None:
        self.value = start

    @zray.method
    def read(self) -> int:
        return self.value


# A class that derives from nothing, made remote by a call.
RemotePlain = zray.remote(Plain)
assert_type(RemotePlain.remote(1), Plain)
assert_type(RemotePlain.options(num_cpus=1).remote(number).read.remote(), ObjectRef[int])
assert_type(zray.remote(max_restarts=2)(Plain).remote(1).read.remote(), ObjectRef[int])


@zray.remote
class Decorated(zray.Actor):
    def __init__(self, start: int) -> None:
        self.value = start

    @zray.method
    def read(self) -> int:
        return self.value


# The decorator and the base class together are right for both, and the class stays a type.
assert_type(Decorated.remote(1).read.remote(), ObjectRef[int])


def read(actor: Decorated) -> int:
    return zray.get(actor.read.remote())


read(Decorated.remote(1))

make: Callable[[int], ObjectRef[float]] = scale.remote
