"""The node's door: unix connections until they have said who they are.

What    Accepts, waits for HELLO, checks it, and hands the connection to the node. Who says
        something else, nothing for too long, or claims to be somebody who is here already is
        refused and counted; so is everybody while no descriptor is left.
Caller  brokers/node.py.
Never   keeps a descriptor that a stranger sends, or more than a few bytes of what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net import channel, mailbox
from zray.net.descriptors import ACCEPT_RESERVE
from zray.protocol import frames, messages
from zray.protocol.ids import node_of
from zray.protocol.limits import (
    CHANNEL_MESSAGE_BYTES_MAX,
    HELLO_BYTES_MAX,
    HELLO_TIMEOUT_S,
    UNNAMED_CONNECTIONS_MAX,
)

if TYPE_CHECKING:
    from .node import Node

_REPORTED_MAX = 5
_REASONS_MAX = 20
"""Lines in the log between two sweeps: of each reason, and reasons."""


class _DiedEarlyError(errors.RemoteProtocolError):
    """A process was killed before it could say who it is: no fault of its."""


class Reception:
    """Connections that have not said HELLO.

    Args:
        node: whose door this is.
        path: of the unix socket.
        joined: called with (stream, role, identity, pid, details) for each HELLO that is in order.
    """

    def __init__(
        self,
        node: Node,
        path: str,
        joined: Callable[[channel.Channel, str, bytes, int, dict[str, Any]], None],
    ) -> None:
        self.node = node
        self.listener = channel.Listener(path, descriptors_left=ACCEPT_RESERVE)
        self.refused = 0
        self._joined = joined
        self._waiting: dict[channel.Channel, float] = {}
        self._reported: dict[str, int] = {}
        node.watch(self.listener.fileno(), self._accept)

    def _accept(self) -> None:
        lacked = self.listener.refused
        while (stream := self.listener.accept()) is not None:
            stream.message_bytes_max = HELLO_BYTES_MAX
            self._waiting[stream] = self.node.now + HELLO_TIMEOUT_S
            self.node.watch(stream.fileno(), partial(self._read, stream))
            if len(self._waiting) > UNNAMED_CONNECTIONS_MAX:
                oldest = next(iter(self._waiting))
                self._refuse(oldest, "too many connections that say nothing")
            if stream in self._waiting:
                # What it has said already came before any message of this wake.
                self._read(stream)
        if self.listener.refused > lacked:
            self._count(
                self.listener.refused - lacked,
                "no file descriptor is left for a"
                " connection: raise the limit (ulimit -n) before starting the node",
            )

    def _read(self, stream: channel.Channel) -> None:
        try:
            received, alive = stream.drain(messages_max=1)
            if not received and alive:
                return
            if not received:
                if not stream.inbound_bytes:
                    raise _DiedEarlyError("it closed before HELLO")
                raise errors.RemoteProtocolError("it closed in the midst of HELLO")
            role, identity, pid, details = self._check(frames.unpack(received[0]), stream.peer_pid)
        except _DiedEarlyError:
            self._drop(stream)
            return
        except errors.RemoteProtocolError as error:
            self._refuse(stream, str(error))
            return
        del self._waiting[stream]
        self.node.unwatch(stream.fileno())
        stream.message_bytes_max = CHANNEL_MESSAGE_BYTES_MAX
        self._joined(stream, role, identity, pid, details)
        # What came right behind its HELLO has been read from the socket, and no poll tells of it.
        self.node.callbacks[stream.fileno()]()

    def _check(self, message: list[Any], peer_pid: int) -> tuple[str, bytes, int, dict[str, Any]]:
        """Return (role, identity, pid, details), or raise RemoteProtocolError.

        ``peer_pid`` is the kernel's word: ids lie open in the names of files, and who has one
        must not be taken for the process it belongs to.
        """
        if message[1] != messages.HELLO:
            raise errors.RemoteProtocolError("a connection that does not begin with HELLO")
        identity, role, pid, details = message[3:]
        if type(identity) is not bytes or len(identity) != 8 or type(pid) is not int or pid <= 0:
            raise errors.RemoteProtocolError("HELLO with a malformed process id or pid")
        if node_of(identity) != self.node.process or identity == self.node.process:
            raise errors.RemoteProtocolError(
                "HELLO with an id that is not of this node: it must begin with the first 4 bytes"
                " of the node's, and not be the node's own"
            )
        if type(details) is not dict or not all(type(name) is str for name in details):
            raise errors.RemoteProtocolError("HELLO with malformed details")
        processes = self.node.processes
        if processes.has_left(identity):
            raise _DiedEarlyError("its other connection has told of its death")
        known = processes.by_id.get(identity)
        if role == "calls":
            if known is None or known.calls is not None:
                raise errors.RemoteProtocolError("HELLO for calls of nobody, or a second time")
            if peer_pid != known.lifeline.peer_pid:
                raise errors.RemoteProtocolError(f"HELLO for the calls of {known}, by another")
            return role, identity, pid, details
        if known is not None:
            raise errors.RemoteProtocolError(f"HELLO of {known}, who is here already")
        if role == "worker":
            if identity not in processes.starting:
                raise errors.RemoteProtocolError("HELLO of a worker that nobody forked")
            forked = self.node.workers.by_process.get(identity)
            if peer_pid and forked is not None and forked.pid not in (0, peer_pid):
                raise errors.RemoteProtocolError("HELLO of a worker, by another process")
        elif role not in ("driver", "observer"):
            raise errors.RemoteProtocolError("HELLO in a role that does not exist")
        # The place follows from the identity: what a process says of it is not believed.
        details["endpoint"] = mailbox.ipc_endpoint(self.node.directory, identity.hex())
        self._check_details(details)
        return role, identity, pid, details

    def _check_details(self, details: dict[str, Any]) -> None:
        for name in ("cwd", "entrypoint", "namespace"):
            if type(details.get(name, "")) not in (str, type(None)):
                raise errors.RemoteProtocolError(f"HELLO with a malformed {name}")
        path = details.get("path", [])
        if type(path) is not list or not all(type(entry) is str for entry in path):
            raise errors.RemoteProtocolError("HELLO with a malformed path")
        env_vars = details.get("env_vars", {})
        if type(env_vars) is not dict or not all(
            type(text) is str for pair in env_vars.items() for text in pair
        ):
            raise errors.RemoteProtocolError("HELLO with malformed env_vars")

    def _refuse(self, stream: channel.Channel, reason: str) -> None:
        self._drop(stream)
        self._count(1, reason)

    def _drop(self, stream: channel.Channel) -> None:
        del self._waiting[stream]
        self.node.unwatch(stream.fileno())
        stream.close()

    def _count(self, count: int, reason: str) -> None:
        self.refused += count
        self.node.malformed += count
        reported = self._reported.get(reason, 0)
        # A flood of strangers must not fill the disk, nor hide what is said of another.
        if reported < _REPORTED_MAX and len(self._reported) < _REASONS_MAX:
            self._reported[reason] = reported + 1
            print(f"refused {count} connections: {reason}", flush=True)

    def sweep(self, now: float) -> None:
        """Refuse those that have said nothing for too long; called twice a second."""
        self._reported.clear()
        for stream in [stream for stream, until in self._waiting.items() if until < now]:
            self._refuse(stream, f"no HELLO within {HELLO_TIMEOUT_S} s")

    def close(self) -> None:
        """Accept nobody any more."""
        self.node.unwatch(self.listener.fileno())
        self.listener.close()
        for stream in list(self._waiting):
            self.node.unwatch(stream.fileno())
            stream.close()
        self._waiting.clear()
