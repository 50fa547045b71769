"""`ipamctl doctor` as a process, on a node made of namespaces: what it reads from the kernel and from the wire."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ipamd.sim import netns

pytestmark = pytest.mark.netns

ENIS = ("02:00:00:00:10:00", "02:00:00:00:10:01")


class Metadata(ThreadingHTTPServer):
    """IMDSv2 for tokens and MACs, whose answers leave with the TTL that the test sets."""

    ttl = 64
    status = 200
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Metadata

    def do_PUT(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.server.ttl)
        self._answer(self.server.status, b"token")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "token"
        self._answer(200, "\n".join(f"{mac}/" for mac in ENIS).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Node:
    def __init__(self, namespace: str, metadata: Metadata, folder: Path) -> None:
        self.namespace, self.metadata, self.folder = namespace, metadata, folder
        self.config = folder / "config.toml"
        self.config.write_text(f'[cni]\nconf_dir = "{folder}/net.d"\n')

    def run(self, command: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.namespace, "sh", "-ec", command], check=True)

    def doctor(self, *arguments: str, path: str = "") -> tuple[int, str]:
        argv = ["ip", "netns", "exec", self.namespace, "env", f"PATH={path or os.environ['PATH']}", sys.executable]
        argv += ["-m", "ipamd.ctl", "doctor", "--config", str(self.config), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.stderr == "", done.stderr
        return done.returncode, done.stdout

    def findings(self) -> dict[str, list[dict[str, str]]]:
        """Check -> what it found, without the checks that depend on the machine that the tests run on."""
        found: dict[str, list[dict[str, str]]] = {}
        for finding in json.loads(self.doctor("-o", "json")[1]):
            found.setdefault(finding["check"], []).append(finding)
        return found

    def state(self, check: str) -> str:
        return ",".join(finding["state"] for finding in self.findings()[check])


@pytest.fixture
def node(prefix: str, tmp_path: Path) -> Iterator[Node]:
    node, vpc = f"{prefix}-n", f"{prefix}-v"
    for name in (node, vpc):
        subprocess.run(["ip", "netns", "add", name], check=True)
    listener = netns.run_in(vpc, lambda: socket.create_server(("0.0.0.0", 80)))
    metadata = Metadata(("", 0), _Handler, bind_and_activate=False)
    metadata.socket.close()
    metadata.socket = listener
    thread = threading.Thread(target=metadata.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        made = Node(node, metadata, tmp_path)
        for index, mac in enumerate(ENIS):
            made.run(f"ip link add eth{index} address {mac} mtu 1500 type veth peer name p{index} netns {vpc}")
            made.run(f"ip link set eth{index} up")
            subprocess.run(["ip", "-n", vpc, "link", "set", f"p{index}", "up"], check=True)
        subprocess.run(["ip", "-n", vpc, "addr", "add", "10.0.0.1/24", "dev", "p0"], check=True)
        subprocess.run(["ip", "-n", vpc, "addr", "add", "169.254.169.254/32", "dev", "p0"], check=True)
        made.run("ip link set lo up; ip addr add 10.0.0.10/24 dev eth0; ip route add default via 10.0.0.1")
        made.run("echo 1 > /proc/sys/net/ipv4/ip_forward")
        made.run("for each in all eth0 eth1; do echo 0 > /proc/sys/net/ipv4/conf/$each/rp_filter; done")
        yield made
    finally:
        metadata.shutdown()
        thread.join()
        listener.close()
        for name in (node, vpc):
            subprocess.run(["ip", "netns", "delete", name], check=True)


OF_THE_MACHINE = ("networkd", "NetworkManager", "nm-cloud-setup", "ec2-net-utils", "CNI plugin", "kubelet", "ledger",
                  "host ports")  # fmt: skip
# This node's metadata service knows tokens and MACs alone: tests/netns/test_doctor_node.py has one that knows all.
OF_THE_CLOUD = ("credentials", "EC2", "proxy")


def test_a_node_in_order(node: Node) -> None:
    bad = {
        check: found
        for check, found in node.findings().items()
        if not check.startswith(OF_THE_MACHINE + OF_THE_CLOUD) and any(finding["state"] != "ok" for finding in found)
    }
    assert bad == {}
    code, table = node.doctor()
    assert code in (0, 1, 3) and table.startswith("STATE")


def test_the_hop_limit_is_read_from_the_packets(node: Node) -> None:
    for ttl, state in ((2, "ok"), (1, "warn"), (64, "ok")):
        node.metadata.ttl = ttl
        (finding,) = node.findings()["metadata hop limit"]
        assert finding["state"] == state and finding["found"].startswith(f"{ttl}:"), finding
    node.metadata.status = 403
    assert node.state("metadata service") == "fail"
    assert node.state("metadata hop limit") == "note"


POD = "ip link add ipm1 {} type veth peer name pod1; ip link set ipm1 up"


@pytest.mark.parametrize(
    ("trouble", "check", "state", "words"),
    [
        ("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter", "rp_filter", "warn", "eth0, eth1"),
        ("echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter", "rp_filter", "warn", "eth1"),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", "IPv4 forwarding", "note", "off"),
        (
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/default/forwarding; "
            + POD.format(""),
            "IPv4 forwarding",
            "warn",
            "off for ipm1",
        ),
        ("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", "IPv6", "note", "disabled"),
        (
            "ip addr add 10.0.1.10/24 dev eth1; ip link set eth1 up",
            "main routing table",
            "warn",
            "10.0.1.0/24 dev eth1",
        ),
        ("ip link set eth1 mtu 1400", "MTU", "warn", "eth0 1500, eth1 1400"),
        (POD.format("mtu 9001"), "MTU", "warn", "ipm1"),
        (POD.format("") + "; ip link set ipm1 address 0a:59:00:00:00:09", "udev: MACs of pods' links", "ok", "made"),
        (POD.format(""), "udev: MACs of pods' links", "fail", "ipm1"),
        ("iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER", "forward chains", "warn", "Docker"),
        ("nft add table inet firewalld", "forward chains", "warn", "firewalld"),
        ("ip rule add lookup 77 priority 500", "clashes", "warn", "rule 500"),
        ("ip rule add lookup 1504", "clashes", "fail", "lookup 1504"),
        ("ip link add cali1 type veth peer name c1", "other pod networks", "note", "Calico"),
        ("iptables-legacy -A FORWARD -j ACCEPT", "iptables-legacy", "note", "filter"),
    ],
)
def test_troubles(node: Node, trouble: str, check: str, state: str, words: str) -> None:
    node.run(trouble)
    found = node.findings()[check]
    assert [finding["state"] for finding in found] == [state] and words in found[0]["found"], found
    if state in ("warn", "fail"):
        assert found[0]["remedy"]
        assert node.doctor()[0] in (1, 3)


def test_the_remedy_for_a_forward_chain_helps(node: Node) -> None:
    node.run("iptables-nft -P FORWARD DROP")
    (finding,) = node.findings()["forward chains"]
    node.run(finding["remedy"].partition(" (with each boot")[0])
    assert node.state("forward chains") == "ok"


def test_without_nft(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    code, out = node.doctor("-o", "json", path=str(tmp_path / "bin"))
    assert code == 1
    assert [f["state"] for f in json.loads(out) if f["check"] == "nftables"] == ["fail"]


def test_settings_that_can_not_be_read(node: Node) -> None:
    node.config.write_text("[host]\nnonsense = 1\n")
    argv = [sys.executable, "-m", "ipamd.ctl", "doctor", "--config", str(node.config)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1 and "host.nonsense" in done.stderr and done.stdout == ""
