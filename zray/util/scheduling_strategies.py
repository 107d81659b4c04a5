"""Where to place a task or an actor: the objects that ``scheduling_strategy`` takes.

What    NodeAffinitySchedulingStrategy names a node, NodeLabelSchedulingStrategy conditions on the
        labels of nodes, made with In, NotIn, Exists and DoesNotExist, and
        PlacementGroupSchedulingStrategy a placement group. The strings "DEFAULT" and "SPREAD" are
        the others.
Caller  users; the names and arguments are Ray's. zray/option_placement.py reads them.
Never   asks whether the node is there: who calls .remote() learns that from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

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

    @property
    def soft_affinity(self) -> bool:
        """Whether another node will do."""
        return self.soft

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


Conditions = Mapping[str, In | NotIn | Exists | DoesNotExist]


class NodeLabelSchedulingStrategy:
    """On a node whose labels meet these conditions; it waits until there is one.

    Args:
        hard: by label In(...), NotIn(...), Exists() or DoesNotExist().
        soft: the same; a node that meets these too is taken before one that does not, unless it
            has had no room for a quarter of a second.

    Raises OptionError where a condition is none of these.
    """

    __slots__ = ("hard", "soft")

    def __init__(self, hard: Conditions, *, soft: Conditions | None = None) -> None:
        self.hard = _conditions("hard", hard)
        self.soft = _conditions("soft", {} if soft is None else soft)
        if not self.hard and not self.soft:
            raise OptionError(
                'hard must be a dict such as {"zone": In("a")}', option="scheduling_strategy"
            )

    @property
    def selector(self) -> dict[str, str]:
        """The conditions as a label_selector says them."""
        return {key: condition.text for key, condition in self.hard.items()}

    @property
    def wishes(self) -> dict[str, str]:
        """The soft ones."""
        return {key: condition.text for key, condition in self.soft.items()}

    def __repr__(self) -> str:
        soft = f", soft={self.wishes}" if self.soft else ""
        return f"NodeLabelSchedulingStrategy({self.selector}{soft})"


def _conditions(name: str, given: Any) -> dict[str, _Condition]:
    if not isinstance(given, Mapping):
        raise OptionError(
            f'{name} must be a dict such as {{"zone": In("a")}}', option="scheduling_strategy"
        )
    for key, condition in given.items():
        if not isinstance(key, str) or not isinstance(condition, _Condition):
            raise OptionError(
                f"{key!r}: {condition!r} is no condition on a label: there are In, NotIn,"
                " Exists and DoesNotExist",
                option="scheduling_strategy",
            )
    return dict(given)


class HasGroupId(Protocol):
    """What zray.util.placement_group() returns."""

    @property
    def id(self) -> bytes:
        """Its 16 bytes."""
        ...


class PlacementGroupSchedulingStrategy:
    """In a placement group: on the resources that one of its bundles holds.

    Args:
        placement_group: made by zray.util.placement_group(); None: in no group, whatever the
            caller runs in.
        placement_group_bundle_index: of the bundle; -1: any that has room.
        placement_group_capture_child_tasks: whether what it submits runs in the group too, unless
            it says otherwise.

    Raises OptionError where an argument is none of these.
    """

    __slots__ = (
        "placement_group",
        "placement_group_bundle_index",
        "placement_group_capture_child_tasks",
    )

    def __init__(
        self,
        placement_group: HasGroupId | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        given: Any = placement_group
        if given is not None and type(getattr(given, "id", None)) is not bytes:
            raise OptionError(
                f"{placement_group!r} is no placement group: zray.util.placement_group() makes one",
                option="scheduling_strategy",
            )
        index: Any = placement_group_bundle_index
        if type(index) is not int or index < -1:
            raise OptionError(
                "a bundle's index is an integer, and -1 for any", option="scheduling_strategy"
            )
        captures: Any = placement_group_capture_child_tasks
        if captures not in (None, True, False):
            raise OptionError(
                "placement_group_capture_child_tasks is True or False", option="scheduling_strategy"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = bool(captures)

    @property
    def group(self) -> list[Any] | None:
        """The group as messages name it."""
        if self.placement_group is None:
            return None
        index, captures = (
            self.placement_group_bundle_index,
            self.placement_group_capture_child_tasks,
        )
        return [self.placement_group.id, index, captures]

    def __repr__(self) -> str:
        return (
            f"PlacementGroupSchedulingStrategy({self.placement_group!r},"
            f" {self.placement_group_bundle_index})"
        )


__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]
