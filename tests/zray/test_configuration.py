"""Settings: who overrules whom, what is refused and how it is said.

What    Precedence of code, variables and files; every parser; typos; the directory of a node.
Never   starts a process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import zray
from zray import configuration, node_address, node_directory
from zray.errors import NodeStartError, OptionError


def _resolve(
    folder: Path, given: dict[str, Any] | None = None, *, environ: dict[str, str] | None = None
) -> configuration.Resolved:
    return configuration.resolve(given or {}, environ=environ or {}, folder=str(folder))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_code_overrules_variables_and_variables_overrule_the_file(project: Path) -> None:
    (project / "zray.toml").write_text('num_cpus = 1\nnum_gpus = 2\nnamespace = "file"\n')
    found = _resolve(
        project,
        {"num_cpus": 3, "memory": None},
        environ={"ZRAY_NUM_CPUS": "2", "ZRAY_NUM_GPUS": "1"},
    )
    assert found.values == {"num_cpus": 3, "num_gpus": 1, "namespace": "file"}
    assert found.origins == {
        "num_cpus": "zray.init()",
        "num_gpus": "environment",
        "namespace": str(project / "zray.toml"),
    }
    assert found.node() == {"num_cpus": 3, "num_gpus": 1}


def test_a_falsy_value_given_in_code_is_given(project: Path) -> None:
    (project / "zray.toml").write_text("num_gpus = 2\nlog_to_driver = true\n")
    found = _resolve(project, {"num_gpus": 0, "log_to_driver": False})
    assert found.values == {"num_gpus": 0, "log_to_driver": False}


def test_pyproject_is_read_and_found_from_a_folder_below(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        "[tool.zray]\nnum_cpus = 4\nresources = {license = 2}\n"
    )
    below = project / "a" / "b"
    below.mkdir(parents=True)
    assert _resolve(below).values == {"num_cpus": 4, "resources": {"license": 2}}


def test_the_search_ends_at_the_root_of_the_repository(project: Path) -> None:
    (project / "zray.toml").write_text("num_cpus = 4\n")
    inner = project / "inner"
    (inner / ".git").mkdir(parents=True)
    assert _resolve(inner).values == {}


def test_zray_toml_goes_before_pyproject_and_zray_config_before_both(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.zray]\nnum_cpus = 4\n")
    (project / "zray.toml").write_text("num_cpus = 5\n")
    (project / "other.toml").write_text("num_cpus = 6\n")
    assert _resolve(project).values == {"num_cpus": 5}
    named = _resolve(project, environ={"ZRAY_CONFIG": str(project / "other.toml")})
    assert named.values == {"num_cpus": 6}
    with pytest.raises(OptionError, match=r"missing\.toml cannot be read"):
        _resolve(project, environ={"ZRAY_CONFIG": str(project / "missing.toml")})


@pytest.mark.parametrize(
    ("variables", "values"),
    [
        ({"ZRAY_NUM_CPUS": "2.5"}, {"num_cpus": 2.5}),
        ({"ZRAY_MEMORY": "4GiB"}, {"memory": 4 << 30}),
        ({"ZRAY_MEMORY": "1.5 kb"}, {"memory": 1500}),
        ({"ZRAY_OBJECT_STORE_MEMORY": "2000000"}, {"object_store_memory": 2_000_000}),
        ({"ZRAY_RESOURCES": '{"license": 0.5}'}, {"resources": {"license": 0.5}}),
        ({"ZRAY_LOG_TO_DRIVER": "false"}, {"log_to_driver": False}),
        ({"ZRAY_ADDRESS": ""}, {}),
        ({"ZRAY_TMPDIR": "/x", "OTHER": "1"}, {}),
    ],
)
def test_variables_are_parsed(
    project: Path, variables: dict[str, str], values: dict[str, Any]
) -> None:
    assert _resolve(project, environ=variables).values == values


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ZRAY_NUM_CPU": "2"}, "did you mean ZRAY_NUM_CPUS"),
        ({"ZRAY_QQQ": "2"}, "there are ZRAY_ADDRESS"),
        ({"ZRAY_NUM_CPUS": "two"}, "ZRAY_NUM_CPUS='two'"),
        ({"ZRAY_NUM_CPUS": "-1"}, ">= 0"),
        ({"ZRAY_MEMORY": "much"}, "4GiB"),
        ({"ZRAY_OBJECT_STORE_MEMORY": "10"}, "1 MiB"),
        ({"ZRAY_RESOURCES": "license"}, "JSON"),
        ({"ZRAY_RESOURCES": '{"CPU": 1}'}, "num_cpus"),
        ({"ZRAY_LOG_TO_DRIVER": "perhaps"}, "True or False"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(
    project: Path, variables: dict[str, str], said: str
) -> None:
    with pytest.raises(OptionError) as caught:
        _resolve(project, environ=variables)
    assert said in str(caught.value)


def test_an_unknown_key_of_a_file_is_refused_with_a_suggestion(project: Path) -> None:
    (project / "zray.toml").write_text("object_store_memroy = 5\n")
    with pytest.raises(OptionError) as caught:
        _resolve(project)
    assert "did you mean object_store_memory" in str(caught.value)
    assert str(project / "zray.toml") in str(caught.value)


def test_the_users_own_file_is_the_last_to_be_asked(project: Path, tmp_path: Path) -> None:
    (tmp_path / "zray").mkdir()
    (tmp_path / "zray" / "zray.toml").write_text('num_cpus = 1\nkeys = "mine"\nport = 7\n')
    (project / "zray.toml").write_text("num_cpus = 2\n")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    found = _resolve(project, environ=environ)
    assert found.values == {"num_cpus": 2, "keys": "mine", "port": 7}
    assert found.origins["keys"] == str(tmp_path / "zray" / "zray.toml")
    assert _resolve(project, environ={"HOME": str(tmp_path / "nobody")}).values == {"num_cpus": 2}
    (tmp_path / "named.toml").write_text("")
    named = {**environ, "ZRAY_CONFIG": str(tmp_path / "named.toml")}
    assert _resolve(project, environ=named).values == {}, "the file that is named is the only one"
    (tmp_path / "zray" / "zray.toml").write_text("num_cpu = 1\n")
    with pytest.raises(OptionError, match="did you mean num_cpus"):
        _resolve(project, environ=environ)


EVERY: list[tuple[str, Any, Any]] = [
    ("address", "zray://a:1", "zray://a:1"),
    ("driver_host", "10.0.0.9", "10.0.0.9"),
    ("driver_port", "7000", 7000),
    ("driver_bulk_port", "0", 0),
    ("driver_advertise", "b:2", "b:2"),
    ("keys", "/k", "/k"),
    ("host", "::1", "::1"),
    ("port", "6380", 6380),
    ("bulk_port", "6381", 6381),
    ("advertise", "b", "b"),
    ("labels", "zone=a", {"zone": "a"}),
    ("head", "yes", True),
    ("join", "a:1", ["tcp://a:1"]),
]


@pytest.mark.parametrize(("name", "text", "value"), EVERY)
def test_every_setting_of_a_cluster_is_taken_from_every_layer(
    project: Path, name: str, text: str, value: Any
) -> None:
    assert _resolve(project, {name: text}).values == {name: value}
    assert _resolve(project, environ={f"ZRAY_{name.upper()}": text}).values == {name: value}
    (project / "zray.toml").write_text(f'{name} = "{text}"\n')
    if name != "head":  # In a file it is true or false.
        assert _resolve(project).values == {name: value}
    assert _resolve(project, {name: text}).is_typed(name)


def test_a_wrong_value_is_refused_even_where_a_stronger_one_hides_it(project: Path) -> None:
    (project / "zray.toml").write_text("num_cpus = -1\n")
    with pytest.raises(OptionError, match="num_cpus=-1"):
        _resolve(project, {"num_cpus": 1})


def test_a_file_that_is_not_toml_is_refused(project: Path) -> None:
    (project / "zray.toml").write_text("num_cpus: 1\n")
    with pytest.raises(OptionError, match="is not TOML"):
        _resolve(project)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_cpu": 1}, "did you mean num_cpus"),
        ({"include_dashboard": True}, "no dashboard"),
        ({"local_mode": True}, "__wrapped__"),
        ({"object_store_memory": 100}, "1 MiB"),
        ({"num_cpus": True}, "number"),
        ({"driver_prot": 1}, "did you mean driver_port"),
        ({"host": "10.0.0.7"}, "driver_host"),
        ({"address": "ray://host:10001"}, "zray://HOST:PORT"),
        ({"address": "zray://host"}, "HOST:PORT"),
        ({"address": "zray://host:0"}, "HOST:PORT"),
        ({"runtime_env": {"pip": ["x"]}}, "env_vars"),
    ],
)
def test_init_refuses_what_it_does_not_honour(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        zray.init(**options)
    assert said in str(caught.value)
    assert not zray.is_initialized()


# -- the directory of a node -----------------------------------------------------------------------


def test_a_held_directory_names_its_holder_until_it_is_given_back(tmp_path: Path) -> None:
    assert node_directory.holder_pid(str(tmp_path)) is None
    held = node_directory.hold(str(tmp_path))
    assert node_directory.holder_pid(str(tmp_path)) == os.getpid()
    with pytest.raises(NodeStartError, match=f"pid {os.getpid()}"):
        node_directory.hold(str(tmp_path))
    os.close(held)
    assert node_directory.holder_pid(str(tmp_path)) is None
    assert node_directory.was_a_node(str(tmp_path))


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Path(node_address.context_path())


def test_the_last_node_is_remembered_for_this_user_alone(context: Path) -> None:
    assert node_address.remembered() is None
    node_address.remember("/first")
    node_address.remember("/second")
    assert context.stat().st_mode & 0o777 == 0o600
    assert node_address.remembered() == "/second"
    node_address.forget("/first")
    assert node_address.remembered() == "/second"
    node_address.forget("/second")
    assert not context.exists()


def test_of_several_nodes_the_one_before_is_the_last_again_when_the_last_is_stopped(
    context: Path, tmp_path: Path
) -> None:
    held = []
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        node_address.remember(str(tmp_path / name))
        if name != "second":  # That one was killed.
            held.append(node_directory.hold(str(tmp_path / name)))
    try:
        assert node_address.remembered_all() == [
            str(tmp_path / name) for name in ("third", "second", "first")
        ]
        node_address.forget(str(tmp_path / "third"))
        assert node_address.remembered_all() == [str(tmp_path / "first")]
    finally:
        for descriptor in held:
            os.close(descriptor)


CLUSTERS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({}, None),
    ({"head": True}, {}),
    ({"head": True, "port": "6380", "keys": "none"}, {"port": 6380, "keys": "none"}),
    ({"join": "10.0.0.7:6380"}, {"join": ["tcp://10.0.0.7:6380"]}),
    ({"join": "zray://a:1,[::1]:2"}, {"join": ["tcp://a:1", "tcp://[::1]:2"]}),
    ({"join": ["tcp://a:1"], "advertise": "b:2"}, {"join": ["tcp://a:1"], "advertise": "b:2"}),
]


@pytest.mark.parametrize(("given", "expected"), CLUSTERS)
def test_settings_of_a_node_among_others(
    project: Path, given: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert _resolve(project, given).cluster() == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"head": True, "join": "a:1"}, "head or join"),
        ({"port": 1}, "say head or join too"),
        ({"head": True, "port": 65536}, "65535"),
        ({"head": True, "port": "x"}, "number"),
        ({"join": "a"}, "HOST:PORT"),
        ({"join": "a:0"}, "HOST:PORT"),
        ({"join": "a:1,"}, "HOST:PORT"),
        ({"head": True, "advertise": "a:b"}, "HOST or HOST:PORT"),
        ({"labels": "zone"}, "zone=a"),
        ({"labels": "{"}, "JSON"),
        ({"labels": {"zone": 1}}, "strings"),
        ({"labells": "zone=a"}, "did you mean labels"),
    ],
)
def test_wrong_settings_of_a_node_among_others_are_refused(
    project: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        _resolve(project, given).cluster()


def test_what_is_typed_decides_between_head_and_join_of_a_file(project: Path) -> None:
    (project / "zray.toml").write_text('join = "a:1"\nport = 7\n[labels]\nzone = "a"\n')
    found = _resolve(project)
    assert found.cluster() == {"join": ["tcp://a:1"], "port": 7}
    assert found.node() == {"labels": {"zone": "a"}}
    assert _resolve(project, {"head": True}).cluster() == {"port": 7}
    other = _resolve(project, {"join": "b:2"}, environ={"ZRAY_HEAD": "1"})
    assert other.cluster() == {"join": ["tcp://b:2"], "port": 7}


def test_a_port_in_a_file_does_not_make_a_cluster(project: Path) -> None:
    (project / "zray.toml").write_text("port = 7\n")
    assert _resolve(project).cluster() is None


@pytest.mark.parametrize(
    "text", ["zone=a,disk=ssd", '{"zone": "a", "disk": "ssd"}', "zone=a, disk = ssd"]
)
def test_labels_are_pairs_or_json(project: Path, text: str) -> None:
    assert _resolve(project, {"labels": text}).node() == {"labels": {"zone": "a", "disk": "ssd"}}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_context_file_remembers_nothing(context: Path, content: str) -> None:
    context.write_text(content)
    assert node_address.remembered() is None
    with pytest.raises(NodeStartError, match="zray-node start"):
        node_address.resolve_address("auto")


def test_a_stale_context_file_says_that_the_node_is_gone(context: Path, tmp_path: Path) -> None:
    context.write_text(json.dumps({"directory": str(tmp_path / "gone"), "pid": 1}))
    with pytest.raises(NodeStartError, match="is gone"):
        node_address.resolve_address("auto")


def test_addresses(tmp_path: Path) -> None:
    assert node_address.resolve_address(None) is None
    assert node_address.resolve_address("local") is None
    with pytest.raises(NodeStartError, match="there is no node"):
        node_address.resolve_address(str(tmp_path))
    held = node_directory.hold(str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(NodeStartError, match="written to by others"):
        node_address.resolve_address(str(tmp_path))
    tmp_path.chmod(0o700)
    assert node_address.resolve_address(str(tmp_path)) == str(tmp_path)
    os.close(held)
