"""What is wrong with a node and its cluster: a sentence for each thing somebody should look at.

What    Health remembers which nodes were lost, and why; problems() looks at the machines, the
        store, the links and the GCS. What one node says is of that node: who asks for the cluster
        asks all of them.
Caller  brokers/inspection.py; brokers/cluster.py tells of lost nodes.
Never   repairs, or keeps more than a few losses.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zray.protocol.roles import Role
from zray.protocol.units import RESOURCE_UNITS

from .placement import shortage

if TYPE_CHECKING:
    from .cluster import Cluster
    from .gcs_connection import GcsConnection
    from .node import Node

LOSSES_MAX = 16
_LOSS_SHOWN_S = 600.0
_CLOCK_AHEAD_S = 0.5
_GCS_SILENT_S = 2.0
_LINK_QUEUED_BYTES = 16 * 1024 * 1024
_STUCK_S = 1.0
"""Of a worker that has reported nothing for so long it is looked up whether it is stopped."""


class Health:
    """What there is to say of one node.

    Args:
        node: which.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._losses: deque[tuple[float, bytes, str]] = deque(maxlen=LOSSES_MAX)

    def node_lost(self, node: bytes, reason: str) -> None:
        """Remember it."""
        self._losses.append((time.time(), node, reason))

    def losses(self) -> list[dict[str, Any]]:
        """Return the nodes that were lost lately, the newest first."""
        return [
            {"node_id": node.hex(), "at": at, "reason": reason}
            for at, node, reason in reversed(self._losses)
        ]

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each thing that somebody should look at."""
        node = self._node
        yield from self._work()
        yield from self._store()
        if node.malformed:
            yield f"{node.malformed} malformed messages or connections were refused: see node.log"
        if node.workers.zygote_gone:
            yield "the process that forks workers has died: start the node again"
        if node.cluster is not None:
            yield from self._cluster(node.cluster)

    # -- this node -------------------------------------------------------------------------------

    def _work(self) -> Iterator[str]:
        node = self._node
        scheduler = node.scheduler
        counts = scheduler.statistics()
        if counts["queued_tasks"] and not counts["running_tasks"]:
            yield (
                f"{counts['queued_tasks']} tasks wait and none runs: actors or leases hold the"
                " resources they ask for"
            )
        yield from self._never_met()
        if counts["pending_actors"]:
            yield f"{counts['pending_actors']} actors wait for resources"
        if scheduler.failed_starts > 1:
            yield (
                f"the last {scheduler.failed_starts} workers died while they started: see node.log"
            )
        for identity, worker in scheduler.workers.items():
            late = worker.outstanding and node.now - worker.reported > _STUCK_S
            if late and node.workers.is_stopped(identity):
                yield f"worker {identity.hex()} is stopped (SIGSTOP, or a debugger) and has tasks"

    def _never_met(self) -> Iterator[str]:
        """Of what waits here: what no node that is there could ever run, as after one has left."""
        scheduler = self._node.scheduler
        table = scheduler.borrowing.table
        for shape in scheduler.queues.shapes_waiting():
            if shape.where.group:
                continue  # What is wrong with its group is said of that.
            why = shortage(shape.where.request(shape.amounts), table)
            if why:
                needs = {name: units / RESOURCE_UNITS for name, units in shape.amounts.items()}
                yield (
                    f"{scheduler.queues.counts[shape]} tasks wait for {needs}, which no node has"
                    f" ({why}): add a node with it, or cancel them"
                )
        for claim in scheduler.claims:
            if claim.where.group or claim.is_loan:
                continue
            why = shortage(claim.where.request(claim.placement), table)
            if why:
                yield f"actor {claim.actor.hex()} can't be placed on any node: {why}"
        for group in self._node.placement_groups.rows():
            if group["problem"]:
                yield (
                    f"placement group {group['group']} waits for nodes that are not there:"
                    f" {group['problem']}"
                )

    def _store(self) -> Iterator[str]:
        node = self._node
        store, gcs = node.store.statistics(), node.gcs.statistics()
        if store["waiting_allocations"]:
            yield (
                f"{store['waiting_allocations']} puts wait for room in the object store: drop"
                " refs, or start the node with a larger object_store_memory"
            )
        if store["spill_bytes"]:
            yield f"the object store is too small: {store['spill_bytes']} bytes are on disk"
        if gcs["ledger_dropped_records"]:
            dropped = gcs["ledger_dropped_records"]
            yield f"{dropped} records of lineage were dropped: the ledger is full"
        if gcs["events_dropped"]:
            yield f"{gcs['events_dropped']} events were dropped: the ring is full"
        if gcs["write_failures"]:
            yield (
                f"lineage or events could not be written {gcs['write_failures']} times: is the disk"
                " full? See node.log"
            )

    # -- among others ----------------------------------------------------------------------------

    def _cluster(self, cluster: Cluster) -> Iterator[str]:
        if not cluster.members:
            for address in cluster.joining.values():
                why = cluster.refusals.by_address.get(address, "nobody answers there")
                yield f"it has not joined {address.removeprefix('tcp://')}: {why}"
        if cluster.roster.trouble:
            yield f"nobody new is let in: {cluster.roster.trouble}"
        for refused_node in cluster.refusals.rows():
            yield f"{refused_node['node']} is shut out: {refused_node['reason']}"
        now = time.time()
        for at, node, reason in self._losses:
            back = node in cluster.members
            if now - at < _LOSS_SHOWN_S and not back:
                yield f"node {node.hex()} was lost in the last 10 minutes: {reason}"
        for member in cluster.members.values():
            _messages, queued = cluster.links.queued(member.link)
            if queued > _LINK_QUEUED_BYTES:
                yield f"{queued} bytes wait for node {member.node.hex()}: it reads too slowly"
        for node, row in cluster.membership.living.items():
            is_awaited = row.role is Role.NODE and node != self._node.process
            if is_awaited and cluster.membership.is_on_its_way(node):
                yield f"node {node.hex()} is alive, and there is no link to it"
        refused = cluster.inbox.refused
        if refused.total():
            reasons = ", ".join(f"{count} × {reason}" for reason, count in refused.most_common(4))
            yield f"{refused.total()} connections of other machines were refused: {reasons}"
        if cluster.refused:
            yield f"{cluster.refused} messages of other nodes were refused: see node.log"
        for node, clock in self._node.queries.clocks.items():
            if clock.is_off and abs(clock.ahead_s) > _CLOCK_AHEAD_S:
                yield f"the clock of node {node.hex()} is {clock.ahead_s:+.1f} s from this one's"
        if cluster.gcs is not None:
            yield from self._gcs(cluster, cluster.gcs)

    def _gcs(self, cluster: Cluster, gcs: GcsConnection) -> Iterator[str]:
        now = self._node.now
        silent_s = now - gcs.session.heard_at
        if not gcs.is_joined:
            yield "the GCS has not taken this node in yet"
        if silent_s > _GCS_SILENT_S:
            yield (
                f"the GCS has said nothing for {silent_s:.1f} s: is the head node there? Running"
                " tasks and actors go on; new names and nodes wait"
            )
        left_s = gcs.session.lease_expires_at - now
        if gcs.is_joined and left_s <= 0:
            yield (
                f"this node's lease is over since {-left_s:.1f} s: it ends itself"
                f" {cluster.membership.fence_s:g} s after its end"
            )
        relay = cluster.gcs_relay
        if relay is not None and relay.process.starts > 1:
            yield f"the GCS process was started again {relay.process.starts - 1} times"
