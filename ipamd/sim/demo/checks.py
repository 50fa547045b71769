"""Whether everything came back: what pods may leave on a node, in the ledger and at EC2."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import aiohttp

from cni_shim.names import DISCARDED_GROUP
from ipamd.settings import HostSettings
from ipamd.sim import netns as namespaces
from ipamd.sim.demo.node import Node

_HOST_LINK: Final = "ipm"  # what the names of pods' host links begin with: cni_shim.names
_DELETION: Final = 5.0  # seconds: usually well under one


class ControlClient:
    """What the simulated cloud itself knows and saw (`ipamd.sim.control`)."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def enis(self, instance_id: str) -> dict[str, list[str]]:
        """The instance's ENIs and the private addresses of each, primary first."""
        state = await self._get("state")
        return {eni["id"]: eni["private_ips"] for eni in state["enis"] if eni["instance_id"] == instance_id}

    async def calls(self) -> list[dict[str, Any]]:
        """Every EC2 call so far: {"time", "instance", "action", "outcome"}."""
        return list(await self._get("calls"))

    async def fault(self, action: str, **fault: object) -> None:
        """Make calls of `action` fail or slow: see `ipamd.sim.ec2.faults.Fault.parse`."""
        async with self._session.post(f"{self.url}/_control/faults", json={"action": action, **fault}) as reply:
            reply.raise_for_status()

    async def clear_faults(self) -> None:
        async with self._session.post(f"{self.url}/_control/clear", json={}) as reply:
            reply.raise_for_status()

    async def _get(self, what: str) -> Any:
        async with self._session.get(f"{self.url}/_control/{what}") as reply:
            reply.raise_for_status()
            return await reply.json()


async def host_links(netns: str) -> list[str]:
    """Host ends of pods' veth pairs; those out of service are given the time that the daemon takes to delete them.
    Raises `netns.CommandError`."""
    until = time.monotonic() + _DELETION
    while True:
        links = json.loads(await namespaces.command("ip", "-n", netns, "-json", "link", "show") or "[]")
        ours = [link for link in links if link["ifname"].startswith(_HOST_LINK)]
        if time.monotonic() >= until or not any(link.get("group") == str(DISCARDED_GROUP) for link in ours):
            return [link["ifname"] for link in ours]
        await asyncio.sleep(0.02)


async def pod_routes(netns: str) -> list[str]:
    """Destinations of routes to pods. Raises `netns.CommandError`."""
    # Of all tables: asked for one that has never been written to, ip(8) fails.
    text = await namespaces.command("ip", "-n", netns, "-json", "route", "show", "table", "all")
    pods = str(HostSettings.model_fields["table"].default)
    return [route["dst"] for route in json.loads(text or "[]") if str(route.get("table")) == pods]


async def leaks(node: Node, control: ControlClient) -> list[str]:
    """What is left of pods that were all removed, one line each; also where the daemon and EC2 disagree."""
    found = [f"{node.name}: in the ledger: {pod['container_id'][:12]} with {pod['ip']}" for pod in await node.pods()]
    found += [f"{node.name}: host link {name}" for name in await host_links(node.spec.netns)]
    found += [f"{node.name}: route to {destination}" for destination in await pod_routes(node.spec.netns)]
    if node.spool_dir.exists():
        found += [f"{node.name}: in the spool: {file.name}" for file in sorted(node.spool_dir.iterdir())]
    return found + await disagreements(node, control)


async def disagreements(node: Node, control: ControlClient) -> list[str]:
    """Where the daemon's view of its ENIs and their secondary addresses differs from EC2's, one line each."""
    at_ec2 = {eni: set(addresses[1:]) for eni, addresses in (await control.enis(node.spec.instance_id)).items()}
    at_daemon = await node.addresses()
    for known in await node.enis():
        if known["id"]:  # else EC2 has yet to be asked for it
            at_daemon.setdefault(known["id"], set())
    found = []
    for eni in sorted(at_ec2.keys() | at_daemon.keys()):
        if eni not in at_daemon:
            found.append(f"{node.name}: {eni} is attached, but the daemon does not know it")
            continue
        if eni not in at_ec2:
            found.append(f"{node.name}: the daemon believes in {eni}, which is not attached")
            continue
        if only := at_ec2[eni] - at_daemon[eni]:
            found.append(f"{node.name}: {eni}: assigned by EC2, unknown to the daemon: {', '.join(sorted(only))}")
        if only := at_daemon[eni] - at_ec2[eni]:
            found.append(f"{node.name}: {eni}: not assigned by EC2: {', '.join(sorted(only))}")
    return found
