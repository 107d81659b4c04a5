"""Several nodes on this machine, for tests and for development.

What    Cluster starts nodes as processes of their own, each with a directory, an object store and
        workers, joined over TCP with keys made for them alone; it kills, stops and removes them.
Caller  users' tests (the pytest fixture zray_cluster is in zray/pytest_plugin.py), scripts/demo.
Never   touches a node that it has not started, or leaves a process, file or key behind: its nodes
        end with this process, even where that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from zray import api, configuration, errors, launch
from zray.observer import Observer
from zray.protocol.limits import NODE_JOIN_TIMEOUT_S, SHUTDOWN_GRACE_S

_END_TIMEOUT_S = SHUTDOWN_GRACE_S + 10.0
_DRAIN_TIMEOUT_S = 10.0
_POLL_S = 0.01
_STORE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class TestNode:
    """A node of a Cluster.

    Args:
        directory: where it lives: what zray.init(address=...) takes, and where node.log is.
        pid: of the node's process; its workers are children's children of it.
        node_id: in hex, as zray.nodes() and get_runtime_context().get_node_id() tell it.
        address: "HOST:PORT" at which other nodes reach it.
    """

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for a test.

    directory: str
    pid: int
    _process: subprocess.Popen[bytes] = field(repr=False)
    _told: dict[str, Any] = field(repr=False)

    @property
    def node_id(self) -> str:
        """Another one when the node, declared dead by the others, has begun another life."""
        return str(self._tells()["node"])

    @property
    def address(self) -> str:
        """Where other nodes reach it."""
        return str(self._tells()["address"]).removeprefix("tcp://")

    def _tells(self) -> dict[str, Any]:
        """Return what the node has told of itself; of a dead one, what it told last."""
        # Between two lives the file may be half written.
        with contextlib.suppress(OSError, ValueError):
            self._told.update(json.loads(Path(self.directory, "node.json").read_text()))
        return self._told


class Cluster:
    """Some nodes on this machine. A context manager; empty until add_node() is called.

    Args:
        keys: give the nodes keys of their own, so that nobody else on this machine can join or
            run code on them. False saves the encryption, where the machine is yours alone.

    There is no partition(): processes of one machine cannot be cut off from each other without
    the rights of an administrator, and a stopped process (SIGSTOP) is a slow node, not a cut one.
    """

    def __init__(self, *, keys: bool = True) -> None:
        self._nodes: list[TestNode] = []
        self._keys: str | None = None
        self._key_folders: list[str] = []
        """Of the nodes that joined the first one."""
        self._dead: list[str] = []
        """Directories of killed nodes, kept for a look at their logs."""
        self._processes: dict[str, list[Any]] = {}
        """Of each dead node: its processes as they were when it died."""
        if keys:
            from zray.net.curve import ClusterKeys

            self._keys = launch.new_directory()
            ClusterKeys.create(self._keys)

    @property
    def nodes(self) -> list[TestNode]:
        """The nodes that live, the oldest first."""
        return [node for node in self._nodes if node._process.poll() is None]

    @property
    def address(self) -> str:
        """What zray.init(address=...) takes: the directory of the oldest node.

        Raises NodeStartError where the cluster has no node.
        """
        living = self.nodes
        if not living:
            raise errors.NodeStartError("the cluster has no node: call add_node() first")
        return living[0].directory

    @property
    def keys(self) -> str | None:
        """Folder of the keys of its nodes, which a driver at zray:// needs; None: it has none."""
        return self._keys

    # -- nodes -----------------------------------------------------------------------------------

    def add_node(
        self,
        *,
        num_cpus: float = 1,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: dict[str, float] | None = None,
        labels: dict[str, str] | None = None,
        object_store_memory: int = _STORE_BYTES,
    ) -> TestNode:
        """Start a node; returns once all nodes know each other.

        Args:
            num_cpus: CPUs it offers, however many the machine has.
            num_gpus: GPUs it offers; None: those found.
            memory: bytes offered as resource "memory"; None: what the cgroup allows.
            resources: custom resources, name to amount.
            labels: what it is called by, name to value.
            object_store_memory: bytes of shared memory for objects.

        Raises:
            OptionError: a wrong value.
            NodeStartError: it did not come up, or the others do not answer.
        """
        given = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "memory": memory,
            "resources": resources or {},
            "labels": labels or {},
            "object_store_memory": object_store_memory,
        }
        # Not from variables or files: a test asks for what it needs and gets nothing else.
        settings = configuration.resolve(
            given, environ={}, folder=os.sep, called="Cluster.add_node()"
        ).node()
        cluster: dict[str, Any] = {
            "head": not self.nodes,
            "join": [f"tcp://{each.address}" for each in self.nodes[:1]],
        }
        directory = launch.new_directory()
        if self._keys is not None:
            cluster["keys"] = self._keys_of_next(is_head=cluster["head"])
            settings["keys_end_with_parent"] = True
        try:
            process = launch.launch_node(
                directory, {**settings, "cluster": cluster, "parent": os.getpid()}
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        node = TestNode(directory, process.pid, process, {})
        node._tells()
        self._nodes.append(node)
        self._await_all()
        return node

    def _keys_of_next(self, *, is_head: bool) -> str:
        """Return the folder of the next node's keys: a pair of its own each."""
        from zray.net.curve import ClusterKeys, Role

        assert self._keys is not None
        if is_head:
            return self._keys
        authority = ClusterKeys.load(self._keys)
        name = f"node-{len(self._key_folders) + 1}"
        folder = os.path.join(self._keys, name)
        authority.issue(name, Role.NODE, folder)
        # The head would tell them, unless it is gone.
        for known in self._key_folders:
            ClusterKeys.load(known).adopt(
                authority.roster.plain(), authority.pair(Role.NODE).public
            )
        self._key_folders.append(folder)
        return folder

    def kill_node(self, node: TestNode) -> None:
        """Kill a node with SIGKILL and return at once: others find out by themselves.

        Its workers and the rest of its processes end because it is gone. Its directory is kept
        until the cluster ends, for a look at node.log.
        """
        self._take_out(node)
        os.kill(node.pid, signal.SIGKILL)
        node._process.wait()

    def remove_node(self, node: TestNode, *, graceful: bool = True) -> None:
        """End a node and return when its processes are gone and the others know.

        Args:
            node: which.
            graceful: as `zray-node drain --force` does it: work, actors that may restart and
                sole copies move to other nodes first, for ten seconds at most. False: SIGKILL.
        """
        self._take_out(node)
        if graceful:
            with Observer(node.directory) as observer:
                observer.drain(bytes.fromhex(node.node_id), _DRAIN_TIMEOUT_S, force=True)
        else:
            os.kill(node.pid, signal.SIGKILL)
        self._await_end(node, _DRAIN_TIMEOUT_S)
        if self.nodes:
            self._await_all()

    def wait_for_nodes(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Wait until every living node knows of ``count`` nodes, itself included.

        Raises GetTimeoutError, with how many each one knows, when that takes longer.
        """

        def known() -> dict[str, int]:
            return {each.node_id: _known_to(each) for each in self.nodes}

        seen = known()
        deadline = time.monotonic() + timeout_s
        while not seen or set(seen.values()) != {count}:
            if time.monotonic() > deadline:
                raise errors.GetTimeoutError(
                    f"after {timeout_s:g} s the nodes do not all know of {count} nodes; known to"
                    f" each: {seen}",
                    timeout_s=timeout_s,
                )
            time.sleep(_POLL_S)
            seen = known()

    def _await_all(self) -> None:
        self.wait_for_nodes(len(self.nodes), timeout_s=NODE_JOIN_TIMEOUT_S)

    # -- the end ---------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Disconnect this process where it is connected here, and end all nodes. Safe to repeat."""
        if api.is_initialized() and api.runtime().directory in self._directories():
            api.shutdown()
        leaving, self._nodes = self._nodes, []
        for node in leaving:
            self._remember_processes(node)
            # Not killed: a node removes the files of its workers and its spilled objects.
            with contextlib.suppress(ProcessLookupError):
                node._process.terminate()
        for node in leaving:
            self._await_end(node)
        for processes in self._processes.values():
            _await_gone(processes, "the workers of a killed node")
        for directory in (*self._directories(), self._keys):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
        self._processes.clear()
        self._dead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _directories(self) -> list[str]:
        return [*(node.directory for node in self._nodes), *self._dead]

    def _take_out(self, node: TestNode) -> None:
        if node not in self.nodes:
            raise errors.OptionError(f"{node} is not a living node of this cluster", option="node")
        self._nodes.remove(node)
        self._remember_processes(node)

    def _remember_processes(self, node: TestNode) -> None:
        """Once a node is dead nobody can tell which processes were its own."""
        import psutil

        self._dead.append(node.directory)
        if node._process.poll() is not None:
            return  # It has ended by itself, and its pid may be somebody else's by now.
        with contextlib.suppress(psutil.NoSuchProcess):
            self._processes[node.directory] = psutil.Process(node.pid).children(recursive=True)

    def _await_end(self, node: TestNode, more_s: float = 0.0) -> None:
        try:
            node._process.wait(_END_TIMEOUT_S + more_s)
        except subprocess.TimeoutExpired:
            node._process.kill()
            node._process.wait()
        _await_gone(self._processes.pop(node.directory, []), f"the workers of node {node.node_id}")


def _known_to(node: TestNode) -> int:
    try:
        with Observer(node.directory) as observer:
            return int(observer.ask("cluster")["nodes"])
    except errors.ClusterError:
        return 0  # It has died, and whoever waits for it is told how many know it.


def _lives(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _await_gone(processes: list[Any], what: str) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    while any(map(_lives, processes)):
        if time.monotonic() > deadline:
            raise errors.NodeDiedError(f"{what} have not ended after {_END_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
