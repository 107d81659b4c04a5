"""Measures zray on this machine: one question, one process, a table or more.

What    Runs each question in a fresh process with a time limit, prints its tables; --json for
        programs, --plots and --report for docs/explanation/benchmarks.md, --readme for the few
        numbers in README.md.
Caller  scripts/bench/run.
Never   leaves a node or a folder behind, whatever became of the question.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.bench import summary
from scripts.bench.curve import Answer, Curve
from scripts.bench.report import commit, machine, page, show

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = (
    *("calls", "recursion", "refs", "queued"),
    *("fan_in", "payload", "store", "startup", "recovery", "map"),
    *("links", "transfer", "gcs", "scaling"),
    *("remote_call", "three_nodes", "control_during_bulk"),
    *("broadcast", "joining", "detection", "ledger", "endurance"),
)
TIME_LIMIT_S = 180.0
"""A question that has not answered by then hangs: the stacks of its process are shown. One that
takes longer by its nature has a TIME_LIMIT_S of its own."""


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the command line; ends the program with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run",
        description="Measure zray on this machine, each question in a process of its own.",
        epilog=f"questions:\n{_explained()}\n\n"
        "Each table has the raw limit of the same run in it (bare ZeroMQ, np.copyto, a bare\n"
        "fork) and the ratio to it. Below it, growth: what a unit of work costs at the largest\n"
        "size over the least it costs at any. Close what else runs: on a busy machine the numbers\n"
        "are those of the neighbours.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a question; none: all of them")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw a png per question")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the page of the docs")
    parser.add_argument(
        "--readme", action="store_true", help="write the few numbers that README.md repeats"
    )
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in QUESTIONS:
            parser.error(f"there is no question {name!r}: {', '.join(QUESTIONS)}")
    lacking = set(summary.questions_of_readme()).difference(given.names)
    if given.readme and given.names and lacking:
        parser.error(f"--readme needs these questions as well: {', '.join(sorted(lacking))}")
    return given


def _explained() -> str:
    """Return a line on each question: the first of its module."""
    lines = []
    for name in QUESTIONS:
        # Read, not imported: a question imports zray and numpy.
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        head = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:<10} {head.partition(': ')[2]}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the questions; returns the exit code: 1 where one failed."""
    given = parsed(arguments)
    # As Ctrl-C does: what is started is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if given.answer is not None:
        return answer_here(given.names[0], given.answer, quick=given.quick)
    answers = []
    for name in given.names or QUESTIONS:
        if not given.json:
            print(f"── {name} …", file=sys.stderr, flush=True)
        answers.append(asked(name, quick=given.quick))
        if not given.json:
            show(answers[-1])
    plots = {}
    if given.plots is not None:
        from scripts.bench.plots import draw

        drawn = {each.name: draw(each.name, each.curves, given.plots) for each in answers}
        plots = {name: path for name, path in drawn.items() if path is not None}
    if given.report is not None:
        text = page(answers, root=ROOT, plots=plots, beside=given.report.parent, quick=given.quick)
        given.report.write_text(text, encoding="utf-8")
    if given.readme:
        write_readme(ROOT / "README.md", answers)
    if given.json:
        print(json.dumps(plain(answers), indent=2))
    return 1 if any(answer.failure for answer in answers) else 0


def write_readme(path: Path, answers: list[Answer]) -> None:
    """Rewrite the numbers of a README with those of this run."""
    source = f"On {machine()}, commit {commit(ROOT)}:"
    lines = f"{source}\n\n{summary.table(answers, readme=True)}"
    path.write_text(summary.rewritten(path.read_text(encoding="utf-8"), lines), encoding="utf-8")


def plain(answers: list[Answer]) -> dict[str, object]:
    """Return a whole run as plain types."""
    return {
        "machine": machine(),
        "commit": commit(ROOT),
        "questions": {
            answer.name: {
                "seconds": round(answer.seconds, 1),
                "failure": answer.failure,
                "curves": [curve.to_json() for curve in answer.curves],
            }
            for answer in answers
        },
    }


def asked(name: str, *, quick: bool) -> Answer:
    """Answer one question in a process and a folder of its own."""
    module = importlib.import_module(f"scripts.bench.{name}")
    answer = Answer(name, module.TITLE, module.ABOUT, [], 0.0)
    started = time.perf_counter()
    with _folder() as folder:
        written = folder / "answer.json"
        command = [sys.executable, "-m", "scripts.bench.run", name, "--answer", str(written)]
        process = subprocess.Popen(
            command + ["--quick"] * quick,
            cwd=ROOT,
            env=_environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        limit_s = getattr(module, "TIME_LIMIT_S", TIME_LIMIT_S)
        output, ended = _output_of(process, limit_s)
        answer.seconds = time.perf_counter() - started
        if process.returncode == 0 and written.exists():
            answer.curves = [Curve.from_json(each) for each in json.loads(written.read_text())]
        else:
            answer.failure = f"{ended}\n{output[-6000:]}"
    return answer


def _environment(folder: Path) -> dict[str, str]:
    environment = os.environ | {"ZRAY_TMPDIR": str(folder)}
    # As an installed package has it: to compile all modules takes longer than a node to start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _output_of(process: subprocess.Popen[str], limit_s: float) -> tuple[str, str]:
    """Wait for the end; a process that hangs tells its stacks and is ended with its children."""
    try:
        return process.communicate(timeout=limit_s)[0], f"exit code {process.returncode}"
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=2.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0], f"no answer within {limit_s:.0f} s; its stacks:"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder with a short path, since sockets lie in it; end the node in it after."""
    folder = Path(tempfile.mkdtemp(prefix="zray-bench-"))
    try:
        yield folder
    finally:
        from scripts.bench.bench_node import stop_node

        complaint = stop_node(folder)
        if complaint:
            print(complaint, file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)


def answer_here(name: str, written: Path, *, quick: bool) -> int:
    """Be the process of one question: write its curves as JSON."""
    import faulthandler

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    module = importlib.import_module(f"scripts.bench.{name}")
    from scripts.bench.bench_node import Bench

    curves = module.measure(Bench(written.parent, quick))
    written.write_text(json.dumps([curve.to_json() for curve in curves]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
