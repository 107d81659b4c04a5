"""Runs the calls of the actors that live in this worker.

What    One instance per actor; calls of one caller in the order sent, duplicates dropped by the
        caller's number. Synchronous methods run in the main thread.
Caller  actors/host.py.
Never   starts an actor twice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import messages, outcome
from zray.protocol.ids import return_number
from zray.runtime import STREAMING

from .values import Values
from .work import ActorCall, ActorEnd, ActorStart

if TYPE_CHECKING:
    from .host import Host


class Instance:
    """One actor in this worker."""

    __slots__ = ("actor", "details", "error", "incarnation", "last", "methods", "value")

    def __init__(self, start: ActorStart) -> None:
        self.actor = start.actor
        self.incarnation = start.incarnation
        self.details = start.details
        self.value: Any = None
        self.error: bytes | None = None
        self.methods: dict[str, Any] = {}
        self.last: dict[bytes, int] = {}
        """Highest call number run, by caller: a lower one is a duplicate."""


class ActorRunner:
    """The actors of one worker."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.values = Values(host.runtime)
        self.instances: dict[bytes, Instance] = {}
        self.early: dict[bytes, list[ActorCall]] = {}
        self.busy = False

    def arrived(self) -> None:
        """Calls have been queued (by whichever thread reads the inbox)."""

    def start(self, start: ActorStart) -> None:
        """Make the instance, report, run calls that came before it."""
        host = self.host
        owner, endpoint = start.owner
        if endpoint:
            host.runtime.peers.connect(owner, endpoint)
        instance = Instance(start)
        if start.details["gpus"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(start.details["gpus"])
        self.busy = True
        host.runtime.on_blocked = host.report_blocked
        try:
            cls = host.load_code(start.class_id)
            args, kwargs = self.values.load_arguments(start.arguments)
            instance.value = cls(*args, **kwargs)
        except BaseException as error:
            name = f"{start.details['class']}.__init__"
            instance.error = outcome.error(self._died_in_init(error, name))
        finally:
            self.busy = False
            host.runtime.on_blocked = None
        self.instances[start.actor] = instance
        with host.runtime.lock:
            host.runtime.session.outbox.message(
                host.runtime.node, messages.ACTOR_STARTED,
                [[start.actor, start.incarnation, instance.error]])
        host.outbound.started()
        for call in self.early.pop(start.actor, ()):
            self.call(call)

    def _died_in_init(self, error: BaseException, name: str) -> bytes:
        from zray.serialization.exceptions import encode_exception
        died = errors.ActorDiedError(f"its {name} raised {type(error).__name__}: {error}")
        died.__cause__ = error
        return encode_exception(died, where=name, pid=os.getpid())

    def call(self, call: ActorCall) -> None:
        """Run one call."""
        instance = self.instances.get(call.actor)
        if instance is None:
            self.early.setdefault(call.actor, []).append(call)
            return
        client, number = call.client, call.number
        if number <= instance.last.get(client, 0):
            return  # A duplicate: its outcome is on the way or was delivered.
        instance.last[client] = number
        self.connect(client)
        if instance.error is not None:
            self._reply_all(call, instance.error)
            return
        self._execute(instance, call)

    def connect(self, client: bytes) -> None:
        """Open the way back to a caller: its mailbox lies beside ours."""
        peers = self.host.runtime.peers
        if not peers.knows(client):
            directory = self.host.runtime.directory
            peers.connect(client, f"ipc://{directory}/{client.hex()}")

    def _execute(self, instance: Instance, call: ActorCall) -> None:
        host = self.host
        outbound = host.outbound
        self.busy = True
        host.runtime.on_blocked = host.report_blocked
        try:
            method = instance.methods.get(call.method)
            if method is None:
                name = call.method.partition("@")[0]
                method = instance.methods[call.method] = getattr(instance.value, name)
            args, kwargs = self.values.load_arguments(call.arguments)
            value = method(*args, **kwargs)
            if call.returns == 1:
                found = self.values.make_outcome(value, call.client, call.number)
                outbound.reply(call.client, call.number, found, found[0] != outcome.PICKLE)
            else:
                self._reply_many(call, value)
        except BaseException as error:
            self._reply_all(call, self.values.make_error(
                error, f"{instance.details['class']}.{call.method}"))
        finally:
            self.busy = False
            host.runtime.on_blocked = None

    def _reply_many(self, call: ActorCall, value: Any) -> None:
        client, number, outbound = call.client, call.number, self.host.outbound
        if call.returns == STREAMING:
            index = 0
            for item in value:
                found = self.values.make_outcome(item, client, return_number(number, index + 1))
                index += 1
                if not outbound.yield_item(client, number, index - 1, found, 64):
                    value.close()
                    break
            outbound.end_stream(client, number)
            outbound.reply(client, number, self.values.make_outcome(index, client, number), False)
            return
        if call.returns == 0:
            outbound.reply(client, number, self.values.make_outcome(None, client, number), False)
            return
        values = tuple(value)
        if len(values) != call.returns:
            raise ValueError(f"method {call.method} has num_returns={call.returns} and returned"
                             f" {len(values)} values")
        found_all = [self.values.make_outcome(part, client, return_number(number, index))
                     for index, part in enumerate(values)]
        for index, found in enumerate(found_all):
            outbound.reply(client, return_number(number, index), found, True)

    def _reply_all(self, call: ActorCall, found: bytes) -> None:
        for index in range(max(1, call.returns)):
            self.host.outbound.reply(call.client, return_number(call.number, index), found, True)

    def end(self, end: ActorEnd) -> None:
        """Forget an actor whose calls have run."""
        instance = self.instances.pop(end.actor, None)
        if instance is None:
            return
        instance.value = None
        self.host.runtime.call(messages.ACTOR_EXIT, end.actor, b"")

    def interrupt(self, client: bytes, number: int) -> None:
        """Cancel a call that runs (background thread)."""

    def close(self) -> None:
        """The worker ends."""
        self.instances.clear()
