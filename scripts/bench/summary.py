"""The numbers in short: what zray costs next to what it may cost.

What    One row for each budget, found in the answers of a run; the table of the report, and the
        handful of rows between the marks in a README.
Caller  run.py, report.py.
Never   measures, or keeps a number of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from scripts.bench.curve import Answer, Curve, Row, number, shown

BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """One thing that is measured, and what it may cost.

    Args:
        what: in words.
        question: who measures it.
        curve: of that question.
        value: takes the number shown from its row.
        unit: of that number.
        bound: what is judged may not be more; less, where ``at_least``.
        where: the cell that names the row; None takes the last row.
        judged: the column that is judged; "" judges the value.
        limit: what a ratio is to; "" where the bound is in the unit of the value.
        at_least: more is better.
        worst: the largest value of all rows counts.
        in_readme: whether the README repeats it.
    """

    what: str
    question: str
    curve: str
    _: KW_ONLY
    value: Callable[[Row], float]
    unit: str
    bound: float
    where: tuple[str, str | int] | None = None
    judged: str = ""
    limit: str = ""
    at_least: bool = False
    worst: bool = False
    in_readme: bool = False


def _cell(column: str, factor: float = 1.0) -> Callable[[Row], float]:
    return lambda row: number(row[column]) * factor


def _call(what: str, column: str, bound: float, limit: str) -> Budget:
    """Return the budget of a row of "One driver, one call", which is a ratio."""
    return Budget(
        what,
        "calls",
        "one-driver",
        value=_cell(column),
        unit="per s" if column == "per s" else "µs",
        bound=bound,
        where=("what", what),
        judged="ratio",
        limit=limit,
        at_least=column == "per s",
        in_readme=True,
    )


def _once(what: str, bound: float, unit: str, *, in_readme: bool = False) -> Budget:
    """Return the budget of a row of "What happens once"."""
    return Budget(
        what,
        "startup",
        "once",
        value=_cell("value"),
        unit=unit,
        bound=bound,
        where=("what", what),
        in_readme=in_readme,
    )


def _writes(what: str, bound: float) -> Budget:
    """Return the budget of a row of the GCS's writes that are brought to disk."""
    return Budget(
        f"GCS, {what}",
        "gcs",
        "disk",
        value=_cell("per s"),
        unit="per s",
        bound=bound,
        where=("what", what),
        at_least=True,
    )


BUDGETS = (
    _call("actor call, synchronous", "p50 µs", 1.6, "a raw ZeroMQ round trip"),
    _call("task, synchronous", "p50 µs", 3.0, "a raw ZeroMQ round trip"),
    _call("actor calls, asynchronous", "per s", 0.2, "raw pipelined round trips"),
    _call("tasks, asynchronous", "per s", 0.25, "a bare pipeline of batches"),
    Budget(
        "tasks of one `f.map(items)`",
        "map",
        "items",
        value=_cell("items per s"),
        unit="per s",
        bound=1e6,
        at_least=True,
        in_readme=True,
    ),
    Budget(
        "put of 1 MiB",
        "payload",
        "us",
        value=_cell("put µs"),
        unit="µs",
        bound=150.0,
        where=("bytes", MIB),
    ),
    Budget(
        "put of 128 MiB",
        "payload",
        "gb-s",
        value=_cell("put GB/s"),
        unit="GB/s",
        bound=0.8,
        where=("bytes", 128 * MIB),
        judged="ratio",
        limit="np.copyto",
        at_least=True,
    ),
    Budget(
        "get of an array of any size",
        "payload",
        "us",
        value=_cell("get µs"),
        unit="µs",
        bound=30.0,
        worst=True,
    ),
    _once("import zray", 100.0, "ms"),
    _once("init()", 500.0, "ms", in_readme=True),
    _once("first task", 50.0, "ms"),
    _once("idle worker", 12.0, "MB"),
    Budget(
        "50 actors with a process each",
        "startup",
        "process-actors",
        value=_cell("ms per actor", 50 / 1e3),
        unit="s",
        bound=1.0,
        where=("actors", 50),
        in_readme=True,
    ),
    Budget(
        "10 000 actors that share a process",
        "startup",
        "shared-actors",
        value=_cell("µs per actor", 10_000 / 1e6),
        unit="s",
        bound=2.0,
        where=("actors", 10_000),
        in_readme=True,
    ),
    Budget(
        "result of a killed worker's task, late by",
        "recovery",
        "killed",
        value=_cell("longest ms"),
        unit="ms",
        bound=100.0,
        where=("what", "task, queued"),
        in_readme=True,
    ),
    Budget(
        "object of 64 MiB to another node",
        "transfer",
        "plain",
        value=_cell("GB/s"),
        unit="GB/s",
        bound=0.7,
        where=("MiB", 64),
        judged="ratio",
        limit="bare chunks over TCP",
        at_least=True,
        in_readme=True,
    ),
    Budget(
        "the same with CURVE",
        "transfer",
        "curve",
        value=_cell("GB/s"),
        unit="GB/s",
        bound=0.5,
        where=("MiB", 64),
        judged="ratio",
        limit="the same chunks with CURVE",
        at_least=True,
    ),
    Budget(
        "control message while objects move",
        "transfer",
        "control",
        value=_cell("p50 µs"),
        unit="µs",
        bound=2000.0,
        where=("beside", "objects pulled"),
    ),
    Budget(
        "call of an actor on another node, synchronous",
        "remote_call",
        "remote-call",
        value=_cell("p50 µs"),
        unit="µs",
        bound=3.5,
        where=("keys", "none"),
        judged="ratio",
        limit="a raw TCP round trip",
        in_readme=True,
    ),
    Budget(
        "calls of such an actor, asynchronous",
        "remote_call",
        "remote-call",
        value=_cell("async per s"),
        unit="per s",
        bound=40_000.0,
        where=("keys", "none"),
        at_least=True,
    ),
    Budget(
        "tasks on three nodes of one machine",
        "three_nodes",
        "tasks",
        value=_cell("per s"),
        unit="per s",
        bound=0.7,
        where=("nodes", 3),
        judged="ratio",
        limit="those of one node",
        at_least=True,
    ),
    Budget(
        "tasks that sleep, on three nodes",
        "three_nodes",
        "sleeps",
        value=_cell("s"),
        unit="s",
        bound=1.15,
        judged="ratio",
        limit="their time on so many CPUs",
    ),
    Budget(
        "call of an actor on another node while objects move",
        "control_during_bulk",
        "control",
        value=_cell("p50 µs"),
        unit="µs",
        bound=2000.0,
        where=("beside", "64 MiB objects both ways"),
    ),
    Budget(
        "256 MiB to eight nodes",
        "broadcast",
        "broadcast",
        value=_cell("s"),
        unit="s",
        bound=1.5,
        where=("nodes", 8),
        judged="ratio",
        limit="eight transfers on these cores",
    ),
    Budget(
        "copies that its origin sends",
        "broadcast",
        "broadcast",
        value=_cell("copies"),
        unit="copies",
        bound=2.0,
        where=("nodes", 8),
    ),
    Budget(
        "node added to a running cluster, until a task has run on it",
        "joining",
        "usable",
        value=_cell("usable ms"),
        unit="ms",
        bound=1000.0,
        worst=True,
        in_readme=True,
    ),
    Budget(
        "call under way on a node that is killed, until its error",
        "detection",
        "lost",
        value=_cell("longest ms"),
        unit="ms",
        bound=100.0,
        where=("what", "killed (SIGKILL)"),
    ),
    Budget(
        "the same where the node is stopped",
        "detection",
        "lost",
        value=_cell("longest ms"),
        unit="ms",
        bound=3000.0,
        where=("what", "stopped (SIGSTOP)"),
    ),
    Budget(
        "task specs into the ledger",
        "ledger",
        "append",
        value=_cell("per s"),
        unit="per s",
        bound=200_000.0,
        where=("spec B", 200),
        at_least=True,
    ),
    Budget(
        "CPU time of a task with the ledger",
        "ledger",
        "task",
        value=_cell("CPU µs per task"),
        unit="µs",
        bound=1.1,
        where=("ledger", "with"),
        judged="ratio",
        limit="without it",
    ),
    Budget(
        "memory that a million tasks add to a process",
        "endurance",
        "slope",
        value=_cell("MB per million tasks"),
        unit="MB",
        bound=1.0,
        worst=True,
    ),
    _writes("writes, one after the other", 2_000.0),
    _writes("writes, many under way", 20_000.0),
)


def table(answers: Sequence[Answer], *, readme: bool = False) -> str:
    """Return the rows that this run has measured as a markdown table; "" where there is none.

    Args:
        answers: of the run's questions.
        readme: the README's rows alone.
    """
    curves = {(each.name, curve.name): curve for each in answers for curve in each.curves}
    rows = [
        cells
        for budget in BUDGETS
        if budget.in_readme or not readme
        if (cells := _cells(budget, curves.get((budget.question, budget.curve)))) is not None
    ]
    if not rows:
        return ""
    lines = [["what", "measured", "budget", "held"], [":--", "--:", ":--", ":--"], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def questions_of_readme() -> list[str]:
    """Return the questions whose answers the README's rows need."""
    return list(dict.fromkeys(budget.question for budget in BUDGETS if budget.in_readme))


def rewritten(text: str, lines: str) -> str:
    """Return a page with ``lines`` between its marks. Raises ValueError where it has no marks."""
    head, begin, rest = text.partition(BEGIN)
    _old, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END} to write between")
    return f"{head}{BEGIN}\n{lines}\n{END}{tail}"


def _cells(budget: Budget, curve: Curve | None) -> list[str] | None:
    """Return one row; None where this run has not measured it."""
    rows = curve.rows if curve is not None else []
    if budget.where is not None:
        column, wanted = budget.where
        rows = [row for row in rows if row.get(column) == wanted]
    if not rows:
        return None
    row = max(rows, key=budget.value) if budget.worst else rows[-1]
    value = budget.value(row)
    measured = f"{shown(value)} {budget.unit}"
    judged = number(row[budget.judged]) if budget.judged else value
    bound = f"{'≥' if budget.at_least else '≤'} "
    if budget.limit:
        measured += f", {shown(judged)} ×"
        bound += f"{budget.bound:g} × {budget.limit}"
    else:
        bound += f"{shown(float(budget.bound))} {budget.unit}"
    held = judged >= budget.bound if budget.at_least else judged <= budget.bound
    return [budget.what, measured, bound, "yes" if held else "**no**"]
