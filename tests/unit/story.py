"""A pool told as a story: events by hand, and a look at what it asked for."""

from __future__ import annotations

from ipaddress import IPv4Network
from random import Random
from typing import TypeVar

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.awaited import waits
from ipamd.pool.model import AttachmentKey, CloudErrorKind, CloudFailure, Limits, ObservedEni, Owner, Record, Targets
from ipamd.pool.pool import Pool
from ipamd.pool.queue import WaitsFor

E = TypeVar("E")

SUBNET = IPv4Network("10.0.0.0/16")
M5_LARGE = Limits(max_enis=3, addresses_per_eni=10)


def observed(eni_id: str = "eni-0", index: int | None = 0, *addresses: str, owned: bool = False) -> ObservedEni:
    attachment = "" if index is None else f"attach-{eni_id}"
    return ObservedEni(
        id=eni_id,
        mac=f"02:{eni_id}",
        subnet_id="subnet-1",
        primary_ip="10.0.0.4",
        addresses=addresses,
        device_index=index,
        attachment_id=attachment,
        attachment_status="attached" if attachment else "",
        owned=owned,
        primary=index == 0,
    )


def addresses(count: int, first: int = 10) -> tuple[str, ...]:
    return tuple(f"10.0.0.{n}" for n in range(first, first + count))


class Story:
    """A pool, a clock, and what the pool asked for that nobody has done yet."""

    def __init__(self, targets: Targets, limits: Limits = M5_LARGE, subnets: tuple[str, ...] = ("subnet-1",)) -> None:
        self.now = 1000.0
        names = iter(range(1000))
        self.pool = Pool(targets, limits, subnets, Random(1), lambda: f"token-{next(names)}")
        self.records: list[Record] = []
        self.effects: list[do.Effect] = []
        self.forgets = True  # the kernel forgets flows at once

    def feed(self, event: on.Event) -> None:
        turn = self.pool.handle(event, self.now)
        self.records += turn.records
        self.effects += turn.then
        if self.forgets:
            for effect in self.take(do.ForgetFlows):
                self.feed(on.OperationDone(effect.op))

    def written(self) -> list[Record]:
        """What was recorded since the last look."""
        records, self.records = self.records, []
        return records

    def take(self, kind: type[E]) -> list[E]:
        """What was asked for of this kind since the last look."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def one(self, kind: type[E]) -> E:
        (effect,) = self.take(kind)
        return effect

    def start(self, *enis: ObservedEni, **kept: object) -> None:
        self.feed(on.Started(enis or (observed(),), **kept))  # type: ignore[arg-type]
        for effect in self.take(do.ConfigureLink):
            self.feed(on.LinkReady(effect.op, f"eth{effect.device_index}", SUBNET))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(on.TimePassed())

    def wake(self) -> None:
        """At the time that the pool wished for last."""
        at = self.take(do.Wake)[-1].at
        assert at is not None and at > self.now
        self.now = at
        self.pass_time(0)

    def waited_for(self) -> dict[str, WaitsFor]:
        """By request, in order."""
        return {waiting.request: what for waiting, what in waits(self.pool, self.now)}

    def ask(self, *names: str, wait: float = 30.0, wanted: str = "", blocks_releases: bool = False) -> None:
        for name in names:
            key, owner = AttachmentKey("net", name, "eth0"), Owner(pod_name=name)
            self.feed(on.AllocationRequested(name, key, owner, self.now + wait, wanted, blocks_releases))

    def give_back(self, name: str) -> None:
        self.feed(on.ReleaseRequested(f"del {name}", AttachmentKey("net", name, "eth0")))

    def read_subnets(self, **available: int) -> None:
        effect = self.one(do.DescribeSubnets)
        self.feed(on.SubnetsObserved(effect.op, tuple(available.items())))

    def fail(self, effect: do.Operation, kind: CloudErrorKind, action: str = "AssignPrivateIpAddresses") -> None:
        self.feed(on.OperationFailed(effect.op, CloudFailure(kind, action, kind.name, "EC2's words")))


def warm(count: int = 0, **more: float) -> Targets:
    plain = {"coalesce": 0.0, "slack": 0, "reuse_cooling_after": 30.0}
    return Targets(warm_ips=count, **{**plain, **more})  # type: ignore[arg-type]


def full_node(**more: float) -> Story:
    """No room is left: both of its addresses are in use."""
    story = Story(warm(0, **more), Limits(1, 3))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b")
    story.take(do.Grant)
    return story
