"""The state API: list, get and summarize what the cluster has, and why something waits.

What    list_tasks(), get_actor(), summarize_objects() and so on, as Ray has them, over all nodes;
        why() says what a ref, task or actor waits for. zray/protocol/state_classes.py has the
        columns of each class.
Caller  users.
Never   leaves out silently what a node did not say: that is an error, unless it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

from zray import errors
from zray.protocol.limits import QUERY_ROWS_MAX
from zray.protocol.state_classes import CLASSES, OPERATORS
from zray.refs import ObjectRef
from zray.state import ask
from zray.why import Why

Filter: TypeAlias = tuple[str, str, Any]
"""(column, "=" or "!=", value)."""


class StateMissingError(errors.ClusterError):
    """A node, a process or the GCS did not say in time what it has, so the answer is not whole.

    Who acts: who runs the cluster. What to do: look at those named; ask again, or take ``found``
    (raise_on_missing_output=False gives it without the error).
    """

    retryable: ClassVar[bool] = True

    def __init__(
        self, message: str = "", *, found: Any = None, missing: dict[str, str] | None = None
    ) -> None:
        """Carry what was ``found``, and who is ``missing`` with the reason."""
        super().__init__(message)
        self.found = found
        self.missing = missing or {}


class StateRow(dict[str, Any]):
    """A row: its columns are keys and attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(self)
            raise AttributeError(f"this row has no column {name!r}; it has {known}") from None


class StateRows(list[StateRow]):
    """Rows, and what is not among them.

    ``missing``: nodes, processes or the GCS that said nothing in time, and why; ``is_truncated``:
    there are more rows than ``limit``.
    """

    def __init__(
        self, rows: Iterable[StateRow], missing: dict[str, str], *, is_truncated: bool
    ) -> None:
        super().__init__(rows)
        self.missing = missing
        self.is_truncated = is_truncated


def rows(
    of: str,
    *,
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> StateRows:
    """Return rows of a class, of all nodes: what list_tasks() and the like call.

    Args:
        of: "tasks", "actors", "objects", "nodes", "jobs", "workers",
            "placement_groups" or "events".
        address: a node's directory, for whoever is no driver; None: this program's cluster.
        filters: all of them have to hold. Text is compared without regard to case.
        limit: rows at most, 100 000 or fewer.
        detail: with the columns of detail.
        raise_on_missing_output: raise where somebody said nothing; else see ``missing``.

    Raises:
        OptionError: a class, column, operator or limit that there is not.
        StateMissingError: a node, or a process of one, did not answer within 2 s.
    """
    given = _checked(of, filters or [], limit)
    arguments = {"of": of, "filters": given, "limit": limit, "detail": detail}
    found = ask("state", address=address, **arguments)
    made = StateRows(
        map(StateRow, found["rows"]), found["missing"], is_truncated=found["is_truncated"]
    )
    if made.missing and raise_on_missing_output:
        raise _missing(made, made.missing)
    return made


def _checked(of: str, filters: Sequence[Filter], limit: int) -> list[list[Any]]:
    if of not in CLASSES:
        raise errors.OptionError(f"there are no {of!r}: ask for {', '.join(CLASSES)}", option="of")
    if type(limit) is not int or not 0 <= limit <= QUERY_ROWS_MAX:
        raise errors.OptionError(
            f"limit={limit!r}: it is from 0 to {QUERY_ROWS_MAX}", option="limit"
        )
    columns = CLASSES[of].all_columns
    for each in filters:
        if len(fields := list(each)) != 3 or fields[1] not in OPERATORS:
            raise errors.OptionError(
                f"a filter is (column, '=' or '!=', value), not {each!r}", option="filters"
            )
        if each[0] not in columns:
            known = ", ".join(columns)
            raise errors.OptionError(
                f"{of} have no column {each[0]!r}; they have {known}", option="filters"
            )
    return [list(each) for each in filters]


def _missing(found: Any, missing: dict[str, str]) -> StateMissingError:
    who = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return StateMissingError(
        f"the answer is not whole: {who}. Pass raise_on_missing_output=False for what is there",
        found=found,
        missing=missing,
    )


# -- list, get, summarize --------------------------------------------------------------------------


class ListRows(Protocol):
    """list_tasks() and the like."""

    def __call__(
        self,
        address: str | None = None,
        *,
        filters: Sequence[Filter] | None = None,
        limit: int = 100,
        detail: bool = False,
        raise_on_missing_output: bool = True,
    ) -> StateRows:
        """Return rows of one class; see rows()."""
        ...


class GetRow(Protocol):
    """get_task() and the like."""

    def __call__(self, id: str, address: str | None = None) -> StateRow | None:
        """Return the row of this id, in hex, with its detail; None where there is none."""
        ...


class Summarize(Protocol):
    """summarize_tasks() and the like."""

    def __call__(
        self, address: str | None = None, *, raise_on_missing_output: bool = True
    ) -> dict[str, Any]:
        """Return how many there are of each kind; see summary()."""
        ...


def _lister(of: str) -> ListRows:
    def list_rows(
        address: str | None = None,
        *,
        filters: Sequence[Filter] | None = None,
        limit: int = 100,
        detail: bool = False,
        raise_on_missing_output: bool = True,
    ) -> StateRows:
        return rows(
            of,
            address=address,
            filters=filters,
            limit=limit,
            detail=detail,
            raise_on_missing_output=raise_on_missing_output,
        )

    list_rows.__name__ = list_rows.__qualname__ = f"list_{of}"
    list_rows.__doc__ = f"Return {of} of all nodes; for the arguments and errors see rows()."
    return list_rows


def _getter(of: str) -> GetRow:
    def get_row(id: str, address: str | None = None) -> StateRow | None:
        key = CLASSES[of].key
        found = rows(of, address=address, filters=[(key, "=", id)], limit=1, detail=True)
        return found[0] if found else None

    get_row.__name__ = get_row.__qualname__ = f"get_{of.removesuffix('s')}"
    get_row.__doc__ = f"Return one of the {of} by its id in hex, with its detail, or None."
    return get_row


def summary(
    of: str, *, address: str | None = None, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Return how many there are: {"total": n, "summary": [{column: value, …, "count": n}, …]}.

    Args:
        of: a class, as for rows().
        address: as for rows().
        raise_on_missing_output: as for rows(); else "missing" says who said nothing.

    Raises: as rows().
    """
    _checked(of, [], 0)
    found = ask("summary", address=address, of=of)
    groups = [
        {**dict(zip(found["by"], values, strict=True)), "count": count}
        for values, count in found["counts"]
    ]
    made = {
        "total": sum(group["count"] for group in groups),
        "summary": groups,
        "missing": found["missing"],
    }
    if found["missing"] and raise_on_missing_output:
        raise _missing(made, found["missing"])
    return made


def _summarizer(of: str) -> Summarize:
    def summarize(
        address: str | None = None, *, raise_on_missing_output: bool = True
    ) -> dict[str, Any]:
        return summary(of, address=address, raise_on_missing_output=raise_on_missing_output)

    summarize.__name__ = summarize.__qualname__ = f"summarize_{of}"
    summarize.__doc__ = f"Return how many {of} there are of each kind; see summary()."
    return summarize


list_tasks, get_task, summarize_tasks = _lister("tasks"), _getter("tasks"), _summarizer("tasks")
list_actors, get_actor = _lister("actors"), _getter("actors")
summarize_actors = _summarizer("actors")
list_objects, summarize_objects = _lister("objects"), _summarizer("objects")
list_nodes, get_node = _lister("nodes"), _getter("nodes")
list_jobs, get_job = _lister("jobs"), _getter("jobs")
list_workers, get_worker = _lister("workers"), _getter("workers")
list_placement_groups, get_placement_group = (
    _lister("placement_groups"),
    _getter("placement_groups"),
)
list_cluster_events, summarize_events = _lister("events"), _summarizer("events")


def get_objects(id: str, address: str | None = None) -> StateRows:
    """Return the rows of one object: one for each node that keeps it."""
    return rows("objects", address=address, filters=[("object_id", "=", id)], detail=True)


# -- why -------------------------------------------------------------------------------------------


def why(what: ObjectRef[Any] | str | Any, address: str | None = None) -> Why:
    """Return what a ref, task, call or actor waits for: print it.

    Args:
        what: a ref, an actor's handle, or an id: whole, the beginning of one where nothing else
            begins so, PROCESS:NUMBER in hex, or a living actor's name.
        address: as for rows().

    Raises:
        UserError: nothing has this id, or more than one thing has.
    """
    if isinstance(what, ObjectRef):
        identity = what.hex()
    elif isinstance(what, str):
        identity = what
    else:
        identity = getattr(what, "_actor_id", b"").hex()
        if not identity:
            raise errors.UserError(f"why() takes a ref, an actor or an id, not {what!r}")
    return Why(ask("why", address=address, id=identity)["steps"])
