from __future__ import annotations

import asyncio
from pathlib import Path

from ipamd.config.load import Loaded, load
from ipamd.reload import LiveSettings


def live(file: Path) -> LiveSettings:
    return LiveSettings(lambda: load(file, environ={}), file)


async def next_change(settings: LiveSettings) -> Loaded:
    async for loaded in settings.changes():
        return loaded
    raise AssertionError("the stream ended")


async def test_a_written_file_takes_effect(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[pool]\nwarm_ips = 1\n")
    settings = live(file)
    change = asyncio.create_task(next_change(settings))
    await asyncio.sleep(0.05)
    file.write_text("[pool]\nwarm_ips = 7\n")
    loaded = await asyncio.wait_for(change, 5)
    assert loaded.settings.pool.warm_ips == 7


async def test_a_replaced_file_takes_effect(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    settings = live(file)
    change = asyncio.create_task(next_change(settings))
    await asyncio.sleep(0.05)
    (tmp_path / "new").write_text("[pool]\ncooldown = 3\n")
    (tmp_path / "new").rename(file)
    assert (await asyncio.wait_for(change, 5)).settings.pool.cooldown == 3


async def test_a_hang_up_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    settings = live(file)
    settings._load = lambda: load(file, environ={"IPAMD_POOL_WARM_IPS": "9"})
    change = asyncio.create_task(next_change(settings))
    settings.hang_up()
    loaded = await asyncio.wait_for(change, 5)
    assert loaded.settings.pool.warm_ips == 9
    assert str(loaded.origins["pool.warm_ips"]) == "environment IPAMD_POOL_WARM_IPS"


async def test_what_can_not_be_used_changes_nothing_and_what_needs_a_restart_waits(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[pool]\nwarm_ips = 1\n[host]\ntable = 1600\n")
    settings = live(file)
    change = asyncio.create_task(next_change(settings))
    await asyncio.sleep(0.05)
    file.write_text("[pool]\nwarm_ips = -1\n")
    await asyncio.sleep(0.5)
    assert not change.done() and settings.loaded.settings.pool.warm_ips == 1
    file.write_text("[pool]\nwarm_ips = 2\n[host]\ntable = 1700\n")
    loaded = await asyncio.wait_for(change, 5)
    assert loaded.settings.pool.warm_ips == 2
    assert loaded.settings.host.table == 1600
