"""A model of the incumbent's address daemon (the AWS VPC CNI's ipamd, v1.23) in virtual time.

For comparison: what a pod waits and an account pays with a loop that polls. Written from a description of that
daemon's behaviour; what it does with pod address mode "secondary IPs" on a node with one network card, no custom
networking, and subnet discovery with the subnets given.

Taken over as it is
- One loop, one thing at a time, each EC2 call awaited: sleep 2.5 s, look after the pool, sleep 2.5 s, reconcile.
- Too low: with WARM_IP_TARGET, `max(WARM_IP - available, MINIMUM_IP - total)` above 0; otherwise available below
  WARM_ENI_TARGET full ENIs. Available is total minus assigned: cooling addresses count as available.
- Growth: one batch on the first ENI with room, in random order; only if none has room, one new ENI, asked with all
  its addresses (WARM_ENI) or the shortage (WARM_IP). Then it is over until the next turn of the loop.
- A refused assignment is repeated at once with one address. A full subnet stops all growth for 120 s.
- Shrinkage, at most every 30 s, only with WARM_IP or MINIMUM_IP: the surplus, from the ENIs in random order, cooling
  or not. One ENI without pods and without cooling addresses, older than 60 s and not needed is given up per turn.
- An ADD takes a random free address; with none it fails at once and wakes nobody. Cooldown 30 s.
- Beside the loop each node looks for leaked ENIs: within its first five minutes, then an hour and up to five minutes
  after each look. One DescribeNetworkInterfaces, as the VPC's ENIs without an instance fit on one page.
- EC2 calls: start 5 (DescribeNetworkInterfaces, CreateTags, DescribeSubnets, ModifyNetworkInterfaceAttribute,
  AssignPrivateIpAddresses: the pool is filled once before pods may come); a new ENI 6; a batch 1; a trimmed ENI 1; an
  ENI given up 3.

Where the description leaves a choice, or the rest is left out, in the incumbent's favour
- IMDS costs nothing and shows an ENI in the moment in which the device is there (it polls with growing pauses).
- Host set-up, checkpoint and gRPC take no time; the API server answers at once and the node is schedulable.
- Deleting an ENI succeeds the first time, 2 s after the detachment was asked for (it usually takes several tries).
- That search finds nothing to delete. No call for security groups after the start.
- Reconciling finds nothing to do: IMDS is never wrong here.
- The loop's first turn comes 2.5 s after the start, so that a burst at the start meets it as early as can be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random

from ipamd.cloud.port import CloudError
from ipamd.pool.model import CloudErrorKind
from ipamd.sim.virtual.clock import Process, VirtualClock
from ipamd.sim.virtual.ec2 import Instance, VirtualEc2

_HALF_TURN = 2.5
_DECREASE_INTERVAL = 30.0
_SUBNET_FULL_PAUSE = 120.0
_ENI_MINIMUM_AGE = 60.0
_DETACH_PAUSE = 2.0
_COOLDOWN = 30.0
_LEAK_SCAN_INTERVAL = 3600.0
_LEAK_SCAN_SPREAD = 300  # whole seconds: 0 to 299

_Steps = Generator[float, None, bool]  # whether the pool got more


@dataclass(frozen=True, slots=True)
class IncumbentTargets:
    """Its environment variables by the same names; `warm_eni` counts only while both others are 0."""

    warm_eni: int = 1
    warm_ip: int = 0
    minimum_ip: int = 0

    @property
    def by_address(self) -> bool:
        return self.warm_ip > 0 or self.minimum_ip > 0


@dataclass(slots=True, eq=False)
class _Eni:
    id: str
    primary: bool
    since: float
    free: list[str] = field(default_factory=list)
    cooling: deque[tuple[float, str]] = field(default_factory=deque)  # (end, address), the first to end first
    assigned: int = 0

    @property
    def total(self) -> int:
        return len(self.free) + len(self.cooling) + self.assigned

    @property
    def available(self) -> int:
        return len(self.free) + len(self.cooling)


class IncumbentNode:
    def __init__(
        self,
        clock: VirtualClock,
        ec2: VirtualEc2,
        instance: Instance,
        targets: IncumbentTargets,
        random: Random,
        subnets: tuple[str, ...] = (),
    ) -> None:
        self.instance = instance
        self._clock = clock
        self._ec2 = ec2
        self._targets = targets
        self._random = random
        self._subnets = subnets or (instance.subnet.id,)
        self._per_eni = instance.limits.secondary_per_eni
        # What the node reports to Kubernetes; the two more are for pods with the host's network.
        self._max_pods = instance.limits.max_pods + 2
        self._enis: list[_Eni] = []
        self._held: dict[str, tuple[_Eni, str]] = {}
        self._last_decrease = clock()
        self._growth_paused_until = 0.0

    # As a node

    def start(self, ready: Callable[[], None]) -> None:
        self._clock.spawn(self._run(ready))
        self._clock.spawn(self._scan_for_leaks())

    def add(self, pod: str, answer: Callable[[bool], None]) -> None:
        found = self._take()
        if found is not None:
            self._held[pod] = found
        self._clock.call_later(0.0, lambda: answer(found is not None))

    def delete(self, pod: str) -> None:
        eni, address = self._held.pop(pod)
        eni.assigned -= 1
        eni.cooling.append((self._clock() + _COOLDOWN, address))

    def _take(self) -> tuple[_Eni, str] | None:
        now = self._clock()
        for eni in self._shuffled():
            while eni.cooling and eni.cooling[0][0] <= now:
                eni.free.append(eni.cooling.popleft()[1])
            if eni.free:
                chosen = self._random.randrange(len(eni.free))
                eni.free[chosen], eni.free[-1] = eni.free[-1], eni.free[chosen]
                eni.assigned += 1
                return eni, eni.free.pop()
        return None

    # The loop

    def _run(self, ready: Callable[[], None]) -> Process:
        for action in (
            "DescribeNetworkInterfaces",
            "CreateTags",
            "DescribeSubnets",
            "ModifyNetworkInterfaceAttribute",
        ):
            yield self._call(action)
        self._enis.append(_Eni(self.instance.primary.id, True, self._clock()))
        if self._too_low():
            yield from self._increase()
        ready()
        while True:
            yield _HALF_TURN
            if self._too_low():
                yield from self._increase()
            elif self._surplus() > 0 and self._clock() - self._last_decrease > _DECREASE_INTERVAL:
                yield from self._decrease()
            if self._may_free_an_eni():
                yield from self._free_an_eni()
            yield _HALF_TURN

    def _call(self, action: str) -> float:
        return self._ec2.begin(self.instance, action)

    def _scan_for_leaks(self) -> Process:
        while True:
            yield float(self._random.randrange(_LEAK_SCAN_SPREAD))
            yield self._call("DescribeNetworkInterfaces")
            yield _LEAK_SCAN_INTERVAL

    # Sums

    @property
    def _total(self) -> int:
        return sum(eni.total for eni in self._enis)

    @property
    def _available(self) -> int:
        return sum(eni.available for eni in self._enis)

    def _shortage(self) -> int:
        targets = self._targets
        return max(targets.warm_ip - self._available, targets.minimum_ip - self._total, 0)

    def _surplus(self) -> int:
        """Addresses to give back; whole ENIs are another matter."""
        targets = self._targets
        if not targets.by_address:
            return 0
        return max(min(self._available - targets.warm_ip, self._total - targets.minimum_ip), 0)

    def _too_low(self) -> bool:
        if self._total >= self._max_pods:
            return False
        if self._targets.by_address:
            return self._shortage() > 0
        available, warm = self._available, self._targets.warm_eni
        return available < warm * self._per_eni or (warm == 0 and available == 0)

    # Growth

    def _increase(self) -> Process:
        if self._clock() < self._growth_paused_until:
            return
        try:
            if not (yield from self._fill_an_eni()) and len(self._enis) < self.instance.limits.max_enis:
                yield from self._add_an_eni()
        except CloudError as error:
            if error.failure.kind is not CloudErrorKind.SUBNET_FULL:
                raise
            self._growth_paused_until = self._clock() + _SUBNET_FULL_PAUSE

    def _wanted(self) -> int:
        return min(self._shortage(), self._per_eni) if self._targets.by_address else self._per_eni

    def _fill_an_eni(self) -> _Steps:
        refused = None
        for eni in self._shuffled():
            wanted = min(self._per_eni - eni.total, self._wanted())
            if wanted <= 0:
                continue
            for count in (wanted, 1):
                yield self._call("AssignPrivateIpAddresses")
                try:
                    eni.free += self.instance.assign(eni.id, count)
                    return True
                except CloudError as error:
                    if error.failure.kind is not CloudErrorKind.SUBNET_FULL:
                        raise
                    refused = error
        if refused is not None:
            raise refused
        return False

    def _add_an_eni(self) -> Process:
        yield self._call("DescribeSubnets")
        subnet_id = max(self._subnets, key=lambda id: self._ec2.subnets.get(id).available)
        yield self._call("CreateNetworkInterface")
        created = self.instance.create("", subnet_id, (), self._wanted())
        yield self._call("DescribeInstances")
        yield self._call("AttachNetworkInterface")
        taken = {eni.device_index for eni in self.instance.describe_all()}
        index = next(index for index in range(1, len(taken) + 1) if index not in taken)
        attachment_id = self.instance.attach(created.id, index)
        attached_at = self._clock()
        yield self._call("ModifyNetworkInterfaceAttribute")
        self.instance.set_delete_on_termination(created.id, attachment_id)
        yield self.instance.link_delay(created.id)
        yield self._call("DescribeSubnets")
        self._enis.append(_Eni(created.id, False, attached_at, list(created.addresses)))

    # Shrinkage

    def _decrease(self) -> Process:
        self._last_decrease = self._clock()
        surplus = self._surplus()
        for eni in self._shuffled():
            candidates = [*eni.free, *(address for _, address in eni.cooling)]
            chosen = self._random.sample(candidates, min(surplus, len(candidates)))
            if not chosen:
                continue
            surplus -= len(chosen)
            gone = set(chosen)
            eni.free = [address for address in eni.free if address not in gone]
            eni.cooling = deque(item for item in eni.cooling if item[1] not in gone)
            yield self._call("UnassignPrivateIpAddresses")
            self.instance.unassign(eni.id, tuple(chosen))

    def _may_free_an_eni(self) -> bool:
        return self._targets.by_address or self._available >= (self._targets.warm_eni + 1) * self._per_eni

    def _free_an_eni(self) -> Process:
        eni = next((eni for eni in self._shuffled() if self._deletable(eni)), None)
        if eni is None:
            return
        self._enis.remove(eni)
        attachment = self._ec2.rules.enis.get(eni.id).attachment
        assert attachment is not None
        yield self._call("DescribeNetworkInterfaces")
        yield self._call("DetachNetworkInterface")
        self.instance.detach(attachment.id)
        yield max(_DETACH_PAUSE, self._ec2.latencies.detach * (1 + self._ec2.latencies.jitter))
        yield self._call("DeleteNetworkInterface")
        self.instance.delete(eni.id)

    def _deletable(self, eni: _Eni) -> bool:
        now, targets = self._clock(), self._targets
        cooling = any(end > now for end, _ in eni.cooling)
        if eni.primary or eni.assigned or cooling or now - eni.since < _ENI_MINIMUM_AGE:
            return False
        return not targets.by_address or (
            self._available - eni.available >= targets.warm_ip and self._total - eni.total >= targets.minimum_ip
        )

    def _shuffled(self) -> list[_Eni]:
        """Go's order of a map."""
        return self._random.sample(self._enis, len(self._enis))
