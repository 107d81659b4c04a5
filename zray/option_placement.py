"""What the values of the options that say where may be.

What    Checks as in zray/option_checks.py, of strategies and of conditions on nodes' labels.
Caller  zray/options.py, whose table names them.
Never   knows a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import OptionError
from .option_checks import WrongValueError
from .protocol.labels import read_selector


def scheduling_strategy(_name: str, value: Any) -> Any:
    """A word, or an object of zray.util.scheduling_strategies."""
    if isinstance(value, str):
        if value in ("DEFAULT", "SPREAD"):
            return value
        raise WrongValueError("it must be 'DEFAULT' or 'SPREAD'")
    from .util.scheduling_strategies import (  # Few programs need them.
        NodeAffinitySchedulingStrategy,
        NodeLabelSchedulingStrategy,
    )

    if isinstance(value, NodeAffinitySchedulingStrategy | NodeLabelSchedulingStrategy):
        return value
    raise WrongValueError(
        "it must be 'DEFAULT', 'SPREAD', or a strategy of zray.util.scheduling_strategies"
    )


def label_selector(_name: str, value: Any) -> dict[str, str]:
    """Conditions by label."""
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise WrongValueError('it must be a dict of strings, such as {"zone": "in(a, b)"}')
    try:
        read_selector(value)
    except OptionError as error:
        raise WrongValueError(str(error)) from None
    return dict(value)
