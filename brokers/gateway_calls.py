"""What the processes of gateways say to those of this node, opened before it is brought on.

What    Nodes bring envelopes on unopened. Those of a gateway are put together here, piece by
        piece, and the message is looked at (brokers/link_roles.py); what may pass goes on in the
        envelopes in which it came.
Caller  brokers/refusals.py, for brokers/link_rules.py.
Never   brings on a piece of a message before all of it was looked at: put together with pieces of
        another message it would be a third one, that nobody has seen.
Spec    docs/explanation/threat-model.md, "Roles".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zray.errors import RemoteProtocolError
from zray.protocol.envelopes import Reassembly, check_envelope, destination_of, source_of
from zray.protocol.ids import NODE_PREFIX_BYTES, NodeId, ProcessId

from .link_roles import RoleError

INCOMPLETE_BYTES_MAX = 64 << 20
"""Of messages of one gateway that are not all here."""

Refuse = Callable[[ProcessId, ProcessId, list[bytes]], bool]


class _Gateway:
    """The messages of one gateway that are on their way."""

    def __init__(self) -> None:
        self.reassembly = Reassembly()
        self.held: dict[ProcessId, list[bytes]] = {}
        """By source: the envelopes of a message that has begun."""

    @property
    def nbytes(self) -> int:
        return sum(len(each) for held in self.held.values() for each in held)


class GatewayCalls:
    """The door for gateways.

    Args:
        refuse: given destination, source and the frames of a message: answers it where it may not
            go on, and returns whether it did.
    """

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._gateways: dict[NodeId, _Gateway] = {}

    def admitted(self, peer: NodeId, sealed: Sequence[bytes | memoryview]) -> list[bytes]:
        """Return the envelopes of a gateway that may be brought on now, in order.

        Raises:
            RoleError: what no driver of this release says.
            RemoteProtocolError: they are malformed.
        """
        gateway = self._gateways.setdefault(peer, _Gateway())
        passed: list[bytes] = []
        for each in sealed:
            check_envelope(each, peer[:NODE_PREFIX_BYTES])
            passed += self._look(gateway, bytes(each))
        if not gateway.held:
            del self._gateways[peer]
        return passed

    def _look(self, gateway: _Gateway, envelope: bytes) -> list[bytes]:
        source = source_of(envelope)
        before = gateway.held.pop(source, [])
        try:
            message = gateway.reassembly.add(envelope)
        except RemoteProtocolError as error:
            raise RoleError(f"a gateway's message in pieces that do not fit: {error}") from None
        if not gateway.reassembly.continues(envelope):
            before = []  # It begins anew: what its source had begun is not ended.
        held = [*before, envelope]
        if any(destination_of(each) != destination_of(envelope) for each in before):
            raise RoleError("pieces of one message of a gateway for several processes")
        if message is None:
            gateway.held[source] = held
            if gateway.nbytes > INCOMPLETE_BYTES_MAX:
                raise RoleError("more begun messages of a gateway than one may have")
            return []
        _source, header, payloads = message
        refused = self._refuse(destination_of(envelope), source, [header, *payloads])
        return [] if refused else held

    def forget(self, peer: NodeId) -> None:
        """A gateway is gone."""
        self._gateways.pop(peer, None)
