"""The AWS VPC CNI's variables mean to ipamd what they mean to it, and a DaemonSet becomes a file that loads."""

from __future__ import annotations

import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipamd.__main__ import main
from ipamd.config import manifest, vpc_cni
from ipamd.config.error import SettingsError
from ipamd.config.load import Loaded, load
from ipamd.settings import PoolSettings

ROOT = Path(__file__).resolve().parents[2]
EMPTY = Path("/dev/null")

DAEMON_SET: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "aws-node", "namespace": "kube-system"},
    "spec": {
        "template": {
            "spec": {
                "initContainers": [
                    {"name": "aws-vpc-cni-init", "env": [{"name": "DISABLE_TCP_EARLY_DEMUX", "value": "false"}]}
                ],
                "containers": [
                    {"name": "other", "env": [{"name": "MAX_ENI", "value": "1"}]},
                    {
                        "name": "aws-node",
                        "env": [
                            {"name": "WARM_IP_TARGET", "value": "3"},
                            {"name": "MINIMUM_IP_TARGET", "value": "12"},
                            {"name": "WARM_ENI_TARGET", "value": "1"},
                            {"name": "MAX_ENI", "value": "-1"},
                            {"name": "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "value": "10.8.0.0/16, 10.9.0.0/16"},
                            {"name": "AWS_VPC_K8S_CNI_LOGLEVEL", "value": "WARN"},
                            {"name": "ADDITIONAL_ENI_TAGS", "value": '{"team": "net"}'},
                            {"name": "ENABLE_PREFIX_DELEGATION", "value": "true"},
                            {"name": "NEW_AND_UNKNOWN", "value": "1"},
                            {"name": "MY_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                        ],
                        "envFrom": [{"configMapRef": {"name": "amazon-vpc-cni"}}],
                    },
                ],
            }
        }
    },
}


def pool(**environ: str) -> PoolSettings:
    return load(EMPTY, environ=environ).settings.pool


def settings(**environ: str) -> Loaded:
    return load(EMPTY, environ=environ)


@pytest.mark.parametrize(
    ("environ", "warm_ips", "minimum_ips", "warm_enis"),
    [
        ({"WARM_IP_TARGET": "3"}, 3, 0, 0),
        ({"WARM_IP_TARGET": "3", "WARM_ENI_TARGET": "2"}, 3, 0, 0),
        ({"MINIMUM_IP_TARGET": "10"}, 0, 10, 0),  # alone: nothing is kept warm beyond it
        ({"MINIMUM_IP_TARGET": "10", "WARM_IP_TARGET": "2", "WARM_ENI_TARGET": "1"}, 2, 10, 0),
        ({"WARM_ENI_TARGET": "1"}, 5, 0, 1),
        ({"WARM_ENI_TARGET": "0"}, 0, 0, 0),
        ({"WARM_ENI_TARGET": "-7"}, 5, 0, 1),
        ({"WARM_IP_TARGET": "0", "MINIMUM_IP_TARGET": "0", "WARM_ENI_TARGET": "2"}, 5, 0, 2),
        ({"WARM_IP_TARGET": "-1"}, 5, 0, 0),
        ({"WARM_PREFIX_TARGET": "1", "WARM_IP_TARGET": " "}, 5, 0, 0),
    ],
)
def test_targets_decide_together(environ: dict[str, str], warm_ips: int, minimum_ips: int, warm_enis: int) -> None:
    found = pool(**environ)
    assert (found.warm_ips, found.minimum_ips, found.warm_enis) == (warm_ips, minimum_ips, warm_enis)


def test_variables_of_one_setting() -> None:
    found = settings(
        MAX_ENI="4",
        IP_COOLDOWN_PERIOD="0",
        AWS_VPC_ENI_MTU="1500",
        POD_MTU="1400",
        AWS_VPC_K8S_CNI_EXTERNALSNAT="true",
        AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS="10.8.0.0/16,10.9.0.0/16",
        AWS_VPC_K8S_CNI_LOGLEVEL="DEBUG",
        ADDITIONAL_ENI_TAGS='{"team": "net"}',
        CLUSTER_NAME="prod",
        AWS_EC2_ENDPOINT="https://ec2.example",
        DISABLE_METRICS="true",
    )
    found_settings = found.settings
    assert (found_settings.pool.max_enis, found_settings.pool.cooldown) == (4, 0)
    assert (found_settings.host.mtu, found_settings.host.pod_mtu, found_settings.host.snat) == (1500, 1400, False)
    assert found_settings.host.snat_exclude == ["10.8.0.0/16", "10.9.0.0/16"]
    assert found_settings.log.level == "debug"
    assert found_settings.ec2.tags == {"team": "net"} and found_settings.ec2.cluster == "prod"
    assert found_settings.ec2.endpoint == "https://ec2.example" and found_settings.metrics.listen == ""
    assert set(map(str, found.origins.values())) == {
        f"environment {variable}" for variable in vpc_cni.COUNTERPARTS
    }, "each counterpart is tried here"


NO_IPV6 = {f"net.ipv6.conf.{name}.disable_ipv6": "1" for name in ("all", "default", "lo")}


@pytest.mark.parametrize(
    ("environ", "chain"),
    [
        ({"ENABLE_BANDWIDTH_PLUGIN": "true"}, ["portmap", "bandwidth"]),
        ({"DISABLE_POD_V6": "1"}, ["portmap", {"type": "tuning", "sysctl": NO_IPV6}]),
        (
            {"DISABLE_POD_V6": "true", "ENABLE_BANDWIDTH_PLUGIN": "t"},
            ["portmap", "bandwidth", {"type": "tuning", "sysctl": NO_IPV6}],
        ),
        ({"ENABLE_BANDWIDTH_PLUGIN": "false", "DISABLE_POD_V6": ""}, ["portmap"]),
    ],
)
def test_what_they_chain_is_chained_here(environ: dict[str, str], chain: list[Any], tmp_path: Path) -> None:
    found = settings(**environ)
    assert found.settings.cni.chain == chain and found.unsupported == ()
    written = manifest.imported(manifest.Variables(values={**environ, "MAX_ENI": "2"}))
    file = tmp_path / "c.toml"
    file.write_text(written)
    assert load(file, environ={}).settings.cni.chain == chain
    assert [name for name in environ if environ[name] in ("1", "t", "true") and f"#   {name}" in written] == []


@pytest.mark.parametrize(
    "key",
    ["k8s.amazonaws.com", "node.k8s.amazonaws.com/instance_id", "cluster.K8S.amazonaws.com/name", "aws:x", "AWS:x"],
)
def test_reserved_tag_keys_are_left_out_and_told(key: str) -> None:
    found = settings(ADDITIONAL_ENI_TAGS=json.dumps({key: "x", "team": "net"}))
    assert found.settings.ec2.tags == {"team": "net"}
    (told,) = found.unsupported
    assert (told.variable, told.value) == ("ADDITIONAL_ENI_TAGS", key) and "reserved" in told.meaning
    values = json.dumps({"env": {"ADDITIONAL_ENI_TAGS": json.dumps({key: "x"})}})
    alone = manifest.imported(manifest.variables(values))
    assert tomllib.loads(alone) == {} and key in alone


@pytest.mark.parametrize("key", ["node.k8s.amazonaws.com/instance_id", "cluster.k8s.amazonaws.com/name"])
def test_no_setting_gives_an_eni_a_mark_of_the_vpc_cni(key: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[ec2.tags]\n"{key}" = "x"\n')
    with pytest.raises(SettingsError, match="take the ENI for its own"):
        load(file, environ={})
    file.write_text('[ec2.tags]\n"node.k8s.amazonaws.com/no_manage" = "true"\n')
    assert load(file, environ={}).settings.ec2.tags == {"node.k8s.amazonaws.com/no_manage": "true"}


def test_ours_beats_theirs_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[pool]\nmax_enis = 2\ncooldown = 7\n")
    found = load(file, environ={"MAX_ENI": "3", "IP_COOLDOWN_PERIOD": "8", "IPAMD_POOL_MAX_ENIS": "4"}).settings.pool
    assert (found.max_enis, found.cooldown) == (4, 8)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WARM_IP_TARGET", "many", "must be a whole number"),
        ("MAX_ENI", "x", "must be a whole number"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "yes", "must be true or false"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "loud", "must be one of debug"),
        ("ADDITIONAL_ENI_TAGS", "[]", "must be JSON"),
        ("ENABLE_BANDWIDTH_PLUGIN", "sure", "must be true or false"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/33", "must be IPv4 networks"),
        ("IP_COOLDOWN_PERIOD", "-1", "must be at least 0"),
        ("ENABLE_IPv6", "true", "can't serve an IPv6 cluster"),
    ],
)
def test_a_bad_value_is_named_by_its_variable(variable: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"environment {variable} = .*{words}"):
        settings(**{variable: value})


def test_an_address_with_a_length_is_its_network_as_in_go() -> None:
    found = settings(AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS="10.1.2.3/8, 172.16.0.0/12")
    assert found.settings.host.snat_exclude == ["10.0.0.0/8", "172.16.0.0/12"]


def test_unsupported_vpc_cni_setting_is_named_if_it_matters() -> None:
    found = settings(ENABLE_PREFIX_DELEGATION="true", ENABLE_POD_ENI="false", AWS_VPC_K8S_CNI_VETHPREFIX="eni")
    assert [each.variable for each in found.unsupported] == ["ENABLE_PREFIX_DELEGATION", "AWS_VPC_K8S_CNI_VETHPREFIX"]
    assert not settings(ENABLE_PREFIX_DELEGATION="false", PATH="/bin").unsupported


@pytest.mark.parametrize("form", ["yaml", "json", "list", "documents"])
def test_a_daemon_set_becomes_a_file(form: str, tmp_path: Path) -> None:
    text = {
        "yaml": yaml.safe_dump(DAEMON_SET),
        "json": json.dumps(DAEMON_SET),
        "list": yaml.safe_dump({"kind": "List", "items": [{"kind": "Service", "spec": None}, DAEMON_SET]}),
        "documents": "---\nkind: ServiceAccount\n---\n" + yaml.safe_dump(DAEMON_SET) + "---\n",
    }[form]
    written = manifest.imported(manifest.variables(text))
    assert tomllib.loads(written) == {
        "pool": {"minimum_ips": 12, "warm_ips": 3},
        "host": {"snat_exclude": ["10.8.0.0/16", "10.9.0.0/16"]},
        "ec2": {"tags": {"team": "net"}},
        "log": {"level": "warning"},
    }
    assert "# WARM_IP_TARGET=3" in written and "ENABLE_PREFIX_DELEGATION=true: ipamd gives single" in written
    assert "MY_NODE_NAME (fieldRef)" in written and "all of configMapRef amazon-vpc-cni" in written
    unknown = written.partition("# Unknown to this command:")[2]
    assert unknown.split() == ["#", "NEW_AND_UNKNOWN"]
    unneeded = written.partition("# Of no meaning")[2].partition("# Unknown")[0]
    assert {"WARM_ENI_TARGET", "MAX_ENI", "DISABLE_TCP_EARLY_DEMUX"} <= set(re.findall(r"#   (\S+)", unneeded))
    file = tmp_path / "c.toml"
    file.write_text(written)
    assert load(file, environ={}).settings.pool.minimum_ips == 12


def test_lines_as_kubectl_lists_them() -> None:
    listed = "# DaemonSet aws-node, container aws-node\nWARM_IP_TARGET=7\nCLUSTER_NAME=prod\n# MY_NODE_NAME from\n"
    assert manifest.variables(listed).values == {"WARM_IP_TARGET": "7", "CLUSTER_NAME": "prod"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing of the AWS VPC CNI"),
        ("kind: Pod", "nothing of the AWS VPC CNI"),
        ("a: [", "neither YAML"),
        ("spec:\n  template: 3", "nothing of the AWS VPC CNI"),
        ("- 1\n- 2", "nothing of the AWS VPC CNI"),
        ("x: " + "[" * 5000, "neither YAML"),
        ("at: 2024-13-45", "neither YAML"),
        ("FOO=bar", "no variable of the AWS VPC CNI"),
        ("env: {}", "nothing of the AWS VPC CNI"),
        ('{"env": {"FOO": "1"}}', "nothing of the AWS VPC CNI"),
        ('"just text"', "nothing of the AWS VPC CNI"),
        ("env = { ENABLE_PREFIX_DELEGATION = true }", "nothing of the AWS VPC CNI"),
        ("spec: {containers: [{name: coredns, env: [{name: MAX_ENI, value: '3'}]}]}", "nothing of the AWS VPC CNI"),
        ("spec: {initContainers: [{name: aws-vpc-cni-init, env: [{name: X, value: '3'}]}]}", "only the container"),
    ],
)
def test_what_is_no_manifest(text: str, words: str) -> None:
    with pytest.raises(manifest.NoManifest, match=words):
        manifest.variables(text)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(DAEMON_SET).encode())))
    assert main(["config", "import-vpc-cni", "-"]) == 0
    assert "minimum_ips = 12" in capsys.readouterr().out
    assert main(["config", "import-vpc-cni", str(tmp_path / "absent")]) == 1
    assert "No such file" in capsys.readouterr().err
    bad = tmp_path / "env"
    bad.write_text("WARM_IP_TARGET=x\n")
    assert main(["config", "import-vpc-cni", str(bad)]) == 1
    assert "WARM_IP_TARGET = x: must be a whole number" in capsys.readouterr().err


def test_check_shows_what_differs_and_doubts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MAX_ENI", "2")
    file = tmp_path / "c.toml"
    file.write_text("[pool]\nwarm_ips = 30\nmax_pods = 20\nslack = 8\n")
    assert main(["config", "check", "--config", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["*", "pool.warm_ips", "30", "(default", "5)", str(file)]
    assert any(line.split() == ["pool.slack", "8", str(file)] for line in lines), "no star: it is the default"
    assert any(line.endswith("environment MAX_ENI") for line in lines)
    assert "The settings can be used; 3 differ from the default (*)." in lines
    assert [line for line in lines if line.startswith("Doubtful: ")] == [
        "Doubtful: pool.warm_ips 30 is no less than pool.max_pods 20: all addresses are taken from the start, and "
        "none is ever given back."
    ]
    assert main(["config", "check", "--config", str(file), "-o", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["settings"]) > 30 and len(data["doubts"]) == 1
    file.write_text("[pool]\nwarm_ips = x\n")
    assert main(["config", "check", "--config", str(file)]) == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[pool]\nmax_pods = 5\nminimum_ips = 9\nwarm_ips = 1", "minimum_ips 9"),
        ("[pool]\nwarm_enis = 1\nwarm_ips = 2", "has no effect"),
        ("[pool]\nwarm_enis = 2\nmax_enis = 2", "warm_enis 2"),
        ("[pool]\nwarm_ips = 0", "nothing is kept warm"),
        ("[pool]\ncooldown = 1", "cooldown 1"),
        ("[pool]\nrelease_delay = 1", "release_delay 1"),
        ("[pool]\nallocate_wait = 300", "the plugin gives up after 65 s"),
        ("[pool]\nallocate_wait = 10", "no ADD waits for the end of a pod"),
        ("[host]\nmtu = 1500\npod_mtu = 9001", "pod_mtu 9001"),
        ('[host]\nsnat = false\nsnat_exclude = ["10.0.0.0/8"]', "snat_exclude"),
        ('[metrics]\nlisten = "0.0.0.0:61678"', "everybody"),
        ('[ledger]\npath = "/var/lib/ipamd/ledger.db"', "on a disk"),
        ('[host]\nsysctl_dir = "/nowhere"', "sysctl_dir /nowhere"),
        ("[host]\nmark_mask = 0x3", "room for 3 ENIs"),
        ('[api]\nread_group = "no-such-group"', "no such group"),
    ],
)
def test_each_doubt(text: str, word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    assert main(["config", "check", "--config", str(file)]) == 0
    assert word in capsys.readouterr().out.partition("Doubtful: ")[2]


def test_the_page_has_every_variable_and_its_setting() -> None:
    page = (ROOT / "docs" / "vpc-cni-settings.md").read_text()
    rows = {
        name: row
        for row in page.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert set(rows) == vpc_cni.KNOWN, set(rows) ^ vpc_cni.KNOWN
    for variable, (setting, _) in vpc_cni.COUNTERPARTS.items():
        assert f"`{setting}`" in rows[variable]
    for variable in vpc_cni.CHAINED:
        assert "`cni.chain`" in rows[variable]
    for variable, (_, meaning) in vpc_cni.WITHOUT.items():
        assert meaning.split("`")[0] in rows[variable]
