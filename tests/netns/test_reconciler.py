"""Whatever somebody does to the node's network on a real kernel is noticed, undone, and told once with its culprit.

The stage is that of the node's network (`node_stage`): three ENIs, a pod on each.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from ipamd.host import (
    HostError,
    HostNetwork,
    NodeNetwork,
    PodNetwork,
    Reconciler,
    disputes,
    links,
    netlink,
    reconciler,
    rtnetlink,
)
from ipamd.host.culprit import processes_behind
from ipamd.host.desired import Rule
from ipamd.host.kernel import Kernel
from ipamd.host.nftables import Nftables
from ipamd.sim import netns
from tests.netns.node_stage import ENIS, NODE, Topology

pytestmark = pytest.mark.netns

PODS = tuple(PodNetwork(f"10.0.{i}.50", f"ipm{i}", i) for i in range(3))
WITH_PODS = replace(NODE, pods=PODS)


@pytest.fixture
def stage(prefix: str) -> Iterator[Topology]:
    with Topology(prefix) as topology:
        yield topology


class Keeper:
    """A reconciler at work, and what became of it."""

    def __init__(self, network: HostNetwork, logs: list[Any]) -> None:
        self.node: NodeNetwork = WITH_PODS
        self.gone: list[str] = []
        self.logs = logs
        self.network = network
        self.looks = 0
        self.reconciler = Reconciler(network, self._node, self._pod_at, self.gone.append, time.monotonic)

    def _node(self) -> NodeNetwork:
        self.looks += 1
        return self.node

    def _pod_at(self, address: str) -> PodNetwork | None:
        return next((pod for pod in self.node.pods if pod.address == address), None)

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.logs if entry["event"] == name]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(10):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"{what}; the log has {self.logs}")


@asynccontextmanager
async def keeping(network: HostNetwork) -> AsyncIterator[Keeper]:
    with capture_logs() as logs:
        keeper = Keeper(network, logs)
        await keeper.reconciler.apply()
        task = asyncio.create_task(keeper.reconciler.run())
        try:
            yield keeper
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def kept(stage: Topology, steps: Callable[[Keeper], Awaitable[None]]) -> None:
    async def inside(network: HostNetwork) -> None:
        async with keeping(network) as keeper:
            await steps(keeper)

    stage.host(inside)


def state(stage: Topology) -> tuple[str, ...]:
    """All that is ours, as the system's own tools show it."""
    settings = stage.settings
    sysctls = [
        f"/proc/sys/net/ipv4/conf/{eni}/{name}"
        for eni in ("eth0", "eth1", "eth2")
        for name in ("rp_filter", "arp_ignore")
    ]
    argv = ["ip", "netns", "exec", stage.node, "cat", "/proc/sys/net/ipv4/ip_forward", *sysctls]
    return (
        "\n".join(sorted(stage.ip(stage.node, "rule show").splitlines())),
        stage.ip(stage.node, f"route show table all proto {settings.route_protocol}"),
        "\n".join(re.findall(r"inet \S+", stage.ip(stage.node, "addr show dev eth1"))),
        "\n".join(line for line in stage.ip(stage.node, "link show").splitlines() if "state" in line),
        stage.nft(stage.node, "list table inet ipamd\n").partition("# handle")[0],
        subprocess.run(argv, text=True, capture_output=True, check=True).stdout,
    )


DAMAGE = {
    "one rule": ["rule delete prio 1501"],
    "all rules of ours": [
        "rule delete prio 500",
        "rule delete prio 1100",
        "rule delete prio 1501",
        "rule delete prio 32000",
    ],
    "every rule": ["rule flush", "rule add prio 32766 lookup main", "rule add prio 32767 lookup default"],
    "a rule of our protocol that is not ours": ["rule add prio 77 lookup 4711 protocol 158"],
    "an ENI's default route": ["route delete default table 1501"],
    "an ENI's table": ["route flush table 1502"],
    "the pods' table": ["route flush table 1500"],
    "one pod's route": ["route delete 10.0.1.50 table 1500"],
    "another way in the place of ours": ["route replace default dev eth2 table 1501 proto 158"],
    "an ENI's address": ["addr flush dev eth1"],
    "an ENI that is down": ["link set eth1 down"],
    "a pod's veth that is down": ["link set ipm1 down"],
    "a pod's group": ["link set ipm1 group 7"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_repaired_and_told_once(stage: Topology, damage: str) -> None:
    async def steps(keeper: Keeper) -> None:
        before = state(stage)
        stage.ip(stage.node, *DAMAGE[damage])
        await keeper.until(lambda: bool(keeper.events("host.repaired")), damage)
        await keeper.until(lambda: state(stage) == before, damage)
        await asyncio.sleep(3 * reconciler.GATHER)
        assert len(keeper.events("host.repaired")) == 1
        (told,) = keeper.events("host.repaired")
        assert told["what"] and told["by"], told
        assert keeper.reconciler.health().repairs == len(told["what"])
        assert not keeper.events("host.disputed")

    kept(stage, steps)


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table inet ipamd",
        "flush chain inet ipamd from_pod",
        "add element inet ipamd inside { 198.51.100.0/24 }",
    ],
)
def test_a_changed_nft_table_is_repaired_and_the_program_named(stage: Topology, damage: str) -> None:
    async def steps(keeper: Keeper) -> None:
        stage.nft(stage.node, f"{damage}\n")
        await keeper.until(lambda: bool(keeper.events("host.repaired")), damage)
        (told,) = keeper.events("host.repaired")
        assert told["what"] == ["set nft table inet ipamd"]
        assert told["by"].startswith("nft (pid ")

    kept(stage, steps)


def test_a_sysctl_that_was_changed_is_set_again(stage: Topology) -> None:
    async def steps(keeper: Keeper) -> None:
        def told(name: str) -> bool:
            return any(name in str(entry["what"]) for entry in keeper.events("host.repaired"))

        links = ("conf/eth1/rp_filter", "1"), ("conf/eth1/forwarding", "0"), ("conf/ipm1/forwarding", "0")
        for name, value in (*links, ("ip_forward", "0")):
            netns.write_sysctls(stage.node, {f"ipv4/{name}": int(value)})
            await keeper.until(partial(told, name), name)

    kept(stage, steps)


def test_forwarding_turned_off_for_all_is_one_repair(stage: Topology) -> None:
    async def steps(keeper: Keeper) -> None:
        netns.write_sysctls(stage.node, {"ipv4/ip_forward": 0})
        await keeper.until(lambda: bool(keeper.events("host.repaired")), "forwarding")
        (told,) = keeper.events("host.repaired")
        assert told["what"] == ["set sysctl net/ipv4/ip_forward=1"]
        assert await keeper.network.not_forwarding() == frozenset()

    kept(stage, steps)


def test_who_still_runs_is_named(stage: Topology) -> None:
    """A daemon that manages the network has its socket open when its deed is looked into."""

    async def steps(keeper: Keeper) -> None:
        manager = await asyncio.create_subprocess_exec(
            "ip", "-n", stage.node, "-force", "-batch", "-", stdin=asyncio.subprocess.PIPE
        )
        assert manager.stdin is not None
        manager.stdin.write(b"rule delete prio 1501\n")
        await keeper.until(lambda: bool(keeper.events("host.repaired")), "the rule")
        manager.stdin.close()
        await manager.wait()
        assert keeper.events("host.repaired")[0]["by"] == f"ip (pid {manager.pid})"

    kept(stage, steps)


def test_insistent_program_is_answered_ever_later_and_named(stage: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disputes, "FIRST_DELAY", 3.0)

    async def steps(keeper: Keeper) -> None:
        def repaired(goal: int) -> bool:
            return keeper.reconciler.health().repairs >= goal

        for _ in range(disputes.FREE_REPAIRS):
            goal = keeper.reconciler.health().repairs + 2
            stage.ip(stage.node, "rule delete prio 1501", "link set ipm1 group 7")
            await keeper.until(partial(repaired, goal), "repaired")
        assert {entry["what"] for entry in keeper.events("host.disputed")} == {
            "rule 1501 lookup 1501",
            "link ipm1 group 1501",
        }
        told = len(keeper.events("host.repaired"))
        stage.ip(stage.node, "rule delete prio 1501", "rule delete prio 1502")
        await keeper.until(lambda: "1502:" in stage.ip(stage.node, "rule show"), "what nobody disputes")
        assert "1501:" not in stage.ip(stage.node, "rule show")
        await keeper.until(lambda: "1501:" in stage.ip(stage.node, "rule show"), "the disputed rule, in the end")
        assert len(keeper.events("host.repaired")) == told + 1
        assert len(keeper.events("host.disputed")) == 2
        health = keeper.reconciler.health()
        assert [dispute.what for dispute in health.disputes] == ["link ipm1 group 1501", "rule 1501 lookup 1501"]

    kept(stage, steps)


def test_what_is_not_ours_is_nobodys_business(stage: Topology) -> None:
    async def steps(keeper: Keeper) -> None:
        looks = keeper.looks
        stage.ip(
            stage.node,
            "rule add prio 900 lookup 77",
            "rule delete prio 900",
            "route add 192.0.2.0/24 dev eth0",
            "route add default dev eth2 table 77",
            "addr add 192.0.2.1/32 dev eth1",
            "addr delete 192.0.2.1/32 dev eth1",
            "link set eth0 txqueuelen 500",
        )
        stage.nft(stage.node, "table inet other { chain c { counter; }; }\n")
        stage.nft(stage.node, "delete table inet other\n")
        netns.write_sysctls(stage.node, {"ipv4/conf/ipm1/rp_filter": 1, "ipv4/conf/default/rp_filter": 1})
        await asyncio.sleep(5 * reconciler.GATHER)
        assert keeper.looks == looks, keeper.logs
        assert "192.0.2.0/24" in stage.ip(stage.node, "route show")

    kept(stage, steps)


def test_pods_come_and_go_without_a_look_at_the_kernel(stage: Topology) -> None:
    async def steps(keeper: Keeper) -> None:
        looks = keeper.looks
        for i in range(20):
            address, link = f"10.0.1.{100 + i}", f"ipm-{i}"
            keeper.node = replace(WITH_PODS, pods=(*PODS, PodNetwork(address, link, 1)))
            stage.ip(
                stage.node,
                f"link add {link} group 1501 type veth peer name eth9 netns {stage.place('pod1')}",
                f"link set {link} up",
                f"route add {address}/32 dev {link} scope link table 1500 protocol 158",
            )
            await asyncio.sleep(0.01)
            stage.ip(stage.node, f"link delete {link}")
            keeper.node = WITH_PODS
        await asyncio.sleep(5 * reconciler.GATHER)
        assert keeper.looks == looks, keeper.logs

    kept(stage, steps)


def test_vanished_eni_is_reported_and_rebuilt_when_it_returns(stage: Topology) -> None:
    async def steps(keeper: Keeper) -> None:
        stage.ip(stage.node, "link delete eth1")
        await keeper.until(lambda: keeper.gone == ["eni-1"], "the device went")
        await keeper.until(lambda: "1501" not in stage.ip(stage.node, "rule show"), "its rules")
        stage.plug(ENIS[1])
        await keeper.until(lambda: "1501:" in stage.ip(stage.node, "rule show"), "its rules are back")
        await keeper.until(lambda: "1501" in stage.nft(stage.node, "list table inet ipamd\n"), "its chains are back")

    kept(stage, steps)


def test_lost_events_are_made_up_for(stage: Topology) -> None:
    """The kernel drops events while nobody reads them: then everything is looked at."""

    async def steps(keeper: Keeper) -> None:
        flood = "".join(f"rule add prio {20000 + i} lookup 77\nrule delete prio {20000 + i}\n" for i in range(20000))
        stage.ip(stage.node, f"rule delete prio 1501\n{flood}")  # and the loop stands still meanwhile
        await keeper.until(lambda: bool(keeper.events("host.events_lost")), "too many events")
        await keeper.until(lambda: "1501:" in stage.ip(stage.node, "rule show"), "the rule is back")

    kept(stage, steps)


def test_unrepairable_object_blocks_nothing_and_is_reported_once(
    stage: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rule = Kernel.add_rule
    refused = True

    def refuse(self: Kernel, rule: Rule) -> None:
        if refused and rule.table == 1501:
            raise HostError("no")
        add_rule(self, rule)

    monkeypatch.setattr(Kernel, "add_rule", refuse)

    async def steps(keeper: Keeper) -> None:
        nonlocal refused
        refused = True
        stage.ip(stage.node, "rule delete prio 1501", "rule delete prio 500", "route flush table 1502")
        stage.nft(stage.node, "delete table inet ipamd\n")
        await keeper.until(lambda: bool(keeper.events("host.unrepaired")), "told")
        await keeper.until(lambda: keeper.reconciler.health().repairs == 4, "all else is there again")
        assert keeper.reconciler.health().error == "no"
        looks = keeper.looks
        await keeper.until(lambda: keeper.looks > looks, "tried again")
        await keeper.reconciler.apply("eni-2")  # nothing is in this one's way
        with pytest.raises(HostError, match="no"):
            await keeper.reconciler.apply("eni-1")
        assert len(keeper.events("host.unrepaired")) == 1
        refused = False
        await keeper.until(lambda: bool(keeper.events("host.in_order_again")), "in order again")
        assert keeper.reconciler.health().error == ""
        assert keeper.reconciler.health().repairs == 4, "what was refused before is nobody's deed"

    refused = False
    kept(stage, steps)


@pytest.mark.parametrize(
    ("table", "broken"), [(1500, True), (1501, False)], ids=["the rule of all pods", "the rule of one ENI"]
)
def test_node_is_broken_when_every_pod_lacks_something_for_long(
    stage: Topology, monkeypatch: pytest.MonkeyPatch, table: int, broken: bool
) -> None:
    monkeypatch.setattr(reconciler, "BROKEN_AFTER", 1000.0)
    add_rule = Kernel.add_rule
    refused = False

    def refuse(self: Kernel, rule: Rule) -> None:
        if refused and rule.table == table:
            raise HostError("no")
        add_rule(self, rule)

    monkeypatch.setattr(Kernel, "add_rule", refuse)

    async def steps(keeper: Keeper) -> None:
        nonlocal refused
        refused = True
        stage.ip(stage.node, f"rule delete prio {500 if broken else table}")
        await keeper.until(lambda: bool(keeper.events("host.unrepaired")), "told")
        looks = keeper.looks
        assert keeper.reconciler.broken == ""  # it may pass
        await keeper.until(lambda: keeper.looks > looks, "tried again")
        monkeypatch.setattr(reconciler, "BROKEN_AFTER", 0.0)
        assert keeper.reconciler.broken == ("no" if broken else "")
        refused = False
        await keeper.until(lambda: bool(keeper.events("host.in_order_again")), "in order again")
        assert keeper.reconciler.broken == ""

    kept(stage, steps)


def test_a_kernel_that_can_not_be_read_is_not_known_to_be_broken(
    stage: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "BROKEN_AFTER", 0.0)

    async def fail(self: Nftables, table: object) -> bool:
        raise HostError("nft list did not end within 10 s")

    async def steps(keeper: Keeper) -> None:
        monkeypatch.setattr(Nftables, "holds", fail)
        stage.ip(stage.node, "rule delete prio 500")
        await keeper.until(lambda: bool(keeper.events("host.unrepaired")), "told")
        assert keeper.reconciler.broken == "" and keeper.reconciler.health().error

    kept(stage, steps)


def test_an_older_table_in_place_serves_the_pods_that_are_there(
    stage: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "BROKEN_AFTER", 0.0)

    async def fail(self: Nftables, table: object) -> None:
        raise HostError("nft -f failed")

    async def steps(keeper: Keeper) -> None:
        monkeypatch.setattr(Nftables, "load", fail)
        stage.nft(stage.node, "add element inet ipamd inside { 198.51.100.0/24 }\n")
        await keeper.until(lambda: bool(keeper.events("host.unrepaired")), "told")
        assert keeper.reconciler.broken == ""
        stage.nft(stage.node, "delete table inet ipamd\n")
        await keeper.until(lambda: bool(keeper.reconciler.broken), "the table is gone")

    kept(stage, steps)


def test_an_error_does_not_slow_down_what_is_disputed(stage: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "FIRST_RETRY", 1000.0)
    monkeypatch.setattr(reconciler, "LONGEST_RETRY", 1000.0)
    monkeypatch.setattr(disputes, "FREE_REPAIRS", 1)

    def refuse(self: Kernel, step: object) -> None:
        raise HostError("no")

    async def steps(keeper: Keeper) -> None:
        monkeypatch.setattr(Kernel, "set_link", refuse)
        stage.ip(stage.node, "link set ipm1 group 7")
        await keeper.until(lambda: bool(keeper.events("host.unrepaired")), "told")
        for _ in range(2):
            stage.ip(stage.node, "rule delete prio 1501")
            await keeper.until(lambda: "1501:" in stage.ip(stage.node, "rule show"), "the rule")

    kept(stage, steps)


def test_pod_that_goes_meanwhile_does_not_make_repair_forgotten(
    stage: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had to wait, and its time passes while something is looked into that turns out to be nothing."""
    monkeypatch.setattr(disputes, "FREE_REPAIRS", 1)
    monkeypatch.setattr(disputes, "FIRST_DELAY", 0.6)

    async def steps(keeper: Keeper) -> None:
        stage.ip(stage.node, "rule delete prio 1501")
        await keeper.until(lambda: keeper.reconciler.health().repairs == 1, "the first repair")
        stage.ip(stage.node, "rule delete prio 1501")
        for _ in range(12):
            stage.ip(
                stage.node,
                f"link add ipm-x group 1501 type veth peer name eth9 netns {stage.place('pod1')}",
                "link set ipm-x up",
                "link delete ipm-x",
            )
            await asyncio.sleep(0.08)
        await keeper.until(lambda: "1501:" in stage.ip(stage.node, "rule show"), "the rule")

    kept(stage, steps)


def test_lost_events_of_links_are_made_up_for(stage: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that went down and up again looks as before; its routes went without a word."""
    monkeypatch.setattr(links, "RECEIVE_BUFFER", 1 << 12)

    async def steps(keeper: Keeper) -> None:
        flap = "link set ipm0 mtu 1400\nlink set ipm0 mtu 1500\n" * 300
        stage.ip(stage.node, flap, "link set eth1 down", "link set eth1 up")
        await keeper.until(lambda: bool(keeper.events("host.link_events_lost")), "too many events")
        await keeper.until(lambda: "default" in stage.ip(stage.node, "route show table 1501"), "its routes")

    kept(stage, steps)


def test_many_events_of_one_doer_cost_one_search_for_it(stage: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def search(ports: set[int]) -> dict[int, str]:
        searches.append(ports)
        return processes_behind(ports)

    monkeypatch.setattr(reconciler, "processes_behind", search)

    async def steps(keeper: Keeper) -> None:
        stage.ip(stage.node, "route flush table 1500", "rule delete prio 500", "rule delete prio 1100")
        await keeper.until(lambda: keeper.reconciler.health().repairs == 5, "repaired")
        assert len(searches) == 1

    kept(stage, steps)


def test_a_dump_that_was_interrupted_is_repeated(stage: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.apply()
    whole = netlink.messages
    interrupted = 0

    def interrupt_once(data: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
        nonlocal interrupted
        for kind, flags, *rest in whole(data):
            if interrupted == 0 and kind == rtnetlink.RTM_NEWRULE:
                interrupted = 1
                flags |= netlink.NLM_F_DUMP_INTR
            yield kind, flags, *rest  # type: ignore[misc]

    monkeypatch.setattr(rtnetlink.netlink, "messages", interrupt_once)
    rules = netns.run_in(stage.node, lambda: rtnetlink.rules(2, 158))
    assert interrupted and len(rules) == 6


@pytest.mark.parametrize("seed", range(3))
def test_network_converges_after_disturbances_amid_pod_churn(
    stage: Topology, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(disputes, "FREE_REPAIRS", 1000)
    monkeypatch.setattr(reconciler, "FREE_REPAIRS", 1000)
    chance = random.Random(seed)

    async def steps(keeper: Keeper) -> None:
        before = state(stage)
        for i in range(40):
            pod = PodNetwork(f"10.0.1.{100 + i}", f"ipm-{i}", 1)
            keeper.node = replace(keeper.node, pods=(*keeper.node.pods, pod))
            stage.ip(
                stage.node,
                f"link add {pod.link} group 1501 type veth peer name eth9 netns {stage.place('pod1')}",
                f"link set {pod.link} up",
                f"route replace {pod.address}/32 dev {pod.link} scope link table 1500 protocol 158",
            )
            damage = chance.choice([*DAMAGE.values(), None])
            if damage is None:
                stage.nft(stage.node, "flush ruleset\n")
            else:
                force(stage, damage)
            await asyncio.sleep(chance.choice([0, 0.02, 0.15]))
            stage.ip(stage.node, f"link delete {pod.link}")
            await asyncio.sleep(0)
            keeper.node = replace(keeper.node, pods=tuple(p for p in keeper.node.pods if p != pod))
        try:
            async with asyncio.timeout(10):
                while state(stage) != before:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            assert state(stage) == before, keeper.logs[-20:]
        assert not keeper.reconciler.health().error

    kept(stage, steps)


def force(stage: Topology, commands: list[str]) -> None:
    """As much of it as can be done: the last damage may not be repaired yet."""
    argv = ["ip", "-n", stage.node, "-force", "-batch", "-"]
    subprocess.run(argv, input="\n".join(commands), text=True, capture_output=True)
