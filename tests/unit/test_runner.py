"""The shell around the pool, with a real ledger and a cloud that does what the test says."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from ipamd.cloud.port import CloudError, Identity, Priority
from ipamd.cloud.vpc import Vpc
from ipamd.host import Applied, HostError, HostNetwork, NodeNetwork
from ipamd.host.links import Link
from ipamd.host.veth import host_link
from ipamd.ledger import Ledger, LedgerCause, LedgerError
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
    Limits,
    ObservedEni,
    Owner,
    PutAttachment,
    PutCooling,
    PutIntent,
    Reason,
    Record,
    Targets,
    Use,
    Uses,
)
from ipamd.pool.pool import Pool
from ipamd.shell import turn as runner_module
from ipamd.shell.assembly import around
from ipamd.shell.turn import Clock, PoolRunner, Refused
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.tracing import NoTraces

IDENTITY = Identity(
    "i-1", "m5.large", "eu-west-1", "eu-west-1a", "02:eni-0", "eni-0", "10.0.0.4", "subnet-1", "10.0.0.0/24", "vpc-1",
    ("10.0.0.0/16",), ("sg-1",),
)  # fmt: skip
PRIMARY = ObservedEni("eni-0", "02:eni-0", "subnet-1", "10.0.0.4", (), 0, "att-0", "attached", False, primary=True)

PUPPET = 1000  # the first number of the operations that a test makes up
ABANDONED = ObservedEni("eni-9", "02:eni-9", "subnet-1", "10.0.0.9", (), None, "", "", False)


class Cloud:
    """EC2 with one subnet. `budget` holds every call back before it is sent, and `gate` before it is answered, until
    they are set; `script` has errors by action. `priorities` are of all calls, `calls` those that were sent."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.script: dict[str, Exception] = {}
        self.priorities: list[tuple[str, Priority]] = []
        self.budget = asyncio.Event()
        self.budget.set()
        self._given = {"addresses": 10, "enis": 0}
        self._priority = Priority.POD
        self._before: Callable[[], Awaitable[None]] | None = None

    def at(self, priority: Priority, before: Callable[[], Awaitable[None]] | None = None) -> Cloud:
        view = copy.copy(self)
        view._priority, view._before = priority, before
        return view

    async def _enter(self, action: str) -> None:
        self.priorities.append((action, self._priority))
        await self.budget.wait()
        if self._before is not None:
            await self._before()
        self.calls.append(action)
        await self.gate.wait()
        if action in self.script:
            raise self.script[action]

    def _addresses(self, count: int) -> tuple[str, ...]:
        first = self._given["addresses"]
        self._given["addresses"] += count
        return tuple(f"10.0.0.{n}" for n in range(first, first + count))

    async def create_eni(
        self, *, token: str, subnet_id: str, security_groups: tuple[str, ...], address_count: int
    ) -> CreatedEni:
        assert security_groups == ("sg-1",)
        await self._enter("CreateNetworkInterface")
        self._given["enis"] += 1
        number = self._given["enis"]
        name = f"eni-{number}"
        return CreatedEni(name, f"02:{name}", subnet_id, f"10.0.1.{number}", self._addresses(address_count))

    async def attach_eni(self, eni_id: str, device_index: int) -> str:
        await self._enter("AttachNetworkInterface")
        return f"att-{eni_id}"

    async def set_delete_on_termination(self, eni_id: str, attachment_id: str) -> None:
        await self._enter("ModifyNetworkInterfaceAttribute")

    async def describe_eni(self, eni_id: str) -> ObservedEni | None:
        await self._enter("DescribeNetworkInterfaces")
        return PRIMARY

    async def describe_enis(self) -> list[ObservedEni]:
        await self._enter("DescribeNetworkInterfaces")
        return [PRIMARY]

    async def describe_abandoned(self) -> list[ObservedEni]:
        if "DescribeInstances" in self.script:
            raise self.script["DescribeInstances"]
        return [ABANDONED]

    async def available_addresses(self, subnet_ids: tuple[str, ...]) -> dict[str, int]:
        await self._enter("DescribeSubnets")
        return {"subnet-1": 7}

    async def unassign_addresses(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        await self._enter("UnassignPrivateIpAddresses")

    async def detach_eni(self, attachment_id: str) -> None:
        await self._enter("DetachNetworkInterface")

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        await self._enter("AssignPrivateIpAddresses")
        return self._addresses(count)

    async def delete_eni(self, eni_id: str) -> None:
        await self._enter("DeleteNetworkInterface")


class Network:
    """The kernel, as the test wants it. `asked` is what was read or done, in order."""

    def __init__(self) -> None:
        self.served: list[set[str]] = []
        self.asked: list[str] = []
        self.routes: dict[str, str] = {}
        self.others: dict[str, Use] = {}
        self.news: dict[str, Use] = {}
        self.listener: Any = None
        self.links: set[str] = set()
        self.error: HostError | None = None

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    @property
    def uses(self) -> Network:
        return self

    def read(self) -> tuple[Uses, dict[str, str]]:
        self._ask("uses")
        return Uses(self.others), dict(self.routes)

    def catch_up(self) -> None:
        """Tells of `news`, as a kernel would that has not been listened to for a moment."""
        news, self.news = self.news, {}
        for address, use in news.items():
            self.listener.use_seen(IPv4Network(address), use)

    async def vpc_cidrs(self) -> tuple[str, ...]:
        return ("10.0.0.0/16",)

    async def not_forwarding(self) -> frozenset[str]:
        self._ask("forwarding")
        return frozenset({"eth9"})

    async def host_links(self) -> frozenset[str]:
        self._ask("links")
        return frozenset(self.links)

    async def forget_flows(self, addresses: tuple[str, ...]) -> int:
        self._ask(f"flows of {', '.join(addresses)}")
        return 3

    async def wait_for_link(self, mac: str, timeout: float) -> Link:
        return Link(2, f"eth-{mac}", mac, 9001, True)

    async def apply(self, node: NodeNetwork, withheld: object) -> Applied:
        self.asked.append("apply")
        self.served.append({eni.eni_id for eni in node.enis})
        return Applied()

    def listen(self, listener: Any, pod_at: object = None) -> None:
        self.listener = listener if pod_at is None else self.listener


class Puppet(Pool):
    """The real pool, which can be made to ask for something. `heard` are all events."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.heard: list[on.Event] = []
        self.asks = do.Turn()

    def handle(self, event: on.Event, now: float) -> do.Turn:
        self.heard.append(event)
        asked, self.asks = self.asks, do.Turn()
        turn = do.Turn() if self.puppet(event) else super().handle(event, now)
        return do.Turn(asked.records + turn.records, asked.then + turn.then)

    @staticmethod
    def puppet(event: on.Event) -> bool:
        """The outcome of something that the real pool did not ask for."""
        return getattr(event, "op", 0) >= PUPPET


class Witness(Ledger):
    """A ledger that shows what was committed when, and refuses on demand."""

    refuses = False
    keeps_nothing = False
    refused = 0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.commits: list[tuple[Record, ...]] = []

    def commit(self, records: Sequence[Record]) -> None:
        if self.refuses:
            self.refused += 1
            raise LedgerError(LedgerCause.FULL, self.path, "database or disk is full")
        super().commit(records)
        self.commits.append(tuple(records))

    def owe(self, records: Sequence[Record]) -> bool:
        return not self.keeps_nothing and super().owe(records)


@dataclass
class Node:
    runner: PoolRunner
    ledger: Witness
    cloud: Cloud
    network: Network
    pool: Puppet
    answers: list[str] = field(default_factory=list)

    def start(self, *addresses: str, **kept: Any) -> None:
        primary = ObservedEni(
            "eni-0", "02:eni-0", "subnet-1", "10.0.0.4", addresses, 0, "att-0", "attached", False, primary=True
        )
        self.runner.feed(on.Started((primary,), **kept))

    async def ask(self, name: str, wait: float = 30.0) -> Attachment:
        return await self.runner.allocate(f"r-{name}-{len(self.answers)}", key(name), Owner(pod_name=name), wait)

    def order(self, *effects: do.Effect) -> None:
        """As if the pool wanted it."""
        self.pool.asks = do.Turn((), effects)
        self.runner.feed(on.TimePassed())

    def record(self, *records: Record) -> None:
        """As if the pool had decided so."""
        self.pool.asks = do.Turn(records)
        self.runner.feed(on.TimePassed())

    async def outcome(self, effect: do.Operation) -> on.Event:
        self.order(effect)
        await until(lambda: any(getattr(event, "op", 0) == effect.op for event in self.pool.heard))
        return next(event for event in self.pool.heard if getattr(event, "op", 0) == effect.op)

    async def release(self, name: str) -> Attachment | None:
        return await self.runner.release(f"del-{name}", key(name), None)

    def recorded(self) -> set[AttachmentKey]:
        return {attachment.key for attachment in self.ledger.load().attachments}


def key(name: str) -> AttachmentKey:
    return AttachmentKey("net", name, "eth0")


def denied(action: str) -> CloudError:
    return CloudError(CloudFailure(CloudErrorKind.NOT_AUTHORIZED, action, "UnauthorizedOperation", "no"))


@pytest.fixture
async def build(tmp_path: Path) -> Any:
    """Makes nodes, and at the end sees to it that nothing of them is left running."""
    nodes: list[Node] = []

    def make(**targets: Any) -> Node:
        ledger = cast(Witness, Witness.open(tmp_path / f"ledger-{len(nodes)}.db"))
        cloud, network = Cloud(), Network()
        tokens = iter(f"token-{n}" for n in range(10000))
        wanted = Targets(**{"warm_ips": 0, "slack": 0, "coalesce": 0.0, "cooldown": 30.0, **targets})
        pool = Puppet(wanted, Limits(3, 10), ("subnet-1",), Random(1), lambda: next(tokens))
        vpc = Vpc(IDENTITY, network.vpc_cidrs, Conditions(), Clock())
        host = cast(HostNetwork, network)
        shell = around(pool, ledger, cast(Any, cloud), host, vpc, ("sg-1",), Clock(), lambda: None, NoTraces())
        nodes.append(Node(shell.runner, ledger, cloud, network, pool))
        return nodes[-1]

    yield make
    for node in nodes:
        node.cloud.gate.set()
        node.cloud.budget.set()
        await node.runner.stop(1.0)
        node.ledger.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


Build = Callable[..., Node]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# Order


async def test_an_answer_leaves_after_its_record(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    attachment = await node.ask("a")
    assert attachment.address == "10.0.0.200"
    assert node.recorded() == {key("a")}


async def test_a_call_that_changes_something_is_sent_after_its_intent(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.gate.clear()
    waiting = asyncio.create_task(node.ask("a"))
    await until(lambda: "AssignPrivateIpAddresses" in node.cloud.calls)
    assert [intent.action for intent in node.ledger.load().intents] == ["AssignPrivateIpAddresses"]
    node.cloud.gate.set()
    await waiting
    assert node.ledger.load().intents == ()


async def test_all_requests_of_one_turn_share_one_transaction(build: Build) -> None:
    node = build()
    node.start(*(f"10.0.0.{n}" for n in range(200, 206)))
    await turns()
    before = len(node.ledger.commits)
    await asyncio.gather(*(node.ask(name) for name in "abcdef"))
    assert len(node.ledger.commits) == before + 1
    assert sum(isinstance(record, PutAttachment) for record in node.ledger.commits[-1]) == 6


async def test_a_burst_grows_by_a_new_eni_that_the_host_then_serves(build: Build) -> None:
    node = build()
    node.start()
    granted = await asyncio.gather(*(node.ask(f"pod-{n}") for n in range(12)))
    assert len({attachment.address for attachment in granted}) == 12
    assert node.network.served[-1] == {"eni-0", "eni-1"}
    assert node.pool.counts().assigned == 12


# Callers


async def test_a_caller_that_goes_away_leaves_the_queue(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.gate.clear()
    gone, patient = asyncio.create_task(node.ask("gone")), asyncio.create_task(node.ask("patient"))
    await turns()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    node.cloud.gate.set()
    await patient
    assert node.recorded() == {key("patient")}
    assert not node.pool.waiting


async def test_caller_that_left_during_its_grant_gets_it_later(
    build: Build,
) -> None:
    node = build()
    node.start("10.0.0.200", "10.0.0.201")
    asked = asyncio.create_task(node.ask("a"))
    await until(lambda: key("a") in node.pool.inventory.attachments)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    held = node.pool.inventory.attachments[key("a")]
    assert await node.ask("a") == held
    assert node.recorded() == {key("a")}


async def test_a_request_that_is_refused_has_the_reason(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.script["AssignPrivateIpAddresses"] = denied("AssignPrivateIpAddresses")
    node.cloud.script["CreateNetworkInterface"] = denied("CreateNetworkInterface")
    with pytest.raises(Refused) as refused:
        await node.ask("a")
    assert refused.value.refusal.reason is Reason.NOT_AUTHORIZED


async def test_a_deadline_is_kept(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.gate.clear()
    with pytest.raises(Refused) as refused:
        await node.ask("a", wait=0.05)
    assert refused.value.refusal.reason is Reason.TIMEOUT


async def test_releasing_twice_is_a_success(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    await node.ask("a")
    released = await node.release("a")
    assert released is not None and released.address == "10.0.0.200"
    assert await node.release("a") is None
    assert node.recorded() == set()
    assert [cooling.address for cooling in node.ledger.load().cooling] == ["10.0.0.200"]


async def test_collecting_spares_what_is_valid(build: Build) -> None:
    node = build()
    old = [Attachment(key(name), f"10.0.0.{n}", "eni-0", 1.0) for n, name in enumerate(("a", "b"), 200)]
    node.ledger.commit([PutAttachment(attachment) for attachment in old])
    node.start("10.0.0.200", "10.0.0.201", attachments=tuple(old))
    collected = await node.runner.collect("gc", "net", frozenset({("a", "eth0")}))
    assert collected == (old[1],)
    assert node.recorded() == {key("a")}


# A ledger that refuses


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "LEDGER_RETRY", 0.02)


async def test_what_can_not_be_recorded_is_not_granted(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    await turns()
    node.ledger.refuses = True
    with capture_logs() as logs, pytest.raises(Refused) as refused:
        await node.ask("a")
    assert refused.value.refusal.reason is Reason.LEDGER_UNWRITABLE
    assert refused.value.refusal.retry_after is not None
    assert [entry["event"] for entry in logs] == ["ledger.unwritable"]
    assert "free space" in logs[0]["error"]
    node.ledger.refuses = False
    assert (await node.ask("b")).address == "10.0.0.200"
    assert node.recorded() == {key("b")}


async def test_what_is_on_record_is_still_confirmed(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    held = await node.ask("a")
    node.ledger.refuses = True
    assert await node.ask("a") == held


async def test_releases_continue_and_their_records_follow_unprompted(build: Build, eager: None) -> None:
    node = build(cooldown=3600.0)
    node.start("10.0.0.200")
    await node.ask("a")
    node.ledger.refuses = True
    with capture_logs() as logs:
        released = await node.release("a")
        assert released is not None
        assert node.recorded() == {key("a")}
        await until(lambda: node.ledger.refused > 3)
        node.ledger.refuses = False
        await until(lambda: node.recorded() == set())
    assert [cooling.address for cooling in node.ledger.load().cooling] == ["10.0.0.200"]
    assert [entry["event"] for entry in logs] == ["ledger.unwritable", "ledger.writable_again"]


@pytest.mark.parametrize("known", ["released", "collected", "repeated"])
async def test_a_release_that_nothing_keeps_is_refused(build: Build, eager: None, known: str) -> None:
    """Answered, it would be forgotten by a kill: the plugin keeps it in the spool instead."""
    node = build(cooldown=3600.0)
    old = Attachment(key("a"), "10.0.0.200", "eni-0", node.runner.clock() - 3600)
    node.ledger.commit([PutAttachment(old)])
    node.start("10.0.0.200", attachments=(old,))
    await turns()
    node.ledger.refuses = node.ledger.keeps_nothing = True
    with pytest.raises(Refused) as refused:
        if known == "collected":
            await node.runner.collect("gc", "net", frozenset())
        else:
            await node.release("a")
    assert refused.value.refusal.reason is Reason.LEDGER_UNWRITABLE
    if known == "repeated":
        with pytest.raises(Refused):
            await node.release("a")
    node.ledger.refuses = False
    await until(lambda: node.recorded() == set())
    assert await node.release("a") is None


async def test_a_release_that_is_kept_beside_the_ledger_is_answered(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    await node.ask("a")
    node.ledger.refuses = True
    assert await node.release("a")
    assert node.ledger._owed._end > 0
    node.ledger.refuses = False
    await node.ask("b")
    assert node.ledger._owed._end == 0


async def test_records_that_are_owed_come_before_new_ones(build: Build) -> None:
    """Else one address would have two holders in the ledger, which refuses that."""
    node = build(cooldown=0.0)
    node.start("10.0.0.200")
    await node.ask("a")
    node.ledger.refuses = True
    await node.release("a")
    node.ledger.refuses = False
    assert (await node.ask("b")).address == "10.0.0.200"
    assert node.recorded() == {key("b")}
    assert any(isinstance(record, DropAttachment) for record in node.ledger.commits[-1])


async def test_a_grant_and_its_release_in_one_turn_leave_nothing_owed(build: Build, eager: None) -> None:
    node = build(cooldown=0.0)
    node.start("10.0.0.200")
    await turns()
    node.ledger.refuses = True
    granted, released = await asyncio.gather(node.ask("a"), node.release("a"), return_exceptions=True)
    assert isinstance(granted, Refused)
    assert isinstance(released, Attachment)
    node.ledger.refuses = False
    assert (await node.ask("b")).address == "10.0.0.200"
    assert node.recorded() == {key("b")}


async def test_call_without_recordable_intent_is_not_sent_or_spun(build: Build) -> None:
    node = build()
    node.start()
    await turns()
    node.ledger.refuses = True
    with pytest.raises(Refused) as refused:
        await node.ask("a")
    assert refused.value.refusal.reason is Reason.LEDGER_UNWRITABLE
    await turns(500)
    assert node.cloud.calls == []
    assert node.ledger.refused < 10


async def test_an_attachment_is_not_sent_until_its_intent_is_on_record(build: Build, eager: None) -> None:
    node = build()
    node.start(*(f"10.0.0.{n}" for n in range(200, 209)))
    await asyncio.gather(*(node.ask(f"pod-{n}") for n in range(9)))
    node.cloud.gate.clear()
    last = asyncio.create_task(node.ask("last"))
    await until(lambda: "CreateNetworkInterface" in node.cloud.calls)
    node.ledger.refuses = True
    node.cloud.gate.set()
    await until(lambda: node.ledger.refused > 3)
    assert "AttachNetworkInterface" not in node.cloud.calls
    node.ledger.refuses = False
    await asyncio.gather(last, return_exceptions=True)
    await until(lambda: "AttachNetworkInterface" in node.cloud.calls)
    written = [record.intent for commit in node.ledger.commits for record in commit if isinstance(record, PutIntent)]
    assert any(intent.action == "AttachNetworkInterface" for intent in written)


# Faults


async def test_crash_in_a_call_is_an_unknown_outcome_with_back_off(build: Build) -> None:
    node = build(allocate_wait=0.3)
    node.start()
    node.cloud.script["AssignPrivateIpAddresses"] = KeyError("AssignedPrivateIpAddresses")
    node.cloud.script["CreateNetworkInterface"] = KeyError("NetworkInterface")
    with capture_logs() as logs, pytest.raises(Refused) as refused:
        await node.ask("a")
    assert refused.value.refusal.reason is Reason.CLOUD_UNAVAILABLE
    assert node.cloud.calls.count("AssignPrivateIpAddresses") < 5
    assert any(entry["event"] == "operation.crashed" for entry in logs)


async def test_a_link_that_the_host_can_not_serve_is_tried_again_later(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = build()

    async def refuse(self: Network, node: NodeNetwork, withheld: object) -> Applied:
        raise HostError("nft is missing; install nftables")

    monkeypatch.setattr(Network, "apply", refuse)
    with capture_logs() as logs:
        node.start("10.0.0.200")
        await until(lambda: any(entry["event"] == "eni.link_failed" for entry in logs))
    assert not node.pool.can_serve()


async def test_contradictory_pool_ends_the_runner_and_waiting_calls(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = build()
    node.start()
    node.cloud.gate.clear()
    waiting = asyncio.create_task(node.ask("a"))
    await until(lambda: bool(node.cloud.calls))

    def contradict(event: on.Event, now: float) -> Any:
        raise AssertionError("two holders")

    monkeypatch.setattr(node.pool, "handle", contradict)
    node.cloud.gate.set()
    with capture_logs() as logs, pytest.raises(Refused) as refused:
        await waiting
    assert refused.value.refusal.reason is Reason.DRAINING
    assert isinstance(node.runner.failed.exception(), AssertionError)
    with pytest.raises(Refused):
        await node.ask("b")
    with pytest.raises(Refused):
        await node.release("a")
    assert [entry["event"] for entry in logs] == ["pool.failed"]


async def test_a_ledger_that_became_read_only_is_no_fault_of_the_core(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    await turns()
    node.ledger._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(Refused) as refused:
        await node.ask("a")
    assert refused.value.refusal.reason is Reason.LEDGER_UNWRITABLE
    assert not node.runner.failed.done()


# Whom a call is for


RELEASES = (
    do.UnassignAddresses(PUPPET, "eni-0", ("10.0.0.9",)),
    do.DetachEni(PUPPET + 1, "eni-0", "att-0", ("10.0.0.9",)),
    do.DeleteEni(PUPPET + 2, "eni-0"),
)
WORK = (
    do.CreateEni(PUPPET + 4, "token", "subnet-1", 1),
    do.AttachEni(PUPPET + 5, "eni-0", 1),
    do.SetDeleteOnTermination(PUPPET + 6, "eni-0", "att-0"),
    do.AssignAddresses(PUPPET + 7, "eni-0", 1),
    do.DescribeEni(PUPPET + 8, "eni-0"),
    do.DescribeSubnets(PUPPET + 9, ("subnet-1",)),
)


@pytest.mark.parametrize("pods_wait", [False, True], ids=["nobody waits", "pods wait"])
async def test_work_is_for_pods_while_any_wait_and_releases_never_are(build: Build, pods_wait: bool) -> None:
    node = build()
    node.start()
    await turns()
    waiting = []
    if pods_wait:
        node.cloud.budget.clear()
        waiting.append(asyncio.create_task(node.ask("a")))
        await until(lambda: bool(node.cloud.priorities))
        assert node.cloud.priorities == [("AssignPrivateIpAddresses", Priority.POD)]
        node.cloud.priorities.clear()
    audit = do.Audit(PUPPET + 3)
    for effect in (*RELEASES, *WORK, audit):
        node.order(effect)
    before = len(RELEASES) + len(WORK)
    await until(lambda: len(node.cloud.priorities) > before)
    expected = Priority.POD if pods_wait else Priority.WARM
    work, last = node.cloud.priorities[:before], node.cloud.priorities[before]
    assert dict(work[: len(RELEASES)]) == dict.fromkeys((effect.action for effect in RELEASES), Priority.RELEASE)
    assert {priority for _, priority in work[len(RELEASES) :]} == {expected}
    assert last == (audit.action, Priority.POD if pods_wait else Priority.RELEASE), (
        "an audit is in no hurry by itself"
    )
    node.cloud.budget.set()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("effect", RELEASES[:2], ids=["unassign", "detach"])
async def test_the_kernel_is_asked_after_the_wait_for_a_token(build: Build, effect: do.Operation) -> None:
    node = build()
    node.start()
    await turns()
    node.cloud.budget.clear()
    node.order(effect)
    await until(lambda: bool(node.cloud.priorities))
    await turns()
    node.network.asked.clear()
    node.network.routes["10.0.0.9"] = "ipm0"  # while it waits, a route appears
    node.cloud.budget.set()
    await until(lambda: any(isinstance(event, on.OperationFailed) for event in node.pool.heard))
    failed = next(event for event in node.pool.heard if isinstance(event, on.OperationFailed))
    assert failed.failure.kind is CloudErrorKind.IN_USE and "10.0.0.9" in failed.failure.message
    assert node.cloud.calls == []
    assert node.network.asked == ["uses"]


async def test_eni_is_detached_once_the_host_stops_serving_it_unused(build: Build) -> None:
    node = build()
    node.start()
    await turns()
    node.network.asked.clear()
    assert await node.outcome(RELEASES[1]) == on.OperationDone(RELEASES[1].op)
    assert node.network.asked == ["uses", "apply", "uses"]
    assert node.cloud.calls == ["DetachNetworkInterface"]


# Looks at the host and at EC2


async def test_an_audit_reads_ec2_and_the_kernel(build: Build) -> None:
    node = build()
    node.start()
    await turns()
    node.network.asked.clear()
    node.network.routes["10.0.0.9"] = "ipm0"
    assert await node.outcome(do.Audit(PUPPET)) == on.Audited(
        *(PUPPET, (PRIMARY,), (ABANDONED,), (("10.0.0.9", "ipm0"),), (("subnet-1", 7),)),
        not_forwarding=frozenset({"eth9"}),
    )
    node.cloud.script["DescribeSubnets"] = denied("DescribeSubnets")
    outcome = await node.outcome(do.Audit(PUPPET + 1))
    assert isinstance(outcome, on.Audited) and outcome.enis == (PRIMARY,) and outcome.available == ()
    assert node.network.asked[0] == "uses"


async def test_audit_runs_without_gone_nodes_leftovers_and_says_so(build: Build) -> None:
    node = build()
    node.start()
    await turns()
    op = PUPPET

    async def audit() -> tuple[int, int]:
        """How many ENIs it saw, of this node and of gone ones."""
        nonlocal op
        op += 1
        outcome = await node.outcome(do.Audit(op))
        assert isinstance(outcome, on.Audited)
        return len(outcome.enis), len(outcome.abandoned)

    with capture_logs() as logs:
        node.cloud.script["DescribeInstances"] = denied("DescribeInstances")
        assert [await audit(), await audit()] == [(1, 0), (1, 0)]
        del node.cloud.script["DescribeInstances"]
        assert await audit() == (1, 1)
        node.cloud.script["DescribeInstances"] = denied("DescribeInstances")
        assert await audit() == (1, 0)
    told = [line for line in logs if line["event"] == "audit.cluster_unread"]
    words = ("warning", "DescribeInstances", "UnauthorizedOperation", "no")
    assert [(line["log_level"], line["action"], line["code"], line["error"]) for line in told] == [words, words]


async def test_subnets_are_told_as_ec2_knows_them(build: Build) -> None:
    node = build()
    node.start()
    outcome = await node.outcome(do.DescribeSubnets(PUPPET, ("subnet-1", "subnet-unknown")))
    assert outcome == on.SubnetsObserved(PUPPET, (("subnet-1", 7),))


async def test_flows_are_forgotten_or_it_is_said_why_not(build: Build) -> None:
    node = build()
    node.start()
    await turns()
    assert await node.outcome(do.ForgetFlows(PUPPET, ("10.0.0.9",))) == on.OperationDone(PUPPET)
    assert node.network.asked[-1] == "flows of 10.0.0.9"
    node.network.error = HostError("no conntrack")
    failed = await node.outcome(do.ForgetFlows(PUPPET + 1, ("10.0.0.9",)))
    assert isinstance(failed, on.OperationFailed)
    assert (failed.failure.kind, failed.failure.action) == (CloudErrorKind.TRANSIENT, "conntrack")


async def test_attachment_is_gone_without_namespace_and_veth(build: Build, tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    held = [
        Attachment(key(name), f"10.0.0.{number}", "eni-0", 1.0, Owner(netns=netns and str(tmp_path / netns)))
        for number, (name, netns) in enumerate(
            {"both": "alive", "netns": "alive", "veth": "ended", "nameless": "", "none": "ended"}.items(), 200
        )
    ]
    node = build()
    node.network.links = {"lo", "eth0", *(host_link(key(name)) for name in ("both", "veth"))}
    node.start(*(attachment.address for attachment in held), attachments=tuple(held))
    outcome = await node.outcome(do.SeekAttachments(PUPPET))
    assert outcome == on.AttachmentsSought(PUPPET, frozenset({key("nameless"), key("none")}))


# Records that can wait


async def test_the_end_of_a_cooldown_waits_for_the_next_commit(build: Build) -> None:
    node = build()
    node.ledger.commit([PutCooling(Cooling("10.0.0.200", 1.0)), PutCooling(Cooling("10.0.0.201", 1.0))])
    node.start("10.0.0.202")
    await turns()
    node.ledger.commits.clear()
    node.record(DropCooling("10.0.0.200"))
    node.record(DropCooling("10.0.0.201"))
    await turns()
    assert node.ledger.commits == []
    await node.ask("a")
    (commit,) = node.ledger.commits
    assert [type(record) for record in commit] == [DropCooling, DropCooling, PutAttachment]
    assert node.ledger.load().cooling == ()


async def test_an_address_that_cools_again_is_still_on_record(build: Build) -> None:
    node = build()
    node.start("10.0.0.200")
    await node.ask("a")
    node.record(DropCooling("10.0.0.200"))  # of an earlier release
    await node.release("a")
    assert [cooling.address for cooling in node.ledger.load().cooling] == ["10.0.0.200"]


async def test_deferrable_records_ask_nothing_of_a_refusing_ledger(build: Build, eager: None) -> None:
    node = build()
    node.start("10.0.0.200")
    await turns()
    node.ledger.refuses = True
    with capture_logs() as logs:
        node.record(DropCooling("10.0.0.200"))
        await asyncio.sleep(0.1)
    assert (node.ledger.refused, logs) == (0, [])
    with pytest.raises(Refused):
        await node.ask("a")
    node.ledger.refuses = False
    await node.ask("b")
    assert any(isinstance(record, DropCooling) for record in node.ledger.commits[-1])


# The end


async def test_call_that_waits_for_its_token_at_end_is_never_sent(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.budget.clear()
    waiting = asyncio.create_task(node.ask("a"))
    await until(lambda: bool(node.cloud.priorities))
    node.runner.feed(on.StopRequested())
    await asyncio.gather(waiting, return_exceptions=True)
    await node.runner.stop(0.05)
    assert node.cloud.calls == []
    assert [intent.action for intent in node.ledger.load().intents] == ["AssignPrivateIpAddresses"]


async def test_stop_waits_for_running_calls_and_records_their_outcome(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.gate.clear()
    waiting = asyncio.create_task(node.ask("a"))
    await until(lambda: bool(node.cloud.calls))
    node.runner.feed(on.StopRequested())
    with pytest.raises(Refused) as refused:
        await waiting
    assert refused.value.refusal.reason is Reason.DRAINING
    asyncio.get_running_loop().call_later(0.05, node.cloud.gate.set)
    await node.runner.stop(5.0)
    assert node.ledger.load().intents == ()
    assert node.pool.counts().free == 1


async def test_stopping_does_not_wait_for_ever_and_leaves_the_intent(build: Build) -> None:
    node = build()
    node.start()
    node.cloud.gate.clear()
    waiting = asyncio.create_task(node.ask("a"))
    await until(lambda: bool(node.cloud.calls))
    node.runner.feed(on.StopRequested())
    await asyncio.gather(waiting, return_exceptions=True)
    await node.runner.stop(0.05)
    assert [intent.action for intent in node.ledger.load().intents] == ["AssignPrivateIpAddresses"]


# Addresses that others use


async def test_what_the_kernel_has_told_is_heard_before_a_grant(build: Build) -> None:
    node = build()
    node.start("10.0.0.10", "10.0.0.11")
    await turns()
    node.network.news = {"10.0.0.10": Use("route", "route 10.0.0.10 dev eni3f", "eni3f")}
    assert (await node.ask("a")).address == "10.0.0.11"
