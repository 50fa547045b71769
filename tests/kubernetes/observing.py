"""What a cluster shows while something happens to it: nodes that are not ready, pods that fail, and leftovers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.parts import ClusterError
from tests.kubernetes.worker import Node

_POLL = 0.5


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 120.0) -> None:
    """Raises AssertionError when it is not so within `timeout` seconds. A condition that raises `ClusterError` is not
    met; the AssertionError has `what` and the last such error."""
    last = ""
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    if await condition():
                        return
                    last = ""
                except ClusterError as error:
                    last = f": {error}"
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {timeout:g} s{last}") from None


@dataclass
class Seen:
    """`not_ready`: node -> why, of each look that found it so. `looks`: how many there were."""

    not_ready: list[tuple[str, str]] = field(default_factory=list)
    looks: int = 0


@asynccontextmanager
async def nodes_stay_ready(cluster: Cluster) -> AsyncIterator[Seen]:
    """Look at the nodes' conditions all the while. Raises AssertionError at the end if a look or an event says that a
    node was not ready, or if a pod was evicted."""
    seen = Seen()
    before = {event["metadata"]["uid"] for event in await events(cluster)}

    async def look() -> None:
        while True:
            for node in (await cluster.get("nodes"))["items"]:
                ready = next(each for each in node["status"]["conditions"] if each["type"] == "Ready")
                if ready["status"] != "True":
                    seen.not_ready.append((node["metadata"]["name"], ready["message"]))
            seen.looks += 1
            await asyncio.sleep(_POLL)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
        await asyncio.wait((looking,))
    assert seen.looks > 0 and seen.not_ready == []
    told = [event for event in await events(cluster) if event["metadata"]["uid"] not in before]
    bad = [
        event["message"] for event in told if event["reason"] in ("NodeNotReady", "TaintManagerEviction", "Evicted")
    ]
    assert bad == []


async def events(cluster: Cluster, reason: str = "", namespace: str = "*") -> list[dict[str, Any]]:
    """All that the API has, or those with this reason."""
    found: list[dict[str, Any]] = (await cluster.get("events", namespace=namespace))["items"]
    return [event for event in found if reason in ("", event["reason"])]


async def pods(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await cluster.get("pods", namespace=namespace))["items"]
    return found


def running(pod: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


async def number_running(cluster: Cluster, namespace: str, app: str = "") -> int:
    found = await pods(cluster, namespace)
    return sum(running(pod) for pod in found if app in ("", pod["metadata"].get("labels", {}).get("app")))


async def agree(cluster: Cluster, timeout: float = 120.0) -> None:
    """On each node the pods that run are the attachments, each with its address, and an audit finds nothing."""
    for node in cluster.nodes.values():
        if node.worker.ipamd is None:
            continue
        last: dict[str, Any] = {}

        async def same(node: Node = node, last: dict[str, Any] = last) -> bool:
            last |= await difference(cluster, node)
            return not any(last.values())

        try:
            await until(same, f"{node.name}: cluster, daemon, kernel and EC2 agree", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from None


async def difference(cluster: Cluster, node: Node) -> dict[str, Any]:
    wanted = {}
    for pod in (await cluster.get("pods", namespace="*"))["items"]:
        if pod["spec"].get("nodeName") != node.name or pod["spec"].get("hostNetwork"):
            continue
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            continue
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        wanted[name] = pod["status"].get("podIP", "")
    try:
        listed = json.loads(await node.ipamctl("pods", "-o", "json"))
        audited = json.loads(await node.ipamctl("audit", "-o", "json"))
    except ClusterError as error:
        return {"error": str(error)}
    held = {f"{each['namespace']}/{each['pod']}": each["ip"] for each in listed}
    return {
        "only in the cluster": sorted(wanted.items() - held.items()),
        "only in the daemon": sorted(held.items() - wanted.items()),
        "mismatches": audited["mismatches"],
    }


@asynccontextmanager
async def namespace(cluster: Cluster, name: str) -> AsyncIterator[str]:
    """One of its own, whose pods are gone from the nodes at the end of the block, too."""
    await cluster.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        await cluster.kubectl("delete", "namespace", name, "--wait=true", "--timeout=180s")
