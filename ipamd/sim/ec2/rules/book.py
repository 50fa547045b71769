"""The state of one VPC, and what each EC2 call does to it. Where a rule is AWS's and not obvious, its source stands
beside it.

Each method checks everything first and then takes effect at once, so a call that is refused has changed nothing.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from ipamd.cloud.limits import network_cards
from ipamd.pool.model import Limits
from ipamd.sim.ec2.rules.errors import Ec2Error
from ipamd.sim.ec2.rules.registry import Registry
from ipamd.sim.ec2.rules.resources import (
    NOTHING,
    Ask,
    Attachment,
    Eni,
    Instance,
    SecurityGroup,
    check_tags,
)
from ipamd.sim.ec2.rules.subnet import Subnet

# Families that are not of the Nitro System, except their bare metal (DescribeInstanceTypes, Hypervisor).
XEN: Final = re.compile(r"(c[134]|d2|f1|h1|i[23]|m[1-4]|p3|r[34]|t[12]|x1e?)\.(?!metal)")


class Ec2Rules:
    """One account, one region, one VPC. Methods that stand for an EC2 call raise `Ec2Error`.

    `limits` maps instance types to what they allow. `random` chooses addresses. `ids` makes the id of a new resource
    of a kind: for "eni" that prefix, a hyphen and 17 hexadecimal digits. `eni_quota` is the account's "Network
    interfaces per Region". A terminated instance is known for `forget` more seconds: an hour, as a rule (AWS,
    "Terminate Amazon EC2 instances").
    """

    def __init__(
        self,
        vpc_cidr: str,
        *,
        limits: Mapping[str, Limits],
        random: Random,
        ids: Callable[[str], str],
        region: str,
        eni_quota: int = 5000,
        forget: float = 3600.0,
    ) -> None:
        self.vpc_id = ids("vpc")
        self.vpc_cidr = ipaddress.IPv4Network(vpc_cidr)
        self.region = region
        self.limits = limits
        self.eni_quota = eni_quota
        self.forget = forget
        self.subnets: Registry[Subnet] = Registry("subnet", "subnet", "InvalidSubnetID")
        # EC2 has two codes for this. CreateNetworkInterface is on record with this one (hashicorp/terraform#3372),
        # DescribeSecurityGroups and RunInstances with InvalidGroup.NotFound.
        self.groups: Registry[SecurityGroup] = Registry("sg", "securityGroup", "InvalidSecurityGroupID")
        self.enis: Registry[Eni] = Registry("eni", "networkInterface", "InvalidNetworkInterfaceID")
        self.attached: Registry[Eni] = Registry("eni-attach", "attachment", "InvalidAttachmentID")
        self.instances: Registry[Instance] = Registry("i", "instance", "InvalidInstanceID")
        self._random = random
        self._ids = ids
        self._tokens: dict[str, tuple[object, Eni, Eni]] = {}
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
        subnet = Subnet(self._ids("subnet"), cidr, zone or f"{self.region}a", self._random)
        self.subnets.add(subnet.id, subnet)
        return subnet

    def add_security_group(self, name: str) -> SecurityGroup:
        group = SecurityGroup(self._ids("sg"), name)
        self.groups.add(group.id, group)
        return group

    def launch(self, name: str, instance_type: str, subnet_id: str, now: float, *, instance_id: str = "") -> Instance:
        """RunInstances: a running instance with its primary ENI. `instance_id` if it must be known before."""
        subnet = self.subnets.get(subnet_id)
        limits = self.limits.get(instance_type)
        if limits is None:
            raise Ec2Error("InvalidInstanceType", f"The instance type '{instance_type}' does not exist")
        # Made before the instance booted: by now everybody knows it, and nobody knew it unattached.
        eni = self._new_eni(subnet, 1, [self.default_group], -math.inf)
        cards = network_cards(instance_type)
        instance = Instance(instance_id or self._ids("i"), name, instance_type, limits, eni, now, cards)
        self.instances.add(instance.id, instance)
        attachment = Attachment(self._ids("eni-attach"), instance.id, 0, True, now, "attached")
        self._attach(eni, instance, attachment)
        return instance

    # ENIs

    def create(
        self,
        subnet_id: str,
        now: float,
        ask: Ask = NOTHING,
        *,
        group_ids: Sequence[str] = (),
        description: str = "",
        tags: Mapping[str, str] | None = None,
        token: str = "",
    ) -> Eni:
        """CreateNetworkInterface. The same `token` and parameters give the same ENI, as it was, when it is gone: AWS,
        "Ensuring idempotency in Amazon EC2 API requests"."""
        request = (subnet_id, ask, tuple(group_ids), description, dict(tags or {}))
        if token in self._tokens:
            earlier, eni, first = self._tokens[token]
            if earlier != request:
                raise Ec2Error(
                    "IdempotentParameterMismatch", f"The client token {token} was used with different parameters."
                )
            return eni if eni.id in self.enis else first
        subnet = self.subnets.get(subnet_id)
        groups = self.groups.get_all(group_ids) or [self.default_group]
        check_tags({}, tags or {})
        ask.check()
        if len(self.enis) >= self.eni_quota:
            raise Ec2Error(
                "NetworkInterfaceLimitExceeded", f"The limit of {self.eni_quota} network interfaces is reached"
            )
        self._check_slots(1 + ask.slots, None)
        prefixes = subnet.take_named_prefixes(ask.named_prefixes) + subnet.take_prefixes(ask.prefixes)
        try:
            eni = self._new_eni(subnet, 1 + ask.addresses, groups, now)
        except Ec2Error:
            subnet.give_back_prefixes(prefixes)
            raise
        eni.prefixes, eni.description, eni.tags = prefixes, description, dict(tags or {})
        if token:
            self._tokens[token] = (request, eni, replace(eni, addresses=[*eni.addresses], prefixes=[*prefixes]))
        return eni

    def delete(self, eni_id: str) -> Eni:
        """DeleteNetworkInterface. What it had is free again, and it has nothing any more."""
        eni = self.enis.get(eni_id)
        if eni.attachment:
            # The table of error codes allows InvalidNetworkInterface.InUse too; this is the one that EC2 gives
            # (gruntwork-io/cloud-nuke#431, #1132).
            raise Ec2Error("InvalidParameterValue", f"Network interface '{eni_id}' is currently in use.")
        self.enis.remove(eni_id)
        eni.subnet.give_back(eni.addresses)
        eni.subnet.give_back_prefixes(eni.prefixes)
        eni.addresses, eni.prefixes = [], []
        return eni

    def set_delete_on_termination(self, eni_id: str, attachment_id: str, value: bool) -> Eni:
        """ModifyNetworkInterfaceAttribute, Attachment."""
        eni, attachment = self.attachment(attachment_id)
        if eni is not self.enis.get(eni_id):
            raise Ec2Error("InvalidAttachmentID.NotFound", f"{attachment_id} is no attachment of {eni_id}")
        attachment.delete_on_termination = value
        return eni

    def set_groups(self, eni_id: str, group_ids: Sequence[str]) -> Eni:
        """ModifyNetworkInterfaceAttribute, Groups."""
        eni = self.enis.get(eni_id)
        eni.groups = tuple(self.groups.get_all(group_ids))
        return eni

    def tag(self, eni_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        """CreateTags: adds and overwrites."""
        enis = self.enis.get_all(eni_ids)
        for eni in enis:
            check_tags(eni.tags, tags)
        for eni in enis:
            eni.tags |= tags

    # Addresses

    def assign(self, eni_id: str, ask: Ask) -> tuple[str, ...]:
        """AssignPrivateIpAddresses: the new addresses, or the new prefixes."""
        eni = self.enis.get(eni_id)
        ask.check()
        if ask.slots < 1:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{ask.slots}' for the number of addresses.")
        instance = self.instances.get(eni.attachment.instance_id) if eni.attachment else None
        self._check_slots(eni.slots + ask.slots, instance)
        if instance is not None:
            _check_prefixes(instance, ask.blocks)
        if ask.addresses:
            addresses = eni.subnet.take(ask.addresses)
            eni.addresses += addresses
            return tuple(addresses)
        prefixes = eni.subnet.take_named_prefixes(ask.named_prefixes) + eni.subnet.take_prefixes(ask.prefixes)
        eni.prefixes += prefixes
        return tuple(prefixes)

    def unassign(self, eni_id: str, addresses: Sequence[str] = (), prefixes: Sequence[str] = ()) -> Eni:
        """UnassignPrivateIpAddresses: all of them or none. A prefix goes as a whole."""
        eni = self.enis.get(eni_id)
        wrong = [address for address in addresses if address not in eni.addresses[1:]]
        wrong += [prefix for prefix in prefixes if prefix not in eni.prefixes]
        if wrong:
            raise Ec2Error(
                "InvalidParameterValue", f"No secondary addresses of interface {eni_id}: [{', '.join(wrong)}]"
            )
        eni.addresses = [address for address in eni.addresses if address not in addresses]
        eni.prefixes = [prefix for prefix in eni.prefixes if prefix not in prefixes]
        eni.subnet.give_back(dict.fromkeys(addresses))
        eni.subnet.give_back_prefixes(dict.fromkeys(prefixes))
        return eni

    # Attachments

    def attachment(self, attachment_id: str) -> tuple[Eni, Attachment]:
        eni = self.attached.get(attachment_id)
        assert eni.attachment is not None
        return eni, eni.attachment

    def attach(self, eni_id: str, instance_id: str, device_index: int, now: float, *, card: int = 0) -> Attachment:
        """AttachNetworkInterface begins: the place on the instance is taken. `end_attach` ends it.

        Each network card has its own limit and its own device indexes.
        """
        eni = self.enis.get(eni_id)
        instance = self.instances.get(instance_id)
        if not self._knows(instance, now):
            raise self.instances.not_found([instance_id])
        if instance.state != "running":
            raise Ec2Error("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
        if not 0 <= card < instance.cards:
            raise Ec2Error("InvalidParameterValue", f"Network card {card} does not exist.")
        if eni.attachment:
            raise Ec2Error("InvalidNetworkInterface.InUse", f"Interface: [{eni_id}] in use.")
        self._check_place(instance, device_index, card)
        self._check_slots(eni.slots, instance)
        _check_prefixes(instance, len(eni.prefixes))
        if eni.subnet.zone != instance.primary.subnet.zone:
            raise Ec2Error(
                "InvalidParameterCombination",
                "You may not attach a network interface to an instance if they are not in the same availability zone",
            )
        attachment = Attachment(self._ids("eni-attach"), instance_id, device_index, False, now, network_card=card)
        self._attach(eni, instance, attachment)
        return attachment

    def end_attach(self, eni: Eni, attachment: Attachment) -> bool:
        """Whether the ENI is attached now; it is not when a detachment by force came before."""
        if eni.attachment is attachment and attachment.status == "attaching":
            attachment.status = "attached"
            return True
        return False

    def detach(self, attachment_id: str, *, force: bool = False) -> Eni:
        """DetachNetworkInterface begins; `end_detach` ends it. `force` takes an attachment in any state.

        (By the API's reference the device index may be lost until the instance is stopped. That is not simulated.)
        """
        eni, attachment = self.attachment(attachment_id)
        if attachment.primary:
            raise Ec2Error("OperationNotPermitted", "The network interface at device index 0 cannot be detached.")
        if attachment.status != "attached" and not force:
            raise Ec2Error("IncorrectState", f"The attachment {attachment_id} is in state '{attachment.status}'.")
        attachment.status = "detaching"
        return eni

    def end_detach(self, eni: Eni) -> None:
        """The ENI is on no instance any more. Its attachment must be there."""
        attachment = eni.attachment
        assert attachment is not None
        del self.instances.get(attachment.instance_id).enis[eni.id]
        self.attached.remove(attachment.id)
        eni.attachment = None

    # Instances

    def terminate(self, instance_ids: Sequence[str], now: float) -> list[tuple[Instance, str]]:
        """TerminateInstances begins: all of them or none, with the state in which each was. `end_terminate` ends it.

        What was terminated already stays so: AWS calls it idempotent.
        """
        found = [(instance, instance.state) for instance in self.known_instances(now).get_all(instance_ids)]
        for instance, state in found:
            if state == "running":
                instance.state = "shutting-down"
        return found

    def end_terminate(self, instance: Instance, now: float) -> None:
        """Its ENIs must be off it: those marked DeleteOnTermination are deleted with it, others stay."""
        assert not instance.enis
        instance.state, instance.ended = "terminated", now

    def known_instances(self, now: float) -> Registry[Instance]:
        """Those that EC2 still knows: what was terminated is shown for a while."""
        return self.instances.of((one.id, one) for one in self.instances if self._knows(one, now))

    # Inside

    def _knows(self, instance: Instance, now: float) -> bool:
        return instance.ended > now - self.forget

    def _new_eni(self, subnet: Subnet, count: int, groups: Sequence[SecurityGroup], now: float) -> Eni:
        addresses = subnet.take(count)
        id = self._ids("eni")
        mac = ":".join(["06", *re.findall("..", id[-10:])])
        eni = Eni(id, subnet, mac, addresses, tuple(groups), now)
        self.enis.add(id, eni)
        return eni

    def _attach(self, eni: Eni, instance: Instance, attachment: Attachment) -> None:
        eni.attachment = attachment
        instance.enis[eni.id] = eni
        self.attached.add(attachment.id, eni)

    @staticmethod
    def _check_place(instance: Instance, device_index: int, card: int) -> None:
        if device_index < 0:
            raise Ec2Error("InvalidParameterValue", f"Invalid value '{device_index}' for deviceIndex.")
        there = [eni.attachment for eni in instance.enis.values() if eni.attachment]
        indexes = [other.device_index for other in there if other.network_card == card]
        if device_index in indexes:
            raise Ec2Error(
                "InvalidParameterValue",
                f"Instance '{instance.id}' already has an interface attached at device index '{device_index}'.",
            )
        if len(indexes) >= instance.limits.max_enis:
            raise Ec2Error(
                "AttachmentLimitExceeded", f"Interface count {len(indexes) + 1} exceeds the limit for {instance.type}"
            )

    def _check_slots(self, slots: int, instance: Instance | None) -> None:
        """Before it is attached, an ENI is limited by what the largest instance takes."""
        allowed = [instance.limits] if instance else self.limits.values()
        if not any(slots <= limits.addresses_per_eni for limits in allowed):
            raise Ec2Error("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")


def _check_prefixes(instance: Instance, count: int) -> None:
    """AWS, "Prefix delegation for Amazon EC2 network interfaces": only on instances of the Nitro System. The code is
    not published."""
    if count and XEN.match(instance.type):
        raise Ec2Error("UnsupportedOperation", f"Prefixes are not supported for instance type {instance.type}")
