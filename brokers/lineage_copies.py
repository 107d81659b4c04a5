"""Copies of lineage between nodes: this node's, sent to others, and those it keeps for them.

What    What Lineage has written is sent to the nodes that Copying chooses, as the blobs lie on
        disk. A copy is a ledger with the writer's numbers, under the writer's incarnation. When
        the GCS has declared that incarnation dead, its copies are sealed: they stay as they are
        for who has to make lost objects again, and nothing that is still under way is added.
Caller  brokers/cluster.py: node_joined(), sweep(), link rules; brokers/deaths.py: job_ended().
Never   looks into a record; keeps the node's loop waiting for another node.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net.link_inbox import LINK_FRAME_BYTES_MAX
from zray.protocol import link_messages
from zray.protocol.ids import NodeId
from zray.protocol.limits import LINEAGE_BYTES_MAX, LINEAGE_MESSAGE_BYTES_MAX

from .gcs.ledger import Ledger, record_count, unpack_blob
from .lineage_copying import Copying, EndLineage, SendLineage

if TYPE_CHECKING:
    from .cluster import Cluster

SEALED_MAX = 16
"""Dead nodes whose lineage is kept; of more, that of the one that died first goes."""


@dataclass(slots=True)
class _Copy:
    """One job's lineage, of one life of another node."""

    ledger: Ledger
    sealed: bool = False


class LineageCopies:
    """Both sides of copying, for one node.

    Args:
        cluster: whose links carry it.
        path: folder for the copies that are kept here; emptied.
        copies: nodes that are to keep a copy of this node's lineage.
    """

    def __init__(self, cluster: Cluster, path: str, *, copies: int) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._path = Path(path)
        self.copying = Copying(cluster.node.process, copies)
        self.kept: dict[tuple[NodeId, int], dict[str, _Copy]] = {}
        """By node and incarnation, then by job."""
        self.failures = 0
        """How often a copy could not be written."""
        if self._path.exists():
            shutil.rmtree(self._path)

    # -- this node's lineage -----------------------------------------------------------------------

    def node_joined(self, node: NodeId) -> None:
        """Another node is there."""
        self.copying.node_joined(node, self._node.now)
        self._perform()

    def node_lost(self, node: NodeId) -> None:
        """A node is gone; whether for ever, the GCS says."""
        self.copying.node_lost(node, self._node.now)
        self._perform()

    def job_ended(self, job: str) -> None:
        """A job has ended, and its lineage is gone here."""
        self.copying.job_ended(job)
        self._perform()

    def sweep(self) -> None:
        """A few times a second, after the ledgers were flushed."""
        now = self._node.now
        for each in self._node.gcs.lineage_written:
            self.copying.written(each.job, each.first, each.end, now)
        self.copying.tick(now)
        self._perform()
        self._seal()

    def _perform(self) -> None:
        while self.copying.commands:
            commands, self.copying.commands = self.copying.commands, []
            for command in commands:
                if isinstance(command, SendLineage):
                    self._send(command)
                elif isinstance(command, EndLineage):
                    epoch = self._cluster.membership.incarnation
                    self._tell(command.node, link_messages.LINEAGE_ENDED, epoch, command.job)

    def _send(self, command: SendLineage) -> None:
        positions: list[int] = []
        blobs: list[bytes] = []
        size = 0
        end = command.position
        for position, blob in self._node.gcs.lineage.read(command.job, command.position):
            if size and size + len(blob) > LINEAGE_MESSAGE_BYTES_MAX:
                break
            size += len(blob)
            end = position + record_count(blob)
            if len(blob) <= LINK_FRAME_BYTES_MAX:  # Else there is a gap in the copy.
                positions.append(position)
                blobs.append(blob)
        epoch = self._cluster.membership.incarnation
        if size and not self._tell(
            command.node,
            link_messages.LINEAGE,
            epoch,
            command.job,
            [*positions, end],
            payloads=tuple(blobs),
        ):
            size = 0
        self.copying.sent(command.node, command.job, size)

    def _tell(
        self, node: NodeId, kind: int, *fields: Any, payloads: tuple[bytes, ...] = ()
    ) -> bool:
        return self._cluster.send(node, kind, *fields, payloads=payloads)

    def acknowledged(self, node: NodeId, job: str, position: int) -> None:
        """LINEAGE_KEPT: a node has written what it was sent."""
        self.copying.kept(node, job, position, self._node.now)
        self._perform()

    # -- copies of others' -------------------------------------------------------------------------

    def received(
        self, node: NodeId, epoch: int, job: str, positions: list[int], blobs: list[bytes]
    ) -> None:
        """LINEAGE: keep blobs that begin at these positions; the last one is where they end.

        Raises:
            RemoteProtocolError: they are damaged, or of a life that is over.
        """
        if len(positions) != len(blobs) + 1 or positions != sorted(positions):
            raise errors.RemoteProtocolError("LINEAGE with blobs and positions that do not match")
        if not self._cluster.membership.admits(node, epoch):
            raise errors.RemoteProtocolError(f"LINEAGE of incarnation {epoch}, which is dead")
        records = [unpack_blob(blob) for blob in blobs]
        if any(each is None for each in records):
            raise errors.RemoteProtocolError("LINEAGE that is damaged")
        try:
            ledger = self._copy_of(node, epoch, job).ledger
            for position, each in zip(positions, records, strict=False):
                assert each is not None
                if position > ledger.next_position:
                    ledger.skip_to(position)
                ledger.append(each[ledger.next_position - position :])
            if positions[-1] > ledger.next_position:
                ledger.skip_to(positions[-1])
            kept = ledger.flush()
        except errors.GcsError as error:
            self.failures += 1
            print(f"lineage of node {node.hex()} can't be kept: {error}", flush=True)
            kept = positions[0]
        self._tell(node, link_messages.LINEAGE_KEPT, job, kept)

    def _copy_of(self, node: NodeId, epoch: int, job: str) -> _Copy:
        copies = self.kept.setdefault((node, epoch), {})
        copy = copies.get(job)
        if copy is None:
            path = self._path / f"{node.hex()}-{epoch}" / (job or "none")
            copy = copies[job] = _Copy(Ledger(path, max_bytes=LINEAGE_BYTES_MAX))
        return copy

    def ended(self, node: NodeId, epoch: int, job: str) -> None:
        """LINEAGE_ENDED: a job of another node has ended, and its copy can go."""
        copies = self.kept.get((node, epoch), {})
        copy = copies.pop(job, None)
        if copy is not None:
            copy.ledger.discard()
        if not copies:
            self.kept.pop((node, epoch), None)

    def _seal(self) -> None:
        """Close the copies of lives that the GCS has declared dead."""
        ended = self._cluster.membership.ended
        for (node, epoch), copies in self.kept.items():
            if epoch <= ended.get(node, 0) and not all(each.sealed for each in copies.values()):
                for job, copy in copies.items():
                    copy.sealed = True
                    print(
                        f"the lineage of job {job or 'none'} on node {node.hex()}, incarnation"
                        f" {epoch}, ends at {copy.ledger.next_position}: its node is dead",
                        flush=True,
                    )
        sealed = [
            key for key, copies in self.kept.items() if any(c.sealed for c in copies.values())
        ]
        for key in sealed[: max(0, len(sealed) - SEALED_MAX)]:
            for copy in self.kept.pop(key).values():
                copy.ledger.discard()

    # -- for people and tests ----------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each copy that is kept here."""
        return [
            {
                "node": node.hex(),
                "incarnation": epoch,
                "job": job,
                "records": copy.ledger.next_position,
                "bytes": copy.ledger.statistics().stored_bytes,
                "sealed": copy.sealed,
            }
            for (node, epoch), copies in self.kept.items()
            for job, copy in copies.items()
        ]

    def statistics(self) -> dict[str, Any]:
        """Return what others keep for this node, and what it keeps for them."""
        return {
            "kept_by": sorted(each.hex() for each in self.copying.backups),
            "not_kept_yet": self.copying.behind(),
            "failures": self.failures,
            "copies": self.rows(),
        }

    def close(self) -> None:
        """This node ends, and with it the copies it kept."""
        for copies in self.kept.values():
            for copy in copies.values():
                copy.ledger.discard()
        self.kept.clear()
