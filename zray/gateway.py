"""The runtime of a driver with a gateway's key: it calls the actors of a cluster, with data.

What    Calls carry their arguments in a form that no reader unpickles (serialization/data.py), and
        whatever would ship code, make or end something is refused here, where the program reads
        why. The nodes of the cluster look again: they do not trust this file.
Caller  zray/api.py, where the node of a driver is a gateway's.
Never   pickles anything that leaves; results come back as the cluster's workers have made them.
Spec    docs/explanation/threat-model.md, "Roles".
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack

from zray import errors
from zray.protocol import messages
from zray.protocol.limits import GATEWAY_CALL_BYTES_MAX
from zray.refs import ObjectRef
from zray.runtime import Runtime
from zray.serialization.data import encode_data
from zray.session.actors import ActorRoute

_KV_READS = frozenset(("get", "exists", "keys"))


class GatewayRuntime(Runtime):
    """A connected driver that may call, and may not ship code."""

    def export(self, code: Any) -> tuple[bytes, list[Any]]:
        """Refuse: functions and classes are code."""
        name = getattr(code, "__qualname__", repr(code))
        _refuse(f"{name} would be sent to the cluster as code")

    def call_actor(
        self,
        route: ActorRoute,
        method: str | bytes,
        returns: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
        keep: object,
    ) -> int:
        """Call an actor with arguments that are data; returns the number of the first return.

        Raises:
            SerializationError: an argument is no data.
            OptionError: the call has options that are code, or is larger than a gateway sends.
        """
        if isinstance(method, bytes) and "retry" in msgpack.unpackb(method)[2]:
            raise errors.OptionError(
                "retry_exceptions names classes, which are code: a gateway can't send it; set it at"
                " the method",
                option="retry_exceptions",
            )
        for value in (*args, *kwargs.values()):
            if isinstance(value, ObjectRef):
                raise errors.SerializationError(
                    "a gateway sends data only, and no ObjectRef: get() it and send the value, or"
                    " let an actor of the cluster pass it on"
                )
        data = encode_data([list(args), kwargs] if kwargs else args)
        if len(data) > GATEWAY_CALL_BYTES_MAX:
            raise errors.OptionError(
                f"the arguments are {len(data)} bytes, and {GATEWAY_CALL_BYTES_MAX} are the most"
                " that a gateway sends with a call: send them in parts",
                option="args",
            )
        return self._send_call(route, method, returns, data, None, keep, retries)

    def request(self, kind: int, *fields: Any) -> Any:
        """Ask the node, unless it is for a change."""
        if kind == messages.KV and fields[0] not in _KV_READS:
            _refuse(f"kv.{fields[0]}() would change the cluster's table")
        return super().request(kind, *fields)

    def call(self, kind: int, *fields: Any) -> None:
        """Send a one-way call to the node, unless it would end an actor."""
        if kind == messages.KILL_ACTOR:
            _refuse("zray.kill() would end an actor")
        super().call(kind, *fields)


def _refuse(what: str) -> NoReturn:
    raise errors.SecurityError(
        f"{what}, and this program has the key of a gateway: it may call the actors that the"
        " cluster has (zray.get_actor), with data. Use the key of a client for more"
    )
