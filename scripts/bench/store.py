"""A store that is smaller than what goes through it: 1000 arrays of 100 MB through 1 GB.

What    Time of a put and what is left behind when each array is dropped before the next; then
        arrays that are all kept, so that most of them go to disk and come back.
Caller  run.py.
Never   writes more to disk than a quarter of what is free there: sizes beyond it are left out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import zray
from scripts.bench import bench_node, limits, measuring
from scripts.bench.bench_node import Bench, started_node
from scripts.bench.curve import Curve, Row

TITLE = "A small store"
ABOUT = """What is dropped makes room at once and never touches the disk: the extents of one array
are the next one's. What is kept is written to disk, oldest first, and read back when somebody gets
it. The limits are np.copyto, and a file written and read by itself (the page cache included, as
spilled objects have it)."""
MB = 1_000_000


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    # A tenth of the size in a quick run: the same number of arrays fits.
    scale = 10 if bench.quick else 1
    nbytes, store_bytes = 100 * MB // scale, 1000 * MB // scale
    array = np.arange(nbytes // 8, dtype=np.int64)
    return [
        _dropped(bench, array, store_bytes),
        _kept(bench, array, store_bytes),
    ]


def _dropped(bench: Bench, array: Any, store_bytes: int) -> Curve:
    curve = Curve(
        "dropped",
        f"Puts of {_size(array.nbytes)} through a store of {_size(store_bytes)}, each dropped",
        size="puts",
        per_unit=("ms per put",),
        plotted=("ms per put", "raw copy ms"),
        unit="ms per put",
        note="One driver puts an array, drops it, puts the next. Peak: the most of the store that "
        "was taken after a put. Spilled: bytes on disk at the end, and objects read back.",
    )
    raw_s = limits.copy_s(array.nbytes, bench.seconds(0.5))
    for count in bench.sizes(10, 100, 1000, quick=100):
        with started_node(bench, store_bytes=store_bytes) as node:
            before = measuring.anonymous_bytes(node)
            used: list[int] = []
            total_s = measuring.elapsed_s(partial(_put, array, count, used))
            store = bench_node.store()
            grown = measuring.anonymous_bytes(node) - before
        curve.add(
            {
                "puts": count,
                "ms per put": total_s * 1e3 / count,
                "raw copy ms": raw_s * 1e3,
                "ratio": total_s / count / raw_s,
                "GB/s": array.nbytes * count / total_s / 1e9,
                "peak MB": max(used) / MB,
                "spilled MB": store["spill_bytes"] / MB,
                "read back": store["restores"],
                "node MB more": max(0, grown) / MB,
            }
        )
    return curve


def _put(array: Any, count: int, used: list[int]) -> None:
    for number in range(count):
        ref = zray.put(array)
        if number % max(1, count // 10) == 0:
            used.append(bench_node.store()["used_bytes"])
    assert (zray.get(ref)[::4096] == array[::4096]).all(), "the last array is another one"


def _kept(bench: Bench, array: Any, store_bytes: int) -> Curve:
    curve = Curve(
        "kept",
        f"Arrays of {_size(array.nbytes)} kept, in a store of {_size(store_bytes)}",
        size="arrays",
        per_unit=("put ms", "get ms"),
        plotted=("put ms", "get ms", "raw write ms", "raw read ms"),
        unit="ms per array",
        note="All are put, then all are got in that order and looked at. Raw: a file of that size "
        "written and read, without the copy into shared memory.",
    )
    free = shutil.disk_usage(bench.folder).free
    for count in bench.sizes(20, 30, 40, quick=30):
        if count * array.nbytes > free / 4:
            continue
        raw = _file_ms(bench.folder, array)
        with started_node(bench, store_bytes=store_bytes):
            refs: list[Any] = []
            put_s = measuring.elapsed_s(partial(_keep, refs, array, count))
            spilled = bench_node.store()["spill_bytes"]
            got_s = measuring.elapsed_s(partial(_look, refs, array))
            restores = bench_node.store()["restores"]
            refs.clear()
        row: Row = {
            "arrays": count,
            "put ms": put_s * 1e3 / count,
            "get ms": got_s * 1e3 / count,
            "spilled MB": spilled / MB,
            "read back": restores,
        }
        curve.add(row, raw)
    return curve


def _keep(refs: list[Any], array: Any, count: int) -> None:
    refs.extend(zray.put(array) for _ in range(count))


def _look(refs: list[Any], array: Any) -> None:
    for ref in refs:
        assert (zray.get(ref)[::4096] == array[::4096]).all(), "an array came back as another one"


def _file_ms(folder: Path, array: Any) -> Row:
    path = folder / "raw"

    def timed_ms(operation: Callable[[], Any]) -> float:
        return measuring.elapsed_s(operation) * 1e3

    row: Row = {
        "raw write ms": timed_ms(lambda: path.write_bytes(memoryview(array).cast("B"))),
        "raw read ms": timed_ms(path.read_bytes),
    }
    os.unlink(path)
    return row


def _size(nbytes: int) -> str:
    return f"{nbytes // MB} MB" if nbytes < 1000 * MB else f"{nbytes / 1e9:g} GB"
