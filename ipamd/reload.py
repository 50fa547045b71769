"""Settings that change while the daemon runs: on SIGHUP, and when somebody writes the file.

The pool's targets take effect at once. Everything else is bound to sockets, files and the kernel at start: a change
there is named in the log and waits for a restart. A file that can't be used changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
from asyncinotify import Inotify, Mask

from ipamd.config.error import SettingsError
from ipamd.config.load import Loaded

log = structlog.get_logger("ipamd.settings")

LIVE_SECTIONS = ("pool",)

# An editor writes in several steps, a configuration manager in several files: look once they are done.
QUIET = 0.2


def is_live(key: str) -> bool:
    """Whether a change of this dotted key takes effect without a restart."""
    return key.partition(".")[0] in LIVE_SECTIONS


class LiveSettings:
    """`load` reads everything anew; `path` is the file to watch. Raises `SettingsError` when made from bad ones."""

    def __init__(self, load: Callable[[], Loaded], path: Path) -> None:
        self._load = load
        self._path = path
        self._hangup = asyncio.Event()
        self.loaded = load()

    def hang_up(self) -> None:
        """SIGHUP came."""
        self._hangup.set()

    async def changes(self) -> AsyncIterator[Loaded]:
        """The settings in force, each time that something in them changed."""
        with Inotify() as inotify:
            if self._path.parent.is_dir():
                # The directory: editors and Kubernetes replace files instead of writing them.
                inotify.add_watch(self._path.parent, Mask.CLOSE_WRITE | Mask.MOVED_TO)
            while True:
                await self._wait(inotify)
                if self._read():
                    yield self.loaded

    async def _wait(self, inotify: Inotify) -> None:
        hangup = asyncio.ensure_future(self._hangup.wait())
        written = asyncio.ensure_future(inotify.get())
        try:
            await asyncio.wait((hangup, written), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(QUIET)
        finally:
            hangup.cancel()
            written.cancel()
            await asyncio.gather(hangup, written, return_exceptions=True)
        self._hangup.clear()

    def _read(self) -> bool:
        before = self.loaded
        try:
            after = self._load()
        except SettingsError as error:
            log.error("settings.rejected", error=str(error), path=str(self._path))
            return False
        changed = _difference(before, after)
        if not changed and dict(before.origins) == dict(after.origins):
            return False
        live = [key for key in changed if is_live(key)]
        waiting = [key for key in changed if not is_live(key)]
        if live:
            log.info("settings.changed", keys=live)
        if waiting:
            log.warning("settings.need_restart", keys=waiting)
        # What needs a restart stays as it is in force, whatever the file says by now.
        settings = before.settings.model_copy(update={name: getattr(after.settings, name) for name in LIVE_SECTIONS})
        kept = {key: origin for key, origin in before.origins.items() if not is_live(key)}
        fresh = {key: origin for key, origin in after.origins.items() if is_live(key)}
        self.loaded = Loaded(settings, {**kept, **fresh})
        return True


def _difference(before: Loaded, after: Loaded) -> list[str]:
    old = {key: value for key, value, _ in before.effective()}
    return [key for key, value, _ in after.effective() if old[key] != value]
