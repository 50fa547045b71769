"""What takes long to make, kept from run to run: a folder for each thing, named by a digest of what it is made of.

A folder is complete or absent, also after a build that was killed. If several processes want one, the first makes it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_UNUSED: Final = 2 * 86400.0  # seconds after which a folder that is no longer asked for goes
_UNFINISHED: Final = ".new-"


@dataclass(frozen=True)
class Store:
    """Folders in one directory, which is this user's alone: root runs what is in it."""

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
    async def locked(self, waits: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Held by one process at a time; `waits` is called once if another has it."""
        with (self.directory / "lock").open("w") as lock:
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
        """A folder to fill, which becomes `name` when the block ends well. Only while the store is locked."""
        for left in self.directory.glob(f"{_UNFINISHED}*"):  # by a process that was killed: the lock is ours
            shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.directory))
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

    def prune(self, wanted: Iterable[str]) -> None:
        """Remove what nobody has used for two days, but for `wanted`. Other checkouts may want other versions."""
        kept = {"lock", *wanted}
        for entry in self.directory.iterdir():
            if entry.name not in kept and time.time() - entry.stat().st_mtime > _UNUSED:
                shutil.rmtree(entry)
