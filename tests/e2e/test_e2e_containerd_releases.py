"""Newer containerds than the machine's own, as Debian's newer releases have them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from ipamd.install.files import CONFLIST
from ipamd.shell.serving import Record
from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.runtimes.containerd import Containerd, containerd
from tests.e2e import debian
from tests.e2e.single_node import Box, single_node, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

PODS = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Box]:
    async with single_node("m5.xlarge") as made:
        yield made


@dataclass(frozen=True)
class Release:
    name: str
    version: tuple[int, ...]
    runtime: Containerd


@pytest_asyncio.fixture(loop_scope="module", params=["trixie", "sid"])
async def release(request: pytest.FixtureRequest, box: Box) -> AsyncIterator[Release]:
    name: str = request.param
    folder = await asyncio.to_thread(debian.unpacked, name, "containerd") / "usr" / "bin"
    version = await asyncio.to_thread(debian.containerd_version, folder)
    node = box.node
    async with containerd(
        node.spec.netns, node.spec.dir / name, node.bin_dir, node.conf_dir, release=folder
    ) as runtime:
        await runtime.wait_until_ready()
        yield Release(name, version, runtime)


async def test_twenty_pods_at_once(release: Release, box: Box) -> None:
    node, runtime = box.node, release.runtime
    assert release.version >= (1, 7)
    pods = await asyncio.gather(*(runtime.run_pod(f"p{number}") for number in range(PODS)))
    assert await box.held() == {pod.id: pod.ip for pod in pods}
    assert len({pod.ip for pod in pods}) == PODS
    ends = [Endpoint(pod.name, node.name, pod.ip, pod.netns) for pod in pods]
    ends.append(Endpoint(node.name, node.name, node.spec.primary_ip, node.spec.netns))
    silent = await ping_all(ends)
    assert [(source.name, target.name) for source, target in silent] == []
    code, output = await runtime.execute(pods[0], "/bin/ping", "-c", "1", "-W", "2", pods[-1].ip)
    assert code == 0, output
    await asyncio.gather(*(runtime.remove_pod(pod) for pod in pods))
    assert await runtime.pod_ids() == []
    await box.assert_nothing_left()


async def test_a_daemon_that_is_gone_shows_only_where_it_never_served(release: Release, box: Box) -> None:
    """containerd 2 asks with STATUS, and shows the plugin's own words; before that nothing is noticed."""
    runtime = release.runtime
    conflist = json.loads((box.node.conf_dir / CONFLIST).read_bytes())
    assert "1.1.0" in conflist["cniVersions"]
    assert await runtime.why_not_ready() == ""
    record = Record(box.node.spec.socket)
    await box.node.stop()
    assert await runtime.why_not_ready() == ""  # pods run on
    record.path.write_text("00000000-0000-0000-0000-000000000000\n")  # as a disk has it after a reboot
    try:
        found = await runtime.why_not_ready()
        if release.version >= (2,):
            assert "NetworkReady" in found and "no answer from ipamd" in found
            assert "is ipamd running" in found
        else:
            assert found == ""
    finally:
        await box.node.start()
        await box.node.wait_until_ready()

    async def ready() -> bool:
        return await runtime.why_not_ready() == ""

    await until(ready, "containerd sees the daemon again")
