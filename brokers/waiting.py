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
from zray.protocol.packing import packb
from zray.protocol.units import CPU, RESOURCE_UNITS

from .bundles import as_asked
from .placement import shortage
from .scheduling import LEASED, Range, WorkerState

if TYPE_CHECKING:
    from .dispatcher import Actor
    from .node import Node
    from .placement import Where

Row = dict[str, Any]
_HOLDERS_FOLLOWED_MAX = 3
_NODES_FOLLOWED_MAX = 2


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
    if where.group:
        unplaced = _unplaced_group(node, where.group)
        if unplaced is not None:
            return unplaced
    never = shortage(where.request(needs), borrowing.table)
    if never:
        return f"no node can ever run it, as the cluster is: {never}", []
    if not borrowing.may_run_here(where, needs):
        elsewhere, following = _elsewhere(node, needs, where)
        asked = " and ".join(f"{_amount(units)} {name}" for name, units in as_asked(needs).items())
        return f"it needs {asked or 'a node'}, elsewhere than here; {elsewhere}", following
    if node.resources.fits(needs):
        return _no_process(node), []
    here, following = _short_here(node, needs)
    if borrowing.table.has_others():
        elsewhere, others = _elsewhere(node, needs, where)
        return f"{here}; {elsewhere}", [*following, *others]
    return here, following


def here(node: Node, needs: Mapping[str, int]) -> Row:
    """Explain why this node lends nothing that holds these units."""
    if node.resources.fits(needs):
        return row("node", "ROOM", f"what it needs is free here, {_no_process(node)}")
    text, following = _short_here(node, needs)
    return row("node", "FULL", text, next=following)


def _unplaced_group(node: Node, group: bytes) -> tuple[str, list[list[bytes]]] | None:
    """Explain what runs in a placement group that has no place yet; None where it has one."""
    rows = node.placement_groups.rows([group])
    if not rows:
        return f"this node has not heard of its placement group {group.hex()} yet", []
    state, problem = rows[0]["state"], rows[0]["problem"]
    if state == "CREATED":
        return None
    name = f"its placement group {group.hex()} is {state}"
    if problem:
        return f"{name}: no nodes can ever hold it, as the cluster is: {problem}", []
    free = node.resources.available
    bundles = [each["resources"] for each in rows[0]["bundles"] if not each["node"]]
    short = {name for each in bundles for name, units in each.items() if units > free.get(name, 0)}
    holders, following = _holders(node, sorted(short))
    held = f"; here {' and '.join(sorted(short))} is {holders}" if holders else ""
    whole = len(rows[0]["bundles"])
    return f"{name}: there is no room yet for {len(bundles)} of {whole} bundles{held}", following


def _short_here(node: Node, needs: Mapping[str, int]) -> tuple[str, list[list[bytes]]]:
    """Say what is not free at this node, and who holds it."""
    free, total = node.resources.offered, node.resources.offered_total
    asked = as_asked(needs)
    short = {name: units for name, units in needs.items() if units > free.get(name, 0)} or needs
    amounts = [
        f"{_amount(units)} {plain} of which {_amount(max(0, free.get(name, 0)))} of"
        f" {_amount(total.get(name, 0))} are free"
        for name, units in short.items()
        for plain in as_asked({name: units})
    ]
    holders, following = _holders(node, list(short))
    told = " and ".join(amounts or [f"{_amount(units)} {name}" for name, units in asked.items()])
    return "; ".join(filter(None, [f"it needs {told}", holders])), following


def _amount(units: int) -> str:
    return f"{units / RESOURCE_UNITS:g}"


def _elsewhere(node: Node, needs: Mapping[str, int], where: Where) -> tuple[str, list[list[bytes]]]:
    """Say of the other nodes which could have it; those without room can say who holds it."""
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
        return "no other node could run it", []
    free = [each.hex() for each in able if table.fits_now(each, needs)]
    if free:
        return f"a worker was asked for at node {', '.join(free[:4])}, which has room", []
    more = f" and {len(able) - 1} more" if len(able) > 1 else ""
    following = [[each, each, packb(dict(needs))] for each in able[:_NODES_FOLLOWED_MAX]]
    return f"no room at node {able[0].hex()}{more}, which could run it", following


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
