"""init, shutdown, get, put, wait and the rest of the module-level API.

What    One current Runtime per process; the first call that needs it starts an embedded node.
Caller  users, zray/remote_function.py, zray/actor.py.
Never   imports zmq or numpy before they are needed: import zray stays under 0.1 s.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zray import errors

if TYPE_CHECKING:
    from zray.actor import ActorHandle
    from zray.runtime import Runtime

_lock = threading.RLock()
_runtime: Runtime | None = None
_node: subprocess.Popen[bytes] | None = None
_directory: str | None = None
in_worker = False
_ref_types: list[type] = [type(None), type(None)]
"""ObjectRef and RefSequence once a runtime is there: an import in get() costs 0.7 us a call."""


def runtime_if_ready() -> Runtime | None:
    """Return the current runtime without starting one."""
    return _runtime


def runtime() -> Runtime:
    """Return the current runtime, starting an embedded node where there is none."""
    current = _runtime
    if current is None:
        init()
        current = _runtime
        assert current is not None
    if current.pid != os.getpid() or current.node_died is not None:
        current.check_usable()
    return current


def set_runtime(current: Runtime | None) -> None:
    """Install the runtime of this process (workers, tests)."""
    global _runtime
    _runtime = current
    if current is not None:
        from zray import refs
        refs.set_current(runtime)
        _ref_types[:] = (refs.ObjectRef, refs.RefSequence)


def is_initialized() -> bool:
    """Return whether this process is connected to a node."""
    current = _runtime
    return current is not None and not current.closed and current.pid == os.getpid()


def connect(directory: str, *, namespace: str | None = None, log_to_driver: bool = True,
            details: dict[str, Any] | None = None) -> Runtime:
    """Connect this process as a driver to the node in ``directory``."""
    from zray.runtime import Runtime as Runtime_
    process = os.urandom(8)
    entry = " ".join(sys.argv)[:500]
    made = Runtime_(directory, process, "driver", {
        "entrypoint": entry, "namespace": namespace, "log": log_to_driver,
        "path": [entry for entry in sys.path if entry], "cwd": os.getcwd(), **(details or {})})
    made.namespace = namespace or f"job-{process.hex()}"
    from zray import logs
    made.lifeline_rules.update(logs.driver_rules())
    made.start()
    return made


class Context:
    """What init() returns: where the node is. A context manager that shuts zray down."""

    def __init__(self, address: str, node_id: str, resources: dict[str, float]) -> None:
        self.address = address
        self.node_id = node_id
        self.resources = resources
        self.address_info = {"address": address, "node_id": node_id}

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_error: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        """Shut zray down."""
        shutdown()

    def __getitem__(self, key: str) -> str:
        return self.address_info[key]

    def __repr__(self) -> str:
        return f"<zray at {self.address}, node {self.node_id}>"


def init(address: str | None = None, *, num_cpus: float | None = None,
         num_gpus: float | None = None, memory: int | None = None,
         resources: dict[str, float] | None = None, object_store_memory: int | None = None,
         namespace: str | None = None, ignore_reinit_error: bool = False,
         log_to_driver: bool = True, spill_directory: str | None = None,
         **unsupported: Any) -> Context:
    """Connect to a node, or start one inside this program's life.

    Args:
        address: None or "local" starts an embedded node that ends with this process (None takes
            ZRAY_ADDRESS first); "auto" is the last node started by ``zray-node start``; else
            the node's directory.
        num_cpus: CPUs the node offers; None: what the cgroup and affinity allow.
        num_gpus: GPUs the node offers; None: those found.
        memory: bytes offered as resource "memory"; None: what the cgroup allows.
        resources: custom resources, name to amount.
        object_store_memory: bytes of shared memory for objects; None: 30 % of memory.
        namespace: where this driver's named actors live; None: one of its own.
        ignore_reinit_error: a second init() returns the first one's context.
        log_to_driver: print what workers print.
        spill_directory: where objects go when the store is full; None: the node's directory.

    Raises:
        OptionError: an option that zray does not honour.
        NodeStartError: the node did not come up, or there is none at the address.
    """
    global _node, _directory
    with _lock:
        if is_initialized():
            if ignore_reinit_error or in_worker:
                return _context()
            raise errors.OptionError("zray.init() was called before: call zray.shutdown() first,"
                                     " or pass ignore_reinit_error=True", option="address")
        from zray import configuration
        configuration.refuse_unsupported(unsupported)
        _forget_forked()
        where = configuration.resolve_address(address)
        settings = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory,
                    "resources": resources or {}, "object_store_memory": object_store_memory,
                    "spill_directory": spill_directory, "embedded": True}
        if where is None:
            configuration.check_settings(settings)
            from zray import launch
            where = _directory = launch.new_directory()
            try:
                _node = launch.launch_node(where, settings, detached=False)
            except BaseException:
                shutil.rmtree(where, ignore_errors=True)
                _directory = None
                raise
        elif any(value for key, value in settings.items() if key != "embedded"):
            raise errors.OptionError("num_cpus, resources and the like belong to the node that is"
                                     f" running at {where}: set them where it is started",
                                     option="num_cpus")
        try:
            set_runtime(connect(where, namespace=namespace, log_to_driver=log_to_driver))
        except BaseException:
            _end_node()
            raise
        atexit.register(shutdown)
        return _context()


def _context() -> Context:
    current = runtime()
    totals = {name: amount / 10000 for name, amount in current.welcome["resources"].items()}
    return Context(current.directory, current.node.hex(), totals)


def _forget_forked() -> None:
    """A forked child starts afresh: what it inherited belongs to its parent."""
    global _node, _directory
    if _runtime is not None and _runtime.pid != os.getpid():
        set_runtime(None)
        _node, _directory = None, None


def shutdown() -> None:
    """Disconnect; end the embedded node and all its processes. Safe to call twice."""
    with _lock:
        current = _runtime
        if current is not None and current.pid != os.getpid():
            return
        set_runtime(None)
        if current is not None:
            current.close()
            from zray import refs
            refs.close_settlers()
        _end_node()
        atexit.unregister(shutdown)


def _end_node() -> None:
    global _node, _directory
    process, directory = _node, _directory
    _node, _directory = None, None
    if process is not None:
        # The node ends by itself when its driver's lifeline closes.
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def get(refs: Any, *, timeout: float | None = None, writable: bool = False) -> Any:
    """Return the value of a ref, or the values of a list of refs, waiting for them.

    Args:
        refs: an ObjectRef, a list or tuple of them, or what f.map() returned.
        timeout: seconds to wait at most; None waits for ever.
        writable: give arrays their own memory; otherwise arrays from the store are read-only
            views of shared memory, and cost no copy.

    Raises:
        The error the task ended with: a TaskError that is also an instance of the user's type.
        GetTimeoutError: the time is over.
    """
    object_ref, ref_sequence = _ref_types
    if type(refs) is object_ref:
        return refs.client.get_one(refs, timeout, writable=writable)
    if isinstance(refs, ref_sequence):
        return refs.client.get_map(refs, timeout)
    if isinstance(refs, (list, tuple)):
        for ref in refs:
            if not isinstance(ref, object_ref):
                raise TypeError(f"zray.get() takes ObjectRefs, and the list holds {ref!r}")
        return runtime().get_many(refs, timeout, writable=writable)
    raise TypeError(f"zray.get() takes an ObjectRef or a list of them, not {refs!r}")


def put(value: Any) -> Any:
    """Store a value and return its ObjectRef. The value is immutable from now on."""
    from zray.refs import ObjectRef
    current = runtime()
    if isinstance(value, ObjectRef):
        raise TypeError("zray.put() of an ObjectRef would be a ref to a ref: pass the ref itself")
    return ObjectRef(current, current.objects.put(value))


def wait(refs: Sequence[Any], *, num_returns: int = 1, timeout: float | None = None,
         fetch_local: bool = True) -> tuple[list[Any], list[Any]]:
    """Wait until num_returns of the refs are ready: (ready, not ready), order kept.

    Args:
        refs: distinct ObjectRefs, or generators (ready when they have an item).
        num_returns: how many to wait for; ready holds at most as many.
        timeout: seconds to wait at most; None waits for ever, 0 only looks.
        fetch_local: with one node every value is local; accepted for Ray's programs.
    """
    from zray.refs import ObjectRef, ObjectRefGenerator
    if isinstance(refs, (ObjectRef, ObjectRefGenerator)):
        raise TypeError("zray.wait() takes a list of refs, not a single one")
    given = list(refs)
    for ref in given:
        if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
            raise TypeError(f"zray.wait() takes ObjectRefs, and the list holds {ref!r}")
    if len({id(ref) if isinstance(ref, ObjectRefGenerator) else ref for ref in given}) != len(given):
        raise ValueError("zray.wait() was given the same ref twice")
    if not 1 <= num_returns <= max(1, len(given)):
        raise ValueError(f"num_returns={num_returns} of {len(given)} refs")
    if not isinstance(fetch_local, bool):
        raise TypeError("fetch_local is a bool")
    if not given:
        return [], []
    return runtime().wait(given, num_returns, timeout)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once; calls that have not finished fail with ActorDiedError."""
    from zray.protocol import messages
    from zray.actor import ActorHandle as Handle
    if not isinstance(actor, Handle):
        raise TypeError(f"zray.kill() takes an actor handle, not {actor!r}: use zray.cancel()"
                        " for tasks")
    runtime().call(messages.KILL_ACTOR, actor._actor_id, no_restart)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """Return a handle of the living actor of that name.

    Raises ActorNotFoundError (also a ValueError) where there is none.
    """
    from zray.actor import named_handle
    found = named_handle(name, namespace)
    if found is None:
        raise errors.ActorNotFoundError(
            f"no living actor is named {name!r} in namespace"
            f" {namespace or runtime().namespace!r}")
    return found
