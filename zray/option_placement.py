"""What the values of the options that say where may be.

What    Checks as in zray/option_checks.py, of strategies and of conditions on nodes' labels; and
        what of them goes into messages.
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
        PlacementGroupSchedulingStrategy,
    )

    if isinstance(
        value,
        NodeAffinitySchedulingStrategy
        | NodeLabelSchedulingStrategy
        | PlacementGroupSchedulingStrategy,
    ):
        return value
    raise WrongValueError(
        "it must be 'DEFAULT', 'SPREAD', or a strategy of zray.util.scheduling_strategies"
    )


def placement_group(_name: str, value: Any) -> Any:
    """A group made by zray.util.placement_group(), or "default"."""
    if value == "default" or type(getattr(value, "id", None)) is bytes:
        return value
    raise WrongValueError("it must be what zray.util.placement_group() returns")


def in_group(group: Any, bundle: int, captures: bool) -> Any:
    """Return the strategy that the three options of placement groups stand for."""
    from .util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, bundle, captures)


def where(strategy: Any, selector: Mapping[str, str] | None) -> list[Any] | None:
    """Return [strategy, node, soft, label selector, group, wishes], None for anywhere.

    The last two are left out where there are none. brokers/placement.py reads it.
    """
    if strategy == "DEFAULT" and not selector:
        return None
    if isinstance(strategy, str):
        return [strategy, b"", False, dict(selector or {})]
    node_id: str = getattr(strategy, "node_id", "")
    rules = {**(selector or {}), **getattr(strategy, "selector", {})}
    soft = getattr(strategy, "soft_affinity", False)
    fields: list[Any] = ["DEFAULT", bytes.fromhex(node_id), soft, rules]
    group, wishes = getattr(strategy, "group", None), getattr(strategy, "wishes", {})
    return [*fields, group, wishes] if group is not None or wishes else fields


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
