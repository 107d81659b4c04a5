"""What is in the packages that users install: zray, whole, and nothing beside it.

What    Builds sdist, wheel, and wheel from sdist of a copy of the project; unpacks and imports.
Caller  scripts/test.
Never   builds in the project itself: a build/ folder left there would leak into the next wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house.sources import PACKAGES, ROOT, python_files

HOOK = (
    "import sys, setuptools.build_meta as b;print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
)


@dataclass(frozen=True)
class Built:
    """The three archives."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path

    @property
    def wheels(self) -> tuple[Path, Path]:
        """Return both wheels: a build tool may make either."""
        return self.wheel, self.wheel_of_sdist


def build(kind: str, project: Path, target: Path) -> Path:
    """Call the build backend in ``project``; needs no network, because all it needs is here."""
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", HOOK, kind, str(target)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the archives from a copy that has only what git would have."""
    place = tmp_path_factory.mktemp("packaging")
    project = place / "project"
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, project / name)
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name,
            project / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    sdist = build("sdist", project, place / "sdist")
    wheel = build("wheel", project, place / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return Built(sdist, wheel, build("wheel", unpacked, place / "again"))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel into a folder of its own: what pip does, less the dependencies."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(target)
    return target


def run_installed(installed: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where the unpacked wheel is found first."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["brokers", "actors"])
def test_the_two_folders_are_linked_into_zray(name: str):
    link = ROOT / "zray" / name
    assert link.is_symlink(), "a copy would be a second module; git must keep the link"
    assert os.readlink(link) == f"../{name}"


def test_a_wheel_installs_zray_and_no_other_name(built: Built):
    for wheel in built.wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            (top_level,) = [name for name in names if name.endswith("top_level.txt")]
            assert archive.read(top_level).decode().split() == ["zray"]
        tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        assert tops == {"zray"}


def test_every_module_is_in_each_wheel_as_a_file(built: Built):
    wanted = {
        source.module.replace(".", "/") + ("/__init__" * is_package(source.path)) + ".py"
        for source in python_files(*PACKAGES)
    }
    assert {"zray/brokers/__init__.py", "zray/actors/__init__.py"} <= wanted
    for wheel in built.wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        assert not wanted - names, f"{wheel.parent.name} lacks {sorted(wanted - names)}"


def is_package(path: Path) -> bool:
    """Return whether ``path`` is the file of a package."""
    return path.name == "__init__.py"


def test_a_wheel_made_from_the_sdist_is_the_same_wheel(built: Built):
    contents = []
    for wheel in built.wheels:
        with zipfile.ZipFile(wheel) as archive:
            contents.append(
                {i.filename: i.CRC for i in archive.infolist() if "dist-info" not in i.filename}
            )
    assert contents[0] == contents[1]


def test_a_wheel_carries_licence_types_and_the_command(built: Built):
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "zray-node = zray.cli:main" in archive.read(entry_points).decode()
    assert any(name.endswith("/LICENSE") for name in names)
    assert "zray/py.typed" in names


def test_an_installed_zray_brings_its_brokers_and_actors(installed: Path):
    done = run_installed(
        installed, "import zray.brokers, zray.actors; print(zray.brokers.__file__)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))


@pytest.mark.parametrize("name", ["brokers", "actors"])
def test_an_installed_zray_leaves_a_users_names_alone(installed: Path, name: str):
    done = run_installed(installed, f"import {name}")
    assert done.returncode != 0
    assert f"No module named '{name}'" in done.stderr


def test_a_users_own_actors_folder_works_beside_zray(installed: Path, tmp_path: Path):
    folder = tmp_path / "actors"
    folder.mkdir()
    (folder / "billing.py").write_text("RATE = 7\n")
    main = tmp_path / "main.py"
    main.write_text("import zray.actors\nfrom actors import billing\nprint(billing.RATE)\n")
    done = subprocess.run(
        [sys.executable, str(main)],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "7\n", done.stderr
