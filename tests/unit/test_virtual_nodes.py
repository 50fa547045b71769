"""The pool and the model of its incumbent in virtual time: each does there what it is described to do."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from ipamd.cloud.budget import share_of
from ipamd.cloud.port import Priority
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import Targets
from ipamd.sim.virtual.day import Day, Load
from ipamd.sim.virtual.ec2 import Latencies
from ipamd.sim.virtual.fleet import Fleet
from ipamd.sim.virtual.incumbent import IncumbentTargets
from ipamd.sim.virtual.kubelet import Kubelet
from ipamd.sim.virtual.node import PoolNode

TYPE = "m5.large"
SECONDARY = 9  # addresses of each of its 3 ENIs

BOTH = pytest.mark.parametrize(
    "targets", [Targets(), IncumbentTargets(), IncumbentTargets(warm_ip=5)], ids=["pool", "warm ENI", "warm IP"]
)


def booted(fleet: Fleet, targets: Targets | IncumbentTargets, instance_type: str = TYPE) -> Kubelet:
    kubelet = fleet.add(instance_type, targets)
    kubelet.boot()
    fleet.clock.run_until(fleet.clock() + 60.0)
    return kubelet


def run_pods(kubelet: Kubelet, count: int, prefix: str = "pod") -> None:
    for number in range(count):
        kubelet.run(f"{prefix}-{number}")


@BOTH
def test_every_pod_gets_its_address_in_the_end(targets: Targets | IncumbentTargets) -> None:
    fleet = Fleet()
    kubelet = booted(fleet, targets)
    run_pods(kubelet, 27)
    fleet.clock.run_until(300.0)
    assert kubelet.pending == 0
    assert len(kubelet.waits) == kubelet.node.instance.meter.used == 27


@BOTH
def test_pods_that_come_before_node_is_ready_start_once_it_is(targets: Targets | IncumbentTargets) -> None:
    fleet = Fleet()
    kubelet = fleet.add(TYPE, targets)
    kubelet.boot()
    run_pods(kubelet, 3)
    assert kubelet.pending == 3
    fleet.clock.run_until(60.0)
    assert kubelet.pending == 0
    assert kubelet.failures == 0
    assert min(kubelet.waits.values()) > 0


@BOTH
def test_the_same_seed_gives_the_same_run(targets: Targets | IncumbentTargets) -> None:
    def history(seed: int) -> list[tuple[float, int, int]]:
        fleet = Fleet(seed=seed, latencies=Latencies(jitter=0.3))
        kubelet = booted(fleet, targets)
        run_pods(kubelet, 20)
        fleet.clock.run_until(300.0)
        return kubelet.node.instance.meter.history

    assert history(1) == history(1)
    assert history(1) != history(2)


@BOTH
def test_a_node_at_rest_makes_no_call(targets: Targets | IncumbentTargets) -> None:
    fleet = Fleet()
    kubelet = booted(fleet, targets)
    run_pods(kubelet, 4)
    fleet.clock.run_until(600.0)
    before = kubelet.node.instance.calls.total()
    fleet.clock.run_until(2400.0)
    assert kubelet.node.instance.calls.total() == before


@BOTH
def test_the_books_agree_after_an_hour_of_churn(targets: Targets | IncumbentTargets) -> None:
    fleet = Fleet(seed=3, prefix_lengths=(24, 24))
    kubelets = [fleet.add(TYPE, targets) for _ in range(4)]
    for kubelet in kubelets:
        kubelet.boot()
    Day(
        fleet.clock, kubelets, Load(peak_rate=0.1, night_share=1.0, services=8, deploy_interval=600.0), Random(4)
    ).begin()
    fleet.clock.run_until(3600.0)
    assert sum(len(kubelet.waits) for kubelet in kubelets) > 300
    for kubelet in kubelets:
        instance = kubelet.node.instance
        held = sum(len(eni.addresses) for eni in instance.enis()) - 1
        assert instance.meter.held == held >= instance.meter.used >= 0
        assert len(instance.enis()) <= instance.limits.max_enis
    addresses = [ip for eni in fleet.ec2.rules.enis for ip in eni.addresses]
    assert len(addresses) == len(set(addresses))


def test_the_pool_waits_where_the_incumbent_fails() -> None:
    results = []
    for targets in (Targets(), IncumbentTargets()):
        fleet = Fleet()
        kubelet = booted(fleet, targets)
        run_pods(kubelet, 27)
        fleet.clock.run_until(300.0)
        results.append(kubelet)
    pool, incumbent = results
    assert pool.failures == 0
    assert incumbent.failures > 0
    assert max(pool.waits.values()) < max(incumbent.waits.values())


def test_the_pool_uses_a_full_subnet_up() -> None:
    fleet = Fleet(prefix_lengths=(28,))  # 11 addresses, one of them the instance's
    kubelet = booted(fleet, Targets(warm_ips=0))
    run_pods(kubelet, SECONDARY + 1)
    fleet.clock.run_until(600.0)
    assert kubelet.pending == 1  # a second ENI would take the last address for itself
    assert kubelet.failures > 0
    assert kubelet.node.instance.subnet.available == 1


def test_a_thousand_nodes_fit_into_one_run() -> None:
    fleet = Fleet()
    kubelets = [fleet.add(TYPE, Targets()) for _ in range(1000)]
    for kubelet in kubelets:
        kubelet.boot()
        run_pods(kubelet, 3, prefix=kubelet.node.instance.id)
    fleet.clock.run_until(60.0)
    assert all(len(kubelet.waits) == 3 for kubelet in kubelets)


def test_an_effect_that_the_simulator_does_not_know_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class RenameEni:
        action: str = "RenameNetworkInterface"

    fleet = Fleet()
    kubelet = fleet.add(TYPE, Targets())
    assert isinstance(kubelet.node, PoolNode)
    monkeypatch.setattr(kubelet.node.pool, "handle", lambda event, now: do.Turn((), (RenameEni(),)))
    kubelet.boot()
    with pytest.raises(AssertionError, match="RenameEni"):
        fleet.clock.run_until(60.0)


# What the pool may call


def shell(node: object) -> tuple[PoolNode, list[on.Event]]:
    """The node, and the events that its pool gets from now on, without handling them."""
    assert isinstance(node, PoolNode)
    heard: list[on.Event] = []

    def hear(event: on.Event, now: float) -> do.Turn:
        heard.append(event)
        return do.Turn()

    node.pool.handle = hear  # type: ignore[method-assign]
    return node, heard


def test_a_node_keeps_to_its_budget_and_says_what_waited() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, Targets())
    node, heard = shell(kubelet.node)
    before = node.instance.calls["DescribeSubnets"]
    share = share_of("DescribeSubnets")
    calls = int(share.burst) + 4
    for op in range(calls):
        node._carry_out(do.DescribeSubnets(op, (node.instance.subnet.id,)))
    start = fleet.clock()
    fleet.clock.run_until(start + 0.1)
    assert node.instance.calls["DescribeSubnets"] - before == share.burst
    fleet.clock.run_until(start + 60.0)
    assert node.instance.calls["DescribeSubnets"] - before == calls == len(heard)
    (bucket,) = [bucket for bucket in node.budget.view() if bucket.action == "DescribeSubnets"]
    assert bucket.waits[Priority.WARM].delayed == 4
    assert 3 / share.ceiling < bucket.waits[Priority.WARM].longest <= 4 / share.rate


def test_burst_of_every_size_goes_through_budget_without_waiting() -> None:
    for pods in (10, 50, 230):
        fleet = Fleet()
        kubelet = booted(fleet, Targets(), "m5.4xlarge")
        run_pods(kubelet, pods)
        fleet.clock.run_until(fleet.clock() + 30.0)
        assert kubelet.pending == 0
        assert isinstance(kubelet.node, PoolNode)
        buckets = kubelet.node.budget.view()
        assert {bucket.action: sum(waits.delayed for waits in bucket.waits.values()) for bucket in buckets} == (
            dict.fromkeys((bucket.action for bucket in buckets), 0)
        )


def test_an_audit_reads_enis_and_subnets_and_the_pods_routes() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, Targets())
    run_pods(kubelet, 2)
    fleet.clock.run_until(fleet.clock() + 10.0)
    node, heard = shell(kubelet.node)
    before = node.instance.calls.copy()
    node._carry_out(do.Audit(1))
    fleet.clock.run_until(fleet.clock() + 10.0)
    assert node.instance.calls - before == {"DescribeNetworkInterfaces": 2, "DescribeSubnets": 1}
    held = {(a.address, a.key.container_id) for a in node.pool.inventory.attachments.values()}
    (event,) = heard
    assert isinstance(event, on.Audited)
    assert event.op == 1 and set(event.routed) == held and len(held) == 2
    assert [eni.primary for eni in event.enis] == [True]
    subnet = node.instance.subnet
    assert event.available == ((subnet.id, subnet.available),)


def test_looks_at_the_host_cost_nothing_and_subnets_are_read() -> None:
    fleet = Fleet(prefix_lengths=(28, 24))
    kubelet = booted(fleet, Targets(warm_ips=0))
    node, heard = shell(kubelet.node)
    before = node.instance.calls.copy()
    node._carry_out(do.ForgetFlows(1, ("10.0.0.9",)))
    node._carry_out(do.SeekAttachments(2))
    assert heard == []  # the pool may be in the middle of an event
    fleet.clock.run_until(fleet.clock() + 1.0)
    assert heard == [on.OperationDone(1), on.AttachmentsSought(2, frozenset())]
    assert node.instance.calls == before
    small, large = (subnet.id for subnet in fleet.ec2.subnets)
    node._carry_out(do.DescribeSubnets(3, (small, large)))
    fleet.clock.run_until(fleet.clock() + 1.0)
    assert heard[2:] == [on.SubnetsObserved(3, ((small, 10), (large, 251)))]


# The incumbent, against its description


def test_incumbent_boots_with_five_calls_and_a_full_primary_eni() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets())
    assert kubelet.node.instance.calls.total() == 5
    assert kubelet.node.instance.meter.held == SECONDARY
    assert len(kubelet.node.instance.enis()) == 1


def test_incumbent_looks_for_leaked_enis_every_hour_and_bit() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets())
    looks = []
    for hour in range(4):
        fleet.clock.run_until(hour * 3600.0 + 900.0)
        looks.append(kubelet.node.instance.calls["DescribeNetworkInterfaces"] - 1)  # without the one at the start
    assert looks == [1, 2, 3, 4]


def test_the_incumbent_adds_an_eni_with_six_calls_one_at_a_time() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets())
    run_pods(kubelet, 1)
    fleet.clock.run_until(fleet.clock() + 60.0)
    assert len(kubelet.node.instance.enis()) == 2  # one address in use: less than a whole ENI is free
    assert kubelet.node.instance.calls.total() == 5 + 6


def test_incumbents_pod_fails_on_an_empty_pool_and_retries_later() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets())
    run_pods(kubelet, SECONDARY + 1)
    fleet.clock.run_until(fleet.clock() + 30.0)
    assert kubelet.failures == 1
    assert max(kubelet.waits.values()) == pytest.approx(10.0)


def test_the_incumbent_gives_spare_enis_back_one_per_turn() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets())
    run_pods(kubelet, 2 * SECONDARY)
    fleet.clock.run_until(fleet.clock() + 120.0)
    instance = kubelet.node.instance
    assert len(instance.enis()) == 3
    for pod in list(kubelet.waits):
        kubelet.stop(pod)
    fleet.clock.run_until(fleet.clock() + 120.0)
    assert len(instance.enis()) == 1
    assert instance.meter.held == SECONDARY
    assert instance.calls["DetachNetworkInterface"] == instance.calls["DeleteNetworkInterface"] == 2


def test_the_incumbent_trims_to_its_warm_ip_target() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets(warm_ip=2))
    run_pods(kubelet, 6)
    fleet.clock.run_until(fleet.clock() + 120.0)
    instance = kubelet.node.instance
    assert instance.meter.held == 8
    for pod in list(kubelet.waits):
        kubelet.stop(pod)
    fleet.clock.run_until(fleet.clock() + 120.0)
    assert instance.meter.held == 2


def test_the_incumbent_takes_cooling_addresses_for_available() -> None:
    fleet = Fleet()
    kubelet = booted(fleet, IncumbentTargets(warm_ip=1))
    run_pods(kubelet, 1)
    fleet.clock.run_until(fleet.clock() + 60.0)
    calls = kubelet.node.instance.calls["AssignPrivateIpAddresses"]
    kubelet.run("second")  # takes the last free one
    kubelet.stop("pod-0")
    fleet.clock.run_until(fleet.clock() + 20.0)
    assert kubelet.node.instance.calls["AssignPrivateIpAddresses"] == calls
    kubelet.run("third")
    fleet.clock.run_until(fleet.clock() + 1.0)
    assert kubelet.failures == 1


def test_incumbent_pauses_two_minutes_when_its_subnet_is_full() -> None:
    fleet = Fleet(prefix_lengths=(28,))
    kubelet = fleet.add(TYPE, IncumbentTargets(warm_ip=20))
    kubelet.boot()
    fleet.clock.run_until(60.0)
    calls = kubelet.node.instance.calls.total()
    assert kubelet.node.instance.calls["CreateNetworkInterface"] == 1  # refused
    fleet.clock.run_until(120.0)
    assert kubelet.node.instance.calls.total() == calls
    fleet.clock.run_until(140.0)
    assert kubelet.node.instance.calls.total() > calls
