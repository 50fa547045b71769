"""The doctor's checks over facts and over folders as hosts have them: each finds its trouble, and only that."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni_shim.static.block import Settings as PluginSettings
from ipamd.cloud.port import Identity
from ipamd.doctor import (
    CHECKS,
    Finding,
    State,
    cloud,
    examine,
    exit_code,
    kernel,
    managers,
    metadata,
    neighbours,
    node,
)
from ipamd.doctor.cloud_facts import CloudAnswer
from ipamd.doctor.facts import Eni, Facts
from ipamd.doctor.imds import Answer
from ipamd.doctor.node_facts import NodeFacts
from ipamd.host.clashes import Clash, Weight
from ipamd.host.others import AnyChain, AnyLink, AnyRoute, AnyTable
from ipamd.install.files import write_drop_ins
from ipamd.install.hosting import DAEMON_SET, SYSTEMD, Hosting
from ipamd.install.installed import Installed
from ipamd.neighbours.kubelet import Kubelet
from ipamd.settings import Settings
from tests.unit.test_chain import NEW, plugin

PRIMARY = Eni(AnyLink(2, "ens5", "02:00:00:00:10:00", 9001, 0), True, "ena")
SECONDARY = Eni(AnyLink(3, "ens6", "02:00:00:00:10:01", 9001, 0), False, "ena")
POD = AnyLink(7, "ipm0123456789a", "0a:59:00:00:00:01", 9001, 1501, "veth")

IDENTITY = Identity(
    instance_id="i-1", instance_type="m5.large", region="eu-central-1", availability_zone="eu-central-1a",
    primary_mac="02:00:00:00:10:00", primary_eni_id="eni-1", primary_ip="10.0.0.4", subnet_id="subnet-1",
    subnet_cidr="10.0.0.0/24", vpc_id="vpc-1", vpc_cidrs=("10.0.0.0/16",), security_groups=("sg-1",),
)  # fmt: skip
PLUGIN_SETTINGS = PluginSettings("/run/ipamd/ipamd.sock", "/run/ipamd/released", "", 35.0)


def enforcing(mode: str) -> Settings:
    return Settings.model_validate({"policy": {"mode": mode}})


@pytest.fixture
def healthy(tmp_path: Path) -> Facts:
    """A node in order."""
    for name in ("ipamd-cni", "portmap"):
        plugin(tmp_path / "opt/cni/bin", name, *NEW)
    return Facts(
        tmp_path,
        Settings(),
        links=(PRIMARY.link, SECONDARY.link, POD),
        enis=(PRIMARY, SECONDARY),
        sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/disable_ipv6": "0", "ipv4/conf/all/rp_filter": "0"},
        mac_origins={POD.name: "3"},
        nft="/usr/sbin/nft",
        metadata=Answer(200, "", 2, skew=0.2),
        cloud=CloudAnswer(IDENTITY, enis=2),
        node=NodeFacts(
            ledger_free=64 << 20,
            tracked=(900, 262144),
            plugin=Installed(PLUGIN_SETTINGS, current=True),
            plugin_path=Path("/opt/cni/bin/ipamd-cni"),
            kubelet=Kubelet(29, "maxPods in /etc/kubelet.yaml"),
        ),
    )


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def only(check: Any, facts: Facts) -> Finding:
    (finding,) = check(facts)
    assert isinstance(finding, Finding)
    if finding.state in (State.WARN, State.FAIL):
        assert finding.remedy
    return finding


def with_settings(facts: Facts, **sections: dict[str, Any]) -> Facts:
    return replace(facts, settings=Settings.model_validate(sections))


def test_a_node_in_order(healthy: Facts) -> None:
    findings = list(examine(healthy))
    assert len(findings) == len(CHECKS) and {finding.state for finding in findings} == {State.OK}
    assert exit_code(findings) == 0


@pytest.mark.parametrize(("states", "code"), [("", 0), ("ok note", 0), ("ok warn note", 3), ("warn fail ok", 1)])
def test_exit_codes(states: str, code: int) -> None:
    assert exit_code(Finding("c", State(state), "f") for state in states.split()) == code


@pytest.mark.parametrize(
    ("check", "changed", "state", "words"),
    [
        (kernel.privileges, {"is_root": False}, "fail", "not run as root"),
        (kernel.privileges, {"unreadable": "the kernel does not tell"}, "fail", "does not tell"),
        (kernel.nftables, {"nft": ""}, "fail", "no nft"),
        (kernel.nftables, {"missing": {"route look-ups": "No such file"}}, "fail", "route look-ups: No such file"),
        (kernel.forwarding, {"sysctls": {"ipv4/ip_forward": "0"}}, "note", "off"),
        (
            kernel.forwarding,
            {"sysctls": {"ipv4/ip_forward": "1", "ipv4/conf/ens6/forwarding": "0"}},
            "warn",
            "off for ens6:",
        ),
        (
            kernel.forwarding,
            {"sysctls": {"ipv4/ip_forward": "1", "ipv4/conf/default/forwarding": "0"}},
            "note",
            "off for links to come",
        ),
        (kernel.ipv6, {"sysctls": {"ipv6/conf/all/disable_ipv6": "1"}}, "note", "disabled"),
        (kernel.ipv6, {"sysctls": {}}, "note", "disabled"),
        (kernel.reverse_path, {"sysctls": {"ipv4/conf/ens6/rp_filter": "1"}}, "warn", "on ens6:"),
        (kernel.reverse_path, {"sysctls": {"ipv4/conf/all/rp_filter": "1"}}, "warn", "on ens5, ens6:"),
        (kernel.reverse_path, {"enis": ()}, "note", "could not tell"),
        (
            kernel.main_routes,
            {"routes": (AnyRoute(2, 254, 2, "default", 2), AnyRoute(2, 254, 2, "10.0.1.0/24", 3))},
            "warn",
            "10.0.1.0/24 dev ens6:",
        ),
        (kernel.mtu, {"enis": ()}, "note", "could not tell"),
        (kernel.legacy_iptables, {"legacy_tables": frozenset({"nat"})}, "note", "nat"),
        (kernel.forward_chains, {"tables": (AnyTable("inet", "firewalld"),)}, "warn", "firewalld"),
        (metadata.service, {"metadata": Answer(403)}, "fail", "disabled"),
        (metadata.service, {"metadata": Answer(0, "timed out")}, "fail", "timed out"),
        (metadata.service, {"metadata": Answer(502)}, "fail", "502"),
        (metadata.hop_limit, {"metadata": Answer(200, "", 1)}, "warn", "no pod"),
        (metadata.hop_limit, {"metadata": Answer(200, "", None)}, "note", "could not tell"),
        (metadata.hop_limit, {"metadata": Answer(403)}, "note", "could not tell"),
        (
            neighbours.clashes,
            {"clashes": (Clash("a rule", "Calico", "k", "do", Weight.SHARED),)},
            "warn",
            "a rule (probably Calico)",
        ),
        (
            neighbours.clashes,
            {"clashes": (Clash("a rule", "Calico", "k", "do"),)},
            "fail",
            "a rule (probably Calico)",
        ),
        (neighbours.vpc_cni, {"processes": frozenset({"aws-k8s-agent"})}, "fail", "its daemon"),
        (neighbours.vpc_cni, {"sockets": frozenset({"/var/run/aws-node/ipamd.sock"})}, "fail", "its daemon"),
        (neighbours.vpc_cni, {"sockets": frozenset({"/run/aws-node/ipamd.sock"})}, "fail", "its daemon"),
        (
            neighbours.vpc_cni,
            {
                "links": (AnyLink(9, "eni3f", "", 1500, 0, "veth"),),
                "routes": (AnyRoute(2, 254, 2, "10.0.0.9/32", 9), AnyRoute(2, 254, 2, "10.0.0.77/32", 2)),
            },
            "fail",
            "1 pod has its address from it: 10.0.0.9",
        ),
        (neighbours.other_networks, {"links": (AnyLink(9, "cali1", "", 1500, 0),)}, "note", "Calico: link cali1"),
        (neighbours.policy_agent, {"settings": enforcing("standard")}, "warn", "no policy is enforced"),
        (neighbours.policy_agent, {"settings": enforcing("strict")}, "fail", "no pod can start"),
        (neighbours.other_networks, {"chains": (AnyChain("ip", "nat", "AWS-SNAT-CHAIN-0"),)}, "note", "AWS VPC CNI"),
        (managers.mac_policy, {"mac_origins": {POD.name: "1"}}, "fail", POD.name),
    ],
)
def test_each_check_finds_its_trouble(
    healthy: Facts, check: Any, changed: dict[str, Any], state: str, words: str
) -> None:
    finding = only(check, replace(healthy, **changed))
    assert finding.state == state and words in finding.found


def test_sockets_of_the_policy_agent_are_no_vpc_cni(healthy: Facts) -> None:
    sockets = frozenset({"/run/aws-node/ipamd.sock", "/var/run/aws-node/npa.sock"})
    beside = replace(healthy, settings=enforcing("strict"), sockets=sockets)
    assert only(neighbours.vpc_cni, beside).state is State.OK
    assert only(neighbours.policy_agent, beside).state is State.OK
    theirs = replace(beside, sockets=frozenset({"/var/run/aws-node/ipamd.sock"}))
    assert only(neighbours.vpc_cni, theirs).state is State.FAIL


@pytest.mark.parametrize(
    ("links", "chain", "engine"),
    [
        ((), AnyChain("ip", "filter", "cali-FORWARD"), "Calico"),
        ((AnyLink(8, "cilium_host", "", 1500, 0),), AnyChain("ip", "mangle", "CILIUM_PRE_mangle"), "Cilium"),
    ],
)
def test_an_engine_beside_ipamd_is_not_to_be_removed(
    healthy: Facts, links: tuple[AnyLink, ...], chain: AnyChain, engine: str
) -> None:
    finding = only(neighbours.other_networks, replace(healthy, links=(*healthy.links, *links), chains=(chain,)))
    assert finding.state is State.NOTE and finding.found.startswith(engine)
    assert finding.remedy.startswith("nothing, if it enforces network policies")


@pytest.mark.parametrize(
    ("check", "answer", "state", "words"),
    [
        (cloud.credentials, CloudAnswer(IDENTITY, "credentials", "NoCredentials: none"), "fail", "none"),
        (cloud.credentials, CloudAnswer(failed="identity"), "note", "not looked for"),
        (cloud.ec2, CloudAnswer(IDENTITY, "EC2", "Unreachable: timed out"), "fail", "timed out"),
        (cloud.ec2, CloudAnswer(IDENTITY, "credentials", "none"), "note", "for want of credentials"),
        (cloud.ec2, CloudAnswer(failed="identity"), "note", "for want of an identity"),
        (cloud.ec2, CloudAnswer(IDENTITY, enis=1), "ok", "in eu-central-1: this node has 1 ENI"),
        (cloud.proxy, CloudAnswer(proxies={"HTTPS_PROXY": "http://p:1"}), "note", "NO_PROXY is not set"),
        (cloud.proxy, CloudAnswer(proxies={"NO_PROXY": "*"}), "ok", "none"),
    ],
)
def test_each_answer_of_ec2_has_its_finding(
    healthy: Facts, check: Any, answer: CloudAnswer, state: str, words: str
) -> None:
    finding = only(check, replace(healthy, cloud=answer))
    assert finding.state == state and words in finding.found


@pytest.mark.parametrize(
    ("skew", "state", "words"),
    [
        (None, "note", "could not tell"), (4.0, "ok", "agrees"), (-4.0, "ok", "agrees"), (60.0, "warn", "60 s ahead"),
        (-60.0, "warn", "60 s behind"), (86400.0, "fail", "EC2 refuses"), (-300.0, "fail", "EC2 refuses"),
    ],
)  # fmt: skip
def test_a_clock_is_judged_by_what_ec2_accepts(healthy: Facts, skew: float | None, state: str, words: str) -> None:
    finding = only(cloud.clock, replace(healthy, metadata=Answer(200, "", 2, skew=skew)))
    assert finding.state == state and words in finding.found


@pytest.mark.parametrize(
    ("check", "changed", "state", "words"),
    [
        (node.metrics_port, {"port_owner": "aws-k8s-agent (pid 7)"}, "warn", "taken by aws-k8s-agent (pid 7)"),
        (node.metrics_port, {"port_owner": "ipamd (pid 7)", "port_is_ours": True}, "ok", "the daemon's"),
        (node.plugin, {"plugin": None}, "fail", "is not there"),
        (node.plugin, {"plugin_path": None}, "note", "no folder"),
        (node.plugin, {"plugin": Installed(problem="is not executable")}, "fail", "is not executable"),
        (node.plugin, {"plugin": Installed(PLUGIN_SETTINGS, current=False)}, "warn", "another version"),
        (node.plugin, {"plugin": Installed()}, "note", "does not tell its version"),
        (
            node.plugin,
            {"plugin": Installed(PLUGIN_SETTINGS._replace(socket="/run/x.sock"), current=True)},
            "fail",
            "calls /run/x.sock, but api.socket is /run/ipamd/ipamd.sock",
        ),
        (node.ledger_space, {"ledger_free": None}, "note", "could not tell"),
        (node.ledger_space, {"ledger_free": 4096}, "fail", "4 KiB free"),
        (node.ledger_space, {"ledger_free": 5 << 20}, "warn", "5 MiB free"),
        (node.ledger_space, {"ledger_read_only": True}, "fail", "read-only"),
        (node.tracked_connections, {"tracked": None}, "ok", "no connections"),
        (node.tracked_connections, {"tracked": (90, 100)}, "warn", "90 of 100"),
        (node.tracked_connections, {"tracked": (99, 100)}, "fail", "dropped"),
        (node.max_pods, {"kubelet": None}, "ok", "no kubelet"),
        (node.max_pods, {"kubelet": Kubelet(110, "its default")}, "warn", "has addresses for 27 pods"),
    ],
)
def test_each_fact_of_the_node_has_its_finding(
    healthy: Facts, check: Any, changed: dict[str, Any], state: str, words: str
) -> None:
    finding = only(check, replace(healthy, node=replace(healthy.node, **changed)))
    assert finding.state == state and words in finding.found


@pytest.mark.parametrize("where", [SYSTEMD, DAEMON_SET])
def test_a_plugin_comes_again_as_the_daemon_is_hosted(healthy: Facts, where: Hosting) -> None:
    facts = replace(healthy, node=replace(healthy.node, hosting=where, plugin=None))
    assert only(node.plugin, facts).remedy == where.install
    facts = with_settings(facts, api={"socket": "/run/other.sock"})
    facts = replace(facts, node=replace(facts.node, plugin=Installed(PLUGIN_SETTINGS)))
    assert ("init container" in only(node.plugin, facts).remedy) is where.daemon_set


@pytest.mark.parametrize(
    ("spool", "state"), [("/run/ipamd/released", "ok"), ("/run/mine", "ok"), ("/run/other", "warn")]
)
def test_a_spool_that_the_daemon_does_not_read_is_found(healthy: Facts, spool: str, state: str) -> None:
    facts = with_settings(healthy, cni={"spool_dir": "/run/mine"})
    plugin = Installed(PLUGIN_SETTINGS._replace(spool_dir=spool), current=True)
    finding = only(node.plugin, replace(facts, node=replace(facts.node, plugin=plugin)))
    assert finding.state.value == state and (spool in finding.remedy) is (state == "warn")


def test_max_pods_heed_the_pools_own_limits(healthy: Facts) -> None:
    fewer = with_settings(healthy, pool={"max_pods": 10})
    finding = only(node.max_pods, fewer)
    assert finding.state == State.WARN and "set maxPods: 12" in finding.remedy
    assert only(node.max_pods, with_settings(healthy, pool={"max_enis": 1})).state == State.WARN
    unknown = replace(healthy, cloud=CloudAnswer(failed="identity"))
    assert only(node.max_pods, unknown).state == State.NOTE


def test_the_larger_rp_filter_counts(healthy: Facts) -> None:
    sysctls = {"ipv4/conf/all/rp_filter": "2", "ipv4/conf/ens5/rp_filter": "1"}
    assert only(kernel.reverse_path, replace(healthy, sysctls=sysctls)).state == State.OK


def test_pods_kept_from_the_metadata_need_no_hop(healthy: Facts) -> None:
    facts = with_settings(replace(healthy, metadata=Answer(200, "", 1)), host={"pod_imds": "block"})
    assert only(metadata.hop_limit, facts).state == State.OK


def test_mtus(healthy: Facts) -> None:
    small = Eni(replace(SECONDARY.link, mtu=1500), False)
    assert "ens5 9001, ens6 1500" in only(kernel.mtu, replace(healthy, enis=(PRIMARY, small))).found
    assert "host.mtu is 1400, but ens5 9001" in only(kernel.mtu, with_settings(healthy, host={"mtu": 1400})).found
    lower = replace(healthy, enis=(small,), links=(small.link, POD))
    assert POD.name in only(kernel.mtu, lower).found


def test_a_forward_chain_that_drops(healthy: Facts) -> None:
    drop = AnyChain("ip", "filter", "FORWARD", 2, 0, "filter", accepts=False)
    docker = replace(healthy, chains=(drop, AnyChain("ip", "filter", "DOCKER-USER")))
    finding = only(kernel.forward_chains, docker)
    assert finding.state == State.WARN and "Docker" in finding.found and "DOCKER-USER" in finding.remedy
    accepted = replace(docker, forwards_pods=frozenset({("ip", "filter")}))
    assert only(kernel.forward_chains, accepted).state == State.OK
    for harmless in (replace(drop, accepts=True), replace(drop, hook=1), replace(drop, family="bridge")):
        assert only(kernel.forward_chains, replace(healthy, chains=(harmless,))).state == State.OK


@pytest.mark.parametrize(
    ("names", "state", "words"),
    [
        (["05-calico.conflist", "10-ipamd.conflist"], "fail", "05-calico.conflist"),
        (["10-aws.conflist"], "fail", "10-aws.conflist"),
        (["87-podman-bridge.conflist"], "warn", "87-podman"),
        (["10-ipamd.conflist", "87-podman-bridge.conflist"], "ok", ""),
        (["05-calico.conflist.off", "README"], "ok", ""),
        ([], "ok", ""),
    ],
)
def test_conflists(healthy: Facts, names: list[str], state: str, words: str) -> None:
    write(healthy.root, {f"etc/cni/net.d/{name}": "" for name in names})
    finding = only(neighbours.conflists, healthy)
    assert finding.state == state and words in finding.found


# Managers


@pytest.fixture
def networkd(healthy: Facts) -> Facts:
    return replace(healthy, processes=frozenset({"systemd-network"}))


NO_RULES = "[Network]\nManageForeignRoutingPolicyRules=no\n"
NO_BOTH = NO_RULES + "ManageForeignRoutes=no\n"


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "fail"),
        ({"etc/systemd/networkd.conf": NO_BOTH}, "ok"),
        ({"etc/systemd/networkd.conf": NO_RULES}, "warn"),
        ({"etc/systemd/networkd.conf": "# [Network]\n#ManageForeignRoutingPolicyRules=no\n"}, "fail"),
        ({"usr/lib/systemd/networkd.conf.d/10-x.conf": NO_BOTH}, "ok"),
        (
            {"usr/lib/systemd/networkd.conf.d/10-x.conf": NO_BOTH, "etc/systemd/networkd.conf.d/10-x.conf": ""},
            "fail",
        ),
        (
            {
                "etc/systemd/networkd.conf.d/10-x.conf": NO_BOTH,
                "run/systemd/networkd.conf.d/20-y.conf": "[Network]\nManageForeignRoutingPolicyRules=yes\n",
            },
            "fail",
        ),
        (
            {
                "etc/systemd/networkd.conf": "[Network]\nManageForeignRoutingPolicyRules=yes\n",
                "run/systemd/networkd.conf.d/10-x.conf": NO_BOTH,
            },
            "ok",
        ),
    ],
)
def test_networkd_and_the_rules_of_others(networkd: Facts, files: dict[str, str], state: str) -> None:
    write(networkd.root, files)
    assert only(managers.networkd_foreign, networkd).state == state


def test_networkd_that_starts_with_the_next_boot(healthy: Facts) -> None:
    wants = healthy.root / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    wants.parent.mkdir(parents=True)
    wants.symlink_to("/lib/systemd/system/systemd-networkd.service")
    assert "enabled" in only(managers.networkd_foreign, healthy).found
    write_drop_ins(healthy.root / "etc")
    assert only(managers.networkd_foreign, healthy).state == State.OK


DHCP = "[Match]\n{}\n[Network]\nDHCP=yes\n"


@pytest.mark.parametrize(
    ("files", "states"),
    [
        ({"80-all.network": DHCP.format("Name=en*")}, ["fail"]),
        ({"80-all.network": DHCP.format("Name=en* ipm*")}, ["warn", "fail"]),
        ({"80-all.network": DHCP.format("Type=ether")}, ["warn", "fail"]),
        ({"80-all.network": DHCP.format("Driver=ena")}, ["fail"]),
        ({"80-all.network": "[Match]\nName=en*\n[Network]\nAddress=10.0.0.7/24\n"}, ["warn"]),
        ({"80-all.network": DHCP.format("Name=en*") + "[DHCPv4]\nUseRoutes=no\n"}, ["warn"]),
        ({"80-all.network": DHCP.format("Name=en*") + "[DHCPv4]\nUseGateway=no\n"}, ["warn"]),
        ({"80-all.network": DHCP.format("Name=en*") + "[DHCPv4]\nRouteTable=10001\n"}, ["warn"]),
        ({"80-all.network": DHCP.format("Name=en*") + "[DHCPv4]\nRouteTable=main\n"}, ["fail"]),
        ({"80-all.network": DHCP.format("Name=!ens6 !ipm*")}, ["ok"]),
        ({"80-all.network": DHCP.format("Name=ens5")}, ["ok"]),
        ({"80-all.network": DHCP.format("MACAddress=02:00:00:00:10:01")}, ["fail"]),
        ({"80-all.network": "[Match]\n[Network]\nDHCP=yes\n"}, ["ok"]),
        (
            {
                "80-all.network": DHCP.format("Name=en*"),
                "10-mine.network": "[Match]\nName=ens6\n[Link]\nUnmanaged=yes",
            },
            ["ok"],
        ),
        (
            {"80-all.network": DHCP.format("Name=en*"), "80-all.network.d/x.conf": "[Link]\nUnmanaged=yes\n"},
            ["ok"],
        ),
    ],
)
def test_network_files_that_match_our_links(networkd: Facts, files: dict[str, str], states: list[str]) -> None:
    write(networkd.root, {f"etc/systemd/network/{name}": text for name, text in files.items()})
    findings = list(managers.networkd_links(networkd))
    assert [finding.state for finding in findings] == states


def test_a_masked_network_file_does_not_count(networkd: Facts) -> None:
    write(networkd.root, {"usr/lib/systemd/network/80-ec2.network": DHCP.format("Driver=ena")})
    assert only(managers.networkd_links, networkd).state == State.FAIL
    (networkd.root / "etc/systemd/network").mkdir(parents=True)
    (networkd.root / "etc/systemd/network/80-ec2.network").symlink_to("/dev/null")
    assert only(managers.networkd_links, networkd).state == State.OK


def test_what_it_tells_to_write_for_enis_helps(networkd: Facts) -> None:
    write(networkd.root, {"usr/lib/systemd/network/80-ec2.network": DHCP.format("Driver=ena")})
    remedy = only(managers.networkd_links, networkd).remedy
    told = re.search(r"/(etc/systemd/network/\S+): (\[Match\].*Unmanaged=yes)", remedy)
    assert told
    write(networkd.root, {told[1]: re.sub(r" (?=\S+=|\[)|(?<=\]) ", "\n", told[2])})
    assert only(managers.networkd_links, networkd).state == State.OK
    # The primary stays with networkd.
    found = managers._network_for(networkd, PRIMARY.link, "ena")
    assert found is not None and found[0].name == "80-ec2.network"


def test_the_drop_ins_content_every_check(networkd: Facts) -> None:
    facts = replace(networkd, processes=frozenset({"systemd-network", "NetworkManager"}), enis=(PRIMARY,))
    write(
        facts.root,
        {
            "usr/lib/systemd/network/80-all.network": DHCP.format("Type=ether"),
            "usr/lib/systemd/network/99-default.link": LINK,
        },
    )
    checks = managers.CHECKS
    before = {finding.state for check in checks for finding in check(facts)}
    assert {State.FAIL, State.WARN, State.NOTE} <= before
    write_drop_ins(facts.root / "etc")
    assert {finding.state for check in checks for finding in check(facts)} == {State.OK}


LINK = "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep\nMACAddressPolicy=persistent\n"


def test_mac_policy_is_graded_by_what_it_does(healthy: Facts) -> None:
    assert only(managers.mac_policy, healthy).state == State.OK
    write(healthy.root, {"usr/lib/systemd/network/99-default.link": LINK})
    assert only(managers.mac_policy, healthy).state == State.NOTE
    drawn = replace(healthy, mac_origins={POD.name: "0"})
    assert only(managers.mac_policy, drawn).state == State.FAIL


@pytest.mark.parametrize(
    ("files", "states"),
    [
        ({}, ["warn", "fail"]),
        ({"etc/NetworkManager/conf.d/a.conf": "[keyfile]\nunmanaged-devices=interface-name:ipm*;driver:ena"}, ["ok"]),
        ({"etc/NetworkManager/NetworkManager.conf": "[keyfile]\nunmanaged-devices=interface-name:ipm*\n"}, ["fail"]),
        ({"lib/udev/rules.d/85-nm-unmanaged.rules": 'ENV{ID_NET_DRIVER}=="veth", ENV{NM_UNMANAGED}="1"'}, ["fail"]),
        ({"etc/NetworkManager/conf.d/a.conf": "[keyfile]\nunmanaged-devices=*,except:interface-name:ens5\n"}, ["ok"]),
        ({"etc/NetworkManager/conf.d/a.conf": "[keyfile]\nunmanaged-devices=*,except:driver:ena"}, ["fail"]),
        (
            {
                "usr/lib/NetworkManager/conf.d/z.conf": "[keyfile]\nunmanaged-devices=interface-name:ens6\n",
                "etc/NetworkManager/conf.d/a.conf": "[keyfile]\nunmanaged-devices+=interface-name:ipm*\n",
            },
            ["ok"],
        ),
        (
            {
                "usr/lib/NetworkManager/conf.d/z.conf": "[keyfile]\nunmanaged-devices=interface-name:ens6\n",
                "etc/NetworkManager/conf.d/a.conf": "[keyfile]\nunmanaged-devices=interface-name:ipm*\n",
            },
            ["fail"],
        ),
    ],
)  # fmt: skip
def test_network_manager(healthy: Facts, files: dict[str, str], states: list[str]) -> None:
    facts = replace(healthy, processes=frozenset({"NetworkManager"}))
    write(healthy.root, files)
    findings = list(managers.network_manager(facts))
    assert [finding.state for finding in findings] == states


def test_nm_cloud_setup(healthy: Facts) -> None:
    write(healthy.root, {"usr/lib/systemd/system/nm-cloud-setup.timer": ""})
    assert only(managers.nm_cloud_setup, healthy).state == State.OK
    write(healthy.root, {"etc/systemd/system/timers.target.wants/nm-cloud-setup.timer": ""})
    assert only(managers.nm_cloud_setup, healthy).state == State.FAIL


@pytest.mark.parametrize("name", ["99-vpc-policy-routes.rules", "53-ec2-network-interfaces.rules"])
def test_ec2_net_utils(healthy: Facts, name: str) -> None:
    write(healthy.root, {f"usr/lib/udev/rules.d/{name}": "ACTION"})
    finding = only(managers.ec2_net_utils, healthy)
    assert finding.state == State.WARN
    (healthy.root / "etc/udev/rules.d").mkdir(parents=True)
    (healthy.root / "etc/udev/rules.d" / name).symlink_to("/dev/null")
    assert f"ln -s /dev/null /etc/udev/rules.d/{name}" in finding.remedy
    assert only(managers.ec2_net_utils, healthy).state == State.OK
