"""Calls of actors on other nodes: in order for each caller, however much is said at once.

What    Bursts that are larger than a message or a link may be, many callers and actors at a time,
        replies that are large.
Caller  pytest.
Never   measures: scripts/bench/remote_call.py does.
"""

from __future__ import annotations

from typing import Any

import zray
from zray.testing import Cluster

LARGE = b"x" * 60_000
"""As large as an argument may be that goes with its call."""


@zray.remote(num_cpus=0)
class Recorder(zray.Actor):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def note(self, who: str, number: int, _ballast: bytes = b"") -> int:
        self.seen.append((who, number))
        return number

    def of(self, who: str) -> list[int]:
        return [number for each, number in self.seen if each == who]

    def ballast(self, nbytes: int) -> bytes:
        return bytes(nbytes)

    def relay(self, recorder: Any, who: str, count: int) -> list[int]:
        return list(zray.get([recorder.note.remote(who, number) for number in range(count)]))


def recorder(**resources: float) -> Any:
    """Return an actor of its own, wherever these resources are."""
    return Recorder.options(resources=resources).remote()


def test_calls_that_waited_for_an_actor_arrive_though_together_they_are_larger_than_a_message(
    two_nodes: Cluster,
) -> None:
    blockers = [recorder(far=1) for _ in range(2)]
    zray.get([blocker.of.remote("") for blocker in blockers])
    late = recorder(far=1)
    count = 1500  # 90 MB: a link takes messages of 64.
    refs = [late.note.remote("driver", number, LARGE) for number in range(count)]
    for blocker in blockers:
        zray.kill(blocker)
    assert zray.get(refs, timeout=60) == list(range(count))
    assert zray.get(late.of.remote("driver")) == list(range(count))
    zray.kill(late)


def test_every_caller_keeps_its_order_while_many_call_the_same_actor_from_both_nodes(
    two_nodes: Cluster,
) -> None:
    target = recorder(far=1)
    callers = {f"near {number}": recorder() for number in range(3)}
    callers |= {"far": recorder(far=1)}
    count = 400
    refs = [caller.relay.remote(target, who, count) for who, caller in callers.items()]
    for number in range(count):
        target.note.remote("driver", number)
    for result in zray.get(refs, timeout=60):
        assert result == list(range(count))
    for who in (*callers, "driver"):
        assert zray.get(target.of.remote(who)) == list(range(count)), who
    for each in (target, *callers.values()):
        zray.kill(each)


def test_replies_of_many_actors_elsewhere_arrive_at_once(two_nodes: Cluster) -> None:
    actors = [recorder(far=0.1) for _ in range(10)]
    refs = [actor.ballast.remote(50_000) for actor in actors for _ in range(50)]
    assert {len(reply) for reply in zray.get(refs, timeout=60)} == {50_000}
    for actor in actors:
        zray.kill(actor)
