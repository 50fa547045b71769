"""A settings file that breaks under a running daemon: shown until it is mended, and what a start makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from tests.netns.boxed import Daemon, box, until

pytestmark = pytest.mark.netns


async def conditions(daemon: Daemon) -> dict[str, str]:
    node: pb.Node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
    return {condition.name: condition.text for condition in node.conditions}


async def until_only(daemon: Daemon, *names: str) -> dict[str, str]:
    async def there() -> bool:
        return set(await conditions(daemon)) == set(names)

    await until(there, f"the conditions {names}")
    return await conditions(daemon)


def half_written(file: Path) -> None:
    file.write_text(file.read_text() + "\nx = [")


def removed(file: Path) -> None:
    file.unlink()


def of_another_encoding(file: Path) -> None:
    file.write_bytes(file.read_text().encode("utf-16-le"))


@pytest.mark.parametrize("spoil", [half_written, removed, of_another_encoding])
async def test_a_file_that_bars_the_next_start_is_shown_until_mended(
    tmp_path: Path, prefix: str, spoil: Callable[[Path], None]
) -> None:
    async with box(tmp_path, prefix, METRICS_LISTEN="") as (daemon, _):
        config = daemon.node.config
        good = config.read_text()
        await daemon.ready()
        await until_only(daemon)
        spoil(config)
        text = (await until_only(daemon, "settings.rejected"))["settings.rejected"]
        assert str(config) in text and "next start" in text
        assert await daemon.address("a"), "pods are served"
        # What it says is so.
        rival = Daemon(daemon.vpc, daemon.node, "rival.log")
        await rival.start()
        assert rival.process is not None
        assert await rival.process.wait() == 1
        assert str(config) in rival.log.read_text() and "Traceback" not in rival.log.read_text()
        await rival.kill()
        fresh = config.with_name("fresh")
        fresh.write_text(good)
        fresh.replace(config)
        await until_only(daemon)
        assert [event["event"] for event in daemon.events("settings.rejected", "settings.accepted")] == [
            "settings.rejected",
            "settings.accepted",
        ]


async def test_service_links_do_not_keep_it_from_starting(tmp_path: Path, prefix: str) -> None:
    links = {
        "SERVICE_HOST": "10.100.7.1",
        "SERVICE_PORT": "61678",
        "PORT": "tcp://10.100.7.1:61678",
        "PORT_61678_TCP": "tcp://10.100.7.1:61678",
        "METRICS_PORT": "tcp://10.100.7.2:9100",
        "POOL_WARM_ENIS": "",
    }
    async with box(tmp_path, prefix, **links) as (daemon, _):
        await daemon.ready()
        assert await daemon.address("a")
