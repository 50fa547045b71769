"""A node whose addresses are all in use, and whose pods are all replaced: as a kubelet does it, by a real containerd.

A new pod's ADD comes before the old one's DEL, or just after it. On a full node it waits for that DEL and for the
cooldown of the address; a refusal would cost it the kubelet's pause until the next try.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from ipamd.sim.runtimes import Pod, RuntimeFailure
from ipamd.sim.runtimes.containerd import Containerd, containerd
from tests.e2e.single_node import Box, single_node, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

FULL = 27  # an m5.large

# Seconds until a kubelet tries again after a failed sandbox: its least back-off and its own rounds, as measured.
KUBELET_PAUSE = 13.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Box]:
    async with single_node("m5.large") as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(box: Box) -> AsyncIterator[Containerd]:
    node = box.node
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir) as made:
        await made.wait_until_ready()
        yield made


class Kubelet:
    """What one does for its pods, on a node where nobody else runs any."""

    def __init__(self, runtime: Containerd) -> None:
        self._runtime = runtime
        self.failures: list[str] = []
        self.waits: list[float] = []

    async def start(self, name: str) -> Pod:
        """Until it runs, however often."""
        since, attempt = time.monotonic(), 0
        while True:
            try:
                pod = await self._runtime.run_pod(f"{name}-{attempt}")
            except RuntimeFailure as failure:
                self.failures.append(str(failure))
                attempt += 1
                await asyncio.sleep(KUBELET_PAUSE)
            else:
                self.waits.append(time.monotonic() - since)
                return pod

    async def replace(self, old: Pod, name: str, add_after: float) -> Pod:
        """`add_after`: seconds between the removal of the old one and the start of the new one; below 0 the new one
        comes first."""
        if add_after < 0:
            starting = asyncio.create_task(self.start(name))
            await asyncio.sleep(-add_after)
            await self._runtime.remove_pod(old)
            return await starting
        removing = asyncio.create_task(self._runtime.remove_pod(old))
        await asyncio.sleep(add_after)
        new = await self.start(name)
        await removing
        return new


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(box: Box, runtime: Containerd) -> list[Pod]:
    """All that fit."""
    made = list(await asyncio.gather(*(runtime.run_pod(f"first-{number}") for number in range(FULL))))
    assert len(await box.held()) == FULL
    return made


async def replaced(box: Box, kubelet: Kubelet, pods: Sequence[Pod], generation: str, *add_after: float) -> list[Pod]:
    found = await asyncio.gather(
        *(
            kubelet.replace(old, f"{generation}-{number}", add_after[number % len(add_after)])
            for number, old in enumerate(pods)
        )
    )
    assert await box.held() == {pod.id: pod.ip for pod in found}
    return list(found)


async def test_all_pods_of_a_full_node_are_replaced_at_once(
    box: Box, runtime: Containerd, pods: list[Pod], capsys: pytest.CaptureFixture[str]
) -> None:
    kubelet = Kubelet(runtime)
    pods[:] = await replaced(box, kubelet, pods, "second", -2.0, 0.02)
    with capsys.disabled():
        waits = sorted(kubelet.waits)
        print(  # noqa: T201
            f"{FULL} of {FULL} replaced: {len(kubelet.failures)} failed sandboxes, a new pod after "
            f"{statistics.median(waits):.1f} s (median), {waits[-1]:.1f} s (longest) ",
            end="",
        )
    assert kubelet.failures == []


async def test_a_rolling_restart_of_a_full_node_fails_no_sandbox(
    box: Box, runtime: Containerd, pods: list[Pod]
) -> None:
    kubelet = Kubelet(runtime)
    for start in range(0, FULL, 9):
        pods[start : start + 9] = await asyncio.gather(
            *(
                kubelet.replace(old, f"third-{start + number}", (-1.0, 0.0, 0.1)[number % 3])
                for number, old in enumerate(pods[start : start + 9])
            )
        )
    assert kubelet.failures == []
    assert await box.held() == {pod.id: pod.ip for pod in pods}


async def test_waiting_adds_hold_up_no_del_and_one_beyond_is_refused(
    box: Box, runtime: Containerd, pods: list[Pod]
) -> None:
    """As many wait as the node has addresses. Their pods end first: nothing of them is left."""
    waiting = [asyncio.create_task(runtime.run_pod(f"waiting-{number}")) for number in range(FULL)]

    async def all_wait() -> bool:
        return (await box.node.status())["waiting"] == FULL

    await until(all_wait, "all of them wait", timeout=90.0)
    with pytest.raises(RuntimeFailure, match=f"ENI_LIMIT.*before={FULL}"):
        await runtime.run_pod("one-too-many")
    await runtime.remove_pod(pods.pop())
    assert len(await box.held()) == FULL - 1, "the DEL was carried out while all others still wait"
    await asyncio.gather(*(runtime.remove_pod(pod) for pod in pods))
    pods[:] = await asyncio.gather(*waiting)
    assert await box.held() == {pod.id: pod.ip for pod in pods}


async def test_adds_wait_on_while_the_daemon_is_killed(box: Box, runtime: Containerd, pods: list[Pod]) -> None:
    waiting = [asyncio.create_task(runtime.run_pod(f"patient-{number}")) for number in range(3)]

    async def three_wait() -> bool:
        return (await box.node.status())["waiting"] == 3

    await until(three_wait, "they wait")
    await box.node.kill()
    await box.node.start()
    await box.node.wait_until_ready()
    await until(three_wait, "they wait for the next daemon, too")
    ended = pods[:3]
    await asyncio.gather(*(runtime.remove_pod(pod) for pod in ended))
    pods[:3] = await asyncio.gather(*waiting)
    assert await box.held() == {pod.id: pod.ip for pod in pods}


async def test_nothing_is_left_of_all_of_them(box: Box, runtime: Containerd, pods: list[Pod]) -> None:
    await asyncio.gather(*(runtime.remove_pod(pod) for pod in pods))
    assert await runtime.pod_ids() == []
    await box.assert_nothing_left()
