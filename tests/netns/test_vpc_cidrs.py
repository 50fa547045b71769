"""A CIDR that the VPC gets while the daemon runs reaches the node's nftables table."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.sim import netns
from tests.netns.boxed import Daemon, box, until

pytestmark = pytest.mark.netns

ADDED = "100.64.0.0/16"


async def audit(daemon: Daemon) -> None:
    await daemon.introspection.Audit(pb.AuditRequest(), timeout=20)


async def hang_up(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)


@pytest.mark.parametrize("look", [audit, hang_up])
async def test_new_cidr_is_inside_after(
    tmp_path: Path, prefix: str, look: Callable[[Daemon], Awaitable[None]]
) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await daemon.ready()

        async def inside() -> bool:
            listing = await netns.command(
                *("ip", "netns", "exec", daemon.node.netns, "nft", "list", "set", "inet", "ipamd", "inside")
            )
            return ADDED in listing

        assert not await inside()
        vpc.cloud.further_cidrs.append(IPv4Network(ADDED))
        await look(daemon)
        await until(inside, "the CIDR is in the set")
        assert [event["cidrs"] for event in daemon.events("vpc.cidrs_added")] == [[ADDED]]
