"""Filters of the state API: which rows a question asks for.

What    A question has filters [column, operator, value], all of which a row has to meet. Text is
        compared without regard to case, anything else by what it looks like, as in Ray.
Caller  brokers/state_rows.py, brokers/state_questions.py.
Never   sees more of a row than its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zray.errors import RemoteProtocolError
from zray.protocol.limits import QUERY_ROWS_MAX
from zray.protocol.state_classes import CLASSES, OPERATORS, StateClass

_FILTERS_MAX = 32
_VALUE_TYPES = (str, int, float, bool)


class Wanted:
    """What one question asks for.

    Args:
        of: the class.
        filters: all of them have to hold.
        limit: rows at most.
        detail: whether the columns of detail are wanted.
    """

    __slots__ = ("detail", "filters", "limit", "of")

    def __init__(
        self, of: StateClass, filters: list[tuple[str, str, Any]], limit: int, *, detail: bool
    ) -> None:
        self.of = of
        self.filters = filters
        self.limit = limit
        self.detail = detail

    def admits(self, row: Mapping[str, Any], *, without: str = "") -> bool:
        """Return whether a row meets the filters, but for those of column ``without``."""
        return all(
            _same(row.get(column), value) == (operator == "=")
            for column, operator, value in self.filters
            if column != without
        )

    def asks_for(self, column: str, value: Any) -> bool:
        """Return whether rows with this value in this column can be among those wanted."""
        return all(
            _same(value, each) == (operator == "=")
            for name, operator, each in self.filters
            if name == column
        )

    def has_filter(self, column: str) -> bool:
        """Return whether a filter looks at this column."""
        return any(name == column for name, _operator, _value in self.filters)

    def value_of(self, column: str) -> Any:
        """Return the one value that this column must have, None where any will do."""
        for name, operator, value in self.filters:
            if name == column and operator == "=":
                return value
        return None

    def shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a row that were asked for."""
        columns = self.of.all_columns if self.detail else self.of.columns
        return {name: row[name] for name in columns if name in row}

    def fields(self) -> dict[str, Any]:
        """Return it as a message carries it; read_wanted() is the way back."""
        return {
            "of": self.of.name,
            "filters": [list(each) for each in self.filters],
            "limit": self.limit,
            "detail": self.detail,
        }


def read_wanted(arguments: Mapping[str, Any]) -> Wanted:
    """Return what the arguments of a question ask for, checked.

    Raises RemoteProtocolError where they are malformed.
    """
    name = arguments.get("of")
    of = CLASSES.get(name) if isinstance(name, str) else None
    if of is None:
        raise RemoteProtocolError(f"there are no {name!r}: ask for one of {', '.join(CLASSES)}")
    limit = arguments.get("limit", 100)
    if type(limit) is not int or not 0 <= limit <= QUERY_ROWS_MAX:
        raise RemoteProtocolError(f"limit {limit!r}: it is from 0 to {QUERY_ROWS_MAX}")
    given = arguments.get("filters", [])
    if type(given) is not list or len(given) > _FILTERS_MAX:
        raise RemoteProtocolError(f"filters are a list of at most {_FILTERS_MAX}")
    filters = [_read_filter(of, each) for each in given]
    return Wanted(of, filters, limit, detail=arguments.get("detail") is True)


def _read_filter(of: StateClass, given: Any) -> tuple[str, str, Any]:
    if type(given) is not list or len(given) != 3:
        raise RemoteProtocolError(f"a filter is [column, operator, value], not {given!r}")
    column, operator, value = given
    if type(column) is not str or column not in of.all_columns:
        raise RemoteProtocolError(
            f"{of.name} have no column {column!r}; they have {', '.join(of.all_columns)}"
        )
    if operator not in OPERATORS or not isinstance(value, _VALUE_TYPES):
        raise RemoteProtocolError(f"a filter compares by one of {OPERATORS} with one value")
    return column, operator, value


def _same(have: Any, value: Any) -> bool:
    if have == value:
        return True
    return str(have).lower() == str(value).lower()
