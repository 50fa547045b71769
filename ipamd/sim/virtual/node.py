"""A node that runs the real pool in the real rate budget: its effects are carried out against EC2 in virtual time.

The kernel is as it should be: routes lead to exactly the pods that have an address, and no pod's interface is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Protocol, assert_never

from ipamd.cloud.budget import Ticket
from ipamd.cloud.port import CloudError, Priority
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import AttachmentKey, Owner, Reason, Targets
from ipamd.pool.pool import Pool
from ipamd.shell.urgency import priority_of
from ipamd.sim.virtual.budget import VirtualBudget
from ipamd.sim.virtual.clock import Timer, VirtualClock
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
        self._ec2 = ec2
        self._known_subnets = {instance.subnet.id}
        tokens = count(1)
        self.pool = Pool(
            targets,
            instance.limits,
            subnets or (instance.subnet.id,),
            random,
            lambda: f"{instance.id}-{next(tokens)}",
        )
        self._wait = targets.allocate_wait
        self._asked: dict[str, _Asked] = {}
        self._requests = count(1)
        self._alarm: Timer | None = None
        self._ready: Callable[[], None] | None = None

    # As a node

    def start(self, ready: Callable[[], None]) -> None:
        """As the daemon does it: read what is there, and begin."""
        self._ready = ready
        self._describe_all(Priority.POD, self._started)

    def _started(self) -> bool:
        self._feed(on.Started(self.instance.describe_all()))
        return True

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
        for effect in self.pool.handle(event, self._clock()):
            self._carry_out(effect)
        if self._ready is not None and self.pool.can_serve():
            self._clock.call_later(0.0, self._ready)
            self._ready = None
        self.changed()

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Write() | do.Note() | do.Released() | do.Collected():
                pass  # the ledger and the log cost no time here
            case do.Grant(request, _):
                self._answer(request, True)
            case do.Refuse(request, refusal):
                self.refusals[refusal.reason] += 1
                self._answer(request, False)
            case do.Wake(at):
                self._set_alarm(at)
            case do.ConfigureLink():
                self._clock.call_later(self.instance.link_delay(effect.eni_id), lambda: self._link_seen(effect))
            case do.ForgetFlows() | do.SeekAttachments():
                # Later, because the pool is not done with this event.
                self._clock.call_later(0.0, lambda: self._feed(self._perform(effect)))
            case do.Audit():
                self._describe_all(self._priority(effect), lambda: self._finish(effect))
            case _:
                self._call(effect.action, self._priority(effect), lambda: self._finish(effect))

    def _priority(self, effect: do.Operation) -> Priority:
        return priority_of(effect, bool(self.pool.waiting))

    def _call(self, action: str, priority: Priority, finish: Callable[[], bool]) -> None:
        """One EC2 call, when its turn has come; `finish` applies it, and says whether EC2 carried it out."""

        def send(ticket: Ticket) -> None:
            self._clock.call_later(self._ec2.begin(self.instance, action), lambda: answered(ticket))

        def answered(ticket: Ticket) -> None:
            if finish():
                self.budget.succeeded(action, ticket)

        self.budget.admit(action, priority, send)

    def _describe_all(self, priority: Priority, finish: Callable[[], bool]) -> None:
        """The ENIs that carry our tag, then those that are attached."""
        action = do.DescribeEni.action

        def first() -> bool:
            self._call(action, priority, finish)
            return True

        self._call(action, priority, first)

    def _link_seen(self, effect: do.ConfigureLink) -> None:
        """The host needs the subnet's CIDR, which is asked for once."""
        if effect.subnet_id in self._known_subnets:
            self._finish(effect)
        else:
            self._known_subnets.add(effect.subnet_id)
            self._call(effect.action, self._priority(effect), lambda: self._finish(effect))

    def _answer(self, request: str, granted: bool) -> None:
        # Later, because the caller may ask for something else at once, and the pool is not done with this event.
        answer = self._asked.pop(request).answer
        self._clock.call_later(0.0, lambda: answer(granted))

    def _set_alarm(self, at: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if at is None else self._clock.call_at(at, lambda: self._feed(on.TimePassed()))

    def _finish(self, effect: do.Operation) -> bool:
        try:
            event = self._perform(effect)
        except CloudError as error:
            self._feed(on.OperationFailed(effect.op, error.failure))
            return False
        self._feed(event)
        return True

    def _perform(self, effect: do.Operation) -> on.Event:
        """An operation that stands in `effects` and not here is an error of the type checker, and at run time too."""
        ec2 = self.instance
        match effect:
            case do.CreateEni(op, token, subnet_id, address_count):
                return on.EniCreated(op, ec2.create(token, subnet_id, (), address_count))
            case do.AttachEni(op, eni_id, device_index):
                return on.EniAttached(op, ec2.attach(eni_id, device_index))
            case do.SetDeleteOnTermination(op, eni_id, attachment_id):
                ec2.set_delete_on_termination(eni_id, attachment_id)
                return on.OperationDone(op)
            case do.DescribeEni(op, eni_id):
                return on.EniObserved(op, ec2.describe(eni_id))
            case do.ConfigureLink(op, eni_id, _, device_index, subnet_id):
                return on.LinkReady(op, f"eth{device_index}", self._ec2.subnets.get(subnet_id).network)
            case do.AssignAddresses(op, eni_id, address_count):
                return on.AddressesAssigned(op, ec2.assign(eni_id, address_count))
            case do.UnassignAddresses(op, eni_id, addresses):
                ec2.unassign(eni_id, addresses)
                return on.OperationDone(op)
            case do.DetachEni(op, _, attachment_id):
                ec2.detach(attachment_id)
                return on.OperationDone(op)
            case do.DeleteEni(op, eni_id):
                ec2.delete(eni_id)
                return on.OperationDone(op)
            case do.DescribeSubnets(op, subnet_ids):
                return on.SubnetsObserved(op, tuple(ec2.available(subnet_ids).items()))
            case do.Audit(op):
                held = self.pool.inventory.attachments.values()
                routed = tuple((attachment.address, attachment.key.container_id) for attachment in held)
                return on.Audited(op, ec2.describe_all(), (), routed)
            case do.ForgetFlows(op):
                return on.OperationDone(op)
            case do.SeekAttachments(op):
                return on.AttachmentsSought(op, frozenset())
            case _:
                assert_never(effect)


def _key(pod: str) -> AttachmentKey:
    return AttachmentKey(_NETWORK, pod, "eth0")
