"""Host ports of pods, by the portmap that the daemon chains: containerd and plugins of three Debian releases."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from ipamd.install.files import CONFLIST
from ipamd.sim import netns as namespaces
from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes.containerd import Containerd, Pod, containerd
from tests.e2e import debian
from tests.e2e.single_node import run, until

pytestmark = pytest.mark.e2e

HOST_PORT, POD_PORT = 18080, 8080
ANSWER = b"it is me"
# Addresses of an m5.large's ENI: with so many pods the last is on a secondary one.
PER_ENI = 9


@dataclass(frozen=True)
class Release:
    """`containerd`: None for the machine's own. `chain`: the line of the settings, none for the default. `versions`:
    of CNI, that the conflist offers."""

    plugins: Path
    containerd: Path | None
    chain: str
    versions: list[str]


@pytest.fixture(params=["bookworm", "trixie", "sid", "sid, nftables"])
async def release(request: pytest.FixtureRequest) -> Release:
    name, _, rest = request.param.partition(", ")
    backend = rest if rest == "nftables" else ""
    if name == "bookworm":
        return Release(Path("/usr/lib/cni"), None, "", ["1.0.0"])
    plugins = await asyncio.to_thread(debian.unpacked, name, "containernetworking-plugins")
    folder = await asyncio.to_thread(debian.unpacked, name, "containerd") / "usr" / "bin"
    await asyncio.to_thread(debian.containerd_version, folder)
    if rest == "old plugins":
        return Release(Path("/usr/lib/cni"), folder, "", ["1.0.0"])
    chain = f'chain = [{{ type = "portmap", backend = "{backend}" }}]' if backend else ""
    versions = ["1.0.0"] if name == "trixie" else ["1.0.0", "1.1.0"]
    return Release(plugins / "usr/lib/cni", folder, chain, versions)


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)
    writer.close()
    await writer.wait_closed()


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(ANSWER, address)


@asynccontextmanager
async def answering(pod: Pod) -> AsyncIterator[None]:
    """By TCP and UDP, on the pod's port."""

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", POD_PORT))
        return made

    async with AsyncExitStack() as stack:
        listening = namespaces.listen_in(str(pod.netns), "0.0.0.0", POD_PORT)
        await stack.enter_async_context(await asyncio.start_server(_greet, sock=listening))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            _Echo, sock=namespaces.run_in(str(pod.netns), bound)
        )
        stack.callback(transport.close)
        yield


def _asked(netns: str, ip: str, kind: socket.SocketKind) -> bytes:
    """What the host port at `ip` answers to somebody in that network namespace; nothing: empty."""

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, kind) as client:
            client.settimeout(5)
            try:
                client.connect((ip, HOST_PORT))
                client.send(b"who?")
                return client.recv(64)
            except (TimeoutError, ConnectionRefusedError):
                return b""

    return namespaces.run_in(netns, ask)


async def answers(clients: dict[str, tuple[str, str]]) -> dict[str, bytes]:
    """By protocol and client (name -> namespace, address)."""
    found = {}
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for name, (netns, ip) in clients.items():
            found[f"{kind.name} {name}"] = await asyncio.to_thread(_asked, netns, ip, kind)
    return found


async def rules(netns: str) -> list[str]:
    """What portmap has in iptables and nftables, without the chains that it makes once."""
    found = []
    for argv in (("iptables-save", "-t", "nat"), ("nft", "list", "ruleset", "ip")):
        code, text = await run(netns, *argv)
        assert code == 0, text
        found += [line.strip() for line in text.splitlines() if str(HOST_PORT) in line or str(POD_PORT) in line]
    return found


@asynccontextmanager
async def served(node: Node, release: Release) -> AsyncIterator[Containerd]:
    """The node with the release's containerd and portmap, which the daemon chains."""
    if release.chain:
        node.spec.config.write_text(node.spec.config.read_text().replace("[cni]\n", f"[cni]\n{release.chain}\n"))
        await node.stop()
        await node.start()
        await node.wait_until_ready()
    (node.bin_dir / "portmap").symlink_to(release.plugins / "portmap")

    async def chained() -> bool:
        document = json.loads((node.conf_dir / CONFLIST).read_bytes())
        return [plugin["type"] for plugin in document["plugins"]] == ["ipamd-cni", "portmap"]

    await until(chained, "the daemon chains portmap")
    assert json.loads((node.conf_dir / CONFLIST).read_bytes())["cniVersions"] == release.versions
    async with containerd(
        node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir, release=release.containerd
    ) as runtime:
        await runtime.wait_until_ready()
        yield runtime


async def test_a_host_port_is_reached_from_everywhere(
    release: Release, nodes: list[Node], control: ControlClient
) -> None:
    node, other = nodes
    async with served(node, release) as runtime:
        fill = [await runtime.run_pod(f"p{number}") for number in range(PER_ENI)]
        ports = {HOST_PORT: POD_PORT}
        pod = await runtime.run_pod("server", host_ports=ports, udp_ports=ports)
        (held,) = [line for line in await node.pods() if line["container_id"] == pod.id]
        primary = next(eni["id"] for eni in await node.enis() if eni["primary"])
        assert held["eni"] != primary, "replies have to find the way back to the primary ENI"
        clients = {
            "another node": (other.spec.netns, node.spec.primary_ip),
            "the node": (node.spec.netns, node.spec.primary_ip),
            "127.0.0.1": (node.spec.netns, "127.0.0.1"),
            "a pod of the node": (str(fill[0].netns), node.spec.primary_ip),
            "the pod itself": (str(pod.netns), node.spec.primary_ip),
        }
        async with answering(pod):
            assert {name for name, answer in (await answers(clients)).items() if answer != ANSWER} == set()
            await node.stop()
            await node.start()
            await node.wait_until_ready()
            assert {name for name, answer in (await answers(clients)).items() if answer != ANSWER} == set()
            await node.kill()
            await node.start()
            await node.wait_until_ready()
            assert {name for name, answer in (await answers(clients)).items() if answer != ANSWER} == set()
        assert await rules(node.spec.netns) != []
        for one in (pod, *fill):
            await runtime.remove_pod(one)
        assert await rules(node.spec.netns) == []
    await node.wait_until_settled()
    assert await leaks(node, control) == []


@pytest.mark.parametrize("release", ["bookworm", "sid", "sid, old plugins"], indirect=True)
async def test_containerd_takes_the_chain_while_it_runs(
    release: Release, nodes: list[Node], control: ControlClient
) -> None:
    """A pod from before ends by a chain, perhaps for an older CNI, that it did not begin with; nothing is logged
    as an error while the file is written."""
    node, other = nodes
    folder, portmap = node.spec.dir / "ctd", node.bin_dir / "portmap"
    async with containerd(
        node.spec.netns, folder, node.bin_dir, node.conf_dir, release=release.containerd
    ) as runtime:
        await runtime.wait_until_ready()
        before = await runtime.run_pod("before", host_ports={HOST_PORT: POD_PORT})
        assert await rules(node.spec.netns) == []
        portmap.symlink_to(release.plugins / "portmap")

        async def mapped() -> bool:
            pod = await runtime.run_pod("probe", host_ports={HOST_PORT: POD_PORT})
            found = await rules(node.spec.netns)
            await runtime.remove_pod(pod)
            return bool(found)

        await until(mapped, "containerd has read the new chain")
        assert await rules(node.spec.netns) == []
        await runtime.remove_pod(before)
        during = await runtime.run_pod("during", host_ports={HOST_PORT: POD_PORT})
        async with answering(during):
            assert (
                await asyncio.to_thread(_asked, other.spec.netns, node.spec.primary_ip, socket.SOCK_STREAM) == ANSWER
            )
        # Renewed: away for a moment, then of a newer file. The chain stays, and so does the pod's rule.
        portmap.unlink()
        portmap.symlink_to(os.path.realpath(release.plugins / "portmap"))
        await runtime.remove_pod(during)
        assert await rules(node.spec.netns) == []
        assert "failed to reload cni configuration" not in (folder / "log").read_text(errors="replace")
    await node.wait_until_settled()
    assert await leaks(node, control) == []
