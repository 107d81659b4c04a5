"""Look at a node, or stop it, without being a driver of it.

What    Observer asks a node's INSPECT questions over unix streams. It is no job, runs nothing and
        holds nothing, so a node does not change by being looked at.
Caller  zray/cli*.py, tests.
Never   imports zmq: `zray-node status` answers in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Any, Self

from zray import errors
from zray.net import channel
from zray.node_directory import new_process
from zray.protocol import frames, messages

_TIMEOUT_S = 10.0


class Observer:
    """A connection to the node in ``directory``. A context manager.

    Raises:
        NodeStartError: nobody answers there.
        NodeDiedError: the node went away, or did not answer within 10 s.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        path = os.path.join(directory, "node.sock")
        identity = new_process(directory)
        streams: list[channel.Channel] = []
        try:
            for role in ("observer", "calls"):
                stream = channel.connect(path)
                streams.append(stream)
                stream.socket.settimeout(_TIMEOUT_S)
                stream.send(frames.pack(messages.HELLO, identity, role, os.getpid(), {}))
                if role == "observer" and stream.receive() is None:
                    raise ConnectionResetError("it closed the connection")
        except OSError as error:
            for stream in streams:
                stream.close()
            raise errors.NodeStartError(
                f"no node answers at {directory} ({error.strerror or error}): start one with"
                f" `zray-node start --dir {directory}`"
            ) from None
        self._lifeline, self._calls = streams

    def ask(self, what: str, **arguments: Any) -> Any:
        """Return the answer to one question of brokers/inspection.py, as plain types."""
        try:
            self._calls.send(frames.pack(messages.INSPECT, what, arguments))
            reply = self._calls.receive()
        except OSError as error:
            reply, reason = None, str(error)
        else:
            reason = "it closed the connection"
        if reply is None:
            raise errors.NodeDiedError(
                f"the node at {self.directory} does not answer: {reason};"
                " see its node.log, and `zray-node stop --force`"
            )
        packed, value = frames.unpack(reply)[3:5]
        if packed is not None:
            from zray.serialization.exceptions import decode_exception

            raise decode_exception(packed)
        return value

    def stop(self, reason: str) -> None:
        """Ask the node to end; returns when it has begun to, at the latest after 10 s."""
        self._calls.send(frames.pack(messages.STOP, reason))
        # Closing our lifeline at once could overtake the question, which ends with us.
        with contextlib.suppress(OSError):
            self._calls.receive()

    def drain(self, node: bytes, timeout_s: float, *, force: bool) -> None:
        """Ask that a node leave its cluster; "nodes" tells how far that is."""
        self._calls.send(frames.pack(messages.DRAIN_NODE, node, timeout_s, force))

    def close(self) -> None:
        """Disconnect."""
        self._lifeline.close()
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()
