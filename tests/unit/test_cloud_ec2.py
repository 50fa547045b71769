"""The EC2 adapter against the project's own double: every method, every class of error, every doubtful outcome."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

from ipamd.cloud import ec2 as module
from ipamd.cloud import imds as imds_module
from ipamd.cloud.budget import RateBudget, Share
from ipamd.cloud.ec2 import CLUSTER_TAG, CREATED_TAG, INSTANCE_TAG, UNMANAGED_TAG, Ec2
from ipamd.cloud.port import Cloud, CloudError, Identity, Priority
from ipamd.cloud.token import new_token
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.pool.model import CreatedEni, Limits
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.rules import Ask
from ipamd.sim.ec2.rules.throttle import BARE_READ, Rate
from tests.unit.cloud_world import LIMITS, SUBNET, World, kind_of

NOWHERE = "eni-00000000000000000"


def counted(ec2: Ec2) -> dict[tuple[str, str], int]:
    return {call: times.count for call, times in ec2.calls.items()}


def test_it_is_a_cloud() -> None:
    identity = Identity("i-1", "m5.large", "r", "a", "m", "e", "10.0.0.4", "s", SUBNET, "v", (), ())
    cloud: Cloud = Ec2(Ec2Settings(), ImdsSettings(), identity, RateBudget())
    assert cloud


# Reads


async def test_the_role_of_the_instance_is_who_calls(world: World) -> None:
    await world.ec2.describe_enis()
    assert {call["instance"] for call in world.calls.as_json()} == {world.instance.id}


async def test_a_fresh_instance_has_its_primary_eni(world: World) -> None:
    (primary,) = await world.ec2.describe_enis()
    assert primary.id == world.identity.primary_eni_id
    assert primary.mac == world.identity.primary_mac
    assert primary.subnet_id == world.subnet.id
    assert primary.primary_ip == world.identity.primary_ip
    assert (primary.device_index, primary.attachment_status) == (0, "attached")
    assert primary.primary and not primary.owned
    assert primary.addresses == ()


async def test_attached_and_left_over_enis_are_found_and_nobody_elses(world: World) -> None:
    mine, _ = await world.attached()
    left_over = await world.create(1, token="left over")
    foreign = await world.cloud.create_eni(world.subnet.id, Ask(1))
    world.cloud.attach_eni(foreign.id, world.instance.id, 2)
    await world.cloud.create_eni(world.subnet.id)
    other = await world.cloud.add_instance("n2", "m5.large", world.subnet.id)
    stolen = await world.create(0, token="stolen")
    world.cloud.attach_eni(stolen.id, other.id, 1)
    await world.cloud.settle()
    enis = {eni.id: eni for eni in await world.ec2.describe_enis()}
    assert enis.keys() == {world.identity.primary_eni_id, mine.id, left_over.id, foreign.id}
    assert enis[mine.id].owned and enis[mine.id].addresses == mine.addresses
    assert enis[left_over.id].owned and enis[left_over.id].device_index is None
    assert enis[left_over.id].attachment_id == enis[left_over.id].attachment_status == ""
    assert not enis[foreign.id].owned and enis[foreign.id].device_index == 2
    elsewhere = await world.ec2.describe_eni(stolen.id)
    assert elsewhere is not None and not elsewhere.owned and not elsewhere.primary


async def test_cards_and_prefixes_are_read_and_other_cards_excluded(world: World) -> None:
    limits = {**LIMITS, "p5.48xlarge": Limits(2, 50)}
    world.cloud.rules.limits = limits
    world.instance.limits, world.instance.cards = limits["p5.48xlarge"], 32
    other = await world.cloud.create_eni(world.subnet.id, tags={INSTANCE_TAG: world.instance.id})
    world.cloud.attach_eni(other.id, world.instance.id, 0, 3)
    (prefix,) = await world.cloud.assign(world.instance.primary.id, Ask(prefixes=1))
    found = {eni.id: eni for eni in await world.ec2.describe_enis()}
    primary, far = found[world.instance.primary.id], found[other.id]
    assert (primary.prefixes, primary.network_card, primary.primary) == ((prefix,), 0, True)
    assert (far.network_card, far.device_index, far.owned, far.primary) == (3, 0, False, False)


async def test_all_pages_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    created = {(await world.create(0, token=str(n))).id for n in range(12)}
    monkeypatch.setattr(module, "PAGE_SIZE", 5)
    world.calls.clear()
    assert {eni.id for eni in await world.ec2.describe_enis()} == {*created, world.identity.primary_eni_id}
    assert world.actions() == [("DescribeNetworkInterfaces", "ok")] * 4


async def test_one_eni_or_none(world: World) -> None:
    eni = await world.create(3)
    found = await world.ec2.describe_eni(eni.id)
    assert found is not None
    assert (found.id, found.primary_ip, found.addresses) == (eni.id, eni.primary_ip, eni.addresses)
    assert await world.ec2.describe_eni("eni-00000000000000000") is None


async def test_limits_come_from_the_table_or_else_from_ec2(world: World) -> None:
    assert await world.ec2.instance_limits("m5.large") == Limits(3, 10)
    assert world.actions() == []
    assert await world.ec2.instance_limits("new9.large") == Limits(5, 7)
    assert world.actions() == [("DescribeInstanceTypes", "ok")]
    assert await kind_of(world.ec2.instance_limits("no.such")) is Kind.INVALID


async def test_a_subnets_cidr_is_asked_once(world: World) -> None:
    other = world.cloud.add_subnet("10.0.9.0/24")
    assert await world.ec2.subnet_cidr(world.subnet.id) == SUBNET
    assert [await world.ec2.subnet_cidr(other.id) for _ in range(3)] == ["10.0.9.0/24"] * 3
    assert world.actions() == [("DescribeSubnets", "ok")]


async def test_subnets_report_free_addresses_and_unknown_ones_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = world.cloud.add_subnet("10.0.9.0/24")
    unknown = "subnet-00000000000000000"
    left = {world.subnet.id: world.subnet.available, other.id: 251}
    assert await world.ec2.available_addresses((world.subnet.id, unknown, other.id)) == left
    assert world.actions() == [("DescribeSubnets", "ok")]
    assert await world.ec2.available_addresses((unknown,)) == {}
    monkeypatch.setattr(module, "FILTER_VALUES", 1)
    world.calls.clear()
    assert await world.ec2.available_addresses((other.id, world.subnet.id)) == left
    assert world.actions() == [("DescribeSubnets", "ok")] * 2


async def test_enis_are_abandoned_when_their_instance_is_gone(world: World) -> None:
    alive = await world.cloud.add_instance("n2", "m5.large", world.subnet.id)
    ended = await world.cloud.add_instance("n3", "m5.large", world.subnet.id)
    await world.cloud.terminate(ended.id)
    await world.cloud.settle()
    forgotten = "i-00000000000000000"  # EC2 shows a terminated one for an hour or so
    gone = [await world.left_behind(ended.id), await world.left_behind(forgotten)]
    await world.left_behind(alive.id)
    await world.left_behind(forgotten, cluster="test")
    await world.left_behind(world.instance.id)
    await world.cloud.create_eni(world.subnet.id, tags={CLUSTER_TAG: "prod"})
    attached = await world.left_behind(forgotten)
    world.cloud.attach_eni(attached, alive.id, 1)
    await world.cloud.settle()
    async with world.adapter(cluster="prod") as ec2:
        world.calls.clear()
        found = await ec2.describe_abandoned()
    assert sorted(eni.id for eni in found) == sorted(gone)
    assert {eni.owned for eni in found} == {False}
    assert {eni.created_at for eni in found} == {datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()}
    assert world.actions() == [("DescribeNetworkInterfaces", "ok"), ("DescribeInstances", "ok")]


async def test_all_instance_pages_are_read_before_one_counts_as_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [await world.cloud.add_instance(f"n{n}", "m5.large", world.subnet.id) for n in range(2, 9)]
    for node in nodes:
        await world.left_behind(node.id)
    monkeypatch.setattr(module, "PAGE_SIZE", 5)
    async with world.adapter(cluster="prod") as ec2:
        assert await ec2.describe_abandoned() == []
        monkeypatch.setattr(module, "FILTER_VALUES", 6)
        assert await ec2.describe_abandoned() == []
    assert world.actions().count(("DescribeInstances", "ok")) == 2 + 3


async def test_without_a_cluster_nobody_looks_for_abandoned_enis(world: World) -> None:
    await world.left_behind("i-00000000000000000", cluster="")
    assert await world.ec2.describe_abandoned() == []
    assert world.actions() == []


async def test_nothing_abandoned_asks_for_no_instance(world: World) -> None:
    await world.left_behind(world.instance.id)
    async with world.adapter(cluster="prod") as ec2:
        assert await ec2.describe_abandoned() == []
    assert world.actions() == [("DescribeNetworkInterfaces", "ok")]


# Mutations


async def test_create_gives_tagged_eni_with_its_addresses(world: World) -> None:
    eni = await world.create(4)
    (made,) = [one for one in world.cloud.enis if one.id == eni.id]
    assert (eni.mac, eni.subnet_id) == (made.mac, world.subnet.id)
    assert [eni.primary_ip, *eni.addresses] == made.addresses
    assert len(eni.addresses) == 4
    instance = world.instance.id
    assert made.tags == {
        "Name": f"ipamd {instance}",
        "team": "net",
        INSTANCE_TAG: instance,
        UNMANAGED_TAG: "true",
    }
    assert made.description == f"ipamd {instance}"
    assert tuple(group.id for group in made.groups) == world.identity.security_groups


async def test_settings_may_rename_but_not_disown(world: World) -> None:
    async with world.adapter(tags={"Name": "pods", INSTANCE_TAG: "i-other"}) as ec2:
        eni = await ec2.create_eni(token="t", subnet_id=world.subnet.id, security_groups=(), address_count=0)
    (made,) = [one for one in world.cloud.enis if one.id == eni.id]
    assert made.tags == {"Name": "pods", INSTANCE_TAG: world.instance.id, UNMANAGED_TAG: "true"}
    assert eni.addresses == ()


async def test_a_new_eni_says_since_when_and_in_which_cluster_it_is(world: World) -> None:
    now = 1_800_000_000.75
    async with world.adapter(cluster="prod") as ec2:
        eni = await ec2.create_eni(
            token=new_token(now), subnet_id=world.subnet.id, security_groups=(), address_count=0
        )
        seen = await ec2.describe_eni(eni.id)
    (made,) = [one for one in world.cloud.enis if one.id == eni.id]
    assert made.tags[CREATED_TAG] == "2027-01-15T08:00:00+00:00"
    assert made.tags[CLUSTER_TAG] == "prod"
    assert made.tags["node.k8s.amazonaws.com/no_manage"] == "true"  # in the AWS VPC CNI's own words
    assert seen is not None and seen.created_at == 1_800_000_000.0


async def test_a_repeated_creation_has_the_tags_of_the_first(world: World) -> None:
    """Else EC2 calls it another one, and refuses it."""
    token = new_token(1_800_000_000.0)
    first = await world.create(2, token=token)
    await asyncio.sleep(1.1)  # the tag is to the second
    async with world.adapter() as another_process:
        again = await another_process.create_eni(
            token=token, subnet_id=world.subnet.id, security_groups=world.identity.security_groups, address_count=2
        )
    assert again == first


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31T12:00:00", "2026-13-01T00:00:00Z"])
async def test_a_time_that_can_not_be_read_is_none(world: World, text: str) -> None:
    eni = await world.cloud.create_eni(world.subnet.id, tags={CREATED_TAG: text})
    seen = await world.ec2.describe_eni(eni.id)
    assert seen is not None and seen.created_at is None


async def test_the_same_token_makes_the_same_eni(world: World) -> None:
    assert await world.create(2, token="once") == await world.create(2, token="once")
    assert len(world.cloud.enis) == 2
    assert await kind_of(world.create(3, token="once")) is Kind.INVALID


async def test_the_life_of_an_eni(world: World) -> None:
    ec2 = world.ec2
    eni, attachment = await world.attached(count=2)
    seen = await ec2.describe_eni(eni.id)
    assert seen is not None
    assert (seen.device_index, seen.attachment_id, seen.attachment_status) == (1, attachment, "attached")
    assert not seen.delete_on_termination and not seen.primary
    await ec2.set_delete_on_termination(eni.id, attachment)
    new = await ec2.assign_addresses(eni.id, 3)
    assert len(new) == 3 and not {*new} & {eni.primary_ip, *eni.addresses}
    seen = await ec2.describe_eni(eni.id)
    assert seen is not None and seen.delete_on_termination
    assert seen.addresses == (*eni.addresses, *new)
    await ec2.unassign_addresses(eni.id, (*eni.addresses, new[0]))
    seen = await ec2.describe_eni(eni.id)
    assert seen is not None and seen.addresses == new[1:]
    await ec2.detach_eni(attachment)
    await world.cloud.settle()
    await ec2.delete_eni(eni.id)
    assert await ec2.describe_eni(eni.id) is None
    assert [outcome for _, outcome in world.actions()].count("ok") == len(world.actions()) - 1


# Refusals, as EC2 decides them


async def test_a_full_subnet(world: World) -> None:
    tiny = world.cloud.add_subnet("10.0.1.0/28")
    await world.cloud.create_eni(tiny.id, Ask(5))
    create = world.ec2.create_eni(token="t", subnet_id=tiny.id, security_groups=(), address_count=5)
    assert await kind_of(create) is Kind.SUBNET_FULL


async def test_an_eni_takes_no_more_addresses(world: World) -> None:
    eni, _ = await world.attached(count=9)
    assert await kind_of(world.ec2.assign_addresses(eni.id, 1)) is Kind.ENI_ADDRESS_LIMIT


async def test_an_instance_takes_no_more_enis(world: World) -> None:
    await world.attached(index=1)
    await world.attached(index=2)
    eni = await world.create(token="one too many")
    assert await kind_of(world.ec2.attach_eni(eni.id, 3)) is Kind.ATTACHMENT_LIMIT


async def test_the_account_takes_no_more_enis(world: World) -> None:
    world.cloud.rules.eni_quota = 1
    assert await kind_of(world.create()) is Kind.ACCOUNT_ENI_LIMIT


async def test_a_busy_device_index_and_an_eni_in_use(world: World) -> None:
    eni, _ = await world.attached(index=1)
    second = await world.create(token="second")
    assert await kind_of(world.ec2.attach_eni(second.id, 1)) is Kind.INCORRECT_STATE
    assert await kind_of(world.ec2.attach_eni(eni.id, 2)) is Kind.INCORRECT_STATE
    assert await kind_of(world.ec2.delete_eni(eni.id)) is Kind.INCORRECT_STATE
    assert await kind_of(world.ec2.unassign_addresses(eni.id, ("10.0.0.60",))) is Kind.INCORRECT_STATE


async def test_what_ec2_does_not_know(world: World) -> None:
    nowhere = "eni-00000000000000000"
    assert await kind_of(world.ec2.delete_eni(nowhere)) is Kind.NOT_FOUND
    assert await kind_of(world.ec2.assign_addresses(nowhere, 1)) is Kind.NOT_FOUND
    assert await kind_of(world.ec2.detach_eni("eni-attach-00000000000000000")) is Kind.NOT_FOUND
    wrong_group = world.ec2.create_eni(
        token="t", subnet_id=world.subnet.id, security_groups=("sg-00000000000000000",), address_count=0
    )
    assert await kind_of(wrong_group) is Kind.SECURITY_GROUP_INVALID
    wrong_subnet = world.ec2.create_eni(
        token="u", subnet_id="subnet-00000000000000000", security_groups=(), address_count=0
    )
    assert await kind_of(wrong_subnet) is Kind.SUBNET_INVALID


async def test_a_new_eni_with_an_odd_reply_is_read_again(world: World) -> None:
    world.faults.add(Fault("CreateNetworkInterface", "lacks", times=1, element="macAddress"))
    eni = await world.create(2)
    (made,) = [one for one in world.cloud.enis if one.id == eni.id]
    assert (eni.mac, [eni.primary_ip, *eni.addresses]) == (made.mac, made.addresses)
    world.faults.add(Fault("CreateNetworkInterface", "lacks", times=1, element="macAddress"))
    world.faults.add(Fault("DescribeNetworkInterfaces", "InternalError", times=1))
    assert await kind_of(world.create(2, token="second")) is Kind.UNKNOWN_OUTCOME


# Faults


@pytest.mark.parametrize(
    ("code", "mutating", "reading"),
    [
        ("RequestLimitExceeded", Kind.THROTTLED, Kind.THROTTLED),
        ("Unavailable", Kind.TRANSIENT, Kind.TRANSIENT),
        ("InternalError", Kind.UNKNOWN_OUTCOME, Kind.TRANSIENT),
        ("UnauthorizedOperation", Kind.NOT_AUTHORIZED, Kind.NOT_AUTHORIZED),
        ("AuthFailure", Kind.NOT_AUTHORIZED, Kind.NOT_AUTHORIZED),
        ("SomethingNew", Kind.INVALID, Kind.INVALID),
    ],
)
async def test_errors_are_classed_and_never_retried(world: World, code: str, mutating: Kind, reading: Kind) -> None:
    world.faults.add(Fault("*", code))
    assert await kind_of(world.create()) is mutating
    assert await kind_of(world.ec2.describe_enis()) is reading
    assert world.actions() == [("CreateNetworkInterface", code), ("DescribeNetworkInterfaces", code)]
    assert len(world.cloud.enis) == 1
    assert {call: times.count for call, times in world.ec2.calls.items()} == {
        ("CreateNetworkInterface", code): 1,
        ("DescribeNetworkInterfaces", code): 1,
    }


@pytest.mark.parametrize(
    "fault",
    [
        Fault("AssignPrivateIpAddresses", "timeout", after_effect=True),
        Fault("AssignPrivateIpAddresses", delay=60, after_effect=True),
        Fault("AssignPrivateIpAddresses", "timeout", delay=0, after_effect=True),
        Fault("AssignPrivateIpAddresses", "InternalError", after_effect=True),
    ],
    ids=["silence", "late", "hung up", "internal error"],
)
async def test_mutation_that_took_effect_without_answer_is_in_doubt(world: World, fault: Fault) -> None:
    eni = await world.create(0)
    world.faults.add(fault)
    async with world.adapter(timeout=1) as hasty:
        await hasty.describe_enis()
        assert await kind_of(hasty.assign_addresses(eni.id, 2)) is Kind.UNKNOWN_OUTCOME
    async with world.adapter() as patient:  # a busy machine may take longer than the hasty one waits
        seen = await patient.describe_eni(eni.id)
    assert seen is not None and len(seen.addresses) == 2


async def test_a_creation_in_doubt_is_settled_by_its_token(world: World) -> None:
    world.faults.add(Fault("CreateNetworkInterface", "timeout", times=1, after_effect=True))
    async with world.adapter(timeout=1) as hasty:
        groups = world.identity.security_groups

        def create() -> Awaitable[CreatedEni]:
            return hasty.create_eni(token="x", subnet_id=world.subnet.id, security_groups=groups, address_count=2)

        assert await kind_of(create()) is Kind.UNKNOWN_OUTCOME
        eni = await create()
        assert {one.id for one in await hasty.describe_enis()} == {eni.id, world.identity.primary_eni_id}


async def test_a_silent_read_is_transient(world: World) -> None:
    world.faults.add(Fault("DescribeNetworkInterfaces", "timeout"))
    async with world.adapter(timeout=1) as hasty:
        assert await kind_of(hasty.describe_enis()) is Kind.TRANSIENT


async def test_nobody_there_is_transient_even_for_a_mutation(world: World) -> None:
    with socket.socket() as bound:  # bound but not listening: refused for sure
        bound.bind(("127.0.0.1", 0))
        async with world.adapter(endpoint=f"http://127.0.0.1:{bound.getsockname()[1]}") as lost:
            assert await kind_of(lost.delete_eni("eni-00000000000000000")) is Kind.TRANSIENT
            assert counted(lost) == {("DeleteNetworkInterface", "EndpointConnectionError"): 1}


async def test_a_host_that_does_not_exist_is_transient(world: World) -> None:
    async with world.adapter(endpoint="http://ec2.invalid") as lost:
        assert await kind_of(lost.delete_eni("eni-00000000000000000")) is Kind.TRANSIENT


@pytest.mark.parametrize("endpoint", ["not a url", "https://bad_host^/"])
async def test_an_endpoint_that_is_no_url_is_named(world: World, endpoint: str) -> None:
    async with world.adapter(endpoint=endpoint) as lost:
        with pytest.raises(CloudError, match=r"settings under \[ec2\]") as caught:
            await lost.describe_enis()
    assert caught.value.failure.kind is Kind.INVALID


async def test_a_proxys_page_instead_of_an_answer(world: World) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=200, text="<html>Log in to the network", content_type="text/html")

    portal = web.Application()
    portal.router.add_post("/", page)
    async with TestServer(portal) as server, world.adapter(endpoint=str(server.make_url(""))) as lost:
        assert await kind_of(lost.delete_eni("eni-00000000000000000")) is Kind.UNKNOWN_OUTCOME
        assert await kind_of(lost.describe_enis()) is Kind.TRANSIENT


# The budget


def share(burst: float, rate: float) -> Callable[[str], Share]:
    return lambda action: Share(burst, rate, floor=rate / 100, ceiling=rate, increase=rate / 100)


async def test_each_page_and_each_read_is_a_call_of_its_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(7):
        await world.create(0, token=str(n))
    monkeypatch.setattr(module, "PAGE_SIZE", 5)
    budget = RateBudget()
    async with world.adapter(budget) as ec2:
        await ec2.at(Priority.WARM).describe_enis()
    (bucket,) = budget.view()
    assert (bucket.action, bucket.waits[Priority.WARM].count) == ("DescribeNetworkInterfaces", 3)


class Hands:
    """A clock that stands still until it is set: no token comes before."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_wait_for_a_token_is_no_part_of_the_calls_time(world: World) -> None:
    clock = Hands()
    async with world.adapter(RateBudget(clock, share(1, 20)), timeout=1) as ec2:
        await ec2.describe_eni(NOWHERE)
        waiting = asyncio.ensure_future(ec2.describe_eni(NOWHERE))
        await asyncio.sleep(1.2)
        clock.now = 1.0
        assert await waiting is None


async def test_last_word_comes_after_token_and_its_no_sends_nothing(world: World) -> None:
    clock, heard = Hands(), asyncio.Event()

    async def refuse() -> None:
        heard.set()
        raise LookupError("a host route")

    async with world.adapter(RateBudget(clock, share(1, 20))) as ec2:
        await ec2.describe_eni(NOWHERE)
        waiting = asyncio.ensure_future(ec2.at(Priority.RELEASE, refuse).describe_eni(NOWHERE))
        await asyncio.sleep(0.1)
        assert not heard.is_set()
        clock.now = 1.0
        with pytest.raises(LookupError):
            await waiting
        assert heard.is_set()
        assert sum(counted(ec2).values()) == len(world.actions()) == 1


async def test_a_view_shares_all_but_its_priority(world: World) -> None:
    other = world.cloud.add_subnet("10.0.9.0/24")
    view = world.ec2.at(Priority.RELEASE)
    assert await view.subnet_cidr(other.id) == "10.0.9.0/24"
    assert await world.ec2.subnet_cidr(other.id) == "10.0.9.0/24"
    assert counted(world.ec2) == counted(view) == {("DescribeSubnets", "ok"): 1}


async def test_call_waiting_for_its_token_is_cancelled_unsent(world: World) -> None:
    budget = RateBudget(share=share(1, 0.01))
    async with world.adapter(budget) as ec2:
        await ec2.describe_eni(NOWHERE)
        waiting = [asyncio.ensure_future(ec2.describe_eni(NOWHERE)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        budget.close()
        await asyncio.wait(waiting)
        assert all(call.cancelled() for call in waiting)
        assert sum(counted(ec2).values()) == len(world.actions()) == 1
    (bucket,) = budget.view()
    assert (bucket.waiting[Priority.POD], bucket.waits[Priority.POD].abandoned) == (0, 2)


async def test_pod_call_overtakes_releases_under_throttling(world: World) -> None:
    """EC2 has few tokens, and the node thinks that it may take many: the queue forms once EC2 says no."""
    world.throttle.limit({BARE_READ: Rate(2, 0.1)})
    clock, sent = Hands(), list[str]()

    async def ask(priority: Priority, name: str) -> None:
        async def note() -> None:
            sent.append(name)

        await ec2.at(priority, note).describe_eni(NOWHERE)

    budget = RateBudget(clock, share(10, 10))
    async with world.adapter(budget) as ec2:
        await asyncio.gather(*(ask(Priority.WARM, "first") for _ in range(4)), return_exceptions=True)
        assert ("DescribeNetworkInterfaces", "RequestLimitExceeded") in world.actions()
        sent.clear()
        calls = [ask(Priority.RELEASE, f"release {n}") for n in range(3)]
        calls += [ask(Priority.WARM, "warm"), ask(Priority.POD, "pod")]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.1)
        assert sent == []
        clock.now = 10.0
        await asyncio.wait(waiting)
        for call in waiting:
            assert isinstance(call.exception(), CloudError | None)
    assert sent == ["pod", "warm", "release 0", "release 1", "release 2"]
    (bucket,) = budget.view()
    assert bucket.throttled >= 2 and bucket.rate < 10
    assert bucket.waits[Priority.RELEASE].delayed == 3


# Credentials


async def test_missing_role_is_reported_and_recovers_once_there_is_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.has_role = False
    async with world.adapter() as fresh:
        with pytest.raises(CloudError, match="this instance has no role") as caught:
            await fresh.describe_enis()
        assert caught.value.failure.kind is Kind.NOT_AUTHORIZED
        assert world.actions() == []
        world.has_role = True
        assert len(await fresh.describe_enis()) == 1


async def expire(ec2: Ec2) -> None:
    credentials = ec2._connection.credentials._found
    credentials._expiry_time = datetime.now(UTC) - timedelta(seconds=1)


async def test_credentials_that_expire_are_renewed(world: World) -> None:
    await world.ec2.describe_enis()
    world.cloud.keyring.revoke(world.instance.id)
    await expire(world.ec2)
    assert len(await world.ec2.describe_enis()) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [("404", Kind.NOT_AUTHORIZED), ("503", Kind.TRANSIENT), ("429", Kind.TRANSIENT), ("timeout", Kind.TRANSIENT)],
)
async def test_expired_credentials_leave_no_doubt_about_the_call(
    world: World, monkeypatch: pytest.MonkeyPatch, status: str, kind: Kind
) -> None:
    monkeypatch.setattr(imds_module, "ATTEMPTS", 1)
    monkeypatch.setattr(imds_module, "TIMEOUT", 1)
    async with world.adapter() as ec2:
        await ec2.describe_enis()
        await expire(ec2)
        world.calls.clear()
        world.faults.add(Fault("imds", status))
        assert await kind_of(ec2.delete_eni("eni-00000000000000000")) is kind
        world.faults.clear()
        world.has_role = False
        assert await kind_of(ec2.delete_eni("eni-00000000000000000")) is Kind.NOT_AUTHORIZED
        assert world.actions() == []


async def test_credentials_that_come_expired(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-01T00:00:00Z")
    async with world.adapter() as ec2:
        assert await kind_of(ec2.describe_enis()) is Kind.NOT_AUTHORIZED


async def test_credentials_of_the_environment_come_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = world.cloud.keyring.operator
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", operator.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", operator.secret_key)
    async with world.adapter() as ec2:
        await ec2.describe_enis()
    assert {call["instance"] for call in world.calls.as_json()} == {"operator"}


# The client


async def test_one_client_serves_many_calls_at_once(world: World) -> None:
    enis = await asyncio.gather(*(world.create(1, token=str(n)) for n in range(12)))
    assert len({eni.id for eni in enis}) == 12
    assert counted(world.ec2) == {("CreateNetworkInterface", "ok"): 12}


async def test_a_cancelled_call_is_counted_and_harms_no_other(world: World) -> None:
    await world.ec2.describe_enis()
    world.faults.add(Fault("DescribeSubnets", "timeout"))
    call = asyncio.ensure_future(world.ec2.subnet_cidr("subnet-00000000000000000"))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert world.ec2.calls["DescribeSubnets", "cancelled"].count == 1
    await world.ec2.describe_enis()


async def test_each_call_leaves_one_line_in_the_log(world: World) -> None:
    with structlog.testing.capture_logs() as lines:
        await world.ec2.subnet_cidr(world.cloud.add_subnet("10.0.2.0/24").id)
    (line,) = [line for line in lines if line["event"] == "ec2.call"]
    assert (line["action"], line["outcome"], line["log_level"]) == ("DescribeSubnets", "ok", "debug")
    assert line["ms"] >= 0
