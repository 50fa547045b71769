"""Other plugins before and after ipamd-cni, as containerd runs them: each does its work, and DEL undoes it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cni_shim.names import host_ifname
from ipamd.install import CONFLIST
from ipamd.sim import netns as namespaces
from ipamd.sim.demo_checks import ControlClient, leaks
from ipamd.sim.demo_node import Node
from ipamd.sim.demo_ping import Endpoint, ping_all
from ipamd.sim.runtimes import RuntimeFailure
from ipamd.sim.runtimes.containerd import Containerd, containerd
from tests.e2e.single_node import ask, run

pytestmark = pytest.mark.e2e

PLUGINS = Path("/usr/lib/cni")
HOST_PORT, POD_PORT = 18080, 8080
SYSCTL = "net.core.somaxconn"
CHAIN: list[dict[str, Any]] = [
    {"type": "ipamd-cni"},
    {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    {"type": "tuning", "sysctl": {SYSCTL: "777"}, "mtu": 1300},
    {"type": "firewall", "backend": "iptables"},
]


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"it is me")
    writer.close()
    await writer.wait_closed()


def _greeting(netns: str, ip: str) -> bytes:
    """What the host port of `ip` says to somebody in that network namespace."""

    def connect() -> bytes:
        with socket.create_connection((ip, HOST_PORT), timeout=5) as connection:
            return connection.recv(64)

    return namespaces.run_in(netns, connect)


async def rules(netns: str) -> list[str]:
    """All of iptables that says anything, and links of the kinds that plugins make."""
    found = []
    for table in ("filter", "nat"):
        code, text = await run(netns, "iptables-save", "-t", table)
        assert code == 0, text
        found += [line for line in text.splitlines() if not line.startswith(("#", ":", "COMMIT", "*"))]
    return found


async def extra_links(netns: str) -> list[str]:
    """The intermediate devices that bandwidth makes."""
    return [link["ifname"] for link in await ask(netns, "ip", "-json", "link", "show", "type", "ifb")]


async def chained(node: Node, plugins: list[dict[str, Any]]) -> None:
    for plugin in plugins:
        file = node.bin_dir / plugin["type"]
        if not file.exists():
            file.symlink_to(PLUGINS / plugin["type"])
    conflist = node.conf_dir / CONFLIST
    document = json.loads(conflist.read_bytes()) | {"plugins": plugins}
    # The plugins of Debian 12 know nothing newer.
    document["cniVersions"] = ["1.0.0"]
    conflist.write_text(json.dumps(document))


@pytest.fixture
async def runtime(nodes: list[Node]) -> AsyncIterator[Containerd]:
    node = nodes[0]
    await chained(node, CHAIN)
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir) as made:
        await made.wait_until_ready()
        yield made


async def test_plugins_after_it(runtime: Containerd, nodes: list[Node], control: ControlClient) -> None:
    node, other = nodes
    netns = node.spec.netns
    # What a plugin makes once for all pods, such as its empty chains, stays: it is made by the first pod.
    await runtime.remove_pod(await runtime.run_pod("first", host_ports={HOST_PORT + 1: POD_PORT}))
    before = await rules(netns)

    annotations = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
    pod = await runtime.run_pod("server", host_ports={HOST_PORT: POD_PORT}, annotations=annotations)
    plain = await runtime.run_pod("plain")
    [held] = [line for line in await node.pods() if line["container_id"] == pod.id]
    assert held["ip"] == pod.ip

    # tuning
    [link] = await ask(pod.netns, "ip", "-json", "link", "show", "dev", "eth0")
    assert link["mtu"] == 1300
    code, text = await run(pod.netns, "cat", "/proc/sys/" + SYSCTL.replace(".", "/"))
    assert (code, text.strip()) == (0, "777")
    # bandwidth: what goes into the pod is shaped on its host link, what comes out on a device of its own.
    shaped = [qdisc["dev"] for qdisc in await ask(netns, "tc", "-json", "qdisc") if qdisc["kind"] == "tbf"]
    [device] = await extra_links(netns)
    assert sorted(shaped) == sorted([device, host_ifname(pod.id, "eth0")])
    # firewall
    assert any(pod.ip in rule and "ACCEPT" in rule for rule in await rules(netns))

    # portmap: from the other node, to this node's address.
    async with await asyncio.start_server(_greet, sock=namespaces.listen_in(str(pod.netns), "0.0.0.0", POD_PORT)):
        for client in (other.spec.netns, str(plain.netns)):
            assert await asyncio.to_thread(_greeting, client, node.spec.primary_ip) == b"it is me"

    ends = [Endpoint(one.name, node.name, one.ip, one.netns) for one in (pod, plain)]
    ends.append(Endpoint(other.name, other.name, other.spec.primary_ip, other.spec.netns))
    assert await ping_all(ends) == []

    for one in (pod, plain):
        await runtime.remove_pod(one)
    assert await rules(netns) == before
    assert await extra_links(netns) == []
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def test_a_failing_plugin_after_it(runtime: Containerd, nodes: list[Node], control: ControlClient) -> None:
    """The runtime takes back with DEL what those before it had made."""
    node = nodes[0]
    await chained(node, [{"type": "ipamd-cni"}, {"type": "tuning", "sysctl": {"net.no.such": "1"}}])
    with pytest.raises(RuntimeFailure, match="tuning"):
        async with asyncio.timeout(60):
            while True:  # until containerd has seen the new file
                await runtime.remove_pod(await runtime.run_pod("unlucky"))
    assert await node.pods() == []
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def test_plugins_before_it(nodes: list[Node], control: ControlClient) -> None:
    node = nodes[0]
    await chained(node, [{"type": "loopback"}, {"type": "ipamd-cni"}])
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir) as runtime:
        await runtime.wait_until_ready()
        pod = await runtime.run_pod("second-in-line")
        [held] = await node.pods()
        addresses = await ask(pod.netns, "ip", "-json", "address", "show", "dev", "eth0")
        assert [one["local"] for one in addresses[0]["addr_info"] if one["family"] == "inet"] == [held["ip"]]
        await runtime.remove_pod(pod)
    await node.wait_until_settled()
    assert await leaks(node, control) == []
