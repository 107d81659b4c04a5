"""Where the bundles of a placement group go: the four strategies.

What    plan() maps bundles to nodes by what is free, or by what there is at all. PACK takes as few
        nodes as a first-fit in order of size finds, SPREAD the least used node for each bundle;
        STRICT_PACK is one node or nothing, STRICT_SPREAD a node for each or nothing: for these two
        a plan is found wherever there is one.
Caller  brokers/groups.py.
Never   reserves anything: by the time a node is asked, the room may be gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .load import LoadTable
from .placement import Request, chance, shortage

PACK, STRICT_PACK = "PACK", "STRICT_PACK"
SPREAD, STRICT_SPREAD = "SPREAD", "STRICT_SPREAD"
STRATEGIES = (PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)

Plan = dict[int, bytes]
"""The node of each bundle, by its index in the group."""


def plan(
    bundles: Sequence[Request],
    strategy: str,
    table: LoadTable,
    *,
    placed: Mapping[int, bytes] | None = None,
    by_total: bool = False,
    seed: int = 0,
) -> Plan | None:
    """Return a node for each bundle that is not placed yet; None where there is no such plan.

    Args:
        bundles: all bundles of the group.
        strategy: one of STRATEGIES.
        table: what is known of the nodes.
        placed: bundles that have a node already, which the rest has to go with.
        by_total: plan with what idle nodes would have: could the group ever be placed?
        seed: breaks ties between nodes that are alike.
    """
    placed = placed or {}
    room = _Room(bundles, table, placed if by_total else {}, by_total)
    nodes = sorted(table.candidates, key=lambda node: chance(seed, node))
    missing = [index for index in range(len(bundles)) if index not in placed]
    missing.sort(key=lambda index: (-room.size(index), index))
    match strategy:
        case "STRICT_PACK":
            return _on_one(missing, sorted(set(placed.values())) or nodes, room)
        case "STRICT_SPREAD":
            used = set(placed.values())
            return _on_different(missing, [node for node in nodes if node not in used], room)
        case "PACK":
            return _on_few(missing, nodes, list(dict.fromkeys(placed.values())), room)
        case _:
            counts = dict.fromkeys(nodes, 0)
            for node in placed.values():
                counts[node] = counts.get(node, 0) + 1
            return _on_many(missing, nodes, counts, room)


def why_impossible(
    bundles: Sequence[Request],
    strategy: str,
    table: LoadTable,
    placed: Mapping[int, bytes],
) -> str:
    """Return why no plan would be found even if all nodes were idle, for people; "" where one is.

    Args:
        bundles: all bundles of the group.
        strategy: one of STRATEGIES.
        table: what is known of the nodes.
        placed: bundles that have a node already.
    """
    if plan(bundles, strategy, table, placed=placed, by_total=True) is not None:
        return ""
    nodes = len(table.candidates)
    for index, bundle in enumerate(bundles):
        missing = "" if index in placed else shortage(bundle, table)
        if missing:
            return f"bundle {index}: {missing}"
    if strategy == STRICT_SPREAD:
        return f"{strategy} needs {len(bundles)} different nodes with room for a bundle, of {nodes}"
    if strategy == STRICT_PACK:
        return f"{strategy} needs one node with room for all {len(bundles)} bundles, of {nodes}"
    return f"its {len(bundles)} bundles are more than {nodes} nodes have, even idle"


class _Room:
    """What is left of each node while a plan is made."""

    def __init__(
        self,
        bundles: Sequence[Request],
        table: LoadTable,
        placed: Mapping[int, bytes],
        by_total: bool,
    ) -> None:
        self._bundles = bundles
        self._table = table
        self._free: dict[bytes, dict[str, int]] = {}
        self._by_total = by_total
        for index, node in placed.items():
            if node in table.rows:
                self.take(index, node)

    def _of(self, node: bytes) -> dict[str, int]:
        if node not in self._free:
            rows = self._table.rows
            self._free[node] = (
                dict(rows[node].total) if self._by_total else self._table.available(node)
            )
        return self._free[node]

    def size(self, index: int) -> float:
        """Return how large a bundle is beside the largest amount of each resource there is."""
        amounts = self._bundles[index].amounts
        rows = self._table.rows.values()
        return max(
            (
                units / max(1, *(row.total.get(name, 0) for row in rows), 1)
                for name, units in amounts.items()
            ),
            default=0.0,
        )

    def fits(self, index: int, node: bytes) -> bool:
        bundle = self._bundles[index]
        if node not in self._table.rows or not bundle.may_run_on(self._table, node):
            return False
        free = self._of(node)
        return all(units <= free.get(name, 0) for name, units in bundle.amounts.items())

    def take(self, index: int, node: bytes) -> None:
        free = self._of(node)
        for name, units in self._bundles[index].amounts.items():
            free[name] = free.get(name, 0) - units

    def give_back(self, index: int, node: bytes) -> None:
        free = self._of(node)
        for name, units in self._bundles[index].amounts.items():
            free[name] += units

    def how_many(self, missing: Sequence[int], node: bytes) -> list[int]:
        """Return the bundles that this node alone could take together, first those first."""
        taken = []
        for index in missing:
            if self.fits(index, node):
                self.take(index, node)
                taken.append(index)
        for index in taken:
            self.give_back(index, node)
        return taken


def _on_one(missing: list[int], nodes: list[bytes], room: _Room) -> Plan | None:
    for node in nodes:
        if len(room.how_many(missing, node)) == len(missing):
            return dict.fromkeys(missing, node)
    return None


def _on_few(missing: list[int], nodes: list[bytes], used: list[bytes], room: _Room) -> Plan | None:
    """Fill the nodes that have a part of the group, then the one that takes most of the rest."""
    found: Plan = {}
    while missing:
        taken: list[int] = []
        where = b""
        for node in [*used, *nodes]:
            could = room.how_many(missing, node)
            if len(could) > len(taken):
                taken, where = could, node
            if len(taken) == len(missing) or (taken and node in used):
                break
        if not taken:
            return None
        for index in taken:
            room.take(index, where)
            found[index] = where
        missing = [index for index in missing if index not in found]
    return found


def _on_many(
    missing: list[int], nodes: list[bytes], counts: dict[bytes, int], room: _Room
) -> Plan | None:
    found: Plan = {}
    for index in missing:
        fitting = [node for node in nodes if room.fits(index, node)]
        if not fitting:
            return None
        node = min(fitting, key=counts.__getitem__)
        room.take(index, node)
        counts[node] += 1
        found[index] = node
    return found


def _on_different(missing: list[int], nodes: list[bytes], room: _Room) -> Plan | None:
    """Find a node for each: a bipartite matching by augmenting paths (Kuhn)."""
    holder: dict[bytes, int] = {}

    def seat(start: int) -> bool:
        # Breadth first, with the way back, since a path may be as long as there are bundles.
        came_from: dict[bytes, tuple[int, bytes | None]] = {}
        asking: list[tuple[int, bytes | None]] = [(start, None)]
        for index, freed in asking:
            for node in nodes:
                if node in came_from or not room.fits(index, node):
                    continue
                came_from[node] = index, freed
                if node in holder:
                    asking.append((holder[node], node))
                    continue
                here: bytes | None = node
                while here is not None:
                    holder[here], here = came_from[here]
                return True
        return False

    if not all(seat(index) for index in missing):
        return None
    return {index: node for node, index in holder.items()}
