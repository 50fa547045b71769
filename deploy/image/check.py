"""Show that an image of ipamd does its work with what deploy/kubernetes/ipamd.yaml allows it: `make image-check`.

The VPC in a box, one node; in its network namespace podman runs first the init container, then the daemon, each with
the capabilities, the read-only root and the arguments of the manifest. Then two pods come, so many that a second
interface is attached, and their addresses answer; they go, and the daemon stops within its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from ipamd.sim import netns
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.runtimes.process import inside
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc

MANIFEST = Path(__file__).parents[1] / "kubernetes" / "ipamd.yaml"
QUICK = Delays(create=0, attach=0.05, detach=0.05, assign=0, link=0.05, imds_lag=0)
PODS = 12  # more than the nine secondary addresses of an m5.large's interface
SECONDS = 60.0
# Those that root may have without CAP_SYS_RESOURCE, as in a container.
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")


async def check(image: str) -> None:
    pod = next(each for each in yaml.safe_load_all(MANIFEST.read_text()) if each["kind"] == "DaemonSet")
    pod = pod["spec"]["template"]["spec"]
    (init,), (daemon,) = pod["initContainers"], pod["containers"]
    name = f"ipamd-check-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="ipamd-check-") as folder:
        async with SimulatedVpc.build(dir=Path(folder), nodes={"n1": "m5.large"}, delays=QUICK) as vpc:
            node = vpc.nodes[0]
            # The manifest's own paths are the host's; a node of the box has its files in one directory.
            mine = ("--socket", str(node.socket), "--spool-dir", str(node.dir / "released"))
            bin_dir = init["args"][init["args"].index("--bin-dir") + 1]
            await podman(
                node,
                "run",
                "--rm",
                *confined(init),
                "-v",
                f"{node.dir / 'bin'}:{bin_dir}",
                image,
                *init["args"],
                *mine,
            )
            say("init container: the plugin is on the host")
            sysctls = next(each["mountPath"] for each in daemon["volumeMounts"] if each["name"] == "sysctls")
            await podman(
                node, "run", "--detach", "--name", name, *confined(daemon),
                "-v", f"{node.dir}:{node.dir}", "-v", f"/proc/sys/net:{sysctls}",
                "--mount", "type=bind,src=/run/netns,dst=/run/netns,ro,bind-propagation=rslave",
                "-e", f"IPAMD_HOST_SYSCTL_DIR={sysctls}", "-e", "IPAMD_POOL_COOLDOWN=0",
                image, *daemon["args"], "--config", str(node.config),
            )  # fmt: skip
            try:
                await serve(node, daemon, name)
                await podman(node, "stop", "--time", str(pod["terminationGracePeriodSeconds"]), name)
                state = await podman(node, "inspect", "--format", "{{.State.ExitCode}}", name)
                if state != "0":
                    raise SystemExit(f"the daemon ended with {state}")
                lines = (await podman(node, "logs", name)).splitlines()
                if wrong := [line for line in lines if json.loads(line)["level"] not in ("info", "debug")]:
                    raise SystemExit("\n".join(wrong))
                say("stopped, and nothing but information in its log")
            except BaseException:
                sys.stderr.write(await podman(node, "logs", name) + "\n")
                raise
            finally:
                await podman(node, "rm", "--force", "--time", "0", name)


async def serve(node: SimulatedNode, daemon: dict[str, Any], name: str) -> None:
    await answered(node, daemon["readinessProbe"]["httpGet"])
    for probe in ("startupProbe", "livenessProbe"):
        socket = f"--env=IPAMD_API_SOCKET={node.socket}"
        await podman(node, "exec", socket, name, *daemon[probe]["exec"]["command"])
    say("ready: all probes answer")
    async with direct(node.netns, node.dir / "bin", node.dir / "net.d") as runtime:
        pods = [await runtime.run_pod(f"p{number}") for number in range(PODS)]
        for each in pods:
            await netns.command(*inside(node.netns, "ping", "-c1", "-W2", each.ip))
        say(f"{PODS} pods on two interfaces answer")
        for each in pods:
            await runtime.remove_pod(each)


async def answered(node: SimulatedNode, probe: dict[str, Any]) -> None:
    url = f"http://{probe['host']}:{probe['port']}{probe['path']}"

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    async with asyncio.timeout(SECONDS):
        while not await asyncio.to_thread(netns.run_in, node.netns, ask):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def confined(container: dict[str, Any]) -> list[str]:
    """podman's words for a container's security context."""
    context = container["securityContext"]
    words = [f"--cap-drop={each}" for each in context["capabilities"].get("drop", ())]
    words += [f"--cap-add={each}" for each in context["capabilities"].get("add", ())]
    if not context["allowPrivilegeEscalation"]:
        words.append("--security-opt=no-new-privileges")
    if context["readOnlyRootFilesystem"]:
        words += ["--read-only", "--read-only-tmpfs=false"]
    return [*words, f"--user={context['runAsUser']}"]


async def podman(node: SimulatedNode, *words: str) -> str:
    if words[0] == "run":
        words = ("run", "--pull=never", *LIMITS, f"--network=ns:/run/netns/{node.netns}", *words[1:])
    process = await asyncio.create_subprocess_exec(
        "podman", "--cgroup-manager=cgroupfs", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"podman {' '.join(words)}: {out.decode()}")
    return out.decode().strip()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Try an image of ipamd on the VPC in a box. Run it as root.")
    parser.add_argument("image", help="its name, as podman knows it")
    asyncio.run(check(parser.parse_args().image))
