"""What `zray-node doctor` checks.

What    One function a check, each of which yields findings: what was found, and what to do where
        it is not as it should be. --clean removes what dead nodes have left. Ports, keys and other
        nodes are looked at in zray/cli_doctor_network.py.
Caller  zray/cli.py.
Never   removes what a living node, another user, or a node that keeps its tables owns.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zray import configuration, detect, errors, node_address, node_directory
from zray.cli_doctor_verdicts import FAILURE, OK, WARNING, Finding
from zray.cli_status import size
from zray.protocol.limits import IPC_PATH_BYTES_MAX, NODE_START_TIMEOUT_S

_PACKAGES = {
    "pyzmq": (27,),
    "lmdb": (3,),
    "msgpack": (1,),
    "cloudpickle": (3,),
    "numpy": (1, 26),
    "psutil": (6,),
    "typer": (0, 15),
    "rich": (13, 9),
}
_DESCRIPTORS_MIN = 4096
_PROCESSES_MIN = 1024
_MEMORY_BYTES_MIN = 512 << 20
_DISK_BYTES_MIN = 1 << 30
_CLOCK_SKEW_S = 2.0
_PATH_OF_NODE_BYTES = len("/zray-xxxxxxxx/0123456789abcdef.e")
"""An embedded node's directory in the temporary folder, and a mailbox in it."""


def doctor(given: Mapping[str, Any], directory: str | None, *, clean: bool, as_json: bool) -> int:
    """Run every check and print what it finds; returns the exit code: 1 where one fails.

    Args:
        given: settings of the command line, as of `zray-node start`.
        directory: of the node whose cluster is looked at; None: there is none.
        clean: remove what dead nodes have left, first.
        as_json: print JSON.
    """
    from zray.cli_doctor_network import network_findings

    removed = list(remove_leftovers()) if clean else []
    findings = [finding for check in _CHECKS for finding in check()]
    findings += network_findings(given, directory)
    failed = any(finding.level == FAILURE for finding in findings)
    if as_json:
        print(
            json.dumps(
                {
                    "ok": not failed,
                    "removed": removed,
                    "findings": [asdict(finding) for finding in findings],
                },
                indent=2,
            )
        )
    else:
        _show(findings, removed)
    return 1 if failed else 0


def _show(findings: list[Finding], removed: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for path in removed:
        console.print(f"removed {path}", soft_wrap=True)
    marks = {OK: "[green]ok[/]", WARNING: "[yellow]warning[/]", FAILURE: "[red]failure[/]"}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, marks[finding.level], finding.found, finding.advice)
    console.print(table)


# -- what is installed -------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.platform != "linux":
        yield Finding("python", WARNING, f"{found} on {sys.platform}", "Linux is what is tested")
    else:
        yield Finding("python", OK, found)


def _packages() -> Iterator[Finding]:
    from importlib import metadata

    for name, least in _PACKAGES.items():
        wanted = ".".join(map(str, least))
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, FAILURE, "not installed", f"pip install '{name}>={wanted}'")
            continue
        if _parts(version)[: len(least)] < least:
            yield Finding(name, FAILURE, version, f"pip install '{name}>={wanted}'")
        else:
            yield Finding(name, OK, version)


def _parts(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


# -- what the machine gives --------------------------------------------------------------------


def _shared_memory() -> Iterator[Finding]:
    if not hasattr(os, "memfd_create"):
        yield Finding(
            "shared memory",
            WARNING,
            "no memfd on this system",
            "objects go to files in the temporary folder instead",
        )
        return
    try:
        descriptor = os.memfd_create("zray-doctor", os.MFD_CLOEXEC)
    except OSError as error:
        yield Finding(
            "shared memory",
            FAILURE,
            f"memfd_create: {error.strerror}",
            "allow memfd_create(2): a seccomp filter or a hardened kernel refuses it",
        )
        return
    try:
        os.ftruncate(descriptor, 1 << 20)
        os.pwrite(descriptor, b"zray", 0)
    except OSError as error:
        yield Finding(
            "shared memory",
            FAILURE,
            f"a memfd cannot be written: {error.strerror}",
            "look at the memory limits of this container",
        )
    else:
        yield Finding("shared memory", OK, "memfd works; /dev/shm and its size do not matter")
    finally:
        os.close(descriptor)


def _descriptors() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} of at most {hard}"
    if soft < _DESCRIPTORS_MIN:
        yield Finding(
            "open files",
            WARNING,
            found,
            f"ulimit -n {min(max(_DESCRIPTORS_MIN, 65536), hard)} before the node"
            " starts: each worker and driver needs about ten",
        )
    else:
        yield Finding("open files", OK, found)


def _processes() -> Iterator[Finding]:
    limits = {"ulimit -u": resource.getrlimit(resource.RLIMIT_NPROC)[0]}
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits[path] = int(text)
    finite = {name: limit for name, limit in limits.items() if 0 <= limit < 1 << 40}
    if not finite:
        yield Finding("processes", OK, "no limit")
        return
    name, least = min(finite.items(), key=lambda item: item[1])
    if least < _PROCESSES_MIN:
        yield Finding(
            "processes",
            WARNING,
            f"{least} ({name})",
            "raise it: every worker and actor is a process with a few threads",
        )
    else:
        yield Finding("processes", OK, f"{least} ({name})")


def _memory() -> Iterator[Finding]:
    nbytes = detect.detect_memory_bytes()
    found = f"{size(nbytes)} for this cgroup, {detect.detect_cpus()} CPUs"
    if nbytes < _MEMORY_BYTES_MIN:
        yield Finding(
            "memory",
            WARNING,
            found,
            "a worker takes about 12 MiB beside what it imports: start few, and set"
            " object_store_memory",
        )
    else:
        yield Finding("memory", OK, found)


def _clock() -> Iterator[Finding]:
    with tempfile.NamedTemporaryFile(dir=node_directory.temporary_base()) as file:
        skew = abs(os.fstat(file.fileno()).st_mtime - time.time())
    if skew > _CLOCK_SKEW_S:
        yield Finding(
            "clock",
            WARNING,
            f"files are {skew:.1f} s away from the clock",
            "the temporary folder is on a network file system: set ZRAY_TMPDIR to a"
            " local one, or run NTP",
        )
    elif time.time() < 1.7e9:
        yield Finding("clock", WARNING, time.strftime("%Y-%m-%d"), "set the clock: run NTP")
    else:
        yield Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


# -- where nodes live --------------------------------------------------------------------------


def _folder() -> Iterator[Finding]:
    base = node_directory.temporary_base()
    longest = len(os.fsencode(os.path.abspath(base))) + _PATH_OF_NODE_BYTES
    if longest > IPC_PATH_BYTES_MAX:
        yield Finding(
            "temporary folder",
            FAILURE,
            f"{base} is too long for sockets",
            f"set ZRAY_TMPDIR to a path of at most"
            f" {IPC_PATH_BYTES_MAX - _PATH_OF_NODE_BYTES} bytes",
        )
        return
    try:
        with tempfile.TemporaryDirectory(prefix="zray-doctor-", dir=base) as folder:
            if os.stat(folder).st_mode & 0o077:
                yield Finding(
                    "temporary folder",
                    FAILURE,
                    f"{base} opens folders to others",
                    "set ZRAY_TMPDIR to a folder on a local file system",
                )
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.bind(os.path.join(folder, "socket"))
            os.close(node_directory.hold(folder))
    except OSError as error:
        yield Finding(
            "temporary folder",
            FAILURE,
            f"{base}: {error.strerror or error}",
            "set ZRAY_TMPDIR to a folder that you can write to, on a local file system",
        )
        return
    free = shutil.disk_usage(base).free
    if free < _DISK_BYTES_MIN:
        yield Finding(
            "temporary folder",
            WARNING,
            f"{base}, {size(free)} free",
            "make room, or set ZRAY_TMPDIR or spill_directory: objects that do not fit"
            " into memory go there",
        )
    else:
        yield Finding("temporary folder", OK, f"{base}, {size(free)} free")


def _settings() -> Iterator[Finding]:
    try:
        settings = configuration.resolve({})
    except errors.OptionError as error:
        yield Finding("settings", FAILURE, str(error), "correct it")
        return
    shown = ", ".join(
        f"{name}={value!r} ({settings.origins[name]})" for name, value in settings.values.items()
    )
    yield Finding("settings", OK, shown or "defaults")


def _nodes() -> Iterator[Finding]:
    for path in node_directories():
        pid = node_directory.holder_pid(path)
        if pid is not None:
            yield Finding("node", OK, f"runs in {path}, pid {pid}")
        elif is_leftover(path):
            yield Finding("node", WARNING, f"dead, left {path}", "zray-node doctor --clean")
        elif node_directory.dead_files(path):
            yield Finding(
                "node",
                WARNING,
                f"killed, its tables are in {path}",
                "zray-node start goes on from them; zray-node doctor --clean removes"
                " its sockets only",
            )
    last = node_address.remembered()
    if last is not None and node_directory.holder_pid(last) is None:
        yield Finding(
            "address auto",
            WARNING,
            f"the last node, in {last}, is gone",
            "zray-node start, or zray-node doctor --clean to forget it",
        )


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _shared_memory,
    _descriptors,
    _processes,
    _memory,
    _clock,
    _folder,
    _settings,
    _nodes,
)


# -- leftovers ---------------------------------------------------------------------------------


def node_directories() -> list[str]:
    """Return the directories of this user's nodes, dead ones included, that can be found."""
    base = Path(node_directory.temporary_base())
    found = {str(path) for path in base.glob("zray-*") if _is_ours(path)}
    found.update(path for path in node_address.remembered_all() if _is_ours(Path(path)))
    return sorted(found)


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    # lstat: a link that somebody else has put there must not lead us anywhere.
    return (
        path.is_dir()
        and not path.is_symlink()
        and status.st_uid == os.getuid()
        and ((path / "node.lock").exists() or (path / "node.log").exists())
    )


def is_leftover(path: str) -> bool:
    """Whether ``path`` is a temporary node's directory that nobody will remove any more."""
    if node_directory.holder_pid(path) is not None:
        return False
    report = _report(path)
    if report is not None:
        return bool(report.get("temporary"))
    # One that is just being started has no report yet; one that stays is never removed.
    if os.path.exists(os.path.join(path, "workers.log")):
        return False
    return (
        os.path.basename(path) != os.path.basename(node_directory.default_directory())
        and time.time() - os.stat(path).st_mtime > NODE_START_TIMEOUT_S
    )


def _report(path: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(path, "node.json")) as file:
            found: dict[str, Any] = json.load(file)
            return found
    except (OSError, ValueError):
        return None


def remove_leftovers() -> Iterator[str]:
    """Remove what dead nodes have left; yields each path that is gone."""
    for path in node_directories():
        if is_leftover(path):
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.exists(path):
                yield path
        elif node_directory.holder_pid(path) is None:
            for name in node_directory.dead_files(path):
                os.unlink(name)
                yield name
    known = node_address.remembered_all()
    for path in known:
        if node_directory.holder_pid(path) is None:
            node_address.forget(path)
    if known and not node_address.remembered_all():
        yield node_address.context_path()
