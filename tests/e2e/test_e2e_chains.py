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
from ipamd.config.reference import toml_value
from ipamd.install.files import CONFLIST
from ipamd.sim import netns as namespaces
from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.runtimes import RuntimeFailure
from ipamd.sim.runtimes.containerd import Containerd, containerd
from tests.e2e.single_node import ask, run, until

pytestmark = pytest.mark.e2e

PLUGINS = Path("/usr/lib/cni")
HOST_PORT, POD_PORT = 18080, 8080
SYSCTL = "net.core.somaxconn"
CHAIN: list[Any] = [
    "portmap",
    "bandwidth",
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


async def chained(node: Node, wanted: list[Any]) -> None:
    """By the daemon, which is started again with this setting."""
    names = [entry if isinstance(entry, str) else entry["type"] for entry in wanted]
    for name in names:
        if not (node.bin_dir / name).exists():
            (node.bin_dir / name).symlink_to(PLUGINS / name)
    lines = [line for line in node.spec.config.read_text().splitlines() if not line.startswith("chain =")]
    lines.insert(lines.index("[cni]") + 1, f"chain = {toml_value(wanted)}")
    node.spec.config.write_text("\n".join(lines))
    await node.stop()
    await node.start()
    await node.wait_until_ready()

    async def written() -> bool:
        document = json.loads((node.conf_dir / CONFLIST).read_bytes())
        return [plugin["type"] for plugin in document["plugins"]] == ["ipamd-cni", *names]

    await until(written, "the daemon has written the chain")


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
    await chained(node, [{"type": "tuning", "sysctl": {"net.no.such": "1"}}])
    with pytest.raises(RuntimeFailure, match="tuning"):
        async with asyncio.timeout(60):
            while True:  # until containerd has seen the new file
                await runtime.remove_pod(await runtime.run_pod("unlucky"))
    assert await node.pods() == []
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def test_plugins_before_it(nodes: list[Node], control: ControlClient) -> None:
    """In a configuration of the operator's own."""
    node = nodes[0]
    (node.bin_dir / "loopback").symlink_to(PLUGINS / "loopback")
    document = json.loads((node.conf_dir / CONFLIST).read_bytes())
    document["plugins"] = [{"type": "loopback"}, {"type": "ipamd-cni"}]
    document["cniVersions"] = ["1.0.0"]  # the plugins of Debian 12 know nothing newer
    (node.conf_dir / CONFLIST).write_text(json.dumps(document))
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir) as runtime:
        await runtime.wait_until_ready()
        pod = await runtime.run_pod("second-in-line")
        [held] = await node.pods()
        addresses = await ask(pod.netns, "ip", "-json", "address", "show", "dev", "eth0")
        assert [one["local"] for one in addresses[0]["addr_info"] if one["family"] == "inet"] == [held["ip"]]
        await runtime.remove_pod(pod)
    await node.wait_until_settled()
    assert await leaks(node, control) == []
