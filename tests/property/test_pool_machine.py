"""The pool against a small, honest cloud, with every event and fault in any order.

Invariants (design, section 4): an address has at most one holder; a grant follows its record; the cooldown is kept;
nothing is granted that EC2 did not give to a ready ENI of this node; the counts add up; every request is answered
by its deadline; the instance's limits hold; and when faults stop, the pool reaches its target and falls silent.
"""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    CloudFailure,
    Cooling,
    CreatedEni,
    DropAttachment,
    DropCooling,
    DropIntent,
    EniState,
    Intent,
    Limits,
    ObservedEni,
    Owner,
    PutAttachment,
    PutCooling,
    PutIntent,
    Targets,
)
from ipamd.pool.pool import Pool

SUBNET_SIZE = 24


class Cloud:
    """What EC2 holds. Every mutation is done at once; whether the pool learns of it is the test's choice."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.enis: dict[str, dict] = {}
        self.tokens: dict[str, str] = {}
        self.names = itertools.count(1)
        self.addresses = itertools.count(10)
        self.enis["eni-0"] = {
            "index": 0,
            "owned": False,
            "primary": True,
            "ip": "10.0.0.9",
            "addresses": [],
            "attachment": "att-0",
            "keep": False,
        }

    def used(self) -> int:
        return sum(len(eni["addresses"]) for eni in self.enis.values())

    def new_addresses(self, count: int) -> list[str] | None:
        if self.used() + count > SUBNET_SIZE:
            return None
        return [f"10.0.{n // 250}.{n % 250}" for n in itertools.islice(self.addresses, count)]

    def observe(self, eni_id: str) -> ObservedEni | None:
        eni = self.enis.get(eni_id)
        if eni is None:
            return None
        return ObservedEni(
            id=eni_id,
            mac="02:" + eni_id,
            subnet_id="subnet-1",
            primary_ip=eni["ip"],
            addresses=tuple(eni["addresses"]),
            device_index=eni["index"],
            attachment_id=eni["attachment"],
            attachment_status="attached" if eni["index"] is not None else "",
            owned=eni["owned"],
            primary=eni["primary"],
            delete_on_termination=not eni["keep"],
        )

    def carry_out(self, effect: do.Operation) -> on.Event:
        match effect:
            case do.CreateEni(op, token, _, count):
                if token in self.tokens:
                    eni_id = self.tokens[token]
                    if eni_id not in self.enis:
                        return failed(op, CloudErrorKind.INVALID)
                else:
                    addresses = self.new_addresses(count)
                    if addresses is None:
                        return failed(op, CloudErrorKind.SUBNET_FULL)
                    assert 0 < count <= self.limits.secondary_per_eni
                    eni_id = f"eni-{next(self.names)}"
                    self.tokens[token] = eni_id
                    self.enis[eni_id] = {
                        "index": None,
                        "owned": True,
                        "primary": False,
                        "ip": f"10.0.9.{len(self.tokens)}",
                        "addresses": addresses,
                        "attachment": "",
                        "keep": True,
                    }
                eni = self.enis[eni_id]
                created = CreatedEni(eni_id, "02:" + eni_id, "subnet-1", eni["ip"], tuple(eni["addresses"]))
                return on.EniCreated(op, created)
            case do.AttachEni(op, eni_id, device_index):
                if eni_id not in self.enis:
                    return failed(op, CloudErrorKind.NOT_FOUND)
                attached = [eni for eni in self.enis.values() if eni["index"] is not None]
                if self.enis[eni_id]["index"] is not None:
                    return failed(op, CloudErrorKind.INVALID)
                if any(eni["index"] == device_index for eni in attached):
                    return failed(op, CloudErrorKind.INVALID)
                if len(attached) >= self.limits.max_enis:
                    return failed(op, CloudErrorKind.ATTACHMENT_LIMIT)
                self.enis[eni_id].update(index=device_index, attachment="att-" + eni_id)
                return on.EniAttached(op, "att-" + eni_id)
            case do.SetDeleteOnTermination(op, eni_id, _):
                self.enis[eni_id]["keep"] = False
                return on.OperationDone(op)
            case do.DescribeEni(op, eni_id):
                return on.EniObserved(op, self.observe(eni_id))
            case do.ConfigureLink(op, eni_id):
                return on.LinkReady(op, "eth" + eni_id)
            case do.AssignAddresses(op, eni_id, count):
                held = self.enis[eni_id]["addresses"]
                if len(held) + count > self.limits.secondary_per_eni:
                    return failed(op, CloudErrorKind.ENI_ADDRESS_LIMIT)
                addresses = self.new_addresses(count)
                if addresses is None:
                    return failed(op, CloudErrorKind.SUBNET_FULL)
                held.extend(addresses)
                return on.AddressesAssigned(op, tuple(addresses))
            case do.DeleteEni(op, eni_id):
                if eni_id not in self.enis:
                    return failed(op, CloudErrorKind.NOT_FOUND)
                if self.enis[eni_id]["index"] is not None:
                    return failed(op, CloudErrorKind.INCORRECT_STATE)
                del self.enis[eni_id]
                return on.OperationDone(op)


def failed(op: int, kind: CloudErrorKind) -> on.OperationFailed:
    return on.OperationFailed(op, CloudFailure(kind, "AnyAction", kind.name, "as the test wished"))


class Ledger:
    def __init__(self) -> None:
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self.cooling: dict[str, Cooling] = {}
        self.intents: dict[str, Intent] = {}

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


class PoolMachine(RuleBasedStateMachine):
    @initialize(
        warm=st.integers(0, 4),
        minimum=st.integers(0, 6),
        max_pods=st.integers(0, 8),
        coalesce=st.sampled_from([0.0, 0.05]),
        seed=st.integers(0, 9),
    )
    def build(self, warm: int, minimum: int, max_pods: int, coalesce: float, seed: int) -> None:
        self.now = 1000.0
        self.limits = Limits(max_enis=3, addresses_per_eni=4)
        self.targets = Targets(warm, minimum, max_pods, cooldown=30.0, allocate_wait=30.0, coalesce=coalesce)
        self.cloud = Cloud(self.limits)
        self.ledger = Ledger()
        self.random = Random(seed)
        self.tokens = itertools.count(1)
        self.requests = itertools.count(1)
        self.keys = itertools.count(1)
        self.boot()

    def boot(self) -> None:
        """A fresh process: callers, operations under way and the wish to wake died with the old one."""
        self.pool = Pool(self.targets, self.limits, ("subnet-1",), self.random, lambda: f"t{next(self.tokens)}")
        self.open_requests: dict[str, tuple[AttachmentKey, float]] = {}
        self.in_flight: list[do.Operation] = []
        self.wake_at: float | None = None
        self.released_at: dict[str, float] = {c.address: c.released_at for c in self.ledger.cooling.values()}
        enis = tuple(o for i in self.cloud.enis if (o := self.cloud.observe(i)) is not None)
        self.feed(
            on.Started(
                enis,
                tuple(self.ledger.attachments.values()),
                tuple(self.ledger.cooling.values()),
                tuple(self.ledger.intents.values()),
            )
        )

    def feed(self, event: on.Event, ledger_fails: bool = False) -> None:
        batch = self.pool.handle(event, self.now)
        writes = [e.record for e in batch if isinstance(e, do.Write)]
        unrecorded: set[AttachmentKey] = set()
        if ledger_fails:
            unrecorded = {w.attachment.key for w in writes if isinstance(w, PutAttachment)}
        for record in writes:
            if not (isinstance(record, PutAttachment) and record.attachment.key in unrecorded):
                self.ledger.apply(record)
        lost = tuple(e for e in batch if isinstance(e, do.Grant) and e.attachment.key in unrecorded)
        for effect in batch:
            if effect not in lost:
                self.carry_out(effect)
        if lost:
            self.feed(on.GrantsUnrecorded(lost, "disk full"))

    def carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Grant(request, attachment):
                key, _ = self.open_requests.pop(request)
                assert attachment.key == key
                assert self.ledger.attachments.get(key) == attachment, "granted, but not on record"
                holders = [a for a in self.ledger.attachments.values() if a.address == attachment.address]
                assert holders == [attachment], "one address, two holders"
                assert any(
                    attachment.address in eni["addresses"] and eni["index"] is not None
                    for eni in self.cloud.enis.values()
                ), "granted what EC2 does not route here"
                if attachment.since == self.now and attachment.address in self.released_at:
                    assert self.now >= self.released_at.pop(attachment.address) + self.targets.cooldown
            case do.Refuse(request, refusal):
                self.open_requests.pop(request)
                assert refusal.message
            case do.Released(_, attachment):
                if attachment is not None:
                    self.released_at[attachment.address] = self.now
            case do.Wake(at):
                self.wake_at = at
            case do.Write() | do.Note() | do.Collected():
                pass
            case _:
                self.in_flight.append(effect)

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
        self.request(data.draw(st.sampled_from(sorted(key for key, _ in self.open_requests.values()))))

    @rule()
    def allocate_while_the_disk_is_full(self) -> None:
        self.request(AttachmentKey("net", f"c{next(self.keys)}", "eth0"), ledger_fails=True)

    def request(self, key: AttachmentKey, ledger_fails: bool = False) -> None:
        request = f"r{next(self.requests)}"
        deadline = self.now + 30.0
        self.open_requests[request] = (key, deadline)
        self.feed(on.AllocationRequested(request, key, Owner(), deadline), ledger_fails)

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
            self.released_at[before[key].address] = self.now

    # What the cloud does

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        effect = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.feed(self.cloud.carry_out(effect))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), kind=st.sampled_from(list(CloudErrorKind)))
    def fail(self, data: st.DataObject, kind: CloudErrorKind) -> None:
        effect = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if isinstance(effect, do.ConfigureLink):
            self.feed(on.LinkFailed(effect.op, "no link"))
            return None
        if kind is CloudErrorKind.NOT_FOUND and not isinstance(effect, do.CreateEni):
            return self.in_flight.append(effect)  # EC2 does not lie about that here
        if isinstance(effect, do.CreateEni) and effect.token in self.cloud.tokens:
            kind = CloudErrorKind.THROTTLED  # nor about a token that it has seen
        self.feed(failed(effect.op, kind))
        return None

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def time_out_after_the_effect(self, data: st.DataObject) -> None:
        effect = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if isinstance(effect, do.ConfigureLink):
            return self.in_flight.append(effect)
        self.cloud.carry_out(effect)
        self.feed(failed(effect.op, CloudErrorKind.UNKNOWN_OUTCOME))
        return None

    # What time and fate do

    @rule(seconds=st.sampled_from([0.01, 0.05, 1.0, 7.0, 31.0, 100.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.wake_at is not None and self.wake_at <= end:
            self.now = max(self.now, self.wake_at)
            self.wake_at = None
            self.feed(on.TimePassed())
        self.now = end

    @rule(after_sending=st.booleans())
    def crash(self, after_sending: bool) -> None:
        """kill -9: what was on its way reaches EC2 or not."""
        if after_sending:
            for effect in self.in_flight:
                self.cloud.carry_out(effect)
        self.boot()

    @rule(warm=st.integers(0, 4), max_pods=st.integers(0, 8))
    def change_targets(self, warm: int, max_pods: int) -> None:
        self.targets = Targets(warm, self.targets.minimum_ips, max_pods, coalesce=self.targets.coalesce)
        self.feed(on.TargetsChanged(self.targets))

    @rule()
    def calm(self) -> None:
        """Faults stop: the pool reaches its target, answers everybody and then asks nothing of EC2."""
        for _ in range(400):
            while self.in_flight:
                self.feed(self.cloud.carry_out(self.in_flight.pop(0)))
            if self.wake_at is None:
                break
            self.now = max(self.now, self.wake_at)
            self.wake_at = None
            self.feed(on.TimePassed())
        assert self.wake_at is None and not self.in_flight, "the pool does not come to rest"
        assert not self.open_requests
        counts = self.pool.counts()
        full = self.cloud.used() + 1 > SUBNET_SIZE
        reachable = min(self.targets.warm_ips, self.pool.max_pods - counts.assigned)
        enough = counts.free >= reachable and counts.total >= min(self.targets.minimum_ips, self.pool.max_pods)
        assert enough or full, counts
        assert all(eni["index"] is not None and not eni["keep"] for eni in self.cloud.enis.values())
        assert not self.ledger.intents and not self.ledger.cooling

    # What always holds

    @invariant()
    def counts_add_up(self) -> None:
        inventory = self.pool.inventory
        for eni in inventory.enis.values():
            states = [a.state.value for a in inventory.addresses.values() if a.eni is eni]
            assert states.count("free") == len(eni.free)
            assert states.count("assigned") == eni.assigned
            assert states.count("cooling") == eni.cooling
            assert eni.pending >= 0 and eni.held + eni.pending <= eni.capacity
        counts = self.pool.counts()
        assert counts.total == counts.free + counts.assigned + counts.cooling + counts.releasing
        alive = [eni for eni in inventory.enis.values() if eni.state is not EniState.DELETING]
        assert len(alive) <= self.limits.max_enis
        assert len({eni.device_index for eni in alive}) == len(alive)

    @invariant()
    def memory_and_ledger_agree(self) -> None:
        assert self.pool.inventory.attachments == self.ledger.attachments
        cooling = {c.address: c.released_at for c in self.ledger.cooling.values()}
        assert self.pool.inventory.cooling == cooling
        assert list(self.pool.inventory.cooling.values()) == sorted(cooling.values())

    @invariant()
    def nobody_waits_beyond_the_deadline(self) -> None:
        assert set(self.pool.waiting) == set(self.open_requests)
        for _, deadline in self.open_requests.values():
            assert self.now <= deadline or (self.wake_at is not None and self.wake_at <= deadline)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=1000,
    stateful_step_count=100,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
