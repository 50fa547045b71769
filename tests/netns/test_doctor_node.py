"""`ipamctl doctor` on a node of the VPC in a box: what EC2 says to it, and what the daemon lives on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.sim import netns
from ipamd.sim.runtimes.process import inside
from tests.netns.boxed import Daemon, box, control

pytestmark = pytest.mark.netns

Found = dict[str, tuple[str, str]]


async def doctor(daemon: Daemon, **environment: str) -> Found:
    """Check -> state and what was found."""
    command = [sys.executable, "-m", "ipamd.ctl", "doctor", "--config", str(daemon.node.config), "-o", "json"]
    done = await asyncio.to_thread(
        subprocess.run, inside(daemon.node.netns, *command), capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], **daemon.settings, **environment},
    )  # fmt: skip
    assert done.stderr == ""
    return {each["check"]: (each["state"], each["found"]) for each in json.loads(done.stdout)}


async def test_a_node_with_its_daemon_is_in_order(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, METRICS_LISTEN="127.0.0.1:61678") as (daemon, _):
        await daemon.ready()
        await daemon.seen("metrics.serving")
        found = await doctor(daemon)
        for check in ("credentials", "EC2", "clock", "proxy", "metrics port", "ledger's disk", "connection table"):
            assert found[check][0] == "ok", (check, found[check])
        assert found["EC2"][1].endswith("this node has 1 ENI")
        assert found["metrics port"][1] == "127.0.0.1:61678 is the daemon's"


async def test_what_ec2_refuses_is_said_in_its_words(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await control(vpc, "faults", {"action": "DescribeNetworkInterfaces", "error": "UnauthorizedOperation"})
        found = await doctor(daemon)
        assert found["credentials"][0] == "ok"
        state, words = found["EC2"]
        assert state == "fail" and "UnauthorizedOperation" in words and "DescribeNetworkInterfaces" in words


async def test_an_endpoint_that_nobody_serves_is_named(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, EC2_ENDPOINT="http://127.0.0.1:9") as (daemon, _):
        state, words = (await doctor(daemon))["EC2"]
        assert state == "fail" and "127.0.0.1:9" in words


async def test_who_has_the_metrics_port_is_named(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, METRICS_LISTEN="127.0.0.1:61678") as (daemon, _):
        with netns.run_in(daemon.node.netns, lambda: socket.create_server(("127.0.0.1", 61678))):
            state, words = (await doctor(daemon))["metrics port"]
        assert state == "warn" and re.search(rf"taken by \S+ \(pid {os.getpid()}\)", words), words


async def test_a_proxy_in_the_daemons_environment_is_shown(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        state, words = (await doctor(daemon, HTTPS_PROXY="http://me:pw@192.0.2.1:3128"))["proxy"]
        assert state == "note" and "HTTPS_PROXY=http://...@192.0.2.1:3128" in words
