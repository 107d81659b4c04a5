"""Generators: each value as it is yielded, no further than the consumer allows, closed at the end.

What    Streams with a real Outbound on a runtime without sockets; outcomes are plain tuples' bytes.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, cast

import pytest

from tests.actors.fakes import CALLER, FakeRuntime
from zray.actors.outbound import Outbound
from zray.actors.streams import Streams
from zray.protocol import messages
from zray.protocol.ids import return_number

TASK, PLENTY = 5, 100


class PlainValues:
    """Outcomes that say of which object they are."""

    def make_outcome(self, value: Any, client: bytes, number: int) -> bytes:
        return pickle.dumps((value, client, number))


class Consumer:
    """One generator's consumer: what it got, and how it moves."""

    def __init__(self) -> None:
        self.runtime = cast(Any, FakeRuntime())
        self.outbound = Outbound(self.runtime)
        self.streams: Any = Streams(PlainValues(), self.outbound)  # type: ignore[arg-type]

    def move(self, index: int) -> None:
        self.outbound.consumed(CALLER, TASK, index)

    def will_move(self, *indexes: int) -> None:
        """Have these arrive when the generator waits."""
        self.runtime.arrivals.extend(lambda index=each: self.move(index) for each in indexes)

    def got(self) -> list[Any]:
        """Return the values that have left; each must be the right object of the right caller."""
        values = []
        for at, (peer, kind, fields, _payloads) in enumerate(self.runtime.left()):
            assert (peer, kind, fields[:2]) == (CALLER, messages.YIELDED, [TASK, at])
            value, client, number = pickle.loads(fields[2])
            assert (client, number) == (CALLER, return_number(TASK, at + 1))
            values.append(value)
        return values

    def run(self, produced: Any, backlog: int = PLENTY) -> int:
        return self.streams.run(produced, CALLER, TASK, backlog)

    async def run_async(self, produced: Any, backlog: int = PLENTY) -> int:
        return await asyncio.wait_for(
            self.streams.run_async(produced, CALLER, TASK, backlog), timeout=10
        )


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


class Source:
    """A user's generator that tells how far it came and whether it was closed."""

    def __init__(self, count: int = 10, fails_at: int = -1) -> None:
        self.made, self.closed = 0, False
        self.count, self.fails_at = count, fails_at

    def plain(self):
        try:
            for each in range(self.count):
                if each == self.fails_at:
                    raise KeyError("user's")
                self.made += 1
                yield each
        finally:
            self.closed = True

    async def asynchronous(self):
        try:
            for each in range(self.count):
                await asyncio.sleep(0)
                if each == self.fails_at:
                    raise KeyError("user's")
                self.made += 1
                yield each
        finally:
            self.closed = True


def run(consumer: Consumer, kind: str, source: Source, backlog: int = PLENTY) -> int:
    """Run a source to its end in the way of tasks and methods ("plain"), or of async actors."""
    how, _, what = kind.partition(" ")
    produced = getattr(source, what)()
    if how == "thread":
        return consumer.run(produced, backlog)
    return asyncio.run(consumer.run_async(produced, backlog))


KINDS = ["thread plain", "thread asynchronous", "loop plain", "loop asynchronous"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_leaves_in_order_and_the_generator_is_closed(consumer, kind):
    source = Source(3)
    assert run(consumer, kind, source) == 3
    assert consumer.got() == [0, 1, 2]
    assert source.closed
    assert consumer.outbound.is_abandoned(CALLER, TASK), "the stream has ended"


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_comes_after_the_values_before_it(consumer, kind):
    source = Source(fails_at=2)
    with pytest.raises(KeyError):
        run(consumer, kind, source)
    assert consumer.got() == [0, 1]
    assert source.closed
    assert consumer.outbound.is_abandoned(CALLER, TASK), "the stream has ended"


@pytest.mark.parametrize("what", ["plain", "asynchronous"])
def test_a_generator_waits_in_its_thread_for_its_consumer(consumer, what):
    source = Source(4)
    made: list[int] = []
    steps = (1, 2, 3)
    consumer.runtime.arrivals.extend(
        lambda index=index: (made.append(source.made), consumer.move(index)) for index in steps
    )
    assert run(consumer, f"thread {what}", source, backlog=2) == 4
    assert made == [2, 3, 4]


@pytest.mark.parametrize("what", ["plain", "asynchronous"])
def test_a_generator_ends_where_its_consumer_has_gone(consumer, what):
    source = Source()
    consumer.will_move(-1)
    assert run(consumer, f"thread {what}", source, backlog=2) == 2
    assert (source.made, source.closed) == (2, True)


@pytest.mark.parametrize("what", ["plain", "asynchronous"])
def test_in_a_loop_others_run_while_a_generator_waits(consumer, what):
    source = Source(3)

    async def main() -> list[int]:
        run = asyncio.create_task(consumer.run_async(getattr(source, what)(), backlog=1))
        made = []
        for index in (1, 2, 3):
            while source.made < index:
                await asyncio.sleep(0)
            for _ in range(20):  # Turns in which it could run on, if it did not wait.
                await asyncio.sleep(0)
            consumer.move(index - 1)  # News, but none that makes room.
            for _ in range(20):
                await asyncio.sleep(0)
            made.append(source.made)
            consumer.move(index)
        assert await run == 3
        return made

    assert asyncio.run(main()) == [1, 2, 3]
    assert consumer.got() == [0, 1, 2]


@pytest.mark.parametrize("what", ["plain", "asynchronous"])
def test_in_a_loop_a_generator_ends_where_its_consumer_has_gone(consumer, what):
    source = Source()

    async def main() -> None:
        kept = getattr(source, what)()  # Who drops it closes it too, some time.
        run = asyncio.create_task(consumer.run_async(kept, backlog=2))
        while source.made < 2:
            await asyncio.sleep(0)
        consumer.move(-1)
        assert await run == 2
        assert (source.made, source.closed) == (2, True)

    asyncio.run(main())


def test_a_plain_generator_in_a_loop_gives_others_a_turn_between_two_values(consumer):
    turns: list[int] = []
    source = Source(5)

    async def other() -> None:
        for _ in range(5):
            turns.append(source.made)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(consumer.run_async(source.plain()), other())

    asyncio.run(main())
    assert len(set(turns)) > 2, turns


def test_an_iterable_without_close_is_a_stream_as_well(consumer):
    assert consumer.run([1, 2]) == 2
    assert asyncio.run(consumer.run_async(["x"])) == 1
    assert [pickle.loads(fields[2])[0] for *_, fields, _p in consumer.runtime.left()] == [1, 2, "x"]


def test_progress_that_comes_when_the_loop_is_closed_is_no_error(consumer):
    """The lifeline's thread calls back; it must survive the end of an actor's loop."""

    async def main() -> None:
        run = asyncio.create_task(consumer.run_async(Source().plain(), backlog=1))
        while not consumer.outbound._movers:
            await asyncio.sleep(0)
        consumer.kept = dict(consumer.outbound._movers)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)

    asyncio.run(main())
    for mover in consumer.kept.values():
        mover()
