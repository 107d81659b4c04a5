"""Why a task or an actor has no worker yet: its place in the queue, and what it lacks.

What    scheduled() finds a task in the scheduler; for_lease() and actor() say the same of who waits
        for a leased worker, and of an actor's claim. What is lacking is named with who holds it,
        and whether any node could ever meet it.
Caller  brokers/explaining.py, brokers/health.py.
Never   changes anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zray.protocol.ids import node_of, object_id
from zray.protocol.units import CPU, RESOURCE_UNITS

from .placement import shortage
from .scheduling import LEASED, Range, WorkerState

if TYPE_CHECKING:
    from .dispatcher import Actor
    from .node import Node
    from .placement import Where

Row = dict[str, Any]
_HOLDERS_FOLLOWED_MAX = 3


def row(kind: str, state: str, text: str, **more: Any) -> Row:
    """Return an explanation; ``next``, where it is given, has the places to look at then."""
    return {"kind": kind, "state": state, "text": text, "next": [], **more}


def scheduled(node: Node, client: bytes, number: int) -> Row | None:
    """Explain a task that the scheduler has; None where it has it not."""
    scheduler = node.scheduler
    for identity, worker in scheduler.workers.items():
        for position, work in enumerate(worker.outstanding):
            if work.task_class.client == client and _holds(work, number):
                return _at_worker(node, identity, worker, position, work, number)
    for shape, queue in scheduler.queues.by_shape.items():
        ahead = 0
        for work in queue:
            if work.task_class.client == client and _holds(work, number):
                ahead += number - work.first - work.low
                total = scheduler.queues.counts[shape]
                why, following = lacking(node, shape.amounts, shape.where)
                others = f" behind {ahead} of {total} tasks of its kind" if ahead else ""
                return row(
                    "task",
                    "PENDING_NODE_ASSIGNMENT",
                    f"queued at node {node.process.hex()}{others}: {why}",
                    name=work.task_class.name,
                    queue_position=ahead + 1,
                    queue_len=total,
                    next=following,
                )
            ahead += work.high - work.low
    return None


def _holds(work: Range, number: int) -> bool:
    return work.low <= number - work.first < work.high


def _at_worker(
    node: Node, identity: bytes, worker: WorkerState, position: int, work: Range, number: int
) -> Row:
    ahead = sum(each.high - each.low for each in list(worker.outstanding)[:position])
    ahead += number - work.first - work.low
    home = node_of(identity)
    lent = f", lent by node {home.hex()}" if home != node.process else ""
    since_s = node.now - worker.reported
    place = f"worker {identity.hex()}{lent}"
    text = (
        f"handed to {place}, behind {ahead} that it has not reported on for {since_s:.1f} s"
        if ahead
        else f"at {place}"
    )
    return row(
        "task",
        "SUBMITTED_TO_WORKER" if ahead else "RUNNING",
        text,
        name=work.task_class.name,
        next=[[home, identity, object_id(work.task_class.client, number)]],
    )


def for_lease(node: Node, client: bytes, name: str) -> Row:
    """Explain a task whose caller waits for a worker of its own."""
    why = "the node is about to answer"
    following: list[list[bytes]] = []
    for task_class in node.scheduler.leases.waiting:
        if task_class.client == client:
            shape = task_class.shape
            why, following = lacking(node, shape.amounts, shape.where)
    text = f"its caller waits for a worker that it may call directly: {why}"
    return row("task", "PENDING_NODE_ASSIGNMENT", text, name=name, next=following)


def actor(node: Node, waiting: Actor, state: str) -> Row:
    """Explain an actor that has no worker."""
    scheduler = node.scheduler
    why = "its worker is about to be started"
    following: list[list[bytes]] = []
    for position, claim in enumerate(scheduler.claims):
        if claim.actor == waiting.actor:
            needs = dict(claim.placement)
            for name, units in claim.resources.items():
                needs[name] = max(units, needs.get(name, 0))
            why, following = lacking(node, needs, claim.where)
            if position:
                why = f"number {position + 1} of {len(scheduler.claims)} that wait: {why}"
    if waiting.actor in node.dispatcher.waiting_for_host:
        why = "a worker for actors that share one is about to be started"
    name = waiting.details["class"]
    return row("actor", state, f"it has no place yet: {why}", name=name, next=following)


# -- what is lacking -------------------------------------------------------------------------------


def lacking(node: Node, needs: Mapping[str, int], where: Where) -> tuple[str, list[list[bytes]]]:
    """Return why something that needs these units does not begin, and whom that depends on."""
    borrowing = node.scheduler.borrowing
    never = shortage(where.request(needs), borrowing.table)
    if never:
        return f"no node can ever run it, as the cluster is: {never}", []
    if not borrowing.may_run_here(where, needs):
        return _elsewhere(node, needs, where), []
    free = node.resources.available
    short = [name for name, units in needs.items() if units > free.get(name, 0)]
    if not short and node.resources.fits(needs):
        return _no_process(node), []
    amounts = [
        f"{_amount(needs[name])} {name} of which {_amount(max(0, free.get(name, 0)))} of"
        f" {_amount(node.resources.total.get(name, 0))} are free"
        for name in short or ["GPU"]
    ]
    holders, following = _holders(node, short or ["GPU"])
    others = _elsewhere(node, needs, where) if borrowing.table.has_others() else ""
    return "; ".join(
        filter(None, [f"it needs {' and '.join(amounts)}", holders, others])
    ), following


def _amount(units: int) -> str:
    return f"{units / RESOURCE_UNITS:g}"


def _elsewhere(node: Node, needs: Mapping[str, int], where: Where) -> str:
    """Say of the other nodes which could have it, and whether it was asked of them."""
    borrowing = node.scheduler.borrowing
    request = where.request(needs)
    table = borrowing.table
    able = [
        each
        for each in table.candidates
        if each != table.own
        and (not request.node or request.soft or each == request.node)
        and request.may_run_on(table, each)
    ]
    if not able:
        return "no other node could run it"
    free = [each.hex() for each in able if table.fits_now(each, needs)]
    if free:
        return f"asked for a worker at node {', '.join(free[:4])}, which has room"
    return f"no room at the {len(able)} other nodes that could run it: {able[0].hex()}, …"


def _no_process(node: Node) -> str:
    scheduler = node.scheduler
    if scheduler.failed_starts:
        return (
            f"the last {scheduler.failed_starts} workers died while they started: see"
            " `zray-node logs --node`"
        )
    starting = sum(scheduler.forking.values())
    if starting:
        return f"{starting} workers are being started"
    return "what it needs is free: it begins in a moment"


def _holders(node: Node, short: list[str]) -> tuple[str, list[list[bytes]]]:
    """Say who holds what is short, and which of them wait themselves."""
    names: Counter[str] = Counter()
    blocked: list[list[bytes]] = []
    others: list[list[bytes]] = []
    for identity, worker in node.scheduler.workers.items():
        grant = worker.grant
        if grant is None or not any(
            grant.amounts.get(name) and not (name == CPU and worker.blocked) for name in short
        ):
            continue
        names[_holder_name(node, identity, worker)] += 1
        (blocked if worker.blocked else others).append([node.process, identity, b""])
    if not names:
        return "", []
    told = ", ".join(f"{name}" if n == 1 else f"{n} × {name}" for name, n in names.most_common(5))
    more = f"; of these {len(blocked)} wait for others" if blocked else ""
    return f"held by {told}{more}", [*blocked, *others][:_HOLDERS_FOLLOWED_MAX]


def _holder_name(node: Node, identity: bytes, worker: WorkerState) -> str:
    loan = node.scheduler.lending.loans.get(identity)
    if loan is not None:
        return f"a worker lent to node {loan.borrower.hex()}"
    process = node.workers.by_process.get(identity)
    name = process.label if process is not None and process.label else "a worker"
    if worker.state == LEASED:
        return f"a caller's own worker ({name})"
    return f"actor {name}" if not worker.pooled else name
