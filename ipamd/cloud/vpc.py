"""The VPC's networks, as this node knows them: its CIDRs from the metadata service, and the subnets of its ENIs.

A VPC can get further CIDRs at any time, and pods' packets there must not be translated. So the metadata service is
asked again with each audit and each SIGHUP. A subnet in which this node has an ENI is the VPC's, whatever the service
says: it lags behind EC2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network

import structlog

from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.cidrs import VpcCidrs
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.vpc")

OUTSIDE = "vpc.subnet_outside"

# Seconds for an answer: an audit goes on without one.
PATIENCE = 3.0


class Vpc:
    """`read` asks for all IPv4 CIDRs of the VPC, and raises `CloudError`. `subnets`: CIDR by id, of this node's
    ENIs."""

    def __init__(
        self,
        identity: Identity,
        read: Callable[[], Awaitable[tuple[str, ...]]],
        conditions: Conditions,
        clock: Callable[[], float],
    ) -> None:
        self._read = read
        self._conditions = conditions
        self._clock = clock
        self._cidrs = VpcCidrs(identity.vpc_cidrs)
        self.subnets: dict[str, str] = {}
        self.learn(identity.subnet_id, identity.subnet_cidr)

    @property
    def networks(self) -> tuple[str, ...]:
        """Where pods' packets leave with their own address: CIDRs that may lie within each other."""
        return (*self._cidrs.all, *self._outside().values())

    def overlaps(self, network: IPv4Network) -> bool:
        return any(network.overlaps(IPv4Network(inside)) for inside in self.networks)

    def learn(self, subnet_id: str, cidr: str) -> None:
        """An ENI of this node is in that subnet."""
        self.subnets[subnet_id] = cidr
        self._judge()

    async def look(self) -> bool:
        """Ask anew. Whether `networks` may have changed."""
        try:
            async with asyncio.timeout(PATIENCE):
                cidrs = await self._read()
        except (CloudError, TimeoutError) as error:
            log.info("vpc.cidrs_unread", error=str(error) or f"no answer within {PATIENCE:g} s")
            return False
        change = self._cidrs.observed(cidrs, self._clock())
        if change.added:
            log.info("vpc.cidrs_added", cidrs=list(change.added))
        if change.removed:
            log.warning("vpc.cidrs_removed", cidrs=list(change.removed))
        self._judge()
        return bool(change)

    def _outside(self) -> dict[str, str]:
        """The subnets that lie in none of the VPC's CIDRs."""
        inside = [IPv4Network(cidr) for cidr in self._cidrs.all]
        return {
            subnet: cidr
            for subnet, cidr in self.subnets.items()
            if not any(IPv4Network(cidr).subnet_of(network) for network in inside)
        }

    def _judge(self) -> None:
        outside = self._outside()
        if not outside:
            self._conditions.end(OUTSIDE)
            return
        listed = ", ".join(f"{subnet} ({cidr})" for subnet, cidr in outside.items())
        text = (
            f"The metadata service names {', '.join(self._cidrs.all)} as the VPC's CIDRs, and this node has an ENI "
            f"outside of them, in {listed}. Pods reach other subnets there only with a translated address until the "
            "service names the CIDR: ipamd asks it with each audit (ipamctl audit asks now); or list the CIDR in "
            "host.snat_exclude."
        )
        self._conditions.begin(OUTSIDE, text, subnets=sorted(outside))
