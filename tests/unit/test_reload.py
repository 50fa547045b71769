"""Settings while the daemon runs: what is taken over, and what is said about a file that can't be used."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from ipamd.config import load as load_module
from ipamd.config.load import Loaded, load
from ipamd.process.reload import LiveSettings
from ipamd.telemetry.conditions import Conditions

PATIENCE = 20  # seconds: only a failure waits so long


class Follower:
    """A daemon's part: takes each change as it comes."""

    def __init__(self, file: Path, load: Callable[[], Loaded]) -> None:
        self.file = file
        self.conditions = Conditions()
        self.settings = LiveSettings(load, file, self.conditions)
        self.changes: asyncio.Queue[Loaded] = asyncio.Queue()
        self.reads = 0

    async def run(self) -> None:
        async for loaded in self.settings.changes():
            self.changes.put_nowait(loaded)

    async def next(self) -> Loaded:
        return await asyncio.wait_for(self.changes.get(), PATIENCE)

    def texts(self) -> dict[str, str]:
        return {condition.name: condition.text for condition in self.conditions.active()}

    async def until(self, *names: str) -> dict[str, str]:
        """Until exactly these conditions last."""
        async with asyncio.timeout(PATIENCE):
            while set(self.texts()) != set(names):  # noqa: ASYNC110 - conditions tell nobody
                await asyncio.sleep(0.02)
        return self.texts()


@pytest.fixture
async def follow(tmp_path: Path) -> AsyncIterator[Callable[..., Follower]]:
    tasks = []

    def start(text: str, load_settings: Callable[[], Loaded] | None = None) -> Follower:
        file = tmp_path / "config.toml"
        file.write_text(text)
        follower = Follower(file, load_settings or (lambda: load(file, environ={})))
        tasks.append(asyncio.create_task(follower.run()))
        return follower

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Follow = Callable[..., Follower]


async def test_a_written_file_takes_effect(follow: Follow) -> None:
    follower = follow("[pool]\nwarm_ips = 1\n")
    follower.file.write_text("[pool]\nwarm_ips = 7\n")
    assert (await follower.next()).settings.pool.warm_ips == 7


async def test_a_replaced_file_takes_effect(follow: Follow) -> None:
    follower = follow("")
    new = follower.file.with_name("new")
    new.write_text("[pool]\ncooldown = 3\n")
    new.rename(follower.file)
    assert (await follower.next()).settings.pool.cooldown == 3


async def test_a_file_behind_a_link_takes_effect(tmp_path: Path, follow: Follow) -> None:
    elsewhere = tmp_path / "elsewhere" / "real.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("")
    file = tmp_path / "link.toml"
    file.symlink_to(elsewhere)
    follower = Follower(file, lambda: load(file, environ={}))
    running = asyncio.create_task(follower.run())
    await asyncio.sleep(0)
    elsewhere.write_text("[pool]\ncooldown = 3\n")
    assert (await follower.next()).settings.pool.cooldown == 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_change_during_the_start_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[pool]\nwarm_ips = 1\n")
    follower = Follower(file, lambda: load(file, environ={}))
    file.write_text("[pool]\nwarm_ips = 7\n")  # EC2 was away, and nothing watched yet
    running = asyncio.create_task(follower.run())
    assert (await follower.next()).settings.pool.warm_ips == 7
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_hang_up_is_enough(tmp_path: Path, follow: Follow) -> None:
    environ: dict[str, str] = {}
    follower = follow("", lambda: load(tmp_path / "config.toml", environ=environ))
    environ["IPAMD_POOL_WARM_IPS"] = "9"
    follower.settings.hang_up()
    loaded = await follower.next()
    assert loaded.settings.pool.warm_ips == 9
    assert str(loaded.origins["pool.warm_ips"]) == "environment IPAMD_POOL_WARM_IPS"


async def test_what_needs_a_restart_waits_and_is_shown(follow: Follow) -> None:
    follower = follow("[host]\ntable = 1600\n")
    follower.file.write_text("[pool]\nwarm_ips = 1\n[host]\ntable = 1600\n")
    await follower.next()  # it watches
    follower.file.write_text("[pool]\nwarm_ips = 2\n[host]\ntable = 1700\n")
    loaded = await follower.next()
    assert (loaded.settings.pool.warm_ips, loaded.settings.host.table) == (2, 1600)
    texts = await follower.until("settings.need_restart")
    assert "host.table" in texts["settings.need_restart"] and "pool" not in texts["settings.need_restart"]
    follower.file.write_text("[pool]\nwarm_ips = 2\n[host]\ntable = 1600\n")
    await follower.until()


async def test_a_place_that_ends_the_next_start_is_a_condition(tmp_path: Path, follow: Follow) -> None:
    follower = follow("[pool]\nwarm_ips = 1\n")
    follower.file.write_text("[pool]\nwarm_ips = 2\n")
    await follower.next()  # it watches
    follower.file.write_text(f'[pool]\nwarm_ips = 3\n[ledger]\npath = "{tmp_path}"\n')
    texts = await follower.until("settings.rejected")
    assert f"ledger.path {tmp_path}: {tmp_path} is a folder, and has to be a file" in texts["settings.rejected"]
    assert follower.settings.loaded.settings.pool.warm_ips == 2
    follower.file.write_text("[pool]\nwarm_ips = 3\n")
    await follower.next()
    await follower.until()


def half_written(file: Path) -> None:
    file.write_text("[pool]\nx = [")


def out_of_range(file: Path) -> None:
    file.write_text("[pool]\nwarm_ips = -1\n")


def removed(file: Path) -> None:
    file.unlink()


def moved_away(file: Path) -> None:
    file.rename(file.with_name("config.toml.bak"))


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def a_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def binary(file: Path) -> None:
    file.write_bytes(os.urandom(4096) + b"\xff\0")


def enormous(file: Path) -> None:
    with file.open("w") as text:
        text.truncate(1 << 33)


def deep(file: Path) -> None:
    file.write_text("x = " + "[" * 100_000)


BAD = [half_written, out_of_range, removed, moved_away, a_directory, a_dangling_link, a_loop, a_pipe, binary]
BAD += [enormous, deep]


@pytest.mark.parametrize("default", [False, True], ids=["named", "default"])
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
async def test_a_bad_file_is_a_condition_until_it_is_mended(
    spoil: Callable[[Path], None], default: bool, tmp_path: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "DEFAULT_PATH", tmp_path / "config.toml")
    follower = follow("", (lambda: load(environ={})) if default else None)
    follower.file.write_text("[pool]\nwarm_ips = 1\n")
    await follower.next()  # it watches
    spoil(follower.file)
    with structlog.testing.capture_logs() as lines:
        texts = await follower.until("settings.rejected")
        assert str(follower.file) in texts["settings.rejected"]
        assert "next start" in texts["settings.rejected"] and "\n" not in texts["settings.rejected"]
        assert follower.settings.loaded.settings.pool.warm_ips == 1 and follower.changes.empty()
        if follower.file.is_dir():
            follower.file.rmdir()
        new = tmp_path / "mended"
        new.write_text("[pool]\nwarm_ips = 3\n")
        new.rename(follower.file)
        assert (await follower.next()).settings.pool.warm_ips == 3
    await follower.until()
    names = [line["event"] for line in lines if line["event"] != "settings.changed"]
    assert names == ["settings.rejected", "settings.accepted", "condition.ended"]


async def test_a_file_that_only_its_owner_may_read_is_noticed(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = follow("")
    follower.file.write_text("[pool]\nwarm_ips = 1\n")
    await follower.next()  # it watches
    allowed = load_module.read

    def guarded(path: Path, most: int) -> str:  # root reads everything in a test
        if not stat.S_IMODE(path.stat().st_mode):
            raise load_module.Unreadable("Permission denied")
        return allowed(path, most)

    monkeypatch.setattr(load_module, "read", guarded)
    follower.file.chmod(0)
    assert "Permission denied" in (await follower.until("settings.rejected"))["settings.rejected"]
    follower.file.chmod(0o600)
    await follower.until()


async def test_without_inotify_the_file_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("ipamd.process.directory_watch.Inotify", refuse)
    monkeypatch.setattr("ipamd.process.reload.INTERVAL", 0.05)
    file = tmp_path / "config.toml"
    file.write_text("[pool]\nwarm_ips = 1\n")
    follower = Follower(file, lambda: load(file, environ={}))
    task = asyncio.create_task(follower.run())
    file.write_text("[pool]\nwarm_ips = 7\n")
    assert (await follower.next()).settings.pool.warm_ips == 7
    assert list(follower.texts()) == ["settings.polled"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
