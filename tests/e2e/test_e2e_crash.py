"""The daemon is killed in the middle of a burst of pods: nothing that was promised may be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from ipamd.sim.demo.checks import ControlClient, disagreements, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.runtimes import Pod
from ipamd.sim.runtimes.direct import direct

pytestmark = pytest.mark.e2e

BURST = 30


@pytest.fixture
def types() -> Mapping[str, str]:
    return {"n1": "m5.xlarge"}  # 4 ENIs with 14 secondary addresses each


@pytest.mark.parametrize("killed_after", [1, 10, 20])
async def test_kill_in_the_middle_of_a_burst(node: Node, control: ControlClient, killed_after: int) -> None:
    async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
        before = list(await asyncio.gather(*(runtime.run_pod(f"before-{index}") for index in range(3))))

        burst = [asyncio.ensure_future(runtime.run_pod(f"burst-{index}")) for index in range(BURST)]
        finished: list[Pod] = []
        for coming in asyncio.as_completed(burst):
            finished.append(await coming)
            if len(finished) == killed_after:
                break
        await node.kill()

        # While nobody listens: one pod from before goes, and one of the burst that was promised its address.
        gone = [before[0], finished[0]]
        await asyncio.gather(*(runtime.remove_pod(pod) for pod in gone))
        assert len(list(node.spool_dir.iterdir())) == len(gone)
        running_meanwhile = [pod for pod in [*before, *finished] if pod not in gone]

        await node.start()
        await node.wait_until_ready()
        # Plugins wait for the daemon, so the rest of the burst succeeds too.
        pods = [pod for pod in [*before, *await asyncio.gather(*burst)] if pod not in gone]
        await node.wait_until_settled()

        addresses = [pod.ip for pod in pods]
        assert len(addresses) == len(set(addresses)) == len(before) + BURST - len(gone)
        ledger = {line["container_id"]: line["ip"] for line in await node.pods()}
        assert ledger == {pod.id: pod.ip for pod in pods}
        assert [pod.name for pod in running_meanwhile if ledger.get(pod.id) != pod.ip] == []
        assert list(node.spool_dir.iterdir()) == []
        assert await disagreements(node, control) == []

        ends = [Endpoint(pod.name, node.name, pod.ip, pod.netns) for pod in pods]
        ends.append(Endpoint(node.name, node.name, node.spec.primary_ip, node.spec.netns))
        silent = await ping_all(ends)
        assert [(source.name, target.name) for source, target in silent] == []

        await asyncio.gather(*(runtime.remove_pod(pod) for pod in pods))
        await node.wait_until_settled()
        assert await leaks(node, control) == []


async def test_a_released_address_still_cools_after_a_crash(node: Node, control: ControlClient) -> None:
    async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
        pod = await runtime.run_pod("short-lived")
        await runtime.remove_pod(pod)
        await node.kill()
        await node.start()
        await node.wait_until_ready()
        assert (await node.status())["cooling"] == 1
        next_pods = await asyncio.gather(*(runtime.run_pod(f"next-{index}") for index in range(8)))
        assert pod.ip not in {one.ip for one in next_pods}
        await asyncio.gather(*(runtime.remove_pod(one) for one in next_pods))
    await node.wait_until_settled()
    assert await leaks(node, control) == []


class TestTwoNodes:
    """What running pods notice of a daemon that comes and goes: nothing."""

    @pytest.fixture
    def types(self) -> Mapping[str, str]:
        return {"n1": "m5.large", "n2": "c5.large"}

    async def test_pods_keep_talking_while_the_daemon_restarts(self, nodes: list[Node]) -> None:
        node, other = nodes
        async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
            pods = await asyncio.gather(*(runtime.run_pod(f"p{index}") for index in range(12)))
            await node.wait_until_settled()
            assert len({line["eni"] for line in await node.pods()}) == 2  # also by way of a secondary ENI
            ends = [Endpoint(pod.name, node.name, pod.ip, pod.netns) for pod in pods]
            ends.append(Endpoint(other.name, other.name, other.spec.primary_ip, other.spec.netns))

            silent: list[tuple[Endpoint, Endpoint]] = []
            over = asyncio.Event()

            async def keep_pinging() -> None:
                while not over.is_set():
                    silent.extend(await ping_all(ends))

            pinging = asyncio.ensure_future(keep_pinging())
            for end in (node.kill, node.stop):
                await end()
                await node.start()
                await node.wait_until_ready()
                await node.wait_until_settled()
            over.set()
            await pinging
            assert [(source.name, target.name) for source, target in silent] == []
