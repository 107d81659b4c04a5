"""mypy and pyright find the types that zray promises, and the errors.

What    Runs both checkers, strict, on the programs beside this file: what they accept must be
        accepted whole, and what they refuse must be refused on the marked lines and no others.
Never   runs the programs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
ACCEPTED = "accepted.py"
ACCEPTED_BY_PYRIGHT = "accepted_pyright.py"
REFUSED = "refused.py"

Errors = dict[str, dict[int, list[str]]]


def _marked_lines(name: str) -> set[int]:
    lines = (PROGRAMS / name).read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# error")}


def _collect(found: list[tuple[str, int, str]]) -> Errors:
    errors: Errors = {name: defaultdict(list) for name in (ACCEPTED, ACCEPTED_BY_PYRIGHT, REFUSED)}
    for path, line, text in found:
        name = Path(path).name
        # What is wrong inside zray is for the checkers' own run over zray to say.
        if Path(path).parent.name == PROGRAMS.name and name in errors:
            errors[name][line].append(text)
    return errors


@pytest.fixture(scope="module")
def mypy_errors(pytestconfig: pytest.Config) -> Errors:
    pytest.importorskip("mypy")
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy-programs")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--no-error-summary", "--hide-error-context", "--cache-dir", str(cache)]
    command += ["--config-file=", "--explicit-package-bases", "--output=json"]
    command += [str(PROGRAMS / name) for name in (ACCEPTED, REFUSED)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    return _collect(
        [(one["file"], one["line"], one["message"]) for one in found if one["severity"] == "error"]
    )


@pytest.fixture(scope="module")
def pyright_errors(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'zray[dev]'")
    project = tmp_path_factory.mktemp("pyright")
    # pyright looks for files below its settings only.
    shutil.copytree(PROGRAMS, project / PROGRAMS.name)
    settings = {
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
    }
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(project)]
    command += ["--pythonpath", sys.executable]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    assert report["summary"]["filesAnalyzed"] == len(list(PROGRAMS.glob("*.py")))
    found = report["generalDiagnostics"]
    return _collect(
        [
            (one["file"], one["range"]["start"]["line"] + 1, one["message"])
            for one in found
            if one["severity"] == "error"
        ]
    )


@pytest.mark.timeout(240)
def test_mypy_accepts_what_is_right_with_the_right_types(mypy_errors: Errors) -> None:
    assert not mypy_errors[ACCEPTED]


@pytest.mark.timeout(240)
def test_mypy_refuses_each_wrong_line_and_no_other(mypy_errors: Errors) -> None:
    assert set(mypy_errors[REFUSED]) == _marked_lines(REFUSED)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [ACCEPTED, ACCEPTED_BY_PYRIGHT])
def test_pyright_accepts_what_is_right_with_the_right_types(
    pyright_errors: Errors, name: str
) -> None:
    assert not pyright_errors[name]


@pytest.mark.timeout(240)
def test_pyright_refuses_each_wrong_line_and_no_other(pyright_errors: Errors) -> None:
    assert set(pyright_errors[REFUSED]) == _marked_lines(REFUSED)


def test_the_refused_program_is_about_what_zray_promises() -> None:
    text = (PROGRAMS / REFUSED).read_text()
    assert 'Counter.remote(3).add.remote("x")  # error' in text
    assert len(_marked_lines(REFUSED)) > 25
