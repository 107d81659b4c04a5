"""The node's rules for messages that come through its inbox.

What    One function a kind: fields to a machine's method.
Caller  brokers/node.py.
Never   holds state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.errors import RemoteProtocolError
from zray.protocol import messages

from . import scheduler_account
from .locality import inputs_at
from .peers import Process

if TYPE_CHECKING:
    from .node import Node

Rule = Callable[["Node", Process, list[Any], list[bytes]], None]


def _submit(node: Node, process: Process, message: list[Any], payloads: list[bytes]) -> None:
    rows = message[3]
    if len(rows) != len(payloads):
        raise RemoteProtocolError("SUBMIT needs one payload a batch")
    node.gcs.tasks_submitted(node.job_of(process), process.identity, rows, payloads)
    node.scheduler.now = node.now
    inputs = {
        at: inputs_at(node.objects, row[7], node.process)
        for at, row in enumerate(rows)
        if len(row) > 7
    }
    node.scheduler.submit(process.identity, rows, payloads, inputs)


def _finished(node: Node, process: Process, message: list[Any], _payloads: list[bytes]) -> None:
    names = scheduler_account.function_names(node.scheduler, process.identity, message[3])
    node.gcs.tasks_finished(process.identity, process.pid, message[3], names)
    node.scheduler.finished(process.identity, message[3], node.now)


def _actor_started(
    node: Node, process: Process, message: list[Any], _payloads: list[bytes]
) -> None:
    for identity, incarnation, error in message[3]:
        node.dispatcher.started(process.identity, identity, incarnation, error)


def _reconcile(node: Node, process: Process, message: list[Any], _payloads: list[bytes]) -> None:
    missing = node.scheduler.unknown(process.identity, message[3])
    node.send(process.identity, messages.RECONCILED, missing)


def _ping(_node: Node, _process: Process, _message: list[Any], _payloads: list[bytes]) -> None:
    return


MAILBOX_RULES: dict[int, Rule] = {
    messages.SUBMIT: _submit,
    messages.FINISHED: _finished,
    messages.ACTOR_STARTED: _actor_started,
    messages.RECONCILE: _reconcile,
    messages.PING: _ping,
}
