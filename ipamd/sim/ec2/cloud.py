"""The rules of EC2 in real time, with packets: how long a call takes, what is seen of its effect how late, and what
the links and the metadata of the instances learn of it.

What a call does is decided by `Ec2Rules`. A call first takes its time, and then is checked and takes effect at once,
with nothing in between: a second call sees what the first one did. Attaching, detaching and terminating go on after
the call was answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Final

from ipamd.pool.model import Limits
from ipamd.sim.ec2.cabling import Cabling
from ipamd.sim.ec2.consistency import Lags, Sight
from ipamd.sim.ec2.credentials import Keyring
from ipamd.sim.ec2.metadata import EniMetadata, Metadata
from ipamd.sim.ec2.moves import Moves
from ipamd.sim.ec2.rules import NOTHING, Ask, Attachment, Ec2Rules, Eni, Instance, Registry, SecurityGroup, Subnet
from ipamd.sim.wiring import NoWiring, Wiring

ACCOUNT: Final = "123456789012"


@dataclass(frozen=True, slots=True)
class Delays:
    """How long the cloud takes, in seconds.

    `create` and `assign` until the call is answered; `attach` and `detach` until the attachment is `attached` or
    gone; `link` from then until the device is on the node; `imds_lag` is how far metadata is behind EC2.
    `terminate` until an instance that shuts down is `terminated`, `forget` from then until EC2 does not know it any
    more: an hour, as a rule (AWS, "Terminate Amazon EC2 instances").
    """

    create: float = 0.1
    attach: float = 0.5
    detach: float = 0.5
    assign: float = 0.05
    link: float = 0.1
    imds_lag: float = 1.0
    terminate: float = 0.5
    forget: float = 3600.0


def new_id(prefix: str) -> str:
    """A resource id as EC2 makes them: prefix, hyphen, 17 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(9)[:17]}"


class SimulatedCloud:
    """One account, one region, one VPC. Methods that stand for an EC2 call raise `Ec2Error`.

    `limits` maps instance types to what they allow. With the same `seed` the same calls get the same addresses.
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
        seed: int = 0,
    ) -> None:
        self.delays = delays or Delays()
        self.rules = Ec2Rules(
            vpc_cidr, limits=limits, random=Random(seed), ids=new_id, region=region, forget=self.delays.forget
        )
        self.enis: Registry[Eni] = self.rules.enis
        self.subnets: Registry[Subnet] = self.rules.subnets
        self.instances: Registry[Instance] = self.rules.instances
        self.further_cidrs: list[ipaddress.IPv4Network] = []  # which the VPC has got since
        self.keyring = Keyring()
        self.sight = Sight(lags or Lags())
        self._lead = time.time() - time.monotonic()
        self._metadata: dict[str, Metadata] = {}  # by the instance's id
        self._cabling = Cabling(wiring or NoWiring())
        self._moves = Moves()

    def now(self) -> float:
        """Seconds since the epoch, by a clock that only goes forward."""
        return time.monotonic() + self._lead

    # What an operator sets up

    def add_subnet(self, cidr: str, zone: str = "") -> Subnet:
        """`zone` is an availability zone's name (default: the region's first). Raises ValueError."""
        return self.rules.add_subnet(cidr, zone)

    def add_security_group(self, name: str) -> SecurityGroup:
        return self.rules.add_security_group(name)

    async def add_instance(self, name: str, instance_type: str, subnet_id: str, *, instance_id: str = "") -> Instance:
        """Start an instance with its primary ENI, plugged. `instance_id` (see `new_id`) if it must be known before.

        Raises `Ec2Error`.
        """
        instance = self.rules.launch(name, instance_type, subnet_id, self.now(), instance_id=instance_id)
        self._metadata[instance.id] = Metadata(self.delays.imds_lag)
        eni = instance.primary
        self._changed(eni)
        if eni.attachment:
            await self._cabling.plug(eni, eni.attachment)
        return instance

    # EC2 calls

    async def create_eni(
        self,
        subnet_id: str,
        ask: Ask = NOTHING,
        *,
        group_ids: Sequence[str] = (),
        description: str = "",
        tags: Mapping[str, str] | None = None,
        token: str = "",
    ) -> Eni:
        """CreateNetworkInterface."""
        await asyncio.sleep(self.delays.create)
        count = len(self.enis)
        eni = self.rules.create(
            subnet_id,
            self.now(),
            ask,
            group_ids=group_ids,
            description=description,
            tags=tags,
            token=token,
        )
        if len(self.enis) > count:  # not one of an earlier call with this token
            await self._readdressed(eni)
        return eni

    async def assign(self, eni_id: str, ask: Ask) -> tuple[str, ...]:
        """AssignPrivateIpAddresses: the new addresses or prefixes."""
        await asyncio.sleep(self.delays.assign)
        self._check_known(eni_id)
        new = self.rules.assign(eni_id, ask)
        await self._readdressed(self.enis.get(eni_id))
        return new

    async def unassign(self, eni_id: str, addresses: Sequence[str] = (), prefixes: Sequence[str] = ()) -> None:
        """UnassignPrivateIpAddresses."""
        await asyncio.sleep(self.delays.assign)
        self._check_known(eni_id)
        await self._readdressed(self.rules.unassign(eni_id, addresses, prefixes))

    def attach_eni(self, eni_id: str, instance_id: str, device_index: int, network_card: int = 0) -> Attachment:
        """AttachNetworkInterface: answered at once, done after `Delays.attach`."""
        self._check_known(eni_id)
        attachment = self.rules.attach(eni_id, instance_id, device_index, self.now(), card=network_card)
        eni = self.enis.get(eni_id)
        self._metadata[instance_id].forced_off.pop(eni_id, None)
        self._changed(eni)
        self._moves.start(eni, lambda: self._finish_attach(eni, attachment))
        return attachment

    def detach_eni(self, attachment_id: str, *, force: bool = False) -> None:
        """DetachNetworkInterface: answered at once, done after `Delays.detach`.

        `force` takes an attachment that is stuck. The price, as the API's reference says: the instance's metadata may
        go on showing the ENI, and here it does.
        """
        eni, attachment = self.rules.attachment(attachment_id)
        shown = attachment.status != "attaching"  # what metadata has not shown yet it never will
        self.rules.detach(attachment_id, force=force)
        if force:
            self._moves.unstick(attachment_id)
            if shown:
                self._metadata[attachment.instance_id].forced_off[eni.id] = EniMetadata.of(eni, attachment)
        self._changed(eni)
        self._moves.start(eni, lambda: self._finish_detach(eni, attachment))

    async def delete_eni(self, eni_id: str) -> None:
        """DeleteNetworkInterface."""
        self._check_known(eni_id)
        await self._delete(self.enis.get(eni_id))

    def terminate_instances(self, instance_ids: Sequence[str]) -> list[tuple[Instance, str]]:
        """TerminateInstances, with the state in which each was. Answered at once, done after `Delays.terminate`:
        ENIs marked DeleteOnTermination go with the instance, others are left behind, detached."""
        found = self.rules.terminate(instance_ids, self.now())
        for instance, state in found:
            if state == "running":
                self.keyring.revoke(instance.id)
                self._moves.start(instance.primary, partial(self._finish_terminate, instance))
        return found

    def set_delete_on_termination(self, eni_id: str, attachment_id: str, value: bool) -> None:
        """ModifyNetworkInterfaceAttribute, Attachment."""
        self._check_known(eni_id)
        self._changed(self.rules.set_delete_on_termination(eni_id, attachment_id, value))

    def set_groups(self, eni_id: str, group_ids: Sequence[str]) -> None:
        """ModifyNetworkInterfaceAttribute, Groups."""
        self._check_known(eni_id)
        self._changed(self.rules.set_groups(eni_id, group_ids))

    def tag(self, eni_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        """CreateTags."""
        for eni in self.enis.get_all(eni_ids):
            self._check_known(eni.id)
        self.rules.tag(eni_ids, tags)

    # Questions

    def instance_at(self, address: str) -> Instance | None:
        """The running instance that has this private address, on whichever of its ENIs."""
        holder = next((eni.attachment for eni in self.enis if eni.attachment and address in eni.delivered), None)
        instance = self.instances.get(holder.instance_id) if holder else None
        return instance if instance and instance.state == "running" else None

    def described(self) -> Registry[Eni]:
        """The ENIs as Describe calls see them."""
        return self.sight.described(self.enis, self.now())

    def described_instances(self) -> Registry[Instance]:
        """Those that EC2 still knows."""
        return self.rules.known_instances(self.now())

    def metadata(self, instance: Instance) -> tuple[EniMetadata, ...]:
        """The ENIs that the instance's metadata show."""
        return self._metadata[instance.id].read(self.now())

    # What tests do

    async def terminate(self, instance_id: str) -> None:
        """End an instance, and wait until it is `terminated`."""
        [(instance, _)] = self.terminate_instances([instance_id])
        await self.settle([instance.primary])

    def stick(self, attachment_id: str, seconds: float | None) -> None:
        """Let an attachment stay attaching or detaching, for `seconds` longer or (None) until `unstick`.

        It has an effect only if its move has not begun: before anything was awaited since the call that started it.
        """
        _, attachment = self.rules.attachment(attachment_id)
        self._moves.stick(attachment)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self._moves.unstick, attachment_id)

    def unstick(self, enis: Iterable[Eni] | None = None) -> None:
        """Of these ENIs, or of all."""
        for eni in self.enis if enis is None else enis:
            if eni.attachment:
                self._moves.unstick(eni.attachment.id)

    async def settle(self, enis: Iterable[Eni] | None = None) -> None:
        """Wait until nothing is attaching or detaching (of these ENIs, or of all), except what is stuck."""
        await self._moves.settle(enis)

    async def close(self) -> None:
        """Stop what is under way, where it is."""
        await self._moves.close()

    # Inside

    def _check_known(self, eni_id: str) -> None:
        """Before a call changes an ENI. Raises `Ec2Error`, also when its id is not known everywhere yet."""
        if not self.sight.knows(self.enis.get(eni_id), self.now()):
            raise self.enis.not_found([eni_id])

    async def _readdressed(self, eni: Eni) -> None:
        self._changed(eni)
        await self._cabling.deliver(eni)

    async def _delete(self, eni: Eni) -> None:
        # `Cabling` says everything in the order in which it became true, so the next holder of one of the addresses
        # gets its packets after this one has stopped to.
        last = replace(eni)
        self.rules.delete(eni.id)
        self.sight.bury(last, self.now())
        await self._cabling.deliver(eni)

    async def _finish_attach(self, eni: Eni, attachment: Attachment) -> None:
        await asyncio.sleep(self.delays.attach)
        await self._moves.pass_by(attachment)
        if not self.rules.end_attach(eni, attachment):
            return
        self._changed(eni)
        await asyncio.sleep(self.delays.link)
        await self._cabling.plug(eni, attachment)

    async def _finish_detach(self, eni: Eni, attachment: Attachment) -> None:
        await asyncio.sleep(self.delays.detach)
        await self._moves.pass_by(attachment)
        await self._take_off(eni, attachment)

    async def _take_off(self, eni: Eni, attachment: Attachment) -> None:
        """End the attachment, unless that was done meanwhile: by force, or with the instance."""
        if eni.attachment is attachment:
            await self._cabling.unplug(eni)
        if eni.attachment is not attachment:
            return
        self.rules.end_detach(eni)
        self._changed(eni)
        self._publish(self.instances.get(attachment.instance_id))

    async def _finish_terminate(self, instance: Instance) -> None:
        await asyncio.sleep(self.delays.terminate)
        enis = list(instance.enis.values())
        self.unstick(enis)
        await self.settle(eni for eni in enis if eni is not instance.primary)
        for eni in list(instance.enis.values()):
            attachment = eni.attachment
            if attachment is None or attachment.instance_id != instance.id:
                continue  # its detaching was under way
            await self._take_off(eni, attachment)
            if attachment.delete_on_termination:
                await self._delete(eni)
        self.rules.end_terminate(instance, self.now())
        self._publish(instance)

    def _changed(self, eni: Eni) -> None:
        """Let Describe calls and instance metadata know, which show it later."""
        self.sight.note(eni, self.now())
        if eni.attachment:
            self._publish(self.instances.get(eni.attachment.instance_id))

    def _publish(self, instance: Instance) -> None:
        self._metadata[instance.id].publish(instance.enis, self.now())
