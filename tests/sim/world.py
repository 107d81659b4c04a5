"""The simulated world: a virtual clock, a seeded network, memory, and a story of what happened.

What    World runs events in the order of their time. A mailbox is a FIFO for each pair of
        processes with a random delay, so pairs overtake each other; a stream is a FIFO whose
        bytes outlive their sender. A crash loses any suffix of what was under way by mailbox.
Caller  tests/sim/node.py, tests/sim/process.py, tests/sim/simulation.py.
Never   reads a real clock: the same seed gives the same story.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.sim.witness import Witness
from zray.protocol import frames, link_messages, messages
from zray.protocol.ids import node_of

if TYPE_CHECKING:
    from tests.sim.losses import Losses
    from tests.sim.node import SimNode
    from tests.sim.process import SimProcess

STORY_LINES = 6000
DELIVERIES = b"deliveries"
"""The way of what a node brings to its processes from those of other nodes."""
_NAMES = {row.kind: row.name for row in link_messages.LINK_MESSAGES} | messages.NAMES


Line = tuple[float, str, bytes | None]
"""When, what, and a header whose fields belong behind it."""


class Envelope:
    """One message on its way between two mailboxes."""

    __slots__ = ("arrived", "header", "lost", "number", "payloads", "receiver", "sender")

    def __init__(
        self, sender: bytes, receiver: bytes, header: bytes, payloads: tuple[bytes, ...]
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.header = header
        self.payloads = payloads
        self.lost = False
        self.arrived = False
        self.number = 0


class World:
    """Everything of one run. ``chaos`` is set where something was killed, cancelled or lost."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.chaos = False
        self.losses: Losses | None = None
        """Where there are several nodes: which objects may be gone."""
        self.story: deque[Line] = deque(maxlen=STORY_LINES)
        self.nodes: dict[bytes, SimNode] = {}
        self.processes: dict[bytes, SimProcess] = {}
        self.names: dict[bytes, str] = {}
        self.witness = Witness(self)
        self.attempts: dict[int, int] = {}
        """How often each script that crashes its worker has begun."""
        self.slow = self.rng.choice((0.0, 0.0, 0.02, 0.1))
        self.events = 0
        self._heap: list[tuple[float, int, str, Callable[[], None]]] = []
        self._count = 0
        self._under_way: dict[tuple[bytes, bytes], deque[Envelope]] = {}
        self._arrivals: dict[tuple[bytes, bytes], float] = {}

    def node_of(self, identity: bytes) -> SimNode:
        """Return the node of a process."""
        return self.nodes[node_of(identity)]

    # -- time ------------------------------------------------------------------------------------

    def after(self, delay_s: float, what: str, action: Callable[[], None]) -> None:
        """Run an action later."""
        self.at(self.now + delay_s, what, action)

    def at(self, when: float, what: str, action: Callable[[], None]) -> None:
        """Run an action at a time; of those at one time the first asked for is first."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, what, action))

    def step(self) -> None:
        """Run the next event."""
        when, _count, _what, action = heapq.heappop(self._heap)
        self.now = max(self.now, when)
        self.events += 1
        action()

    @property
    def idle(self) -> bool:
        """Whether nothing is to come."""
        return not self._heap

    def delay_s(self) -> float:
        """Return how long the next message takes: most are quick, a few are late."""
        if self.rng.random() < self.slow:
            return self.rng.uniform(0.001, 0.08)
        return self.rng.expovariate(1 / 0.0002)

    # -- mailboxes -------------------------------------------------------------------------------

    def post(
        self,
        sender: bytes,
        receiver: bytes,
        header: bytes,
        payloads: tuple[bytes, ...],
        way: bytes = b"",
    ) -> None:
        """Send by mailbox: behind what this pair has under way.

        Args:
            sender: who it is from, receiver: whom it is for.
            header: of the message, payloads: its frames.
            way: where it is not the sender's own: what a node delivers for processes of others.
        """
        envelope = Envelope(sender, receiver, header, payloads)
        self._count += 1
        envelope.number = self._count
        pair = (way or sender, receiver)
        self._under_way.setdefault(pair, deque()).append(envelope)
        arrival = max(self._arrivals.get(pair, 0.0), self.now + self.delay_s())
        self._arrivals[pair] = arrival
        self.at(arrival, "mail", lambda: self._deliver(pair, envelope))

    def _deliver(self, pair: tuple[bytes, bytes], envelope: Envelope) -> None:
        if envelope.lost or envelope.arrived:
            return
        first = self._under_way[pair].popleft()
        assert first is envelope, "the network reordered a pair"
        envelope.arrived = True
        node = self.nodes.get(envelope.receiver)
        if node is not None:
            node.mail_arrived(envelope)
            return
        process = self.processes.get(envelope.receiver)
        if process is None or process.dead:
            return
        way = (DELIVERIES, envelope.receiver)
        if envelope.sender in self.nodes:
            # A process reads what was written to its edges before it reads what its node says.
            delivered = self._under_way.get(way)
            while delivered and delivered[0].number < envelope.number:
                self._deliver(way, delivered[0])
        process.mail_arrived(envelope)

    def lose_suffixes(self, sender: bytes) -> None:
        """A process crashed: of what it had under way, any suffix of each pair is lost."""
        for (source, receiver), queue in self._under_way.items():
            if source != sender or not queue:
                continue
            kept = self.rng.randint(0, len(queue))
            while len(queue) > kept:
                queue.pop().lost = True
                self.tell(f"    lost: a message of {self.name(sender)} to {self.name(receiver)}")

    # -- the story -------------------------------------------------------------------------------

    def name(self, identity: bytes) -> str:
        """Return a short name of a process or object."""
        known = self.names.get(identity[:8], identity[:8].hex())
        return known if len(identity) == 8 else f"{known}.{int.from_bytes(identity[8:], 'big'):x}"

    def tell(self, line: str) -> None:
        """Add a line to the story."""
        self.story.append((self.now, line, None))

    def tell_message(self, who: str, header: bytes) -> None:
        """Add a message to the story."""
        self.story.append((self.now, who, header))  # Spelled out for who reads it: few stories are.

    def lines(self) -> list[str]:
        """Return the story, with names for identities."""
        return [self._spelled(*line) for line in self.story]

    def digest(self) -> str:
        """Return a hash of the story: the same for the same seed."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()

    def _spelled(self, when: float, text: str, header: bytes | None) -> str:
        if header is not None:
            message = frames.unpack(header)
            kind = _NAMES.get(message[1], str(message[1]))
            fields = ", ".join(self._readable(field) for field in message[3:])
            text = f"{text} {kind} {fields}"[:240]
        return f"{when * 1000:10.3f}  {text}"

    def _readable(self, field: Any) -> str:
        if isinstance(field, bytes):
            return self.name(field) if len(field) in (8, 16) else f"<{field[:14]!r}>"
        if isinstance(field, list | tuple):
            return "[" + " ".join(self._readable(part) for part in field) + "]"
        if isinstance(field, dict):
            return "{}"
        return repr(field)
