"""A full node at once, and one whose pods never stop changing, through a real containerd.

The churn lasts some seconds; IPAMD_CHURN_SECONDS=120 gives it two minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.runtimes import Pod
from ipamd.sim.runtimes.containerd import Containerd, containerd
from tests.e2e.single_node import Box, single_node

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

FULL = 110  # what Kubernetes puts on a node unless told otherwise
CHURNING = 50
CHURN_SECONDS = float(os.environ.get("IPAMD_CHURN_SECONDS", "15"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Box]:
    async with single_node("m5.4xlarge", subnet="10.0.0.0/22") as made:  # 8 ENIs with 29 secondary addresses each
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(box: Box) -> AsyncIterator[Containerd]:
    node = box.node
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir) as made:
        await made.wait_until_ready()
        yield made


async def assert_they_talk(box: Box, pods: list[Pod]) -> None:
    """Each has an address of its own, the ledger's, and everybody answers everybody."""
    assert await box.held() == {pod.id: pod.ip for pod in pods}
    assert len({pod.ip for pod in pods}) == len(pods)
    ends = [Endpoint(pod.name, box.node.name, pod.ip, pod.netns) for pod in pods]
    ends.append(Endpoint("node", box.node.name, box.node.spec.primary_ip, box.node.spec.netns))
    silent = await ping_all(ends)
    assert [(source.name, target.name) for source, target in silent] == []


async def test_as_many_pods_as_a_node_has(box: Box, runtime: Containerd, capsys: pytest.CaptureFixture[str]) -> None:
    before = time.monotonic()
    pods = await asyncio.gather(*(runtime.run_pod(f"p{number}") for number in range(FULL)))
    made = time.monotonic()
    await assert_they_talk(box, pods)
    asked = time.monotonic()
    await asyncio.gather(*(runtime.remove_pod(pod) for pod in pods))
    removed = time.monotonic()
    assert await runtime.pod_ids() == []
    await box.assert_nothing_left()
    with capsys.disabled():
        print(f"{FULL} pods at once: made in {made - before:.1f} s, removed in {removed - asked:.1f} s ", end="")  # noqa: T201


async def test_pods_that_come_and_go(box: Box, runtime: Containerd, capsys: pytest.CaptureFixture[str]) -> None:
    end = time.monotonic() + CHURN_SECONDS
    removed = 0

    async def change(place: int) -> Pod:
        """One pod after the other; the last stays."""
        nonlocal removed
        dice, generation = random.Random(place), 0
        while True:
            pod = await runtime.run_pod(f"c{place}-{generation}")
            if time.monotonic() >= end:
                return pod
            await asyncio.sleep(dice.expovariate(1.0))
            await runtime.remove_pod(pod)
            generation, removed = generation + 1, removed + 1

    pods = await asyncio.gather(*(change(place) for place in range(CHURNING)))
    assert removed > CHURNING
    await assert_they_talk(box, pods)
    await asyncio.gather(*(runtime.remove_pod(pod) for pod in pods))
    assert await runtime.pod_ids() == []
    await box.assert_nothing_left()
    with capsys.disabled():
        print(f"{removed} pods came and went in {CHURN_SECONDS:.0f} s ", end="")  # noqa: T201
