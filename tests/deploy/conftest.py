"""A folder with fake commands for each test of the launchers.

What    The fixture `play`.
Caller  tests/deploy.
Never   starts a node.
"""

from pathlib import Path

import pytest

from tests.deploy.fakes import Play, new_play


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Return a play in a folder of its own."""
    return new_play(tmp_path / "play")
