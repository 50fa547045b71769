"""The cloud as the rest of the project sees it: one small interface, and one exception that carries a class.

The aiobotocore adapter implements it against EC2. Each method is one EC2 call (a paginated read counts as one);
none retries: when to try again is the pool's decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ipamd.pool.model import CloudFailure, CreatedEni, Limits, ObservedEni


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
    """What ipamd asks of EC2. Every method raises `CloudError`."""

    async def instance_limits(self, instance_type: str) -> Limits:
        """From the embedded table; DescribeInstanceTypes for a type that the table does not know."""

    async def describe_enis(self) -> list[ObservedEni]:
        """Every ENI attached to this instance, and every unattached one that carries our tag."""

    async def describe_eni(self, eni_id: str) -> ObservedEni | None:
        """One ENI, freshly read; None when EC2 does not know it."""

    async def subnet_cidr(self, subnet_id: str) -> str:
        """The IPv4 CIDR of a subnet (DescribeSubnets; cached, it can't change)."""

    async def create_eni(
        self, *, token: str, subnet_id: str, security_groups: tuple[str, ...], address_count: int
    ) -> CreatedEni:
        """CreateNetworkInterface with `address_count` secondary addresses, our tags and `token` as ClientToken."""

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
