"""podman with its CNI backend: no kubelet, no CRI, and a network configuration found by its name."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import Node
from tests.e2e.podman import Podman

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("podman_with_cni")]


@pytest.fixture
async def podmen(nodes: list[Node]) -> AsyncIterator[list[Podman]]:
    made = [Podman.prepare(node) for node in nodes]
    yield made
    for podman in made:
        await podman("rm", "--all", "--force", "--time", "0")


async def test_containers_ping_across_nodes(podmen: list[Podman], control: ControlClient) -> None:
    first, second = podmen
    code, text = await first.run("--detach --name server", "/bin/sleep", "600")
    assert code == 0, text
    server = await first.address_of("server")
    [attached] = await first.node.pods()
    assert (attached["ip"], attached["pod"]) == (server, "server")

    code, text = await second.run("--rm", "/bin/ping", "-c", "1", "-W", "2", server)
    assert code == 0, text
    assert "1 packets received" in text
    await second.node.wait_until_settled()
    assert await leaks(second.node, control) == []  # --rm: its DEL has come

    # Restarting is DEL and ADD; the container keeps no address, but gets one.
    code, text = await first("restart", "--time", "0", "server")
    assert code == 0, text
    [again] = await first.node.pods()
    assert again["ip"] == await first.address_of("server")
    assert again["netns"] != attached["netns"]

    code, text = await first("rm", "--force", "--time", "0", "server")
    assert code == 0, text
    await first.node.wait_until_settled()
    assert await leaks(first.node, control) == []


async def test_podman_shows_the_reason_of_a_refusal(podmen: list[Podman], control: ControlClient) -> None:
    podman = podmen[0]
    await podman.node.stop()
    podman.node.spec.config.write_text(podman.node.spec.config.read_text() + "[pool]\nmax_pods = 1\n")
    await podman.node.start()
    await podman.node.wait_until_ready()
    code, text = await podman.run("--detach --name only", "/bin/sleep", "600")
    assert code == 0, text
    code, text = await podman.run("--rm", "/bin/true")
    assert code != 0
    assert "POD_LIMIT" in text
    assert [pod["pod"] for pod in await podman.node.pods()] == ["only"]
    code, text = await podman("rm", "--force", "--time", "0", "only")
    assert code == 0, text
    await podman.node.wait_until_settled()
    assert await leaks(podman.node, control) == []
