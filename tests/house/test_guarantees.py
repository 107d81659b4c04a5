"""The guarantees page names tests; each of them must exist.

What    Looks for every `test_…` of docs/explanation/guarantees.md among the tests.
Never   runs them: pytest does that by itself.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_named_on_the_guarantees_page_exists():
    page = (ROOT / "docs/explanation/guarantees.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15, "the page names no tests any more"
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert named <= defined, f"no such test: {sorted(named - defined)}"
