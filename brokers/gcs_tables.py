"""The shared tables of a cluster: asked of the GCS, answered when it has answered.

What    Named actors are registered there before they begin, so that a name has one holder in the
        whole cluster; what lives on this node is found without asking, since only an actor's home
        frees its name. An answer that names an actor waits until its home can be reached.
Caller  brokers/gcs_connection.py makes it; the rules of brokers/ use it as SharedTables.
Never   waits, or loses a question: each is answered once, at the latest with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol.ids import ActorId, NodeId, ProcessId, node_of
from zray.protocol.packing import packb, unpackb
from zray.protocol.roles import Role

from .gcs.actor_table import ActorRecord
from .gcs.catalog import STATES
from .gcs.client import ASK_TIMEOUT_S, GcsSession
from .gcs.commands import PAGE_LEN_MAX, Command
from .gcs.permissions import may_ask
from .gcs.rules import job_place
from .scheduling import JOB_VARIABLE
from .shared_tables import Done, living_actor

if TYPE_CHECKING:
    from .cluster import Cluster

_HOME_TIMEOUT_S = 5.0
_AGAIN_S = 0.1
"""After so long a name is asked for again that a dead actor is about to free."""
_SHOWN = ("class", "methods", "pending")
"""Of an actor's details: what a handle is made of."""

_KV_COMMANDS = {
    "put": "KV_PUT",
    "get": "KV_GET",
    "delete": "KV_DELETE",
    "exists": "KV_EXISTS",
}


@dataclass(slots=True)
class _Awaited:
    """An actor was found, and its home is not linked yet."""

    home: NodeId
    found: list[Any]
    done: Done
    until: float


class GcsTables:
    """The tables that all nodes of a cluster share.

    Args:
        cluster: of the node that asks.
        session: with the GCS; another one may begin in it at any time.
    """

    def __init__(self, cluster: Cluster, session: GcsSession) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self._session = session
        self._registering: dict[ActorId, list[Callable[[], None]]] = {}
        self._registered: dict[ActorId, dict[str, Any]] = {}
        """Living named actors of this node, as the GCS was told of them."""
        self._kept_names: dict[ActorId, tuple[str, str]] = {}
        """Of dead actors, whose last host may not know it yet."""
        self._refused: list[tuple[float, Callable[[], None]]] = []
        """Registrations under a name that is about to be free, and when to try again."""
        self._awaited: list[_Awaited] = []
        self.failures = 0
        """What the GCS was to be told and could not be, where nobody waits for an answer."""

    def _ask(self, name: str, *fields: Any, done: Done, timeout_s: float = ASK_TIMEOUT_S) -> None:
        if not may_ask(self._cluster.role, name):
            done(None, errors.SecurityError(f"a {self._cluster.role} may not ask for {name}"))
            return
        try:
            self._session.ask(Command(name, fields), done, timeout_s=timeout_s)
        except errors.ZrayError as error:
            done(None, error)

    def _tell(self, name: str, *fields: Any) -> None:
        """Ask where nobody waits for the answer: it is repeated for as long as it takes."""
        self._ask(name, *fields, done=self._told, timeout_s=float("inf"))
        # Machines command at the end of a wake, after the session was flushed.
        self._session.flush()

    def _told(self, _result: Any, error: Exception | None) -> None:
        if error is None or isinstance(error, errors.GcsSessionLostError):
            return  # After the latter all that is still true is told again.
        self.failures += 1
        if self.failures < 20:
            print(f"the GCS has refused what it was told: {error}", flush=True)

    # -- named actors ----------------------------------------------------------------------------

    def register_actor(
        self, actor: ActorId, class_id: bytes, job: str, details: dict[str, Any], done: Done
    ) -> None:
        """Record a named actor of a job (in hex); `done` gets whether the name was free."""
        record = self._record(actor, class_id, job, details)
        self._registering[actor] = []
        deadline = self._node.now + ASK_TIMEOUT_S

        def registered(holder: Any, error: Exception | None) -> None:
            if error is None and holder == b"" and self._node.now < deadline:
                self._refused.append((self._node.now + _AGAIN_S, register))
                return
            free = error is None and holder is None
            if free:
                free = self._node.gcs.actor_created(actor, class_id, job, details) is None
                self._registered[actor] = record
            elif isinstance(error, errors.GcsUnavailableError):
                # It may have happened, or happen still: then nobody would ever free the name.
                self._ask("ACTOR_UPDATE", actor, {"state": "dead"}, done=_ignore)
            done(free, error)
            for then in self._registering.pop(actor):
                then()

        def register() -> None:
            self._ask("ACTOR_REGISTER", record, done=registered)

        register()

    def _record(
        self, actor: ActorId, class_id: bytes, job: str, details: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "actor_id": actor,
            "class_id": class_id,
            "job_id": bytes.fromhex(job),
            "name": details["name"],
            "namespace": details["namespace"] or "",
            "class_name": details["class"],
            "node_id": self._node.process,
            "restarts_left": details["restarts"],
            "detached": details["detached"],
            "options": {name: details[name] for name in _SHOWN},
        }

    def actor_changed(
        self, actor: ActorId, state: str, worker: ProcessId, incarnation: int, restarts_left: int
    ) -> None:
        """Tell the GCS of a named actor's state."""
        record = self._registered.get(actor)
        if record is None:
            return
        changes = {
            "state": STATES[state],
            "worker_id": worker,
            "incarnation": incarnation,
            "restarts_left": restarts_left,
        }
        record.update(changes)
        self._tell("ACTOR_UPDATE", actor, changes)

    def actor_died(self, actor: ActorId, *, keeps_name: bool) -> None:
        """Free the name of an actor of this node, or keep it until free_name()."""
        record = self._registered.pop(actor, None)
        if record is not None:
            self._tell("ACTOR_END", actor, keeps_name)
            if keeps_name:
                self._kept_names[actor] = (record["namespace"], record["name"])

    def free_name(self, actor: ActorId) -> None:
        """Nothing of a dead actor runs any more."""
        name = self._kept_names.pop(actor, None)
        if name is not None:
            self._tell("NAME_RELEASE", *name, actor)

    def after_registration(self, actor: ActorId, then: Callable[[], None]) -> None:
        """Call when an actor that is being registered, if so, has been."""
        waiting = self._registering.get(actor)
        if waiting is None:
            then()
        else:
            waiting.append(then)

    def find_actor(self, name: str, namespace: str, done: Done) -> None:
        """Find a living actor; `done` gets [actor, details] or None."""
        own = living_actor(self._node, name, namespace)
        if own is not None:
            done(own, None)
            return

        def took_holder(holder: Any, error: Exception | None) -> None:
            if error is not None or holder is None:
                done(None, error)
            elif node_of(holder) == self._node.process:
                # It is being registered, or has ended and the GCS is about to hear of it.
                self.after_registration(
                    holder, lambda: done(living_actor(self._node, name, namespace), None)
                )
            else:
                self._ask("ACTOR_LOOKUP", holder, done=took_record)

        def took_record(packed: Any, error: Exception | None) -> None:
            record = None if error is not None or packed is None else ActorRecord.unpack(packed)
            if record is None or record.state == "dead":
                done(None, error)
                return
            if self._is_out_of_reach(node_of(record.actor_id)):
                done(None, errors.ClusterError(_OF_ANOTHER_DRIVER.format(name=name)))
                return
            found = [record.actor_id, dict(record.options)]
            until = self._node.now + _HOME_TIMEOUT_S
            self._awaited.append(_Awaited(node_of(record.actor_id), found, done, until))
            self.tick(self._node.now)

        self._ask("NAME_LOOKUP", namespace, name, done=took_holder)

    def _is_out_of_reach(self, home: NodeId) -> bool:
        """Whether both ends are drivers elsewhere, which have no link to each other."""
        row = self._cluster.membership.living.get(home)
        return row is not None and Role.NODE not in (row.role, self._cluster.role)

    def actor_names(self, namespace: str | None, done: Done) -> None:
        """Find all names; `done` gets [namespace, name] of each."""
        found: list[list[str]] = []

        def ask(after: bytes) -> None:
            self._ask("NAME_LIST", namespace, PAGE_LEN_MAX, after, done=took)

        def took(page: Any, error: Exception | None) -> None:
            if error is not None:
                done(None, error)
                return
            found.extend([space, name] for space, name, _actor in page[0])
            if page[1] is None:
                done(found, None)
            else:
                ask(page[1])

        ask(b"")

    # -- key-value -------------------------------------------------------------------------------

    def kv(self, op: str, arguments: list[Any], done: Done) -> None:
        """Serve one KV request; `done` gets its answer."""
        if op == "keys":
            namespace, prefix = arguments
            self._kv_keys(namespace, prefix, done)
            return
        name = _KV_COMMANDS.get(op)
        if name is None:
            done(None, errors.RemoteProtocolError(f"unknown KV operation {op!r}"))
            return

        def took(result: Any, error: Exception | None) -> None:
            if isinstance(error, errors.LocalProtocolError):
                error = errors.GcsError(f"kv.{op}() is refused: {error}")
            done(result, error)

        self._ask(name, *arguments, done=took)

    def _kv_keys(self, namespace: str, prefix: bytes, done: Done) -> None:
        found: list[bytes] = []

        def ask(after: bytes) -> None:
            self._ask("KV_KEYS", namespace, prefix, PAGE_LEN_MAX, after, done=took)

        def took(page: Any, error: Exception | None) -> None:
            if error is not None:
                done(None, error)
                return
            found.extend(page[0])
            if page[1] is None:
                done(found, None)
            else:
                ask(page[1])

        ask(b"")

    # -- code and jobs ---------------------------------------------------------------------------

    def put_function(self, function: bytes, code: bytes) -> None:
        """Keep code where it is found when this node does not answer."""
        try:
            self._session.put_function(code, self._told, timeout_s=float("inf"))
        except errors.ZrayError as error:
            self._told(None, error)

    def get_function(self, function: bytes, job: str, done: Done) -> None:
        """Find code and where its job imports from; `done` gets [code, details], each or None."""
        details: list[Any] = [None]

        def took_details(row: Any, error: Exception | None) -> None:
            if error is not None:
                done(None, error)
                return
            details[0] = None if row is None else unpackb(row[0])
            try:
                self._session.get_function(function, took_code)
            except errors.GcsUnavailableError as full:
                done(None, full)

        def took_code(code: Any, error: Exception | None) -> None:
            done(None if error is not None else [code, details[0]], error)

        self._ask("GET", "cluster", job_place(bytes.fromhex(job)), done=took_details)

    def job_started(self, driver: ProcessId, pid: int, entrypoint: str, now: float) -> None:
        """Tell the GCS of a driver, and where its job imports from."""
        details = self._node.processes.jobs[driver.hex()]
        record = {
            "job_id": driver,
            "driver_id": driver,
            "driver_pid": pid,
            "entrypoint": entrypoint,
            "namespace": details["namespace"],
            "started_at": now,
        }
        self._tell("JOB_START", record)
        if self._cluster.role is not Role.GATEWAY:  # Whose code no worker ever runs.
            put = ["put", "cluster", job_place(driver), packb(details)]
            self._tell("TRANSACT", [], [put], [])

    def job_ended(self, driver: ProcessId, state: str, now: float) -> None:
        """Tell the GCS that a driver has gone."""
        self._tell("JOB_FINISH", driver, state, now, "")
        if self._cluster.role is not Role.GATEWAY:
            self._tell("TRANSACT", [], [["delete", "cluster", job_place(driver)]], [])

    # -- as time goes ----------------------------------------------------------------------------

    def joined(self, now: float) -> None:
        """The GCS has taken this node in: tell it all that is true here and it may not know."""
        node = self._node
        for driver, process in node.processes.drivers.items():
            entrypoint = str(process.details.get("entrypoint", ""))
            self.job_started(driver, process.pid, entrypoint, now)
        for actor in node.dispatcher.actors.values():
            if actor.details["name"] is not None and actor.actor not in self._registered:
                job = actor.details["env"][JOB_VARIABLE]
                record = self._record(actor.actor, actor.class_id, job, actor.details)
                self._registered[actor.actor] = record
        for record in self._registered.values():
            self._ask("ACTOR_REGISTER", record, done=self._registered_again)

    def _registered_again(self, holder: Any, error: Exception | None) -> None:
        if error is not None:
            self._told(None, error)
        elif holder is not None:
            print(f"a name of an actor here is that of {holder.hex()} in the cluster", flush=True)

    def tick(self, now: float) -> None:
        """Answer with actors whose homes are linked by now, or gone; ask again for names."""
        refused, self._refused = self._refused, []
        for at, register in refused:
            if now >= at:
                register()
            else:
                self._refused.append((at, register))
        if not self._awaited:
            return
        awaited, self._awaited = self._awaited, []
        for each in awaited:
            if each.home in self._cluster.members:
                each.done(each.found, None)
            elif not self._cluster.membership.is_on_its_way(each.home):
                each.done(None, None)  # Its node has died since, and it with it.
            elif now < each.until:
                self._awaited.append(each)
            else:
                each.done(None, errors.ClusterError(_unreachable(each.home)))


def _unreachable(home: NodeId) -> str:
    return (
        f"node {home.hex()}, where the actor lives, is alive and was not reached within"
        f" {_HOME_TIMEOUT_S} s; look at the network between the nodes, then try again"
    )


_OF_ANOTHER_DRIVER = (
    "actor {name!r} was made by another driver elsewhere, and such drivers do not reach each other:"
    ' make it with lifetime="detached", or from a task, and it belongs to a node of the cluster'
)


def _ignore(_result: Any, _error: Exception | None) -> None:
    """Nothing depends on whether there was something to undo."""
