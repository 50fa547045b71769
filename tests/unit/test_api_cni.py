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


# A control character, an escape, a line's end, a direction of writing, a blank of no width, one that is not a letter.
ODD = ("\x01", "\x1b", "\n", "\x7f", "\u202e", "\u200b", "\ufeff", "\xa0", "\ue000")


def call(**changes: object) -> ipam_pb2.CniCall:
    fields: dict[str, object] = {
        "container_id": "c" * 64,
        "ifname": "eth0",
        "netns": "/run/netns/x",
        "args": "K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_UID=u-1",
        "config": CONFIG,
    }
    return ipam_pb2.CniCall(**{**fields, **changes})  # type: ignore[arg-type]


def test_call_is_understood_in_any_order_of_arguments() -> None:
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
        ({"ifname": "all"}, 4, "CNI_IFNAME"),  # folders of /proc/sys/net: the kernel makes no such link
        ({"ifname": "default"}, 4, "CNI_IFNAME"),
        ({"ifname": "x" * 16}, 4, "CNI_IFNAME"),
        *(({"ifname": f"e{odd}"}, 4, "CNI_IFNAME") for odd in ODD),
        ({"ifname": "\u00e0"}, 4, "CNI_IFNAME"),  # the kernel takes its second byte for a blank
        ({"netns": "/run/netns/\x1b[2J"}, 4, "CNI_NETNS"),
        ({"netns": "/run/netns/a\0b"}, 4, "CNI_NETNS"),
        ({"netns": "/" + "n" * 4095}, 4, "CNI_NETNS"),
        ({"args": "A=" + "b" * 70_000}, 4, "CNI_ARGS has 70002"),
        ({"config": b'{"cniVersion":"1.0.0","name":"' + b"n" * 257 + b'"}'}, 7, "name"),
        ({"config": CONFIG[:-1] + b',"mtu":NaN}'}, 6, "NaN"),
        (
            {"config": CONFIG[:-1] + b',"mtu":' + b"9" * 5000 + b"}"},
            6,
            "the number 9999",
        ),
        ({"config": CONFIG[:-1] + b',"x":' + b"[" * 9999 + b"]" * 9999 + b"}"}, 6, "one another more than 64 times"),
        ({"config": CONFIG[:-1] + b',"mtu":-Infinity}'}, 6, "Infinity"),
        ({"config": CONFIG[:-1] + b',"mtu":1e999}'}, 6, "too large"),
        ({"config": CONFIG[:-1] + b',"x":' + b"9" * 5000 + b"}"}, 6, "not JSON"),
        ({"config": CONFIG[:-1] + b',"x":' + b"[" * 65 + b"]" * 65 + b"}"}, 6, "in one another"),
        ({"config": CONFIG.decode().encode("utf-16-le")}, 6, "not JSON"),
        ({"config": CONFIG[:-1] + b',"x":"\xed\xa0\x80"}'}, 6, "not JSON"),
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


def test_a_refusal_begins_the_same_for_each_try() -> None:
    """So an event is known again, in `kubectl describe pod` as in a search: what varies stands at the end."""
    full = Refusal(Reason.ENI_LIMIT, "all 27 addresses are in use", 30.0, (("free", 0), ("assigned", 27)))
    first, second = (
        json.loads(cni_answer.refusal_error("1.0.0", full, "no address for pod a/b", request))
        for request in ("1", "2")
    )
    assert first["msg"] == second["msg"] == "no address for pod a/b: all 27 addresses are in use"
    assert first["details"].removesuffix(" request_id=1") == second["details"].removesuffix(" request_id=2")
    assert first["details"].startswith(f"reason={Reason.ENI_LIMIT} ")


def test_cached_configuration_is_parsed_like_a_new_one() -> None:
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


def test_pod_specific_configuration_is_not_kept_for_ever() -> None:
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
        ({"prevResult": {"ips": {}}}, "prevResult.ips"),
        ({"prevResult": {"interfaces": ["eth0"]}}, "prevResult.interfaces"),
        ({"runtimeConfig": {"mac": "02:00"}}, "02:00"),
        ({"runtimeConfig": {"mac": 7}}, "can't be read"),
        ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, "single interface"),
        ({"runtimeConfig": {"ips": ["10.0.0.9/32", "10.0.0.8/32"]}}, "10.0.0.9"),
        ({"args": {"cni": {"ips": ["fd00::1"]}}}, "fd00::1"),
        ({"args": {"cni": {"ips": 7.5}}}, "7.5"),
    ],
)
def test_unmet_wishes_are_refused_but_never_block_a_del(config: dict[str, object], word: str) -> None:
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


WRONG_RESULTS = [
    {"interfaces": [{"name": 5}]},
    {"interfaces": [{"Name": 5}]},
    {"interfaces": [{"mtu": 1500.0}]},
    {"interfaces": [{"mtu": True}]},
    {"interfaces": [{"mtu": 1 << 63}]},
    {"interfaces": [None]},
    {"interfaces": {}},
    {"ips": [{"address": "10.0.0.1"}]},
    {"ips": [{"address": "10.0.0.1/33"}]},
    {"ips": [{"address": "10.0.0.1/255.0.0.0"}]},
    {"ips": [{"address": "fe80::1%eth0/64"}]},
    {"ips": [{"address": 7}]},
    {"ips": [{"gateway": "here"}]},
    {"ips": [{"interface": "0"}]},
    {"routes": [{"dst": "default"}]},
    {"routes": [{"gw": ["10.0.0.1"]}]},
    {"routes": [{"priority": 1e3}]},
    {"dns": []},
    {"dns": {"nameservers": "10.0.0.2"}},
    {"dns": {"nameservers": [10]}},
    {"dns": {"search": [["a"]]}},
    {"dns": {"domain": {}}},
]


@pytest.mark.parametrize("result", WRONG_RESULTS, ids=json.dumps)
def test_a_previous_result_that_go_can_not_decode_is_refused(result: dict[str, object]) -> None:
    config = json.dumps({**json.loads(CONFIG), "prevResult": result}).encode()
    for verb in ("ADD", "CHECK"):
        with pytest.raises(cni.InvalidCall, match="could not read it") as caught:
            cni.understand(call(config=config), None, verb)  # type: ignore[arg-type]
        assert caught.value.code == 7
    assert cni.understand(call(config=config), None, "DEL").key.ifname == "eth0"


@pytest.mark.parametrize(
    "wish",
    [
        {"dns": {"nameservers": [1]}},
        {"dns": {"options": "ndots:5"}},
        {"runtimeConfig": {"dns": {"Servers": [["10.0.0.2"]]}}},
        {"runtimeConfig": {"DNS": {"searches": [{}]}}},
    ],
    ids=json.dumps,
)
def test_dns_that_go_can_not_decode_is_refused(wish: dict[str, object]) -> None:
    config = json.dumps({**json.loads(CONFIG), **wish}).encode()
    with pytest.raises(cni.InvalidCall, match="could not read it"):
        cni.understand(call(config=config), None, "ADD")


def test_a_previous_result_of_all_kinds_is_passed_on() -> None:
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "a", "mac": "", "mtu": 9001, "sandbox": "/x", "other": [1.5, None]}],
        "ips": [{"interface": 0, "address": "fd00::5/128", "gateway": None}, {"address": "10.0.0.1/8"}],
        "routes": [{"dst": "::/0", "gw": "", "table": 254, "scope": 0}],
        "dns": {"nameservers": None, "search": ["a", None], "odd": {"deep": [[]]}},
    }
    config = json.dumps({**json.loads(CONFIG), "prevResult": result}).encode()
    assert cni.understand(call(config=config), None, "ADD").previous == result


def test_a_previous_result_is_no_larger_than_an_answer_can_be() -> None:
    result = {"dns": {"search": ["x" * 1000] * 600}}
    config = json.dumps({**json.loads(CONFIG), "prevResult": result}).encode()
    with pytest.raises(cni.InvalidCall, match="KiB"):
        cni.understand(call(config=config), None, "ADD")


def test_labels_of_a_pod_are_cut_and_escaped() -> None:
    args = f"K8S_POD_NAME={'n' * 300};K8S_POD_NAMESPACE=\x1b[31m\u202esh\u00f6p;" + "K=V;" * 10_000
    owner = cni.understand(call(args=args), None, "ADD").owner
    assert owner.pod_name == "n" * 253 + "... (300 characters)"
    assert owner.pod_namespace == "\\x1b[31m\\u202esh\u00f6p"


def test_a_del_is_understood_whatever_its_arguments_are() -> None:
    for args in ("K8S_POD_NAME", "x" * 200_000, ";=;"):
        assert cni.understand(call(args=args, netns="nonsense"), None, "DEL").key.container_id == "c" * 64


@pytest.mark.parametrize("item", [{"containerID": 5, "ifname": "eth0"}, {"containerID": "a", "ifname": None}])
def test_a_collection_that_names_no_containers_releases_nothing(item: dict[str, object]) -> None:
    config = json.dumps({**json.loads(CONFIG), "cni.dev/valid-attachments": [item]}).encode()
    with pytest.raises(cni.InvalidCall, match="is not a list"):
        cni.understand_collection(ipam_pb2.CniCall(config=config))


def test_messages_about_huge_values_are_short() -> None:
    huge = "x" * (3 << 20)
    for changes in ({"ifname": huge}, {"netns": huge}, {"container_id": huge}, {"args": huge}):
        with pytest.raises(cni.InvalidCall) as caught:
            cni.understand(call(**changes), None, "ADD")
        assert len(str(caught.value)) < 1100
