"""Settings that change while the daemon runs: on SIGHUP, and when somebody writes the file.

The pool's targets take effect at once. Everything else is bound to sockets, files and the kernel at start: a change
there waits for a restart. A file that can't be used changes nothing now, and would keep the daemon from its next
start. Both last until somebody acts, so both are conditions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import structlog
from asyncinotify import Mask

from ipamd.config.error import SettingsError
from ipamd.config.load import Loaded
from ipamd.config.obstacles import obstacles
from ipamd.process.directory_watch import DirectoryWatch
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.settings")

LIVE_SECTIONS = ("pool",)

# An editor writes in several steps, a configuration manager in several files: look once they are done.
QUIET = 0.2

# Seconds between two looks while the kernel does not tell of changes, or the directory is missing.
INTERVAL = 30.0


def is_live(key: str) -> bool:
    """Whether a change of this dotted key takes effect without a restart."""
    return key.partition(".")[0] in LIVE_SECTIONS


# What changes when a file is written, replaced, removed, or made (un)readable.
_ALTERED = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.ATTRIB


class LiveSettings:
    """`load` reads everything anew; `path` is the file to watch. Raises `SettingsError` when made from bad ones.

    `loaded` are the settings in force: what needs a restart is as it was at the start.
    """

    def __init__(self, load: Callable[[], Loaded], path: Path, conditions: Conditions) -> None:
        self._load = load
        self._path = path
        self._conditions = conditions
        self._hangup = asyncio.Event()
        self._heard = asyncio.Event()
        self._rejected = False
        self.loaded = load()

    def hang_up(self) -> None:
        """SIGHUP came."""
        self._hangup.set()
        self._heard.set()
        self._heard = asyncio.Event()

    async def hung_up(self) -> None:
        """Return with the next SIGHUP."""
        await self._heard.wait()

    async def changes(self) -> AsyncIterator[Loaded]:
        """The settings in force, each time that something in them changed."""
        watch = DirectoryWatch(self._directories, _ALTERED, INTERVAL, self._conditions, "settings.polled")
        try:
            await watch.changed()
            if await self._read():  # written between the start and the watch
                yield self.loaded
            while True:
                await self._wait(watch)
                if await self._read():
                    yield self.loaded
        finally:
            watch.close()

    def _directories(self) -> set[Path]:
        """Not the file: editors and Kubernetes replace it instead of writing it. And it may be somewhere else, behind
        a symbolic link."""
        return {self._path.parent, Path(os.path.realpath(self._path)).parent}

    async def _wait(self, watch: DirectoryWatch) -> None:
        hangup = asyncio.ensure_future(self._hangup.wait())
        written = asyncio.ensure_future(watch.changed())
        try:
            await asyncio.wait((hangup, written), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(QUIET)
        finally:
            hangup.cancel()
            written.cancel()
            await asyncio.gather(hangup, written, return_exceptions=True)
        self._hangup.clear()

    async def _read(self) -> bool:
        """Take over what can change while the daemon runs. True: the settings in force, or their origins, changed."""
        before = self.loaded
        try:
            after = await asyncio.to_thread(self._load)
        except SettingsError as error:
            self._reject(
                f"The next start of the daemon would fail: {_brief(str(error))}. It goes on with the settings that "
                "it has; `ipamd config check` lists all that is wrong."
            )
            return False
        if (obstacle := await asyncio.to_thread(_obstacle, after)) is not None:
            self._reject(
                f"The next start of the daemon would fail: {obstacle}. It goes on with the settings that it has."
            )
            return False
        if before.file is not None and after.file is None:
            # An editor may be about to write it again, and nobody removes it to have the defaults at once.
            self._reject(
                f"The settings file {self._path} is gone, and the next start of the daemon would use the defaults. "
                "It goes on with the settings that it has; put the file back (an empty one means the defaults)."
            )
            return False
        self._accept()
        changed = _difference(before, after)
        if live := [key for key in changed if is_live(key)]:
            log.info("settings.changed", keys=live)
        self._wait_for_restart([key for key in changed if not is_live(key)])
        settings = before.settings.model_copy(update={name: getattr(after.settings, name) for name in LIVE_SECTIONS})
        kept = {key: origin for key, origin in before.origins.items() if not is_live(key)}
        fresh = {key: origin for key, origin in after.origins.items() if is_live(key)}
        self.loaded = replace(before, settings=settings, origins={**kept, **fresh}, file=after.file)
        return self.loaded != before

    def _reject(self, text: str) -> None:
        self._rejected = True
        self._conditions.begin("settings.rejected", text, path=str(self._path))

    def _accept(self) -> None:
        if self._rejected:
            self._rejected = False
            log.info("settings.accepted", path=str(self._path))
        self._conditions.end("settings.rejected")

    def _wait_for_restart(self, keys: list[str]) -> None:
        if keys:
            text = f"Settings changed and wait for a restart of the daemon: {', '.join(keys)}."
            self._conditions.begin("settings.need_restart", text, keys=keys)
        else:
            self._conditions.end("settings.need_restart")


def _obstacle(loaded: Loaded) -> str | None:
    return next((each.text for each in obstacles(loaded.settings) if each.ends_the_start), None)


def _brief(complaints: str) -> str:
    """The first one, and how many more there are."""
    first, *others = complaints.splitlines()
    return f"{first} (and {len(others)} more)" if others else first


def _difference(before: Loaded, after: Loaded) -> list[str]:
    old = {key: value for key, value, _ in before.effective()}
    return [key for key, value, _ in after.effective() if old[key] != value]
