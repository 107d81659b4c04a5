"""What this machine offers: CPUs, memory and GPUs, as far as this process may use them.

What    CPUs: the least of affinity, count and cgroup quota. Memory: the least of the machine's and
        the cgroup's. GPUs: those whose device file is here and that CUDA_VISIBLE_DEVICES lets
        through. cgroup v1 and v2, from the process's own group up to the root.
Caller  zray/launch.py and `zray-node start`, once per node.
Never   hangs: a GPU driver that does not answer costs GPU_QUERY_TIMEOUT_S. Never raises because a
        file is missing or odd: what cannot be read sets no limit. `root` is where files are looked
        for, so that a test can build a machine out of a folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zray.errors import OptionError

from .option_checks import WrongValueError, amount, custom_resources
from .protocol.units import CPU, GPU, MEMORY, to_units

GPU_QUERY_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What a node offers: units of 1/10000 by name, and how CUDA_VISIBLE_DEVICES names its GPUs."""

    total: Mapping[str, int]
    gpu_ids: tuple[str, ...]


def node_resources(
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_bytes: int = 0,
    environ: Mapping[str, str] = os.environ,
    root: str | Path = "/",
) -> NodeResources:
    """Return what a node offers: what is given, and what is detected where nothing is given.

    Args:
        num_cpus: CPUs, possibly more than there are.
        num_gpus: GPUs, a whole number. More than are detected is allowed, for tests on machines
            without any, unless CUDA_VISIBLE_DEVICES says how many there are.
        memory: bytes that tasks and actors may ask for.
        resources: amounts of custom resources by name.
        object_store_bytes: size of the object store, taken off the detected memory.
        environ: environment variables.
        root: where the machine's files are looked for.

    Raises OptionError for a value that is no amount, or more GPUs than are visible.
    """
    offered: dict[str, Any] = {
        "num_cpus": num_cpus if num_cpus is not None else detect_cpus(root=root),
        "memory": memory
        if memory is not None
        else max(0, detect_memory_bytes(root=root) - object_store_bytes),
    }
    gpu_ids = detect_gpus(environ=environ, root=root) if num_gpus != 0 else ()
    if num_gpus is not None:
        gpu_ids = _given_gpus(_checked("num_gpus", num_gpus), gpu_ids, environ)
    custom = _checked("resources", resources or {})
    total = {
        CPU: to_units(_checked("num_cpus", offered["num_cpus"])),
        MEMORY: to_units(_checked("memory", offered["memory"])),
        GPU: to_units(len(gpu_ids)),
        **{name: to_units(share) for name, share in custom.items()},
    }
    return NodeResources({name: units for name, units in total.items() if units}, gpu_ids)


def detect_cpus(*, root: str | Path = "/", cpu_count: int | None = None) -> int:
    """Return how many CPUs this process may use, at least 1.

    A cgroup quota of 2.5 CPUs counts as 2: a third busy process would stall all three.

    Args:
        root: where cgroup files are looked for.
        cpu_count: CPUs of the machine that the process may run on; None is ask the system.
    """
    if cpu_count is None:
        # macOS has no affinity.
        affinity = getattr(os, "sched_getaffinity", None)
        cpu_count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas: list[float] = [cpu_count]
    for group in _cgroups(Path(root), "cpu"):
        text = _read(group / "cpu.max") or " ".join(
            (_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))
        )
        quota, _, period = text.partition(" ")
        if _is_count(quota) and _is_count(period):
            quotas.append(int(quota) / int(period))
    return max(1, int(min(quotas)))


def detect_memory_bytes(*, root: str | Path = "/") -> int:
    """Return how many bytes this process may use: the machine's, or the least of its cgroups'."""
    limits = [int(text) for text in _meminfo_total(Path(root)) if _is_count(text)]
    limits = [kibibytes * 1024 for kibibytes in limits]
    if not limits:
        import psutil

        limits = [int(psutil.virtual_memory().total)]
    for group in _cgroups(Path(root), "memory"):
        text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        # A cgroup v1 without a limit says 2**63 less a page, which `min` ignores.
        if _is_count(text):
            limits.append(int(text))
    return min(limits)


def detect_gpus(
    *, environ: Mapping[str, str] = os.environ, root: str | Path = "/"
) -> tuple[str, ...]:
    """Return the GPUs of this process as entries for CUDA_VISIBLE_DEVICES, in its order."""
    visible = _visible_gpus(environ)
    if visible == ():
        return ()
    uuids = _gpus_of_driver(Path(root)) or _gpus_of_nvidia_smi(environ)
    if visible is None:
        return tuple(str(index) for index in range(len(uuids)))
    found: list[str] = []
    for entry in visible:
        known = int(entry) < len(uuids) if entry.isdigit() else _is_uuid_of(entry, uuids)
        # CUDA ends the list at the first entry that names no device, and so does this.
        if not known:
            break
        found.append(entry)
    return tuple(found)


def _given_gpus(
    count: float, detected: tuple[str, ...], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """Return ids for as many GPUs as the user says there are."""
    if count != int(count):
        raise OptionError(f"a node's num_gpus={count} must be a whole number", option="num_gpus")
    visible = _visible_gpus(environ)
    if visible is not None and count > len(visible):
        raise OptionError(
            f"num_gpus={int(count)}, but CUDA_VISIBLE_DEVICES shows {len(visible)} GPUs: ask for "
            "no more than those, or unset it",
            option="num_gpus",
        )
    if count <= len(detected):
        return detected[: int(count)]
    return visible[: int(count)] if visible else tuple(str(i) for i in range(int(count)))


def _visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, or None where it is not set."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry or entry in ("-1", "NoDevFiles"):
            break
        entries.append(entry)
    return tuple(entries)


def _is_uuid_of(entry: str, uuids: list[str]) -> bool:
    """CUDA takes a unique prefix of a UUID; a MIG slice is not listed, so it is believed."""
    return entry.startswith("MIG-") or any(uuid.startswith(entry) for uuid in uuids if uuid)


def _gpus_of_driver(root: Path) -> list[str]:
    """Return the UUIDs of the driver's GPUs by PCI address, asking no process.

    Inside a container the driver may list GPUs of the host whose device file is not here.
    """
    uuids: list[str] = []
    for information in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        lines = (line.partition(":") for line in _read(information).splitlines())
        told = {key.strip(): value.strip() for key, _, value in lines}
        if (root / f"dev/nvidia{told.get('Device Minor', '?')}").exists():
            uuids.append(told.get("GPU UUID", ""))
    return uuids


def _gpus_of_nvidia_smi(environ: Mapping[str, str]) -> list[str]:
    """Return the UUIDs that nvidia-smi lists, for systems such as WSL without the driver's files.

    Costs a process where nvidia-smi is installed, and a search of PATH where it is not.
    """
    import shutil

    program = shutil.which("nvidia-smi", path=environ.get("PATH", ""))
    if program is None:
        return []
    query = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        child = subprocess.Popen(
            query, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return []
    try:
        listed, _ = child.communicate(timeout=GPU_QUERY_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        # A child stuck in the driver does not even die of SIGKILL. Waiting for it would hang.
        try:
            child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            pass
        if child.stdout is not None:
            child.stdout.close()
        return []
    return listed.decode(errors="replace").split() if child.returncode == 0 else []


def _checked(name: str, value: Any) -> Any:
    """Return a value of `node_resources`, or raise OptionError that names it."""
    check = custom_resources if name == "resources" else amount
    # A node may have any number of GPUs; the rule that more than one are whole is a request's.
    checked_as = "" if name == "num_gpus" else name
    try:
        return check(checked_as, value)
    except WrongValueError as wrong:
        raise OptionError(f"node option {name}={value!r}: {wrong}", option=name) from None


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of its parents, for v2 and for v1.

    In a container the path may be the host's while the mounted tree starts at the container's own
    group: folders that do not exist are harmless, and the top of the tree is always yielded.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / (controller if controllers else "")
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents) if group.parts else (group,):
            yield top / folder


def _meminfo_total(root: Path) -> Iterator[str]:
    """Yield the machine's memory in KiB, if /proc tells it."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            yield line.split()[1]


def _read(path: Path) -> str:
    """Return a small file's text without the newline, or "" where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _is_count(text: str) -> bool:
    """A number above zero; "max", "-1" and "" say that there is no limit."""
    return text.isdigit() and int(text) > 0
