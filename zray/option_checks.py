"""What the values of options may be: a function for each kind of value.

What    A check takes an option's name and the value a user gave, and returns the value as the
        records keep it.
Caller  zray/options.py, whose table names a check in every row.
Never   knows which options there are; lets a wrong value through, or a subclass of int that is
        none (True) count as a number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .protocol.units import CPU, GPU, MEMORY, RESOURCE_UNITS, to_units

NumReturns = int | Literal["streaming"]
Check = Callable[[str, Any], Any]


class WrongValueError(Exception):
    """What a check says of a value; zray/options.py adds the option's name and the target."""


def amount(name: str, value: Any) -> float:
    """A share of a resource; GPUs beyond one can't be shared, so they come whole."""
    amount = value if isinstance(value, float) else _integer(name, value, "a number >= 0")
    try:
        units = to_units(amount)
    except ValueError as error:
        raise WrongValueError(str(error)) from None
    if name == "num_gpus" and units > RESOURCE_UNITS and units % RESOURCE_UNITS:
        raise WrongValueError("more than one GPU must be a whole number: a fraction shares one GPU")
    return amount


def _integer(_name: str, value: Any, wanted: str = "an integer") -> int:
    """An int or something of the kind, such as a numpy integer; True is not a number here."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise WrongValueError(f"it must be {wanted}, not {type(value).__name__}")
    return operator.index(value)


def integer_from(least: int, *, but_not: int | None = None) -> Check:
    """Integers from `least` up, with a hole where one of them makes no sense."""

    def check(name: str, value: Any) -> int:
        number = _integer(name, value)
        if number < least or number == but_not:
            hole = "" if but_not is None else f" and not {but_not}"
            raise WrongValueError(f"it must be {least} or more{hole}")
        return number

    return check


def boolean(_name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise WrongValueError(f"it must be True or False, not {type(value).__name__}")
    return value


def text(_name: str, value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise WrongValueError("it must be a string that is not empty")
    return value


def one_of(*allowed: str, later: Mapping[str, str] | None = None, otherwise: str = "") -> Check:
    """One of a few words.

    `later` says of words from other releases what is to be said of them, and `otherwise` of what is
    not a string.
    """

    def check(_name: str, value: Any) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        if isinstance(value, str) and later and value in later:
            raise WrongValueError(later[value])
        if not isinstance(value, str) and otherwise:
            raise WrongValueError(otherwise)
        raise WrongValueError("it must be " + " or ".join(repr(word) for word in allowed))

    return check


def num_returns(name: str, value: Any) -> NumReturns:
    """A count, or "streaming"; an array would compare to a list of answers, so types go first."""
    if isinstance(value, str) and value == "streaming":
        return "streaming"
    if isinstance(value, str) and value == "dynamic":
        raise WrongValueError(
            '"dynamic" is replaced by "streaming", which yields refs as they are made'
        )
    if isinstance(value, str):
        raise WrongValueError('it must be 0 or more, or "streaming" for a generator')
    return int(integer_from(0)(name, value))


def retry_exceptions(_name: str, value: Any) -> bool | tuple[type[BaseException], ...]:
    """All exceptions, none, or a list of classes."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and all(
        isinstance(each, type) and issubclass(each, BaseException) for each in value
    ):
        return tuple(value)
    raise WrongValueError("it must be True, False or a list of exception classes")


def custom_resources(_name: str, value: Any) -> dict[str, float]:
    """Amounts by name; CPUs, GPUs and memory have options of their own."""
    if not isinstance(value, Mapping):
        raise WrongValueError('it must be a dict of amounts by name, such as {"license": 1}')
    options_of = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory"}
    for resource in value:
        if not isinstance(resource, str) or not resource:
            raise WrongValueError("the name of a resource must be a string that is not empty")
        if resource in options_of:
            raise WrongValueError(
                f"{resource!r} is asked for with the option {options_of[resource]}"
            )
    try:
        return {resource: amount(resource, share) for resource, share in value.items()}
    except WrongValueError as wrong:
        raise WrongValueError(f"one of its amounts is wrong: {wrong}") from None


def concurrency_groups(name: str, value: Any) -> dict[str, int]:
    """How many calls may run at once, by the name of the group."""
    if not isinstance(value, Mapping):
        raise WrongValueError('it must be a dict of call counts by group, such as {"io": 4}')
    at_least_one = integer_from(1)
    return {text(name, group): at_least_one(name, calls) for group, calls in value.items()}


def runtime_env(_name: str, value: Any) -> dict[str, dict[str, str]]:
    """The part of a runtime_env that is honoured: {"env_vars": {...}}."""
    if not isinstance(value, Mapping):
        raise WrongValueError('it must be a dict, such as {"env_vars": {"OMP_NUM_THREADS": "1"}}')
    given = {key: item for key, item in value.items() if item}
    for key in given:
        if key != "env_vars":
            raise WrongValueError(f"of a runtime_env this release takes env_vars only, not {key!r}")
    env_vars = given.get("env_vars", {})
    if not isinstance(env_vars, Mapping) or not all(
        isinstance(text, str) for pair in env_vars.items() for text in pair
    ):
        raise WrongValueError("env_vars must be a dict of strings")
    return {"env_vars": dict(env_vars)}


def only(*accepted: Any, why: str) -> Check:
    """An option of which this release honours some values only, those that change nothing."""

    def check(_name: str, value: Any) -> Any:
        # Types are compared first: 0 == False, and an array compares to an array of answers.
        if any(type(value) is type(each) and value == each for each in accepted):
            return value
        raise WrongValueError(f"not in this release: {why}")

    return check
