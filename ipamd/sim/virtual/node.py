"""A node that runs the real pool in the real rate budget: its effects are carried out against EC2 in virtual time.

The kernel is as it should be: routes lead to exactly the pods that have an address, and no pod's interface is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from itertools import count
from random import Random
from typing import Protocol

from ipamd.cloud.port import Cloud, CloudError
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import AttachmentKey, Owner, Reason, Targets
from ipamd.pool.pool import Pool
from ipamd.shell.interpreter import interpret
from ipamd.shell.urgency import priority_of
from ipamd.sim.virtual.budget import VirtualBudget
from ipamd.sim.virtual.clock import Timer, VirtualClock
from ipamd.sim.virtual.cloud import VirtualCloud
from ipamd.sim.virtual.ec2 import Instance, VirtualEc2

_NETWORK = "virtual"


class Node(Protocol):
    """What a kubelet sees of the address daemon of its node."""

    @property
    def instance(self) -> Instance: ...

    def start(self, ready: Callable[[], None]) -> None:
        """Boot the daemon; `ready` is called once a runtime may use it."""

    def add(self, pod: str, answer: Callable[[bool], None]) -> None:
        """CNI ADD: `answer` is called once, with true when the pod got its address."""

    def delete(self, pod: str) -> None:
        """CNI DEL of a pod that got one."""


@dataclass(frozen=True, slots=True)
class _Asked:
    pod: str
    answer: Callable[[bool], None]


class PoolNode:
    """`subnets` are the ids of those for new ENIs; empty: the instance's own.

    `refusals` counts the ADDs that failed, by reason; `changed` is called after each event that the pool has handled.
    """

    def __init__(
        self,
        clock: VirtualClock,
        ec2: VirtualEc2,
        instance: Instance,
        targets: Targets,
        random: Random,
        subnets: tuple[str, ...] = (),
    ) -> None:
        self.instance = instance
        self.budget = VirtualBudget(clock)
        self.refusals: Counter[Reason] = Counter()
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._cloud = VirtualCloud(ec2, instance, self.budget)
        tokens = count(1)
        self.pool = Pool(
            targets,
            instance.limits,
            subnets or (instance.subnet.id,),
            random,
            lambda: f"{instance.id}-{next(tokens)}",
        )
        self._host = _Host(clock, self._cloud, instance, self.pool)
        self._wait = targets.allocate_wait
        self._asked: dict[str, _Asked] = {}
        self._requests = count(1)
        self._alarm: Timer | None = None
        self._ready: Callable[[], None] | None = None

    # As a node

    def start(self, ready: Callable[[], None]) -> None:
        """As the daemon does it: read what is there, and begin."""
        self._ready = ready
        self._clock.start(self._begin())

    async def _begin(self) -> None:
        self._feed(on.Started(tuple(await self._cloud.describe_enis())))

    def add(self, pod: str, answer: Callable[[bool], None]) -> None:
        request = f"{next(self._requests)}"
        self._asked[request] = _Asked(pod, answer)
        deadline = self._clock() + self._wait
        self._feed(on.AllocationRequested(request, _key(pod), Owner(pod_name=pod), deadline))

    def delete(self, pod: str) -> None:
        """Also of a pod that still waits: its ADD is refused."""
        self._feed(on.ReleaseRequested(f"{next(self._requests)}", _key(pod)))

    # As the shell of the pool

    def _feed(self, event: on.Event) -> None:
        for effect in self.pool.handle(event, self._clock()).then:
            self._carry_out(effect)
        if self._ready is not None and self.pool.can_serve():
            self._clock.call_later(0.0, self._ready)
            self._ready = None
        self.changed()

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Note() | do.Released() | do.Collected():
                pass  # the log costs no time here, nor does the ledger
            case do.Grant(request, _):
                self._answer(request, True)
            case do.Refuse(request, refusal):
                self.refusals[refusal.reason] += 1
                self._answer(request, False)
            case do.Wake(at):
                self._set_alarm(at)
            case _:
                self._clock.start(self._operate(effect))

    async def _operate(self, effect: do.Operation) -> None:
        bind = partial(self._cloud.at, priority_of(effect, bool(self.pool.waiting)))
        event: on.Event
        try:
            event = await interpret(effect, bind, self._host, ())
        except CloudError as error:
            event = on.OperationFailed(effect.op, error.failure)
        self._feed(event)

    def _answer(self, request: str, granted: bool) -> None:
        # Later, because the caller may ask for something else at once, and the pool is not done with this event.
        answer = self._asked.pop(request).answer
        self._clock.call_later(0.0, lambda: answer(granted))

    def _set_alarm(self, at: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if at is None else self._clock.call_at(at, lambda: self._feed(on.TimePassed()))


class _Host:
    """The kernel of the node. What costs no time here is done a moment later all the same: the pool may be in the
    middle of an event."""

    def __init__(self, clock: VirtualClock, cloud: VirtualCloud, instance: Instance, pool: Pool) -> None:
        self._clock = clock
        self._cloud = cloud
        self._instance = instance
        self._pool = pool
        self._subnets = {instance.subnet.id: instance.subnet.network}

    async def configure_link(self, effect: do.ConfigureLink) -> tuple[str, IPv4Network]:
        """It needs the subnet's CIDR, which is asked for once."""
        await self._clock.sleep(self._instance.link_delay(effect.eni_id))
        if effect.subnet_id not in self._subnets:
            cloud = self._cloud.at(priority_of(effect, bool(self._pool.waiting)))
            self._subnets[effect.subnet_id] = IPv4Network(await cloud.subnet_cidr(effect.subnet_id))
        return f"eth{effect.device_index}", self._subnets[effect.subnet_id]

    async def check_unused(self, action: str, addresses: tuple[str, ...]) -> None:
        """Nobody but the pool's pods uses an address here."""

    async def stop_serving(self, effect: do.DetachEni) -> None:
        pass

    async def audit(self, op: int, cloud: Cloud) -> on.Audited:
        """As the daemon's (`ipamd.shell.readings`): the ENIs, the room in the subnets, and the kernel last."""
        enis = await cloud.describe_enis()
        available = await cloud.available_addresses(self._pool.subnets.ids)
        held = self._pool.inventory.attachments.values()
        routed = tuple((one.address, one.key.container_id) for one in held)
        return on.Audited(op, tuple(enis), (), routed, tuple(available.items()))

    async def forget_flows(self, addresses: tuple[str, ...]) -> None:
        await self._clock.sleep(0.0)

    async def gone(self) -> frozenset[AttachmentKey]:
        await self._clock.sleep(0.0)
        return frozenset()


def _key(pod: str) -> AttachmentKey:
    return AttachmentKey(_NETWORK, pod, "eth0")
