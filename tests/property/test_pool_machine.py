"""The pool against a small, honest cloud, with every event and fault in any order.

Invariants: an address has at most one holder; a grant follows its record; the cooldown is kept; nobody inherits the
flows of another, unless the kernel refuses again and again to forget them; nothing is granted that EC2 did not give
to a ready ENI of this node, nor what somebody uses in the kernel; the counts add up; every request is answered by its
deadline, in the order in which they arrived, and no more wait than the node can hold; who asked for an address
gets that one or none, waits only while it can come, and is refused only while it is not there; nobody waits while an
address is free, or longer than one has to cool; the instance's limits hold; and when faults stop, the pool reaches
its target and falls silent.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipamd.cloud.port import Cloud as Port
from ipamd.cloud.port import CloudError, Priority
from ipamd.host.errors import HostError
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import action_scope
from ipamd.pool.eni import Address
from ipamd.pool.life.states import ARRIVING, ATTACHED, GONE_WITH_ENI, LEAVING, Configuring, Creating, Foreign, Ready
from ipamd.pool.model import (
    AddressState,
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    CloudFailure,
    Cooling,
    CreatedEni,
    DropAttachment,
    DropCooling,
    DropDrained,
    DropIntent,
    DropLimit,
    DropOwn,
    EniState,
    Intent,
    LearntLimit,
    Limits,
    ObservedEni,
    OwnAddresses,
    Owner,
    PutAttachment,
    PutCooling,
    PutDrained,
    PutIntent,
    PutLimit,
    PutOwn,
    Reason,
    Targets,
    Use,
    Uses,
)
from ipamd.pool.pool import Pool
from ipamd.pool.queue import Waiting
from ipamd.pool.reuse import TRIES
from ipamd.shell.interpreter import host_failed, interpret
from ipamd.sim.ec2.caller import Caller, CallerCloud
from ipamd.sim.ec2.rules import Ask, Ec2Rules, Eni

# These may have their effect some time before they are answered.
TAKE_EFFECT = (do.CreateEni, do.AttachEni, do.AssignAddresses, do.UnassignAddresses, do.DetachEni, do.DescribeEni)

# EC2 may show a change only after this time, in seconds.
LAG = 30.0

T = TypeVar("T")
TYPE = "m5.large"  # with limits of the test's own


class Cloud(Caller):
    """EC2's rules, and an adversary beside them. Every mutation is done at once; whether the pool learns of it is the
    test's choice.

    A read may lag: it does not show an ENI, or its attachment, that is younger than `LAG`. Others have all of the
    subnet but `spare` addresses, and `spare_prefixes`, which they assign to this node's ENIs.
    """

    def __init__(self, limits: Limits, spare: int, seed: int) -> None:
        self.limits = limits
        self.now = 0.0
        numbers = itertools.count(1)
        rules = Ec2Rules(
            "10.0.0.0/16",
            limits={TYPE: limits},
            random=Random(seed),
            ids=lambda kind: f"{kind}-{next(numbers):017x}",
            region="test",
        )
        self.subnet = rules.add_subnet("10.0.0.0/24")
        self.elsewhere = rules.add_subnet("10.0.9.0/24")
        super().__init__(rules, rules.launch("node", TYPE, self.subnet.id, 0.0), lambda: self.now)
        self.spare_prefixes = self.subnet.take_prefixes(limits.max_enis * limits.secondary_per_eni)
        self.spare = self.subnet.take(spare)
        self.subnet.others = self.subnet.available
        self.subnet.give_back(self.spare)
        self.foreign: set[str] = set()
        self.tokens: set[str] = set()
        self.detached: set[str] = set()  # by somebody; the ENIs keep their places on the instance, for they come back

    def protected(self) -> set[str]:
        """Addresses that pods hold or that still cool: the machine below says which."""
        return set()

    def left_behind(self, addresses: list[str]) -> None:
        """They were taken from this node with their ENI; the machine's business too."""

    def roomy(self, eni_id: str) -> bool:
        return self.rules.enis.get(eni_id).slots < self.limits.addresses_per_eni

    def attached(self) -> int:
        return len(self.instance.enis) + len(self.detached)

    def delivers(self, address: str) -> bool:
        """Whether packets to this address come to the node."""
        return any(address in eni.addresses[1:] for eni in self.instance.enis.values())

    def observe_all(self, lagging: bool = False) -> tuple[ObservedEni, ...]:
        seen = self.describe_all()
        return tuple(one for eni in seen if (one := self.lagging(eni)) is not None) if lagging else seen

    def lagging(self, seen: ObservedEni) -> ObservedEni | None:
        eni = self.rules.enis.get(seen.id)
        if self.now < eni.created + LAG:
            return None
        if eni.attachment and self.now < eni.attachment.since + LAG:
            return replace(seen, device_index=None, attachment_id="", attachment_status="", primary=False)
        return seen

    # What the pool asks for

    def carry_out(self, effect: do.Operation, host: Host) -> on.Event:
        self.check(effect)
        try:
            return at_once(interpret(effect, partial(CallerCloud(self).at, Priority.POD), host, ()))
        except CloudError as error:
            return on.OperationFailed(effect.op, error.failure)
        except HostError as error:
            return host_failed(effect, str(error))

    def check(self, effect: do.Operation) -> None:
        """What the pool must not ask for, whatever EC2 would say."""
        enis = self.rules.enis
        match effect:
            case do.CreateEni(_, _, _, count):
                assert 0 < count <= self.limits.secondary_per_eni
            case do.UnassignAddresses(_, eni_id, addresses) if eni_id in enis:
                if set(addresses) <= set(enis.get(eni_id).addresses):
                    assert addresses and not set(addresses) & self.protected(), "unassigned while in use or cooling"
                    assert not set(addresses) & self.foreign, "unassigned somebody else's"
            case do.DetachEni(_, eni_id, attachment_id, addresses) if attachment_id in self.rules.attached:
                eni, attachment = self.rules.attachment(attachment_id)
                assert eni.id == eni_id and not attachment.primary
                assert set(addresses) == set(eni.addresses[1:])
                assert not set(addresses) & self.protected(), "detached while in use or cooling"
            case do.DescribeSubnets(_, subnets):
                assert subnets == (self.subnet.id,)
            case do.DeleteEni(_, eni_id):
                seen = self.describe(eni_id)
                assert seen is None or seen.owned, "deleted somebody else's"

    def create(self, token: str, subnet_id: str, groups: tuple[str, ...], count: int) -> CreatedEni:
        created = super().create(token, subnet_id, groups, count)
        self.tokens.add(token)
        return created

    def attach(self, eni_id: str, device_index: int) -> str:
        attachment_id = super().attach(eni_id, device_index)
        self.detached.discard(eni_id)
        return attachment_id

    def detach(self, attachment_id: str) -> Eni:
        eni = super().detach(attachment_id)
        self.rules.end_detach(eni)
        return eni

    def delete(self, eni_id: str) -> None:
        """What others had on it they keep elsewhere."""
        had = self.rules.enis.get(eni_id) if eni_id in self.rules.enis else None
        addresses, prefixes = (had.addresses[1:], had.prefixes) if had else ([], [])
        super().delete(eni_id)
        self.left_behind(addresses)
        self.spare_prefixes += self.subnet.take_named_prefixes(prefixes)
        self.subnet.others += len(self.foreign.intersection(addresses))
        self.foreign.difference_update(addresses)
        self.detached.discard(eni_id)

    # What other people do

    def assign_foreign(self, eni_id: str) -> None:
        """One more address on this ENI, which others have had until now: the subnet has as many left as before."""
        self.subnet.others -= 1
        self.foreign.update(self.rules.assign(eni_id, Ask(1)))

    def assign_prefix(self, eni_id: str) -> None:
        prefix = self.spare_prefixes.pop()
        self.subnet.give_back_prefixes([prefix])
        self.rules.assign(eni_id, Ask(named_prefixes=(prefix,)))

    def give_prefixes_back(self) -> None:
        for eni in self.rules.enis:
            prefixes = eni.prefixes
            self.rules.unassign(eni.id, (), prefixes)
            self.spare_prefixes += self.subnet.take_named_prefixes(prefixes)

    def attach_foreign(self, device_index: int) -> None:
        eni = self.rules.create(self.elsewhere.id, self.now)
        attachment = self.rules.attach(eni.id, self.instance.id, device_index, self.now)
        self.rules.end_attach(eni, attachment)
        attachment.delete_on_termination = True

    def detach_foreign(self, eni_id: str) -> None:
        """Somebody detaches one of this node's ENIs."""
        attachment = self.rules.enis.get(eni_id).attachment
        assert attachment is not None
        self.rules.end_detach(self.rules.detach(attachment.id))
        self.detached.add(eni_id)


class Host:
    """The node's kernel, and the readings of one operation."""

    def __init__(self, machine: PoolMachine, effect: do.Operation, late: bool) -> None:
        self.machine = machine
        self.op = effect.op
        self.late = late

    async def configure_link(self, effect: do.ConfigureLink) -> tuple[str, IPv4Network]:
        cloud = self.machine.cloud
        if effect.eni_id not in cloud.instance.enis:
            raise HostError("no link")
        return "eth" + effect.eni_id, cloud.subnet.network

    async def check_unused(self, action: str, addresses: tuple[str, ...]) -> None:
        """Routes lead to nobody but pods, whose addresses the cloud below guards."""

    async def stop_serving(self, effect: do.DetachEni) -> None:
        pass

    async def audit(self, op: int, cloud: Port) -> on.Audited:
        """What was true when it began, if it is answered late."""
        machine = self.machine
        begun = machine.snapshots.pop(op)
        enis = begun if self.late else machine.cloud.observe_all()
        routed = tuple((a.address, f"veth-{key}") for key, a in machine.ledger.attachments.items())
        return on.Audited(op, enis, (), routed)

    async def forget_flows(self, addresses: tuple[str, ...]) -> None:
        machine = self.machine
        for ip in addresses:
            address = machine.pool.inventory.addresses.get(ip)
            # Its last holder may have it again: that one lost nothing but what it had ended.
            again = machine.pool.inventory.holders.get(ip, "nobody") == machine.last_holder.get(ip)
            held = address is not None and address.state is AddressState.ASSIGNED
            assert again or not held, "cuts connections of its next holder"
            released_at = machine.released_at.get(ip, math.inf)
            if machine.flushes[self.op] >= released_at + machine.targets.reuse_cooling_after:
                machine.reusable_at[ip] = machine.now
        machine.flows.difference_update(addresses)

    async def gone(self) -> frozenset[AttachmentKey]:
        return frozenset(self.machine.dead & self.machine.ledger.attachments.keys())


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("it waits")


def failed(effect: do.Operation, kind: CloudErrorKind) -> on.OperationFailed:
    return on.OperationFailed(effect.op, CloudFailure(kind, effect.action, kind.name, "as the test wished"))


class Ledger:
    def __init__(self) -> None:
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self.cooling: dict[str, Cooling] = {}
        self.intents: dict[str, Intent] = {}
        self.own: dict[str, OwnAddresses] = {}
        self.limit: LearntLimit | None = None
        self.drained: float | None = None

    def apply(self, record: object) -> None:
        match record:
            case PutAttachment(attachment):
                self.attachments[attachment.key] = attachment
            case DropAttachment(key):
                self.attachments.pop(key, None)
            case PutCooling(cooling):
                self.cooling[cooling.address] = cooling
            case DropCooling(address):
                self.cooling.pop(address, None)
            case PutIntent(intent):
                self.intents[intent.token] = intent
            case DropIntent(token):
                self.intents.pop(token, None)
            case PutOwn(own):
                self.own[own.eni_id] = own
            case DropOwn(eni_id):
                self.own.pop(eni_id, None)
            case PutLimit(limit):
                self.limit = limit
            case DropLimit():
                self.limit = None
            case PutDrained(at):
                self.drained = at
            case DropDrained():
                self.drained = None
            case _:
                raise AssertionError(record)


class PoolMachine(RuleBasedStateMachine):
    @initialize(
        warm=st.integers(0, 4),
        minimum=st.integers(0, 6),
        max_pods=st.integers(0, 8),
        coalesce=st.sampled_from([0.0, 0.05]),
        release_delay=st.sampled_from([0.0, 10.0, 60.0]),
        slack=st.integers(0, 4),
        reuse_after=st.sampled_from([5.0, 30.0]),
        seed=st.integers(0, 9),
        spare=st.sampled_from([3, 5, 24]),
    )
    def build(
        self,
        warm: int,
        minimum: int,
        max_pods: int,
        coalesce: float,
        release_delay: float,
        slack: int,
        reuse_after: float,
        seed: int,
        spare: int,
    ) -> None:
        self.now = 1000.0
        self.limits = Limits(max_enis=3, addresses_per_eni=4)
        self.targets = Targets(
            warm_ips=warm,
            minimum_ips=minimum,
            max_pods=max_pods,
            slack=slack,
            release_delay=release_delay,
            coalesce=coalesce,
            reuse_cooling_after=reuse_after,
        )
        self.cloud = Cloud(self.limits, spare, seed)
        self.ledger = Ledger()
        self.cloud.protected = lambda: (
            {a.address for a in self.ledger.attachments.values()} | set(self.ledger.cooling)
        )
        # Somebody else has an address before it comes back; this node can't know what that one's flows were.
        self.cloud.left_behind = lambda addresses: self.flows.difference_update(addresses)
        self.random = Random(seed)
        self.tokens = itertools.count(1)
        self.requests = itertools.count(1)
        self.keys = itertools.count(1)
        self.dead: set[AttachmentKey] = set()
        self.late: list[do.Operation] = []
        self.flows: set[str] = set()  # addresses whose connections the kernel tracks
        self.granted: set[Attachment] = set()
        self.used: set[str] = set()  # what others have in the kernel
        self.last_holder: dict[str, AttachmentKey] = {}
        self.boot()

    def boot(self, lagging: bool = False) -> None:
        """A fresh process: callers, operations under way and the wish to wake died with the old one."""
        self.disk_full = False
        self.owed: list[object] = []
        subnets = (self.cloud.subnet.id,)
        self.pool = Pool(self.targets, self.limits, subnets, self.random, lambda: f"t{next(self.tokens)}")
        self.open_requests: dict[str, tuple[AttachmentKey, float, str]] = {}
        self.in_flight: list[do.Operation] = []
        self.wake_at: float | None = None
        self.released_at: dict[str, float] = {c.address: c.released_at for c in self.ledger.cooling.values()}
        self.reusable_at: dict[str, float] = {}
        self.flushes: dict[int, float] = {}  # when they were asked for
        self.failed_flushes = 0  # in a row
        self.snapshots: dict[int, tuple[ObservedEni, ...]] = {}
        self.done: dict[int, on.Event] = {}
        self.feed(
            on.Started(
                self.cloud.observe_all(lagging),
                tuple(self.ledger.attachments.values()),
                tuple(self.ledger.cooling.values()),
                tuple(self.ledger.intents.values()),
                own=tuple(self.ledger.own.values()),
                limit=self.ledger.limit,
                uses=self.uses(),
                drained=self.ledger.drained,
            )
        )

    def feed(self, event: on.Event) -> None:
        """What the shell around the pool does, with a ledger that may refuse (ipamd/shell/turn.py)."""
        self.cloud.now = self.now
        if isinstance(event, on.OperationDone | on.OperationFailed) and event.op in self.flushes:
            self.failed_flushes = self.failed_flushes + 1 if isinstance(event, on.OperationFailed) else 0
        records, batch = self.pool.handle(event, self.now)
        self.owed += records
        for record in records:
            if isinstance(record, DropAttachment) and record.key in self.ledger.attachments:
                self.last_holder[self.ledger.attachments[record.key].address] = record.key
            elif isinstance(record, PutCooling):
                self.released_at[record.cooling.address] = record.cooling.released_at
                self.reusable_at.pop(record.cooling.address, None)
            elif isinstance(record, DropCooling):
                if self.failed_flushes >= TRIES:
                    self.flows.discard(record.address)  # it can't be helped
                if record.address not in self.pool.inventory.addresses:
                    self.released_at.pop(record.address, None)  # EC2 has it again, and may give it to any instance
        if not (self.disk_full and self.owed):
            for record in self.owed:
                self.ledger.apply(record)
            self.owed.clear()
            for effect in batch:
                self.carry_out(effect)
            return
        keys = {r.attachment.key for r in self.owed if isinstance(r, PutAttachment)}
        lost = tuple(e for e in batch if isinstance(e, do.Grant) and e.attachment.key in keys)
        gone = {grant.attachment for grant in lost}
        self.owed = [r for r in self.owed if not (isinstance(r, PutAttachment) and r.attachment in gone)]
        unsent = [e for e in batch if isinstance(e, do.RECORDED)]
        for effect in batch:
            if effect not in lost and effect not in unsent:
                self.carry_out(effect)
        for operation in unsent:
            self.feed(failed(operation, CloudErrorKind.UNRECORDED))
        if lost:
            self.feed(on.GrantsUnrecorded(lost, "disk full"))

    def carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Grant(request, attachment):
                key, _, wanted = self.open_requests.pop(request)
                assert attachment.key == key
                if attachment not in self.granted and not wanted:
                    before = list(self.requests_before(request))
                    assert not before, f"{request} is served before {before}"
                assert wanted in ("", attachment.address), "another than was asked for"
                assert self.ledger.attachments.get(key) == attachment, "granted, but not on record"
                holders = [a for a in self.ledger.attachments.values() if a.address == attachment.address]
                assert holders == [attachment], "one address, two holders"
                assert attachment.address not in self.cloud.foreign, "granted somebody else's"
                own = self.last_holder.get(attachment.address) == key
                if attachment not in self.granted:
                    self.granted.add(attachment)
                    assert attachment.address not in self.used, "granted what somebody uses"
                    assert self.cloud.delivers(attachment.address), "granted what EC2 does not route here"
                    assert own or attachment.address not in self.flows, "inherits the flows of another"
                if attachment.since == self.now and attachment.address in self.released_at:
                    cooled_at = self.released_at.pop(attachment.address) + self.targets.cooldown
                    reusable_at = self.reusable_at.pop(attachment.address, cooled_at)
                    assert own or self.now >= reusable_at, "cooldown not kept"
            case do.Refuse(request, refusal):
                key, _, wanted = self.open_requests.pop(request)
                assert refusal.message
                if refusal.reason is Reason.ADDRESS_UNAVAILABLE:
                    self.check_unavailable(key, wanted)
            case do.Note("attachment.collected", _, fields):
                assert dict(fields)["key"] in {str(key) for key in self.dead}, "collected what is alive"
            case do.Wake(at):
                assert at is None or at > self.now, "a wish to wake that has come already makes the shell spin"
                self.wake_at = at
            case do.Note() | do.Released() | do.Collected():
                pass
            case do.Audit(op):
                self.snapshots[op] = self.cloud.observe_all()
                self.in_flight.append(effect)
            case do.ForgetFlows(op, addresses):
                assert addresses and len(set(addresses)) == len(addresses)
                assert not any(isinstance(other, do.ForgetFlows) for other in self.in_flight), "two walks at a time"
                self.flushes[op] = self.now
                self.in_flight.append(effect)
            case _:
                self.check_intent(effect)
                self.in_flight.append(effect)

    def check_intent(self, effect: do.Operation) -> None:
        intents = self.ledger.intents.values()
        match effect:
            case do.CreateEni(_, token):
                assert token in self.ledger.intents, "sent without its intent"
            case do.AttachEni(_, eni_id, index):
                assert any((i.action, i.eni_id, i.device_index) == (effect.action, eni_id, index) for i in intents)
            case do.AssignAddresses(_, eni_id, count):
                assert any((i.action, i.eni_id, i.count) == (effect.action, eni_id, count) for i in intents)
            case do.UnassignAddresses(_, eni_id) | do.DetachEni(_, eni_id):
                assert any((i.action, i.eni_id) == (effect.action, eni_id) for i in intents)
            case do.DeleteEni(_, eni_id):
                ours = self.cloud.rules.enis.get(eni_id).addresses if eni_id in self.cloud.rules.enis else []
                holders = {a.address for a in self.ledger.attachments.values()}
                assert not holders.intersection(ours), "deletes what a pod has"

    # What callers do

    @rule()
    def allocate(self) -> None:
        self.request(AttachmentKey("net", f"c{next(self.keys)}", "eth0"))

    @precondition(lambda self: self.ledger.attachments)
    @rule(data=st.data())
    def allocate_again(self, data: st.DataObject) -> None:
        self.request(data.draw(st.sampled_from(sorted(self.ledger.attachments))))

    @precondition(lambda self: self.open_requests)
    @rule(data=st.data())
    def allocate_twice_at_once(self, data: st.DataObject) -> None:
        self.request(data.draw(st.sampled_from(sorted(key for key, *_ in self.open_requests.values()))))

    @rule(data=st.data(), wait=st.sampled_from([5.0, 30.0, 60.0]), blocks=st.booleans())
    def allocate_by_address(self, data: st.DataObject, wait: float, blocks: bool) -> None:
        """Any address: one of the node's in whatever state, an ENI's own, one that EC2 may give yet, one of nowhere.
        By anybody: a new attachment, the last holder of an address, one that has an address or waits for one."""
        waiting = sorted(key for key, *_ in self.open_requests.values())
        known = [*self.last_holders(), *sorted(self.ledger.attachments), *waiting]
        key = data.draw(st.sampled_from([AttachmentKey("net", f"c{next(self.keys)}", "eth0"), *known]))
        here = sorted(self.pool.inventory.addresses)
        own = [eni.primary_ip for eni in self.pool.inventory.enis.values() if eni.primary_ip]
        others = [*own, *self.cloud.spare[:4], "10.0.7.1", "192.168.0.1"]
        wanted = [wanted for *_, wanted in self.open_requests.values() if wanted]
        self.request(key, wait, data.draw(st.sampled_from([*here, *here, *others, *wanted])), blocks)

    def check_unavailable(self, key: AttachmentKey, wanted: str) -> None:
        held = self.pool.inventory.attachments.get(key)
        assert wanted and (held is None or held.address != wanted), "it has what it asked for"
        full = len(self.pool.inventory.attachments) >= self.pool.pod_limit
        assert held is not None or full or self.is_missing(wanted), "refused what is there"

    def is_missing(self, ip: str) -> bool:
        """Whether it could be granted to nobody at this moment, as far as the pool can know."""
        address = self.pool.inventory.addresses.get(ip)
        free = address is not None and address.state is AddressState.FREE
        return address is None or not free or address.eni.state is not EniState.READY

    def last_holders(self) -> list[AttachmentKey]:
        """Of addresses that cool."""
        keys = {a.last_key for a in self.pool.inventory.addresses.values() if a.state is AddressState.COOLING}
        return sorted(key for key in keys if key is not None and key not in self.ledger.attachments)

    @rule(wait=st.sampled_from([5.0, 10.0, 60.0]), blocks=st.booleans())
    def allocate_with_a_patience_of_its_own(self, wait: float, blocks: bool) -> None:
        self.request(AttachmentKey("net", f"c{next(self.keys)}", "eth0"), wait, blocks=blocks)

    def request(self, key: AttachmentKey, wait: float = 30.0, wanted: str = "", blocks: bool = False) -> None:
        request = f"r{next(self.requests)}"
        deadline = self.now + wait
        self.open_requests[request] = (key, deadline, wanted)
        self.feed(on.AllocationRequested(request, key, Owner(), deadline, wanted, blocks))

    def requests_before(self, request: str) -> Iterator[str]:
        """Those that came before, and wait for any address."""
        came = int(request[1:])
        return (other for other, (_, _, wanted) in self.open_requests.items() if int(other[1:]) < came and not wanted)

    @precondition(lambda self: self.open_requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open_requests)))
        del self.open_requests[request]
        self.feed(on.AllocationCancelled(request))

    @precondition(lambda self: self.ledger.attachments)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.feed(on.ReleaseRequested("x", data.draw(st.sampled_from(sorted(self.ledger.attachments)))))

    @rule()
    def release_the_unknown(self) -> None:
        self.feed(on.ReleaseRequested("x", AttachmentKey("net", "nobody", "eth0")))

    @precondition(lambda self: self.ledger.attachments)
    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        keep = data.draw(st.sets(st.sampled_from(sorted(self.ledger.attachments))))
        before = dict(self.ledger.attachments)
        self.feed(on.CollectRequested("x", "net", frozenset((k.container_id, k.ifname) for k in keep)))
        for key in set(before) - set(self.ledger.attachments):
            assert key not in keep and self.now - before[key].since > 60

    @precondition(lambda self: self.ledger.attachments)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """A container dies and nobody sends its DEL."""
        self.dead.add(data.draw(st.sampled_from(sorted(self.ledger.attachments))))

    @rule(data=st.data())
    def talk(self, data: st.DataObject) -> None:
        """A pod does, or somebody to an address whose pod is gone."""
        used = (AddressState.ASSIGNED, AddressState.COOLING)
        addresses = sorted(a.ip for a in self.pool.inventory.addresses.values() if a.state in used)
        if addresses:
            self.flows.add(data.draw(st.sampled_from(addresses)))

    @precondition(lambda self: any(isinstance(effect, do.ForgetFlows) for effect in self.in_flight))
    @rule(seconds=st.sampled_from([0.1, 7.0]))
    def refuse_to_forget(self, seconds: float) -> None:
        for _ in range(TRIES):
            for effect in [effect for effect in self.in_flight if isinstance(effect, do.ForgetFlows)]:
                self.in_flight.remove(effect)
                self.feed(failed(effect, CloudErrorKind.TRANSIENT))
            self.wait(seconds)

    # What the disk does

    @rule()
    def fill_the_disk(self) -> None:
        self.disk_full = True

    @precondition(lambda self: self.disk_full)
    @rule()
    def empty_the_disk(self) -> None:
        """The shell tries to write what it owes again and again."""
        self.disk_full = False
        for record in self.owed:
            self.ledger.apply(record)
        self.owed.clear()

    # What the cloud does

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        effect = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.feed(self.perform(effect, data.draw(st.booleans()) if isinstance(effect, do.Audit) else False))

    @precondition(lambda self: any(isinstance(e, TAKE_EFFECT) and e.op not in self.done for e in self.in_flight))
    @rule(data=st.data())
    def take_effect(self, data: st.DataObject) -> None:
        """At EC2, where any read shows it; the answer comes later, with what was true by then."""
        effects = [e for e in self.in_flight if isinstance(e, TAKE_EFFECT) and e.op not in self.done]
        effect = data.draw(st.sampled_from(effects))
        if not self.ambiguous(effect):
            self.cloud.now = self.now
            self.done[effect.op] = self.perform(effect)

    def perform(self, effect: do.Operation, late: bool = False) -> on.Event:
        """What the cloud or the host makes of it. An audit may be answered late, with what was true when it began."""
        if effect.op in self.done:
            return self.done.pop(effect.op)
        return self.cloud.carry_out(effect, Host(self, effect, late))

    @precondition(lambda self: any(isinstance(effect, do.DescribeEni | do.AttachEni) for effect in self.in_flight))
    @rule()
    def lag(self) -> None:
        """A read, or an attachment, meets a part of EC2 that has not heard the news."""
        effect = next(effect for effect in self.in_flight if isinstance(effect, do.DescribeEni | do.AttachEni))
        self.in_flight.remove(effect)
        self.cloud.now = self.now
        known = effect.eni_id in self.cloud.rules.enis
        if not known or self.now >= self.cloud.rules.enis.get(effect.eni_id).created + LAG or effect.op in self.done:
            self.feed(self.perform(effect))
        elif isinstance(effect, do.AttachEni):
            self.feed(failed(effect, CloudErrorKind.NOT_FOUND))
        else:
            self.feed(on.EniObserved(effect.op, None))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), kind=st.sampled_from(list(CloudErrorKind)))
    def fail(self, data: st.DataObject, kind: CloudErrorKind) -> None:
        effect = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if isinstance(effect, do.ConfigureLink):
            self.feed(on.LinkFailed(effect.op, "no link"))
            return None
        if self.done.pop(effect.op, None) is not None:
            kind = CloudErrorKind.UNKNOWN_OUTCOME  # there is no other way left to fail
        if kind is CloudErrorKind.NOT_FOUND and not isinstance(effect, do.CreateEni):
            return self.in_flight.append(effect)  # EC2 does not lie about that here
        if (isinstance(effect, do.CreateEni) and effect.token in self.cloud.tokens) or self.ambiguous(effect):
            kind = CloudErrorKind.THROTTLED  # nor about a token that it has seen
        self.feed(failed(effect, kind))
        return None

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def time_out_after_the_effect(self, data: st.DataObject) -> None:
        effect = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if isinstance(effect, do.ConfigureLink) or self.ambiguous(effect):
            return self.in_flight.append(effect)
        self.perform(effect)
        self.reusable_at.clear()
        self.feed(failed(effect, CloudErrorKind.UNKNOWN_OUTCOME))
        return None

    # What other people do

    @precondition(lambda self: not any(i.action == do.AssignAddresses.action for i in self.ledger.intents.values()))
    @rule(data=st.data())
    def somebody_assigns_an_address(self, data: st.DataObject) -> None:
        ready = [eni.id for eni in self.pool.inventory.ready() if not (eni.leaving or eni.unaccounted)]
        roomy = [eni_id for eni_id in ready if self.cloud.roomy(eni_id)]
        if roomy and len(self.cloud.foreign) < 2:
            self.cloud.assign_foreign(data.draw(st.sampled_from(roomy)))

    @precondition(lambda self: self.cloud.attached() < self.limits.max_enis)
    @rule(index=st.integers(1, 2))
    def somebody_attaches_an_eni(self, index: int) -> None:
        if index not in {eni.attachment.device_index for eni in self.cloud.instance.enis.values() if eni.attachment}:
            self.cloud.attach_foreign(index)

    @rule(data=st.data())
    def somebody_assigns_a_prefix(self, data: st.DataObject) -> None:
        """It takes a slot; the pool learns that only from its next reading."""
        seen = [eni for eni in self.cloud.observe_all() if eni.owned or eni.primary]
        roomy = [eni.id for eni in seen if eni.device_index is not None and self.cloud.roomy(eni.id)]
        if roomy:
            self.cloud.assign_prefix(data.draw(st.sampled_from(roomy)))

    @rule()
    def somebody_gives_prefixes_back(self) -> None:
        self.cloud.give_prefixes_back()

    @rule(data=st.data(), detached=st.booleans())
    def lose_a_device(self, data: st.DataObject, detached: bool) -> None:
        """Somebody detaches an ENI, or the kernel's interface goes for another reason, and comes back."""
        enis = [
            eni for eni in self.pool.inventory.enis.values() if eni.state in (EniState.CONFIGURING, EniState.READY)
        ]
        if not enis:
            return
        eni = data.draw(st.sampled_from(enis))
        if detached and eni.state is EniState.READY and not eni.primary:
            self.cloud.detach_foreign(eni.id)
        self.feed(on.DeviceGone(eni.id))
        assert eni.state is EniState.CONFIGURING

    @rule()
    def leave_an_eni_behind(self) -> None:
        """Somebody, perhaps a daemon before this one, made it, and nobody remembers."""
        if self.cloud.subnet.available > 1 and not any(effect for effect in self.in_flight):
            self.cloud.now = self.now
            self.cloud.create("", self.cloud.subnet.id, (), 0)

    def uses(self) -> Uses:
        return Uses({ip: Use("route", f"route {ip}") for ip in self.used})

    @rule(data=st.data())
    def somebody_uses_an_address(self, data: st.DataObject) -> None:
        """The kernel tells of it, and no pod of ours has it."""
        inventory = self.pool.inventory
        held = {a.address for a in self.ledger.attachments.values()} | inventory.holders.keys()
        addresses = sorted({*self.cloud.spare[:6]} | inventory.addresses.keys() - held)
        ip = data.draw(st.sampled_from([ip for ip in addresses if ip not in held] or ["10.0.0.3"]))
        self.used.add(ip)
        self.flows.discard(ip)  # whatever they are, they are that one's
        self.feed(on.UseSeen(IPv4Network(ip), Use("route", f"route {ip}")))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def somebody_stops_using_an_address(self, data: st.DataObject) -> None:
        self.used.remove(data.draw(st.sampled_from(sorted(self.used))))
        self.feed(on.UsesRead(self.uses(), ()))

    def ambiguous(self, effect: do.Operation) -> bool:
        """Whether nobody could tell our new addresses from somebody else's if this call's answer were lost."""
        known = {a.ip for a in self.pool.inventory.addresses.values() if a.state is AddressState.FOREIGN}
        return isinstance(effect, do.AssignAddresses) and bool(self.cloud.foreign - known)

    def owed_what_tells_apart(self) -> bool:
        """Whether a record that would tell them apart has not reached the disk."""
        return (bool(self.owed) or self.disk_full) and bool(self.cloud.foreign)

    # What time and fate do

    @rule(seconds=st.sampled_from([0.01, 0.05, 1.0, 7.0, 31.0, 100.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        if seconds > 1.0:
            self.take_effect_late()
            for effect in self.in_flight:  # no answer to a read is older than that
                if isinstance(effect, do.DescribeEni):
                    self.done.pop(effect.op, None)
        while self.wake_at is not None and self.wake_at <= end:
            self.now = max(self.now, self.wake_at)
            self.wake_at = None
            self.feed(on.TimePassed())
        self.now = end

    @precondition(lambda self: self.late)
    @rule()
    def take_effect_late(self) -> None:
        """What was asked to be taken away before a crash is taken away only now."""
        self.cloud.now = self.now
        while self.late:
            effect = self.late.pop()
            if effect.eni_id in self.cloud.rules.enis:
                self.perform(effect)

    @rule(after_sending=st.booleans(), lagging=st.booleans())
    def crash(self, after_sending: bool, lagging: bool) -> None:
        """kill -9: what was on its way reaches EC2 or not, or late, and shows at once or not."""
        self.cloud.now = self.now
        if any(self.ambiguous(effect) for effect in self.in_flight) or self.owed_what_tells_apart():
            return
        if after_sending:
            for effect in self.in_flight:
                self.perform(effect)
        else:
            removing = [e for e in self.in_flight if isinstance(e, do.UnassignAddresses | do.DetachEni)]
            self.late = [e for e in removing if e.op not in self.done]
        self.boot(lagging and all(eni.created + LAG < self.now for eni in self.cloud.rules.enis))

    @precondition(lambda self: not self.owed_what_tells_apart())
    @rule(seconds=st.sampled_from([0.0, 0.1, 5.0]))
    def stop(self, seconds: float) -> None:
        """SIGTERM: everybody is answered at once, no more is asked of EC2, and releases go on to the end."""
        known = len(self.in_flight)
        self.feed(on.StopRequested())
        assert not self.open_requests
        self.wait(seconds)
        for key in sorted(self.ledger.attachments)[:1]:
            self.feed(on.ReleaseRequested("x", key))
        while self.in_flight:
            self.feed(self.perform(self.in_flight.pop()))
            assert len(self.in_flight) < known or not known
            known = len(self.in_flight)
        self.boot()

    @rule(warm=st.integers(0, 4), max_pods=st.integers(0, 8))
    def change_targets(self, warm: int, max_pods: int) -> None:
        self.targets = replace(self.targets, warm_ips=warm, max_pods=max_pods)
        self.feed(on.TargetsChanged(self.targets))

    @rule()
    def drain(self) -> None:
        """An operator's wish, which outlives the process."""
        self.feed(on.NodeDrained())
        assert not self.open_requests

    @rule()
    def undrain(self) -> None:
        self.feed(on.NodeUndrained())

    @rule()
    def calm(self) -> None:
        """Faults stop: the pool reaches its target, answers everybody and then asks nothing of EC2, unless the subnet
        is full: then it has taken what there was, and asks now and then."""
        self.empty_the_disk()
        self.used.clear()
        self.feed(on.UsesRead(self.uses(), ()))
        self.take_effect_late()
        begun = self.now
        last_change = begun
        while self.now < begun + 3 * 3600:
            while self.in_flight:
                effect = self.in_flight.pop(0)
                self.feed(self.perform(effect))
                if not isinstance(effect, do.Audit | do.SeekAttachments | do.DescribeSubnets):
                    last_change = self.now
            assert self.wake_at is not None, "there is always an audit to come"
            self.now = self.cloud.now = max(self.now, self.wake_at)
            self.wake_at = None
            self.feed(on.TimePassed())
        counts, pool = self.pool.counts(), self.pool
        roomy = any(eni.room for eni in pool.inventory.ready())
        full = self.cloud.subnet.available < 2 - roomy
        exhausted = pool.eni_slots() <= 0 and not roomy
        assert last_change < begun + 2 * 3600 or full, "the pool does not come to rest"
        assert not self.open_requests
        reachable = min(pool.targets.warm_ips, pool.max_pods - counts.assigned)
        enough = counts.free >= reachable and counts.total >= min(pool.targets.minimum_ips, pool.max_pods)
        assert enough or full or exhausted, counts
        assert pool.excess() == 0 and counts.releasing == 0
        assert self.ledger.drained is None or counts.free == 0
        assert not self.ledger.cooling
        assert not [intent for intent in self.ledger.intents if not full]
        assert not self.dead & self.ledger.attachments.keys()
        self.memory_and_ec2_agree()

    def memory_and_ec2_agree(self) -> None:
        """Once the pool has come to rest."""
        inventory, enis = self.pool.inventory, list(self.cloud.rules.enis)
        assert all(eni.attachment and eni.attachment.delete_on_termination for eni in enis)
        states = {a.ip: a.state for a in inventory.addresses.values()}
        found = {ip for ip, state in states.items() if state is AddressState.FOREIGN}
        assert found == self.cloud.foreign, (states, self.cloud.foreign)
        prefixes = {eni.id: set(eni.prefixes) for eni in enis}
        assert {eni.id: set(eni.prefixes) for eni in inventory.enis.values()} == prefixes

    # What always holds

    @invariant()
    def counts_add_up(self) -> None:
        inventory = self.pool.inventory
        for eni in inventory.enis.values():
            states = [a.state.value for a in inventory.addresses.values() if a.eni is eni]
            assert states.count("free") == len(eni.free)
            assert states.count("assigned") == eni.assigned
            assert states.count("cooling") == eni.cooling
            assert states.count("foreign") == eni.foreign and len(states) == len(eni.addresses)
            assert states.count("releasing") == len(eni.leaving)
            assert eni.pending >= 0 and eni.held + eni.pending <= eni.capacity + eni.foreign
        counts = self.pool.counts()
        assert counts == self.pool._count()
        assert counts.total == counts.free + counts.assigned + counts.cooling + counts.releasing
        # Plans may clash with what a lagging EC2 shows later; what is attached may not.
        serving = (EniState.CONFIGURING, EniState.READY, EniState.FOREIGN)
        attached = [eni for eni in inventory.enis.values() if eni.state in serving]
        assert len(attached) <= self.limits.max_enis
        assert len({eni.device_index for eni in attached}) == len(attached)

    @invariant()
    def no_state_has_the_data_of_another(self) -> None:
        for eni in self.pool.inventory.enis.values():
            if not isinstance(eni.life, (*ATTACHED, Foreign)):
                assert not (eni.attachment_id or eni.keep_on_termination or eni.modifying or eni.in_limbo)
            assert not eni.leaving or isinstance(eni.life, LEAVING)
            assert not eni.free or not isinstance(eni.life, GONE_WITH_ENI)
            assert not eni.unfulfilled or isinstance(eni.life, ARRIVING)
            assert not eni.pending or isinstance(eni.life, Creating | Configuring | Ready)
            if isinstance(eni.life, Ready):
                assert not eni.life.verified or eni.leaving

    @invariant()
    def memory_and_ledger_agree(self) -> None:
        if self.owed:
            return
        inventory = self.pool.inventory
        assert inventory.attachments == self.ledger.attachments
        assert self.pool.drained == self.ledger.drained
        cooling = {c.address: c.released_at for c in self.ledger.cooling.values()}
        assert self.pool.inventory.cooling == cooling
        for eni_id, own in self.ledger.own.items():
            assert own == inventory.enis[eni_id].own()
        assert list(self.pool.inventory.cooling.values()) == sorted(cooling.values())

    @invariant()
    def nobody_waits_beyond_the_deadline(self) -> None:
        pool = self.pool
        assert set(pool.waiting) == set(self.open_requests)
        assert pool.queue.for_any <= min(pool.pod_limit, pool.capacity_alone) or self.owed
        for _, deadline, _ in self.open_requests.values():
            assert self.now <= deadline or (self.wake_at is not None and self.wake_at <= deadline)

    @invariant()
    def a_wish_waits_while_it_can_come(self) -> None:
        pool, inventory = self.pool, self.pool.inventory
        wishes = {w.request: w for w in pool.waiting.values() if w.wanted}
        assert wishes == {w.request: w for w in pool.queue.wishes()}
        assert pool.queue.for_any == len(pool.waiting) - len(wishes)
        if not pool.started or self.owed:
            return
        asked_for = sum(eni.pending + len(eni.unaccounted) for eni in inventory.enis.values())
        full = len(inventory.attachments) >= pool.pod_limit
        wishing: dict[str, AttachmentKey] = {}
        for waiting in wishes.values():
            assert wishing.setdefault(waiting.wanted, waiting.key) == waiting.key, "two wait for one address"
            address = inventory.addresses.get(waiting.wanted)
            if address is None:
                assert asked_for, "waits for an address that can't come"
                unread = any(eni.subnet is None for eni in inventory.enis.values())
                assert unread or IPv4Address(waiting.wanted) in self.cloud.subnet.network
            elif not full:
                self.check_wish(waiting, address)

    def check_wish(self, waiting: Waiting, address: Address) -> None:
        assert self.is_missing(waiting.wanted), "waits for what is free"
        assert address.state is not AddressState.FOREIGN or address.eni.contradicted
        assert address.state is not AddressState.ASSIGNED or not waiting.blocks_releases
        own = address.state is AddressState.COOLING and address.last_key == waiting.key
        assert not own or address.eni.state is not EniState.READY, "waits for what it has just released"

    @invariant()
    def the_queue_knows_its_requests(self) -> None:
        pool = self.pool
        for key in {w.key for w in pool.waiting.values()}:
            assert key not in pool.inventory.attachments or self.owed, "it waits for what it has"
            assert [w for w in pool.waiting.values() if w.key == key] == list(pool.queue.of(key))

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        pool = self.pool
        anybody = [waiting for waiting in pool.waiting.values() if not waiting.wanted]
        if not anybody or not pool.started or len(pool.inventory.attachments) >= pool.pod_limit or self.owed:
            return
        assert pool.counts().free == 0
        cooling = list(pool.inventory.cooling.values())
        flushing = any(isinstance(effect, do.ForgetFlows) for effect in self.in_flight)
        if not cooling or flushing or pool.backoffs.active(self.now, action_scope(do.ForgetFlows.action)):
            return
        may_be_used = cooling[0] + min(self.targets.reuse_cooling_after, self.targets.cooldown)
        assert self.wake_at is not None and self.wake_at <= max(may_be_used, self.now), "a cooled address is left"


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    # Random by hand, the same every time in CI; POOL_EXAMPLES=20000 makes a night of it.
    max_examples=int(os.environ.get("POOL_EXAMPLES", "2000")),
    derandomize=bool(os.environ.get("CI")),
    stateful_step_count=100,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
