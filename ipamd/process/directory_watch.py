"""Wakes up when something in a directory changes: by inotify, or by looking now and then while there is none.

The kernel counts inotify instances and watches for each user, not for each container: any process of uid 0 can use
them up.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from asyncinotify import Inotify, Mask

from ipamd.telemetry.conditions import Conditions

# The directory itself went: removed, renamed, or its file system unmounted.
_GONE = Mask.IGNORED | Mask.MOVE_SELF | Mask.UNMOUNT

_REMEDIES = {
    errno.EMFILE: "Raise fs.inotify.max_user_instances, or ulimit -n.",
    errno.ENFILE: "Raise fs.file-max.",
    errno.ENOSPC: "Raise fs.inotify.max_user_watches.",
    errno.ENOMEM: "The kernel has no memory for it.",
}


class DirectoryWatch:
    """`directories` are looked up anew each time that the watch is made; those that are missing are looked for every
    `interval` seconds, which is the pace while there is no inotify. `condition` lasts as long as that."""

    def __init__(
        self,
        directories: Callable[[], Iterable[Path]],
        mask: Mask,
        interval: float,
        conditions: Conditions,
        condition: str,
    ) -> None:
        self._directories = directories
        self._mask = mask
        self._interval = interval
        self._conditions = conditions
        self._condition = condition
        self._inotify: Inotify | None = None
        self._complete = False
        self._begun = False

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = None

    async def changed(self) -> None:
        """Something may have changed since the last call. The first call returns at once, with the watch made: what
        is read after it can't miss a change."""
        if not self._begun:
            self._begun = True
            self._open()
            return
        while True:
            if self._inotify is None:
                await asyncio.sleep(self._interval)
                self._open()
                return
            if await self._told():
                return

    async def _told(self) -> bool:
        """Whether something may have changed; False: a directory is still missing."""
        assert self._inotify is not None
        try:
            async with asyncio.timeout(None if self._complete else self._interval):
                event = await self._inotify.get()
        except TimeoutError:
            self._open()
            return self._complete or self._inotify is None
        except OSError as error:
            self._poll(error)
            return True
        if event.mask & _GONE:
            self._open()
        return True

    def _open(self) -> None:
        self.close()
        try:
            self._inotify = Inotify()
            self._complete = True
            for directory in self._directories():
                try:
                    self._inotify.add_watch(directory, self._mask | Mask.MOVE_SELF | Mask.ONLYDIR)
                except (FileNotFoundError, NotADirectoryError):
                    self._complete = False
        except OSError as error:
            self._poll(error)
        else:
            self._conditions.end(self._condition)

    def _poll(self, error: OSError) -> None:
        self.close()
        places = ", ".join(str(path) for path in self._directories())
        remedy = _REMEDIES.get(error.errno or 0, "")
        self._conditions.begin(
            self._condition,
            f"The kernel does not tell of changes in {places}: {os.strerror(error.errno or 0)}. The daemon looks "
            f"there every {self._interval:g} s instead. {remedy}".rstrip(),
        )
