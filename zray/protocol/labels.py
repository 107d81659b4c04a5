"""Conditions on the labels of nodes.

What    LabelRule is one condition; read_selector() makes them of a ``label_selector``.
Caller  zray/option_placement.py, which refuses what is none; brokers/placement.py, which obeys.
Never   knows a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zray.errors import OptionError


@dataclass(frozen=True, slots=True)
class LabelRule:
    """One condition on a node's label: ``=``, ``!=``, ``in``, ``!in``, ``exists``, ``!exists``."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return whether a node with these labels will do; a missing label is like no other."""
        value = labels.get(self.key)
        match self.operator:
            case "=" | "in":
                return value in self.values
            case "!=" | "!in":
                return value not in self.values
            case "exists":
                return value is not None
            case _:
                return value is None


def read_selector(selector: Mapping[str, str]) -> tuple[LabelRule, ...]:
    """Return the rules of a ``label_selector``, in the order of their keys.

    Args:
        selector: by label "value", "!value", "in(a, b)", "!in(a, b)", "exists()" or "!exists()".

    Raises OptionError where a condition is none of these.
    """
    rules = []
    for key, condition in sorted(selector.items()):
        negated = condition.startswith("!")
        text = condition.removeprefix("!").strip()
        name, bracket, inside = text.partition("(")
        if not key or not text or (bracket and not text.endswith(")")):
            message = f"label {key!r} can't be {condition!r}: say value, !value, in(a, b), exists()"
            raise OptionError(message, option="label_selector")
        values = tuple(part.strip() for part in inside.removesuffix(")").split(",") if part.strip())
        if not bracket:
            rules.append(LabelRule(key, "!=" if negated else "=", (text,)))
        elif name == "in" and values:
            rules.append(LabelRule(key, "!in" if negated else "in", values))
        elif name == "exists" and not values:
            rules.append(LabelRule(key, "!exists" if negated else "exists"))
        else:
            message = f"{condition!r} is no condition on a label: there are in(a, b) and exists()"
            raise OptionError(message, option="label_selector")
    return tuple(rules)
