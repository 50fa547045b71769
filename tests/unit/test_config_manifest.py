"""The settings of the AWS VPC CNI, in each of the forms that people have them in."""

from __future__ import annotations

import codecs
import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ipamd.__main__ import main
from ipamd.config import manifest
from ipamd.config.error import SettingsError

ENV = {"WARM_IP_TARGET": "2", "MAX_ENI": "3", "ADDITIONAL_ENI_TAGS": '{"team": "net"}'}
WANTED = {"pool": {"warm_ips": 2, "max_enis": 3}, "ec2": {"tags": {"team": "net"}}}
ADD_ON = {"env": ENV, "init": {"env": {"DISABLE_TCP_EARLY_DEMUX": "true"}}, "resources": {"requests": {"cpu": "25m"}}}
CONTAINER = {"name": "aws-node", "image": "x", "env": [{"name": name, "value": value} for name, value in ENV.items()]}
OTHER = {"name": "aws-eks-nodeagent", "env": [{"name": "MAX_ENI", "value": "9"}]}
POD = {"kind": "Pod", "metadata": {"name": "aws-node-x7"}, "spec": {"containers": [OTHER, CONTAINER]}}
DAEMON_SET = {"kind": "DaemonSet", "metadata": {"name": "aws-node"}, "spec": {"template": {"spec": POD["spec"]}}}

FORMS: dict[str, Any] = {
    "add-on": ADD_ON,
    "add-on without init": {"env": ENV},
    "describe-addon": {"addon": {"addonName": "vpc-cni", "configurationValues": json.dumps(ADD_ON)}},
    "describe-addon in YAML": {"addon": {"configurationValues": yaml.safe_dump(ADD_ON)}},
    "CloudFormation": {"Resources": {"Cni": {"Properties": {"ConfigurationValues": json.dumps(ADD_ON)}}}},
    "terraform show": {"resources": [{"values": {"configuration_values": json.dumps(ADD_ON)}}]},
    "terraform console": json.dumps(ADD_ON),
    "Helm values": {**ADD_ON, "image": {"tag": "v1.20"}, "eniConfig": {"create": False}},
    "Helm values of a parent chart": {"aws-vpc-cni": ADD_ON},
    "Helm, with numbers": {"env": {"WARM_IP_TARGET": 2, "MAX_ENI": 3.0, "ADDITIONAL_ENI_TAGS": {"team": "net"}}},
    "Pod": POD,
    "DaemonSet": DAEMON_SET,
    "List": {"kind": "List", "items": [{"kind": "Service", "spec": None}, DAEMON_SET]},
    "list of a list": {"kind": "List", "items": [{"kind": "PodList", "items": [POD]}]},
    "array": [POD],
}  # fmt: skip


def imported(text: str) -> dict[str, Any]:
    return tomllib.loads(manifest.imported(manifest.variables(text)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump], ids=["json", "yaml"])
def test_settings_are_found_in_each_form(form: str, write: Any) -> None:
    assert imported(write(FORMS[form])) == WANTED


def test_tags_of_cloudformation_stand_before_ordinary_values() -> None:
    text = "Name: !Ref Cluster\nOther: !GetAtt [A, B]\nMap: !If {a: !Ref b}\nConfigurationValues: !Sub |\n  "
    assert imported(text + json.dumps(ADD_ON)) == WANTED


def test_a_document_of_aliases_within_aliases_is_read() -> None:
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    assert imported("\n".join([*lines, yaml.safe_dump({"cni": ADD_ON})])) == WANTED
    for value in ("&a [*a]", "*a11"):
        with pytest.raises(manifest.NoManifest, match="MAX_ENI holds lists or mappings"):
            imported("\n".join([*lines, f"env: {{MAX_ENI: {value}}}"]))


def test_tags_nested_too_deeply_are_one_short_line() -> None:
    with pytest.raises(SettingsError) as caught:
        imported(f"ADDITIONAL_ENI_TAGS={'[' * 100_000}")
    assert "must be JSON" in str(caught.value) and len(str(caught.value)) < 500


def test_settings_are_found_among_other_documents() -> None:
    text = "---\nkind: ConfigMap\ndata: {a: 'b: ['}\n---\n" + yaml.safe_dump(DAEMON_SET) + "---\nnull\n"
    assert imported(text) == WANTED


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_a_value_that_is_nothing_is_not_set(nothing: Any) -> None:
    env = [{"name": name, "value": nothing} for name in ("MAX_ENI", "CLUSTER_NAME", "WARM_IP_TARGET", "ENABLE_IPv6")]
    env += [
        {"name": "IP_COOLDOWN_PERIOD", "value": "20"},
        {"name": "AWS_VPC_ENI_MTU"},
        {"name": "X", "valueFrom": None},
    ]
    assert imported(yaml.safe_dump({"spec": {"containers": [{"name": "aws-node", "env": env}]}})) == {
        "pool": {"cooldown": 20}
    }
    values = {"env": {"MAX_ENI": nothing, "CLUSTER_NAME": nothing, "IP_COOLDOWN_PERIOD": 20}, "init": nothing}
    assert imported(yaml.safe_dump(values)) == {"pool": {"cooldown": 20}}
    assert imported(f"MAX_ENI={nothing or ''}\nCLUSTER_NAME=\nIP_COOLDOWN_PERIOD=20\n") == {"pool": {"cooldown": 20}}


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_a_truth_of_yaml_is_one(value: Any) -> None:
    text = manifest.imported(manifest.variables(yaml.safe_dump({"env": {"AWS_VPC_K8S_CNI_EXTERNALSNAT": value}})))
    assert tomllib.loads(text) == {"host": {"snat": False}}


@pytest.mark.parametrize("tags", ['{\n  "team":\n "net"}', '{"team": "n\u00e9t \U0001f600"}', '{"team": "a\\"b"}'])
def test_any_text_makes_a_file_that_can_be_read(tags: str) -> None:
    text = manifest.imported(manifest.variables(json.dumps({"env": {"ADDITIONAL_ENI_TAGS": tags}})))
    assert tomllib.loads(text) == {"ec2": {"tags": json.loads(tags)}}


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "aws-node", "env": "text"},
        {"name": "aws-node", "env": [3, None, {"value": "x"}], "envFrom": "text"},
        {"name": "aws-node", "image": "x", "env": None, "envFrom": [None, {"configMapRef": None}]},
    ],
)
def test_an_odd_container_is_no_traceback(odd: dict[str, Any]) -> None:
    assert imported(json.dumps({"spec": {"containers": [odd]}})) == {}


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["aws-node", "MAX_ENI", "{}"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["env", "init", "name", "spec", "items", "containers", "configurationValues",
                                       "MAX_ENI", "image", "value", "valueFrom"]), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_any_document_is_read_or_refused_in_one_sentence(document: Any) -> None:
    try:
        tomllib.loads(manifest.imported(manifest.variables(json.dumps(document))))
    except (manifest.NoManifest, SettingsError) as error:
        assert str(error)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF8, "utf-8")],
)
@pytest.mark.parametrize("stdin", [False, True])
def test_what_powershell_writes_is_read(
    mark: bytes, encoding: str, stdin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = mark + yaml.safe_dump(DAEMON_SET).replace("\n", "\r\n").encode(encoding)
    file = tmp_path / "aws-node.yaml"
    file.write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["config", "import-vpc-cni", "-" if stdin else str(file)]) == 0
    assert tomllib.loads(capsys.readouterr().out) == WANTED


@pytest.mark.parametrize("stdin", [False, True])
def test_what_is_no_text_is_one_sentence(
    stdin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_dump(DAEMON_SET).encode("utf-16-le")
    file = tmp_path / "aws-node.yaml"
    file.write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["config", "import-vpc-cni", "-" if stdin else str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "save it as UTF-8" in line and ("standard input" if stdin else str(file)) in line
