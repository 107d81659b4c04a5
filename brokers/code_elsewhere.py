"""The code of functions, between this node and the homes of the jobs that run it.

What    CodeElsewhere asks a job's home for what a worker of ours is to run, and the GCS where that
        one does not answer; it sends on what workers of ours define, and answers others.
Caller  brokers/cluster.py: sweep(); brokers/node_calls.py, node.py; the link rules of CODE and
        CODE_WANTED.
Never   loads code; keeps it (brokers/gcs/catalog.py).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import link_messages
from zray.protocol.ids import NodeId, node_of

from .gcs.tables import code_hash

if TYPE_CHECKING:
    from .cluster import Cluster

_HOME_S = 1.0
"""A job's home that has not sent code after so long is passed by."""
_TRIES_MAX = 5
"""So often code is asked for that may be on its way to the job's home and the GCS."""


class CodeElsewhere:
    """See the module's docstring.

    Args:
        cluster: whose links carry it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._asked: dict[bytes, set[tuple[NodeId, str]]] = {}
        """Functions that others have asked for, with which of their nodes and for which job."""
        self._wanted: dict[tuple[bytes, str], float] = {}
        """Functions and their jobs, and since when the jobs' homes have been asked."""
        self._tries: Counter[tuple[bytes, str]] = Counter()
        """How often neither their homes nor the GCS had them."""

    def is_elsewhere(self, job: str) -> bool:
        """Return whether another node is the home of a job, and its code can be asked for."""
        home = node_of(bytes.fromhex(job))
        if not job or home == self._node.process:
            return False
        return home in self._cluster.members or self._cluster.gcs is not None

    # -- what processes of ours need and make ----------------------------------------------------

    def fetch(self, function: bytes, job: str) -> None:
        """A worker of ours is to run this: ask the job's home."""
        if (function, job) not in self._wanted and self.is_elsewhere(job):
            self._wanted[function, job] = self._node.now
            if not self._ask_home(function, job):
                self._ask_gcs(function, job)

    def put(self, function: bytes, code: bytes, job: str) -> None:
        """A worker of ours has defined a function: whoever is to run it asks its job's home."""
        if self.is_elsewhere(job):
            home = node_of(bytes.fromhex(job))
            self._cluster.send(home, link_messages.CODE, function, code, None)

    def is_here(self, function: bytes, code: bytes) -> None:
        """Answer the nodes that have asked for it."""
        jobs = self._node.processes.jobs
        for peer, job in sorted(self._asked.pop(function, ())):
            self._cluster.send(peer, link_messages.CODE, function, code, jobs.get(job))

    def sweep(self) -> None:
        """Pass by homes that do not answer. A few times a second."""
        for (function, job), since in list(self._wanted.items()):
            if self._node.now - since > _HOME_S:
                self._ask_gcs(function, job)

    # -- what other nodes say --------------------------------------------------------------------

    def wanted_by(self, peer: NodeId, function: bytes, job: str) -> None:
        """CODE_WANTED: another node's worker is to run this."""
        code = self._node.gcs.tables.functions.get(function)
        # What a task of another node has defined comes here next, or is on its way already.
        self._asked.setdefault(function, set()).add((peer, job))
        if code is not None:
            self.is_here(function, code)

    def came(self, function: bytes, code: bytes, job: dict[str, Any] | None) -> None:
        """CODE: a function, and how the job runs that we have asked it for.

        Raises RemoteProtocolError where it is not the code of that name.
        """
        if code_hash(code) != function:
            raise errors.RemoteProtocolError("CODE that is not what it is called")
        if job is not None:
            self._node.processes.jobs[job["job"]] = job
            self._wanted.pop((function, job["job"]), None)
            self._tries.pop((function, job["job"]), None)
        self._node.code_arrived(function, code)

    # -- where it is asked for -------------------------------------------------------------------

    def _ask_home(self, function: bytes, job: str) -> bool:
        home = node_of(bytes.fromhex(job))
        if home not in self._cluster.members:
            return False
        self._cluster.send(home, link_messages.CODE_WANTED, function, job)
        return True

    def _ask_gcs(self, function: bytes, job: str) -> None:
        """The job's home does not answer: the GCS has what it has put there."""

        def took(found: Any, error: Exception | None) -> None:
            if self._wanted.pop((function, job), None) is None:
                return  # It has come from its home after all.
            code, details = found if error is None else (None, None)
            if code is None or details is None:
                self._missing(function, job, error)
                return
            self._tries.pop((function, job), None)
            self._node.processes.jobs[job] = details
            self._node.code_arrived(function, code)

        self._wanted[function, job] = float("inf")
        self._node.shared_tables.get_function(function, job, took)

    def _missing(self, function: bytes, job: str, error: Exception | None) -> None:
        """Neither the job's home nor the GCS has it: ask again, or tell who waits for it."""
        cluster, node = self._cluster, self._node
        home = node_of(bytes.fromhex(job))
        lives = home in cluster.members or cluster.membership.is_on_its_way(home)
        self._tries[function, job] += 1
        over = not lives or job in node.scheduler.ended_jobs
        if not over and self._tries[function, job] < _TRIES_MAX:
            self._wanted[function, job] = node.now
            self._ask_home(function, job)
            return
        del self._tries[function, job]
        why = "the job has ended, or its node is gone" if over else f"nobody has it ({error})"
        refusal = errors.ClusterError(
            f"the code of function {function.hex()} of job {job} is not to be found: {why}"
        )
        print(refusal, flush=True)
        waiting = node.processes.waiting_for_function.pop(function, [])
        for process in waiting:
            if node.job_of(process) == job:
                node.answer(process, None, refusal)
        others = [process for process in waiting if node.job_of(process) != job]
        if others:
            node.processes.waiting_for_function[function] = others
