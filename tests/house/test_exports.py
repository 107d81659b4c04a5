"""What `import zray` gives, and what it costs.

What    __all__ is what the module has, in one place; importing it is quick and loads nothing big.
Caller  scripts/test, scripts/check.
Never   measures in this process: its modules are loaded already.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.house.sources import ROOT, report

IMPORT_S_MAX = 0.1
RUNS = 5
# Each costs more than all of zray: a broker or a script that only asks for help pays none of it.
LAZY = (
    *("asyncio", "cloudpickle", "concurrent.futures", "lmdb", "multiprocessing", "numpy"),
    *("psutil", "rich", "typer", "zmq"),
)


def run(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_exported_name_is_there_and_listed_once():
    import zray

    assert list(zray.__all__) == sorted(set(zray.__all__)), "keep __all__ sorted, each name once"
    missing = [name for name in zray.__all__ if getattr(zray, name, None) is None]
    assert not missing, report(missing)
    unlisted = set(zray.__all__) - set(dir(zray))
    assert not unlisted, f"dir(zray) lacks {unlisted}: completion in a shell would not offer them"


def test_an_unknown_name_is_an_attribute_error():
    import zray

    with pytest.raises(AttributeError, match="no_such_name"):
        zray.no_such_name


def test_the_version_is_that_of_the_project():
    import zray

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert found is not None
    assert zray.__version__ == found[1]


def test_importing_zray_takes_less_than_a_tenth_of_a_second():
    """Best of five: the question is what the import costs, not what else the machine does."""
    code = "import time; t = time.perf_counter(); import zray; print(time.perf_counter() - t)"
    seconds = min(float(run(code)) for _ in range(RUNS))
    assert seconds < IMPORT_S_MAX, f"import zray took {seconds:.3f} s"


def test_importing_zray_loads_no_heavy_library():
    code = "import json, sys, zray; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(run(code)))
    heavy = [name for name in LAZY if name in loaded]
    assert not heavy, f"import zray loads {heavy}"


@pytest.mark.parametrize("package", ["brokers", "actors"])
def test_a_half_of_zray_refuses_to_be_imported_by_its_folder_name(package: str):
    code = f"import {package}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"import zray.{package}" in done.stderr
