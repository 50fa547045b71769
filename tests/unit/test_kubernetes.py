"""The DaemonSet: lawful by Kubernetes' own schemas, and of one mind with the code and the systemd unit."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import pytest
import yaml

from ipamd import settings
from ipamd.config.load import load
from ipamd.install import files, plugin
from tests.unit import ctl_daemon

ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.37"
MANIFEST = ROOT / "deploy/kubernetes/ipamd.yaml"
CONTAINERFILE = ROOT / "deploy/image/Containerfile"
UNIT = (ROOT / "systemd/ipamd.service").read_text()


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture
def pod(objects: dict[str, Any]) -> Any:
    return objects["DaemonSet"]["spec"]["template"]["spec"]


@pytest.fixture
def daemon(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


def mounts(container: Any) -> dict[str, str]:
    """Volume by the path in the container."""
    return {each["mountPath"]: each["name"] for each in container["volumeMounts"]}


def host_paths(pod: Any) -> dict[str, str]:
    return {each["name"]: each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each}


def test_kubernetes_takes_it(objects: dict[str, Any]) -> None:
    assert set(objects) == {"ServiceAccount", "ConfigMap", "DaemonSet"}
    for each in objects.values():
        kubernetes_validate.validate(each, VERSION, strict=True)
    objects["DaemonSet"]["spec"]["template"]["spec"]["hostNetworking"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects["DaemonSet"], VERSION, strict=True)
    del objects["DaemonSet"]["spec"]["template"]["spec"]["hostNetworking"]


def test_the_agents_folder_is_where_the_daemon_serves() -> None:
    patch = yaml.safe_load((ROOT / "deploy/kubernetes/policy-agent.yaml").read_text())
    added = patch["spec"]["template"]["spec"]
    folder = str(settings.Settings().policy.dir)
    assert mounts(added["containers"][0]) == {folder: "aws-node"} and host_paths(added) == {"aws-node": folder}


def test_the_names_meet(objects: dict[str, Any], pod: Any) -> None:
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert {each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each} == {
        objects["ConfigMap"]["metadata"]["name"]
    }
    spec = objects["DaemonSet"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    named = {name for each in (*pod["initContainers"], *pod["containers"]) for name in mounts(each).values()}
    assert named == {each["name"] for each in pod["volumes"]}


def test_nothing_of_the_kubernetes_api_is_handed_over(objects: dict[str, Any], pod: Any) -> None:
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "variables of a Service called ipamd look like settings"


def test_the_paths_are_those_that_host_and_plugin_know(
    objects: dict[str, Any], pod: Any, daemon: Any, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(objects["ConfigMap"]["data"][settings.DEFAULT_PATH.name])
    loaded = load(config, environ={}).settings
    on_host = host_paths(pod)
    # Where the daemon looks is where the host has it.
    shared = (loaded.api.socket.parent, loaded.ledger.path.parent, loaded.cni.conf_dir, loaded.cni.bin_dirs[0])
    for path in (*shared, Path("/run/netns")):
        assert on_host[mounts(daemon)[str(path)]] == str(path)
    assert loaded.cni.spool_dir.is_relative_to(loaded.api.socket.parent)
    assert mounts(daemon)[str(settings.DEFAULT_PATH.parent)] == "config"
    assert on_host[mounts(daemon)[str(loaded.host.sysctl_dir)]] == "/proc/sys/net"
    assert loaded.api.socket == plugin.SOCKET
    (init,) = pod["initContainers"]
    bin_dir = init["args"][init["args"].index("--bin-dir") + 1]
    assert on_host[mounts(init)[bin_dir]] == str(files.BIN_DIR)


def test_the_plugin_and_the_daemon_are_of_one_image(pod: Any, daemon: Any) -> None:
    (init,) = pod["initContainers"]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert init["image"] == daemon["image"] == f"ipamd:{version[1]}"


def test_it_may_do_no_more_than_the_service(pod: Any, daemon: Any) -> None:
    (init,) = pod["initContainers"]
    assert init["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert daemon["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert re.findall(r"^CapabilityBoundingSet=(.*)", UNIT, re.M) == ["CAP_NET_ADMIN"]
    for each in (init, daemon):
        assert each["securityContext"].keys() >= {"allowPrivilegeEscalation", "readOnlyRootFilesystem"}
        assert not each["securityContext"].get("privileged")
    assert not pod.get("hostPID") and not pod.get("hostIPC")


def test_it_gets_as_long_to_stop_as_the_service(pod: Any) -> None:
    assert f"TimeoutStopSec={pod['terminationGracePeriodSeconds']}\n" in UNIT


def test_it_goes_where_the_label_is_and_nothing_keeps_it_away(pod: Any) -> None:
    assert pod["tolerations"] == [{"operator": "Exists"}]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {each["key"] for term in terms for each in term["matchExpressions"]} == {
        "ipamd.io/node",
        "kubernetes.io/os",
    }
    assert "ipamd.io/node" in (ROOT / "docs/eks.md").read_text()


def test_one_node_has_one_network(pod: Any) -> None:
    patch = yaml.safe_load((ROOT / "deploy/kubernetes/aws-node-affinity.yaml").read_text())
    affinity = patch["spec"]["template"]["spec"]["affinity"]
    (ours,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (theirs,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {"key": "ipamd.io/node", "operator": "Exists"} in ours["matchExpressions"]
    assert {"key": "ipamd.io/node", "operator": "DoesNotExist"} in theirs["matchExpressions"]
    whole = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "aws-node"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}], "affinity": affinity},
            },
        },
    }
    kubernetes_validate.validate(whole, VERSION, strict=True)


def test_the_probes_ask_where_the_daemon_answers(daemon: Any) -> None:
    http = daemon["readinessProbe"]["httpGet"]
    assert f"{http['host']}:{http['port']}" == settings.Settings().metrics.listen
    assert http["path"] == "/readyz" and '"/readyz"' in (ROOT / "ipamd/metrics/server.py").read_text()


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe"])
def test_a_probe_that_may_end_the_daemon_asks_at_roots_socket(daemon: Any, probe: str, tmp_path: Path) -> None:
    """Another process may have taken the port on loopback, and answers there."""
    assert set(daemon[probe]) <= {"exec", "periodSeconds", "timeoutSeconds", "failureThreshold"}
    assert run_probe(daemon[probe], tmp_path / "s") == 1
    with ctl_daemon.serving(tmp_path / "s"):
        assert run_probe(daemon[probe], tmp_path / "s") == 0


def run_probe(probe: Any, socket: Path, wait: str = "0s") -> int:
    """Its exit code. `wait`: the time of a probe that waits."""
    command = [word.replace("--wait 15s", f"--wait {wait}") for word in probe["exec"]["command"]]
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "IPAMD_API_SOCKET": str(socket)}
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode


def test_the_probe_of_the_start_waits_for_the_daemon(daemon: Any, tmp_path: Path) -> None:
    """Each time that it fails is a Warning event of the pod."""
    probe = daemon["startupProbe"]
    (wait,) = re.findall(r"--wait (\d+)s", probe["exec"]["command"][-1])
    assert int(wait) < probe["timeoutSeconds"]
    with ThreadPoolExecutor() as pool:
        probing = pool.submit(run_probe, probe, tmp_path / "s", "60s")
        with pytest.raises(FuturesTimeout):
            probing.result(0.5)
        with ctl_daemon.serving(tmp_path / "s"):
            assert probing.result(60) == 0


def test_a_daemon_that_waits_for_ec2_has_started(daemon: Any, tmp_path: Path) -> None:
    with ctl_daemon.serving(tmp_path / "s") as answers:
        answers.node.ready = False
        assert run_probe(daemon["startupProbe"], tmp_path / "s") == 0
        answers.error = (grpc.StatusCode.INTERNAL, "out of order")
        assert run_probe(daemon["startupProbe"], tmp_path / "s") == 1


def test_the_recipe_takes_what_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE.read_text(), re.M)
    assert copied
    for words in copied:
        for word in words.split():
            assert (ROOT / word).exists(), word
    assert re.findall(r"^FROM (\S+)", CONTAINERFILE.read_text(), re.M) == ["docker.io/library/debian:12-slim"] * 2
