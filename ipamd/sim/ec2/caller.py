"""EC2 as the daemon of one node calls it, straight on the rules: no time passes, and nothing is encoded.

Virtual time and the property test of the pool are built on this. Errors are classed by the table that the adapter of
the real EC2 uses, so a code means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ipamd.cloud.kinds import kind_of
from ipamd.cloud.ownership import INSTANCE_TAG
from ipamd.cloud.port import CloudError, Priority
from ipamd.pool.model import CloudFailure, CreatedEni, Limits, ObservedEni
from ipamd.sim.ec2.rules import Ask, Ec2Error, Ec2Rules, Eni, Instance

T = TypeVar("T")
Before = Callable[[], Awaitable[None]]


class Caller:
    """`now` is the time that the rules are given. Methods raise `CloudError`."""

    def __init__(self, rules: Ec2Rules, instance: Instance, now: Callable[[], float]) -> None:
        self.rules = rules
        self.instance = instance
        self._now = now
        self._made: dict[str, Eni] = {}

    def create(self, token: str, subnet_id: str, groups: tuple[str, ...], count: int) -> CreatedEni:
        """With the tag that makes it this node's."""
        tags = {INSTANCE_TAG: self.instance.id}
        with _classed("CreateNetworkInterface"):
            eni = self.rules.create(subnet_id, self._now(), Ask(count), group_ids=groups, tags=tags, token=token)
        if eni.id in self.rules.enis:
            self._made[eni.id] = eni
        primary, *secondary = eni.addresses
        return CreatedEni(eni.id, eni.mac, subnet_id, primary, tuple(secondary))

    def attach(self, eni_id: str, device_index: int) -> str:
        """It is attached as soon as this returns: the id of the attachment."""
        with _classed("AttachNetworkInterface"):
            attachment = self.rules.attach(eni_id, self.instance.id, device_index, self._now())
            self.rules.end_attach(self.rules.enis.get(eni_id), attachment)
        return attachment.id

    def set_delete_on_termination(self, eni_id: str, attachment_id: str) -> None:
        with _classed("ModifyNetworkInterfaceAttribute"):
            self.rules.set_delete_on_termination(eni_id, attachment_id, True)

    def assign(self, eni_id: str, count: int) -> tuple[str, ...]:
        with _classed("AssignPrivateIpAddresses"):
            return self.rules.assign(eni_id, Ask(count))

    def unassign(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        with _classed("UnassignPrivateIpAddresses"):
            self.rules.unassign(eni_id, addresses)

    def detach(self, attachment_id: str) -> Eni:
        """Accepted. The detachment is over when somebody calls `Ec2Rules.end_detach`."""
        with _classed("DetachNetworkInterface"):
            return self.rules.detach(attachment_id)

    def delete(self, eni_id: str) -> None:
        with _classed("DeleteNetworkInterface"):
            self.rules.delete(eni_id)
        self._made.pop(eni_id, None)

    def describe(self, eni_id: str) -> ObservedEni | None:
        return self._observed(self.rules.enis.get(eni_id)) if eni_id in self.rules.enis else None

    def describe_all(self) -> tuple[ObservedEni, ...]:
        return tuple(map(self._observed, self.enis()))

    def enis(self) -> list[Eni]:
        """Those on the instance, and those unattached that it made."""
        loose = (eni for eni in self._made.values() if eni.attachment is None)
        return [*self.instance.enis.values(), *loose]

    def available(self, subnet_ids: tuple[str, ...]) -> dict[str, int]:
        return {id: self.rules.subnets.get(id).available for id in subnet_ids if id in self.rules.subnets}

    def _observed(self, eni: Eni) -> ObservedEni:
        """As the adapter makes it of a reply (`ipamd.cloud.sightings`)."""
        attachment = eni.attachment
        here = attachment is not None and attachment.instance_id == self.instance.id
        card = attachment.network_card if attachment else 0
        tagged = eni.tags.get(INSTANCE_TAG) == self.instance.id
        return ObservedEni(
            eni.id,
            eni.mac,
            eni.subnet.id,
            eni.addresses[0],
            tuple(eni.addresses[1:]),
            attachment.device_index if attachment else None,
            attachment.id if attachment else "",
            attachment.status if attachment else "",
            owned=tagged and (attachment is None or (here and card == 0)),
            primary=here and attachment is not None and attachment.primary,
            delete_on_termination=attachment.delete_on_termination if attachment else True,
            created_at=eni.created if tagged else None,
            network_card=card,
            prefixes=tuple(eni.prefixes),
        )


class CallerCloud:
    """A `Caller` behind the interface of the real adapter, `ipamd.cloud.port.Cloud`. No call takes time, so its
    coroutines wait for nothing except `before`; a subclass may let time pass in `_call`."""

    def __init__(self, caller: Caller, before: Before | None = None) -> None:
        self.caller = caller
        self._before = before

    def at(self, priority: Priority, before: Before | None = None) -> CallerCloud:
        return CallerCloud(self.caller, before)

    async def _call(self, action: str, change: Callable[[], T]) -> T:
        """`change` is what the call does when it reaches EC2."""
        if self._before is not None:
            await self._before()
        return change()

    async def instance_limits(self, instance_type: str) -> Limits:
        return self.caller.instance.limits

    async def describe_enis(self) -> list[ObservedEni]:
        """Two calls: one for those with the tag, one for those that are attached."""
        await self._call("DescribeNetworkInterfaces", tuple)
        return list(await self._call("DescribeNetworkInterfaces", self.caller.describe_all))

    async def describe_eni(self, eni_id: str) -> ObservedEni | None:
        return await self._call("DescribeNetworkInterfaces", lambda: self.caller.describe(eni_id))

    async def subnet_cidr(self, subnet_id: str) -> str:
        return await self._call("DescribeSubnets", lambda: str(self.caller.rules.subnets.get(subnet_id).network))

    async def available_addresses(self, subnet_ids: tuple[str, ...]) -> dict[str, int]:
        return await self._call("DescribeSubnets", lambda: self.caller.available(subnet_ids))

    async def describe_abandoned(self) -> list[ObservedEni]:
        return []

    async def create_eni(
        self, *, token: str, subnet_id: str, security_groups: tuple[str, ...], address_count: int
    ) -> CreatedEni:
        return await self._call(
            "CreateNetworkInterface",
            lambda: self.caller.create(token, subnet_id, security_groups, address_count),
        )

    async def attach_eni(self, eni_id: str, device_index: int) -> str:
        return await self._call("AttachNetworkInterface", lambda: self.caller.attach(eni_id, device_index))

    async def set_delete_on_termination(self, eni_id: str, attachment_id: str) -> None:
        await self._call(
            "ModifyNetworkInterfaceAttribute", lambda: self.caller.set_delete_on_termination(eni_id, attachment_id)
        )

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        return await self._call("AssignPrivateIpAddresses", lambda: self.caller.assign(eni_id, count))

    async def unassign_addresses(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        await self._call("UnassignPrivateIpAddresses", lambda: self.caller.unassign(eni_id, addresses))

    async def detach_eni(self, attachment_id: str) -> None:
        await self._call("DetachNetworkInterface", lambda: self.caller.detach(attachment_id))

    async def delete_eni(self, eni_id: str) -> None:
        await self._call("DeleteNetworkInterface", lambda: self.caller.delete(eni_id))


@contextmanager
def _classed(action: str) -> Iterator[None]:
    try:
        yield
    except Ec2Error as error:
        kind = kind_of(action, error.code, error.status)
        raise CloudError(CloudFailure(kind, action, error.code, error.message)) from None
