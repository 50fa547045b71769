"""A watch on directories that works without inotify, too, and says so as long as it has to."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asyncinotify import Inotify, Mask

from ipamd.process import directory_watch as module
from ipamd.process.directory_watch import DirectoryWatch
from ipamd.telemetry.conditions import Conditions

NAME = "spool.polled"
MASK = Mask.MOVED_TO | Mask.CLOSE_WRITE


def watch(conditions: Conditions, *directories: Path, interval: float = 3600.0) -> DirectoryWatch:
    return DirectoryWatch(lambda: directories, MASK, interval, conditions, NAME)


async def soon(watched: DirectoryWatch) -> None:
    await asyncio.wait_for(watched.changed(), 20)


async def test_a_change_wakes_and_nothing_else_does(tmp_path: Path) -> None:
    watched = watch(Conditions(), tmp_path)
    await soon(watched)
    waiting = asyncio.create_task(watched.changed())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    (tmp_path / "file").write_text("")
    await asyncio.wait_for(waiting, 20)
    watched.close()


def _no_instance(number: int) -> Callable[[], Inotify]:
    def make() -> Inotify:
        raise OSError(number, os.strerror(number))

    return make


class _NoWatch(Inotify):
    def add_watch(self, path: Any, mask: Mask) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


REFUSALS: dict[str, tuple[Callable[[], Inotify], str]] = {
    "no instance left": (_no_instance(errno.EMFILE), "max_user_instances"),
    "no descriptor left": (_no_instance(errno.ENFILE), "fs.file-max"),
    "no memory": (_no_instance(errno.ENOMEM), "memory"),
    "no watch left": (_NoWatch, "max_user_watches"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_without_inotify_it_looks_now_and_then_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    conditions = Conditions()
    refuse, remedy = REFUSALS[refusal]
    watched = watch(conditions, tmp_path, interval=0.01)
    with monkeypatch.context() as patched:
        patched.setattr(module, "Inotify", refuse)
        for _ in range(3):
            await soon(watched)
        (condition,) = conditions.active()
        assert condition.name == NAME and remedy in condition.text and str(tmp_path) in condition.text
    await soon(watched)
    assert conditions.active() == []
    (tmp_path / "file").write_text("")
    await soon(watched)
    watched.close()


async def test_a_directory_that_may_not_be_watched_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(Inotify):
        def add_watch(self, path: Any, mask: Mask) -> Any:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    conditions = Conditions()
    monkeypatch.setattr(module, "Inotify", Forbidden)
    await soon(watched := watch(conditions, tmp_path, interval=0.01))
    await soon(watched)
    assert "Permission denied" in conditions.active()[0].text


@pytest.mark.parametrize("how", ["removed", "renamed"])
async def test_a_directory_made_anew_is_watched_again(tmp_path: Path, how: str) -> None:
    directory = tmp_path / "watched"
    directory.mkdir()
    watched = watch(Conditions(), directory, interval=0.01)
    await soon(watched)
    if how == "removed":
        directory.rmdir()
    else:
        directory.rename(tmp_path / "elsewhere")
    await soon(watched)
    directory.mkdir()
    await soon(watched)
    waiting = asyncio.create_task(watched.changed())
    (directory / "file").write_text("")
    await asyncio.wait_for(waiting, 20)
    watched.close()


async def test_a_missing_directory_is_no_condition(tmp_path: Path) -> None:
    conditions = Conditions()
    watched = watch(conditions, tmp_path / "later", interval=0.01)
    await soon(watched)
    waiting = asyncio.create_task(watched.changed())
    await asyncio.sleep(0.05)
    assert not waiting.done() and conditions.active() == []
    (tmp_path / "later").mkdir()
    await asyncio.wait_for(waiting, 20)
    watched.close()
