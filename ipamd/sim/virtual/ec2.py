"""EC2 in virtual time: instances, subnets and ENIs, how long each call takes, and how many were made.

A call has two halves. `begin` counts it and says how long it takes; when that has passed, the caller applies it with
the method of the same meaning, which changes the state or raises `CloudError`. So concurrent calls meet the state
that they find when they take effect, as in EC2.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from itertools import count
from random import Random

from ipamd.cloud.limits import limits_of
from ipamd.cloud.port import CloudError
from ipamd.pool.model import CloudErrorKind, CloudFailure, CreatedEni, Limits, ObservedEni
from ipamd.sim.virtual.clock import VirtualClock
from ipamd.sim.virtual.meter import Meter

_RESERVED = 5  # addresses of each subnet that EC2 keeps: AWS, "Subnet sizing for IPv4"


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


@dataclass(slots=True)
class Subnet:
    """Addresses are handed out in ascending order, then those that came back, longest unused first."""

    id: str
    base: int
    size: int
    _fresh: int = 4
    _returned: deque[str] = field(default_factory=deque)

    @property
    def network(self) -> IPv4Network:
        return IPv4Network((self.base, 33 - self.size.bit_length()))

    @property
    def available(self) -> int:
        return self.size - 1 - self._fresh + len(self._returned)

    def take(self, wanted: int, action: str) -> tuple[str, ...]:
        """All or none."""
        if wanted > self.available:
            message = f"{wanted} addresses wanted, {self.available} left in {self.id}"
            raise _error(CloudErrorKind.SUBNET_FULL, action, "InsufficientFreeAddressesInSubnet", message)
        return tuple(self._next() for _ in range(wanted))

    def give_back(self, addresses: tuple[str, ...]) -> None:
        self._returned.extend(addresses)

    def _next(self) -> str:
        if self._fresh == self.size - 1:
            return self._returned.popleft()
        number = self.base + self._fresh
        self._fresh += 1
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


@dataclass(slots=True, eq=False)
class Eni:
    id: str
    mac: str
    subnet: Subnet
    primary_ip: str
    addresses: dict[str, None]
    instance: Instance
    device_index: int | None = None  # None: not attached
    attachment_id: str = ""
    delete_on_termination: bool = False
    link_at: float = 0.0  # when the instance sees the device
    detaching: bool = False


@dataclass(slots=True, eq=False)
class Instance:
    """`enis` are those that it made, attached or not.

    `meter` counts what it holds beyond the address of the instance itself: secondary addresses, and the primary ones
    of further ENIs, which serve nobody but lie in the subnet all the same.
    """

    id: str
    type: str
    limits: Limits
    subnet: Subnet
    meter: Meter
    calls: Counter[str] = field(default_factory=Counter)
    enis: dict[str, Eni] = field(default_factory=dict)

    @property
    def primary(self) -> Eni:
        return next(eni for eni in self.enis.values() if eni.device_index == 0)


class VirtualEc2:
    def __init__(self, clock: VirtualClock, latencies: Latencies, random: Random) -> None:
        self.latencies = latencies
        self.subnets: dict[str, Subnet] = {}
        self.enis: dict[str, Eni] = {}
        self._attached: dict[str, Eni] = {}
        self._clock = clock
        self._random = random
        self._numbers = count(1)

    def add_subnet(self, prefix_length: int = 16) -> Subnet:
        """`prefix_length` 16 to 28, as a VPC allows. Raises ValueError for another."""
        if not 16 <= prefix_length <= 28:
            raise ValueError(f"a subnet has /16 to /28, not /{prefix_length}")
        number = len(self.subnets)
        subnet = Subnet(f"subnet-{number:017x}", (10 << 24) + (number << 16), 1 << (32 - prefix_length))
        assert subnet.available == subnet.size - _RESERVED
        self.subnets[subnet.id] = subnet
        return subnet

    def launch(self, instance_type: str, subnet: Subnet) -> Instance:
        """A new instance: its primary ENI with no secondary address. Raises ValueError for an unknown type."""
        limits = limits_of(instance_type)
        if limits is None:
            raise ValueError(f"unknown instance type {instance_type!r}")
        instance = Instance(
            f"i-{next(self._numbers):017x}", instance_type, limits, subnet, Meter(self._clock, self._clock())
        )
        eni = self._new_eni(instance, subnet, 0, "RunInstances")
        self._fasten(eni, 0, self._clock())
        eni.delete_on_termination = True
        return instance

    # The first half of a call

    def begin(self, instance: Instance, action: str) -> float:
        """Count the call for the instance; returns the seconds until it takes effect and is answered."""
        instance.calls[action] += 1
        return self._vary(self.latencies.of(action))

    def link_delay(self, eni_id: str) -> float:
        """Seconds until the instance sees the ENI's device; 0 when it does already."""
        return max(self._eni(eni_id, "").link_at - self._clock(), 0.0)

    # The second half

    def create(self, instance: Instance, subnet_id: str, address_count: int) -> CreatedEni:
        action = "CreateNetworkInterface"
        self._check_room(instance, address_count, action)
        eni = self._new_eni(instance, self.subnets[subnet_id], address_count, action)
        instance.meter.hold(1 + address_count)
        return CreatedEni(eni.id, eni.mac, subnet_id, eni.primary_ip, tuple(eni.addresses))

    def attach(self, eni_id: str, device_index: int) -> str:
        """To the instance that made it; returns the id of the attachment."""
        action = "AttachNetworkInterface"
        eni = self._eni(eni_id, action)
        instance = eni.instance
        if eni.device_index is not None:
            raise _error(CloudErrorKind.INCORRECT_STATE, action, "InvalidNetworkInterface.InUse", eni_id)
        taken = [other.device_index for other in instance.enis.values() if other.device_index is not None]
        if device_index in taken:
            message = f"device index {device_index} is taken"
            raise _error(CloudErrorKind.INCORRECT_STATE, action, "InvalidParameterValue", message)
        if len(taken) >= instance.limits.max_enis:
            message = f"{instance.type} takes {instance.limits.max_enis} ENIs"
            raise _error(CloudErrorKind.ATTACHMENT_LIMIT, action, "AttachmentLimitExceeded", message)
        self._fasten(eni, device_index, self._clock() + self._vary(self.latencies.link))
        return eni.attachment_id

    def set_delete_on_termination(self, eni_id: str) -> None:
        self._eni(eni_id, "ModifyNetworkInterfaceAttribute").delete_on_termination = True

    def assign(self, eni_id: str, address_count: int) -> tuple[str, ...]:
        action = "AssignPrivateIpAddresses"
        eni = self._eni(eni_id, action)
        self._check_room(eni.instance, len(eni.addresses) + address_count, action)
        added = eni.subnet.take(address_count, action)
        eni.addresses |= dict.fromkeys(added)
        eni.instance.meter.hold(len(added))
        return added

    def unassign(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        action = "UnassignPrivateIpAddresses"
        eni = self._eni(eni_id, action)
        if not eni.addresses.keys() >= set(addresses):
            message = f"some of {', '.join(addresses)} are not assigned to {eni_id}"
            raise _error(CloudErrorKind.INVALID, action, "InvalidParameterValue", message)
        for address in addresses:
            del eni.addresses[address]
        eni.subnet.give_back(addresses)
        eni.instance.meter.hold(-len(addresses))

    def detach(self, attachment_id: str) -> None:
        """Accepted now, done later."""
        action = "DetachNetworkInterface"
        eni = self._attached.get(attachment_id)
        if eni is None or eni.detaching or eni.device_index == 0:
            raise _error(
                CloudErrorKind.INCORRECT_STATE, action, "IncorrectState", f"{attachment_id} can't be detached"
            )
        eni.detaching = True
        rest = max(self._vary(self.latencies.detach) - self.latencies.modify, 0.0)
        self._clock.call_later(rest, lambda: self._detached(eni))

    def delete(self, eni_id: str) -> None:
        action = "DeleteNetworkInterface"
        eni = self._eni(eni_id, action)
        if eni.device_index is not None:
            raise _error(CloudErrorKind.INCORRECT_STATE, action, "InvalidNetworkInterface.InUse", eni_id)
        del self.enis[eni_id], eni.instance.enis[eni_id]
        eni.subnet.give_back((eni.primary_ip, *eni.addresses))
        eni.instance.meter.hold(-1 - len(eni.addresses))

    def describe(self, eni_id: str) -> ObservedEni | None:
        eni = self.enis.get(eni_id)
        return None if eni is None else _observed(eni)

    def describe_all(self, instance: Instance) -> tuple[ObservedEni, ...]:
        return tuple(_observed(eni) for eni in instance.enis.values())

    # Small parts

    def _vary(self, seconds: float) -> float:
        jitter = self.latencies.jitter
        return seconds * self._random.uniform(1 - jitter, 1 + jitter) if jitter else seconds

    def _new_eni(self, instance: Instance, subnet: Subnet, address_count: int, action: str) -> Eni:
        primary_ip, *addresses = subnet.take(1 + address_count, action)
        number = next(self._numbers)
        mac = ":".join(f"{byte:02x}" for byte in (2, *number.to_bytes(5, "big")))
        eni = Eni(f"eni-{number:017x}", mac, subnet, primary_ip, dict.fromkeys(addresses), instance)
        self.enis[eni.id] = instance.enis[eni.id] = eni
        return eni

    def _fasten(self, eni: Eni, device_index: int, link_at: float) -> None:
        eni.device_index, eni.link_at = device_index, link_at
        eni.attachment_id = f"eni-attach-{next(self._numbers):017x}"
        self._attached[eni.attachment_id] = eni

    def _detached(self, eni: Eni) -> None:
        del self._attached[eni.attachment_id]
        eni.device_index, eni.attachment_id, eni.detaching = None, "", False

    def _eni(self, eni_id: str, action: str) -> Eni:
        eni = self.enis.get(eni_id)
        if eni is None:
            raise _error(CloudErrorKind.NOT_FOUND, action, "InvalidNetworkInterfaceID.NotFound", eni_id)
        return eni

    @staticmethod
    def _check_room(instance: Instance, addresses: int, action: str) -> None:
        most = instance.limits.secondary_per_eni
        if addresses > most:
            message = f"an ENI of {instance.type} takes {most} secondary addresses, not {addresses}"
            raise _error(CloudErrorKind.ENI_ADDRESS_LIMIT, action, "PrivateIpAddressLimitExceeded", message)


def _observed(eni: Eni) -> ObservedEni:
    return ObservedEni(
        eni.id,
        eni.mac,
        eni.subnet.id,
        eni.primary_ip,
        tuple(eni.addresses),
        eni.device_index,
        eni.attachment_id,
        ("detaching" if eni.detaching else "attached") if eni.attachment_id else "",
        owned=eni.device_index != 0,
        primary=eni.device_index == 0,
        delete_on_termination=eni.delete_on_termination,
    )


def _error(kind: CloudErrorKind, action: str, code: str, message: str) -> CloudError:
    return CloudError(CloudFailure(kind, action, code, message))
