"""ipamctl against a real daemon: every command, on a node that is well, that is short of addresses, that is drained,
and that has no daemon."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from ipamd.api.v1 import ipam_pb2
from ipamd.sim.runtimes.process import inside
from ipamd.workload import trace
from tests.netns.boxed import Daemon, box, cni_call, text, until
from tests.unit.terminal import top

pytestmark = pytest.mark.netns


async def ipamctl(daemon: Daemon, *words: str | Path, code: int = 0) -> str:
    """Its standard output; it must end with `code`, and without complaints where that is 0."""
    command = [sys.executable, "-m", "ipamd.ctl", *map(str, words), "--socket", str(daemon.node.socket)]
    done = await asyncio.to_thread(
        subprocess.run, inside(daemon.node.netns, *command), capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout


async def data(daemon: Daemon, *words: str, code: int = 0) -> Any:
    return json.loads(await ipamctl(daemon, *words, "-o", "json", code=code))


async def add(daemon: Daemon, name: str, deadline: int = 15) -> str:
    request = ipam_pb2.AllocateRequest(cni=cni_call(name), deadline_ms=deadline * 1000)
    return text((await daemon.ipam.Allocate(request, timeout=deadline + 5)).address)


@asynccontextmanager
async def node(tmp_path: Path, prefix: str, *subnets: str, **more: Any) -> AsyncIterator[Daemon]:
    async with box(tmp_path, prefix, *subnets, POOL_WARM_IPS=2, POOL_COOLDOWN=1, **more) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=2)
        yield daemon


async def test_a_node_that_is_well(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix) as daemon:
        address = await add(daemon, "web-0")
        await daemon.settled(free=2)
        screen = await ipamctl(daemon, "status")
        assert "2 free, 1 assigned" in screen and "Nothing needs attention." in screen
        assert (await data(daemon, "status"))["attention"] == []
        [pod] = await data(daemon, "pods")
        assert (pod["ip"], pod["pod"], pod["namespace"]) == (address, "web-0", "shop")
        states = {each["ip"]: each["state"] for each in await data(daemon, "addresses")}
        assert states[address] == "assigned" and sorted(states.values()) == ["assigned", "free", "free"]
        assert (await ipamctl(daemon, "pods", "-o", "name")) == "shop/web-0\n"
        assert (await data(daemon, "waiting")) == []
        assert "pool.warm_ips" in await ipamctl(daemon, "config", "-o", "name")
        explained = await data(daemon, "explain", "pod", "shop/web-0")
        assert explained["state"] == "attached" and address in explained["headline"]
        assert (await data(daemon, "explain", "pool"))["state"] == "steady"
        await ipamctl(daemon, "explain", "pod", "nobody", code=1)
        names = [json.loads(line)["name"] for line in (await ipamctl(daemon, "events", "-o", "json")).splitlines()]
        assert names.index("daemon.ready") < names.index("attachment.granted")
        assert address in await ipamctl(daemon, "top")
        bundle = tmp_path / "x.tar.gz"
        await ipamctl(daemon, "support-bundle", "--file", bundle, "--config", daemon.node.config)
        with tarfile.open(bundle) as tar:
            found = {name.partition("/")[2] for name in tar.getnames()}
        assert {
            "daemon/pods.json",
            "daemon/audit.json",
            "daemon/process.txt",
            "kernel/nftables.txt",
            "ledger.db",
        } <= found
        await ipamctl(daemon, "release", "shop/web-0", code=2)
        assert (await data(daemon, "release", "shop/web-0", "--yes"))["ip"] == address
        assert await data(daemon, "pods") == []


async def test_node_short_of_addresses_and_drained_node(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_MAX_PODS=3) as daemon:
        for n in range(3):
            await add(daemon, f"web-{n}")
        await daemon.release("web-2")
        status = await data(daemon, "status")
        assert status["attention"] == []
        await add(daemon, "web-3")
        assert (await data(daemon, "status", code=3))["attention"] == [
            "A further pod waits for one of the node's pods to end: POD_LIMIT: 3 addresses are in use, as many as "
            "pool.max_pods allows"
        ]
        with pytest.raises(grpc.aio.AioRpcError, match="3 addresses are in use"):
            await add(daemon, "late")
        refused = await data(daemon, "explain", "pod", "shop/late", code=3)
        assert refused["state"] == "refused"
        assert "attachment.refused" in await ipamctl(daemon, "status", code=3)

        drained = await data(daemon, "drain")
        assert drained["attachments"] == 3
        assert (await data(daemon, "explain", "pool", code=3))["state"] == "drained"
        assert "Drained by an operator" in await ipamctl(daemon, "status", code=3)
        await ipamctl(daemon, "undrain")
        assert (await data(daemon, "status", code=3))["drained"] is None


async def test_an_audit_and_a_bundle_with_the_daemon_and_without(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix) as daemon:
        assert (await data(daemon, "audit"))["mismatches"] == []
        await add(daemon, "web-0")
        assert await data(daemon, "collect", "--yes") == [], "it is young"
        await daemon.stop()
        await ipamctl(daemon, "audit", code=4)
        await ipamctl(daemon, "status", code=1)
        bundle = tmp_path / "x.tar.gz"
        await ipamctl(daemon, "support-bundle", "--file", bundle, "--config", daemon.node.config)
        with tarfile.open(bundle) as tar:
            found = {name.partition("/")[2] for name in tar.getnames()}
        assert "daemon/pods.json" not in found and {"problems.txt", "kernel/routes.txt", "ledger.db"} <= found


async def test_pods_that_come_and_go_are_recorded_across_a_restart(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix) as daemon:
        await add(daemon, "web-0")
        file = tmp_path / "day.jsonl"
        command = [
            sys.executable,
            "-m",
            "ipamd.ctl",
            "events",
            "--record",
            str(file),
            "--socket",
            str(daemon.node.socket),
        ]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)

        async def recorded(count: int) -> None:
            async def there() -> bool:
                return file.exists() and len(file.read_text().splitlines()) == count

            await until(there, f"{count} lines")

        try:
            await recorded(1)
            await add(daemon, "web-1")
            await recorded(2)
            await daemon.stop()
            await daemon.ready()
            await daemon.release("web-0")
            await recorded(3)
        finally:
            process.terminate()
            _, told = await process.communicate()
        assert process.returncode == 0 and b"2 adds and 1 dels" in told
        lines = [(each.event, each.pod) for each in trace.read(file)]
        assert lines == [("add", "shop/web-0"), ("add", "shop/web-1"), ("del", "")]


async def test_top_lives_through_a_restart_of_the_daemon(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix) as daemon:
        with top(daemon.node.socket, 100, 40) as terminal:
            await asyncio.to_thread(terminal.shows, "2 free")
            await add(daemon, "web-0")
            await asyncio.to_thread(terminal.shows, "pod=shop/web-0")
            await asyncio.to_thread(terminal.shows, "1 assigned")
            await daemon.stop()
            await asyncio.to_thread(terminal.shows, "no daemon, trying")
            await daemon.ready()
            await asyncio.to_thread(terminal.until, lambda lines: "trying" not in lines[0], "the daemon is back")
            terminal.type("q")
            assert await asyncio.to_thread(terminal.ended) == 0


async def test_another_networks_file_that_comes_first_is_shown(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "net.d"
    async with node(tmp_path, prefix, CNI_CONF_DIR=folder) as daemon:
        (folder / "05-other.conflist").write_text('{"plugins": [{"type": "other"}]}')
        event = await daemon.seen("conflist.not_in_force")
        assert "05-other.conflist before 10-ipamd.conflist" in event["text"]
        assert "05-other.conflist" in (await data(daemon, "status", code=3))["attention"][0]
        (folder / "05-other.conflist").unlink()
        await daemon.seen("condition.ended")
        assert (await data(daemon, "status"))["attention"] == []
