"""What an operator sees of a real daemon, and may have it do: events, explanations, audits, releases, draining."""

from __future__ import annotations

import asyncio
import grp
import os
import signal
import socket
from pathlib import Path

import grpc
import pytest

from cni_shim.names import host_ifname
from ipamd.api.v1 import administration_pb2 as admin
from ipamd.api.v1 import administration_pb2_grpc, introspection_pb2_grpc, ipam_pb2, ipam_pb2_grpc
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.sim import netns
from tests.netns.boxed import NOBODY, Daemon, add_route, box, cni_call, control, ec2, plain, refused, until

pytestmark = pytest.mark.netns

GROUP = grp.getgrgid(os.getgid()).gr_name


def administration(daemon: Daemon) -> administration_pb2_grpc.AdministrationStub:
    return administration_pb2_grpc.AdministrationStub(daemon.channel)


async def explain(daemon: Daemon, pod: str = "") -> pb.Explanation:
    subject = pb.ExplainRequest(pod=pod) if pod else pb.ExplainRequest(pool=pb.PoolSubject())
    reply: pb.Explanation = await daemon.introspection.Explain(subject, timeout=5)
    return reply


async def audit(daemon: Daemon) -> pb.AuditReply:
    reply: pb.AuditReply = await daemon.introspection.Audit(pb.AuditRequest(), timeout=15)
    return reply


async def links(daemon: Daemon) -> str:
    return await netns.command("ip", "-n", daemon.node.netns, "-o", "link")


async def test_events_start_with_the_kept_ones_and_end_with_the_daemon(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_COOLDOWN=1, LOG_LEVEL="error") as (daemon, _):
        await daemon.start()

        async def serves() -> bool:
            try:
                return bool((await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=1)).ready)
            except grpc.aio.AioRpcError:
                return False

        await until(serves, "the daemon is ready")
        watch = daemon.introspection.WatchEvents(pb.WatchEventsRequest(last=1000, follow=True))
        seen: list[pb.Event] = []

        async def follow() -> None:
            async for event in watch:
                seen.append(event)

        following = asyncio.create_task(follow())
        await daemon.allocate("a")
        await daemon.release("a")

        async def told() -> bool:
            return any(event.name == "attachment.released" for event in seen)

        await until(told, "the release is reported")
        assert [event.number for event in seen] == list(range(1, len(seen) + 1))
        assert seen[0].name == "daemon.starting" and "pool.restored" in [event.name for event in seen]
        granted = next(event for event in seen if event.name == "attachment.granted")
        fields = dict(granted.fields)
        assert fields["container"] == "a" and fields["ip"] and fields["request_id"] and fields["waited_ms"] >= 0
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGTERM)
        async with asyncio.timeout(5):
            await following
        await daemon.stop()
        assert "daemon.stopping" in [event.name for event in seen]


async def test_pod_is_explained_while_waiting_refused_and_attached(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=0, POOL_COALESCE=0) as (daemon, vpc):
        await daemon.ready()
        await control(vpc, "faults", {"action": "AssignPrivateIpAddresses", "delay_s": 2, "times": 1})
        call = asyncio.ensure_future(daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("web")), timeout=20))

        async def waits() -> bool:
            return bool((await daemon.counts()).waiting)

        await until(waits, "the pod waits")
        waiting = await explain(daemon, "shop/web")
        assert waiting.state == "waiting" and waiting.headline.startswith("Pod shop/web (eth0) has waited ")
        assert any("1 address is on the way: one is for it" in line for line in waiting.because), waiting
        assert any(
            "asked for 1 address for eni-" in line and "AssignPrivateIpAddresses" in line for line in waiting.next
        )
        assert (await explain(daemon)).state == "growing"
        reply = await call
        attached = await explain(daemon, "web")
        assert attached.state == "attached" and attached.numbers["waited_ms"] > 500
        assert any("is missing" in line for line in attached.because)  # no plugin has plumbed it
        await add_route(daemon.node, "web", ".".join(map(str, reply.address)))
        attached = await explain(daemon, "shop/web")
        assert any(host_ifname("web", "eth0") in line and "as it should" in line for line in attached.because)

        denied = ("AssignPrivateIpAddresses", "CreateNetworkInterface")
        await control(vpc, "faults", [{"action": action, "error": "UnauthorizedOperation"} for action in denied])
        late = ipam_pb2.AllocateRequest(cni=cni_call("late"), deadline_ms=3000)
        _, info, _ = await refused(daemon.ipam.Allocate(late, timeout=10))
        assert info.reason == "NOT_AUTHORIZED"
        explained = await explain(daemon, "shop/late")
        assert explained.state == "refused" and "NOT_AUTHORIZED" in explained.headline
        blocked = await explain(daemon)
        assert blocked.state == "blocked" and any("ipamctl iam-policy" in line for line in blocked.advice)
        assert any("UnauthorizedOperation" in line and "left alone for another" in line for line in blocked.because)

        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await explain(daemon, "nobody")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_address_is_explained_by_its_holders(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=1, POOL_COOLDOWN=60) as (daemon, _):
        await daemon.ready()
        granted = await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("web")), timeout=20)
        address = ".".join(map(str, granted.address))

        async def what(subject: pb.ExplainRequest) -> pb.Explanation:
            reply: pb.Explanation = await daemon.introspection.Explain(subject, timeout=5)
            return reply

        for subject in (
            pb.ExplainRequest(address=address),
            pb.ExplainRequest(pod=address),
            pb.ExplainRequest(pod=host_ifname("web", "eth0")),
        ):
            held = await what(subject)
            assert held.state == "attached" and held.headline.startswith(f"Pod shop/web (eth0) has {address}")
        await daemon.release("web")
        cooling = await what(pb.ExplainRequest(address=address))
        assert cooling.state == "cooling" and "web had it until " in cooling.because[-1]
        (eni,) = (await daemon.introspection.ListEnis(pb.ListEnisRequest())).enis
        assert (await what(pb.ExplainRequest(address=eni.primary_ip))).state == "own"
        with pytest.raises(
            grpc.aio.AioRpcError, match=r"not on this node \(i-.*\): no ENI of it has this address"
        ) as unknown:
            await what(pb.ExplainRequest(address="192.0.2.7"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError, match=r"not on this node \(i-.* may be on another node"):
            await what(pb.ExplainRequest(pod="shop/elsewhere"))


async def test_an_audit_finds_what_differs_and_nothing_else(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=3) as (daemon, vpc):
        await daemon.ready()
        await daemon.settled(free=3)
        address = ".".join(map(str, (await daemon.allocate("a")).address))
        await add_route(daemon.node, "a", address)
        await daemon.settled(free=3)
        clean = await audit(daemon)
        assert not clean.mismatches
        assert (clean.enis, clean.addresses, clean.attachments, clean.routes) == (1, 4, 1, 1)

        (eni,) = (await daemon.introspection.ListEnis(pb.ListEnisRequest())).enis
        state = await control(vpc, "state")
        free = next(
            ip
            for ip in next(e for e in state["enis"] if e["id"] == eni.id)["private_ips"]
            if ip not in (eni.primary_ip, address)
        )
        await ec2(vpc, "UnassignPrivateIpAddresses", NetworkInterfaceId=eni.id, PrivateIpAddresses=[free])
        await netns.ip_batch(daemon.node.netns, [f"route add {NOBODY} dev eth0 table 1500 proto 158"])
        await asyncio.sleep(5.5)  # an answer is given again for so long
        kinds = {mismatch.kind: mismatch for mismatch in (await audit(daemon)).mismatches}
        assert set(kinds) == {"address_missing", "route_of_nobody"}, kinds
        assert kinds["address_missing"].subject == free and kinds["address_missing"].ledger == "free"
        assert kinds["route_of_nobody"].subject == NOBODY and "eth0" in kinds["route_of_nobody"].kernel


async def test_releasing_by_hand_cuts_the_container_off_first(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_COOLDOWN=60) as (daemon, _):
        await daemon.ready()
        address = ".".join(map(str, (await daemon.allocate("a")).address))
        await add_route(daemon.node, "a", address)
        name = host_ifname("a", "eth0")
        assert name in await links(daemon)
        (held,) = (await daemon.introspection.ListAttachments(pb.ListAttachmentsRequest())).attachments
        request = admin.ReleaseAttachmentRequest(
            network=held.network, container_id=held.container_id, ifname=held.ifname
        )
        released = await administration(daemon).ReleaseAttachment(request)
        assert (released.ip, released.container_id) == (address, "a")
        assert not await daemon.held() and (await daemon.counts()).cooling == 1

        async def gone() -> bool:
            return name not in await links(daemon)

        await until(gone, "the pair is deleted")
        with pytest.raises(grpc.aio.AioRpcError) as twice:
            await administration(daemon).ReleaseAttachment(request)
        assert twice.value.code() is grpc.StatusCode.NOT_FOUND
        explained = await explain(daemon, "a")
        assert explained.state == "released" and any("an operator" in line for line in explained.because)


async def test_collecting_looks_first_and_spares_what_is_young(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        await daemon.allocate("a")  # its netns was never there
        reply = await administration(daemon).CollectVanished(admin.CollectVanishedRequest())
        assert not reply.released and await daemon.held()


async def test_drained_node_keeps_pods_and_stays_drained_after_restart(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_COOLDOWN=1) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=5)
        await daemon.allocate("stays")
        reply = await administration(daemon).Drain(admin.DrainRequest())
        assert reply.attachments == 1 and reply.HasField("since")
        again = await administration(daemon).Drain(admin.DrainRequest())
        assert again.since == reply.since
        await daemon.settled(free=0)
        assert (await daemon.counts()).total == 1 and await daemon.held()
        _, info, error = await refused(daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("new")), timeout=5))
        assert info.reason == "DRAINED" and error is not None and error["code"] == 100
        await daemon.ipam.Ready(ipam_pb2.ReadyRequest(), timeout=5)  # running pods have all that they need
        await daemon.stop()
        await daemon.ready()
        node = await daemon.introspection.GetNode(pb.GetNodeRequest())
        assert node.drained == reply.since and node.ready and "DRAINED" in node.would_refuse
        assert (await explain(daemon)).state == "drained"
        await administration(daemon).Undrain(admin.UndrainRequest())
        await daemon.settled(free=5)
        assert await daemon.address("new")


async def test_group_may_look_by_socket_of_its_own_and_change_nothing(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "read.sock"
    async with box(tmp_path, prefix, API_READ_GROUP=GROUP, API_READ_SOCKET=path) as (daemon, _):
        await daemon.ready()
        stat = path.stat()
        assert (stat.st_mode & 0o777, stat.st_gid) == (0o660, os.getgid())
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            looking = introspection_pb2_grpc.IntrospectionStub(channel)
            assert (await looking.GetNode(pb.GetNodeRequest(), timeout=5)).ready
            for changing in (
                administration_pb2_grpc.AdministrationStub(channel).Drain(admin.DrainRequest(), timeout=5),
                ipam_pb2_grpc.IpamStub(channel).Release(ipam_pb2.ReleaseRequest(attachment=plain("a")), timeout=5),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await changing
                assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await daemon.kill()
        with socket.socket(socket.AF_UNIX) as left, pytest.raises(ConnectionRefusedError):
            left.connect(str(path))
        await daemon.ready()  # takes the dead one's place
        await daemon.stop()
        assert not path.exists()


async def test_a_group_that_is_not_there_is_named_and_ends_nothing(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, API_READ_GROUP="nosuchgroup") as (daemon, _):
        await daemon.ready()
        event = await daemon.seen("api.readers_not_served")
        assert "groupadd --system nosuchgroup" in event["text"]
        assert await daemon.address("a")
