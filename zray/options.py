"""The options of tasks, actors and methods: one table, three records.

What    OPTIONS holds a row for each option: which of task, actor and method take it, with which
        default, what it may be, and one line for the docs. TaskOptions, ActorOptions and
        MethodOptions are made from keyword arguments by that table.
Caller  zray/remote.py for `@zray.remote(...)`, `.options(...)` and `@zray.method(...)`; the docs.
Never   takes an option and ignores it: what this release cannot honour raises OptionError, which
        names the option and the reason.
Spec    docs/reference/options.md, generated from `describe`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from zray.errors import OptionError

from . import option_checks as checks
from . import option_placement
from .option_checks import Check, NumReturns, WrongValueError
from .protocol.limits import GENERATOR_BACKLOG_MAX
from .protocol.units import CPU, GPU, MEMORY, RESOURCE_UNITS, to_units

# ------------------------------------------------------------------------------------------ table


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table.

    `defaults` has an entry for each of "task", "actor" and "method" that takes the option. An
    option that may only have its default is not `kept`: there is nothing to record.
    """

    name: str
    kind: str
    defaults: Mapping[str, Any]
    check: Check
    doc: str
    alias: str = ""
    kept: bool = True

    @property
    def field(self) -> str:
        """Its name in the records."""
        return self.alias or self.name


def _refused(name: str, why: str, doc: str, **defaults: Any) -> Option:
    """Make the row of an option that changes nothing here, and may only say so: its default."""
    accepted = [value for value in defaults.values() if value is not None][:1]
    check = checks.only(*accepted, why=why)
    return Option(name, "not in this release", defaults, check, doc, kept=False)


_NO_FALLBACK = "what finds no node waits for one"
_NO_MODELS = "models of GPUs are not told apart: give nodes a label, and use label_selector"
_NO_JOURNAL = "not in this release: an actor's state is not journaled yet"

_ROWS = (
    # What it needs.
    Option(
        "num_cpus", "number >= 0", {"task": 1, "actor": None}, checks.amount,
        "CPUs it holds while it runs. An actor that names no resource needs 1 to be placed and "
        "holds 0; one that names another resource holds 1.",
    ),
    Option(
        "num_gpus", "number >= 0", {"task": 0, "actor": 0}, checks.amount,
        "GPUs it holds, whole ones or a share of one; their indices are in CUDA_VISIBLE_DEVICES.",
    ),
    Option(
        "memory", "bytes", {"task": 0, "actor": 0}, checks.amount,
        "Memory it is counted with when it is placed. It is not enforced.",
    ),
    Option(
        "resources", "dict of name to number", {"task": None, "actor": None},
        checks.custom_resources,
        "Amounts of custom resources, as offered by zray.init or zray-node start.",
    ),
    Option(
        "scheduling_strategy", '"DEFAULT", "SPREAD" or a strategy',
        {"task": "DEFAULT", "actor": "DEFAULT"}, option_placement.scheduling_strategy,
        "Where to place it: where there is room, on the nodes in turn, or on the node that an "
        "object of zray.util.scheduling_strategies names.",
    ),
    Option(
        "placement_group", "placement group", {"task": "default", "actor": "default"},
        option_placement.placement_group,
        "Placement group to run in, as PlacementGroupSchedulingStrategy says it too. The default "
        "is that of the caller, where it captures its children, else none.",
    ),
    Option(
        "placement_group_bundle_index", "integer >= -1", {"task": -1, "actor": -1},
        checks.integer_from(-1), "Bundle of the group to run in; -1 is any that has room.",
    ),
    Option(
        "placement_group_capture_child_tasks", "bool", {"task": False, "actor": False},
        checks.boolean, "Whether what it submits runs in the group too, unless told otherwise.",
    ),
    Option(
        "label_selector", "dict of label to condition", {"task": None, "actor": None},
        option_placement.label_selector,
        'Labels that its node must have: "value", "!value", "in(a, b)", "!in(a, b)", "exists()" '
        'or "!exists()".',
    ),
    Option(
        "runtime_env", "dict", {"task": None, "actor": None}, checks.runtime_env,
        "Environment of its process; of its keys, env_vars is honoured.",
    ),
    # What it is called.
    Option(
        "name", "string", {"task": None, "actor": None, "method": None}, checks.text,
        "A task's or method's name in events and errors; the name get_actor finds an actor by.",
    ),
    Option(
        "namespace", "string", {"actor": None}, checks.text,
        "Where the actor's name is valid; None is the namespace of the session.",
    ),
    Option(
        "get_if_exists", "bool", {"actor": False}, checks.boolean,
        "Return the actor that has the name already instead of raising NameTakenError.",
    ),
    Option(
        "lifetime", '"detached" or "non_detached"', {"actor": "non_detached"},
        checks.one_of("detached", "non_detached"),
        "A detached actor outlives its driver and lasts until it is killed.",
    ),
    # What it returns.
    Option(
        "num_returns", 'integer >= 0 or "streaming"', {"task": None, "method": None},
        checks.num_returns,
        "How many refs .remote returns. None is 1, or streaming for a generator.",
    ),
    Option(
        "_generator_backpressure_num_objects", "integer >= 1",
        {"task": GENERATOR_BACKLOG_MAX, "method": GENERATOR_BACKLOG_MAX}, checks.integer_from(1),
        "Items a generator may run ahead of its consumer before it waits.",
        alias="generator_backlog",
    ),
    # What happens when it fails.
    Option(
        "max_retries", "integer >= -1", {"task": 3}, checks.integer_from(-1),
        "Times a task is started again after its worker died; -1 is without end.",
    ),
    Option(
        "retry_exceptions", "bool or list of exception classes", {"task": False, "method": False},
        checks.retry_exceptions,
        "Whether an exception of the function is a reason to retry, or which ones are.",
    ),
    Option(
        "max_calls", "integer >= 0", {"task": 0}, checks.integer_from(0),
        "A worker ends after this many calls of it, to give back what leaked; 0 is never.",
    ),
    Option(
        "recovery", '"none" or "restart"', {"actor": None},
        checks.one_of("none", "restart", later={"state": _NO_JOURNAL, "replay": _NO_JOURNAL}),
        "What becomes of an actor whose process died; restart runs __init__ again.",
    ),
    Option(
        "max_restarts", "integer >= -1", {"actor": None}, checks.integer_from(-1),
        'Times an actor is restarted; -1 is without end. None is 0, or -1 with recovery="restart".',
    ),
    Option(
        "max_task_retries", "integer >= -1", {"actor": 0, "method": None}, checks.integer_from(-1),
        "Times a call is sent again after its actor restarted. A method's None is the actor's.",
    ),
    # How its calls run.
    Option(
        "max_concurrency", "integer >= 1", {"actor": None}, checks.integer_from(1),
        "Calls that run at once. None is 1, or 1000 for a class with async methods.",
    ),
    Option(
        "concurrency_groups", "dict of name to integer >= 1", {"actor": None},
        checks.concurrency_groups,
        "Named pools of calls, each with a limit of its own.",
    ),
    Option(
        "concurrency_group", "string", {"method": None}, checks.text,
        "The group of the actor that the method's calls run in.",
    ),
    Option(
        "max_pending_calls", "integer >= 1, or -1", {"actor": -1},
        checks.integer_from(-1, but_not=0),
        "Calls of one caller that may wait before it gets PendingCallsLimitError; -1 is no limit.",
    ),
    Option(
        "isolation", '"process" or "shared"', {"actor": "process"},
        checks.one_of("process", "shared"),
        "A process of its own, or one shared with thousands of other actors.",
    ),
)  # fmt: skip

_REFUSED_ROWS = (
    _refused("fallback_strategy", _NO_FALLBACK, "What to try after that.", task=None, actor=None),
    _refused("accelerator_type", _NO_MODELS, "Model of GPU to place on.", task=None, actor=None),
    _refused("object_store_memory", "the store is shared", "Bytes of it to keep.", actor=None),
    _refused(
        "speculate", "a task runs once", "Start a straggler a second time elsewhere.", task=False,
    ),
    _refused("survives", "actors are not journaled yet", "What a reply outlives.", actor=None),
    _refused(
        "allow_out_of_order_execution", "sync actors keep the order of calls, others do not",
        "Whether calls may overtake each other.", actor=None,
    ),
    _refused(
        "enable_task_events", "events are always kept, in a bounded ring",
        "Whether events are kept.", task=True, actor=True, method=True,
    ),
    _refused(
        "enable_tensor_transport", "arrays travel through shared memory",
        "Device-to-device transport of results.", actor=False,
    ),
    _refused(
        "tensor_transport", "arrays travel through shared memory",
        "Device-to-device transport of the result.", method=None,
    ),
)  # fmt: skip

OPTIONS: Mapping[str, Option] = {row.name: row for row in (*_ROWS, *_REFUSED_ROWS)}


def describe() -> list[tuple[str, str, str, str, str, str]]:
    """Return a row (name, kind, task, actor, method, doc) per option, for the docs.

    The three in the middle are the default there, or "" where the option does not apply.
    """

    def default(option: Option, target: str) -> str:
        return repr(option.defaults[target]) if target in option.defaults else ""

    return [
        (
            row.name,
            row.kind,
            default(row, "task"),
            default(row, "actor"),
            default(row, "method"),
            row.doc,
        )
        for row in OPTIONS.values()
    ]


# ---------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True)
class _Options:
    """What the three records share: they are made by `parse`, and changed by `merged`."""

    target: ClassVar[str] = ""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Return the record of keyword arguments `given`; None stands for the default.

        Raises OptionError for an option that is unknown, not of this target, wrong or refused.
        """
        values = {
            row.field: row.defaults[cls.target]
            for row in OPTIONS.values()
            if row.kept and cls.target in row.defaults
        }
        return cls._made(values, given)

    def merged(self, given: Mapping[str, Any]) -> Self:
        """Return a copy with the options `given` changed; None stands for the default.

        Raises OptionError as `parse` does.
        """
        return self._made({each.name: getattr(self, each.name) for each in fields(self)}, given)

    @classmethod
    def _made(cls, values: dict[str, Any], given: Mapping[str, Any]) -> Self:
        for name, value in given.items():
            option = _find(name, cls.target)
            checked = option.defaults[cls.target] if value is None else _checked(option, cls, value)
            if option.kept:
                values[option.field] = checked
        made = cls(**values)
        made._check_together()
        return made

    def _check_together(self) -> None:
        """Refuse options that are right one by one and contradict each other."""


@dataclass(frozen=True, slots=True)
class _PlacedOptions(_Options):
    """What tasks and actors share: where they run."""

    @property
    def names_strategy(self) -> bool:
        """Whether its author has said how it is placed: then its caller's group is not asked."""
        given: Any = self
        return bool(given.scheduling_strategy != "DEFAULT" or given.placement_group != "default")

    @property
    def where(self) -> list[Any] | None:
        """Which node it goes to, as messages say it."""
        given: Any = self
        strategy = given.scheduling_strategy
        if given.placement_group != "default":
            strategy = option_placement.in_group(
                given.placement_group,
                given.placement_group_bundle_index,
                given.placement_group_capture_child_tasks,
            )
        return option_placement.where(strategy, given.label_selector)

    def _check_together(self) -> None:
        given: Any = self
        if given.placement_group == "default":
            if given.placement_group_bundle_index != -1:
                raise OptionError(
                    "a bundle's index says nothing without a placement group: name it with"
                    " placement_group, or use PlacementGroupSchedulingStrategy",
                    option="placement_group_bundle_index",
                )
        elif given.scheduling_strategy != "DEFAULT":
            raise OptionError(
                "placement_group and scheduling_strategy both say where it runs: give one",
                option="placement_group",
            )


@dataclass(frozen=True, slots=True)
class TaskOptions(_PlacedOptions):
    """Options of a remote function. `num_returns` None is 1, or "streaming" for a generator."""

    target: ClassVar[str] = "task"

    num_cpus: float
    num_gpus: float
    memory: float
    resources: Mapping[str, float] | None
    scheduling_strategy: Any
    placement_group: Any
    placement_group_bundle_index: int
    placement_group_capture_child_tasks: bool
    label_selector: Mapping[str, str] | None
    runtime_env: Mapping[str, Mapping[str, str]] | None
    name: str | None
    num_returns: NumReturns | None
    generator_backlog: int
    max_retries: int
    retry_exceptions: bool | tuple[type[BaseException], ...]
    max_calls: int

    def resource_request(self) -> dict[str, int]:
        """Return what the task holds while it runs, in units of 1/10000, without zeros."""
        return _request(self.num_cpus, self.num_gpus, self.memory, self.resources)

    @property
    def env_vars(self) -> dict[str, str]:
        """Environment variables that the task's process must have."""
        return dict((self.runtime_env or {}).get("env_vars", {}))


@dataclass(frozen=True, slots=True)
class ActorOptions(_PlacedOptions):
    """Options of an actor class.

    `max_concurrency` None is 1, or 1000 for a class with async methods. Read `restarts` rather than
    `max_restarts` and `recovery`, which together say it.
    """

    target: ClassVar[str] = "actor"

    num_cpus: float | None
    num_gpus: float
    memory: float
    resources: Mapping[str, float] | None
    scheduling_strategy: Any
    placement_group: Any
    placement_group_bundle_index: int
    placement_group_capture_child_tasks: bool
    label_selector: Mapping[str, str] | None
    runtime_env: Mapping[str, Mapping[str, str]] | None
    name: str | None
    namespace: str | None
    get_if_exists: bool
    lifetime: str
    recovery: str | None
    max_restarts: int | None
    max_task_retries: int
    max_concurrency: int | None
    concurrency_groups: Mapping[str, int] | None
    max_pending_calls: int
    isolation: str

    def resource_request(self) -> dict[str, int]:
        """Return what the actor holds while it lives, in units of 1/10000, without zeros.

        As in Ray, an actor that names a resource other than memory, but no CPU, holds one CPU.
        """
        names_one = bool(self.num_gpus or self.resources)
        cpus = self.num_cpus if self.num_cpus is not None else int(names_one)
        return _request(cpus, self.num_gpus, self.memory, self.resources)

    def placement_request(self) -> dict[str, int]:
        """Return what must be free when the actor is placed, in units of 1/10000, without zeros.

        An actor that names no resource is placed where a CPU is, so that a node is not flooded with
        them. Shared actors, which are many and small by intent, are placed freely.
        """
        request = self.resource_request()
        if self.num_cpus is None and self.isolation == "process":
            request.setdefault(CPU, RESOURCE_UNITS)
        return request

    @property
    def restarts(self) -> int:
        """How often the actor is restarted after its process died; -1 is without end."""
        if self.max_restarts is not None:
            return self.max_restarts
        return -1 if self.recovery == "restart" else 0

    @property
    def env_vars(self) -> dict[str, str]:
        """Environment variables that the actor's process must have."""
        return dict((self.runtime_env or {}).get("env_vars", {}))

    def _check_together(self) -> None:
        _PlacedOptions._check_together(self)
        if self.get_if_exists and self.name is None:
            raise OptionError("get_if_exists=True needs a name to look for", option="get_if_exists")
        if self.recovery == "none" and self.max_restarts:
            raise OptionError(
                f'recovery="none" contradicts max_restarts={self.max_restarts}: drop one of them',
                option="recovery",
            )
        if self.recovery == "restart" and self.max_restarts == 0:
            raise OptionError(
                'recovery="restart" contradicts max_restarts=0: drop one of them', option="recovery"
            )
        if self.isolation == "shared" and self.where is not None:
            raise OptionError(
                'isolation="shared" shares a process with actors that are there already, so it'
                ' can\'t be placed: use isolation="process"',
                option="label_selector" if self.label_selector else "scheduling_strategy",
            )
        if self.isolation == "shared" and (self.num_gpus or self.env_vars):
            option = "num_gpus" if self.num_gpus else "runtime_env"
            raise OptionError(
                f'{option} sets the environment of a process, and isolation="shared" shares the '
                'process with other actors: use isolation="process"',
                option=option,
            )


@dataclass(frozen=True, slots=True)
class MethodOptions(_Options):
    """Options of an actor's method, or of one call of it.

    `max_task_retries` None is what the actor says. `num_returns` None is 1, or "streaming" for a
    generator.
    """

    target: ClassVar[str] = "method"

    name: str | None
    num_returns: NumReturns | None
    generator_backlog: int
    retry_exceptions: bool | tuple[type[BaseException], ...]
    max_task_retries: int | None
    concurrency_group: str | None


def _find(name: str, target: str) -> Option:
    """Return the row of an option of `target`, or raise with the nearest name there is."""
    option = OPTIONS.get(name)
    if option is not None and target in option.defaults:
        return option
    if option is not None:
        targets = " and ".join(f"{each}s" for each in option.defaults)
        raise OptionError(f"{name} is an option of {targets}, not of {target}s", option=name)
    import difflib

    known = [row.name for row in OPTIONS.values() if target in row.defaults]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    raise OptionError(f"{name!r} is not an option of {target}s: {advice}", option=name)


def _checked(option: Option, cls: type[_Options], value: Any) -> Any:
    """Return `value` as the record keeps it."""
    try:
        return option.check(option.name, value)
    except WrongValueError as wrong:
        # Not repr: the value may be huge, or raise when it is shown.
        shown = reprlib.repr(value)
        raise OptionError(
            f"{cls.target} option {option.name}={shown}: {wrong}", option=option.name
        ) from None


def _request(
    num_cpus: float, num_gpus: float, memory: float, resources: Mapping[str, float] | None
) -> dict[str, int]:
    """Return amounts as units by resource name, without zeros."""
    amounts = {CPU: num_cpus, GPU: num_gpus, MEMORY: memory, **(resources or {})}
    return {name: to_units(amount) for name, amount in amounts.items() if amount}
