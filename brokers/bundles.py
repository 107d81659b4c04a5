"""The accounts of one node: its own, and one for each bundle of a placement group that is open.

What    What a bundle holds is taken from the node's account once, when it is reserved. From when it
        is open, requests that name its group are met from the bundle alone. They name it in the
        names of their resources (``in_group``): so the load table, borrowing and lending need not
        know that there are groups. A request that names no index takes the first bundle with room.
Caller  brokers/reservations.py opens and shuts bundles; the scheduler takes from them.
Never   meets one request from two bundles, or a request that names a group from the node's account.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from zray.errors import InternalError

from .resources import Grant, ResourceSet

_Amounts = Callable[[ResourceSet], dict[str, int]]

_SEPARATOR = "\0"
"""Between a resource's name, the group's id in hex and the bundle's index."""

_BUNDLE = "bundle"
_BUNDLE_UNITS = 1 << 40
"""Every request of a group holds one unit of this: so what needs nothing is placed there too."""


def in_group(amounts: Mapping[str, int], group: bytes, index: int) -> dict[str, int]:
    """Return a request as one of a group: what it names is that of a bundle.

    Args:
        amounts: units by resource.
        group: its id; b"": of no group, the request stays what it is.
        index: of the bundle; -1: whichever has room.
    """
    if not group:
        return dict(amounts)
    suffix = _suffix(group, index)
    return {f"{name}{suffix}": units for name, units in {**amounts, _BUNDLE: 1}.items()}


def _suffix(group: bytes, index: int) -> str:
    base = _SEPARATOR + group.hex()
    return base if index < 0 else f"{base}{_SEPARATOR}{index}"


def group_of(amounts: Iterable[str]) -> bytes:
    """Return the group that a request with these names is of, b"" where it is of none."""
    for name in amounts:
        _resource, separator, rest = name.partition(_SEPARATOR)
        return bytes.fromhex(rest.partition(_SEPARATOR)[0]) if separator else b""
    return b""


def outside_groups(amounts: Mapping[str, int]) -> dict[str, int]:
    """Return amounts without those of bundles: what a node has for everybody, for people."""
    return {name: units for name, units in amounts.items() if _SEPARATOR not in name}


def as_asked(amounts: Mapping[str, int]) -> dict[str, int]:
    """Return a request of a group by the names it was asked for with; another is what it is."""
    plain = {name.partition(_SEPARATOR)[0]: units for name, units in amounts.items()}
    if group_of(amounts):
        plain.pop(_BUNDLE, None)
    return plain


@dataclass(slots=True)
class _Open:
    """A bundle that requests are met from."""

    account: ResourceSet
    is_shut: bool = False
    """Nobody new comes in: its group is removed."""


class Accounts(ResourceSet):
    """The account of one node, and those of its bundles.

    Args:
        total: units by resource name. GPUs come whole.
        gpu_ids: as in ResourceSet.
    """

    def __init__(self, total: Mapping[str, int], gpu_ids: Sequence[str] = ()) -> None:
        super().__init__(total, gpu_ids)
        self._open: dict[tuple[bytes, int], _Open] = {}
        self._drawn: dict[int, tuple[tuple[bytes, int], Grant]] = {}
        """By the number of a grant from a bundle: which one, and the grant of its account."""

    # -- bundles ---------------------------------------------------------------------------------

    def open(self, group: bytes, index: int, grant: Grant) -> None:
        """Let requests that name this bundle in; what it holds was granted before."""
        if (group, index) not in self._open:
            amounts = {**grant.amounts, _BUNDLE: _BUNDLE_UNITS}
            account = ResourceSet(amounts, grant.gpu_ids, is_part=True)
            self._open[group, index] = _Open(account)

    def shut(self, group: bytes, index: int) -> None:
        """Let nobody else in."""
        if (group, index) in self._open:
            self._open[group, index].is_shut = True

    def close(self, group: bytes, index: int) -> None:
        """Forget a bundle's account; what it held is still granted.

        Raises InternalError where somebody works in it.
        """
        if any(key == (group, index) for key, _grant in self._drawn.values()):
            raise InternalError(f"bundle {index} of group {group.hex()} is closed over somebody")
        self._open.pop((group, index), None)

    def drawn_from(self, group: bytes, indexes: Collection[int]) -> set[int]:
        """Return the numbers of the grants of these bundles."""
        return {
            number
            for number, ((drawn, index), _grant) in self._drawn.items()
            if drawn == group and index in indexes
        }

    # -- as ResourceSet ----------------------------------------------------------------------------

    @property
    def offered(self) -> dict[str, int]:
        """What a request may name and find free."""
        return self._with_bundles(self.available, lambda account: account.available)

    @property
    def offered_total(self) -> dict[str, int]:
        """What a request may name at all."""
        return self._with_bundles(self.total, lambda account: account.total)

    def _with_bundles(self, own: dict[str, int], of: _Amounts) -> dict[str, int]:
        if not self._open:
            return own
        amounts = dict(own)
        for (group, index), each in self._open.items():
            if each.is_shut:
                continue
            for name, units in of(each.account).items():
                for full_name in (name + _suffix(group, -1), name + _suffix(group, index)):
                    amounts[full_name] = amounts.get(full_name, 0) + units
        return amounts

    def shortage(self, request: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return what this node could never meet, as {name: (requested, total)}, in units."""
        if not group_of(request):
            return super().shortage(request)
        bundles, plain = self._bundles_for(request)
        if any(not each.account.shortage(plain) for each in bundles.values()):
            return {}
        total = self.offered_total
        return {name: (units, total.get(name, 0)) for name, units in request.items()}

    def fits(self, request: Mapping[str, int]) -> bool:
        """Return whether `acquire` would grant the request now."""
        # The common case first: names of a group are no names of the node's account.
        return super().fits(request) or (bool(self._open) and self._place(request) is not None)

    def acquire(self, request: Mapping[str, int]) -> Grant | None:
        """Take all of the request, or nothing and return None."""
        if not group_of(request):
            return super().acquire(request)
        key = self._place(request)
        if key is None:
            return None
        _bundles, plain = self._bundles_for(request)
        inner = self._open[key].account.acquire(plain)
        assert inner is not None
        grant = Grant(self._next_number, dict(request), inner.gpu_ids)
        self._next_number += 1
        self._drawn[grant.number] = key, inner
        return grant

    def release(self, grant: Grant) -> None:
        """Give back what the grant holds; of lent CPUs, nothing. Once only."""
        drawn = self._drawn.pop(grant.number, None)
        if drawn is None:
            super().release(grant)
        else:
            self._open[drawn[0]].account.release(drawn[1])

    @property
    def lent_count(self) -> int:
        """How many grants are lent at the moment."""
        return super().lent_count + sum(each.account.lent_count for each in self._open.values())

    def lend(self, grant: Grant) -> None:
        """Free the grant's CPUs while its worker waits: for others of its bundle, if it has one."""
        drawn = self._drawn.get(grant.number)
        if drawn is None:
            super().lend(grant)
        else:
            self._open[drawn[0]].account.lend(drawn[1])

    def reclaim(self, grant: Grant) -> None:
        """Take lent CPUs back at once, for a worker that goes on without asking."""
        drawn = self._drawn.get(grant.number)
        if drawn is None:
            super().reclaim(grant)
        else:
            self._open[drawn[0]].account.reclaim(drawn[1])

    def check(self) -> None:
        """Raise InternalError unless every unit, of bundles too, is free or held exactly once."""
        super().check()
        for each in self._open.values():
            each.account.check()
        for number, (key, inner) in self._drawn.items():
            if key not in self._open or inner.number not in self._open[key].account._grants:
                raise InternalError(f"grant {number} is drawn from a bundle that does not know it")
            if number in self._grants:
                raise InternalError(f"grant {number} is held of the node and of a bundle")
        drawn = sum(len(each.account._grants) for each in self._open.values())
        if drawn != len(self._drawn):
            raise InternalError("a bundle has a grant that nobody holds")

    def _bundles_for(
        self, request: Mapping[str, int]
    ) -> tuple[dict[tuple[bytes, int], _Open], dict[str, int]]:
        """Return the bundles that a request may be met from, and what it needs of one."""
        plain: dict[str, int] = {}
        wanted = ""
        for name, units in request.items():
            resource, _separator, wanted = name.partition(_SEPARATOR)
            plain[resource] = units
        group, _separator, index = wanted.partition(_SEPARATOR)
        found = {
            key: each
            for key, each in sorted(self._open.items())
            if key[0].hex() == group and index in ("", str(key[1])) and not each.is_shut
        }
        return found, plain

    def _place(self, request: Mapping[str, int]) -> tuple[bytes, int] | None:
        if not group_of(request):
            return None
        bundles, plain = self._bundles_for(request)
        return next((key for key, each in bundles.items() if each.account.fits(plain)), None)
