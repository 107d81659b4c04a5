"""Calls to actors: in order, to wherever the actor lives now.

What    A route per actor: calls wait until the node has said where it lives, then go straight
        to its worker, numbered by the caller so that the worker can drop a duplicate. A call
        whose arguments are not ready holds back the later ones of this caller.
Caller  zray/session/session.py.
Never   decides whether an actor restarts: the node does.
"""

from collections import deque
from typing import Any

from zray.protocol import messages
from zray.protocol.ids import TASK_NUMBER_MAX, ActorId, ProcessId, return_number
from zray.protocol.limits import CALLS_BYTES_MAX

from .outbox import Outbox
from .references import References

PENDING, ALIVE, RESTARTING, DEAD = "PENDING", "ALIVE", "RESTARTING", "DEAD"


class ActorCall:
    """One call that has no outcome yet."""

    __slots__ = ("arguments", "arrived", "keep", "method", "number", "retries_left", "returns")

    def __init__(
        self,
        number: int,
        method: str | bytes,
        returns: int,
        arguments: bytes | None,
        keep: object,
        retries_left: int,
    ) -> None:
        self.number = number
        self.method = method
        self.returns = returns
        self.arguments = arguments
        self.keep = keep
        self.retries_left = retries_left
        self.arrived = 0
        """Of several returns, those that are here: they come in order."""


class ActorRoute:
    """What this process knows of one actor, and its calls under way."""

    __slots__ = (
        "actor",
        "cause",
        "incarnation",
        "keep",
        "outgoing",
        "pending",
        "pending_bytes",
        "pending_calls_max",
        "process",
        "resent",
        "restarts",
        "state",
        "unready",
        "watched",
    )

    def __init__(self, actor: ActorId, pending_calls_max: int) -> None:
        self.actor = actor
        self.state = PENDING
        self.process: ProcessId | None = None
        self.incarnation = -1
        self.cause = b""
        self.keep: object = None
        """What the constructor's arguments refer to, until no start needs them any more."""
        self.restarts = -1
        """How often it may restart, where this process has made it; -1: always."""
        self.pending_calls_max = pending_calls_max
        self.pending: dict[int, ActorCall] = {}
        self.pending_bytes = 0
        """Of their arguments."""
        self.outgoing: list[list[Any]] = []
        self.unready: deque[ActorCall] = deque()
        self.watched = False
        self.resent = False
        """Calls of a dead incarnation wait to be sent again: a late reply may still end them."""


class ActorCalls:
    """The actor calls that this process made. Methods need the session's lock."""

    def __init__(self, references: References, outbox: Outbox) -> None:
        self.references = references
        self.outbox = outbox
        self.routes: dict[ActorId, ActorRoute] = {}
        self.dirty: dict[ActorId, ActorRoute] = {}
        self.by_number: dict[int, ActorRoute] = {}
        self.keeping: set[ActorId] = set()
        """Actors whose arguments are kept until they have started: somebody must read of it."""
        self.waiting_for_place = 0
        """Calls that nothing but an ACTOR_STATE can move: somebody must read the inbox."""

    def route(self, actor: ActorId, pending_calls_max: int = -1) -> ActorRoute:
        """Return the route of an actor, making it at first sight."""
        route = self.routes.get(actor)
        if route is None:
            route = self.routes[actor] = ActorRoute(actor, pending_calls_max)
        return route

    def keep(self, route: ActorRoute, what: object, restarts: int) -> None:
        """Keep what the arguments of an actor of ours refer to until no start needs it."""
        route.keep = what
        route.restarts = restarts
        if restarts == 0:
            self.keeping.add(route.actor)

    def call(self, route: ActorRoute, call: ActorCall) -> None:
        """Add a call; one without arguments yet (None) holds back those behind it."""
        route.pending[call.number] = call
        self.by_number[call.number] = route
        if call.arguments is not None:
            route.pending_bytes += len(call.arguments)
        if call.arguments is None or route.unready:
            route.unready.append(call)
        else:
            self._ready(route, call)

    def arguments_ready(self, route: ActorRoute, number: int, arguments: bytes) -> None:
        """The arguments of a held call are complete."""
        call = route.pending.get(number)
        if call is None:
            return
        call.arguments = arguments
        route.pending_bytes += len(arguments)
        self._let_go(route)

    def argument_failed(self, route: ActorRoute, number: int, found: bytes) -> None:
        """An argument of a held call is an error: so is the call."""
        if number in route.pending:
            self._fail(route, number, found)
        self._let_go(route)

    def _let_go(self, route: ActorRoute) -> None:
        """Send the held calls that nothing holds back any more; pass over those that failed."""
        while route.unready and (
            route.unready[0].number not in route.pending or route.unready[0].arguments is not None
        ):
            ready = route.unready.popleft()
            if ready.number in route.pending:
                self._ready(route, ready)

    def cancel_unsent(self, number: int, found: bytes) -> bool:
        """End a call that has not left this process; False: there is no such call."""
        route = self.by_number.get(number)
        if route is None:
            return False
        call = route.pending[number]
        if call in route.unready:
            self.argument_failed(route, number, found)
            return True
        left = [row for row in route.outgoing if row[1] != number]
        if len(left) == len(route.outgoing):
            return False
        route.outgoing = left
        if route.process is None:
            self.waiting_for_place -= 1
        self._fail(route, number, found)
        return True

    def _ready(self, route: ActorRoute, call: ActorCall) -> None:
        if route.state == DEAD:
            self._fail(route, call.number, route.cause)
            return
        route.outgoing.append([route.actor, call.number, call.method, call.returns, call.arguments])
        if route.process is not None:
            self.dirty[route.actor] = route
        else:
            self.waiting_for_place += 1

    def flush(self) -> None:
        """Turn outgoing calls into one message for each worker."""
        dirty = self.dirty
        if len(dirty) == 1:  # One actor called in a loop: no grouping to do.
            _actor, route = dirty.popitem()
            if route.process is not None and route.outgoing:
                calls, route.outgoing = route.outgoing, []
                route.resent = False
                self._send(route.process, route.incarnation, calls, route.pending_bytes)
            return
        nbytes = 0
        by_worker: dict[tuple[ProcessId, int], list[list[Any]]] = {}
        for route in dirty.values():
            if route.process is not None and route.outgoing:
                whom = (route.process, route.incarnation)
                by_worker.setdefault(whom, []).extend(route.outgoing)
                nbytes += route.pending_bytes
                route.outgoing = []
                route.resent = False
        dirty.clear()
        for (worker, incarnation), calls in by_worker.items():
            self._send(worker, incarnation, calls, nbytes)

    def _send(
        self, worker: ProcessId, incarnation: int, calls: list[list[Any]], nbytes_max: int
    ) -> None:
        """Send calls whose arguments have so many bytes at most, in messages of a bounded size."""
        if nbytes_max <= CALLS_BYTES_MAX:
            self.outbox.message(worker, messages.CALL, calls, incarnation)
            return
        message: list[list[Any]] = []
        nbytes = 0
        for call in calls:
            message.append(call)
            nbytes += len(call[4])
            if nbytes > CALLS_BYTES_MAX:
                self.outbox.message(worker, messages.CALL, message, incarnation)
                message, nbytes = [], 0
        if message:
            self.outbox.message(worker, messages.CALL, message, incarnation)

    def replied(self, numbers: list[int], outcomes: list[bytes], special: bool) -> None:
        """REPLIES: outcomes by object number."""
        references, by_number, results = self.references, self.by_number, self.references.results
        plain = not (special or references.dropped or references.publish)
        for number, found in zip(numbers, outcomes, strict=True):
            route = by_number.get(number & TASK_NUMBER_MAX)
            if route is None:
                references.arrived_again(number, found)  # It has failed already: that stands.
                continue
            call = route.pending[number & TASK_NUMBER_MAX]
            if call.returns <= 1:
                del by_number[number], route.pending[number]
                route.pending_bytes -= len(call.arguments or b"")
            elif not self._one_of_several(route, call, number):
                references.arrived_again(number, found)
                continue
            if route.resent and call.number not in route.pending:
                self._not_again(route, call.number)
            if plain:
                results[number] = found
            else:
                references.arrived(number, found)
        if plain:
            references.heard(numbers)

    def _not_again(self, route: ActorRoute, number: int) -> None:
        """The reply to a call that was to be sent again has come after all."""
        left = [row for row in route.outgoing if row[1] != number]
        if route.process is None:
            self.waiting_for_place -= len(route.outgoing) - len(left)
        route.outgoing = left

    def _one_of_several(self, route: ActorRoute, call: ActorCall, number: int) -> bool:
        """Count a return; False: a first execution delivered it."""
        if number != return_number(call.number, call.arrived):
            return False
        call.arrived += 1
        if call.arrived == call.returns:
            del self.by_number[call.number], route.pending[call.number]
            route.pending_bytes -= len(call.arguments or b"")
        return True

    def state_changed(
        self,
        actor: ActorId,
        state: str,
        process: ProcessId | None,
        endpoint: str | None,
        incarnation: int,
        cause: bytes,
    ) -> None:
        """ACTOR_STATE: where the actor lives, or that it does not."""
        route = self.routes.get(actor)
        if route is None or incarnation < route.incarnation or route.state == DEAD:
            return
        if (
            -1 < route.incarnation < incarnation
            and process is not None
            and route.process is not None
        ):
            # It lives again before anybody heard of its end: what the old incarnation had is lost.
            self._lost(route, cause)
        route.incarnation = incarnation
        route.state = state
        if state == DEAD:
            self._died(route, cause)
            return
        if state == ALIVE and 0 <= route.restarts <= incarnation:
            route.keep = None
            self.keeping.discard(actor)
        if process is not None and endpoint is not None and process != route.process:
            self.outbox.connect(process, endpoint)
            if route.process is None:
                self.waiting_for_place -= len(route.outgoing)
            route.process = process
            if route.outgoing:
                self.dirty[actor] = route
        elif process is None and route.process is not None:
            self._lost(route, cause)

    def process_died(self, process: ProcessId, cause: bytes) -> None:
        """The worker is gone: its actors are nowhere until the node says more."""
        for route in self.routes.values():
            if route.process == process:
                self._lost(route, cause)

    def _lost(self, route: ActorRoute, cause: bytes) -> None:
        """Calls sent to a dead incarnation: again where allowed, else failed."""
        route.process = None
        unsent = {row[1] for row in route.outgoing}
        again = []
        for number, call in list(route.pending.items()):
            if call.arguments is None or number in unsent:
                continue
            if call in route.unready:
                continue
            if call.retries_left == 0:
                self._fail(route, number, cause)
                continue
            call.retries_left -= 1 if call.retries_left > 0 else 0
            again.append([route.actor, number, call.method, call.returns, call.arguments])
        route.outgoing = again + route.outgoing
        route.resent = bool(again)
        self.waiting_for_place += len(route.outgoing)

    def _died(self, route: ActorRoute, cause: bytes) -> None:
        if route.process is None:
            self.waiting_for_place -= len(route.outgoing)
        route.process, route.cause, route.outgoing = None, cause, []
        route.unready.clear()
        route.keep = None
        self.keeping.discard(route.actor)
        for number in list(route.pending):
            self._fail(route, number, cause)
        # Who has a handle has the route: whoever gets one later asks the node again.
        self.routes.pop(route.actor, None)

    def _fail(self, route: ActorRoute, number: int, outcome_bytes: bytes) -> None:
        call = route.pending.pop(number)
        route.pending_bytes -= len(call.arguments or b"")
        self.by_number.pop(number, None)
        for index in range(call.arrived, max(1, call.returns)):
            self.references.arrived(return_number(number, index), outcome_bytes)

    # -- for people and tests ------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counts for status and tests."""
        return {
            "routes": len(self.routes),
            "outstanding_calls": len(self.by_number),
            "waiting_for_place": self.waiting_for_place,
        }

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        waiting = 0
        routes = {id(route): route for route in (*self.routes.values(), *self.by_number.values())}
        for route in routes.values():
            actor = route.actor
            numbers = [row[1] for row in route.outgoing]
            assert numbers == sorted(numbers), "calls would leave in another order than made"
            assert set(numbers) <= route.pending.keys(), "a call that is over would be sent"
            assert list(route.pending) == sorted(route.pending)
            unready = [call.number for call in route.unready]
            assert not numbers or not unready or numbers[-1] < unready[0], "a held call overtaken"
            assert not unready or (
                route.unready[0].arguments is None and unready[0] in route.pending
            ), "a ready call is held back"
            if route.state == DEAD:
                assert route.pending.keys() <= set(unready), f"{actor.hex()} is dead, calls wait"
            elif route.process is None:
                waiting += len(numbers)
            else:
                assert not numbers or actor in self.dirty, "nothing would send these calls"
            for number in route.pending:
                assert self.by_number[number] is route
            arguments = [call.arguments or b"" for call in route.pending.values()]
            assert route.pending_bytes == sum(map(len, arguments))
        assert waiting == self.waiting_for_place
        assert len(self.by_number) == sum(len(route.pending) for route in routes.values())
