"""podman with its CNI backend: no kubelet, no CRI, and a network configuration found by its name."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipamd.sim.demo_checks import ControlClient, leaks
from ipamd.sim.demo_node import Node
from ipamd.sim.runtimes.image import write_root
from ipamd.sim.runtimes.process import inside

pytestmark = pytest.mark.e2e

# The limits are those that root may have without CAP_SYS_RESOURCE, as in a container.
CONFIG = """\
[network]
network_backend = "cni"
cni_plugin_dirs = [{bin_dir}]
network_config_dir = {conf_dir}
default_network = "ipamd"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""


@dataclass(frozen=True)
class Podman:
    """podman in a node's network namespace, with all its files in one directory."""

    node: Node
    directory: Path

    @classmethod
    def prepare(cls, node: Node) -> Podman:
        directory = node.spec.dir / "podman"
        write_root(directory / "root")
        (directory / "containers.conf").write_text(
            CONFIG.format(bin_dir=json.dumps(str(node.bin_dir)), conf_dir=json.dumps(str(node.conf_dir)))
        )
        return cls(node, directory)

    async def __call__(self, *words: str) -> tuple[int, str]:
        """Run podman; returns its exit code and its output, or what it complained of."""
        folders = {"--root": "store", "--runroot": "run", "--tmpdir": "tmp"}
        options = [word for option, name in folders.items() for word in (option, str(self.directory / name))]
        process = await asyncio.create_subprocess_exec(
            *inside(self.node.spec.netns, "podman", *options, "--storage-driver", "vfs", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            },
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, (out or err).decode().strip()

    async def run(self, options: str, *command: str) -> tuple[int, str]:
        """Run a container on the node's network."""
        root = str(self.directory / "root")
        return await self("run", *options.split(), "--network", "ipamd", "--rootfs", root, *command)


@pytest.fixture
async def podmen(nodes: list[Node]) -> AsyncIterator[list[Podman]]:
    made = [Podman.prepare(node) for node in nodes]
    yield made
    for podman in made:
        await podman("rm", "--all", "--force", "--time", "0")


async def address_of(podman: Podman, name: str) -> str:
    code, text = await podman("inspect", name)
    assert code == 0, text
    networks = json.loads(text)[0]["NetworkSettings"]["Networks"]
    return str(networks["ipamd"]["IPAddress"])


async def test_containers_ping_across_nodes(podmen: list[Podman], control: ControlClient) -> None:
    first, second = podmen
    code, text = await first.run("--detach --name server", "/bin/sleep", "600")
    assert code == 0, text
    server = await address_of(first, "server")
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
    assert again["ip"] == await address_of(first, "server")
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
