"""Every reason for which an allocation is refused, brought about for real: the daemon, its socket, EC2 as it says no.

A case removes its cause once the refusal is there. Where the refusal says `retry_after`, the same request is made
again after exactly that time, and must succeed.

ADDRESS_UNAVAILABLE is in test_contract.py. NOT_READY is not here: the socket appears after the pool has learnt its
ENIs, so no call over it gets this reason (tests/unit/test_pool.py has it). UNKNOWN_ATTACHMENT and ATTACHMENT_BROKEN
are answers of Check (test_daemon.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from ipamd.api.v1 import administration_pb2, administration_pb2_grpc, ipam_pb2
from ipamd.pool.model import Reason
from ipamd.sim import netns
from ipamd.sim.fabric import EC2_ADDRESS
from ipamd.sim.vpc import SimulatedVpc
from tests.netns.boxed import Daemon, box, calls, cni_call, control, ec2, refused, until

pytestmark = pytest.mark.netns

NANO = "t3.nano"  # 2 ENIs with 1 secondary address each
LARGE = "m5.large"  # 3 ENIs with 9 secondary addresses each
COOLDOWN = 1.0

# The daemon with back-offs a tenth as long: after an error it leaves EC2 alone for up to half a minute.
HASTY = """
import dataclasses, sys
from ipamd.__main__ import main
from ipamd.pool import audit, state
from ipamd.pool.backoff import POLICIES
audit.LOOK_AGAIN = state.LOOK_AGAIN = 1.0
audit.ENI_LIMIT_LASTS = 0.5
for kind, policy in POLICIES.items():
    POLICIES[kind] = dataclasses.replace(policy, base=policy.base / 10, cap=policy.cap / 10)
sys.exit(main(sys.argv[1:]))
"""

Meanwhile = Callable[[], Awaitable[None]]
# Begins with a daemon that is not started; yields when all is ready for the refusal, perhaps with what has to happen
# while the request waits; and goes on to remove the cause.
Provoke = Callable[[Daemon, SimulatedVpc], AsyncIterator[Meanwhile | None]]


@dataclass(frozen=True)
class Case:
    provoke: Provoke
    code: StatusCode
    reason: str
    retry: bool = True
    cni_code: int | None = 11  # "Try again later" of the CNI specification; None: the plugin asks again by itself
    numbers: tuple[tuple[str, int], ...] = ()
    type: str = NANO
    wait: float = 1.0
    marks: pytest.MarkDecorator | tuple[()] = ()
    settings: tuple[tuple[str, object], ...] = ()


CASES: dict[str, Case] = {}


def case(
    code: StatusCode, reason: str, *, numbers: dict[str, int] | None = None, **more: Any
) -> Callable[[Provoke], Provoke]:
    settings = tuple((name, more.pop(name)) for name in list(more) if name.isupper())

    def register(provoke: Provoke) -> Provoke:
        given = tuple((numbers or {}).items())
        CASES[provoke.__name__] = Case(provoke, code, reason, numbers=given, settings=settings, **more)
        return provoke

    return register


async def all_waiting(daemon: Daemon, count: int) -> None:
    async def queued() -> bool:
        return (await daemon.counts()).waiting == count

    await until(queued, f"{count} wait")


async def others(vpc: SimulatedVpc, subnet: int, leave: int) -> None:
    """Other people take all addresses of a subnet but so many."""
    shown = (await control(vpc, "state"))["subnets"][subnet]
    count = shown["others"] + shown["available"] - leave
    await control(vpc, "subnets", {"subnet_id": shown["id"], "others": count})


@case(StatusCode.RESOURCE_EXHAUSTED, "SUBNET_EXHAUSTED", numbers={"free": 0, "assigned": 0})
async def other_people_have_the_whole_subnet(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await others(vpc, 0, leave=0)
    yield None
    await others(vpc, 0, leave=20)


@case(StatusCode.RESOURCE_EXHAUSTED, "ENI_LIMIT", numbers={"assigned": 2, "free": 0, "max_pods": 2})
async def the_instance_type_takes_no_more(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await asyncio.gather(daemon.allocate("a"), daemon.allocate("b"))
    yield None
    await daemon.release("a")


@case(
    StatusCode.RESOURCE_EXHAUSTED,
    "ENI_LIMIT",
    numbers={"assigned": 1, "free": 0},
)
async def somebody_elses_eni_has_the_last_place(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await daemon.allocate("a")
    subnet = (await control(vpc, "state"))["subnets"][0]["id"]
    created = await ec2(vpc, "CreateNetworkInterface", SubnetId=subnet)
    theirs = {"NetworkInterfaceId": created["NetworkInterface"]["NetworkInterfaceId"]}
    node = daemon.node.instance_id
    attached = await ec2(vpc, "AttachNetworkInterface", InstanceId=node, DeviceIndex=5, **theirs)
    await vpc.cloud.settle()
    yield None
    await ec2(vpc, "DetachNetworkInterface", AttachmentId=attached["AttachmentId"])
    await vpc.cloud.settle()


@case(StatusCode.RESOURCE_EXHAUSTED, "ENI_LIMIT", numbers={"assigned": 1, "free": 0})
async def the_account_has_no_enis_left(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await daemon.allocate("a")
    vpc.cloud.rules.eni_quota = len(vpc.cloud.enis)
    yield None
    vpc.cloud.rules.eni_quota += 1


@case(StatusCode.RESOURCE_EXHAUSTED, "ADDRESS_LIMIT", numbers={"assigned": 0, "free": 0}, POOL_MAX_ENIS=1)
async def ec2_allows_fewer_addresses_than_published(
    daemon: Daemon, vpc: SimulatedVpc
) -> AsyncIterator[Meanwhile | None]:
    instance = vpc.cloud.instances.get(daemon.node.instance_id)
    published = instance.limits
    instance.limits = dataclasses.replace(published, addresses_per_eni=1)
    await daemon.ready()
    yield None
    instance.limits = published


@case(
    StatusCode.RESOURCE_EXHAUSTED,
    "POD_LIMIT",
    numbers={"assigned": 1, "max_pods": 1},
    type=LARGE,
    POOL_MAX_PODS=1,
    POOL_WARM_IPS=2,
)
async def as_many_pods_as_the_settings_allow(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await daemon.allocate("a")
    yield None
    await daemon.release("a")


@case(
    StatusCode.RESOURCE_EXHAUSTED,
    "ALL_COOLING",
    numbers={"assigned": 0, "free": 0, "cooling": 2},
    wait=0.3,
)
async def every_address_was_released_a_moment_ago(
    daemon: Daemon, vpc: SimulatedVpc
) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await asyncio.gather(daemon.allocate("a"), daemon.allocate("b"))
    await asyncio.gather(daemon.release("a"), daemon.release("b"))
    yield None


@case(StatusCode.RESOURCE_EXHAUSTED, "THROTTLED", numbers={"assigned": 0, "waiting": 1})
async def the_account_has_used_up_its_calls(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    none = {"capacity": 0, "refill": 0}
    await control(vpc, "throttle", {"on": True, "rates": {"AssignPrivateIpAddresses": none}})
    yield None
    await control(vpc, "throttle", {"on": False})


@case(StatusCode.FAILED_PRECONDITION, "NOT_AUTHORIZED", numbers={"assigned": 0, "free": 0})
async def the_role_may_neither_assign_nor_create(
    daemon: Daemon, vpc: SimulatedVpc
) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
        await control(vpc, "faults", {"action": action, "error": "UnauthorizedOperation"})
    yield None
    await control(vpc, "clear", {})


@case(StatusCode.FAILED_PRECONDITION, "SECURITY_GROUP_INVALID", numbers={"assigned": 1, "free": 0})
async def the_security_group_of_the_settings_is_gone(
    daemon: Daemon, vpc: SimulatedVpc
) -> AsyncIterator[Meanwhile | None]:
    group = vpc.cloud.add_security_group("pods")
    daemon.settings["IPAMD_EC2_SECURITY_GROUPS"] = f'["{group.id}"]'
    await daemon.ready()
    await daemon.allocate("a")
    vpc.cloud.rules.groups.remove(group.id)
    yield None
    vpc.cloud.rules.groups.add(group.id, group)


@case(
    StatusCode.FAILED_PRECONDITION, "REQUEST_REFUSED", numbers={"assigned": 0, "free": 0}, retry=False, cni_code=100
)
async def the_organisation_refuses_a_tag(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
        await control(vpc, "faults", {"action": action, "error": "TagPolicyViolation"})
    yield None
    await control(vpc, "clear", {})


@case(StatusCode.UNAVAILABLE, "CLOUD_UNAVAILABLE", numbers={"assigned": 0, "free": 0, "waiting": 1})
async def the_port_of_ec2_is_closed(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    closed = f"ip daddr {EC2_ADDRESS} tcp dport 80 reject with tcp reset"
    table = f"table inet t {{ chain c {{ type filter hook output priority 0; {closed}; }}; }}"
    await netns.nft(daemon.node.netns, table)
    yield None
    await netns.nft(daemon.node.netns, "delete table inet t")


@case(StatusCode.DEADLINE_EXCEEDED, "TIMEOUT", numbers={"free": 0, "pending": 1, "waiting": 1}, wait=0.5)
async def ec2_takes_longer_than_the_pod_waits(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await control(vpc, "faults", {"action": "AssignPrivateIpAddresses", "delay_s": 1, "times": 1})
    yield None


@case(StatusCode.UNAVAILABLE, "DRAINING", cni_code=None)
async def the_daemon_is_stopped_while_a_pod_waits(
    daemon: Daemon, vpc: SimulatedVpc
) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await control(vpc, "faults", {"action": "AssignPrivateIpAddresses", "delay_s": 1, "times": 1})

    async def stop() -> None:
        await all_waiting(daemon, 1)
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGTERM)

    yield stop
    await daemon.stop()
    await daemon.ready()


@case(StatusCode.FAILED_PRECONDITION, "DRAINED", retry=False, cni_code=100)
async def an_operator_has_drained_the_node(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    administration = administration_pb2_grpc.AdministrationStub(daemon.channel)
    await administration.Drain(administration_pb2.DrainRequest(), timeout=5)
    yield None
    await administration.Undrain(administration_pb2.UndrainRequest(), timeout=5)


@case(StatusCode.ABORTED, "RELEASED", retry=False, cni_code=100)
async def its_own_release_overtakes_it(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    await daemon.ready()
    await control(vpc, "faults", {"action": "AssignPrivateIpAddresses", "delay_s": 0.5, "times": 1})

    async def release() -> None:
        await all_waiting(daemon, 1)
        await daemon.ipam.Release(ipam_pb2.ReleaseRequest(cni=cni_call("late")), timeout=5)

    yield release


@asynccontextmanager
async def small_disk(dir: Path) -> AsyncIterator[Path]:
    dir.mkdir()
    await netns.command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(dir))
    try:
        yield dir
    finally:
        await netns.command("umount", "--lazy", str(dir))


@case(StatusCode.UNAVAILABLE, "LEDGER_UNWRITABLE", type=LARGE, POOL_WARM_IPS=9)
async def the_ledgers_disk_is_full(daemon: Daemon, vpc: SimulatedVpc) -> AsyncIterator[Meanwhile | None]:
    async with small_disk(daemon.node.dir / "disk") as disk:
        daemon.settings["IPAMD_LEDGER_PATH"] = str(disk / "ledger.db")
        await daemon.ready()
        await daemon.settled(free=9)
        with (disk / "ballast").open("ab", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(b"\0" * 512)
        with pytest.raises(grpc.aio.AioRpcError):  # what SQLite has room for already is still recorded
            for number in range(9):
                await daemon.allocate(f"early-{number}", deadline=1)
        yield None
        (disk / "ballast").unlink()
        yield None
        await daemon.stop()


def late(wait: float) -> ipam_pb2.AllocateRequest:
    return ipam_pb2.AllocateRequest(cni=cni_call("late"), deadline_ms=int(wait * 1000))


@pytest.mark.parametrize("name", [pytest.param(name, marks=case.marks) for name, case in CASES.items()])
async def test_refused(tmp_path: Path, prefix: str, name: str) -> None:
    case = CASES[name]
    settings = {"POOL_WARM_IPS": 0, "POOL_COALESCE": 0, "POOL_COOLDOWN": COOLDOWN, **dict(case.settings)}
    async with box(tmp_path, prefix, type=case.type, **settings) as (daemon, vpc):
        daemon.python = ("-c", HASTY)
        story = case.provoke(daemon, vpc)
        try:
            meanwhile = await anext(story)
            begun = time.monotonic()
            call = asyncio.ensure_future(refused(daemon.ipam.Allocate(late(case.wait), timeout=case.wait + 5)))
            if meanwhile is not None:
                await meanwhile()
            code, info, error = await call
            answered = time.monotonic()

            assert (code, info.reason) == (case.code, case.reason)
            told = dict(info.metadata)
            assert {key: told.get(key) for key, _ in case.numbers} == {k: str(v) for k, v in case.numbers}
            if case.cni_code is None:
                assert error is None
            else:
                assert error is not None and error["code"] == case.cni_code and error["cniVersion"] == "1.1.0"
                assert error["msg"].startswith("no address for pod shop/late: ")
                assert f"reason={case.reason} " in error["details"] and told["request_id"] in error["details"]
            assert ("retry_after" in told) is case.retry
            assert answered - begun < case.wait + 2
            await anext(story, None)
            if case.retry:
                retry_after = float(told["retry_after"])
                assert 0 < retry_after <= 5
                await asyncio.sleep(retry_after - (time.monotonic() - answered))
                reply = await daemon.ipam.Allocate(late(5), timeout=10)
                assert reply.result and "late" in await daemon.held()
            await anext(story, None)
        finally:
            await story.aclose()  # type: ignore[attr-defined]


def test_no_reason_is_forgotten() -> None:
    elsewhere = {"NOT_READY", "ADDRESS_UNAVAILABLE"}
    assert {case.reason for case in CASES.values()} == {str(reason) for reason in Reason} - elsewhere


NONSENSE = [
    (cni_call("a", b'{"cniVersion":"9.9.9","name":"ipamd"}'), "INCOMPATIBLE_VERSION", 1),
    (cni_call("a", b"["), "INVALID_CONFIG", 6),
    (cni_call("a", b'{"cniVersion":"1.1.0","name":"/"}'), "INVALID_CONFIG", 7),
    (cni_call(""), "INVALID_REQUEST", 4),
]


async def test_what_can_not_be_understood_is_refused_for_good(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        for call, reason, cni_code in NONSENSE:
            code, info, error = await refused(daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=call), timeout=5))
            assert (code, info.reason) == (StatusCode.INVALID_ARGUMENT, reason)
            assert "retry_after" not in info.metadata
            assert error is not None and error["code"] == cni_code


# What one error concerns, and what not


async def granted(daemon: Daemon, count: int, prefix: str = "pod", deadline: float = 5.0) -> list[str]:
    """The reasons of those that were refused, of so many that ask at once."""

    async def one(name: str) -> str:
        request = ipam_pb2.AllocateRequest(cni=cni_call(name), deadline_ms=int(deadline * 1000))
        try:
            await daemon.ipam.Allocate(request, timeout=deadline + 5)
        except grpc.aio.AioRpcError as error:
            return error.details() or ""
        return ""

    answers = await asyncio.gather(*(one(f"{prefix}-{number}") for number in range(count)))
    return [answer for answer in answers if answer]


@pytest.mark.parametrize("pods", [9, 15])
async def test_a_full_subnet_does_not_stop_another(tmp_path: Path, prefix: str, pods: int) -> None:
    async with box(tmp_path, prefix, "10.0.0.0/24", "10.0.1.0/24", POOL_WARM_IPS=0) as (daemon, vpc):
        full, roomy = [subnet["id"] for subnet in (await control(vpc, "state"))["subnets"]]
        daemon.settings["IPAMD_EC2_SUBNETS"] = f'["{full}", "{roomy}"]'
        await daemon.ready()
        await others(vpc, 0, leave=0)
        assert await granted(daemon, pods, deadline=10) == []
        primary, *more = (await control(vpc, "state"))["enis"]
        assert primary["subnet_id"] == full and len(primary["private_ips"]) == 1
        assert {eni["subnet_id"] for eni in more} == {roomy}


async def test_a_throttled_action_does_not_stop_another(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        none = {"capacity": 0, "refill": 0}
        await control(vpc, "throttle", {"on": True, "rates": {"CreateNetworkInterface": none}})
        beyond = asyncio.ensure_future(granted(daemon, 12, "early", deadline=2))
        await all_waiting(daemon, 3)  # the primary ENI has room for 9
        [refusal, *more] = await beyond
        assert len(more) == 2 and refusal.startswith("CreateNetworkInterface: RequestLimitExceeded")
        assert len(await daemon.held()) == 9
        await control(vpc, "throttle", {"on": False})
        assert await granted(daemon, 3, "after", deadline=10) == []


async def test_denied_creation_does_not_stop_permitted_assignment(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        await control(vpc, "faults", {"action": "CreateNetworkInterface", "error": "UnauthorizedOperation"})
        refusals = await granted(daemon, 12, deadline=5)
        assert len(refusals) == 3 and all("allow ec2:CreateNetworkInterface" in words for words in refusals)
        assert len(await daemon.held()) == 9
        assert await calls(vpc, "AssignPrivateIpAddresses") >= 1
