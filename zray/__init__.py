"""zray: a distributed runtime for Python on ZeroMQ.

What    The public names, imported when first used, so that `import zray` costs little.
            api                the session, get, put, wait, kill, cancel, get_actor
            remote_decorators  @remote and @method
            remote_function    functions whose calls are tasks
            actor              actor classes, handles, the base class Actor
            refs               ObjectRef, generators of refs, the refs of a map
            waits              for some of many refs: wait(), results as they come
            turns              threads that wait while another one reads the inbox
            state, trace       what the node says of itself; timeline()
            why                what something waits for, as text
            context            get_runtime_context(): what runs here
            util/              pools, queues, waiting, serializers
            exceptions         errors under Ray's names; errors is the tree itself
            signatures         (.pyi) what type checkers see
            options, option_checks, option_placement, option_feasibility, configuration
            launch, launch_driver  nodes as processes; where a driver goes
            detect, logs
            testing, pytest_plugin: several nodes on one machine, and a fixture of them
            node_directory, node_address, observer
            cli, and what its commands do: cli_node, cli_cluster, cli_status, cli_logs, cli_bench,
                 cli_why, cli_drain, cli_keys, cli_doctor, cli_doctor_network (what it looks at
                 beyond this machine), cli_doctor_verdicts (what it makes of that)
            runtime_state       what a process says of itself when its node asks
            runtime, runtime_groups, gateway, client, objects
            session/, net/, protocol/, serialization/, store/
            brokers/, actors/  the node's processes and the workers', seen through links
Caller  users.
Never   imports zmq, numpy or cloudpickle itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zray.protocol.release import VERSION as __version__

_HOME = {
    **dict.fromkeys(
        ("cancel", "get", "get_actor", "init", "is_initialized", "kill", "put", "shutdown", "wait"),
        "zray.api",
    ),
    **dict.fromkeys(("method", "remote"), "zray.remote_decorators"),
    **dict.fromkeys(("ObjectRef", "ObjectRefGenerator"), "zray.refs"),
    **dict.fromkeys(
        ("available_resources", "cluster_resources", "get_gpu_ids", "nodes"), "zray.state"
    ),
    "Actor": "zray.actor",
    "get_runtime_context": "zray.context",
    "timeline": "zray.trace",
}
_NOT_HERE = {
    "autoscaler": "this release runs on one node",
    "data": "zray is the core only",
    "rllib": "zray is the core only",
    "serve": "zray is the core only",
    "train": "zray is the core only",
    "tune": "zray is the core only",
    "workflow": "zray is the core only",
    "dag": "zray has no compiled graphs",
    "LOCAL_MODE": "call f.__wrapped__(...) to run a function here",
}

if TYPE_CHECKING:
    from zray.api import cancel, init, is_initialized, shutdown
    from zray.context import get_runtime_context
    from zray.refs import ObjectRef, ObjectRefGenerator
    from zray.signatures import Actor, get, get_actor, kill, method, put, remote, wait
    from zray.state import available_resources, cluster_resources, get_gpu_ids, nodes
    from zray.trace import timeline

__all__ = [
    "Actor",
    "ObjectRef",
    "ObjectRefGenerator",
    "__version__",
    "available_resources",
    "cancel",
    "cluster_resources",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "timeline",
    "wait",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of zray, when it is first used."""
    home = _HOME.get(name)
    if home is None:
        if name in _NOT_HERE:
            raise AttributeError(f"module 'zray' has no {name}: {_NOT_HERE[name]}")
        try:
            return importlib.import_module(f"zray.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"zray.{name}":
                raise
        raise AttributeError(f"module 'zray' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
