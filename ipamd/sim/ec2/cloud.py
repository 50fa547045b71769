"""The state of one VPC, and the rules by which EC2 changes it: limits, address ownership, attachments, time.

This is the double's judgement; what surrounds it only carries words to and fro (`api`: the Query protocol, `imds`:
instance metadata, `Wiring`: packets). Where a rule is AWS's and not obvious, its source stands beside it.

A call first takes its time, and then is checked and takes effect at once, with nothing in between: whoever comes
second sees what the first one did. Attaching and detaching go on after the call was answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from ipamd.cloud.limits import network_cards
from ipamd.pool.model import Limits
from ipamd.sim.ec2.addressing import Addressing, check_prefixes
from ipamd.sim.ec2.cabling import Cabling
from ipamd.sim.ec2.consistency import Lags, Sight
from ipamd.sim.ec2.credentials import Keyring
from ipamd.sim.ec2.errors import Ec2Error
from ipamd.sim.ec2.moves import Moves
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
    check_tags,
    new_id,
)
from ipamd.sim.wiring import NoWiring, Wiring

ACCOUNT: Final = "123456789012"


class SimulatedCloud(Addressing):
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
        lags: Lags | None = None,
        region: str = "eu-central-1",
        eni_quota: int = 5000,
    ) -> None:
        self.vpc_id = new_id("vpc")
        self.vpc_cidr = ipaddress.IPv4Network(vpc_cidr)
        self.further_cidrs: list[ipaddress.IPv4Network] = []  # which the VPC has got since
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
        self.sight = Sight(lags or Lags())
        self._cabling = Cabling(wiring or NoWiring())
        self._moves = Moves()
        self._tokens: dict[str, tuple[object, Eni]] = {}
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
        eni.created = -math.inf  # before the instance booted: by now everybody knows it, and never knew it unattached
        instance = Instance(
            instance_id or new_id("i"),
            name,
            instance_type,
            limits,
            eni,
            now,
            Lagging(self.delays.imds_lag),
            network_cards(instance_type),
        )
        eni.attachment = Attachment(new_id("eni-attach"), instance.id, 0, True, now, "attached")
        self.instances.add(instance.id, instance)
        self._changed(eni)
        await self._cabling.plug(eni, eni.attachment)
        return instance

    # EC2 calls

    async def create_eni(
        self,
        subnet_id: str,
        *,
        secondary_count: int = 0,
        prefix_count: int = 0,
        prefixes: Sequence[str] = (),
        group_ids: Sequence[str] = (),
        description: str = "",
        tags: Mapping[str, str] | None = None,
        token: str = "",
    ) -> Eni:
        """CreateNetworkInterface. The same `token` and parameters give the same ENI: AWS, "Ensuring idempotency"."""
        given = (secondary_count, prefix_count, tuple(prefixes))
        request = (subnet_id, *given, tuple(group_ids), description, dict(tags or {}))
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
        check_tags({}, tags or {})
        for count in (secondary_count, prefix_count):
            if count < 0:
                raise Ec2Error("InvalidParameterValue", f"Invalid value '{count}' for the number of addresses")
        if sum(map(bool, given)) > 1:  # botocore's model, CreateNetworkInterfaceRequest
            raise Ec2Error("InvalidParameterCombination", "Addresses and prefixes can't be asked for in one request.")
        if len(self.enis) >= self.eni_quota:
            raise Ec2Error(
                "NetworkInterfaceLimitExceeded", f"The limit of {self.eni_quota} network interfaces is reached"
            )
        self._check_address_count(1 + secondary_count + prefix_count + len(prefixes), None)
        taken = subnet.take_named_prefixes(prefixes) + subnet.take_prefixes(prefix_count)
        try:
            eni = self._new_eni(subnet, 1 + secondary_count, groups, description, tags or {})
        except Ec2Error:
            subnet.give_back_prefixes(taken)
            raise
        eni.prefixes = taken
        self._changed(eni)
        if token:
            self._tokens[token] = (request, eni)
        await self._cabling.deliver(eni)
        return eni

    async def attach_eni(self, eni_id: str, instance_id: str, device_index: int, network_card: int = 0) -> Attachment:
        """AttachNetworkInterface: answered at once, done after `Delays.attach`. Each network card has its own limit
        and its own device indexes."""
        eni = self._eni(eni_id)
        instance = self.described_instances().get(instance_id)
        if instance.state != "running":
            raise Ec2Error("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
        if not 0 <= network_card < instance.cards:
            raise Ec2Error("InvalidParameterValue", f"Network card {network_card} does not exist.")
        if eni.attachment:
            raise Ec2Error("InvalidNetworkInterface.InUse", f"Interface: [{eni_id}] in use.")
        if device_index < 0:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{device_index}' for deviceIndex.")
        there = [other.attachment for other in self.enis_of(instance_id) if other.attachment]
        indexes = [other.device_index for other in there if other.network_card == network_card]
        if device_index in indexes:
            raise Ec2Error(
                "InvalidParameterValue",
                f"Instance '{instance_id}' already has an interface attached at device index '{device_index}'.",
            )
        if len(indexes) >= instance.limits.max_enis:
            raise Ec2Error(
                "AttachmentLimitExceeded", f"Interface count {len(indexes) + 1} exceeds the limit for {instance.type}"
            )
        self._check_address_count(eni.slots, instance)
        check_prefixes(instance, len(eni.prefixes))
        if eni.subnet.zone != instance.primary.subnet.zone:
            raise Ec2Error(
                "InvalidParameterCombination",
                "You may not attach a network interface to an instance if they are not in the same availability zone",
            )
        attachment = Attachment(new_id("eni-attach"), instance_id, device_index, False, datetime.now(UTC))
        attachment.network_card = network_card
        eni.attachment = attachment
        instance.forced_off.pop(eni_id, None)
        self._changed(eni)
        self._moves.start(eni, lambda: self._finish_attach(eni, attachment))
        return attachment

    async def detach_eni(self, attachment_id: str, *, force: bool = False) -> None:
        """DetachNetworkInterface: answered at once, done after `Delays.detach`.

        `force` takes an attachment in any state, also one that is stuck. The price, as the API's reference says: the
        instance's metadata may go on showing the ENI, and here it does. (That the device index may be lost until the
        instance is stopped is not simulated.)
        """
        eni, attachment = self._attached(attachment_id)
        if attachment.device_index == attachment.network_card == 0:
            raise Ec2Error("OperationNotPermitted", "The network interface at device index 0 cannot be detached.")
        if attachment.status != "attached" and not force:
            raise Ec2Error("IncorrectState", f"The attachment {attachment_id} is in state '{attachment.status}'.")
        if force:
            attachment.unstuck.set()
            if attachment.status != "attaching":  # what metadata has not shown yet it never will
                self.instances.get(attachment.instance_id).forced_off[eni.id] = _metadata(eni, attachment)
        attachment.status = "detaching"
        self._changed(eni)
        self._moves.start(eni, lambda: self._finish_detach(eni, attachment))

    async def delete_eni(self, eni_id: str) -> None:
        """DeleteNetworkInterface."""
        eni = self._eni(eni_id)
        if eni.attachment:
            # The table of error codes allows InvalidNetworkInterface.InUse too; this is the one that EC2 gives
            # (gruntwork-io/cloud-nuke#431, #1132).
            raise Ec2Error("InvalidParameterValue", f"Network interface '{eni_id}' is currently in use.")
        await self._delete(eni)

    def terminate_instances(self, instance_ids: Sequence[str]) -> list[tuple[Instance, str]]:
        """TerminateInstances: all of them or none, with the state in which each was. Answered at once, done after
        `Delays.terminate`: ENIs marked DeleteOnTermination go with the instance, others are left behind, detached.

        What was terminated already stays so: AWS calls it idempotent.
        """
        found = [(instance, instance.state) for instance in self.described_instances().get_all(instance_ids)]
        for instance, state in found:
            if state == "running":
                instance.state = "shutting-down"
                self.keyring.revoke(instance.id)
                self._moves.start(instance.primary, partial(self._finish_terminate, instance))
        return found

    def set_delete_on_termination(self, eni_id: str, attachment_id: str, value: bool) -> None:
        """ModifyNetworkInterfaceAttribute, Attachment."""
        eni, attachment = self._attached(attachment_id)
        if eni is not self._eni(eni_id):
            raise Ec2Error("InvalidAttachmentID.NotFound", f"{attachment_id} is no attachment of {eni_id}")
        attachment.delete_on_termination = value
        self._changed(eni)

    def set_groups(self, eni_id: str, group_ids: Sequence[str]) -> None:
        """ModifyNetworkInterfaceAttribute, Groups."""
        eni = self._eni(eni_id)
        eni.groups = tuple(self.groups.get_all(group_ids))
        self._changed(eni)

    def tag(self, eni_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        """CreateTags: adds and overwrites."""
        enis = [self._eni(eni.id) for eni in self.enis.get_all(eni_ids)]
        for eni in enis:
            check_tags(eni.tags, tags)
        for eni in enis:
            eni.tags |= tags

    # Questions

    def enis_of(self, instance_id: str) -> list[Eni]:
        """All that hold a place on the instance, whatever the state of their attachment."""
        return [eni for eni in self.enis if eni.attachment and eni.attachment.instance_id == instance_id]

    def attachments(self) -> Registry[tuple[Eni, Attachment]]:
        """Each by its id, with its ENI."""
        attachments: Registry[tuple[Eni, Attachment]] = Registry("eni-attach", "attachment", "InvalidAttachmentID")
        for eni in self.enis:
            if eni.attachment:
                attachments.add(eni.attachment.id, (eni, eni.attachment))
        return attachments

    def instance_at(self, address: str) -> Instance | None:
        """The running instance that has this private address, on whichever of its ENIs."""
        holder = next((eni.attachment for eni in self.enis if eni.attachment and address in eni.delivered), None)
        instance = self.instances.get(holder.instance_id) if holder else None
        return instance if instance and instance.state == "running" else None

    def described(self) -> Registry[Eni]:
        """The ENIs as Describe calls see them."""
        return self.sight.described(self.enis, time.monotonic())

    def described_instances(self) -> Registry[Instance]:
        """Those that EC2 still knows: what was terminated is shown for a while."""
        since = time.monotonic() - self.delays.forget
        return self.instances.of((one.id, one) for one in self.instances if one.ended > since)

    # What tests do

    async def terminate(self, instance_id: str) -> None:
        """End an instance, and wait until it is `terminated`."""
        [(instance, _)] = self.terminate_instances([instance_id])
        await self.settle([instance.primary])

    def stick(self, attachment_id: str, seconds: float | None) -> None:
        """Let an attachment stay attaching or detaching, for `seconds` longer or (None) until `unstick`.

        It has an effect only if its move has not begun: before anything was awaited since the call that started it.
        """
        _, attachment = self._attached(attachment_id)
        attachment.unstuck.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, attachment.unstuck.set)

    def unstick(self, enis: Iterable[Eni] | None = None) -> None:
        """Of these ENIs, or of all."""
        for eni in self.enis if enis is None else enis:
            if eni.attachment:
                eni.attachment.unstuck.set()

    async def settle(self, enis: Iterable[Eni] | None = None) -> None:
        """Wait until nothing is attaching or detaching (of these ENIs, or of all), but for what is stuck."""
        await self._moves.settle(enis)

    async def close(self) -> None:
        """Stop what is under way, where it is."""
        await self._moves.close()

    # Inside

    def _eni(self, eni_id: str) -> Eni:
        """The ENI that a call is going to change. Raises `Ec2Error`, also when its id is not known everywhere yet."""
        eni = self.enis.get(eni_id)
        if not self.sight.knows(eni, time.monotonic()):
            raise self.enis.not_found([eni_id])
        return eni

    def _new_eni(
        self, subnet: Subnet, count: int, groups: Sequence[SecurityGroup], description: str, tags: Mapping[str, str]
    ) -> Eni:
        """It has not been seen by anybody yet: `_changed` has to follow."""
        mac = ":".join(["06", *(f"{byte:02x}" for byte in secrets.token_bytes(5))])
        eni = Eni(new_id("eni"), subnet, mac, subnet.take(count), tuple(groups), description, dict(tags))
        self.enis.add(eni.id, eni)
        return eni

    async def _delete(self, eni: Eni) -> None:
        self.sight.bury(eni, time.monotonic())
        self.enis.remove(eni.id)
        addresses, eni.addresses = eni.addresses, []
        prefixes, eni.prefixes = eni.prefixes, []
        await self._cabling.deliver(eni)
        eni.subnet.give_back(addresses)
        eni.subnet.give_back_prefixes(prefixes)

    def _attached(self, attachment_id: str) -> tuple[Eni, Attachment]:
        return self.attachments().get(attachment_id)

    async def _finish_attach(self, eni: Eni, attachment: Attachment) -> None:
        await asyncio.sleep(self.delays.attach)
        await attachment.unstuck.wait()
        if attachment.status != "attaching":
            return  # detached by force meanwhile
        attachment.status = "attached"
        self._changed(eni)
        await asyncio.sleep(self.delays.link)
        await self._cabling.plug(eni, attachment)

    async def _finish_detach(self, eni: Eni, attachment: Attachment) -> None:
        await asyncio.sleep(self.delays.detach)
        await attachment.unstuck.wait()
        if eni.attachment is not attachment:
            return  # detached by force meanwhile
        await self._cabling.unplug(eni)
        eni.attachment = None
        self._changed(eni)
        self._publish(self.instances.get(attachment.instance_id))

    async def _finish_terminate(self, instance: Instance) -> None:
        await asyncio.sleep(self.delays.terminate)
        enis = self.enis_of(instance.id)
        self.unstick(enis)
        await self.settle(eni for eni in enis if eni is not instance.primary)
        for eni in enis:
            attachment = eni.attachment
            if attachment is None or attachment.instance_id != instance.id:
                continue  # its detaching was under way
            await self._cabling.unplug(eni)
            eni.attachment = None
            self._changed(eni)
            if attachment.delete_on_termination:
                await self._delete(eni)
        instance.state, instance.ended = "terminated", time.monotonic()
        self._publish(instance)

    def _changed(self, eni: Eni) -> None:
        """Let Describe calls and instance metadata know, which show it later."""
        self.sight.note(eni, time.monotonic())
        if eni.attachment:
            self._publish(self.instances.get(eni.attachment.instance_id))

    def _publish(self, instance: Instance) -> None:
        """An ENI is in metadata from `attached` until it is gone."""
        shown = {
            eni.id: _metadata(eni, eni.attachment)
            for eni in self.enis_of(instance.id)
            if eni.attachment and eni.attachment.status != "attaching"
        }
        instance.metadata.record(time.monotonic(), tuple((shown | instance.forced_off).values()))


def _metadata(eni: Eni, attachment: Attachment) -> EniMetadata:
    return EniMetadata(
        eni.id, eni.mac, attachment.device_index, tuple(eni.addresses), eni.subnet, eni.groups,
        attachment.network_card, tuple(eni.prefixes),
    )  # fmt: skip
