"""What processes ask about the whole cluster: its rows, its sums, its state, why something waits.

What    QUESTIONS has a rule for each question of INSPECT that needs other nodes. A rule asks the
        nodes through Queries, merges what they say, and answers with who said nothing.
Caller  brokers/node_calls.py.
Never   waits for a node beyond its time, or leaves out silently what did not come.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol.ids import NodeId, node_of
from zray.protocol.limits import QUERY_ROWS_MAX, WHY_STEPS_MAX
from zray.protocol.roles import Role

from . import gcs_rows, inspection
from .gathering import Gathered
from .node_answers import FOUND_MAX
from .peers import Process
from .row_filters import Wanted, read_wanted
from .why_walk import Place, WhyWalk

if TYPE_CHECKING:
    from .node import Node

Done = Callable[[Any, Exception | None], None]
Rule = Callable[["Node", dict[str, Any], Done], None]

_NUMBERED = re.compile(r"([0-9a-f]{1,16}):([0-9a-f]{1,16})")
_HEX = re.compile(r"[0-9a-f]+")
_ID_DIGITS, _PROCESS_DIGITS = 32, 16


def inspect(node: Node, process: Process, what: str, arguments: dict[str, Any]) -> None:
    """Answer a question of INSPECT to a process, at once or when other nodes have answered.

    Raises RemoteProtocolError where the question or its arguments are unknown.
    """
    rule = QUESTIONS.get(what)
    if rule is None:
        node.answer(process, inspection.inspect(node, what, arguments))
        return

    def done(value: Any, error: Exception | None) -> None:
        if node.processes.by_id.get(process.identity) is process:
            node.answer(process, value, error)

    rule(node, arguments, done)


def everybody(node: Node) -> list[NodeId]:
    """Return all nodes that are there, this one first, those without a link too."""
    cluster = node.cluster
    if cluster is None:
        return [node.process]
    # Drivers elsewhere know nodes only; what they have themselves they are asked by those.
    living = cluster.membership.living.items()
    nodes = {each for each, row in living if row.role is Role.NODE}
    others = {*cluster.members, *nodes} - {node.process}
    return [node.process, *sorted(others)]


def _ask_all(
    node: Node,
    what: str,
    arguments: dict[str, Any],
    then: Callable[[Gathered], None],
    *,
    rows_max: int = QUERY_ROWS_MAX,
    of: str = "",
) -> None:
    """Ask every node, and the GCS where it has rows of the class."""
    cluster, nodes = node.cluster, everybody(node)
    has_gcs = of in gcs_rows.CLASSES and cluster is not None and cluster.gcs is not None
    sources = [*nodes, gcs_rows.SOURCE] if has_gcs else nodes
    number = node.queries.ask(sources, what, arguments, then, rows_max=rows_max)
    if cluster is not None:
        for each in nodes[1:]:
            if each not in cluster.members:
                lost = errors.ClusterError("it is alive, and there is no link to it")
                node.queries.took(number, each, [], lost)
        if has_gcs and cluster.gcs is not None:
            took = partial(node.queries.took, number, gcs_rows.SOURCE)
            gcs_rows.ask(cluster.gcs, of, took)


def _missing(gathered: Gathered) -> dict[str, str]:
    """Return who said nothing, and why: nodes, the GCS, and processes of nodes."""
    missing = {
        "gcs" if source == gcs_rows.SOURCE else source.hex(): reason
        for source, reason in gathered.missing.items()
    }
    for source, rows in gathered.rows.items():
        if source != gcs_rows.SOURCE and rows and "silent" in rows[0]:
            for process, reason in rows[0]["silent"].items():
                missing[process] = f"a process of node {source.hex()}: {reason}"
    return missing


# -- rows and sums ---------------------------------------------------------------------------------


def _state(node: Node, arguments: dict[str, Any], done: Done) -> None:
    wanted = read_wanted(arguments)
    of = wanted.of.name
    # Nodes that say nothing have rows all the same: the filters are for all of them at once.
    asked = Wanted(wanted.of, [], wanted.limit, detail=True) if of == "nodes" else wanted

    def gathered(found: Gathered) -> None:
        rows = _merged(node, wanted, found)
        truncated = found.is_truncated or len(rows) > wanted.limit
        done(
            {
                "rows": rows[: wanted.limit],
                "missing": _missing(found),
                "is_truncated": truncated,
                "clocks": {
                    each.hex(): clock.ahead_s
                    for each, clock in node.queries.clocks.items()
                    if clock.is_off
                },
            },
            None,
        )

    rows_max = min(QUERY_ROWS_MAX, wanted.limit + 1) + len(everybody(node))
    if of == "events":
        rows_max = QUERY_ROWS_MAX
    elif of in gcs_rows.CLASSES:
        rows_max = QUERY_ROWS_MAX + gcs_rows.ROWS_MAX
    _ask_all(node, "rows", asked.fields(), gathered, rows_max=rows_max, of=of)


def _merged(node: Node, wanted: Wanted, found: Gathered) -> list[dict[str, Any]]:
    """Return the rows of all sources, each thing once: what a node says counts, not the GCS."""
    of, key = wanted.of.name, wanted.of.key
    parts = [rows[1:] for source, rows in found.rows.items() if source != gcs_rows.SOURCE]
    if of == "events":
        every = [row for part in parts for row in part]
        return sorted(every, key=lambda row: -row["time"])
    rows: dict[Any, dict[str, Any]] = {}
    for part in parts:
        for row in part:
            identity = (row[key], row.get("node_id")) if of == "objects" else row[key]
            rows.setdefault(identity, row)
    if of == "nodes":
        _complete_nodes(node, rows, found)
        return [wanted.shown(row) for row in rows.values() if wanted.admits(row)]
    for row in found.rows.get(gcs_rows.SOURCE, ()):
        if wanted.admits(row):
            rows.setdefault(row[key], row)
    return [wanted.shown(row) for row in rows.values()]


def _complete_nodes(node: Node, rows: dict[str, dict[str, Any]], found: Gathered) -> None:
    """Add to the rows of nodes how their clocks differ, those that are silent, and the dead."""
    for identity, clock in node.queries.clocks.items():
        row = rows.get(identity.hex())
        if row is not None:
            row["clock_ahead_s"] = round(clock.ahead_s, 6) if clock.is_off else 0.0
    for source, reason in found.missing.items():
        if source != gcs_rows.SOURCE:
            rows[source.hex()] = inspection.silent_node_row(node, source, reason)
    for row in found.rows.get(gcs_rows.SOURCE, ()):
        rows.setdefault(row["node_id"], row)
    for name, row in list(rows.items()):
        role = row.pop("role", None) or _role_of(node, bytes.fromhex(name))
        if role != Role.NODE:
            del rows[name]


def _role_of(node: Node, identity: NodeId) -> Role:
    if identity == node.process or node.cluster is None:
        return node.role
    return node.cluster.role_of(identity)


def _summary(node: Node, arguments: dict[str, Any], done: Done) -> None:
    wanted = read_wanted({**arguments, "limit": 0})

    def gathered(found: Gathered) -> None:
        counts: Counter[tuple[str, ...]] = Counter()
        for source, rows in found.rows.items():
            for row in rows[1:] if source != gcs_rows.SOURCE else ():
                counts[tuple(row[0])] += row[1]
        done(
            {
                "by": list(wanted.of.counted_by),
                "counts": [[list(group), many] for group, many in sorted(counts.items())],
                "missing": _missing(found),
            },
            None,
        )

    _ask_all(node, "counts", wanted.fields(), gathered)


# -- the state of the cluster ----------------------------------------------------------------------


def _cluster_status(node: Node, _arguments: dict[str, Any], done: Done) -> None:
    def gathered(found: Gathered) -> None:
        statuses = {
            source: rows[0]
            for source, rows in found.rows.items()
            if rows and source != gcs_rows.SOURCE
        }
        nodes = {source.hex(): status.pop("row") for source, status in statuses.items()}
        _complete_nodes(node, nodes, found)
        problems = [
            *(
                f"node {source.hex()}: {reason}"
                for source, reason in found.missing.items()
                if source != gcs_rows.SOURCE
            ),
            *_problems(node, statuses),
        ]
        done(
            {
                "status_of": {source.hex(): status for source, status in statuses.items()},
                "nodes": list(nodes.values()),
                "missing": _missing(found),
                "problems": problems,
            },
            None,
        )

    _ask_all(node, "status", {}, gathered, of="nodes")


def _problems(node: Node, statuses: dict[NodeId, Any]) -> Iterable[str]:
    """Say each thing once, and of which node it is where there are several."""
    said: dict[str, list[NodeId]] = {}
    for source, status in statuses.items():
        for problem in status["problems"]:
            said.setdefault(problem, []).append(source)
    for problem, sources in said.items():
        if len(statuses) == 1 or sources == [node.process]:
            yield problem
        elif len(sources) == 1:
            yield f"node {sources[0].hex()}: {problem}"
        else:
            yield f"{len(sources)} nodes: {problem}"


# -- why -------------------------------------------------------------------------------------------


def _why(node: Node, arguments: dict[str, Any], done: Done) -> None:
    text = arguments.get("id")
    if type(text) is not str or not text:
        raise errors.RemoteProtocolError("what waits is named by its id, in hex")

    def found(identity: bytes | None, error: Exception | None) -> None:
        if identity is None:
            done(None, error)
        elif identity == node_of(identity):
            done(None, errors.UserError(f"{text} is a node: see `zray-node status`"))
        else:
            _Why(node, Place(node_of(identity), identity), done)

    identify(node, text.strip().lower(), text.strip(), found)


def identify(
    node: Node, text: str, name: str, done: Callable[[bytes | None, Exception | None], None]
) -> None:
    """Find the one id that a text means: whole, its beginning, PROCESS:NUMBER, or an actor's name.

    `done` gets the id, or UserError where there is none or more than one.
    """
    numbered = _NUMBERED.fullmatch(text)
    if numbered is not None:
        process, number = numbered.groups()

        def took(owner: bytes | None, error: Exception | None) -> None:
            done(None if owner is None else owner[:8] + int(number, 16).to_bytes(8, "big"), error)

        identify(node, process, process, took)
        return
    if _HEX.fullmatch(text) and len(text) in (_ID_DIGITS, _PROCESS_DIGITS):
        done(bytes.fromhex(text), None)
        return
    wanted = text if _HEX.fullmatch(text) else name

    def gathered(found: Gathered) -> None:
        rows = {row[0]: row for part in found.rows.values() for row in part}
        # A process is the owner of all that begins with its id: then it is what was meant.
        owners = [each for each in rows if len(each) == _PROCESS_DIGITS]
        chosen = owners if len(owners) == 1 else list(rows)
        if len(chosen) == 1:
            done(bytes.fromhex(chosen[0]), None)
            return
        done(None, _not_one(name, list(rows.values())))

    _ask_all(node, "find", {"text": wanted}, gathered, rows_max=4 * FOUND_MAX)


def _not_one(text: str, rows: list[list[str]]) -> errors.UserError:
    if not rows:
        return errors.UserError(
            f"nothing that is there begins with {text!r}, and no living actor has that name: give"
            " the whole id (ref.hex()), or PROCESS:NUMBER"
        )
    shown = "\n".join(f"  {row[0]}  {row[1]} {row[2]}" for row in rows[:FOUND_MAX])
    more = "\n  …" if len(rows) > FOUND_MAX else ""
    return errors.UserError(f"{text!r} may be any of these: give more of it\n{shown}{more}")


class _Why:
    """One walk from what waits to what it waits for."""

    def __init__(self, node: Node, place: Place, done: Done) -> None:
        self._node = node
        self._done = done
        self._walk = WhyWalk(place, steps_max=WHY_STEPS_MAX)
        self._go_on()

    def _go_on(self) -> None:
        looks, self._walk.commands = self._walk.commands, []
        for look in looks:
            self._look(look.step, look.place)
        if self._walk.is_over and not self._walk.commands:
            done, self._done = self._done, _nothing
            done({"steps": self._walk.result()}, None)

    def _look(self, step: int, place: Place) -> None:
        node = self._node
        arguments = {"id": place.identity, "about": place.about}
        if place.node not in everybody(node):
            self._walk.failed(step, f"node {place.node.hex()}, which would know, is not there")
            return

        def gathered(found: Gathered) -> None:
            rows = found.rows.get(place.node)
            if not rows:
                reason = found.missing.get(place.node, "it has nothing to say")
                self._walk.failed(step, f"node {place.node.hex()}: {reason}")
            else:
                self._walk.took(step, *_explained(rows[0]))
            self._go_on()

        try:
            node.queries.ask([place.node], "explain", arguments, gathered, rows_max=1)
        except errors.ClusterError as error:
            self._walk.failed(step, str(error))


def _explained(row: Any) -> tuple[dict[str, Any], list[Place]]:
    """Return what a step says and where to look next; another node may have made it up."""
    if not isinstance(row, dict) or type(row.get("text")) is not str:
        return {"state": "UNEXPLAINED", "text": "its node gave no explanation"}, []
    following = row.pop("next", [])
    if not isinstance(following, list):
        following = []
    places = [
        Place(*each)
        for each in following
        if isinstance(each, list) and len(each) == 3 and all(type(one) is bytes for one in each)
    ]
    return {"state": "", **row}, places


def _nothing(_value: Any, _error: Exception | None) -> None:
    """The answer was given."""


# -- logs ------------------------------------------------------------------------------------------


def _log(node: Node, arguments: dict[str, Any], done: Done) -> None:
    text = arguments.get("node", "")
    if type(text) is not str:
        raise errors.RemoteProtocolError("whose log it is is said by the beginning of a node's id")
    matching = [each for each in everybody(node) if each.hex().startswith(text.lower())]
    if len(matching) != 1:
        known = ", ".join(each.hex() for each in everybody(node))
        done(None, errors.UserError(f"no one node's id begins with {text!r}; there are {known}"))
        return

    def gathered(found: Gathered) -> None:
        rows = found.rows.get(matching[0])
        if rows:
            done([matching[0].hex(), *rows[0]], None)
        else:
            why = found.missing.get(matching[0], "it has no log")
            done(None, errors.ClusterError(f"node {matching[0].hex()}: {why}"))

    node.queries.ask(matching, "log", arguments, gathered, rows_max=1)


QUESTIONS: dict[str, Rule] = {
    "state": _state,
    "summary": _summary,
    "cluster_status": _cluster_status,
    "why": _why,
    "log": _log,
}
