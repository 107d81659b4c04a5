"""What a node answers of itself, whoever asks: a process of it, or another node.

What    ANSWERS has a rule for each question: rows, counts, status, explain, find, log. Each gives
        a list of plain rows, at once or when the node's processes have said what they know.
Caller  brokers/queries.py.
Never   changes anything, or answers with more than was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice
from string import hexdigits
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol.ids import object_id

from . import explaining, inspection, state_rows
from .queries import Answer, Done
from .row_filters import Wanted, read_wanted
from .scheduling import Range

if TYPE_CHECKING:
    from .node import Node

FOUND_MAX = 20
_LOG_BYTES_MAX = 256 * 1024
_LOG_LINES_MAX = 10_000
_DIGITS = 16
"""Of a number in an id, in hex."""
_LOGS = ("node.log", "workers.log")


def _silent(silent: Mapping[bytes, str]) -> dict[str, Any]:
    """Return what an answer begins with: processes that said nothing, so that rows may lack."""
    return {"silent": {identity.hex(): reason for identity, reason in silent.items()}}


def _with_news(node: Node, wanted: Wanted, then: Callable[..., None]) -> None:
    """Call when the node's processes have told what the rows of a class are made of."""
    if wanted.of.name == "tasks":
        ended = wanted.asks_for("state", "FINISHED") or wanted.asks_for("state", "FAILED")

        def asked() -> None:
            node.process_questions.ask_all(then)

        if ended:
            node.event_queries.ask(asked)
        else:
            asked()
    elif wanted.of.name == "events":
        node.event_queries.ask(lambda: then({}, {}))
    else:
        then({}, {})


def _rows(node: Node, arguments: dict[str, Any], done: Done) -> None:
    wanted = read_wanted(arguments)

    def news(said: Any, silent: Mapping[bytes, str]) -> None:
        _answer(done, lambda: [_silent(silent), *state_rows.select(node, wanted, said)])

    _with_news(node, wanted, news)


def _counts(node: Node, arguments: dict[str, Any], done: Done) -> None:
    wanted = read_wanted(arguments)

    def news(said: Any, silent: Mapping[bytes, str]) -> None:
        def counted() -> list[Any]:
            counts = state_rows.count(node, wanted, said)
            return [_silent(silent), *([list(key), many] for key, many in counts.items())]

        _answer(done, counted)

    _with_news(node, wanted, news)


def _answer(done: Done, rows: Callable[[], list[Any]]) -> None:
    """Give the rows; a disk that can't be read is the asker's to hear of, the node goes on."""
    try:
        found = rows()
    except errors.ZrayError as error:
        done([], error)
    else:
        done(found, None)


def _status(node: Node, _arguments: dict[str, Any], done: Done) -> None:
    def status() -> list[Any]:
        return [{**inspection.inspect(node, "status", {}), "row": state_rows.own_node_row(node)}]

    _answer(done, status)


# -- finding by the beginning of an id -------------------------------------------------------------


def _find(node: Node, arguments: dict[str, Any], done: Done) -> None:
    """Find what an id begins with, or an actor's name is: rows [id, kind, name]."""
    text = arguments.get("text")
    if type(text) is not str or not text:
        raise errors.RemoteProtocolError("what is to be found is named by some text")
    done(list(islice(_matches(node, text), FOUND_MAX + 1)), None)


def _matches(node: Node, text: str) -> Any:
    if node.process.hex().startswith(text):
        yield [node.process.hex(), "node", ""]
    for identity, process in node.processes.by_id.items():
        if process.role != "observer" and identity.hex().startswith(text):
            yield [identity.hex(), process.role, ""]
    for identity, actor in node.dispatcher.actors.items():
        if identity.hex().startswith(text) or actor.details["name"] == text:
            yield [identity.hex(), "actor", actor.details["name"] or actor.details["class"]]
    scheduler = node.scheduler
    for work in scheduler.queues.all_ranges():
        for number in _numbers_in(work, text)[: FOUND_MAX + 1]:
            task = object_id(work.task_class.client, number).hex()
            yield [task, "task", work.task_class.name]
    for identity, entry in node.objects.entries.items():
        if not entry.is_actor and identity.hex().startswith(text):
            yield [identity.hex(), "object", ""]


def _numbers_in(work: Range, text: str) -> range:
    """Return the tasks of a range whose ids begin with a text."""
    own = range(work.first + work.low, work.first + work.high)
    client = work.task_class.client.hex()
    if len(text) <= len(client):
        return own if client.startswith(text) else range(0)
    rest = text[len(client) :]
    if not text.startswith(client) or not set(rest) <= set(hexdigits) or len(rest) > _DIGITS:
        return range(0)
    low, high = int(rest.ljust(_DIGITS, "0"), 16), int(rest.ljust(_DIGITS, "f"), 16)
    return range(max(low, own.start), min(high + 1, own.stop))


# -- logs ------------------------------------------------------------------------------------------


def _log(node: Node, arguments: dict[str, Any], done: Done) -> None:
    """Give the end of a log file: [its inode, where it ends, the text].

    ``after``: [inode, offset] of the last answer: what was added since.
    """
    name, lines = arguments.get("name"), arguments.get("lines", 50)
    after = arguments.get("after")
    if name not in _LOGS or type(lines) is not int or not 0 <= lines <= _LOG_LINES_MAX:
        raise errors.RemoteProtocolError(f"a log is one of {_LOGS}, and lines at most 10 000")
    path = os.path.join(node.directory, name)
    try:
        with open(path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            size = file.seek(0, os.SEEK_END)
            text, end = _part(file, inode, size, lines, after)
    except OSError as error:
        why = error.strerror or str(error)
        done([], errors.ClusterError(f"its {name} can't be read: {why}"))
        return
    done([[inode, end, text]], None)


def _part(file: Any, inode: int, size: int, lines: int, after: Any) -> tuple[bytes, int]:
    if _is_place(after) and after[0] == inode and after[1] <= size:
        file.seek(after[1])
        text: bytes = file.read(_LOG_BYTES_MAX)
        return text, after[1] + len(text)
    begin = max(0, size - _LOG_BYTES_MAX)
    file.seek(begin)
    kept = file.read(size - begin).splitlines(keepends=True)
    if begin:
        kept = kept[1:]  # Its beginning is cut off.
    return b"".join(kept[len(kept) - min(lines, len(kept)) :]), size


def _is_place(after: Any) -> bool:
    return type(after) is list and len(after) == 2 and all(type(each) is int for each in after)


ANSWERS: dict[str, Answer] = {
    "rows": _rows,
    "counts": _counts,
    "status": _status,
    "explain": explaining.explain,
    "find": _find,
    "log": _log,
}
