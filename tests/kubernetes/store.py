"""What takes long to make, kept from run to run: a folder for each thing, named by a digest of what it is made of.

A folder is complete or absent, also after a build that was killed. If several processes want one, the first makes it.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_UNUSED: Final = 2 * 86400.0  # seconds after which a folder that is no longer asked for goes
_UNFINISHED: Final = ".new-"
_LOCK: Final = ".lock-"


@dataclass(frozen=True)
class Store:
    """Folders in one directory, which is this user's alone: root runs what is in it.

    A folder's name is THING-DIGEST; those of one thing are its versions.
    """

    directory: Path

    @classmethod
    def of(cls, kind: str) -> Store:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        store = cls(caches / "ipamd" / "kubernetes" / kind)
        store.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return store

    def has(self, name: str) -> bool:
        return (self.directory / name).is_dir()

    @asynccontextmanager
    async def locked(self, name: str, waits: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """One process at a time makes a version of a thing; `waits` is called once if another does."""
        with (self.directory / f"{_LOCK}{_thing(name)}").open("w") as lock:
            said = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not said:
                        waits()
                        said = True
                    await asyncio.sleep(0.5)  # no event tells of a lock that was given back
            yield

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """A folder to fill, which becomes `name` when the block ends well. Only while `name` is locked."""
        unfinished = f"{_UNFINISHED}{_thing(name)}-"
        for left in self.directory.glob(f"{unfinished}*"):  # by a process that was killed: the lock is ours
            shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(prefix=unfinished, dir=self.directory))
        try:
            yield folder
            folder.rename(self.directory / name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def linked(self, name: str, links: Mapping[str, Path]) -> Path:
        """The folder `name` with these links into the store (name -> path in the store), beside those it has."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        for link, target in links.items():
            if not (folder / link).is_symlink():
                unique = folder / f"{_UNFINISHED}{os.getpid()}"
                unique.symlink_to(Path("..", target))
                unique.rename(folder / link)
        self.used([name])
        return folder

    def used(self, names: Iterable[str]) -> None:
        for name in names:
            os.utime(self.directory / name)

    def prune(self, wanted: Iterable[str], versions: int | None = None) -> None:
        """Remove what has not been used for two days, except `wanted`: other checkouts want other versions.

        At most `versions` of a thing stay, those used last.
        """
        kept = set(wanted)
        seen: Counter[str] = Counter()
        for name, used in self._by_use():
            seen[_thing(name)] += 1
            if name not in kept and (time.time() - used > _UNUSED or (versions or math.inf) < seen[_thing(name)]):
                shutil.rmtree(self.directory / name, ignore_errors=True)  # another process may be at it, too

    def _by_use(self) -> list[tuple[str, float]]:
        """What is whole, with the time of its last use, the latest first."""
        times = {}
        for folder in self.directory.iterdir():
            if not folder.name.startswith((_LOCK, _UNFINISHED)):
                with suppress(FileNotFoundError):
                    times[folder.name] = folder.stat().st_mtime
        return sorted(times.items(), key=lambda item: item[1], reverse=True)


def _thing(name: str) -> str:
    return name.rpartition("-")[0]
