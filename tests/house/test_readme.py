"""The README and the tutorial: short enough, links that lead somewhere, programs that run.

What    The python blocks of a page are run one after another as one program; a text block behind
        one of them is what it prints, where "..." stands for what differs from run to run. The
        README's commands run as well, against its program; those that install are run elsewhere.
Caller  scripts/test, scripts/check.
Never   installs anything, or touches the user's own node.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.house.sources import ROOT, report, walk
from tests.leaks import Snapshot

README = ROOT / "README.md"
README_LINES_MAX = 150
RUN_TIMEOUT_S = 50
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
SEPARATOR = "\x1e"
# Commands that make an environment or train for a minute: who runs them instead.
RUN_ELSEWHERE = {
    "scripts/demo": "tests/demo/test_cartpole.py",
    "scripts/test": "scripts/test",
    "pip install .": "tests/house/test_packaging.py",
    "zray-node start --head": "tests/multinode/test_start_join.py",
    "zray-node start --join 10.0.0.7:6380": "tests/multinode/test_start_join.py",
}
MATCHES = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pages() -> list[Path]:
    """Return the pages for people, README first."""
    return [README, *(path for path in walk(ROOT / "docs") if path.suffix == ".md")]


def programs(page: Path) -> list[tuple[str, str | None]]:
    """Return (code, expected output or None) of each python block of a page."""
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    found: list[tuple[str, str | None]] = []
    for at, (language, code) in enumerate(blocks):
        if language == "python":
            after = blocks[at + 1] if at + 1 < len(blocks) else ("", "")
            found.append((code, after[1] if after[0] == "text" else None))
    return found


def pages_with_programs() -> list[str]:
    """Return the names of pages that have a program to run."""
    return [str(page.relative_to(ROOT)) for page in pages() if programs(page)]


def test_the_readme_can_be_read_in_five_minutes():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) < README_LINES_MAX


def test_every_link_leads_to_a_file():
    problems = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not problems, report(problems)


@pytest.mark.cluster
@pytest.mark.parametrize("name", pages_with_programs())
def test_the_programs_of_a_page_run_and_print_what_it_says(name: str, tmp_path: Path):
    if not (ROOT / "brokers" / "node.py").exists():
        pytest.skip("brokers/node.py is not written yet")
    blocks = programs(ROOT / name)
    script = tmp_path / "page.py"
    separator = f"print({SEPARATOR!r}, end='', flush=True)\n"
    script.write_text("".join(code + separator for code, _ in blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.split(SEPARATOR)
    for (code, expected), got in zip(blocks, printed, strict=False):
        if expected is not None:
            right = doctest.OutputChecker().check_output(expected, got, MATCHES)
            assert right, f"{code}\nshould print\n{expected}\nand prints\n{got}"


def commands(page: Path) -> list[list[str]]:
    """Return the commands of each shell block of a page, without their comments."""
    return [
        [line.partition("  #")[0].strip() for line in code.splitlines() if line.strip()]
        for language, code in BLOCK.findall(page.read_text(encoding="utf-8"))
        if language == "sh"
    ]


def test_every_command_of_the_readme_that_is_not_run_here_is_run_by_another_test():
    there = {command: test for command, test in RUN_ELSEWHERE.items() if (ROOT / test).exists()}
    assert there == RUN_ELSEWHERE
    run_here = [block for block in commands(README) if not set(block) & set(RUN_ELSEWHERE)]
    assert run_here == [each for each in commands(README) if set(each) - set(RUN_ELSEWHERE)]
    assert run_here, "the command line is shown"


@pytest.mark.cluster
def test_the_commands_of_the_readme_run_its_program(run_folder: Path, no_leaks: Snapshot):
    from tests.cluster.nodes import Place

    place = Place(Path(tempfile.mkdtemp(prefix="r", dir=run_folder)))
    (code, expected), *_ = programs(README)
    place.program(code, "program.py")
    place.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{place.env['PATH']}"
    place.env["PYTHONPATH"] = str(ROOT)
    try:
        for block in commands(README):
            if set(block) & set(RUN_ELSEWHERE):
                continue
            done = subprocess.run(
                ["bash", "-e", "-c", "\n".join(block)],
                cwd=place.folder,
                env=place.env,
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT_S,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert expected is not None
            assert expected in done.stdout
            place.await_no_process()
    finally:
        place.close()
        shutil.rmtree(place.folder)
