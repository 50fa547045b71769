"""The calls of a container runtime without the containers: namespaces, and the plugin executed for each.

It follows the CNI specification's execution protocol (SPEC.md 1.1.0, sections 2 and 3), as libcni does: plugins of
the first network configuration list are run in order, each with the result of the one before; DEL goes the other
way, with the result of ADD.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipamd.sim import netns as namespaces
from ipamd.sim.runtimes import Pod, RuntimeFailure
from ipamd.sim.runtimes.process import inside

IFNAME: Final = "eth0"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution of a plugin ended."""

    exit_code: int
    out: bytes
    err: bytes
    seconds: float


class PluginError(RuntimeFailure):
    """A plugin refused; `outcome` is its own answer."""

    def __init__(self, what: str, outcome: Outcome) -> None:
        super().__init__(f"{what}: exit code {outcome.exit_code}: {_explain(outcome)}")
        self.outcome = outcome


class Direct:
    """See `direct`. Implements `ipamd.sim.runtimes.Runtime`."""

    def __init__(self, netns: str, bin_dir: Path, conf_dir: Path) -> None:
        self._netns = netns
        self._bin_dir = bin_dir
        self._conf_dir = conf_dir
        self._pods: dict[str, tuple[Pod, dict[str, Any]]] = {}

    async def run_pod(self, name: str, namespace: str = "default") -> Pod:
        pod_id = secrets.token_hex(32)
        pod_netns = f"{self._netns}-{pod_id[:10]}"
        try:
            await namespaces.create(pod_netns)
            await namespaces.ip_batch(pod_netns, ["link set lo up"])
        except namespaces.CommandError as error:
            raise RuntimeFailure(str(error)) from None
        path = namespaces.DIRECTORY / pod_netns
        pod = Pod(name, namespace, pod_id, "", path, 0.0)
        before = time.monotonic()
        try:
            result = await self._add(pod)
        except BaseException:
            await self._end(pod, {})
            raise
        address = result["ips"][0]["address"].partition("/")[0]
        pod = Pod(name, namespace, pod_id, address, path, time.monotonic() - before)
        self._pods[pod_id] = pod, result
        return pod

    async def remove_pod(self, pod: Pod) -> None:
        _, result = self._pods.get(pod.id, (pod, {}))
        await self._end(pod, result)
        self._pods.pop(pod.id, None)

    async def pods(self) -> list[Pod]:
        return [pod for pod, _ in self._pods.values()]

    async def _add(self, pod: Pod) -> dict[str, Any]:
        result: dict[str, Any] = {}
        network = self._network()
        for plugin in network["plugins"]:
            config = _plugin_config(network, plugin, result)
            outcome = await self.execute("ADD", plugin["type"], config, _variables(pod))
            if outcome.exit_code != 0:
                raise PluginError(f"{plugin['type']}, ADD for {pod.namespace}/{pod.name}", outcome)
            result = json.loads(outcome.out)
        return result

    async def _end(self, pod: Pod, result: dict[str, Any]) -> None:
        """DEL, then the namespace, which goes in any case."""
        try:
            network = self._network()
            for plugin in reversed(network["plugins"]):
                config = _plugin_config(network, plugin, result)
                outcome = await self.execute("DEL", plugin["type"], config, _variables(pod))
                if outcome.exit_code != 0:
                    raise PluginError(f"{plugin['type']}, DEL for {pod.namespace}/{pod.name}", outcome)
        finally:
            if pod.netns.exists():
                await namespaces.delete(pod.netns.name)

    def _network(self) -> dict[str, Any]:
        """The first configuration list of the directory. Raises `RuntimeFailure`."""
        files = sorted(self._conf_dir.glob("*.conflist"))
        if not files:
            raise RuntimeFailure(f"{self._conf_dir} holds no network configuration; is the daemon ready?")
        network: dict[str, Any] = json.loads(files[0].read_bytes())
        return network

    async def execute(self, command: str, plugin: str, stdin: bytes, variables: Mapping[str, str | Path]) -> Outcome:
        """Execute a plugin once, in the node's network namespace, with CNI_<NAME> for each of `variables`."""
        env = {"PATH": os.environ.get("PATH", os.defpath), "CNI_COMMAND": command, "CNI_PATH": str(self._bin_dir)}
        env |= {f"CNI_{name}": str(value) for name, value in variables.items()}
        before = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *inside(self._netns, self._bin_dir / plugin),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            process_group=0,
        )
        try:
            out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:  # cancelled
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Outcome(process.returncode, out, err, time.monotonic() - before)


@asynccontextmanager
async def direct(netns: str, bin_dir: Path, conf_dir: Path) -> AsyncIterator[Direct]:
    """Pods in the network namespace `netns`, made with the plugins of `bin_dir`; all are removed at the end."""
    runtime = Direct(netns, bin_dir, conf_dir)
    try:
        yield runtime
    finally:
        await asyncio.gather(*(runtime.remove_pod(pod) for pod in await runtime.pods()), return_exceptions=True)


def _variables(pod: Pod) -> dict[str, str | Path]:
    args = (
        f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};"
        f"K8S_POD_INFRA_CONTAINER_ID={pod.id}"
    )
    return {"CONTAINERID": pod.id, "NETNS": pod.netns, "IFNAME": IFNAME, "ARGS": args}


def _plugin_config(network: Mapping[str, Any], plugin: Mapping[str, Any], result: Mapping[str, Any]) -> bytes:
    """SPEC.md, section 3, "Deriving execution configuration from plugin configuration"."""
    config = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
    if result:
        config["prevResult"] = result
    return json.dumps(config).encode()


def _explain(outcome: Outcome) -> str:
    """The error object's words; or whatever was written, when there is none."""
    try:
        error = json.loads(outcome.out)
        return "; ".join(filter(None, (error["msg"], error.get("details"))))
    except (ValueError, KeyError, TypeError):
        return (outcome.out + outcome.err).decode(errors="replace").strip() or "nothing was written"
