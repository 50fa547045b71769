"""The daemon as a process, on a node of the VPC in a box: what callers see on its socket, and what outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cni_shim.names import host_ifname
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import ipam_pb2
from ipamd.sim import netns
from ipamd.sim.fabric import EC2_ADDRESS
from ipamd.sim.runtimes.process import Child
from tests.netns.boxed import (
    CONFIG,
    Daemon,
    add_route,
    box,
    calls,
    cloud_enis,
    cni_call,
    control,
    plain,
    refused,
    secondary,
    text,
    until,
)

pytestmark = pytest.mark.netns


async def test_a_container_gets_an_address_and_gives_it_back(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_COOLDOWN=1) as (daemon, vpc):
        await daemon.ready()
        assert json.loads((daemon.node.dir / "net.d" / "10-ipamd.conflist").read_text())["name"] == "ipamd"
        assert daemon.node.socket.stat().st_mode & 0o777 == 0o600

        first = await daemon.allocate("a")
        assert first.prefix_length == 32 and text(first.gateway) == "169.254.1.1" and first.result == b""
        assert (first.ifname, first.host_ifname) == ("eth0", host_ifname("a", "eth0"))
        assert (
            first.table == 1500 and first.link_group == 1500 and first.mtu >= 1500 and first.netns == "/run/netns/a"
        )
        assert (await daemon.allocate("a")).address == first.address
        owner = (await cloud_enis(vpc)).values()
        assert any(text(first.address) in eni["private_ips"] for eni in owner)

        second = await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("b")), timeout=10)
        result = json.loads(second.result)
        assert result["cniVersion"] == "1.1.0" and result["ips"][0]["address"] == f"{text(second.address)}/32"
        assert second.address != first.address

        node = await daemon.introspection.GetNode(pb.GetNodeRequest())
        assert (node.instance_id, node.instance_type, node.ready) == (daemon.node.instance_id, "m5.large", True)
        assert (node.max_enis, node.addresses_per_eni, node.targets.max_pods) == (3, 9, 27)
        await daemon.settled(free=5)
        counts = await daemon.counts()
        assert (counts.assigned, counts.free, counts.total) == (2, 5, 7)
        (eni,) = (await daemon.introspection.ListEnis(pb.ListEnisRequest())).enis
        assert (eni.primary, eni.state, eni.free, eni.assigned, eni.capacity, eni.link) == (
            True, "ready", 5, 2, 9, "eth0",
        )  # fmt: skip
        addresses = (await daemon.introspection.ListAddresses(pb.ListAddressesRequest())).addresses
        assert sorted(address.state for address in addresses) == ["assigned"] * 2 + ["free"] * 5
        attachments = {a.container_id: a for a in (await _attachments(daemon))}
        assert (attachments["b"].pod_namespace, attachments["b"].pod_name) == ("shop", "b")
        assert attachments["a"].host_ifname == first.host_ifname
        assert not (await daemon.introspection.ListWaiting(pb.ListWaitingRequest())).waiting

        released = await daemon.release("a")
        assert released.released and released.address == first.address
        again = await daemon.release("a")
        assert not again.released and again.host_ifname == first.host_ifname
        assert (await daemon.ipam.Release(ipam_pb2.ReleaseRequest(cni=cni_call("b")))).released
        assert await daemon.held() == {}
        assert (await daemon.counts()).cooling == 2

        async def cooled() -> bool:
            return (await daemon.counts()).cooling == 0

        await until(cooled, "released addresses are free again")
        assert {event["event"] for event in daemon.events() if event["level"] != "info"} == set()


async def _attachments(daemon: Daemon) -> list[pb.AttachmentInfo]:
    return list((await daemon.introspection.ListAttachments(pb.ListAttachmentsRequest(), timeout=5)).attachments)


async def test_check_collect_ready_and_what_can_not_be_understood(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()

        # CHECK
        code, info, error = await refused(daemon.ipam.Check(ipam_pb2.CheckRequest(cni=cni_call("a"))))
        assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ATTACHMENT")
        assert error is not None and error["code"] == 3
        address = await daemon.address("a")
        check = ipam_pb2.CheckRequest(attachment=plain("a"))
        code, info, _ = await refused(daemon.ipam.Check(check))
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ATTACHMENT_BROKEN")
        await add_route(daemon.node, "a", address)
        link = host_ifname("a", "eth0")
        assert (await daemon.ipam.Check(check)).host_ifname == link
        for switch in (link, "eth0"):

            async def told(switch: str = switch) -> bool:
                """The daemon turns it on again, after a while only if it has to do so again and again."""
                netns.write_sysctls(daemon.node.netns, {f"ipv4/conf/{switch}/forwarding": 0})
                try:
                    await daemon.ipam.Check(check)
                except grpc.aio.AioRpcError as error:
                    return f"net.ipv4.conf.{switch}.forwarding" in (error.details() or "")
                return False

            await until(told, f"CHECK tells that {switch} does not forward")
        await netns.ip_batch(daemon.node.netns, [f"route del {address} table 1500"])
        code, info, error = await refused(daemon.ipam.Check(ipam_pb2.CheckRequest(cni=cni_call("a"))))
        assert info.reason == "ATTACHMENT_BROKEN" and error is not None and "is missing" in error["msg"]

        # GC: what is young stays, known to the runtime or not
        collect = ipam_pb2.CollectRequest(valid=ipam_pb2.ValidAttachments())
        assert (await daemon.ipam.Collect(collect)).released == 0
        config = b'{"cniVersion":"1.1.0","name":"ipamd","cni.dev/valid-attachments":[{"containerID":"a"}]}'
        code, info, error = await refused(daemon.ipam.Collect(ipam_pb2.CollectRequest(cni=cni_call("", config))))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG")
        assert error is not None and error["code"] == 7
        assert set(await daemon.held()) == {"a"}

        # STATUS
        await daemon.settled(free=5)
        assert (await daemon.ipam.Ready(ipam_pb2.ReadyRequest())).free == 5
        assert (await daemon.ipam.Ready(ipam_pb2.ReadyRequest(cni=cni_call("", CONFIG)))).free == 5

        # Nonsense, and its length
        code, info, error = await refused(daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("b", b"{"))))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG")
        assert error is not None and error["code"] == 6 and info.metadata["request_id"] in error["details"]
        code, info, error = await refused(
            daemon.ipam.Allocate(ipam_pb2.AllocateRequest(attachment=plain("x" * 60000)))
        )
        assert (code, info.reason, error) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", None)
        code, info, error = await refused(daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call("y" * 60000))))
        assert info.reason == "INVALID_REQUEST" and error is not None and error["code"] == 4
        code, info, _ = await refused(daemon.ipam.Release(ipam_pb2.ReleaseRequest()))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")

        # Health and reflection
        health: Any = health_pb2_grpc.HealthStub(daemon.channel)
        for service in ("", "ipamd.v1.Ipam", "ipamd.v1.Introspection"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        channel: Any = daemon.channel  # grpcio's annotations know the synchronous one only
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        questions = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        async for reply in reflection.ServerReflectionInfo(questions):
            names = {service.name for service in reply.list_services_response.service}
            assert {"ipamd.v1.Ipam", "ipamd.v1.Introspection", "grpc.health.v1.Health"} <= names


async def test_what_pods_hold_outlives_the_daemon_and_its_ledger(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await daemon.ready()
        held = {name: await daemon.address(name) for name in "abc"}
        await daemon.settled(free=5)
        await daemon.stop()
        assert not daemon.node.socket.exists()
        grown = await calls(vpc, "AssignPrivateIpAddresses")

        await daemon.ready()
        assert await daemon.held() == held
        assert await daemon.address("a") == held["a"]
        assert await calls(vpc, "AssignPrivateIpAddresses") == grown

        # The ledger is lost while pods run: their routes speak for them.
        for name in "ab":
            await add_route(daemon.node, name, held[name])
        await daemon.stop()
        for file in daemon.node.dir.glob("ledger.db*"):
            file.unlink()
        await daemon.ready()
        assert {event["ip"] for event in daemon.events("attachment.recovered")} == {held["a"], held["b"]}
        granted = {await daemon.address(f"new-{n}") for n in range(8)}
        assert not granted & {held["a"], held["b"]} and len(granted) == 8
        recovered = {a.host_ifname: a.ip for a in await _attachments(daemon) if not a.network}
        assert recovered == {host_ifname(name, "eth0"): held[name] for name in "ab"}
        assert text((await daemon.ipam.Check(ipam_pb2.CheckRequest(attachment=plain("a")))).address) == held["a"]
        released = await daemon.release("a")
        assert released.released and text(released.address) == held["a"]


async def test_kill_between_create_and_attach_leaks_no_eni(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=12) as (daemon, vpc):
        await control(vpc, "faults", {"action": "AttachNetworkInterface", "delay_s": 60})
        await daemon.start()
        await daemon.seen("eni.created")
        await daemon.kill()
        await control(vpc, "clear", {})
        assert len(await cloud_enis(vpc)) == 2
        await daemon.ready()
        await daemon.settled(free=12)
        enis = await cloud_enis(vpc)
        assert len(enis) == 2 and {eni["instance_id"] for eni in enis.values()} == {daemon.node.instance_id}
        assert await calls(vpc, "CreateNetworkInterface") == 1
        await daemon.kill()

        # Killed while the creation itself is under way: EC2 made the ENI, nobody heard of it.
        daemon.settings["IPAMD_POOL_WARM_IPS"] = "20"
        fault = {"action": "CreateNetworkInterface", "delay_s": 60, "after_effect": True}
        await control(vpc, "faults", fault)
        await daemon.start()

        async def made() -> bool:
            return len(await cloud_enis(vpc)) == 3

        await until(made, "EC2 made the ENI")
        await daemon.kill()
        await control(vpc, "clear", {})
        await daemon.ready()
        await daemon.settled(free=20)
        enis = await cloud_enis(vpc)
        assert len(enis) == 3 and {eni["instance_id"] for eni in enis.values()} == {daemon.node.instance_id}
        assert (await daemon.counts()).total == len(secondary(enis))


async def test_an_assignment_that_took_effect_unheard_loses_no_address(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        fault = {"action": "AssignPrivateIpAddresses", "error": "timeout", "delay_s": 0.1, "times": 1}
        await control(vpc, "faults", {**fault, "after_effect": True})
        await daemon.ready()
        await daemon.settled(free=5)
        known = (await daemon.introspection.ListAddresses(pb.ListAddressesRequest())).addresses
        assert {address.ip for address in known} == secondary(await cloud_enis(vpc))
        assert len(known) == 5
        assert await calls(vpc, "AssignPrivateIpAddresses") == 1


async def test_what_ec2_denies_is_refused_at_once_with_the_remedy(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
            await control(vpc, "faults", {"action": action, "error": "UnauthorizedOperation"})
        begun = time.monotonic()
        request = ipam_pb2.AllocateRequest(cni=cni_call("a"), deadline_ms=20000)
        code, info, error = await refused(daemon.ipam.Allocate(request))
        assert time.monotonic() - begun < 10, "it must not wait for its deadline"
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_AUTHORIZED")
        assert float(info.metadata["retry_after"]) > 0 and info.metadata["free"] == "0"
        assert error is not None and error["code"] == 11 and "pod shop/a" in error["msg"]
        assert "allow ec2:" in error["msg"] and "reason=NOT_AUTHORIZED" in error["details"]
        await daemon.ipam.Ready(ipam_pb2.ReadyRequest(cni=cni_call("", CONFIG)))  # pods that run can live with it
        node = await daemon.introspection.GetNode(pb.GetNodeRequest())
        assert node.ready and not node.not_ready_reason and node.would_refuse.startswith("NOT_AUTHORIZED: ")
        assert {backoff.reason for backoff in node.backoffs} == {"NOT_AUTHORIZED"}
        assert {event["level"] for event in daemon.events("ec2.failed")} == {"error"}


async def test_full_subnet_is_used_to_its_last_address_and_then_named(tmp_path: Path, prefix: str) -> None:
    # A /28 has 16 addresses; EC2 keeps 5 and the instance has 1, so that 10 are left, and a new ENI takes 1 itself.
    async with box(tmp_path, prefix, "10.0.0.0/28", POOL_WARM_IPS=0) as (daemon, _):
        await daemon.ready()
        answers = await asyncio.gather(*(daemon.allocate(f"pod-{n}") for n in range(14)), return_exceptions=True)
        granted = {text(answer.address) for answer in answers if isinstance(answer, ipam_pb2.AllocateReply)}
        assert len(granted) == 9
        code, info, _ = await refused(daemon.allocate("late"))
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SUBNET_EXHAUSTED")
        assert float(info.metadata["retry_after"]) > 0
        assert len(await daemon.held()) == 9


async def test_a_stopping_daemon_sends_whoever_waits_to_its_successor(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        await control(vpc, "faults", {"action": "AssignPrivateIpAddresses", "delay_s": 3, "after_effect": True})
        waiting = [
            daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=cni_call(name), deadline_ms=20000)) for name in "abc"
        ]

        async def asked() -> bool:
            """For all three at once, and EC2 is about to take its time."""
            [fault] = await control(vpc, "faults")
            return (await daemon.counts()).waiting == 3 and fault["struck"] == 1

        await until(asked, "three wait for EC2")
        names = [w.container_id for w in (await daemon.introspection.ListWaiting(pb.ListWaitingRequest())).waiting]
        assert sorted(names) == ["a", "b", "c"]
        assert daemon.process is not None
        os.kill(daemon.process.pid, 15)
        for call in waiting:
            code, info, error = await refused(call)
            # Without a finished error the plugin goes on asking, until its own deadline.
            assert (code, info.reason, error) == (grpc.StatusCode.UNAVAILABLE, "DRAINING", None)
        await daemon.stop()
        await control(vpc, "clear", {})
        await daemon.ready()
        assert (await daemon.counts()).total == len(secondary(await cloud_enis(vpc))) == 3


async def test_a_caller_that_hangs_up_takes_its_request_along(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        await control(vpc, "faults", {"action": "AssignPrivateIpAddresses", "delay_s": 3})
        impatient = daemon.ipam.Allocate(ipam_pb2.AllocateRequest(attachment=plain("a")))
        late = daemon.ipam.Allocate(ipam_pb2.AllocateRequest(attachment=plain("b")), timeout=2)

        async def queued() -> bool:
            return (await daemon.counts()).waiting == 2

        await until(queued, "both wait")
        impatient.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await late
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        async def nobody() -> bool:
            return (await daemon.counts()).waiting == 0

        await until(nobody, "nobody waits")
        await control(vpc, "clear", {})

        async def arrived() -> bool:
            return (await daemon.counts()).pending == 0

        await until(arrived, "what was asked from EC2 is here")
        assert await daemon.held() == {}


async def test_releases_that_were_left_in_the_spool_are_carried_out(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        for name in "abcd":
            await daemon.address(name)
        await daemon.stop()
        spool = daemon.node.dir / "released"

        def leave(name: str, request: bytes) -> None:
            (spool / f".{name}").write_bytes(request)
            (spool / f".{name}").rename(spool / name)

        def release(name: str) -> bytes:
            return ipam_pb2.ReleaseRequest(cni=cni_call(name)).SerializeToString()

        leave("1", release("a"))
        leave("2", release("a"))  # runtimes send DEL twice
        leave("ipm0-3-1", b"\xff nonsense")
        # The time of a file says nothing: the clock may have been set since the ADD.
        leave("4", release("b"))
        os.utime(spool / "4", (1.0, 1.0))
        await daemon.ready()
        assert set(await daemon.held()) == {"c", "d"}
        assert {file.name for file in spool.iterdir()} == {"ipm0-3-1.rejected"}
        assert (await daemon.counts()).cooling == 2

        leave("6", release("c"))

        async def gone() -> bool:
            return set(await daemon.held()) == {"d"} and not (spool / "6").exists()

        await until(gone, "a release is taken on sight")

        # Somebody cleans up below /run: the plugin makes the directory anew, and so does the daemon.
        (spool / "ipm0-3-1.rejected").unlink()
        spool.rmdir()
        await daemon.seen("spool.removed")
        spool.mkdir(exist_ok=True)
        leave("7", release("d"))

        async def empty() -> bool:
            return await daemon.held() == {}

        await until(empty, "a release in the new directory is taken")


async def ended(child: Child) -> tuple[int, str]:
    async with asyncio.timeout(20):
        code = await child.wait()
    return code, child.log.read_text()


async def test_a_second_daemon_does_no_harm_and_says_what_is_wrong(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await daemon.ready()
        await daemon.settled(free=5)
        before = len(await control(vpc, "calls"))
        rival = Daemon(vpc, daemon.node, "same-ledger.log")
        await rival.start()
        assert rival.process is not None
        code, words = await ended(rival.process)
        assert code == 1 and "if it is another ipamd, give this one its own" in words and "Traceback" not in words

        rival = Daemon(vpc, daemon.node, "same-socket.log", LEDGER_PATH=daemon.node.dir / "other.db")
        await rival.start()
        assert rival.process is not None
        code, words = await ended(rival.process)
        assert code == 1 and "another ipamd serves it" in words and "Traceback" not in words
        assert len(await control(vpc, "calls")) == before, "it asked nothing of EC2"
        assert await daemon.address("a")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"POOL_WARM_IPS": "many"}, 'IPAMD_POOL_WARM_IPS = "many": must be a whole number'),
        ({"POOL_WARMTH": "5"}, "environment IPAMD_POOL_WARMTH: no such setting"),
        ({"API_SOCKET": "{dir}/config.toml"}, "is no socket"),
        ({"API_SOCKET": "{dir}/" + "s" * 108}, "107 bytes"),
        ({"LEDGER_PATH": "{dir}"}, "ledger.path "),
        ({"LEDGER_PATH": "{dir}/bin"}, "bin is no file, and no link to one; remove it"),
    ],
    ids=["value", "key", "socket", "long-socket", "ledger-above", "ledger"],
)
async def test_unservable_settings_end_the_daemon_with_a_clear_line(
    tmp_path: Path, prefix: str, settings: dict[str, str], words: str
) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        resolved = {name: value.format(dir=daemon.node.dir) for name, value in settings.items()}
        wrong = Daemon(vpc, daemon.node, "wrong.log", **resolved)
        await wrong.start()
        assert wrong.process is not None
        try:
            code, log = await ended(wrong.process)
        finally:
            await wrong.kill()
        assert code == 1
        assert "Traceback" not in log and "never awaited" not in log
        assert await control(vpc, "calls") == [], "it asked nothing of EC2"
        last = log.splitlines()[-1]
        assert last.startswith("ipamd: ") and words in last


async def test_only_root_can_run_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # So that it can read a clone below a folder of mode 700.
    reader = [f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reader]
    command = [*nobody, sys.executable, "-m", "ipamd", "run"]
    code, words = await ended(await Child.start(command, log, {"PATH": os.environ.get("PATH", os.defpath)}))
    assert (code, words) == (1, "ipamd: the daemon writes routes, rules and nftables: run it as root\n")


async def test_a_cloud_that_is_away_is_waited_for(tmp_path: Path, prefix: str) -> None:
    """First the metadata service fails, then EC2's port is closed; each with the cause and a remedy in the log."""
    async with box(tmp_path, prefix) as (daemon, vpc):
        await control(vpc, "faults", {"action": "imds", "error": "503"})
        closed = f"ip daddr {EC2_ADDRESS} tcp dport 80 reject with tcp reset"
        await netns.nft(
            daemon.node.netns,
            f"table inet t {{ chain c {{ type filter hook output priority 0; {closed}; }}; }}",
        )
        await daemon.start()
        event = await daemon.seen("imds.unavailable")
        assert event["level"] == "error" and "out of order" in event["error"]
        await control(vpc, "clear", {})
        event = await daemon.seen("ec2.unavailable")
        assert event["kind"] == "transient" and "check this node's way to EC2" in event["error"]
        node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
        assert (node.start.phase, node.ready) == ("ec2", False) and node.start.tries >= 1
        assert "check this node's way to EC2" in node.start.last_error
        await netns.nft(daemon.node.netns, "delete table inet t")
        await daemon.seen("daemon.ready")
        assert await daemon.address("a")


async def test_throttled_calls_queue_and_unsent_ones_end_at_stop(tmp_path: Path, prefix: str) -> None:
    action = "AssignPrivateIpAddresses"

    async def budget() -> pb.Bucket:
        node: pb.Node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
        return next((bucket for bucket in node.budget if bucket.action == action), pb.Bucket())

    async def in_the_queue() -> bool:
        return (await budget()).waiting > 0

    async with box(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        address = await daemon.address("a")
        before = await budget()
        assert (before.rate, before.waiting, before.throttled) == (0.5, 0, 0)
        assert [waits.priority for waits in before.waits] == ["pod", "warm", "release"]
        assert (before.waits[0].count, before.waits[0].delayed) == (1, 0)

        never = {"capacity": 0, "refill": 0}
        await control(vpc, "throttle", {"on": True, "rates": {action: never, "CreateNetworkInterface": never}})
        waiting = asyncio.create_task(refused(daemon.allocate("b")))
        await until(in_the_queue, "a call waits for its turn")
        felt = await budget()
        assert felt.throttled >= 1 and felt.rate < before.rate and felt.tokens < 1
        assert felt.waits[0].waiting == 1  # a pod's
        sent = await calls(vpc, action)
        assert daemon.process is not None
        os.kill(daemon.process.pid, 15)
        _, info, _ = await waiting
        assert info.reason == "DRAINING"
        await daemon.stop()
        assert await calls(vpc, action) == sent

        await control(vpc, "throttle", {"on": False})
        await daemon.ready()
        assert await daemon.address("a") == address
        assert await daemon.address("b") != address


async def test_a_new_eni_says_since_when_and_in_which_cluster_it_is(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=10, EC2_CLUSTER="prod") as (daemon, vpc):
        await daemon.ready()
        await daemon.settled(free=10)
        tags = [eni["tags"] for eni in (await cloud_enis(vpc)).values() if "ipamd.io/instance" in eni["tags"]]
        assert [one["ipamd.io/cluster"] for one in tags] == ["prod"]
        created = datetime.fromisoformat(tags[0]["ipamd.io/created"])
        assert timedelta() <= datetime.now(UTC) - created < timedelta(minutes=5)


async def test_stopping_does_not_wait_for_a_cloud_that_is_away(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await control(vpc, "faults", {"action": "imds", "error": "timeout"})
        await daemon.start()
        await daemon.seen("daemon.starting")
        await daemon.stop()
