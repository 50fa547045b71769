"""The cloud as the rest of the project sees it: one small interface, and one exception that carries a class.

The aiobotocore adapter implements it against EC2. No method retries: when to try again is the pool's decision. Each
HTTP call waits for its turn in the node's rate budget first, with the priority that the client is bound to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ipamd.pool.model import CloudFailure, CreatedEni, Limits, ObservedEni


class Priority(IntEnum):
    """The purpose of a call; the lowest value goes first."""

    POD = 0
    WARM = 1
    RELEASE = 2


class CloudError(Exception):
    """An EC2 or IMDS call failed; `failure.kind` says what that means."""

    def __init__(self, failure: CloudFailure) -> None:
        super().__init__(f"{failure.action}: {failure.code}: {failure.message}")
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Identity:
    """This instance, as IMDS tells it once at start.

    `subnet_cidr` is that of the primary ENI; `vpc_cidrs` are all IPv4 CIDRs of the VPC.
    """

    instance_id: str
    instance_type: str
    region: str
    availability_zone: str
    primary_mac: str
    primary_eni_id: str
    primary_ip: str
    subnet_id: str
    subnet_cidr: str
    vpc_id: str
    vpc_cidrs: tuple[str, ...]
    security_groups: tuple[str, ...]


class Cloud(Protocol):
    """What ipamd asks of EC2. Every method that calls it raises `CloudError`."""

    def at(self, priority: Priority, before: Callable[[], Awaitable[None]] | None = None) -> Cloud:
        """The same client, bound to a priority. Unbound, its calls are for pods.

        `before` is awaited when a call's turn has come, as the last thing before it is sent: for checks that must
        still hold after a wait in the budget. What it raises comes out of the call, which then is not sent.
        """

    async def instance_limits(self, instance_type: str) -> Limits:
        """From the embedded table; DescribeInstanceTypes for a type that the table does not know."""

    async def describe_enis(self) -> list[ObservedEni]:
        """Every ENI attached to this instance, and every unattached one that carries our tag."""

    async def describe_eni(self, eni_id: str) -> ObservedEni | None:
        """One ENI, freshly read; None when EC2 does not know it."""

    async def subnet_cidr(self, subnet_id: str) -> str:
        """The IPv4 CIDR of a subnet (DescribeSubnets; cached, it can't change)."""

    async def available_addresses(self, subnet_ids: tuple[str, ...]) -> dict[str, int]:
        """How many IPv4 addresses each subnet has left (DescribeSubnets). One that EC2 does not know is missing."""

    async def describe_abandoned(self) -> list[ObservedEni]:
        """Unattached ENIs that other instances of this cluster made, which are gone. None without `ec2.cluster`."""

    async def create_eni(
        self, *, token: str, subnet_id: str, security_groups: tuple[str, ...], address_count: int
    ) -> CreatedEni:
        """CreateNetworkInterface with `address_count` secondary addresses, our tags and `token` as ClientToken.

        A call with the same token asks for the same ENI, in another process as well."""

    async def attach_eni(self, eni_id: str, device_index: int) -> str:
        """AttachNetworkInterface to this instance; returns the attachment's id."""

    async def set_delete_on_termination(self, eni_id: str, attachment_id: str) -> None:
        """ModifyNetworkInterfaceAttribute, so that the ENI goes with the instance (it can't be set at attach)."""

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        """AssignPrivateIpAddresses by count; returns the new addresses only."""

    async def unassign_addresses(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        """UnassignPrivateIpAddresses."""

    async def detach_eni(self, attachment_id: str) -> None:
        """DetachNetworkInterface; returns when EC2 accepted it, not when it is done."""

    async def delete_eni(self, eni_id: str) -> None:
        """DeleteNetworkInterface."""
