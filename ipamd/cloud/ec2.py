"""EC2 as ipamd uses it, on aiobotocore: each method of the port is typed, within the budget, timed, counted, never
repeated."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NotRequired, Self, TypedDict, TypeVar, cast

import structlog
from botocore import xform_name  # type: ignore[import-untyped]

from ipamd.cloud import replies
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.connection import Connection
from ipamd.cloud.errors import cloud_error
from ipamd.cloud.limits import limits_of
from ipamd.cloud.ownership import CLUSTER_TAG, CREATED_TAG, INSTANCE_TAG, UNMANAGED_TAG
from ipamd.cloud.port import CloudError, Identity, Priority
from ipamd.cloud.proxies import words
from ipamd.cloud.replies import AnyShape, UnreadableReply
from ipamd.cloud.sightings import Item, Sightings
from ipamd.cloud.token import time_of
from ipamd.pool.model import CloudErrorKind, CreatedEni, Limits, ObservedEni
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.histogram import CALLS, Histogram

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client
    from types_aiobotocore_ec2.literals import InstanceTypeType
    from types_aiobotocore_ec2.type_defs import (
        FilterTypeDef,
        TagSpecificationTypeDef,
        TagTypeDef,
    )

log = structlog.get_logger("ipamd.ec2")

T = TypeVar("T")
AnyPage = TypeVar("AnyPage", bound=replies.Page)

PAGE_SIZE = 1000
# The most that a filter takes: "Filter and list your resources" in the Amazon EC2 User Guide.
FILTER_VALUES = 200


class _Page(TypedDict):
    MaxResults: int
    NextToken: NotRequired[str]


class Ec2:
    """The cloud port (`ipamd.cloud.port.Cloud`) for one instance; use it as an asynchronous context manager.

    `calls` has the times of those that were sent, by action and outcome: "ok", EC2's error code, or the name of the
    exception.
    """

    def __init__(
        self,
        settings: Ec2Settings,
        imds: ImdsSettings,
        identity: Identity,
        budget: RateBudget,
        conditions: Conditions | None = None,
    ) -> None:
        self.calls: defaultdict[tuple[str, str], Histogram] = defaultdict(partial(Histogram, CALLS))
        self._settings = settings
        self._identity = identity
        self._budget = budget
        self._connection = Connection(settings, imds, identity.region, conditions)
        self._sightings = Sightings(identity, conditions)
        self._subnet_cidrs: dict[str, str] = {identity.subnet_id: identity.subnet_cidr}
        self._priority = Priority.POD
        self._before: Callable[[], Awaitable[None]] | None = None

    def at(self, priority: Priority, before: Callable[[], Awaitable[None]] | None = None) -> Ec2:
        """A view: all but these two is shared."""
        view = copy.copy(self)
        view._priority, view._before = priority, before
        return view

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def connect(self) -> None:
        """Be ready to call: with credentials, and all that has to be read for the first call. Raises `CloudError`."""
        await self._connection.client("Connect")

    # Reads

    async def instance_limits(self, instance_type: str) -> Limits:
        known = limits_of(instance_type)
        if known is not None:
            return known
        newer = cast("InstanceTypeType", instance_type)
        reply = await self._call(
            "DescribeInstanceTypes",
            lambda ec2: ec2.describe_instance_types(InstanceTypes=[newer]),
            replies.InstanceTypes,
        )
        with self._reading("DescribeInstanceTypes"):
            network = _only(reply.instance_types, f"instance type {instance_type}").network_info
            cards = [card for card in network.network_cards if card.network_card_index == 0]
            card = _only(cards, f"network card 0 of instance type {instance_type}")
        return Limits(card.maximum_network_interfaces, network.ipv4_addresses_per_interface)

    async def describe_enis(self) -> list[ObservedEni]:
        instance = self._identity.instance_id
        # In this order, so that an ENI that is being attached meanwhile is in one of the two.
        tagged = await self._describe([{"Name": f"tag:{INSTANCE_TAG}", "Values": [instance]}])
        attached = await self._describe([{"Name": "attachment.instance-id", "Values": [instance]}])
        shown = {replies.id_of(eni, "NetworkInterfaceId") for eni in attached}
        unattached = [
            eni
            for eni in tagged
            if not eni.get("Attachment") and replies.id_of(eni, "NetworkInterfaceId") not in shown
        ]
        with self._reading("DescribeNetworkInterfaces"):
            return self._sightings.all_of([*unattached, *attached])

    async def describe_eni(self, eni_id: str) -> ObservedEni | None:
        try:
            reply = await self._call(
                "DescribeNetworkInterfaces",
                lambda ec2: ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id]),
                replies.NetworkInterfaces,
            )
        except CloudError as error:
            if error.failure.kind is CloudErrorKind.NOT_FOUND:
                return None
            raise
        with self._reading("DescribeNetworkInterfaces"):
            seen = [self._sightings.one(item) for item in reply.network_interfaces]
            return _only([eni for eni in seen if eni.id == eni_id], eni_id) if seen else None

    async def subnet_cidr(self, subnet_id: str) -> str:
        known = self._subnet_cidrs.get(subnet_id)
        if known is None:
            reply = await self._call(
                "DescribeSubnets", lambda ec2: ec2.describe_subnets(SubnetIds=[subnet_id]), replies.Subnets
            )
            with self._reading("DescribeSubnets"):
                found = [replies.read(replies.Subnet, item, subnet_id) for item in reply.subnets]
                subnet = _only([one for one in found if one.subnet_id == subnet_id], subnet_id)
            known = self._subnet_cidrs[subnet_id] = subnet.cidr_block
        return known

    async def available_addresses(self, subnet_ids: tuple[str, ...]) -> dict[str, int]:
        # By filter, because one id that EC2 does not know would fail the whole call.
        available: dict[str, int] = {}
        for filters in _among("subnet-id", subnet_ids):
            pages = await self._pages(
                "DescribeSubnets",
                filters,
                lambda chosen, page, ec2: ec2.describe_subnets(Filters=chosen, **page),
                replies.Subnets,
            )
            with self._reading("DescribeSubnets"):
                found = [
                    replies.read(replies.SubnetRoom, item, replies.id_of(item, "SubnetId") or "a subnet")
                    for page in pages
                    for item in page.subnets
                ]
            available |= {subnet.subnet_id: subnet.available_ip_address_count for subnet in found}
        return available

    async def describe_abandoned(self) -> list[ObservedEni]:
        cluster = self._settings.cluster
        if not cluster:
            return []
        own = self._identity.instance_id
        unattached = await self._describe(
            [{"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]}, {"Name": "status", "Values": ["available"]}]
        )
        others = [(eni, maker) for eni in unattached if (maker := replies.tags_of(eni).get(INSTANCE_TAG, own)) != own]
        # Asked after the ENIs: the instance that made an ENI existed before, so one that is missing now is gone.
        there = await self._instances(sorted({maker for _, maker in others if maker}))
        return self._sightings.of_others(eni for eni, maker in others if maker and maker not in there)

    async def _instances(self, ids: list[str]) -> set[str]:
        """Those of them that EC2 still has: for an hour or so it also shows the ones that are gone."""
        there: set[str] = set()
        for filters in _among("instance-id", ids):
            pages = await self._pages(
                "DescribeInstances",
                filters,
                lambda chosen, page, ec2: ec2.describe_instances(Filters=chosen, **page),
                replies.Instances,
            )
            there |= {
                instance.instance_id
                for page in pages
                for reservation in page.reservations
                for instance in reservation.instances
                if instance.state.name != "terminated"
            }
        return there

    async def _describe(self, filters: list[FilterTypeDef]) -> list[Item]:
        pages = await self._pages(
            "DescribeNetworkInterfaces",
            filters,
            lambda chosen, page, ec2: ec2.describe_network_interfaces(Filters=chosen, **page),
            replies.NetworkInterfaces,
        )
        return [eni for page in pages for eni in page.network_interfaces]

    async def _pages(
        self,
        action: str,
        filters: list[FilterTypeDef],
        ask: Callable[[list[FilterTypeDef], _Page, EC2Client], Awaitable[object]],
        shape: type[AnyPage],
    ) -> list[AnyPage]:
        """All pages, each a call; one that filters have emptied may still name a next one."""
        pages = [await self._call(action, partial(ask, filters, {"MaxResults": PAGE_SIZE}), shape)]
        followed: set[str] = set()
        while token := pages[-1].next_token:
            if token in followed:
                with self._reading(action):
                    raise UnreadableReply(f"EC2's reply names page {replies.shown(token)} again: it would never end")
            followed.add(token)
            next_page: _Page = {"MaxResults": PAGE_SIZE, "NextToken": token}
            pages.append(await self._call(action, partial(ask, filters, next_page), shape))
        return pages

    # Mutations

    async def create_eni(
        self, *, token: str, subnet_id: str, security_groups: tuple[str, ...], address_count: int
    ) -> CreatedEni:
        reply = await self._call(
            "CreateNetworkInterface",
            lambda ec2: ec2.create_network_interface(
                ClientToken=token,
                SubnetId=subnet_id,
                Groups=list(security_groups),
                Description=self._description,
                SecondaryPrivateIpAddressCount=address_count,
                TagSpecifications=self.marks(token),
            ),
            replies.CreatedInterface,
        )
        with self._reading("CreateNetworkInterface"):
            created = await self._created(reply.network_interface)
        if len(created.addresses) != address_count:
            log.warning("ec2.other_count", eni=created.id, asked=address_count, got=len(created.addresses))
        return created

    async def _created(self, item: Item) -> CreatedEni:
        """Read the reply; if only its id can be read, describe the ENI. Raises `UnreadableReply`."""
        eni_id = replies.id_of(item, "NetworkInterfaceId")
        try:
            new = replies.read(replies.NewInterface, item, eni_id or "the new interface")
        except UnreadableReply:
            seen = None
            if eni_id:
                with suppress(CloudError):
                    seen = await self.describe_eni(eni_id)
            if seen is None or not seen.primary_ip:
                raise
            return CreatedEni(seen.id, seen.mac, seen.subnet_id, seen.primary_ip, seen.addresses)
        return CreatedEni(
            new.network_interface_id, new.mac_address, new.subnet_id, new.private_ip_address, new.secondary_addresses
        )

    async def attach_eni(self, eni_id: str, device_index: int) -> str:
        reply = await self._call(
            "AttachNetworkInterface",
            lambda ec2: ec2.attach_network_interface(
                NetworkInterfaceId=eni_id, InstanceId=self._identity.instance_id, DeviceIndex=device_index
            ),
            replies.Attached,
        )
        return reply.attachment_id

    async def set_delete_on_termination(self, eni_id: str, attachment_id: str) -> None:
        await self._call(
            "ModifyNetworkInterfaceAttribute",
            lambda ec2: ec2.modify_network_interface_attribute(
                NetworkInterfaceId=eni_id, Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True}
            ),
            replies.Anything,
        )

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        reply = await self._call(
            "AssignPrivateIpAddresses",
            lambda ec2: ec2.assign_private_ip_addresses(
                NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=count
            ),
            replies.AssignedAddresses,
        )
        return tuple(assigned.private_ip_address for assigned in reply.assigned_private_ip_addresses)

    async def unassign_addresses(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        await self._call(
            "UnassignPrivateIpAddresses",
            lambda ec2: ec2.unassign_private_ip_addresses(
                NetworkInterfaceId=eni_id, PrivateIpAddresses=list(addresses)
            ),
            replies.Anything,
        )

    async def detach_eni(self, attachment_id: str) -> None:
        await self._call(
            "DetachNetworkInterface",
            lambda ec2: ec2.detach_network_interface(AttachmentId=attachment_id),
            replies.Anything,
        )

    async def delete_eni(self, eni_id: str) -> None:
        await self._call(
            "DeleteNetworkInterface",
            lambda ec2: ec2.delete_network_interface(NetworkInterfaceId=eni_id),
            replies.Anything,
        )

    # Permissions

    async def dry_run(self, action: str, parameters: Mapping[str, object]) -> None:
        """Ask whether the call is allowed, without making it. EC2 always answers with an error: raises `CloudError`
        with the code DryRunOperation if it would have been carried out. Returning normally means that the endpoint
        ignored DryRun and performed the call: it is not EC2."""
        method = xform_name(action)
        await self._call(action, lambda ec2: getattr(ec2, method)(DryRun=True, **parameters), replies.Anything)

    def marks(self, token: str) -> list[TagSpecificationTypeDef]:
        """TagSpecifications of a new ENI."""
        tags = {"Name": self._description, **self._settings.tags, **self._own_tags(token)}
        marks: list[TagTypeDef] = [{"Key": key, "Value": value} for key, value in tags.items()]
        return [{"ResourceType": "network-interface", "Tags": marks}]

    @property
    def _description(self) -> str:
        return f"ipamd {self._identity.instance_id}"

    def _own_tags(self, token: str) -> dict[str, str]:
        """The same for the same token: EC2 refuses one that comes again with other tags."""
        tags = {INSTANCE_TAG: self._identity.instance_id, UNMANAGED_TAG: "true"}
        created = time_of(token)
        if created is not None:
            tags[CREATED_TAG] = datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds")
        if self._settings.cluster:
            tags[CLUSTER_TAG] = self._settings.cluster
        return tags

    # One call

    async def _call(
        self, action: str, send: Callable[[EC2Client], Awaitable[object]], shape: type[AnyShape]
    ) -> AnyShape:
        """The reply as this shape. Raises `CloudError`, and nothing else for whatever EC2, the network or the
        credentials do."""
        async with self._budget.admit(action, self._priority):
            client = await self._connection.client(action)
            if self._before is not None:
                await self._before()
            return await self._sent(action, send(client), shape)

    async def _sent(self, action: str, answer: Awaitable[object], shape: type[AnyShape]) -> AnyShape:
        outcome, access_key = "cancelled", self._connection.credentials.key_in_use
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.timeout):
                reply = await answer
            found = replies.read(shape, reply, action)
            outcome = "ok"
        except Exception as error:  # botocore, its parser and aiohttp promise no set of exceptions
            failed = cloud_error(action, error, words(self._connection.url))
            outcome = failed.failure.code
            self._connection.credentials.judged(access_key, outcome)
            raise failed from error
        finally:
            elapsed = time.monotonic() - started
            self.calls[action, outcome].observe(elapsed)
            log.debug("ec2.call", action=action, ms=round(elapsed * 1000, 1), outcome=outcome)
        return found

    @contextmanager
    def _reading(self, action: str) -> Iterator[None]:
        """Around what takes a reply apart that came well."""
        try:
            yield
        except UnreadableReply as error:
            raise cloud_error(action, error) from error


def _among(name: str, ids: Sequence[str]) -> Iterator[list[FilterTypeDef]]:
    """Filters for these ids, each with as many as it takes."""
    for start in range(0, len(ids), FILTER_VALUES):
        yield [{"Name": name, "Values": list(ids[start : start + FILTER_VALUES])}]


def _only(found: Sequence[T], what: str) -> T:
    """The first of what was asked for. Raises `UnreadableReply`."""
    if not found:
        raise UnreadableReply(f"EC2's reply lacks {what}")
    return found[0]
