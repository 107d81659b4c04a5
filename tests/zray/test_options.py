"""The options of tasks, actors and methods: defaults, what is refused and how it is said.

What    The table against the three records, Ray's defaults, every kind of wrong value.
Never   starts a process: options are plain data.
"""

from __future__ import annotations

import ast
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zray.options
from zray.errors import OptionError
from zray.options import OPTIONS, ActorOptions, MethodOptions, TaskOptions, describe
from zray.protocol.units import RESOURCE_UNITS, to_units
from zray.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)

RECORDS = {"task": TaskOptions, "actor": ActorOptions, "method": MethodOptions}
Record = type[TaskOptions] | type[ActorOptions] | type[MethodOptions]


def _refusal(record: Record, **given: Any) -> str:
    with pytest.raises(OptionError) as caught:
        record.parse(given)
    assert caught.value.option in given or caught.value.option == "get_if_exists"
    return str(caught.value)


@pytest.mark.parametrize("target", RECORDS)
def test_a_record_has_exactly_the_options_that_the_table_keeps_for_it(target: str) -> None:
    rows = [row for row in OPTIONS.values() if target in row.defaults and row.kept]
    assert {each.name for each in fields(RECORDS[target])} == {row.field for row in rows}


@pytest.mark.parametrize("row", OPTIONS.values(), ids=lambda row: row.name)
def test_every_default_passes_its_own_check_and_every_row_is_documented(row: Any) -> None:
    for default in row.defaults.values():
        assert default is None or row.check(row.name, default) == default
    assert row.doc.endswith(".")
    assert row.kind


def test_rays_defaults() -> None:
    task = TaskOptions.parse({})
    assert (task.num_cpus, task.max_retries, task.retry_exceptions) == (1, 3, False)
    assert (task.num_returns, task.max_calls, task.num_gpus) == (None, 0, 0)
    actor = ActorOptions.parse({})
    assert (actor.restarts, actor.max_task_retries, actor.max_pending_calls) == (0, 0, -1)
    assert (actor.max_concurrency, actor.lifetime, actor.name) == (None, "non_detached", None)
    assert (actor.get_if_exists, actor.isolation) == (False, "process")


def test_none_stands_for_the_default() -> None:
    every = dict.fromkeys((row.name for row in OPTIONS.values() if "task" in row.defaults), None)
    assert TaskOptions.parse(every) == TaskOptions.parse({})
    assert TaskOptions.parse({"max_retries": 7}).merged({"max_retries": None}).max_retries == 3


def test_merging_changes_what_is_given_and_keeps_the_rest() -> None:
    first = TaskOptions.parse({"num_cpus": 2, "name": "a"})
    second = first.merged({"name": "b", "resources": {"disk": 1}})
    assert (second.num_cpus, second.name, second.resources) == (2, "b", {"disk": 1})
    assert (first.name, first.resources) == ("a", None)


@pytest.mark.parametrize("record", RECORDS.values())
def test_records_pickle(record: Record) -> None:
    options = record.parse({"name": "x"})
    assert pickle.loads(pickle.dumps(options)) == options


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TaskOptions.parse({}).max_retries = 1  # type: ignore[misc]


def test_a_request_is_in_units_without_zeros() -> None:
    options = TaskOptions.parse(
        {"num_cpus": 0.5, "num_gpus": 2, "memory": 1000, "resources": {"a": 0.0001, "b": 0}}
    )
    assert options.resource_request() == {
        "CPU": 5_000,
        "GPU": 20_000,
        "memory": 10_000_000,
        "a": 1,
    }
    assert TaskOptions.parse({"num_cpus": 0}).resource_request() == {}


@pytest.mark.parametrize(
    ("given", "held", "placed"),
    [
        ({}, {}, {"CPU": 10_000}),
        ({"num_cpus": 0}, {}, {}),
        ({"num_cpus": 2}, {"CPU": 20_000}, {"CPU": 20_000}),
        (
            {"num_gpus": 1},
            {"GPU": 10_000, "CPU": 10_000},
            {"GPU": 10_000, "CPU": 10_000},
        ),
        ({"memory": 1}, {"memory": 10_000}, {"memory": 10_000, "CPU": 10_000}),
        ({"isolation": "shared"}, {}, {}),
    ],
)
def test_an_actor_needs_a_cpu_to_be_placed_and_none_to_live(
    given: dict[str, Any], held: dict[str, int], placed: dict[str, int]
) -> None:
    options = ActorOptions.parse(given)
    assert options.resource_request() == held
    assert options.placement_request() == placed


def test_numbers_of_numpy_count_as_numbers() -> None:
    options = TaskOptions.parse({"num_cpus": np.float64(0.25), "max_retries": np.int64(2)})
    assert options.resource_request() == {"CPU": 2_500}
    assert type(options.max_retries) is int


def test_an_unknown_option_names_the_nearest() -> None:
    assert "did you mean num_cpus?" in _refusal(TaskOptions, num_cpu=1)
    assert "did you mean max_restarts?" in _refusal(ActorOptions, max_restart=1)
    assert "there are" in _refusal(MethodOptions, zzz=1)


def test_an_option_of_another_target_says_whose_it_is() -> None:
    assert _refusal(TaskOptions, max_restarts=1) == (
        "max_restarts is an option of actors, not of tasks"
    )
    assert "of tasks, not of actors" in _refusal(ActorOptions, max_retries=1)
    assert "of tasks and actors, not of methods" in _refusal(MethodOptions, num_cpus=1)


@pytest.mark.parametrize(
    ("record", "given", "said"),
    [
        (TaskOptions, {"num_cpus": -1}, "finite number >= 0"),
        (TaskOptions, {"num_cpus": float("nan")}, "finite number >= 0"),
        (TaskOptions, {"num_cpus": "1"}, "not str"),
        (TaskOptions, {"num_cpus": True}, "not bool"),
        (TaskOptions, {"num_cpus": 0.00001}, "smallest share"),
        (TaskOptions, {"memory": 10**18}, "is larger than"),
        (TaskOptions, {"num_gpus": 1.5}, "whole number"),
        (TaskOptions, {"resources": {"CPU": 1}}, "with the option num_cpus"),
        (TaskOptions, {"resources": ["a"]}, "dict of amounts"),
        (TaskOptions, {"resources": {"a": -1}}, "one of its amounts"),
        (TaskOptions, {"resources": {3: 1}}, "name of a resource"),
        (TaskOptions, {"num_returns": "dynamic"}, '"streaming"'),
        (TaskOptions, {"num_returns": -1}, "0 or more"),
        (TaskOptions, {"num_returns": "many"}, '"streaming"'),
        (TaskOptions, {"max_retries": -2}, "-1 or more"),
        (TaskOptions, {"max_retries": 1.0}, "not float"),
        (TaskOptions, {"retry_exceptions": ["ValueError"]}, "exception classes"),
        (TaskOptions, {"retry_exceptions": ValueError}, "exception classes"),
        (TaskOptions, {"name": ""}, "not empty"),
        (TaskOptions, {"runtime_env": {"pip": ["x"]}}, "env_vars only, not 'pip'"),
        (TaskOptions, {"runtime_env": {"env_vars": {"A": 1}}}, "dict of strings"),
        (TaskOptions, {"runtime_env": "file.yaml"}, "it must be a dict"),
        (TaskOptions, {"_generator_backpressure_num_objects": -1}, "1 or more"),
        (ActorOptions, {"max_pending_calls": 0}, "-1 or more and not 0"),
        (ActorOptions, {"max_concurrency": 0}, "1 or more"),
        (ActorOptions, {"concurrency_groups": {"io": 0}}, "1 or more"),
        (ActorOptions, {"concurrency_groups": [{"name": "io"}]}, "it must be a dict"),
        (ActorOptions, {"lifetime": "forever"}, "'detached' or 'non_detached'"),
        (ActorOptions, {"isolation": "thread"}, "'process' or 'shared'"),
        (ActorOptions, {"get_if_exists": 1, "name": "a"}, "True or False"),
        (ActorOptions, {"get_if_exists": True}, "needs a name"),
        (ActorOptions, {"recovery": "none", "max_restarts": 2}, "contradicts"),
        (ActorOptions, {"recovery": "restart", "max_restarts": 0}, "contradicts"),
        (ActorOptions, {"isolation": "shared", "num_gpus": 1}, 'isolation="process"'),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_reason(
    record: Record, given: dict[str, Any], said: str
) -> None:
    message = _refusal(record, **given)
    assert said in message
    assert any(name in message for name in given)


@pytest.mark.parametrize(
    "given",
    [
        {"fallback_strategy": [{}]},
        {"accelerator_type": "A100"},
        {"enable_task_events": False},
        {"object_store_memory": 1},
        {"recovery": "state"},
        {"recovery": "replay"},
        {"survives": "node"},
        {"allow_out_of_order_execution": True},
        {"enable_tensor_transport": True},
    ],
    ids=str,
)
def test_what_this_release_cannot_honour_is_refused(given: dict[str, Any]) -> None:
    assert "not in this release" in _refusal(ActorOptions, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"scheduling_strategy": object()},
        {"scheduling_strategy": "PACK"},
        {"label_selector": ["zone"]},
        {"label_selector": {"zone": 1}},
        {"label_selector": {"zone": "near(a)"}},
    ],
    ids=str,
)
def test_a_placement_that_is_none_is_refused(given: dict[str, Any]) -> None:
    assert next(iter(given)) in _refusal(TaskOptions, **given)


def test_a_placement_is_told_to_the_node_as_one_row() -> None:
    affinity = NodeAffinitySchedulingStrategy("00112233" + "00" * 4, soft=True)
    labels = NodeLabelSchedulingStrategy({"zone": In("a", "b"), "gpu": DoesNotExist()})
    assert TaskOptions.parse({}).where is None
    assert TaskOptions.parse({"scheduling_strategy": "SPREAD"}).where == ["SPREAD", b"", False, {}]
    node = bytes.fromhex("0011223300000000")
    assert TaskOptions.parse({"scheduling_strategy": affinity}).where == ["DEFAULT", node, True, {}]
    found = ActorOptions.parse({"scheduling_strategy": labels, "label_selector": {"disk": "ssd"}})
    rules = {"disk": "ssd", "gpu": "!exists()", "zone": "in(a, b)"}
    assert found.where == ["DEFAULT", b"", False, rules]


def test_a_strategy_with_a_wrong_part_is_refused_where_it_is_made() -> None:
    with pytest.raises(OptionError, match="no node's id"):
        NodeAffinitySchedulingStrategy("head", soft=False)
    with pytest.raises(OptionError, match="condition"):
        NodeLabelSchedulingStrategy({"zone": "a"})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="label value"):
        In()


def test_a_shared_actor_is_not_placed() -> None:
    message = _refusal(ActorOptions, isolation="shared", scheduling_strategy="SPREAD")
    assert "shares a process" in message


def test_speculation_and_tensor_transport_are_refused() -> None:
    assert "not in this release" in _refusal(TaskOptions, speculate=True)
    assert "not in this release" in _refusal(TaskOptions, speculate=0)
    assert "not in this release" in _refusal(MethodOptions, tensor_transport="nccl")


def test_values_of_ray_that_change_nothing_are_accepted() -> None:
    ActorOptions.parse(
        {
            "placement_group": "default",
            "placement_group_bundle_index": -1,
            "placement_group_capture_child_tasks": None,
            "scheduling_strategy": "SPREAD",
            "enable_task_events": True,
            "runtime_env": {},
        }
    )


def test_restarts_follow_from_recovery_or_max_restarts() -> None:
    assert ActorOptions.parse({"recovery": "restart"}).restarts == -1
    assert ActorOptions.parse({"recovery": "restart", "max_restarts": 2}).restarts == 2
    assert ActorOptions.parse({"max_restarts": 3}).restarts == 3
    assert ActorOptions.parse({"recovery": "none"}).restarts == 0


def test_environment_variables_are_read_from_the_runtime_env() -> None:
    env = {"env_vars": {"A": "1"}, "pip": None}
    assert TaskOptions.parse({"runtime_env": env}).env_vars == {"A": "1"}
    assert ActorOptions.parse({}).env_vars == {}


def test_retry_exceptions_are_kept_as_a_tuple() -> None:
    options = MethodOptions.parse({"retry_exceptions": [ValueError, OSError]})
    assert options.retry_exceptions == (ValueError, OSError)


def test_a_wrong_value_is_shown_short_and_may_be_unshowable() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    assert len(_refusal(TaskOptions, name=["x" * 1000])) < 200
    assert "it must be a string" in _refusal(TaskOptions, name=Mute())


def test_describe_has_a_row_for_each_option() -> None:
    rows = {row[0]: row for row in describe()}
    assert set(rows) == set(OPTIONS)
    assert rows["max_retries"][1:5] == ("integer >= -1", "3", "", "")


def test_the_keywords_that_checkers_know_are_the_options_of_the_table() -> None:
    stub = Path(zray.options.__file__).with_name("signatures.pyi")
    classes = {
        node.name: node
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef)
    }

    def keywords(name: str) -> set[str]:
        node = classes[name]
        own = {str(item.target.id) for item in node.body if isinstance(item, ast.AnnAssign)
               and isinstance(item.target, ast.Name)}  # fmt: skip
        above = [base.id for base in node.bases if isinstance(base, ast.Name)]
        return own.union(*(keywords(base) for base in above if base in classes))

    for target, name in [("task", "Task"), ("actor", "Actor"), ("method", "Method")]:
        kept = {row.name for row in OPTIONS.values() if target in row.defaults and row.kept}
        assert keywords(f"{name}Keywords") == kept - {"num_returns"}
    assert keywords("RemoteKeywords") == keywords("TaskKeywords") | keywords("ActorKeywords")


@given(st.integers(min_value=0, max_value=10**9))
def test_a_multiple_of_a_ten_thousandth_is_counted_exactly(units: int) -> None:
    assert to_units(units / RESOURCE_UNITS) == units


@given(st.floats(min_value=0.001, max_value=1e6))
def test_an_amount_is_never_counted_as_noticeably_more_than_it_says(amount: float) -> None:
    assert amount - 1 / RESOURCE_UNITS < to_units(amount) / RESOURCE_UNITS <= amount + 1e-9
