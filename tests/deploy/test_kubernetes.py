"""The Kubernetes manifest: what refers to something refers to something that is there.

What    Names, labels, ports, mounts and probes against each other; the two shell programs in it
        are run with what stands for zray-node.
Caller  scripts/test.
Never   needs Kubernetes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.fakes import DEPLOY, RUN_TIMEOUT_S, Play, check_command_line
from tests.house.sources import ROOT
from tests.waiting import wait_until
from zray.errors import SecurityError
from zray.net.curve import ClusterKeys

yaml = pytest.importorskip("yaml")

MANIFEST = DEPLOY / "kubernetes.yaml"
PAGE = ROOT / "docs" / "how-to" / "deploy-kubernetes.md"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """Return the manifest's objects by kind."""
    found = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
    assert all(each["apiVersion"] and each["metadata"]["name"] for each in found)
    by_kind = {each["kind"]: each for each in found}
    assert len(by_kind) == len(found)
    return by_kind


@pytest.fixture
def pod(objects) -> dict[str, Any]:
    """Return the pod of the StatefulSet."""
    template: dict[str, Any] = objects["StatefulSet"]["spec"]["template"]["spec"]
    return template


@pytest.fixture
def node(pod) -> dict[str, Any]:
    """Return the container with the node."""
    (found,) = pod["containers"]
    return found


def test_service_set_and_policy_mean_the_same_pods(objects):
    spec = objects["StatefulSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    service = objects["Service"]
    policy = objects["NetworkPolicy"]["spec"]
    chosen = [
        spec["selector"]["matchLabels"],
        service["spec"]["selector"],
        policy["podSelector"]["matchLabels"],
        *(
            each["podSelector"]["matchLabels"]
            for rule in policy["ingress"]
            for each in rule["from"]
        ),
    ]
    assert len(chosen) == 4
    for selector in chosen:
        assert selector
        assert selector.items() <= labels
    assert spec["serviceName"] == service["metadata"]["name"]


def test_pods_have_names_before_they_are_ready_and_none_waits_for_another(objects):
    assert objects["Service"]["spec"]["clusterIP"] == "None"
    assert objects["Service"]["spec"]["publishNotReadyAddresses"] is True
    assert objects["StatefulSet"]["spec"]["podManagementPolicy"] == "Parallel"


def test_the_ports_of_service_container_and_command_are_the_same(objects, node):
    ports = {each["name"]: each["containerPort"] for each in node["ports"]}
    served = objects["Service"]["spec"]["ports"]
    assert {each["targetPort"]: each["port"] for each in served} == ports
    script = node["command"][-1]
    assert f"--port {ports['control']} " in script
    assert f':{ports["control"]}"' in script, "those that join dial the control port"


def test_only_nodes_reach_nodes_on_whatever_port(objects):
    (rule,) = objects["NetworkPolicy"]["spec"]["ingress"]
    assert set(rule) == {"from"}, "the GCS has a port of its own, beside those of the Service"
    assert objects["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress"]


def test_every_mount_has_a_volume_and_every_volume_a_mount(objects, pod):
    claims = objects["StatefulSet"]["spec"]["volumeClaimTemplates"]
    volumes = {each["name"] for each in pod["volumes"]}
    volumes |= {each["metadata"]["name"] for each in claims}
    containers = [*pod["initContainers"], *pod["containers"]]
    mounts = {each["name"] for container in containers for each in container["volumeMounts"]}
    assert mounts == volumes


def test_the_secret_is_the_one_that_the_page_tells_to_make_and_lies_in_no_file(objects, pod):
    assert "Secret" not in objects
    (secret,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
    made = f"kubectl create secret generic {secret['secretName']} --from-file=keys.json="
    assert made in PAGE.read_text(encoding="utf-8")
    assert made in MANIFEST.read_text(encoding="utf-8")
    (node,) = pod["containers"]
    names = [each["name"] for each in pod["volumes"] if "secret" in each]
    assert not [each for each in node["volumeMounts"] if each["name"] in names]


def test_all_probes_ask_the_node_that_the_pod_starts(node):
    directory = _value(shlex.split(node["command"][-1].replace("\\\n", " ")), "--dir")
    for probe in PROBES:
        words = node[probe]["exec"]["command"]
        assert words == ["zray-node", "status", "--json", "--dir", directory]
        check_command_line(words)
        assert node[probe]["timeoutSeconds"] >= 10, "one second is less than a busy node may take"
    started = node["startupProbe"]
    assert started["periodSeconds"] * started["failureThreshold"] >= 60
    alive = node["livenessProbe"]
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 120


def test_a_pod_has_no_more_rights_than_it_needs(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_variables_that_kubernetes_makes_of_service_names_are_no_settings(pod, node):
    assert pod["enableServiceLinks"] is False
    from zray.configuration import SETTINGS

    names = [each["name"] for each in node["env"] if each["name"].startswith("ZRAY_")]
    assert names
    assert {name.removeprefix("ZRAY_").lower() for name in names} <= set(SETTINGS)


def test_the_pod_has_time_to_end_in_order(pod):
    from zray.protocol.limits import SHUTDOWN_GRACE_S

    assert pod["terminationGracePeriodSeconds"] > 5 * SHUTDOWN_GRACE_S


def _value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize(("name", "role"), [("zray-0", "--head"), ("zray-2", "--join")])
def test_the_first_pod_is_the_head_and_the_others_join_it(play, objects, node, name, role):
    shell, options, script = node["command"]
    assert (shell, options) == ("sh", "-euc")
    body = 'printf "%s\\n" "$@" >"$PLAY/words"\n'
    play.command("zray-node", body)
    done = play.run(shell, options, script, POD_NAME=name, POD_NAMESPACE="lab")
    assert done.returncode == 0, done.stderr
    words = ["zray-node", *(play.folder / "words").read_text().split()]
    check_command_line(words)
    assert ("--head" in words, "--join" in words) == (role == "--head", role == "--join")
    service = objects["Service"]["metadata"]["name"]
    assert _value(words, "--advertise") == f"{name}.{service}.lab.svc"
    if role == "--join":
        head = objects["StatefulSet"]["metadata"]["name"] + "-0"
        assert _value(words, "--join") == f"{head}.{service}.lab.svc:{_value(words, '--port')}"
    mounted = [each["mountPath"] for each in node["volumeMounts"]]
    for option in ("--keys", "--dir"):
        place = _value(words, option)
        assert any(place.startswith(f"{mount}/") for mount in mounted)
        assert place not in mounted, "a folder that zray makes itself is closed to others"


def _copier(pod: dict[str, Any], play: Play) -> tuple[list[str], Path, Path]:
    """Return the command that copies keys, its source and its target, inside the play."""
    (container,) = pod["initContainers"]
    assert container["restartPolicy"] == "Always"
    source, target = play.folder / "secret", play.folder / "run"
    shell, options, script = container["command"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    script = script.replace(mounts["secret"], str(source)).replace(mounts["run"], str(target))
    (script, changed) = re.subn(r"sleep 10\b", "sleep 0.05", script)
    assert changed
    return [shell, options, script], source, target / "keys"


def test_keys_become_such_as_a_node_takes_and_follow_the_secret(play, pod, node):
    command, source, target = _copier(pod, play)
    keys = ClusterKeys.create(str(play.folder / "made"))
    source.mkdir()
    secret = source / "keys.json"
    secret.write_bytes((play.folder / "made" / "keys.json").read_bytes())
    secret.chmod(0o440)
    with pytest.raises(SecurityError):
        ClusterKeys.load(str(source))
    (play.folder / "run").mkdir()
    process = subprocess.Popen(command, env=play.environment(), umask=0o022)
    try:
        wait_until((target / "keys.json").exists, RUN_TIMEOUT_S)
        copied = ClusterKeys.load(str(target))
        assert copied.server_keys() == keys.server_keys()
        keys.add(copied.roles[0])
        secret.chmod(0o640)
        secret.write_bytes((play.folder / "made" / "keys.json").read_bytes())
        wait_until(copied.reload, RUN_TIMEOUT_S, what="the rotated keys")
        assert stat.S_IMODE(target.stat().st_mode) & 0o077 == 0
        assert _value(node["command"][-1].split(), "--keys") == "/run/zray/keys"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(RUN_TIMEOUT_S) == 0, "it ends when it is asked to"
    assert os.listdir(target) == ["keys.json"]
