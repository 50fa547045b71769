"""What others hold of ours ends the daemon only where pods would be worse off with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipamd.sim import netns
from tests.netns.boxed import add_route, box, until

pytestmark = pytest.mark.netns

FORMER_RULE = "rule add fwmark 0x40/0x40 lookup main priority 1000 protocol 158"
OTHERS_ROUTE = "route add unreachable default table 1503"


async def rules(namespace: str) -> list[str]:
    return (await netns.command("ip", "-n", namespace, "rule")).splitlines()


async def test_start_beside_a_vrf_and_a_shared_priority(tmp_path: Path, prefix: str) -> None:
    """The rule for the main table had the priority of the kernel's rule for VRFs once: it moves."""
    async with box(tmp_path, prefix) as (daemon, _):
        await netns.ip_batch(
            daemon.node.netns,
            [
                "rule add l3mdev priority 1000 protocol kernel",
                FORMER_RULE,
                "rule add from 10.3.0.0/16 lookup 77 priority 500",
            ],
        )
        await daemon.ready()
        (told,) = daemon.events("host.shared")
        assert "ip rule 500: from 10.3.0.0/16 lookup 77" in told["text"] and "host.rule_pods" in told["text"]

        async def moved() -> bool:
            found = await rules(daemon.node.netns)
            return "1100:\tfrom all fwmark 0x40/0x40 lookup main proto 158" in found and not any(
                line.startswith("1000:") and "fwmark" in line for line in found
            )

        await until(moved, "the former rule is replaced")
        assert any("l3mdev" in line for line in await rules(daemon.node.netns))


async def test_clash_on_a_node_with_pods_is_told(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        await add_route(daemon.node, "a", await daemon.address("a"))
        await netns.ip_batch(daemon.node.netns, [OTHERS_ROUTE])
        await daemon.stop()
        await daemon.ready()
        (told,) = daemon.events("host.shared")
        assert "table 1503" in told["text"] and "would not start" in told["text"]
        assert await daemon.held()


async def test_clash_on_an_empty_node_ends_the_daemon(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await netns.ip_batch(daemon.node.netns, [OTHERS_ROUTE])
        await daemon.start()
        assert daemon.process is not None
        assert await daemon.process.wait() == 1
        assert daemon.events("host.clash")
        daemon.process = None
        await daemon.channel.close()
