"""Where to place a task or an actor: the objects that ``scheduling_strategy`` takes.

What    NodeAffinitySchedulingStrategy names a node, NodeLabelSchedulingStrategy conditions on the
        labels of nodes, made with In, NotIn, Exists and DoesNotExist. The strings "DEFAULT" and
        "SPREAD" are the others.
Caller  users; the names and arguments are Ray's. zray/option_placement.py reads them.
Never   asks whether the node is there: who calls .remote() learns that from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zray.errors import OptionError

_NODE_ID_HEX = 16


class NodeAffinitySchedulingStrategy:
    """On this node.

    Args:
        node_id: as ``zray.get_runtime_context().get_node_id()`` and ``zray.nodes()`` say it.
        soft: another node will do where that one is gone. Otherwise the task or actor fails with
            TaskUnschedulableError or ActorUnschedulableError.

    Raises OptionError where node_id is not the id of a node.
    """

    __slots__ = ("node_id", "soft")

    def __init__(self, node_id: str | bytes, soft: bool) -> None:
        text = node_id.hex() if isinstance(node_id, bytes) else node_id
        try:
            is_id = len(bytes.fromhex(text)) * 2 == _NODE_ID_HEX
        except (TypeError, ValueError):
            is_id = False
        if not is_id:
            raise OptionError(
                f"node_id={node_id!r} is no node's id: take it from zray.nodes()",
                option="scheduling_strategy",
            )
        if not isinstance(soft, bool):
            raise OptionError("soft must be True or False", option="scheduling_strategy")
        self.node_id = text
        self.soft = soft

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy({self.node_id!r}, soft={self.soft})"


class _Condition:
    """What a label's value may be, as a selector says it."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.text}"


def _values(values: tuple[Any, ...]) -> str:
    if not values or not all(isinstance(each, str) and each for each in values):
        raise OptionError(
            "In and NotIn take one label value or more, as strings", option="scheduling_strategy"
        )
    return ", ".join(values)


class In(_Condition):
    """The label has one of these values."""

    __slots__ = ()

    def __init__(self, *values: str) -> None:
        super().__init__(f"in({_values(values)})")


class NotIn(_Condition):
    """The label has none of these values, or is not there."""

    __slots__ = ()

    def __init__(self, *values: str) -> None:
        super().__init__(f"!in({_values(values)})")


class Exists(_Condition):
    """The node has the label."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("exists()")


class DoesNotExist(_Condition):
    """The node does not have the label."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("!exists()")


class NodeLabelSchedulingStrategy:
    """On a node whose labels meet these conditions; it waits until there is one.

    Args:
        hard: by label In(...), NotIn(...), Exists() or DoesNotExist().

    Raises OptionError where a condition is none of these.
    """

    __slots__ = ("hard",)

    def __init__(self, hard: Mapping[str, In | NotIn | Exists | DoesNotExist]) -> None:
        given: Any = hard
        if not isinstance(given, Mapping) or not given:
            raise OptionError(
                'hard must be a dict such as {"zone": In("a")}', option="scheduling_strategy"
            )
        for key, condition in given.items():
            if not isinstance(key, str) or not isinstance(condition, _Condition):
                raise OptionError(
                    f"{key!r}: {condition!r} is no condition on a label: there are In, NotIn,"
                    " Exists and DoesNotExist",
                    option="scheduling_strategy",
                )
        self.hard = dict(hard)

    @property
    def selector(self) -> dict[str, str]:
        """The conditions as a label_selector says them."""
        return {key: condition.text for key, condition in self.hard.items()}

    def __repr__(self) -> str:
        return f"NodeLabelSchedulingStrategy({self.selector})"


__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
]
