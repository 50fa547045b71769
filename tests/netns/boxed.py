"""The daemon as a process on a node of the VPC in a box: what the tests of its socket stand on."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from cni_shim.names import host_ifname
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import introspection_pb2_grpc, ipam_pb2, ipam_pb2_grpc
from ipamd.sim import netns
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.runtimes.process import Child, inside
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc

QUICK = Delays(create=0, attach=0.05, detach=0.05, assign=0, link=0.05, imds_lag=0)
NOBODY = "10.0.0.3"  # EC2 keeps it, so no ENI has it
CONFIG = b'{"cniVersion":"1.1.0","name":"ipamd","type":"ipamd-cni"}'


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 60.0) -> None:
    try:
        async with asyncio.timeout(timeout):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{what}: not within {timeout} s")


class Daemon:
    """One daemon of a node, whose pool holds what is asked of it and no slack. `settings` are environment variables
    without their prefix."""

    def __init__(self, vpc: SimulatedVpc, node: SimulatedNode, log: str = "ipamd.log", **settings: Any) -> None:
        self.vpc, self.node, self.log = vpc, node, node.dir / log
        settings = {"POOL_SLACK": 0, **settings}
        self.settings = {f"IPAMD_{name}": str(value) for name, value in settings.items()}
        self.python: tuple[str, ...] = ("-m", "ipamd")  # what the interpreter is to run
        self.process: Child | None = None

    async def start(self) -> None:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.node.dir), **self.settings}
        command = inside(self.node.netns, sys.executable, *self.python, "run", "--config", self.node.config)
        self.process = await Child.start(command, self.log, environment)
        self.channel = grpc.aio.insecure_channel(
            f"unix:{self.node.socket}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.ipam = ipam_pb2_grpc.IpamStub(self.channel)
        self.introspection = introspection_pb2_grpc.IntrospectionStub(self.channel)

    async def ready(self) -> Daemon:
        """Started, and offered to the runtime."""
        await self.start()

        async def offered() -> bool:
            assert self.process is not None
            assert self.process.exit_code is None, self.process.last_words()
            return bool(self.events("daemon.ready"))

        self.log.write_text("")
        await until(offered, "the daemon is ready")
        return self

    async def stop(self) -> None:
        """SIGTERM; it must end soon and well."""
        if self.process is None:
            return
        await self.channel.close()
        process, self.process = self.process, None
        if process.exit_code is None:
            assert await process.stop(60.0), process.last_words()
        assert process.exit_code == 0, process.last_words()

    async def kill(self) -> None:
        if self.process is not None:
            await self.channel.close()
            self.process.kill()
            await self.process.wait()
            self.process = None

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Its log, all of it or the events of these names."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if not names or line["event"] in names]

    async def seen(self, name: str) -> dict[str, Any]:
        """The first event of this name, waited for."""

        async def there() -> bool:
            return bool(self.events(name))

        await until(there, f"event {name}")
        return self.events(name)[0]

    async def allocate(self, name: str, deadline: float = 15.0) -> ipam_pb2.AllocateReply:
        request = ipam_pb2.AllocateRequest(attachment=plain(name), deadline_ms=int(deadline * 1000))
        reply: ipam_pb2.AllocateReply = await self.ipam.Allocate(request, timeout=deadline + 5)
        return reply

    async def address(self, name: str) -> str:
        return text((await self.allocate(name)).address)

    async def release(self, name: str) -> ipam_pb2.ReleaseReply:
        request = ipam_pb2.ReleaseRequest(attachment=plain(name))
        reply: ipam_pb2.ReleaseReply = await self.ipam.Release(request, timeout=5)
        return reply

    async def counts(self) -> pb.Counts:
        node: pb.Node = await self.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
        return node.counts

    async def held(self) -> dict[str, str]:
        """Address by container id."""
        reply = await self.introspection.ListAttachments(pb.ListAttachmentsRequest(), timeout=5)
        return {attachment.container_id: attachment.ip for attachment in reply.attachments}

    async def settled(self, free: int) -> None:
        """Every ENI is ready, nothing is asked for or on its way out, and so many addresses are free."""

        async def quiet() -> bool:
            counts = await self.counts()
            if counts.free != free or counts.releasing:
                return False
            enis = (await self.introspection.ListEnis(pb.ListEnisRequest(), timeout=5)).enis
            return not counts.pending and not counts.waiting and all(eni.state == "ready" for eni in enis)

        await until(quiet, "the pool is at rest")


@asynccontextmanager
async def box(
    dir: Path, prefix: str, *subnets: str, type: str = "m5.large", **settings: Any
) -> AsyncIterator[tuple[Daemon, SimulatedVpc]]:
    """A VPC (default: of one /24) with one node in its first subnet, and the node's daemon, not started.

    An m5.large has 3 ENIs with 9 secondary addresses each.
    """
    async with SimulatedVpc.build(
        dir=dir, nodes={"n1": type}, subnets=subnets or ["10.0.0.0/24"], delays=QUICK, prefix=prefix
    ) as vpc:
        daemon = Daemon(vpc, vpc.nodes[0], **settings)
        try:
            yield daemon, vpc
            await daemon.stop()
        finally:
            await daemon.kill()


class _Newest(Random):
    """Chooses of several what came last."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return start - 1


def give_the_newest_address_first(vpc: SimulatedVpc) -> None:
    """From now on the next address that EC2 gives is the one that it got back last: the worst of its choices."""
    for subnet in vpc.cloud.subnets:
        subnet.random = _Newest()


def text(packed: bytes) -> str:
    return str(ipaddress.IPv4Address(packed))


def plain(name: str) -> ipam_pb2.Attachment:
    return ipam_pb2.Attachment(container_id=name, ifname="eth0", netns=f"/run/netns/{name}", pod_name=f"pod-{name}")


def cni_call(name: str, config: bytes = CONFIG) -> ipam_pb2.CniCall:
    args = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}"
    return ipam_pb2.CniCall(container_id=name, ifname="eth0", netns=f"/run/netns/{name}", args=args, config=config)


async def control(vpc: SimulatedVpc, path: str, document: object = None) -> Any:
    """GET, or POST with a document."""

    def ask() -> Any:
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{vpc.control_url}/_control/{path}", data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.loads(response.read() or b"null")

    return await asyncio.to_thread(ask)


async def ec2(vpc: SimulatedVpc, action: str, **parameters: object) -> Any:
    """A call by somebody else in the account."""
    return await control(vpc, "ec2", {"action": action, "parameters": parameters})


async def calls(vpc: SimulatedVpc, action: str) -> int:
    return sum(call["action"] == action for call in await control(vpc, "calls"))


async def cloud_enis(vpc: SimulatedVpc) -> dict[str, dict[str, Any]]:
    return {eni["id"]: eni for eni in (await control(vpc, "state"))["enis"]}


def secondary(enis: dict[str, dict[str, Any]]) -> set[str]:
    """The addresses that pods may have."""
    return {ip for eni in enis.values() for ip in eni["private_ips"] if ip != eni["primary_ip"]}


async def refused(awaitable: Awaitable[Any]) -> tuple[grpc.StatusCode, ErrorInfo, dict[str, Any] | None]:
    """Status, reason and, for a call that came through CNI, the error object."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await awaitable
    metadata: dict[str, Any] = dict(raised.value.trailing_metadata())
    status = Status.FromString(metadata["grpc-status-details-bin"])
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "ipamd" and info.metadata["request_id"]
    assert status.message == raised.value.details()
    error = metadata.get("ipamd-cni-error")
    return raised.value.code(), info, None if error is None else json.loads(error)


async def add_route(node: SimulatedNode, name: str, address: str, table: int = 1500) -> None:
    """What the plugin leaves on the host: the veth's end and the route to the pod."""
    link = host_ifname(name, "eth0")
    await netns.ip_batch(
        node.netns,
        [
            f"link add {link} type veth peer name p{link[1:]}",
            f"link set {link} up",
            f"route add {address}/32 dev {link} scope link table {table} proto 158",
        ],
    )
