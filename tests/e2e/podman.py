"""podman with its CNI backend in a node's network namespace, without registry and beside the system's own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes.image import write_root
from ipamd.sim.runtimes.process import inside

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


def without_cni() -> str:
    """Why this podman can't use CNI, in its own words; empty: it can. Podman 5 knows CNI only where it was built for
    it, and Debian 13 builds it for netavark alone."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "containers.conf")
        config.write_text('[network]\nnetwork_backend = "cni"\n')
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "CONTAINERS_CONF": str(config)}
        argv = (
            "podman",
            "--root",
            f"{folder}/store",
            "--runroot",
            f"{folder}/run",
            "--storage-driver",
            "vfs",
            "info",
        )
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    said = [line.removeprefix("Error: ") for line in done.stderr.splitlines() if "cni support" in line]
    return said[0] if said else ""


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

    async def run(self, options: str, *command: str, network: str = "ipamd") -> tuple[int, str]:
        """Run a container, by default on the node's network."""
        root = str(self.directory / "root")
        return await self("run", *options.split(), "--network", network, "--rootfs", root, *command)

    async def must(self, *words: str) -> str:
        """As calling it, for what has to succeed; returns the output."""
        code, text = await self(*words)
        assert code == 0, f"podman {' '.join(words)}: {text}"
        return text

    async def networks_of(self, name: str) -> dict[str, str]:
        """The address of a container in each of its networks."""
        inspected = json.loads(await self.must("inspect", name))
        return {net: at["IPAddress"] for net, at in inspected[0]["NetworkSettings"]["Networks"].items()}

    async def address_of(self, name: str) -> str:
        return (await self.networks_of(name))["ipamd"]
