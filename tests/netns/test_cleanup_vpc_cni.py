"""ipamctl cleanup vpc-cni on a host that the AWS VPC CNI has left, among others' rules that are much like its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.netns.test_coexistence import _AWS_COMMON, _AWS_CONNMARK, _AWS_NFT, _KUBE_PROXY, _KUBE_PROXY_NFT

pytestmark = pytest.mark.netns

VETH: Final = "eni0a1b2c3d4e5"
BINARIES: Final = ("iptables-legacy", "iptables-nft")

_HOST: Final = """
ip link set lo up
ip link add eth0 type veth peer name far0; ip link set far0 up; ip link set eth0 up
ip addr add 10.0.0.10/24 dev eth0
ip link add eth1 type veth peer name far1; ip link set far1 up; ip link set eth1 up
ip addr add 10.0.1.10/24 dev eth1; ip route del 10.0.1.0/24 dev eth1
ip route add default via 10.0.0.1 dev eth0
"""
_THEIRS: Final = """
ip route add 10.0.1.1 dev eth1 scope link table 2; ip route add default via 10.0.1.1 dev eth1 table 2
ip rule add to 10.0.0.50 lookup main priority 512
ip rule add to 10.0.1.50 lookup main priority 512
ip rule add to 10.0.7.7 lookup main priority 512
ip rule add fwmark 0x80/0x80 lookup main priority 1024
ip rule add from 10.0.1.50 lookup 2 priority 1536
ip rule add from 10.0.1.51 lookup 2 priority 1536
ip rule add from 10.0.7.7 lookup 5 priority 1536
ip rule add from 10.0.1.10 lookup 2 priority 32765
"""
# Each differs from one of the above in one thing.
_OTHERS: Final = """
ip rule add to 203.0.113.7 lookup main priority 512
ip rule add to 10.0.0.0/25 lookup main priority 512
ip rule add to 10.0.0.60 lookup 100 priority 512
ip rule add to 10.0.0.61 iif eth0 lookup main priority 512
ip rule add not to 10.0.0.62 lookup main priority 512
ip rule add to 10.0.0.50 iif eth1 lookup main priority 512
ip rule add from 10.0.7.7 uidrange 0-99 lookup 5 priority 1536
ip rule add to 10.0.0.63 tos 0x10 lookup main priority 512
ip rule add to 10.0.0.50 lookup main priority 513
ip rule add fwmark 0x80/0xff lookup main priority 1024
ip rule add fwmark 0x80/0x80 iif eth0 lookup main priority 1024
ip rule add fwmark 0x80/0x80 lookup 100 priority 1024
ip rule add from 10.0.0.9 lookup 100 priority 1536
ip rule add from 10.0.1.50 lookup 3 priority 1537
ip rule add from 10.0.1.50 ipproto tcp lookup 3 priority 1536
ip rule add from 10.0.1.50 lookup 1502 priority 1536
ip rule add from 10.0.0.10 lookup 100 priority 32765
ip rule add from 10.0.0.60 lookup 1500 priority 500
ip -6 rule add to fd00::1 lookup main priority 512
ip route add 10.9.0.0/16 dev eth1 table 100; ip route add default dev eth1 table 100
ip route add 10.0.0.60 dev eth0 table 1500 proto 158
ip link add eni9876543210f type bridge
nft add table ip6 aws-cni; nft add chain ip6 aws-cni nat-prerouting
nft add table inet aws-cni; nft add table ip aws-cni-other; nft add table inet ipamd
"""
_OTHERS_IPTABLES: Final = """
{ipt} -t nat -N MY-AWS-SNAT-CHAIN-0
{ipt} -t nat -N AWS-SNAT-CHAIN-X
{ipt} -t nat -A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j MY-AWS-SNAT-CHAIN-0
{ipt} -t nat -A PREROUTING -m comment --comment "AWS, CONNMARK" -j MY-AWS-SNAT-CHAIN-0
{ipt} -t nat -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
{ipt} -t mangle -A PREROUTING -m comment --comment "it's \\"AWS, primary ENI\\"" -j CONNMARK --set-xmark 0x80/0x80
{ipt} -t mangle -A OUTPUT -m comment --comment "AWS, primary ENI" -j MARK --set-xmark 0x80/0x80
{ipt} -t filter -N AWS-SNAT-CHAIN-0
{ipt} -t filter -A FORWARD -j AWS-SNAT-CHAIN-0
"""


class Host:
    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, script: str, stdin: str = "") -> str:
        command = ["ip", "netns", "exec", self.name, "sh", "-ec", script]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def iptables(self, binary: str, script: str) -> None:
        self.run(script.format(ipt=f"{binary} -w"))

    def state(self) -> str:
        """All that somebody could have changed, without counters."""
        text = self.run(
            "ip rule; ip -6 rule; ip -4 route show table all; ip -o link | cut -d: -f2\n"
            "nft -s list ruleset 2>/dev/null\n"
            "iptables-legacy-save; iptables-nft-save; ip6tables-nft-save"
        )
        lines = [re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines()]
        return "\n".join(line for line in lines if not line.startswith("#"))

    def cleanup(self, *options: str, code: int = 0, path: str = "") -> dict[str, list[str]]:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "ipamd.ctl", "cleanup", "vpc-cni"]
        environment = {**os.environ, "PATH": path or os.environ["PATH"]}
        command[0] = "/usr/sbin/ip"
        done = subprocess.run([*command, *options, "-o", "json"], capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stderr + done.stdout
        found: dict[str, list[str]] = json.loads(done.stdout)
        return found


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(f"cleanup-{os.getpid()}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.run(_HOST)
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", made.name], check=True)


def leave(host: Host, binary: str, connmark: str) -> None:
    """What the AWS VPC CNI writes."""
    host.run(_THEIRS)
    host.iptables(binary, _AWS_COMMON)
    # A subnet of the VPC without an address on the node.
    host.iptables(
        binary, "{ipt} -t nat -I AWS-SNAT-CHAIN-0 -d 10.0.4.0/22 -m comment --comment 'AWS SNAT CHAIN' -j RETURN"
    )
    if connmark == "nft":
        host.run("nft -f -", _AWS_NFT)
    else:
        host.iptables(binary, _AWS_CONNMARK)


@pytest.mark.parametrize("connmark", ["nft", "iptables"])
@pytest.mark.parametrize("binary", BINARIES)
def test_all_of_it_goes_and_nothing_else(host: Host, binary: str, connmark: str) -> None:
    host.run(_OTHERS)
    host.iptables(binary, _KUBE_PROXY + _OTHERS_IPTABLES)
    host.run("nft -f -", _KUBE_PROXY_NFT)
    before = host.state()
    leave(host, binary, connmark)
    full = host.state()
    planned = host.cleanup()
    assert host.state() == full, "a look changes nothing"
    assert not planned["removed"] and not planned["living"]
    done = host.cleanup("--yes")
    assert done["removed"] and done["leftovers"] == planned["leftovers"]
    after = _without_empty_tables(host.state())
    # A rule that a request to delete its neighbour would have taken stands behind others of its priority now.
    assert sorted(after.splitlines()) == sorted(_without_empty_tables(before).splitlines())
    assert host.cleanup("--yes")["leftovers"] == []
    assert _without_empty_tables(host.state()) == after


def _without_empty_tables(text: str) -> str:
    """iptables makes a table with its built-in chains when it is first asked for, and leaves it."""
    return re.sub(r"(?m)^\*\w+\n(:\w+ (ACCEPT|-) \n)*COMMIT\n?", "", text)


def test_a_host_that_never_had_it_keeps_what_is_like_it(host: Host) -> None:
    host.run(_OTHERS + _THEIRS)
    before = host.state()
    done = host.cleanup("--yes")
    assert done["leftovers"] == [] and host.state() == before
    assert any("10.0.0.50" in kept and "nothing else of it is here" in kept for kept in done["kept"])


@pytest.mark.parametrize("link", [VETH, "pod0"])
def test_while_one_of_its_pods_runs_nothing_goes(host: Host, link: str) -> None:
    """Also where its prefix for links was set to another one."""
    leave(host, "iptables-nft", "nft")
    pod = f"{host.name}-pod"
    subprocess.run(["ip", "netns", "add", pod], check=True)
    try:
        host.run(f"ip link add {link} type veth peer name eth0 netns {pod}; ip link set {link} up")
        host.run(f"ip route add 10.0.0.50 dev {link} scope link")
        before = host.state()
        refused = host.cleanup("--yes", code=1)
        assert link in " ".join(refused["living"]) and not refused["removed"]
        assert host.state() == before
        assert host.cleanup()["living"], "a look is no failure"
    finally:
        subprocess.run(["ip", "netns", "delete", pod], check=True)


def test_a_link_that_leads_nowhere_goes(host: Host) -> None:
    leave(host, "iptables-nft", "nft")
    host.run(f"ip link add {VETH} type veth peer name tmp0")
    done = host.cleanup("--yes")
    assert f"ip link {VETH}" in done["leftovers"]
    assert VETH not in host.run("ip -o link")


def test_a_chain_that_somebody_elses_rule_leads_to_stays(host: Host) -> None:
    leave(host, "iptables-nft", "iptables")
    host.run("iptables-nft -t nat -A POSTROUTING -s 10.9.0.0/16 -j AWS-SNAT-CHAIN-0")
    done = host.cleanup("--yes")
    saved = host.run("iptables-nft-save -t nat")
    assert ":AWS-SNAT-CHAIN-0" in saved and "-s 10.9.0.0/16 -j AWS-SNAT-CHAIN-0" in saved
    assert 'AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0' not in saved
    assert any("-s 10.9.0.0/16" in kept for kept in done["kept"])
    assert "512:" not in host.run("ip rule")


def test_a_table_that_another_rule_leads_to_stays(host: Host) -> None:
    leave(host, "iptables-nft", "nft")
    host.run("ip rule add fwmark 0x9 lookup 2 priority 700")
    done = host.cleanup("--yes")
    assert "default via 10.0.1.1 dev eth1" in host.run("ip route show table 2")
    assert any(kept.startswith("table 2:") for kept in done["kept"])


@pytest.mark.parametrize("binary", BINARIES)
def test_without_iptables_it_says_what_can_not_go(host: Host, binary: str, tmp_path: Path) -> None:
    leave(host, binary, "nft")
    (tmp_path / "nft").symlink_to(shutil.which("nft") or "")
    done = host.cleanup("--yes", code=1, path=str(tmp_path))
    assert any("AWS-SNAT-CHAIN-0" in chain for chain in done["unreachable"])
