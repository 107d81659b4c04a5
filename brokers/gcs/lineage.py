"""The lineage of one node's jobs: a ledger each, with a cap each, gone with the job.

What    Lineage opens a job's ledger with its first record and drops it with the job's end, so a
        busy job cannot push out another one's lineage, and what nobody can ask for any more costs
        nothing. Records are packed lists: ["class", client, number, spec] of a function as it is
        called, before ["tasks", client, row, payload] of a batch as it was submitted.
Caller  catalog.py in the node; brokers/lineage_copies.py reads what is to be copied.
Never   looks into a record; removes lineage of a job that runs, but beyond its cap.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zray.errors import GcsError

from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class Written:
    """What of a job's lineage is on disk: records [first, end)."""

    job: str
    first: int
    end: int


class Lineage:
    """The ledgers of the jobs of one node.

    Args:
        path: folder of the ledgers; what an earlier life has left there is removed, since its
            tasks have ended with their drivers.
        job_bytes_max: cap of each job; 0: nothing is kept.
    """

    def __init__(self, path: str | Path, *, job_bytes_max: int) -> None:
        self._path = Path(path)
        self._job_bytes_max = job_bytes_max
        self._ledgers: dict[str, Ledger] = {}
        self._base = 0
        """Where a new ledger begins: what was said of an ended one's numbers means no other."""
        self.records = 0
        """Of all jobs, those that have ended among them."""
        self.dropped_records = 0
        """Of jobs that have ended: what their caps had cost."""
        if self._path.exists():
            shutil.rmtree(self._path)

    def append(self, job: str, records: Sequence[bytes]) -> None:
        """Queue records of a job (in hex); they are on disk after the next flush().

        Raises:
            GcsError: they cannot be kept: too large, or the disk is full and so is the queue.
        """
        if not self._job_bytes_max:
            return
        ledger = self._ledgers.get(job)
        if ledger is None:
            ledger = Ledger(self._path / (job or "none"), max_bytes=self._job_bytes_max)
            ledger.skip_to(self._base)
            self._ledgers[job] = ledger
        ledger.append(records)
        self.records += len(records)

    def flush(self) -> list[Written]:
        """Write what is queued; returns what each job has on disk.

        Raises:
            GcsError: the disk is full or broken; what was queued stays queued. The ledgers of the
                other jobs have been written.
        """
        written: list[Written] = []
        failure: GcsError | None = None
        for job, ledger in self._ledgers.items():
            try:
                end = ledger.flush()
                written.append(Written(job, ledger.first_position, end))
            except GcsError as error:
                failure = error
        if failure is not None:
            raise failure
        return written

    def read(self, job: str, position: int) -> list[tuple[int, bytes]]:
        """Return some blobs of a job from a position on, as (position of the first record, blob).

        Empty where there is nothing (any more). The first one may begin behind the position: what
        lay between was dropped.
        """
        ledger = self._ledgers.get(job)
        return [] if ledger is None else ledger.read_blobs(position)

    def drop(self, job: str) -> None:
        """A job has ended: nobody will ask for its results again."""
        ledger = self._ledgers.pop(job, None)
        if ledger is not None:
            self.dropped_records += ledger.statistics().dropped_records
            self._base = max(self._base, ledger.next_position)
            ledger.discard()

    def statistics(self) -> dict[str, int]:
        """Return counts over all jobs, for status and metrics."""
        each = [ledger.statistics() for ledger in self._ledgers.values()]
        return {
            "ledgers": len(each),
            "ledger_records": self.records,
            "ledger_bytes": sum(one.stored_bytes for one in each),
            "ledger_dropped_records": self.dropped_records
            + sum(one.dropped_records for one in each),
        }

    def close(self) -> None:
        """Give the ledgers up: their jobs end with this node."""
        for job in list(self._ledgers):
            self.drop(job)
