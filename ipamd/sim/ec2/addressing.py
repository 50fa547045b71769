"""Which addresses and /28 prefixes an ENI has: the calls that change them, and how many it may have."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Final

from ipamd.pool.model import Limits
from ipamd.sim.ec2.cabling import Cabling
from ipamd.sim.ec2.errors import Ec2Error
from ipamd.sim.ec2.registry import Registry
from ipamd.sim.ec2.resources import Delays, Eni, Instance

# Families that are not of the Nitro System, but for their bare metal (DescribeInstanceTypes, Hypervisor).
XEN: Final = re.compile(r"(c[134]|d2|f1|h1|i[23]|m[1-4]|p3|r[34]|t[12]|x1e?)\.(?!metal)")


class Addressing:
    """A part of the cloud, whose state it works on."""

    limits: Mapping[str, Limits]
    delays: Delays
    instances: Registry[Instance]
    _cabling: Cabling

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        """AssignPrivateIpAddresses by count: the new addresses."""
        eni, _ = await self._with_room(eni_id, count)
        new = eni.subnet.take(count)
        eni.addresses.extend(new)
        self._changed(eni)
        await self._cabling.deliver(eni)
        return tuple(new)

    async def assign_prefixes(self, eni_id: str, count: int = 0, named: Sequence[str] = ()) -> tuple[str, ...]:
        """AssignPrivateIpAddresses, Ipv4PrefixCount or Ipv4Prefixes: the new prefixes."""
        eni, instance = await self._with_room(eni_id, count or len(named))
        if instance is not None:
            check_prefixes(instance, 1)
        new = eni.subnet.take_named_prefixes(named) if named else eni.subnet.take_prefixes(count)
        eni.prefixes.extend(new)
        self._changed(eni)
        await self._cabling.deliver(eni)
        return tuple(new)

    async def _with_room(self, eni_id: str, count: int) -> tuple[Eni, Instance | None]:
        """The ENI, which can have so many more addresses or prefixes, and the instance that it is on."""
        await asyncio.sleep(self.delays.assign)
        eni = self._eni(eni_id)
        if count < 1:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{count}' for the number of addresses.")
        instance = self.instances.get(eni.attachment.instance_id) if eni.attachment else None
        self._check_address_count(eni.slots + count, instance)
        return eni, instance

    async def unassign_addresses(
        self, eni_id: str, addresses: Sequence[str] = (), prefixes: Sequence[str] = ()
    ) -> None:
        """UnassignPrivateIpAddresses: all of them or none. A prefix goes as a whole."""
        await asyncio.sleep(self.delays.assign)
        eni = self._eni(eni_id)
        wrong = [address for address in addresses if address not in eni.addresses[1:]]
        wrong += [prefix for prefix in prefixes if prefix not in eni.prefixes]
        if wrong:
            raise Ec2Error(
                "InvalidParameterValue", f"No secondary addresses of interface {eni_id}: [{', '.join(wrong)}]"
            )
        eni.addresses = [address for address in eni.addresses if address not in addresses]
        eni.prefixes = [prefix for prefix in eni.prefixes if prefix not in prefixes]
        self._changed(eni)
        await self._cabling.deliver(eni)
        eni.subnet.give_back(dict.fromkeys(addresses))  # only now: nobody else may have it before it stopped here
        eni.subnet.give_back_prefixes(dict.fromkeys(prefixes))

    def _check_address_count(self, count: int, instance: Instance | None) -> None:
        """Before it is attached, an ENI is limited by what the largest instance takes."""
        if instance:
            allowed = instance.limits.addresses_per_eni
        else:
            allowed = max(limits.addresses_per_eni for limits in self.limits.values())
        if count > allowed:
            raise Ec2Error("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")

    def _eni(self, eni_id: str) -> Eni:
        """The ENI that a call is going to change. Raises `Ec2Error`."""
        raise NotImplementedError

    def _changed(self, eni: Eni) -> None:
        """Let those know who show it."""
        raise NotImplementedError


def check_prefixes(instance: Instance, count: int) -> None:
    """AWS, "Prefix delegation for Amazon EC2 network interfaces": only on instances of the Nitro System. The code is
    not published."""
    if count and XEN.match(instance.type):
        raise Ec2Error("UnsupportedOperation", f"Prefixes are not supported for instance type {instance.type}")
