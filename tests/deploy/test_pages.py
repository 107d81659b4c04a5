"""The pages on clusters: what they name exists.

What    Tests, files, constants and messages of docs/explanation/{threat-model,cluster}.md and the
        how-tos of scripts/deploy are looked for in the tree.
Caller  scripts/test.
Never   judges whether what is said of them is true.
"""

from __future__ import annotations

import re

import pytest

from tests.house.sources import ROOT, python_files
from zray.protocol import link_messages
from zray.protocol.messages import MESSAGES

EXPLANATION = ROOT / "docs" / "explanation"
PAGES = [
    *(EXPLANATION / name for name in ("threat-model.md", "cluster.md")),
    *sorted((ROOT / "docs" / "how-to").glob("deploy-*.md")),
]


def text_of(name: str) -> str:
    return (EXPLANATION / name).read_text(encoding="utf-8")


def quoted(text: str) -> set[str]:
    """Return what stands between single backticks, without code blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def test_every_test_that_the_threat_model_names_exists():
    named = {word for word in quoted(text_of("threat-model.md")) if word.startswith("test_")}
    assert len(named) > 30
    defined = {
        name
        for source in python_files("tests")
        for name in re.findall(r"def (test_\w+)\(", source.text)
    }
    assert sorted(named - defined) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    folders = ("", "brokers", "zray/net")
    names = {word for word in quoted(page.read_text(encoding="utf-8"))}
    files = {word for word in names if re.fullmatch(r"[\w./-]+\.(?:py|md|yaml|sh)", word)}
    files |= {word for word in names if re.fullmatch(r"(?:scripts|zray|brokers)/[\w./-]+", word)}
    files = {word for word in files if word != "train.py"}
    lost = [
        word for word in sorted(files) if not any((ROOT / each / word).exists() for each in folders)
    ]
    assert lost == []


def test_every_bound_that_the_threat_model_names_is_in_the_code():
    named = {
        word for word in quoted(text_of("threat-model.md")) if re.fullmatch(r"_?[A-Z_]{8,}", word)
    }
    assert len(named) > 6
    code = "\n".join(source.text for source in python_files("zray", "brokers"))
    lost = [name for name in sorted(named) if not re.search(rf"^{name} = ", code, re.MULTILINE)]
    assert lost == []


def test_every_message_that_the_map_names_is_in_the_tables_and_it_names_those_of_links():
    text = text_of("cluster.md")
    own = {name for name, kind in vars(link_messages).items() if type(kind) is int}
    links = own - {row.name for row in MESSAGES}
    known = own | {row.name for row in MESSAGES}
    # Constants are quoted, messages are not.
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", re.sub("`[^`\n]*`", "", text)))
    assert sorted(named - known) == []
    missing = {name for name in links if not re.search(rf"\b{name}\b", text)}
    assert sorted(missing) == []
