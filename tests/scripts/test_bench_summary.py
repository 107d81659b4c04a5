"""The numbers in short: which rows a run gives, when a budget is held, where they are written.

What    The table from answers made by hand, and a page rewritten between its marks.
"""

from __future__ import annotations

from typing import Any

import pytest

from scripts.bench import run, summary
from scripts.bench.curve import Answer, Curve
from tests.house.sources import ROOT


def answer(question: str, curve: str, *rows: dict[str, Any]) -> Answer:
    return Answer(question, question, "", [Curve(curve, curve, rows=list(rows))], 1.0)


def call(what: str, **cells: Any) -> dict[str, Any]:
    return {"what": what, "p50 µs": None, "per s": None, **cells}


CALLS = answer(
    "calls",
    "one-driver",
    call("actor call, synchronous", **{"p50 µs": 80.0, "ratio": 1.6}),
    call("task, synchronous", **{"p50 µs": 300.0, "ratio": 3.1}),
    call("tasks, asynchronous", **{"per s": 120_000.0, "ratio": 0.25}),
    call("actor calls, asynchronous", **{"per s": 50_000.0, "ratio": 0.1}),
)
PAYLOAD = answer(
    "payload",
    "us",
    {"bytes": 0, "put µs": 9.0, "get µs": 2.0},
    {"bytes": 1 << 20, "put µs": 151.0, "get µs": 29.0},
    {"bytes": 1 << 30, "put µs": 9e5, "get µs": 8.0},
)


def cells(*answers: Answer, readme: bool = False) -> dict[str, list[str]]:
    """Return the table's rows by their first cell."""
    lines = summary.table(answers, readme=readme).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_a_ratio_is_judged_against_its_limit_and_a_rate_the_other_way_round():
    rows = cells(CALLS)
    assert rows["actor call, synchronous"] == [
        *("80.0 µs, 1.60 ×", "≤ 1.6 × a raw ZeroMQ round trip", "yes")
    ]
    assert rows["task, synchronous"][2] == "**no**"
    assert rows["tasks, asynchronous"] == [
        *("120,000 per s, 0.25 ×", "≥ 0.25 × a bare pipeline of batches", "yes")
    ]
    assert rows["actor calls, asynchronous"][2] == "**no**"


def test_a_value_is_judged_by_itself_and_the_worst_counts_where_all_must_hold():
    rows = cells(PAYLOAD)
    assert rows["put of 1 MiB"] == ["151 µs", "≤ 150 µs", "**no**"]
    assert rows["get of an array of any size"] == ["29.0 µs", "≤ 30.0 µs", "yes"]


def test_what_was_not_measured_has_no_row():
    assert set(cells(PAYLOAD)) == {"put of 1 MiB", "get of an array of any size"}
    assert summary.table([]) == ""
    failed = Answer("calls", "Calls", "", [], 1.0, "it hung")
    assert summary.table([failed]) == ""


def test_the_readme_has_a_part_of_the_rows():
    rates = answer("payload", "gb-s", {"bytes": 128 << 20, "put GB/s": 5.0, "ratio": 0.9})
    assert "put of 128 MiB" in cells(rates)
    assert "put of 128 MiB" not in cells(rates, CALLS, readme=True)
    assert "task, synchronous" in cells(rates, CALLS, readme=True)


def test_a_page_is_rewritten_between_its_marks_alone():
    page = f"before\n{summary.BEGIN}\nold\n{summary.END}\nbehind\n"
    assert summary.rewritten(page, "new") == page.replace("old", "new")


@pytest.mark.parametrize("page", ["no marks", summary.BEGIN, f"{summary.END} {summary.BEGIN}"])
def test_a_page_without_marks_is_refused(page):
    with pytest.raises(ValueError, match="numbers"):
        summary.rewritten(page, "new")


def test_the_readme_of_this_project_has_the_marks():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert summary.rewritten(text, "new") != text


def test_every_budget_belongs_to_a_question_and_every_question_explains_itself(capsys):
    assert {budget.question for budget in summary.BUDGETS} <= set(run.QUESTIONS)
    with pytest.raises(SystemExit):
        run.parsed(["--help"])
    told = capsys.readouterr().out.splitlines()
    for name in run.QUESTIONS:
        (line,) = [line for line in told if line.startswith(f"  {name} ")]
        assert len(line.split()) > 5, line


def test_the_rows_of_the_readme_are_not_written_from_half_of_the_questions(capsys):
    with pytest.raises(SystemExit):
        run.parsed(["--readme", "calls"])
    assert "startup" in capsys.readouterr().err
    assert run.parsed(["--readme", *summary.questions_of_readme()]).readme
    assert run.parsed(["--readme"]).readme
