"""Rows as people read them: tables on the terminal, and the page docs/explanation/benchmarks.md.

What    show() prints curves with rich; page() returns the markdown of a whole run.
Caller  run.py.
Never   names a path, a user or a machine's name.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from scripts.bench.curve import GROWTH_MAX, Answer, Curve, shown
from scripts.bench.summary import table

INTRODUCTION = """# Benchmarks

<!-- Made by scripts/bench/run; edit the program, not this page. -->

What zray costs on one machine, over a growing size of each thing that can grow. The question
behind every curve is whether cost grows faster than the work: *growth* is what one unit of work
costs at the largest size, over the least it costs at any size, and {growth_max:g} or less counts as
flat. Every table has its raw limit in it (bare ZeroMQ, np.copyto, a bare fork), taken in the same
run, and the ratio to it: absolute numbers belong to the machine, ratios to zray.

Made with

```sh
scripts/bench/run --plots docs/explanation/plots --report docs/explanation/benchmarks.md
```

on {machine}, commit {commit}, in {seconds:.0f} s.
One question alone: `scripts/bench/run calls`; a look at whether everything works:
`scripts/bench/run --quick`. What a call costs step by step is in [architecture](architecture.md);
what is true of several nodes (links, transfer, gcs, scaling) is here as well, and a simulated
thousand of them in [scaling](scaling.md).
"""

QUICK = """**This was a quick run**: small sizes and short times, which show that everything works
and little more.
"""


def machine() -> str:
    """Return cores, kernel and Python, and nothing that names the machine."""
    # A release may end in a name that somebody gave: 6.1.0-custom.
    kernel = platform.release().split("-")[0]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({platform.machine()}), {platform.system()} {kernel}, "
        f"Python {platform.python_version()}"
    )


def commit(root: Path) -> str:
    """Return the short commit of the tree, "+" behind it where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD")
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "zray", "brokers", "actors"
    )
    return (name or "unknown") + ("+" if changed else "")


def show(answer: Answer) -> None:
    """Print one question's tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if answer.failure:
        console.print(f"[bold red]{answer.title}: failed[/]")
        console.print(answer.failure, markup=False)
        return
    for curve in answer.curves:
        table = Table(
            title=f"{answer.title}: {curve.title}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            caption="\n".join(_verdicts(curve)) or None,
            caption_justify="left",
        )
        for column in curve.columns:
            table.add_column(column, justify="left" if _is_text(curve, column) else "right")
        for row in curve.rows:
            table.add_row(*(shown(row.get(column)) for column in curve.columns))
        console.print(table)


def page(
    answers: list[Answer], *, root: Path, plots: dict[str, Path], beside: Path, quick: bool
) -> str:
    """Return the report as markdown.

    Args:
        answers: of all questions.
        root: the project's folder, whose commit is named.
        plots: the picture of each question that has one.
        beside: the folder of the page: links to pictures start there.
        quick: the run was a quick one, and the page says so.
    """
    seconds = sum(answer.seconds for answer in answers)
    parts = [
        INTRODUCTION.format(
            growth_max=GROWTH_MAX, machine=machine(), commit=commit(root), seconds=seconds
        ),
        *([QUICK] if quick else []),
        *_in_short(answers),
        _summary(answers),
    ]
    for answer in answers:
        parts.append(f"## {answer.title}\n\n{answer.about}\n")
        if answer.failure:
            parts.append("This question failed in this run.\n")
            continue
        if answer.name in plots:
            link = Path(os.path.relpath(plots[answer.name], beside)).as_posix()
            parts.append(f"![{answer.title}: cost over size]({link})\n")
        for curve in answer.curves:
            parts.append(f"### {curve.title}\n\n{_markdown(curve)}\n\n{curve.note}\n")
            if verdicts := _verdicts(curve):
                parts.append("\n".join(f"- {verdict}" for verdict in verdicts) + "\n")
    return "\n".join(parts)


def _in_short(answers: list[Answer]) -> list[str]:
    rows = table(answers)
    if not rows:
        return []
    return [
        "## In short\n",
        f"{rows}\n",
        "× is the ratio to the raw limit of the same run, and where a budget has one it is the "
        "ratio that is judged.\n",
    ]


def _summary(answers: list[Answer]) -> str:
    steep = [
        f"- {answer.title}, {curve.title.lower()}: {growth}"
        for answer in answers
        for curve in answer.curves
        for growth in curve.growth()
        if not growth.is_flat
    ]
    count = sum(len(curve.growth()) for answer in answers for curve in answer.curves)
    head = f"Of {count} cost curves {count - len(steep)} are flat."
    if not steep:
        return f"{head}\n"
    return "\n".join([f"{head} A unit of work costs more at the largest size in:\n", *steep, ""])


def _verdicts(curve: Curve) -> list[str]:
    return [
        f"growth, {growth}{'' if growth.is_flat else ' (not flat)'}" for growth in curve.growth()
    ]


def _is_text(curve: Curve, column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in curve.rows)


def _markdown(curve: Curve) -> str:
    columns = curve.columns
    rules = [":--" if _is_text(curve, column) else "--:" for column in columns]
    lines = [columns, rules]
    lines += [[shown(row.get(column)) for column in columns] for row in curve.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
