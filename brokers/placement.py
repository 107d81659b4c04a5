"""The global decision for one request: which node it goes to.

What    choose() takes the node with the shortest estimated wait plus time to fetch missing inputs,
        within label selectors, affinity and SPREAD; this node wherever it is nearly as good, and
        else one of the best few. shortage() says why there is none.
Caller  brokers/borrowing.py for tasks and actors, brokers/groups.py for bundles.
Never   draws a random number: chance comes from the seed, so that a run can be repeated.
Spec    OSDI'18, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from zray.errors import RemoteProtocolError
from zray.protocol.ids import GROUP_ID_BYTES, PROCESS_ID_BYTES
from zray.protocol.labels import LabelRule, read_selector
from zray.protocol.limits import BUNDLES_MAX
from zray.protocol.units import CPU, RESOURCE_UNITS

from .bundles import in_group
from .load import ALIVE, LoadTable

DEFAULT, SPREAD = "DEFAULT", "SPREAD"

MOVE_US = 500.0
"""What moving work to another node costs: two messages, and a queue entered from the back."""

_HELD_US = 10_000.0
"""Estimated wait for something other than CPUs that somebody holds: nobody knows how long."""

_BYTES_PER_US = 500.0
"""Bandwidth between nodes that missing inputs are priced with: 500 MB/s."""

LOOK_AT_MAX = 64
"""Nodes that one decision compares: a sample this large is as good as all, and costs the same
in a cluster of a thousand."""

_SCAN_MAX = 4 * LOOK_AT_MAX
"""Nodes that are scanned for those with room."""

_BEST_MAX = 8
"""A request goes to one of so many of the best nodes: many nodes decide by the same table."""

_ROUND = 1 << 64


@dataclass(frozen=True, slots=True)
class Request:
    """What something that is to be placed needs of a node.

    Args:
        amounts: units by resource.
        rules: its label selector.
        node: the node it asks for, b"" where it asks for none.
        soft: whether another node will do where that one is gone.
        strategy: DEFAULT or SPREAD.
        preferred: conditions on labels: a node that meets them before one that does not.
    """

    amounts: Mapping[str, int]
    rules: tuple[LabelRule, ...] = ()
    node: bytes = b""
    soft: bool = False
    strategy: str = DEFAULT
    preferred: tuple[LabelRule, ...] = ()

    def __post_init__(self) -> None:
        if self.strategy not in (DEFAULT, SPREAD):
            raise RemoteProtocolError(f"there is no scheduling strategy {self.strategy!r}")

    @property
    def cpus(self) -> float:
        """CPUs a task of it holds; one that holds none is counted as one."""
        return self.amounts.get(CPU, 0) / RESOURCE_UNITS or 1.0

    def may_run_on(self, table: LoadTable, node: bytes) -> bool:
        """Return whether a node could run it at all, affinity aside."""
        if self.rules:
            labels = table.rows[node].labels
            if not all(rule.holds(labels) for rule in self.rules):
                return False
        return table.fits_ever(node, self.amounts)

    def prefers(self, table: LoadTable, node: bytes) -> bool:
        """Return whether a node meets the conditions that are no more than wishes."""
        labels = table.rows[node].labels
        return all(rule.holds(labels) for rule in self.preferred)


@dataclass(frozen=True, slots=True)
class Locality:
    """Where the inputs of a task are.

    Args:
        total_bytes: all of them together.
        at: how many of these bytes a node has; nodes that have none are left out.
    """

    total_bytes: int = 0
    at: Mapping[bytes, int] = field(default_factory=dict)

    def fetch_us(self, node: bytes) -> float:
        """Return how long a node needs to get what it lacks."""
        return max(0, self.total_bytes - self.at.get(node, 0)) / _BYTES_PER_US


NOWHERE = Locality()


@dataclass(frozen=True, slots=True)
class Where:
    """What an option says of the node that something is to run on.

    Args:
        rules: its label selector.
        node: the node it asks for, b"" where it asks for none.
        soft: whether another node will do where that one is gone.
        strategy: DEFAULT or SPREAD.
        preferred: conditions on labels that are wishes: any node will do where none meets them.
        group: the placement group it runs in, b"" for none.
        bundle: which of the group's bundles; -1: any.
        near: the node was chosen for its inputs: no wish of anybody's.
    """

    rules: tuple[LabelRule, ...] = ()
    node: bytes = b""
    soft: bool = False
    strategy: str = DEFAULT
    preferred: tuple[LabelRule, ...] = ()
    group: bytes = b""
    bundle: int = -1
    near: bool = False

    def request(self, amounts: Mapping[str, int]) -> Request:
        """Return the request of something that needs these units, and goes where this says."""
        return Request(amounts, self.rules, self.node, self.soft, self.strategy, self.preferred)

    def amounts(self, amounts: Mapping[str, int]) -> dict[str, int]:
        """Return what it needs, by the names of the account that it is taken from."""
        return in_group(amounts, self.group, self.bundle)

    def without_wishes(self) -> Where:
        """Return where it may run, when nobody is to be preferred any more."""
        if not (self.preferred or (self.node and self.soft)):
            return self
        may = Where(self.rules, group=self.group, bundle=self.bundle)
        return ANYWHERE if may == ANYWHERE else may


ANYWHERE = Where()


def read_where(fields: object) -> Where:
    """Return what a message says of the node, or ANYWHERE for None.

    The fields are [strategy, node, soft, label selector, group, wishes]; the last two, which may
    be missing, are [group, bundle, whether its children run there too] or None, and a selector.

    Raises RemoteProtocolError where it is no such list, OptionError where a selector is none.
    """
    if fields is None:
        return ANYWHERE
    if not isinstance(fields, list | tuple) or not 4 <= len(fields) <= 6:
        raise RemoteProtocolError("where something is to run is said by 4 to 6 fields")
    strategy, node, soft, selector, group, wishes = (*fields, None, None)[:6]
    if strategy not in (DEFAULT, SPREAD) or type(soft) is not bool:
        raise RemoteProtocolError(f"{strategy!r} is no scheduling strategy")
    if type(node) is not bytes or len(node) not in (0, PROCESS_ID_BYTES):
        raise RemoteProtocolError("a node's id has 8 bytes")
    identity, bundle = _read_group(group)
    where = Where(
        _read_rules(selector),
        node,
        soft,
        strategy,
        _read_rules({} if wishes is None else wishes),
        identity,
        bundle,
    )
    return ANYWHERE if where == ANYWHERE else where


def _read_rules(selector: object) -> tuple[LabelRule, ...]:
    if type(selector) is not dict or not all(
        type(text) is str for pair in selector.items() for text in pair
    ):
        raise RemoteProtocolError("a label selector maps strings to strings")
    return read_selector(selector)


def _read_group(group: object) -> tuple[bytes, int]:
    if group is None:
        return b"", -1
    if type(group) is not list or len(group) != 3 or type(group[2]) is not bool:
        raise RemoteProtocolError("a placement group is named by its id, a bundle and a flag")
    identity, bundle, _captures = group
    if type(identity) is not bytes or len(identity) != GROUP_ID_BYTES:
        raise RemoteProtocolError(f"a placement group's id has {GROUP_ID_BYTES} bytes")
    if type(bundle) is not int or not -1 <= bundle < BUNDLES_MAX:
        raise RemoteProtocolError(f"a bundle's index is -1 to {BUNDLES_MAX - 1}")
    return identity, bundle


def chance(*parts: bytes | int) -> float:
    """Return a number in [0, 1) that looks random and is the same for the same parts."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        number = int.from_bytes(part, "big") if isinstance(part, bytes) else part
        state = ((state ^ number) * 0xBF58476D1CE4E5B9) % _ROUND
        state = ((state ^ state >> 31) * 0x94D049BB133111EB) % _ROUND
        state ^= state >> 29
    return state / _ROUND


# ------------------------------------------------------------------------------------ one request


def choose(
    request: Request,
    table: LoadTable,
    *,
    locality: Locality = NOWHERE,
    seed: int,
    now: float,
    avoid: Collection[bytes] = (),
    free_only: bool = False,
) -> bytes | None:
    """Return the node for one request, None where no node could ever run it.

    Args:
        request: what it needs.
        table: what is known of the nodes.
        locality: where its inputs are.
        seed: for SPREAD a counter that grows by one each time, else any number.
        now: seconds.
        avoid: nodes that have just refused.
        free_only: of the other nodes only those that have room now are worth it.
    """
    if request.node:
        alive = request.node in table.rows and request.node in table.candidates
        if alive and request.may_run_on(table, request.node):
            return None if request.node in avoid else request.node
        if not request.soft:
            return None
    if request.strategy == SPREAD:
        return _spread(request, table, seed)
    prices = []
    for node in _sample(request, table, locality, seed, free_only=free_only):
        if node in avoid:
            continue
        price_us = table.wait_us(node, now)
        if not table.fits_now(node, request.amounts):
            price_us = max(price_us, _held_us(node, request, table))
        if locality.total_bytes:
            price_us += locality.fetch_us(node)
        prices.append((price_us, node))
    if not prices:
        return None
    lowest = min(price for price, _node in prices)
    near = sorted(pair for pair in prices if pair[0] <= lowest + MOVE_US)
    if any(node == table.own for _price, node in near):
        return table.own
    best = near[:_BEST_MAX]
    return best[int(chance(seed, table.own, 1) * len(best))][1]


def _held_us(node: bytes, request: Request, table: LoadTable) -> float:
    """Return the least wait where not all is free: CPUs change hands soon, the rest does not."""
    others = {name: units for name, units in request.amounts.items() if name != CPU}
    return MOVE_US if table.fits_now(node, others) else _HELD_US


def _spread(request: Request, table: LoadTable, counter: int) -> bytes | None:
    """Take the next node in turn; one that has room now before one that has not."""
    nodes = [node for node in table.candidates if request.may_run_on(table, node)]
    if not nodes:
        return None
    # Nodes that begin to count at the same moment begin at different places.
    start = counter + int(chance(table.own) * len(nodes))
    turns = [nodes[(start + step) % len(nodes)] for step in range(len(nodes))]
    return next((node for node in turns if table.fits_now(node, request.amounts)), turns[0])


def _sample(
    request: Request, table: LoadTable, locality: Locality, seed: int, *, free_only: bool
) -> Iterator[bytes]:
    """Yield nodes that could run it: this one, those with its inputs, then from a random place."""
    nodes = table.candidates
    first = [
        node
        for node in dict.fromkeys((table.own, *locality.at))
        if node in table.rows and table.rows[node].state == ALIVE
    ]
    if request.preferred:
        liked = [
            node
            for node in nodes
            if request.prefers(table, node) and request.may_run_on(table, node)
        ]
        nodes = liked or nodes
        first = [node for node in first if node in liked or not liked]
    found = 0
    for node in first:
        if request.may_run_on(table, node):
            found += 1
            yield node
    start = int(chance(seed, table.own) * len(nodes))
    # Where all are busy, a look at all of a thousand each time would be what keeps this one busy.
    for step in range(min(len(nodes), _SCAN_MAX) if free_only else len(nodes)):
        node = nodes[(start + step) % len(nodes)]
        if free_only and not table.fits_now(node, request.amounts):
            continue
        if node not in first and request.may_run_on(table, node):
            found += 1
            yield node
            if found >= LOOK_AT_MAX:
                return


def shortage(request: Request, table: LoadTable) -> str:
    """Return why no node can run a request, for people; "" where one can."""
    nodes = table.candidates
    if request.node and not request.soft:
        if request.node not in nodes:
            return f"node {request.node.hex()} is not alive"
        nodes = [request.node]
    labelled = [
        node for node in nodes if all(rule.holds(table.rows[node].labels) for rule in request.rules)
    ]
    if not labelled:
        return f"none of {len(nodes)} nodes has the labels it asks for"
    if any(table.fits_ever(node, request.amounts) for node in labelled):
        return ""
    most = {
        name: max(table.rows[node].total.get(name, 0) for node in labelled)
        for name in request.amounts
    }
    lacking = [
        f"{name} {units / RESOURCE_UNITS:g} of {most[name] / RESOURCE_UNITS:g}"
        for name, units in request.amounts.items()
        if units > most[name]
    ]
    return f"the largest node has too little: {', '.join(lacking) or 'each has a part of it'}"
