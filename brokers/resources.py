"""The resources of one node: what there is, what is held, and which GPUs a holder may see.

What    A pure account in units of 1/10000 (zray/protocol/units.py). `acquire` takes a request whole
        or not at all and returns a Grant; `release` gives it back, once. A grant's CPUs can be lent
        while its worker waits, and taken back when it goes on.
Caller  brokers/scheduler.py for tasks, the placement of actors, and every worker that ends.
Never   lets an amount fall below zero: CPUs taken back while others hold them are owed, and the
        next ones released pay the debt first. Never decides who is served: it only counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zray.errors import InternalError, OptionError, RemoteProtocolError
from zray.protocol.units import CPU, GPU, RESOURCE_UNITS, RESOURCE_UNITS_MAX


@dataclass(frozen=True, slots=True)
class Grant:
    """What one holder has taken: amounts in units by name, and the GPUs it may see.

    `gpu_ids` are entries for CUDA_VISIBLE_DEVICES: several whole GPUs, or the one it has a share
    of. `number` tells two equal grants apart.
    """

    number: int
    amounts: Mapping[str, int]
    gpu_ids: tuple[str, ...] = ()


class ResourceSet:
    """The account of one node.

    Args:
        total: units by resource name. GPUs come whole.
        gpu_ids: how CUDA_VISIBLE_DEVICES names each GPU; "0", "1", ... when empty.
        is_part: these are a part of a node's, which may be a share of one GPU.

    Raises OptionError where the GPUs are no whole number, or not as many as `gpu_ids`.
    """

    def __init__(
        self, total: Mapping[str, int], gpu_ids: Sequence[str] = (), *, is_part: bool = False
    ) -> None:
        gpu_units = total.get(GPU, 0)
        gpu_count, rest = divmod(gpu_units, RESOURCE_UNITS)
        if rest and is_part:
            gpu_count += 1
        elif rest:
            raise OptionError("a node's num_gpus must be a whole number", option="num_gpus")
        ids = tuple(gpu_ids) or tuple(str(index) for index in range(gpu_count))
        if len(ids) != gpu_count:
            message = f"a node of {gpu_count} GPUs has {len(ids)} GPU ids: {', '.join(ids)}"
            raise OptionError(message, option="num_gpus")
        self.total: dict[str, int] = dict(total)
        self._free: dict[str, int] = dict(total)
        self._gpu_units = min(gpu_units, RESOURCE_UNITS)
        """Of each GPU: a whole one, or the share that this is the account of."""
        self._gpu_free: dict[str, int] = dict.fromkeys(ids, self._gpu_units)
        self._grants: dict[int, Grant] = {}
        self._lent: set[int] = set()
        self._cpu_owed = 0
        self._next_number = 1

    def __repr__(self) -> str:
        """Free of total per resource, and the count of grants."""
        parts = [f"{name} {self._free[name]}/{self.total[name]}" for name in sorted(self.total)]
        return f"[ResourceSet: {', '.join(parts)} | {len(self._grants)} grants]"

    @property
    def available(self) -> dict[str, int]:
        """Units that nobody holds, by name."""
        return dict(self._free)

    @property
    def offered(self) -> dict[str, int]:
        """What a request may name and find free: here the same."""
        return self.available

    @property
    def offered_total(self) -> dict[str, int]:
        """What a request may name at all: here all there is."""
        return self.total

    def shortage(self, request: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return what this node could never meet, as {name: (requested, total)}, in units.

        An empty dict says that an idle node meets the request; an unknown name has a total of 0.
        """
        return {
            name: (units, self.total.get(name, 0))
            for name, units in request.items()
            if units > self.total.get(name, 0) or (name == GPU and _is_ragged(units))
        }

    def fits(self, request: Mapping[str, int]) -> bool:
        """Return whether `acquire` would grant the request now."""
        free = self._free
        for name, units in request.items():
            if units > free.get(name, 0):
                return False
        return GPU not in request or self._choose_gpus(request[GPU]) is not None

    def acquire(self, request: Mapping[str, int]) -> Grant | None:
        """Take all of the request, or nothing and return None."""
        if not self.fits(request):
            return None
        if any(units < 0 for units in request.values()):
            raise InternalError(f"a request for a negative amount reached the account: {request}")
        for name, units in request.items():
            self._free[name] -= units
        gpu_ids = self._choose_gpus(request.get(GPU, 0)) or ()
        for gpu_id in gpu_ids:
            self._gpu_free[gpu_id] -= min(request[GPU], RESOURCE_UNITS)
        grant = Grant(self._next_number, dict(request), gpu_ids)
        self._next_number += 1
        self._grants[grant.number] = grant
        return grant

    def release(self, grant: Grant) -> None:
        """Give back what the grant holds; of lent CPUs, nothing. Once only."""
        if self._grants.pop(grant.number, None) is None:
            raise InternalError(f"grant {grant.number} was released twice, or is not of this node")
        for name, units in grant.amounts.items():
            if name != CPU:
                self._free[name] += units
            elif grant.number not in self._lent:
                self._return_cpus(units)
        self._lent.discard(grant.number)
        for gpu_id in grant.gpu_ids:
            self._gpu_free[gpu_id] += min(grant.amounts[GPU], RESOURCE_UNITS)

    @property
    def lent_count(self) -> int:
        """How many grants are lent at the moment."""
        return len(self._lent)

    def lend(self, grant: Grant) -> None:
        """Free the grant's CPUs while its worker waits. Lending twice changes nothing."""
        self._check_held(grant)
        if grant.number not in self._lent:
            self._lent.add(grant.number)
            self._return_cpus(grant.amounts.get(CPU, 0))

    def reclaim(self, grant: Grant) -> None:
        """Take lent CPUs back at once, for a worker that goes on without asking.

        The node then runs more than it has CPUs for a while; what is missing is owed, so that
        nothing new starts before it is paid.
        """
        self._check_held(grant)
        if grant.number in self._lent:
            self._lent.discard(grant.number)
            wanted = grant.amounts.get(CPU, 0)
            taken = min(wanted, self._free.get(CPU, 0))
            if taken:
                self._free[CPU] -= taken
            self._cpu_owed += wanted - taken

    def check(self) -> None:
        """Raise InternalError unless every unit is free or held exactly once."""
        held = dict.fromkeys(self.total, 0)
        gpu_held = dict.fromkeys(self._gpu_free, 0)
        for grant in self._grants.values():
            for name, units in grant.amounts.items():
                held[name] += 0 if name == CPU and grant.number in self._lent else units
            for gpu_id in grant.gpu_ids:
                gpu_held[gpu_id] += min(grant.amounts[GPU], RESOURCE_UNITS)
        for name, total in self.total.items():
            owed = self._cpu_owed if name == CPU else 0
            free = self._free[name]
            if free < 0 or owed < 0 or (owed and free) or free + held[name] - owed != total:
                account = f"free {free} + held {held[name]} - owed {owed}, total {total}"
                raise InternalError(f"the account of {name} does not balance: {account}")
        for gpu_id, free in self._gpu_free.items():
            if not 0 <= free == self._gpu_units - gpu_held[gpu_id]:
                raise InternalError(f"GPU {gpu_id} has {free} free, {gpu_held[gpu_id]} held")
        if not self._lent <= self._grants.keys():
            raise InternalError("CPUs are lent of grants that were released")

    def _return_cpus(self, units: int) -> None:
        paid = min(units, self._cpu_owed)
        self._cpu_owed -= paid
        if units > paid:
            self._free[CPU] += units - paid

    def _check_held(self, grant: Grant) -> None:
        if grant.number not in self._grants:
            raise InternalError(f"grant {grant.number} is not held at this node")

    def _choose_gpus(self, units: int) -> tuple[str, ...] | None:
        """Return GPUs for so many units, or None: a share fits one GPU, more are whole ones.

        A share goes to the GPU that is fullest already, which leaves whole ones for who needs them.
        """
        if units == 0:
            return ()
        if units <= RESOURCE_UNITS:
            roomy = [gpu_id for gpu_id, free in self._gpu_free.items() if free >= units]
            return (min(roomy, key=self._gpu_free.__getitem__),) if roomy else None
        whole = [gpu_id for gpu_id, free in self._gpu_free.items() if free == RESOURCE_UNITS]
        count = units // RESOURCE_UNITS
        return tuple(whole[:count]) if count <= len(whole) and not _is_ragged(units) else None


def read_request(fields: object) -> dict[str, int]:
    """Return a request that came in a message, checked, without its zeros.

    Raises RemoteProtocolError where it is no dict of names to units that can be counted.
    """
    if not isinstance(fields, dict):
        raise RemoteProtocolError(f"a resource request is a dict, not {type(fields).__name__}")
    request: dict[str, int] = {}
    for name, units in fields.items():
        if not isinstance(name, str) or type(units) is not int:
            raise RemoteProtocolError("a resource request maps names to integers")
        if not 0 <= units <= RESOURCE_UNITS_MAX:
            raise RemoteProtocolError(f"{units} units of {name!r} cannot be requested")
        if units:
            request[name] = units
    return request


def _is_ragged(gpu_units: int) -> bool:
    """More than one GPU, and not a whole number of them."""
    return gpu_units > RESOURCE_UNITS and gpu_units % RESOURCE_UNITS != 0
