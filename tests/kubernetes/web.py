"""The Deployment and the Service that the demo uses, as kubectl and each node's daemon see them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipamd.sim.demo.ping import Endpoint
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.demo_tables import PodLine

NODE_PORT: Final = 30080
_MANIFEST: Final = Path(__file__).with_name("manifests") / "web.yaml"
_PATIENCE: Final = 180.0  # for what usually takes some seconds
_POLL: Final = 0.2


class TooSlow(Exception):
    """Something has not come about in time; the message says what."""


@dataclass(frozen=True, slots=True)
class Pod:
    """As the API server has it."""

    name: str
    node: str
    ip: str


class Web:
    """The methods that wait raise `TooSlow`; all raise `ClusterError` when kubectl or ipamctl fails."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def make(self) -> float:
        """Returns how many seconds it took until all replicas were ready, as the next ones do."""
        return await self._timed(self._cluster.apply(_MANIFEST.read_text(encoding="utf-8")), self._steady)

    async def scale(self, replicas: int) -> float:
        return await self._timed(
            self._cluster.kubectl("scale", "deployment/web", f"--replicas={replicas}"), self._steady
        )

    async def update(self) -> float:
        """Replace each pod by one of a new template."""
        return await self._timed(self._cluster.kubectl("set", "env", "deployment/web", "RELEASE=2"), self._steady)

    async def remove(self) -> float:
        return await self._timed(self._cluster.kubectl("delete", "deployment/web", "service/web"), self._gone)

    async def pods(self) -> list[Pod]:
        """All that have an address."""
        return [
            Pod(item["metadata"]["name"], item["spec"]["nodeName"], item["status"]["podIP"])
            for item in await self._items()
            if item["status"].get("podIP")
        ]

    async def cluster_ip(self) -> str:
        service = await self._cluster.get("service", "web", "default")
        return str(service["spec"]["clusterIP"])

    async def lines(self) -> list[PodLine]:
        """Where the address of each pod comes from, by the daemon of its node; unknown there: a question mark."""
        found = []
        pods = await self.pods()
        for name, node in self._cluster.nodes.items():
            records = {pod["pod"]: pod for pod in json.loads(await node.ipamctl("pods", "-o", "json"))}
            links = {eni["id"]: eni["link"] for eni in json.loads(await node.ipamctl("enis", "-o", "json"))}
            for pod in pods:
                if pod.node == name:
                    record = records.get(pod.name, {"ip": "?", "eni": "?"})
                    eni = record["eni"] if record["ip"] == pod.ip else "?"
                    found.append(PodLine(name, pod.name, pod.ip, eni, links.get(eni, "?")))
        return found

    async def endpoints(self) -> list[Endpoint]:
        """Each pod and each worker, to ping from and to."""
        found = [
            Endpoint(name, name, node.spec.primary_ip, node.machine.netns)
            for name, node in self._cluster.nodes.items()
        ]
        own = {pod.name for pod in await self.pods()}
        for name, node in self._cluster.nodes.items():
            for record in json.loads(await node.ipamctl("pods", "-o", "json")):
                if record["pod"] in own:
                    netns = node.machine.path(_netns(record["netns"]))
                    found.append(Endpoint(record["pod"], name, record["ip"], netns))
        return found

    async def _items(self) -> list[dict[str, Any]]:
        found = await self._cluster.get("pods", namespace="default")
        return [item for item in found["items"] if item["metadata"]["labels"].get("app") == "web"]

    async def _steady(self) -> bool:
        """As many pods as wanted, all of the newest template and ready, and none that ends."""
        deployment = await self._cluster.get("deployment", "web", "default")
        wanted, status = deployment["spec"]["replicas"], deployment["status"]
        counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")]
        current = status.get("observedGeneration") == deployment["metadata"]["generation"]
        return current and counts == [wanted] * 3 and len(await self._items()) == wanted

    async def _gone(self) -> bool:
        return not await self._items()

    async def _timed(self, command: Awaitable[object], done: Callable[[], Awaitable[bool]]) -> float:
        begun = time.monotonic()
        await command
        try:
            async with asyncio.timeout(_PATIENCE):
                while not await done():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise TooSlow(f"the pods of deployment/web are not as wanted after {_PATIENCE:.0f} s") from None
        return time.monotonic() - begun


def _netns(path: str) -> str:
    """Not by way of /var/run: that link would lead to the folder of the machine that this one runs on."""
    return path.replace("/var/run/", "/run/", 1)
