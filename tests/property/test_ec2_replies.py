"""Each reply of EC2 with each of its elements in turn missing, doubled or of another type: a typed failure or a
usable result, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import pytest
from aiobotocore.awsrequest import AioAWSResponse

from ipamd.cloud.budget import RateBudget, Share
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.ownership import INSTANCE_TAG
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.pool.model import CreatedEni, Limits, ObservedEni
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.sim.ec2 import actions, wire
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.rules import Ask
from ipamd.telemetry.conditions import Conditions

AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)
NEW_TYPE = "new9.large"
ODD = ("banana", "", "-1", "99999999999999999999", "1e400", "\x85 \u202e", "x" * 100_000, "2026-99-99T00:00:00Z")

Mutants = Iterator[tuple[str, bytes]]


class Raw:
    """What aiohttp's response is to botocore."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


class Wire:
    """Answers every request of the client with the same body."""

    body = b""

    async def answer(self, **_: object) -> AioAWSResponse:
        return AioAWSResponse("http://ec2.test/", 200, {"content-type": "text/xml"}, Raw(self.body))


@dataclass
class Double:
    """The simulated cloud with one instance and an interface of its own, and the adapter in front of it."""

    cloud: SimulatedCloud
    wire: Wire
    ec2: Ec2
    eni: str
    subnet: str
    attachment: str
    conditions: Conditions

    async def reply(self, action: str, **parameters: object) -> Element:
        result = await actions.perform(actions.lookup(action, parameters), self.cloud, parameters)
        return ElementTree.fromstring(wire.encode(action, "1b3c-77", result))


@pytest.fixture
async def double(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Double]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    cloud = SimulatedCloud("10.0.0.0/16", limits={"m5.large": Limits(3, 10), NEW_TYPE: Limits(5, 7)}, delays=AT_ONCE)
    subnet = cloud.add_subnet("10.0.0.0/26")
    instance = await cloud.add_instance("n1", "m5.large", subnet.id)
    eni = await cloud.create_eni(subnet.id, Ask(2), tags={INSTANCE_TAG: instance.id})
    attachment = cloud.attach_eni(eni.id, instance.id, 1)
    await cloud.settle()
    primary = instance.primary
    identity = Identity(
        instance.id, "m5.large", cloud.rules.region, "a", primary.mac, primary.id, primary.addresses[0], subnet.id,
        "10.0.0.0/26", cloud.rules.vpc_id, ("10.0.0.0/16",), (),
    )  # fmt: skip
    budget = RateBudget(share=lambda action: Share(1e6, 1e6, floor=1e6, ceiling=1e6, increase=1))
    answers = Wire()
    conditions = Conditions()
    settings = Ec2Settings(endpoint="http://ec2.test/", timeout=60)
    async with Ec2(settings, ImdsSettings(), identity, budget, conditions) as ec2:
        client = await ec2._connection.client("Connect")
        client.meta.events.register("before-send.ec2.*", answers.answer)
        yield Double(cloud, answers, ec2, eni.id, subnet.id, attachment.id, conditions)
    await cloud.close()


def mutants(root: Element) -> Mutants:
    """Each element in turn, the root but its name excepted."""
    yield "empty", b""
    yield "cut", ElementTree.tostring(root)[:-20]
    yield "another root", ElementTree.tostring(root).replace(b"Response", b"Answer")
    for at, element in enumerate(root.iter()):
        if element is root:
            continue
        name = element.tag.rpartition("}")[2]
        for how, change in CHANGES.items():
            changed = copy.deepcopy(root)
            parents = {below: above for above in changed.iter() for below in above}
            victim = list(changed.iter())[at]
            change(parents[victim], victim)
            yield f"{name} {how}", ElementTree.tostring(changed)


def text(value: str) -> Callable[[Element, Element], None]:
    def change(_: Element, victim: Element) -> None:
        victim.clear()
        victim.text = value

    return change


def nest(_: Element, victim: Element) -> None:
    victim.clear()
    SubElement(SubElement(victim, "item"), "item").text = "deep"


CHANGES: dict[str, Callable[[Element, Element], None]] = {
    "missing": lambda parent, victim: parent.remove(victim),
    "doubled": lambda parent, victim: parent.append(copy.deepcopy(victim)),
    "nested": nest,
    **{f"= {value[:25]!r}": text(value) for value in ODD},
}


def usable(result: object, double: Double) -> bool:
    match result:
        case None:
            return True
        case Limits(max_enis, addresses):
            return 1 <= max_enis <= 1000 and 1 <= addresses <= 1000
        case str():
            return result.isprintable() and 0 < len(result) <= 128
        case ObservedEni() | CreatedEni():
            addresses = {*result.addresses, result.primary_ip} - {""}
            ids = (result.id, result.mac, result.subnet_id)
            return all(map(IPv4Address, addresses)) and all(usable(one, double) for one in ids)
        case dict():
            return all(usable(key, double) and 0 <= left <= 1_000_000 for key, left in result.items())
        case list():
            return all(usable(one, double) for one in result)
        case tuple():
            return all(map(IPv4Address, result))
        case _:
            return False


Call = Callable[[Double], Awaitable[object]]
READS: dict[str, tuple[str, Callable[[Double], dict[str, object]], Call]] = {
    "instance_limits": (
        "DescribeInstanceTypes",
        lambda d: {"InstanceTypes": [NEW_TYPE]},
        lambda d: d.ec2.instance_limits(NEW_TYPE),
    ),
    "describe_enis": ("DescribeNetworkInterfaces", lambda d: {}, lambda d: d.ec2.describe_enis()),
    "describe_eni": (
        "DescribeNetworkInterfaces",
        lambda d: {"NetworkInterfaceIds": [d.eni]},
        lambda d: d.ec2.describe_eni(d.eni),
    ),
    "available_addresses": (
        "DescribeSubnets", lambda d: {}, lambda d: d.ec2.available_addresses((d.subnet,)),
    ),
    "instances": ("DescribeInstances", lambda d: {}, lambda d: instances(d.ec2)),
}  # fmt: skip


async def instances(ec2: Ec2) -> list[str]:
    return sorted(await ec2._instances(["i-1"]))


async def judged(double: Double, reply: Element, call: Call, kind: Kind) -> set[str]:
    """What became of the mutants; the reply itself is read well."""
    double.wire.body = ElementTree.tostring(reply)
    assert usable(await call(double), double)
    outcomes = set()
    for name, body in mutants(reply):
        double.wire.body = body
        try:
            result = await call(double)
        except CloudError as error:
            assert error.failure.kind is kind, (name, error)
            assert len(error.failure.message) < 1000, name
            outcomes.add("failed")
        else:
            assert usable(result, double), (name, result)
            outcomes.add("usable")
    return outcomes


@pytest.mark.parametrize("method", READS)
async def test_a_read_of_an_odd_reply_fails_as_transient_or_is_usable(double: Double, method: str) -> None:
    action, parameters, call = READS[method]
    reply = await double.reply(action, **parameters(double))
    assert await judged(double, reply, call, Kind.TRANSIENT) == {"failed", "usable"}


async def test_an_odd_cidr_of_a_subnet_is_never_kept(double: Double) -> None:
    other = double.cloud.add_subnet("10.0.9.0/24").id
    reply = await double.reply("DescribeSubnets", SubnetIds=[other])

    async def ask(double: Double) -> None:
        double.ec2._subnet_cidrs.pop(other, None)
        assert IPv4Network(await double.ec2.subnet_cidr(other))

    assert await judged(double, reply, ask, Kind.TRANSIENT) == {"failed", "usable"}


MUTATIONS: dict[str, tuple[Callable[[Double], dict[str, object]], Call]] = {
    "CreateNetworkInterface": (
        lambda d: {"SubnetId": d.subnet, "SecondaryPrivateIpAddressCount": 2},
        lambda d: d.ec2.create_eni(token="t", subnet_id=d.subnet, security_groups=(), address_count=2),
    ),
    "AssignPrivateIpAddresses": (
        lambda d: {"NetworkInterfaceId": d.eni, "SecondaryPrivateIpAddressCount": 2},
        lambda d: d.ec2.assign_addresses(d.eni, 2),
    ),
    "DetachNetworkInterface": (
        lambda d: {"AttachmentId": d.attachment},
        lambda d: d.ec2.detach_eni(d.attachment),
    ),
}  # fmt: skip


@pytest.mark.parametrize("action", MUTATIONS)
async def test_a_mutation_with_an_odd_reply_is_in_doubt_or_usable(double: Double, action: str) -> None:
    parameters, call = MUTATIONS[action]
    reply = await double.reply(action, **parameters(double))
    assert "failed" in await judged(double, reply, call, Kind.UNKNOWN_OUTCOME)


async def test_an_attachment_with_an_odd_reply_is_in_doubt_or_usable(double: Double) -> None:
    reply = ElementTree.fromstring(wire.encode("AttachNetworkInterface", "1", {"AttachmentId": "eni-attach-1"}))
    outcomes = await judged(double, reply, lambda d: d.ec2.attach_eni(d.eni, 1), Kind.UNKNOWN_OUTCOME)
    assert outcomes == {"failed", "usable"}


async def with_foreign(double: Double) -> tuple[Element, Element, Element]:
    """DescribeNetworkInterfaces' reply, in it the interface of the pool, and one of somebody else."""
    foreign = await double.cloud.create_eni(double.subnet)
    double.cloud.attach_eni(foreign.id, double.cloud.instances.get(double.ec2._identity.instance_id).id, 2)
    await double.cloud.settle()
    reply = await double.reply("DescribeNetworkInterfaces")
    found = {
        eni: item for item in reply.iter() for eni in (double.eni, foreign.id) if eni == item.findtext(f"{{*}}{ID}")
    }
    return reply, found[double.eni], found[foreign.id]


ID = "networkInterfaceId"


async def test_malformed_foreign_interface_is_left_out_and_shown(double: Double) -> None:
    reply, _, foreign = await with_foreign(double)
    double.wire.body = ElementTree.tostring(reply)
    assert len(await double.ec2.describe_enis()) == 3
    for mac in foreign.findall("{*}macAddress"):
        foreign.remove(mac)
    double.wire.body = ElementTree.tostring(reply)
    assert len(await double.ec2.describe_enis()) == 2
    (condition,) = double.conditions.active()
    assert f"EC2's reply lacks MacAddress for {foreign.findtext(f'{{*}}{ID}')}" in condition.text
    SubElement(foreign, next(iter(foreign)).tag.replace(ID, "macAddress")).text = "06:00:00:00:00:01"
    double.wire.body = ElementTree.tostring(reply)
    assert len(await double.ec2.describe_enis()) == 3
    assert not double.conditions.active()


async def test_a_strange_interface_of_the_pool_is_never_left_out(double: Double) -> None:
    reply, own, _ = await with_foreign(double)
    for index in own.iter():
        for below in index.findall("{*}deviceIndex"):
            index.remove(below)
    double.wire.body = ElementTree.tostring(reply)
    with pytest.raises(CloudError, match=f"EC2's reply lacks DeviceIndex for {double.eni}"):
        await double.ec2.describe_enis()
