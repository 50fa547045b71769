"""The rules of EC2 in virtual time: how long each call takes, and how many were made by whom.

A call has two halves. `VirtualEc2.begin` counts it and says how long it takes; when that has passed, the caller
applies it with the method of `Instance` of the same meaning, which changes the state or raises `CloudError`. So
concurrent calls meet the state that they find when they take effect, as in EC2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count
from random import Random

from ipamd.cloud.limits import table
from ipamd.pool.model import CreatedEni, Limits
from ipamd.sim.ec2 import rules
from ipamd.sim.ec2.caller import Caller
from ipamd.sim.ec2.rules import Ec2Rules, Eni, Subnet
from ipamd.sim.virtual.clock import VirtualClock
from ipamd.sim.virtual.meter import Meter

_VPC = "10.0.0.0/8"  # wider than EC2 allows, so that there is a /16 for each subnet


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds. `link`: from the attachment until the instance sees the device. `detach`: from the request, which is
    answered after `modify`, until the ENI can be deleted. `read` goes for every Describe..., `modify` for every other
    change. Each is multiplied by a random factor between 1 - `jitter` and 1 + `jitter`."""

    create: float = 1.0
    attach: float = 2.0
    assign: float = 0.3
    unassign: float = 0.3
    detach: float = 2.0
    delete: float = 0.3
    link: float = 0.5
    modify: float = 0.3
    read: float = 0.1
    jitter: float = 0.0

    def of(self, action: str) -> float:
        """`action` is EC2's name of the call."""
        match action:
            case "CreateNetworkInterface":
                return self.create
            case "AttachNetworkInterface":
                return self.attach
            case "AssignPrivateIpAddresses":
                return self.assign
            case "UnassignPrivateIpAddresses":
                return self.unassign
            case "DeleteNetworkInterface":
                return self.delete
            case _:
                return self.read if action.startswith("Describe") else self.modify


class Instance(Caller):
    """An instance, and what its daemon asks of EC2.

    `meter` counts what it holds beyond the address of the instance itself: secondary addresses, and the primary ones
    of further ENIs, which serve nobody but lie in the subnet all the same.
    """

    def __init__(self, ec2: VirtualEc2, instance: rules.Instance) -> None:
        super().__init__(ec2.rules, instance, ec2.clock)
        self.meter = Meter(ec2.clock, ec2.clock())
        self.calls: Counter[str] = Counter()
        self._ec2 = ec2
        self._links: dict[str, float] = {}  # by ENI, when the instance sees the device

    @property
    def id(self) -> str:
        return self.instance.id

    @property
    def type(self) -> str:
        return self.instance.type

    @property
    def limits(self) -> Limits:
        return self.instance.limits

    @property
    def primary(self) -> Eni:
        return self.instance.primary

    @property
    def subnet(self) -> Subnet:
        return self.instance.primary.subnet

    def link_delay(self, eni_id: str) -> float:
        """Seconds until it sees the ENI's device; 0 when it does already."""
        return max(self._links.get(eni_id, 0.0) - self._ec2.clock(), 0.0)

    def create(self, token: str, subnet_id: str, groups: tuple[str, ...], count: int) -> CreatedEni:
        created = super().create(token, subnet_id, groups, count)
        self._weigh()
        return created

    def attach(self, eni_id: str, device_index: int) -> str:
        attachment_id = super().attach(eni_id, device_index)
        self._links[eni_id] = self._ec2.clock() + self._ec2.vary(self._ec2.latencies.link)
        return attachment_id

    def assign(self, eni_id: str, count: int) -> tuple[str, ...]:
        added = super().assign(eni_id, count)
        self._weigh()
        return added

    def unassign(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        super().unassign(eni_id, addresses)
        self._weigh()

    def detach(self, attachment_id: str) -> Eni:
        """Accepted now, done later."""
        eni = super().detach(attachment_id)
        latencies = self._ec2.latencies
        rest = max(self._ec2.vary(latencies.detach) - latencies.modify, 0.0)
        self._ec2.clock.call_later(rest, lambda: self.rules.end_detach(eni))
        return eni

    def delete(self, eni_id: str) -> None:
        super().delete(eni_id)
        self._weigh()

    def _weigh(self) -> None:
        held = sum(len(eni.addresses) for eni in self.enis()) - 1
        if change := held - self.meter.held:
            self.meter.hold(change)


class VirtualEc2:
    """`random` varies the times and chooses the addresses."""

    def __init__(self, clock: VirtualClock, latencies: Latencies, random: Random) -> None:
        self.clock = clock
        self.latencies = latencies
        numbers = count(1)
        self.rules = Ec2Rules(
            _VPC,
            limits=table(),
            random=Random(random.random()),
            region="virtual",
            ids=lambda kind: f"{kind}-{next(numbers):017x}",
        )
        self.subnets = self.rules.subnets
        self._random = random

    def add_subnet(self, prefix_length: int = 16) -> Subnet:
        """`prefix_length` 16 to 28, as a VPC allows. Raises ValueError for another."""
        if not 16 <= prefix_length <= 28:
            raise ValueError(f"a subnet has /16 to /28, not /{prefix_length}")
        return self.rules.add_subnet(f"10.{len(self.subnets)}.0.0/{prefix_length}")

    def launch(self, instance_type: str, subnet: Subnet) -> Instance:
        """A new instance: its primary ENI with no secondary address. Raises ValueError for an unknown type."""
        if instance_type not in self.rules.limits:
            raise ValueError(f"unknown instance type {instance_type!r}")
        return Instance(self, self.rules.launch("", instance_type, subnet.id, self.clock()))

    def begin(self, instance: Instance, action: str) -> float:
        """Count the call for the instance; returns the seconds until it takes effect and is answered."""
        instance.calls[action] += 1
        return self.vary(self.latencies.of(action))

    def vary(self, seconds: float) -> float:
        jitter = self.latencies.jitter
        return seconds * self._random.uniform(1 - jitter, 1 + jitter) if jitter else seconds
