"""init, shutdown, get, put, wait and the rest of the module-level API.

What    One current Runtime per process; the first call that needs it starts an embedded node.
Caller  users, zray/remote_function.py, zray/actor.py.
Never   imports zmq or numpy before they are needed: import zray stays under 0.1 s.
"""

from __future__ import annotations

import atexit
import importlib
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
    from zray.refs import ObjectRef, ObjectRefGenerator, RefSequence
    from zray.runtime import Runtime

_lock = threading.RLock()
_runtime: Runtime | None = None
_forked: Runtime | None = None
"""In a forked child: the session of its parent, which can't be used here."""
_node: subprocess.Popen[bytes] | None = None
_directory: str | None = None
in_worker = False
_ref_types: list[Any] = [type(None), type(None)]
"""ObjectRef and RefSequence once a runtime is there: an import in get() costs 0.7 us a call."""


def runtime_if_ready() -> Runtime | None:
    """Return the current runtime without starting one."""
    return _runtime


def runtime() -> Runtime:
    """Return the current runtime, starting an embedded node where there is none."""
    current = _runtime
    if current is None:
        if _forked is not None:
            _forked.check_usable()
        init()
        current = _runtime
        assert current is not None
    if current.node_died is not None:
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


def _forget_in_child() -> None:
    """After a fork, in the child: what it inherited is its parent's, the lifeline above all."""
    global _runtime, _forked, _node, _directory, _lock
    _lock = threading.RLock()
    if _runtime is not None:
        _forked, _runtime = _runtime, None
        _node, _directory = None, None
        _forked.forked()


os.register_at_fork(after_in_child=_forget_in_child)


def is_initialized() -> bool:
    """Return whether this process is connected to a node."""
    current = _runtime
    return current is not None and not current.closed


def connect(
    directory: str,
    *,
    namespace: str | None = None,
    log_to_driver: bool = True,
    env_vars: dict[str, str] | None = None,
    details: dict[str, Any] | None = None,
) -> Runtime:
    """Connect this process as a driver to the node in ``directory``."""
    from zray.node_directory import new_process, report
    from zray.runtime import Runtime as Runtime_

    process = new_process(directory)
    if report(directory).get("role") == "gateway":
        from zray.gateway import GatewayRuntime as Runtime_
    entry = " ".join(sys.argv)[:500]
    namespace = namespace or f"job-{process.hex()}"
    made = Runtime_(
        directory,
        process,
        "driver",
        {
            "entrypoint": entry,
            "namespace": namespace,
            "log": log_to_driver,
            # As the interpreter reads it: "" and relative entries are below the current directory.
            "path": [os.path.abspath(entry) for entry in sys.path],
            "cwd": os.getcwd(),
            "env_vars": env_vars or {},
            **(details or {}),
        },
    )
    made.namespace = namespace
    made.env_vars = env_vars or {}
    from zray import logs, runtime_state

    runtime_state.install(made)
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


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: int | None = None,
    resources: dict[str, float] | None = None,
    object_store_memory: int | None = None,
    namespace: str | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool | None = None,
    spill_directory: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    logging_level: int | str | None = None,
    labels: dict[str, str] | None = None,
    keys: str | None = None,
    _temp_dir: str | None = None,
    **others: Any,
) -> Context:
    """Connect to a node, or start one inside this program's life.

    What is not given here comes from ZRAY_* variables, then from files: see configure.md.

    Args:
        address: "zray://HOST:PORT" is the cluster of the node there; "local" starts an embedded
            node that ends with this process; "auto" is the last one that ``zray-node start`` has
            started and that runs; else a node's directory. None is "auto" where such a node runs
            and nothing of a node is given here, such as num_cpus; else it is "local".
        num_cpus: CPUs the node offers; None: what the cgroup and affinity allow.
        num_gpus: GPUs the node offers; None: those found.
        memory: bytes offered as resource "memory"; None: what the cgroup allows.
        resources: custom resources, name to amount.
        object_store_memory: bytes of shared memory for objects; None: 30 % of memory.
        namespace: where this driver's named actors live; None: one of its own.
        ignore_reinit_error: a second init() returns the first one's context.
        log_to_driver: print what workers print; None: yes.
        spill_directory: where objects go when the store is full; None: the node's directory.
        runtime_env: ``{"env_vars": {...}}``: the environment of every task and actor.
        logging_level: level of the logger "zray" in this process; INFO tells what was chosen.
        labels: what the embedded node is called by, name to value.
        keys: folder of the keys for zray://; None: ~/.zray/cluster; "none": it has no keys.
        _temp_dir: folder for the node's directory; a short path, since sockets lie in it.
        others: driver_host, driver_port, driver_bulk_port and driver_advertise, how the nodes
            reach a driver at zray://; lineage_bytes and lineage_copies of a node started here;
            options of Ray's init() that ask for nothing.

    Raises:
        OptionError: an option that zray does not honour.
        NodeStartError: none at the address, or it does not come up, or lets this driver in.
        SecurityError: there are no keys, or others can read them.
    """
    of_node = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "memory": memory,
        "resources": resources,
        "object_store_memory": object_store_memory,
        "spill_directory": spill_directory,
        "labels": labels,
    }
    of_driver = {"address": address, "namespace": namespace, "log_to_driver": log_to_driver}
    with _lock:
        if not is_initialized():
            of_driver["keys"] = keys
            return _init(of_node, of_driver, runtime_env, logging_level, _temp_dir, others)
        if ignore_reinit_error or in_worker:
            return _context()
    raise _was_called_before()


def _was_called_before() -> errors.OptionError:
    return errors.OptionError(
        "zray.init() was called before: call zray.shutdown() first, or pass"
        " ignore_reinit_error=True",
        option="address",
    )


def _init(
    of_node: dict[str, Any],
    of_driver: dict[str, Any],
    runtime_env: dict[str, Any] | None,
    logging_level: int | str | None,
    base: str | None,
    others: dict[str, Any],
) -> Context:
    global _forked
    import logging

    from zray import configuration, launch_driver

    others = dict(others)
    of_node |= {name: others.pop(name) for name in configuration.NODE_SETTINGS if name in others}
    of_driver |= {name: others.pop(name, None) for name in configuration.OF_DRIVER_ELSEWHERE}
    configuration.refuse_unsupported(others)
    env_vars = configuration.session_env(runtime_env)
    settings = configuration.resolve({**of_driver, **of_node})
    log = logging.getLogger("zray")
    if logging_level is not None:
        log.setLevel(logging_level)
    _forked = None
    place = launch_driver.find(settings, {**of_node, "_temp_dir": base})
    log.info("this driver uses %s", place.why)
    where = place.directory or _start_node(place.settings, base)
    try:
        set_runtime(
            connect(
                where,
                namespace=settings.values.get("namespace"),
                log_to_driver=settings.values.get("log_to_driver", True),
                env_vars=env_vars,
            )
        )
    except BaseException:
        _end_node()
        raise
    atexit.register(shutdown)
    return _context()


def _start_node(settings: dict[str, Any], base: str | None) -> str:
    """Start an embedded node; returns its directory."""
    global _node, _directory
    from zray import launch

    where = _directory = launch.new_directory(base)
    try:
        # What connect() will import takes a third as long as the node takes to start.
        _node = launch.launch_node(
            where,
            {**settings, "embedded": True, "parent": os.getpid()},
            meanwhile=lambda: importlib.import_module("zray.runtime"),
        )
    except BaseException:
        shutil.rmtree(where, ignore_errors=True)
        _directory = None
        raise
    return where


def _context() -> Context:
    current = runtime()
    totals = {name: amount / 10000 for name, amount in current.welcome["resources"].items()}
    return Context(current.directory, current.node.hex(), totals)


def shutdown() -> None:
    """Disconnect; end the embedded node and all its processes. Safe to call twice."""
    with _lock:
        current = _runtime
        set_runtime(None)
        if current is not None:
            current.close(node_ends=_node is not None)
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
    if timeout is not None:
        _check_timeout(timeout)
    if type(refs) is object_ref:
        return refs.client.get_one(refs, timeout, writable=writable)
    if isinstance(refs, ref_sequence):
        return refs.client.get_map(refs, timeout, writable=writable)
    if isinstance(refs, (list, tuple)):
        if not refs:
            return []
        client = _runtime
        for ref in refs:
            if type(ref) is not object_ref or ref.client is not client:
                _refuse_member(ref, "get")
        return refs[0].client.get_many(refs, timeout, writable=writable)
    from zray.refs import ObjectRefGenerator

    advice = ": iterate it, each item is a ref" if isinstance(refs, ObjectRefGenerator) else ""
    raise TypeError(f"zray.get() takes an ObjectRef or a list of them, not {refs!r}{advice}")


def _check_timeout(timeout: Any) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout={timeout!r}: it is a number of seconds, or None")
    if not timeout >= 0:
        raise ValueError(f"timeout={timeout!r}: it is 0 or more seconds, or None to wait for ever")


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: it is True or False")


def _refuse_member(ref: Any, function: str) -> None:
    """Raise for what is no usable ref: of another type, or of a session that has ended."""
    from zray.refs import ObjectRef, ObjectRefGenerator

    if isinstance(ref, ObjectRefGenerator) and function == "wait":
        ref._client.check_usable()
    elif isinstance(ref, ObjectRef):
        ref.client.check_usable()
    else:
        raise TypeError(f"zray.{function}() takes ObjectRefs, and the list holds {ref!r}")


def put(value: Any) -> Any:
    """Store a value and return its ObjectRef. The value is immutable from now on."""
    from zray.refs import ObjectRef

    current = runtime()
    if isinstance(value, ObjectRef):
        raise TypeError("zray.put() of an ObjectRef would be a ref to a ref: pass the ref itself")
    return ObjectRef(current, current.objects.put(value))


def wait(
    refs: Sequence[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Wait until num_returns of the refs are ready: (ready, not ready), order kept.

    Args:
        refs: distinct ObjectRefs, or generators (ready when they have an item).
        num_returns: how many to wait for; ready holds at most as many.
        timeout: seconds to wait at most; None waits for ever, 0 only looks.
        fetch_local: a ref is ready when its value is on this node, and is brought here for that;
            False: when it is there at all, on whichever node.
    """
    from zray.refs import ObjectRef, ObjectRefGenerator
    from zray.waits import split

    if isinstance(refs, (ObjectRef, ObjectRefGenerator)):
        raise TypeError("zray.wait() takes a list of refs, not a single one")
    if timeout is not None:
        _check_timeout(timeout)
    _check_bool("fetch_local", fetch_local)
    given = list(refs)
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns={num_returns!r}: it is an int")
    if not 1 <= num_returns <= max(1, len(given)):
        raise ValueError(
            f"num_returns={num_returns} of {len(given)} refs: it is at least 1 and"
            " at most their number"
        )
    if not given:
        return [], []
    keys, generators = check_refs(given, "wait")
    return split(runtime(), given, keys, generators, num_returns, timeout, fetch=fetch_local)


def check_refs(refs: list[Any], function: str) -> tuple[list[Any], list[Any]]:
    """Return the key of each ref (a generator itself) and which are generators.

    Raises for what is no usable ref; generators are usable only by ``wait``.
    """
    from zray.refs import ObjectRef

    client = _runtime
    try:
        # One quick look: whoever waits for one of n refs at a time comes here n times.
        keys = [ref.key for ref in refs if ref.client is client]
    except AttributeError:
        keys = []
    if len(keys) == len(refs):
        return keys, []
    for ref in refs:
        if type(ref) is not ObjectRef or ref.client is not client:
            _refuse_member(ref, function)
    keys = [ref.key if type(ref) is ObjectRef else ref for ref in refs]
    return keys, [ref for ref in refs if type(ref) is not ObjectRef]


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any] | RefSequence[Any],
    *,
    force: bool = False,
    recursive: bool = True,
) -> None:
    """Ask for the end of a task or actor call; getting its ref raises TaskCancelledError.

    A task that has not begun never does; one that runs gets KeyboardInterrupt (a call of an
    async actor: asyncio.CancelledError). One that has ended keeps its value. Cancelled tasks are
    not retried. Only the process that submitted a task can cancel it.

    Args:
        ref: what .remote() or .map() returned.
        force: end the worker process that runs it, for code that does not stop otherwise.
        recursive: cancel also the tasks that it has submitted.

    Raises:
        ValueError: force=True of an actor call: zray.kill() ends the actor.
    """
    from zray.refs import ObjectRef, ObjectRefGenerator, RefSequence

    _check_bool("force", force)
    _check_bool("recursive", recursive)
    if isinstance(ref, RefSequence):
        for each in ref:
            cancel(each, force=force, recursive=recursive)
        return
    single = ref.completed() if isinstance(ref, ObjectRefGenerator) else ref
    if not isinstance(single, ObjectRef):
        raise TypeError(
            f"zray.cancel() takes an ObjectRef, not {ref!r}: use zray.kill() for actors"
        )
    single.client.check_usable()
    single.client.cancel(single, force=force, recursive=recursive)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once; calls that have not finished fail with ActorDiedError."""
    from zray.actor import ActorHandle as Handle
    from zray.protocol import messages

    if not isinstance(actor, Handle):
        raise TypeError(
            f"zray.kill() takes an actor handle, not {actor!r}: use zray.cancel() for tasks"
        )
    _check_bool("no_restart", no_restart)
    actor._runtime.check_usable()
    current = actor._runtime
    current.call(messages.KILL_ACTOR, actor._actor_id, no_restart)
    if no_restart:
        # The signal takes its time; no call from here reaches the actor any more.
        current.actor_killed(actor._actor_id)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """Return a handle of the living actor of that name.

    Raises ActorNotFoundError (also a ValueError) where there is none.
    """
    from zray.actor import named_handle

    given: Any = name
    if not isinstance(given, str) or not given:
        raise ValueError(f"name={name!r}: get_actor() takes a name that is not empty")
    found = named_handle(name, namespace)
    if found is None:
        where = runtime().namespace if namespace is None else namespace
        raise errors.ActorNotFoundError(
            f"no living actor is named {name!r} in namespace {where!r}: it was not made, has"
            " ended, or lives in another namespace (zray.util.list_named_actors("
            "all_namespaces=True) shows all)",
            name=name,
            namespace=where,
        )
    return found
