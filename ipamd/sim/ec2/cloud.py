"""The state of one VPC, and the rules by which EC2 changes it: limits, address ownership, attachments, time.

This is the double's judgement; what surrounds it only carries words to and fro (`api`: the Query protocol, `imds`:
instance metadata, `Wiring`: packets). Where a rule is AWS's and not obvious, its source stands beside it.

A call first takes its time, and then is checked and takes effect at once, with nothing in between: whoever comes
second sees what the first one did. Attaching and detaching go on after the call was answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from ipamd.pool.model import Limits
from ipamd.sim.ec2.credentials import Keyring
from ipamd.sim.ec2.errors import Ec2Error
from ipamd.sim.ec2.registry import Registry
from ipamd.sim.ec2.resources import (
    Attachment,
    Delays,
    Eni,
    EniMetadata,
    Instance,
    Lagging,
    SecurityGroup,
    Subnet,
    new_id,
)
from ipamd.sim.wiring import NoWiring, Wiring

ACCOUNT: Final = "123456789012"

_MAX_TAGS: Final = 50  # AWS, "Tag restrictions"


class SimulatedCloud:
    """One account, one region, one VPC. Methods that stand for an EC2 call raise `Ec2Error`.

    `limits` maps instance types to what they allow; `eni_quota` is the account's "Network interfaces per Region".
    """

    def __init__(
        self,
        vpc_cidr: str,
        *,
        limits: Mapping[str, Limits],
        wiring: Wiring | None = None,
        delays: Delays | None = None,
        region: str = "eu-central-1",
        eni_quota: int = 5000,
    ) -> None:
        self.vpc_id = new_id("vpc")
        self.vpc_cidr = ipaddress.IPv4Network(vpc_cidr)
        self.region = region
        self.limits = limits
        self.delays = delays or Delays()
        self.eni_quota = eni_quota
        self.keyring = Keyring()
        self.subnets: Registry[Subnet] = Registry("subnet", "subnet", "InvalidSubnetID")
        # EC2 has two codes for this. CreateNetworkInterface is on record with this one (hashicorp/terraform#3372),
        # DescribeSecurityGroups and RunInstances with InvalidGroup.NotFound.
        self.groups: Registry[SecurityGroup] = Registry("sg", "securityGroup", "InvalidSecurityGroupID")
        self.enis: Registry[Eni] = Registry("eni", "networkInterface", "InvalidNetworkInterfaceID")
        self.instances: Registry[Instance] = Registry("i", "instance", "InvalidInstanceID")
        self._wiring = wiring or NoWiring()
        self._wires = asyncio.Lock()
        self._tokens: dict[str, tuple[object, Eni]] = {}
        self._moves: dict[asyncio.Task[None], Eni] = {}
        self.default_group = self.add_security_group("default")

    # What an operator sets up

    def add_subnet(self, cidr: str, zone: str = "") -> Subnet:
        """`zone` is an availability zone's name (default: the region's first). Raises ValueError."""
        network = ipaddress.IPv4Network(cidr)
        if not network.subnet_of(self.vpc_cidr):
            raise ValueError(f"subnet {network} is not inside the VPC's {self.vpc_cidr}")
        for other in self.subnets:
            if network.overlaps(other.network):
                raise ValueError(f"subnet {network} overlaps {other.network} of {other.id}")
        subnet = Subnet(new_id("subnet"), cidr, zone or f"{self.region}a")
        self.subnets.add(subnet.id, subnet)
        return subnet

    def add_security_group(self, name: str) -> SecurityGroup:
        group = SecurityGroup(new_id("sg"), name)
        self.groups.add(group.id, group)
        return group

    async def add_instance(self, name: str, instance_type: str, subnet_id: str, *, instance_id: str = "") -> Instance:
        """Start an instance with its primary ENI, plugged. `instance_id` (see `new_id`) if it must be known before.

        Raises `Ec2Error`.
        """
        subnet = self.subnets.get(subnet_id)
        limits = self.limits.get(instance_type)
        if limits is None:
            raise Ec2Error("InvalidInstanceType", f"The instance type '{instance_type}' does not exist")
        now = datetime.now(UTC)
        eni = self._new_eni(subnet, 1, [self.default_group], "", {})
        instance = Instance(
            instance_id or new_id("i"), name, instance_type, limits, eni, now, Lagging(self.delays.imds_lag)
        )
        eni.attachment = Attachment(new_id("eni-attach"), instance.id, 0, True, now, "attached")
        self.instances.add(instance.id, instance)
        self._publish(instance)
        await self._plug(eni, eni.attachment)
        return instance

    async def terminate(self, instance_id: str) -> None:
        """End an instance: ENIs marked DeleteOnTermination go with it, others are left behind, detached."""
        instance = self.instances.get(instance_id)
        if instance.state == "terminated":
            return
        instance.state = "terminated"
        self.keyring.revoke(instance_id)
        enis = self.enis_of(instance_id)
        await self.settle(enis)
        for eni in enis:
            attachment = eni.attachment
            if attachment is None or attachment.instance_id != instance_id:
                continue  # its detaching was under way
            await self._unplug(eni)
            eni.attachment = None
            if attachment.delete_on_termination:
                await self.delete_eni(eni.id)
        self._publish(instance)

    # EC2 calls

    async def create_eni(
        self,
        subnet_id: str,
        *,
        secondary_count: int = 0,
        group_ids: Sequence[str] = (),
        description: str = "",
        tags: Mapping[str, str] | None = None,
        token: str = "",
    ) -> Eni:
        """CreateNetworkInterface. The same `token` and parameters give the same ENI: AWS, "Ensuring idempotency"."""
        request = (subnet_id, secondary_count, tuple(group_ids), description, dict(tags or {}))
        await asyncio.sleep(self.delays.create)
        if token in self._tokens:
            earlier, eni = self._tokens[token]
            if earlier != request:
                raise Ec2Error(
                    "IdempotentParameterMismatch", f"The client token {token} was used with different parameters."
                )
            return eni
        subnet = self.subnets.get(subnet_id)
        groups = self.groups.get_all(group_ids) or [self.default_group]
        _check_tags({}, tags or {})
        if secondary_count < 0:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{secondary_count}' for the number of addresses")
        if len(self.enis) >= self.eni_quota:
            raise Ec2Error(
                "NetworkInterfaceLimitExceeded", f"The limit of {self.eni_quota} network interfaces is reached"
            )
        self._check_address_count(1 + secondary_count, None)
        eni = self._new_eni(subnet, 1 + secondary_count, groups, description, tags or {})
        if token:
            self._tokens[token] = (request, eni)
        await self._deliver(eni)
        return eni

    async def attach_eni(self, eni_id: str, instance_id: str, device_index: int) -> Attachment:
        """AttachNetworkInterface: answered at once, done after `Delays.attach`."""
        eni = self.enis.get(eni_id)
        instance = self.instances.get(instance_id)
        if instance.state != "running":
            raise Ec2Error("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
        if eni.attachment:
            raise Ec2Error("InvalidNetworkInterface.InUse", f"Interface: [{eni_id}] in use.")
        if device_index < 0:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{device_index}' for deviceIndex.")
        indexes = [other.attachment.device_index for other in self.enis_of(instance_id) if other.attachment]
        if device_index in indexes:
            raise Ec2Error(
                "InvalidParameterValue",
                f"Instance '{instance_id}' already has an interface attached at device index '{device_index}'.",
            )
        if len(indexes) >= instance.limits.max_enis:
            raise Ec2Error(
                "AttachmentLimitExceeded", f"Interface count {len(indexes) + 1} exceeds the limit for {instance.type}"
            )
        self._check_address_count(len(eni.addresses), instance)
        if eni.subnet.zone != instance.primary.subnet.zone:
            raise Ec2Error(
                "InvalidParameterCombination",
                "You may not attach a network interface to an instance if they are not in the same availability zone",
            )
        attachment = Attachment(new_id("eni-attach"), instance_id, device_index, False, datetime.now(UTC))
        eni.attachment = attachment
        self._move(eni, self._finish_attach, attachment)
        return attachment

    async def detach_eni(self, attachment_id: str) -> None:
        """DetachNetworkInterface: answered at once, done after `Delays.detach`."""
        eni, attachment = self._attached(attachment_id)
        if attachment.device_index == 0:
            raise Ec2Error("OperationNotPermitted", "The network interface at device index 0 cannot be detached.")
        if attachment.status != "attached":
            raise Ec2Error("IncorrectState", f"The attachment {attachment_id} is in state '{attachment.status}'.")
        attachment.status = "detaching"
        self._move(eni, self._finish_detach, attachment)

    async def delete_eni(self, eni_id: str) -> None:
        """DeleteNetworkInterface."""
        eni = self.enis.get(eni_id)
        if eni.attachment:
            # The table of error codes allows InvalidNetworkInterface.InUse too; this is the one that EC2 gives
            # (gruntwork-io/cloud-nuke#431, #1132).
            raise Ec2Error("InvalidParameterValue", f"Network interface '{eni_id}' is currently in use.")
        self.enis.remove(eni_id)
        addresses, eni.addresses = eni.addresses, []
        await self._deliver(eni)
        eni.subnet.give_back(addresses)

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        """AssignPrivateIpAddresses by count: the new addresses."""
        await asyncio.sleep(self.delays.assign)
        eni = self.enis.get(eni_id)
        if count < 1:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{count}' for secondaryPrivateIpAddressCount.")
        instance = self.instances.get(eni.attachment.instance_id) if eni.attachment else None
        self._check_address_count(len(eni.addresses) + count, instance)
        new = eni.subnet.take(count)
        eni.addresses.extend(new)
        await self._changed(eni)
        return tuple(new)

    async def unassign_addresses(self, eni_id: str, addresses: Sequence[str]) -> None:
        """UnassignPrivateIpAddresses: all of them or none."""
        await asyncio.sleep(self.delays.assign)
        eni = self.enis.get(eni_id)
        wrong = [address for address in addresses if address not in eni.addresses[1:]]
        if wrong:
            raise Ec2Error(
                "InvalidParameterValue", f"No secondary addresses of interface {eni_id}: [{', '.join(wrong)}]"
            )
        eni.addresses = [address for address in eni.addresses if address not in addresses]
        await self._changed(eni)
        eni.subnet.give_back(dict.fromkeys(addresses))  # only now: nobody else may have it before it stopped here

    def set_delete_on_termination(self, eni_id: str, attachment_id: str, value: bool) -> None:
        """ModifyNetworkInterfaceAttribute, Attachment."""
        eni, attachment = self._attached(attachment_id)
        if eni is not self.enis.get(eni_id):
            raise Ec2Error("InvalidAttachmentID.NotFound", f"{attachment_id} is no attachment of {eni_id}")
        attachment.delete_on_termination = value

    def set_groups(self, eni_id: str, group_ids: Sequence[str]) -> None:
        """ModifyNetworkInterfaceAttribute, Groups."""
        eni = self.enis.get(eni_id)
        eni.groups = tuple(self.groups.get_all(group_ids))
        self._publish_of(eni)

    def tag(self, eni_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        """CreateTags: adds and overwrites."""
        enis = self.enis.get_all(eni_ids)
        for eni in enis:
            _check_tags(eni.tags, tags)
        for eni in enis:
            eni.tags |= tags

    # Questions

    def enis_of(self, instance_id: str) -> list[Eni]:
        """All that hold a place on the instance, whatever the state of their attachment."""
        return [eni for eni in self.enis if eni.attachment and eni.attachment.instance_id == instance_id]

    def instance_at(self, address: str) -> Instance | None:
        """The running instance that has this private address, on whichever of its ENIs."""
        holder = next((eni.attachment for eni in self.enis if eni.attachment and address in eni.addresses), None)
        instance = self.instances.get(holder.instance_id) if holder else None
        return instance if instance and instance.state == "running" else None

    async def settle(self, enis: Iterable[Eni] | None = None) -> None:
        """Wait until nothing is attaching or detaching any more (of these ENIs, or of all)."""
        wanted = list(self._moves.values() if enis is None else enis)
        if tasks := [task for task, eni in self._moves.items() if eni in wanted]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop what is under way, where it is."""
        tasks = list(self._moves)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Inside

    def _new_eni(
        self, subnet: Subnet, count: int, groups: Sequence[SecurityGroup], description: str, tags: Mapping[str, str]
    ) -> Eni:
        mac = ":".join(["06", *(f"{byte:02x}" for byte in secrets.token_bytes(5))])
        eni = Eni(new_id("eni"), subnet, mac, subnet.take(count), tuple(groups), description, dict(tags))
        self.enis.add(eni.id, eni)
        return eni

    def _check_address_count(self, count: int, instance: Instance | None) -> None:
        """Before it is attached, an ENI is limited by what the largest instance takes."""
        if instance:
            allowed = instance.limits.addresses_per_eni
        else:
            allowed = max(limits.addresses_per_eni for limits in self.limits.values())
        if count > allowed:
            raise Ec2Error("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")

    def _attached(self, attachment_id: str) -> tuple[Eni, Attachment]:
        attachments: Registry[tuple[Eni, Attachment]] = Registry("eni-attach", "attachment", "InvalidAttachmentID")
        for eni in self.enis:
            if eni.attachment:
                attachments.add(eni.attachment.id, (eni, eni.attachment))
        return attachments.get(attachment_id)

    def _move(self, eni: Eni, work: Callable[[Eni, Attachment], Awaitable[None]], place: Attachment) -> None:
        """Do `work` in the background, after what is under way for that ENI."""

        async def run() -> None:
            async with eni.moving:
                await work(eni, place)

        task = asyncio.create_task(run(), name=f"move {eni.id}")
        self._moves[task] = eni
        task.add_done_callback(self._moves.pop)

    async def _finish_attach(self, eni: Eni, attachment: Attachment) -> None:
        await asyncio.sleep(self.delays.attach)
        attachment.status = "attached"
        await asyncio.sleep(self.delays.link)
        await self._plug(eni, attachment)
        self._publish_of(eni)

    async def _finish_detach(self, eni: Eni, attachment: Attachment) -> None:
        await asyncio.sleep(self.delays.detach)
        await self._unplug(eni)
        eni.attachment = None
        self._publish(self.instances.get(attachment.instance_id))

    async def _plug(self, eni: Eni, attachment: Attachment) -> None:
        async with self._wires:
            await self._wiring.plug(attachment.instance_id, eni.id, eni.mac, attachment.device_index)
            eni.plugged = True
        await self._deliver(eni)

    async def _unplug(self, eni: Eni) -> None:
        async with self._wires:
            if eni.plugged:
                await self._wiring.unplug(eni.id)
                eni.plugged = False

    async def _deliver(self, eni: Eni) -> None:
        async with self._wires:  # the addresses are read inside, so that the last call tells the latest ones
            await self._wiring.deliver(eni.id, tuple(eni.addresses))

    async def _changed(self, eni: Eni) -> None:
        await self._deliver(eni)
        self._publish_of(eni)

    def _publish_of(self, eni: Eni) -> None:
        if eni.attachment:
            self._publish(self.instances.get(eni.attachment.instance_id))

    def _publish(self, instance: Instance) -> None:
        """Let instance metadata know, which shows it later. An ENI is in it from `attached` until it is gone."""
        instance.metadata.record(
            time.monotonic(),
            tuple(
                EniMetadata(
                    eni.id, eni.mac, eni.attachment.device_index, tuple(eni.addresses), eni.subnet, eni.groups
                )
                for eni in self.enis_of(instance.id)
                if eni.attachment and eni.attachment.status != "attaching"
            ),
        )


def _check_tags(present: Mapping[str, str], new: Mapping[str, str]) -> None:
    for key in new:
        if not key or key.lower().startswith("aws:"):
            raise Ec2Error("InvalidParameterValue", f"Tag key '{key}' is empty or begins with the reserved 'aws:'.")
    if len({**present, **new}) > _MAX_TAGS:
        raise Ec2Error("TagLimitExceeded", f"A resource has at most {_MAX_TAGS} tags.")
