"""What runtimes send, understood or refused with the code that the CNI specification gives it."""

from __future__ import annotations

import gc
import json

import pytest

from ipamd.api import cni, cni_answer
from ipamd.api.plan import plan
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import Attachment, AttachmentKey, Owner, Reason, Refusal
from ipamd.settings import HostSettings

CONFIG = b'{"cniVersion":"1.0.0","name":"ipamd","type":"ipamd-cni"}'


def call(**changes: object) -> ipam_pb2.CniCall:
    fields: dict[str, object] = {
        "container_id": "c" * 64,
        "ifname": "eth0",
        "netns": "/run/netns/x",
        "args": "K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_UID=u-1",
        "config": CONFIG,
    }
    return ipam_pb2.CniCall(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_call_is_understood_whatever_the_order_of_its_arguments() -> None:
    understood = cni.understand(call(), None, "ADD")
    assert understood.key == AttachmentKey("ipamd", "c" * 64, "eth0")
    assert understood.owner == Owner("/run/netns/x", "web-0", "default", "u-1")
    assert understood.version == "1.0.0"


def test_plain_fields_serve_other_callers() -> None:
    attachment = ipam_pb2.Attachment(container_id="job-1", ifname="net0", netns="/run/netns/j", pod_name="job")
    understood = cni.understand(None, attachment, "ADD")
    assert understood.key == AttachmentKey("ipamd", "job-1", "net0")
    assert understood.version is None
    bare = ipam_pb2.Attachment(container_id="job-1", ifname="net0")
    for verb in ("CHECK", "DEL"):
        assert cni.understand(None, bare, verb).key == understood.key  # type: ignore[arg-type]
    with pytest.raises(cni.InvalidCall, match="netns '' is not a path"):
        cni.understand(None, bare, "ADD")


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"config": b""}, 6, "standard input"),
        ({"config": b"{"}, 6, "not JSON"),
        ({"config": b"\xff"}, 6, "not JSON"),
        ({"config": b"[]"}, 6, "no object"),
        ({"config": b"[" * 100_000}, 6, "not JSON"),
        ({"config": b"{}" + b" " * (1 << 20)}, 6, "bytes"),
        ({"config": b'{"name":"n"}'}, 7, "cniVersion"),
        ({"config": b'{"cniVersion":"9.0.0","name":"n"}'}, 1, "9.0.0"),
        ({"config": b'{"cniVersion":"1.0.0"}'}, 7, "name"),
        ({"config": b'{"cniVersion":"1.0.0","name":"a b"}'}, 7, "name"),
        ({"container_id": ""}, 4, "CNI_CONTAINERID is missing"),
        ({"container_id": "../etc"}, 4, "CNI_CONTAINERID"),
        ({"container_id": "c" * 257}, 4, "CNI_CONTAINERID"),
        ({"ifname": ""}, 4, "CNI_IFNAME is missing"),
        ({"ifname": ".."}, 4, "CNI_IFNAME"),
        ({"ifname": "a/b"}, 4, "CNI_IFNAME"),
        ({"ifname": "a:b"}, 4, "CNI_IFNAME"),
        ({"ifname": "eth%d"}, 4, "CNI_IFNAME"),
        ({"ifname": "x" * 16}, 4, "CNI_IFNAME"),
        ({"netns": ""}, 4, "CNI_NETNS is missing"),
        ({"netns": "netns/x"}, 4, "CNI_NETNS"),
        ({"args": "K8S_POD_NAME"}, 4, "CNI_ARGS"),
    ],
)
def test_nonsense_is_refused_with_the_right_code(changes: dict[str, object], code: int, word: str) -> None:
    with pytest.raises(cni.InvalidCall) as caught:
        cni.understand(call(**changes), None, "ADD")
    assert caught.value.code == code
    assert word in str(caught.value)


def test_a_release_needs_no_netns() -> None:
    assert cni.understand(call(netns=""), None, "DEL").key.container_id == "c" * 64


def gc_of(**config: object) -> frozenset[tuple[str, str]]:
    document = {"cniVersion": "1.1.0", "name": "ipamd", **config}
    return cni.understand_collection(ipam_pb2.CniCall(config=json.dumps(document).encode()))[1]


def test_gc_lists_the_valid_attachments() -> None:
    listed = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    assert gc_of(**{"cni.dev/valid-attachments": listed}) == {("a", "eth0"), ("b", "eth1")}
    assert gc_of(**{"cni.dev/valid-attachments": None}) == frozenset()
    with pytest.raises(cni.InvalidCall, match="not a list"):
        gc_of(**{"cni.dev/valid-attachments": ["a"]})
    with pytest.raises(cni.InvalidCall, match="missing"):
        gc_of()


@pytest.mark.parametrize("version", cni.SUPPORTED_VERSIONS)
def test_the_result_has_the_shape_of_its_version(version: str) -> None:
    config = {"cniVersion": version, "name": "ipamd", "dns": {"nameservers": ["10.0.0.2"]}}
    understood = cni.understand(call(config=json.dumps(config).encode()), None, "ADD")
    attachment = Attachment(understood.key, "10.0.0.7", "eni-1", 0.0)
    reply = plan(attachment, HostSettings(), 2, 9001, "/run/netns/x")
    result = json.loads(cni_answer.result(understood, reply, attachment, "169.254.1.1"))
    assert result["cniVersion"] == version
    assert result["dns"] == {"nameservers": ["10.0.0.2"]}
    (ip,) = result["ips"]
    assert ip["address"] == "10.0.0.7/32"
    # SPEC.md: ips[].version went with 1.0.0; interfaces[].mtu came with 1.1.0.
    assert ("version" in ip) == version.startswith("0.")
    sandbox = result["interfaces"][ip["interface"]]
    assert sandbox["sandbox"] == "/run/netns/x" and sandbox["name"] == "eth0"
    assert sandbox["mac"] == "0a:58:0a:00:00:07"
    assert ("mtu" in sandbox) == (version == "1.1.0")
    assert result["interfaces"][0]["name"] == reply.host_ifname


def test_the_plan_follows_the_eni() -> None:
    attachment = Attachment(AttachmentKey("ipamd", "c1", "eth0"), "10.0.0.7", "eni-1", 0.0)
    reply = plan(attachment, HostSettings(), 2, 1500, "/run/netns/x")
    assert (reply.link_group, reply.table, reply.mtu) == (1502, 1500, 1500)
    assert reply.mac != reply.host_mac
    assert reply.mac[0] & 0b11 == 0b10, "a locally administered unicast address"


def test_errors_tell_whether_to_try_again() -> None:
    later = Refusal(Reason.ALL_COOLING, "all cooling", 12.0, (("free", 0),))
    error = json.loads(cni_answer.refusal_error("1.0.0", later, "no address for pod a/b", "r1"))
    assert error["code"] == 11
    assert error["msg"] == "no address for pod a/b: all cooling"
    assert "retry_after=12.0s" in error["details"] and "request_id=r1" in error["details"]
    never = Refusal(Reason.SECURITY_GROUP_INVALID, "gone")
    assert json.loads(cni_answer.refusal_error("1.0.0", never, "x", "r"))["code"] == cni_answer.OWN_ERROR


def test_a_configuration_that_was_seen_before_is_no_other_and_no_better() -> None:
    plain = cni.understand(call(), None, "DEL")
    other = json.dumps({"cniVersion": "1.1.0", "name": "other", "dns": {"search": ["a"]}}).encode()
    assert cni.understand(call(config=other), None, "ADD").dns == {"search": ["a"]}
    assert cni.understand(call(config=other), None, "DEL").key.network == "other"
    assert cni.understand(call(), None, "DEL") == plain
    for _ in range(2):
        with pytest.raises(cni.InvalidCall):
            cni.understand(call(config=b'{"cniVersion":"9.0.0","name":"ipamd"}'), None, "DEL")
        with pytest.raises(cni.InvalidCall):
            cni.understand(call(ifname="a/b"), None, "DEL")


def test_what_pods_add_to_their_configuration_is_not_kept_for_ever() -> None:
    for number in range(1000):
        config = {"cniVersion": "1.0.0", "name": "ipamd", "runtimeConfig": {"pod": number}}
        cni.understand(call(config=json.dumps(config).encode()), None, "DEL")
    big = {"cniVersion": "1.0.0", "name": "ipamd", "runtimeConfig": "x" * 100_000}
    cni.understand(call(config=json.dumps(big).encode()), None, "DEL")
    kept = [found for found in gc.get_objects() if isinstance(found, cni.Network)]
    assert len(kept) < 100


def understood(config: dict[str, object], **changes: object) -> cni.Call:
    document = {"cniVersion": "1.0.0", "name": "ipamd", **config}
    return cni.understand(call(config=json.dumps(document).encode(), **changes), None, "ADD")


PREVIOUS: dict[str, object] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x", "extra": 1}],
    "ips": [{"address": "10.9.0.2/24", "interface": 1}],
    "routes": [{"dst": "10.9.0.0/16"}],
    "dns": {"nameservers": ["10.9.0.1"]},
}


def test_what_earlier_plugins_made_stays_in_the_result() -> None:
    second = understood({"prevResult": PREVIOUS}, ifname="eth1")
    attachment = Attachment(second.key, "10.0.0.7", "eni-1", 0.0)
    reply = plan(attachment, HostSettings(), 2, 9001, "/run/netns/x")
    found = json.loads(cni_answer.result(second, reply, attachment, "169.254.1.1", default_route=False))
    assert found["interfaces"][:2] == PREVIOUS["interfaces"]
    assert [interface["name"] for interface in found["interfaces"][2:]] == [reply.host_ifname, "eth1"]
    assert found["ips"][0] == {"address": "10.9.0.2/24", "interface": 1}
    assert found["interfaces"][found["ips"][1]["interface"]]["name"] == "eth1"
    assert (found["routes"], found["dns"]) == (PREVIOUS["routes"], PREVIOUS["dns"])
    assert cni_answer.claimed_addresses(found) == ["10.9.0.2", "10.0.0.7"]
    with_default = json.loads(cni_answer.result(second, reply, attachment, "169.254.1.1"))
    assert with_default["routes"][-1] == {"dst": "0.0.0.0/0", "gw": "169.254.1.1"}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"prevResult": []}, "prevResult"),
        ({"prevResult": {"ips": {}}}, "ips of prevResult"),
        ({"prevResult": {"interfaces": ["eth0"]}}, "interfaces of prevResult"),
        ({"runtimeConfig": {"mac": "02:00"}}, "02:00"),
        ({"runtimeConfig": {"mac": 7}}, "can't be read"),
        ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, "single interface"),
        ({"runtimeConfig": {"ips": ["10.0.0.9/32", "10.0.0.8/32"]}}, "10.0.0.9"),
        ({"args": {"cni": {"ips": ["fd00::1"]}}}, "fd00::1"),
        ({"args": {"cni": {"ips": 7.5}}}, "7.5"),
    ],
)
def test_wishes_that_can_not_be_met_are_refused_but_never_keep_a_del(config: dict[str, object], word: str) -> None:
    with pytest.raises(cni.InvalidCall) as caught:
        understood(config)
    assert caught.value.code == cni.INVALID_CONFIG and word in str(caught.value)
    document = {"cniVersion": "1.0.0", "name": "ipamd", **config}
    assert cni.understand(call(config=json.dumps(document).encode()), None, "DEL").key.container_id == "c" * 64


@pytest.mark.parametrize(
    ("config", "args"),
    [
        ({"runtimeConfig": {"mac": "02:00:0A:4d:00:05"}}, ""),
        ({"RuntimeConfig": {"MAC": "02-00-0a-4d-00-05"}}, ""),
        ({"args": {"cni": {"mac": "02:00:0a:4d:00:05"}}}, ""),
        ({}, "MAC=02:00:0a:4d:00:05;IgnoreUnknown=1"),
    ],
)
def test_a_mac_address_may_be_asked_for(config: dict[str, object], args: str) -> None:
    assert understood(config, args=args).mac.hex() == "02000a4d0005"


@pytest.mark.parametrize(
    "asked",
    [
        {"Servers": ["10.0.0.3"], "Searches": None, "Options": ["ndots:5"]},  # as containerd spells it
        {"servers": ["10.0.0.3"], "options": ["ndots:5"]},
    ],
)
def test_the_runtimes_own_dns_wins_however_it_is_spelled(asked: dict[str, object]) -> None:
    found = understood({"dns": {"nameservers": ["10.0.0.2"]}, "runtimeConfig": {"dns": asked, "portMappings": []}})
    assert found.dns == {"nameservers": ["10.0.0.3"], "options": ["ndots:5"]}


@pytest.mark.parametrize(
    ("config", "args"),
    [
        ({"runtimeConfig": {"IPs": ["10.0.0.9/32"]}}, ""),
        ({"args": {"cni": {"ips": ["10.0.0.9"]}}}, ""),
        ({}, "IgnoreUnknown=1;IP=10.0.0.9"),
    ],
)
def test_an_address_may_be_asked_for(config: dict[str, object], args: str) -> None:
    assert understood(config, args=args).address == "10.0.0.9"
