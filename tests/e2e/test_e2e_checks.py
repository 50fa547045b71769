"""The judges of the other tests can say no: pings that get no answer, leaks, and views that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from ipamd.sim.demo.checks import ControlClient, disagreements, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.demo.run import Worker, contradictions, look
from ipamd.sim.ec2.rules import Ask
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.vpc import SimulatedVpc

pytestmark = pytest.mark.e2e

NOBODY = "10.0.0.3"  # EC2 keeps it, so no ENI has it


async def test_a_ping_without_an_answer_is_noticed(vpc: SimulatedVpc) -> None:
    n1, n2 = (Endpoint(node.name, node.name, node.primary_ip, node.netns) for node in vpc.nodes)
    assert await ping_all([n1, n2]) == []
    nobody = Endpoint("nobody", "n2", NOBODY, n2.netns)
    assert await ping_all([n1, nobody], wait=0.3) == [(n1, nobody)]  # the other way works: it is n2 that asks
    elsewhere = Endpoint("elsewhere", "n2", "198.18.0.1", n2.netns)
    assert await ping_all([n1, elsewhere], wait=0.3) == [(n1, elsewhere)]


class TestOneNode:
    @pytest.fixture
    def types(self) -> Mapping[str, str]:
        return {"n1": "m5.large"}

    async def test_a_running_pod_counts_as_a_leak(self, node: Node, control: ControlClient) -> None:
        assert await leaks(node, control) == []
        async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
            pod = await runtime.run_pod("left-behind")
            await node.wait_until_settled()
            found = await leaks(node, control)
            assert len(found) == 3
            for part in ("in the ledger", "host link ipm", f"route to {pod.ip}"):
                assert any(part in line for line in found), found
            (node.spool_dir / "forgotten").touch()
            assert any("spool" in line for line in await leaks(node, control))

    async def test_addresses_that_ec2_gave_or_took_are_noticed(
        self, vpc: SimulatedVpc, cold_nodes: list[Node], control: ControlClient
    ) -> None:
        [node] = cold_nodes
        with node.spec.config.open("a") as config:
            config.write("\n[pool]\nslack = 0\n")  # so that the ENI has room for one more
        await node.start()
        await node.wait_until_ready()
        await node.wait_until_settled()
        assert await disagreements(node, control) == []
        [(eni, addresses)] = (await control.enis(node.spec.instance_id)).items()
        [more] = await vpc.cloud.assign(eni, Ask(1))
        await vpc.cloud.unassign(eni, [addresses[-1]])
        unknown, gone = await disagreements(node, control)
        assert "unknown to the daemon" in unknown and more in unknown
        assert "not assigned by EC2" in gone and addresses[-1] in gone

    async def test_pods_that_contradict_the_ledger_are_noticed(self, node: Node, control: ControlClient) -> None:
        async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
            pod = await runtime.run_pod("honest")
            assert contradictions(await look([Worker(node, runtime, [pod])], control)) == []
            liar = replace(pod, ip=NOBODY)
            assert len(contradictions(await look([Worker(node, runtime, [liar])], control))) == 1
            assert len(contradictions(await look([Worker(node, runtime, [])], control))) == 1
            stranger = replace(pod, id="0" * 64)
            # Not in the ledger, and the same address as the other one.
            assert len(contradictions(await look([Worker(node, runtime, [pod, stranger])], control))) == 2
