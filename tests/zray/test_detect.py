"""What a machine offers, read from machines built out of folders.

What    cgroup v1 and v2, memory, GPUs by the driver's files and by nvidia-smi, and what users say.
Never   depends on the machine it runs on, except to see that detection works there at all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from zray import detect
from zray.detect import detect_cpus, detect_gpus, detect_memory_bytes, node_resources
from zray.errors import OptionError

MIB = 1 << 20


def _machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:  2097152 kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _gpus(*minors: int, devices: tuple[int, ...] | None = None) -> dict[str, str]:
    """Files of a driver with these GPUs; only `devices` have a device file."""
    files = {f"dev/nvidia{minor}": "" for minor in (minors if devices is None else devices)}
    for place, minor in enumerate(minors):
        files[f"proc/driver/nvidia/gpus/0000:0{place}:00.0/information"] = (
            f"Model: \t A100\nGPU UUID: \t GPU-{minor}{minor}aa\nDevice Minor: \t {minor}\n"
        )
    return files


def test_without_cgroups_the_machine_counts(tmp_path: Path) -> None:
    root = _machine(tmp_path, {})
    assert detect_cpus(root=root, cpu_count=8) == 8
    assert detect_memory_bytes(root=root) == 2048 * MIB


def test_a_cgroup_v2_limit_counts_even_when_it_is_a_parents(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000",
            "sys/fs/cgroup/pod/app/memory.max": "max",
            "sys/fs/cgroup/pod/memory.max": str(100 * MIB),
        },
    )
    assert detect_cpus(root=root, cpu_count=8) == 2
    assert detect_memory_bytes(root=root) == 100 * MIB


def test_a_cgroup_v1_limit_counts(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/\n",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": str(64 * MIB),
        },
    )
    assert detect_cpus(root=root, cpu_count=8) == 3
    assert detect_memory_bytes(root=root) == 64 * MIB


def test_inside_a_container_the_top_of_the_mounted_tree_counts(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/of-the-host\n0::/../elsewhere\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(32 * MIB),
        },
    )
    assert detect_memory_bytes(root=root) == 32 * MIB


def test_a_limit_that_is_none_is_ignored(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        },
    )
    assert detect_cpus(root=root, cpu_count=4) == 4
    assert detect_memory_bytes(root=root) == 2048 * MIB


def test_there_is_always_one_cpu(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000"},
    )
    assert detect_cpus(root=root, cpu_count=4) == 1


def test_odd_files_set_no_limit(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        {
            "proc/self/cgroup": "nonsense\n0::/\n::\n",
            "sys/fs/cgroup/cpu.max": "a b c",
            "sys/fs/cgroup/memory.max": "lots",
        },
    )
    assert detect_cpus(root=root, cpu_count=4) == 4
    assert detect_memory_bytes(root=root) == 2048 * MIB


def test_without_proc_the_system_is_asked_for_memory(tmp_path: Path) -> None:
    assert detect_memory_bytes(root=tmp_path) > 64 * MIB


def test_this_machine_has_something() -> None:
    assert 1 <= detect_cpus() <= len(os.sched_getaffinity(0))
    assert detect_memory_bytes() > 64 * MIB


def test_no_driver_means_no_gpu(tmp_path: Path) -> None:
    root = _machine(tmp_path, {})
    assert detect_gpus(root=root, environ={"PATH": ""}) == ()
    assert detect_gpus(root=root, environ={"PATH": "", "CUDA_VISIBLE_DEVICES": "0,1"}) == ()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2,0", ("2", "0")),
        ("1,-1,2", ("1",)),
        ("0,7,1", ("0",)),
        ("GPU-22,1", ("GPU-22", "1")),
        ("GPU-ff", ()),
        ("MIG-1234", ("MIG-1234",)),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(
    tmp_path: Path, visible: str | None, expected: tuple[str, ...]
) -> None:
    root = _machine(tmp_path, _gpus(0, 1, 2))
    environ = {"PATH": ""} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert detect_gpus(root=root, environ=environ) == expected


def test_a_gpu_of_the_host_without_a_device_file_is_not_ours(tmp_path: Path) -> None:
    root = _machine(tmp_path, _gpus(0, 1, 2, devices=(1,)))
    assert detect_gpus(root=root, environ={"PATH": ""}) == ("0",)


def _nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": str(folder)}


def test_nvidia_smi_is_asked_where_the_driver_has_no_files(tmp_path: Path) -> None:
    environ = _nvidia_smi(tmp_path, "echo GPU-aa; echo GPU-bb")
    assert detect_gpus(root=tmp_path, environ=environ) == ("0", "1")
    environ["CUDA_VISIBLE_DEVICES"] = "GPU-b"
    assert detect_gpus(root=tmp_path, environ=environ) == ("GPU-b",)


def test_an_nvidia_smi_that_fails_means_no_gpu(tmp_path: Path) -> None:
    environ = _nvidia_smi(tmp_path, "echo NVIDIA-SMI has failed; exit 9")
    assert detect_gpus(root=tmp_path, environ=environ) == ()
    (tmp_path / "nvidia-smi").write_text("not a program")
    assert detect_gpus(root=tmp_path, environ=environ) == ()


def test_an_nvidia_smi_that_hangs_costs_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "GPU_QUERY_TIMEOUT_S", 0.2)
    environ = _nvidia_smi(tmp_path, "exec /bin/sleep 600")
    started = time.monotonic()
    assert detect_gpus(root=tmp_path, environ=environ) == ()
    assert time.monotonic() - started < 10


def test_what_is_detected_is_offered(tmp_path: Path) -> None:
    root = _machine(tmp_path, _gpus(0, 1))
    found = node_resources(root=root, environ={"PATH": ""}, object_store_bytes=1024 * MIB)
    assert found.total["memory"] == 1024 * MIB * 10_000
    assert found.total["CPU"] >= 10_000
    assert (found.total["GPU"], found.gpu_ids) == (20_000, ("0", "1"))


def test_what_is_given_wins(tmp_path: Path) -> None:
    root = _machine(tmp_path, _gpus(0, 1))
    found = node_resources(
        num_cpus=64,
        num_gpus=1,
        memory=5,
        resources={"disk": 0.5},
        root=root,
        environ={"PATH": ""},
    )
    assert found.total == {"CPU": 640_000, "GPU": 10_000, "memory": 50_000, "disk": 5_000}
    assert found.gpu_ids == ("0",)


def test_gpus_that_are_not_there_can_be_given_for_tests(tmp_path: Path) -> None:
    root = _machine(tmp_path, {})
    found = node_resources(num_gpus=2, root=root, environ={"PATH": ""})
    assert found.gpu_ids == ("0", "1")
    assert "GPU" not in node_resources(num_gpus=0, root=root, environ={"PATH": ""}).total


def test_more_gpus_than_are_visible_are_refused(tmp_path: Path) -> None:
    root = _machine(tmp_path, {})
    environ = {"PATH": "", "CUDA_VISIBLE_DEVICES": "3"}
    assert node_resources(num_gpus=1, root=root, environ=environ).gpu_ids == ("3",)
    with pytest.raises(OptionError, match="CUDA_VISIBLE_DEVICES shows 1"):
        node_resources(num_gpus=2, root=root, environ=environ)


@pytest.mark.parametrize(
    "given",
    [
        {"num_cpus": -1},
        {"num_cpus": "two"},
        {"num_gpus": 0.5},
        {"memory": float("inf")},
        {"resources": {"GPU": 1}},
        {"resources": {"disk": -1}},
    ],
    ids=str,
)
def test_a_wrong_amount_is_refused_with_its_name(tmp_path: Path, given: dict[str, object]) -> None:
    root = _machine(tmp_path, {})
    with pytest.raises(OptionError) as caught:
        node_resources(root=root, environ={"PATH": ""}, **given)  # type: ignore[arg-type]
    assert caught.value.option in given
