"""DELs that the plugin could not deliver: it leaves each as a file holding a serialized `ReleaseRequest`.

No other file there may stop or hold up the daemon. One with a name as the plugin's is moved aside; others are left
as they are, because the folder may be somebody else's: a slip in cni.spool_dir must not rename what lies in /etc.

A file is applied before its attachment is granted anew, and removed before anything else happens. So a file always
means what is held now, and no clock is asked whether it does.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from ipamd.api import cni
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import AttachmentKey

log = structlog.get_logger("ipamd.spool")

# A malformed file of the plugin is kept under another name, so that the next look skips it.
REJECTED = ".rejected"

# Bytes of one request: the daemon takes 1 MiB of network configuration, the kernel 128 KiB for each variable.
LARGEST = 2 << 20

# Most files and bytes of one look. The event loop does nothing else meanwhile.
BATCH, BATCH_BYTES = 64, 8 << 20

# Errors of this process or machine, not of the file that was opened.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.EAGAIN}


@dataclass(frozen=True, slots=True)
class Spooled:
    """`age`: seconds since the DEL, by the monotonic clock; 0 if the file's name does not say."""

    file: Path
    inode: int
    key: AttachmentKey
    age: float


class _Odd(Exception):
    """The file is no release; the message says why."""


class Spool:
    """The folders of releases: first the configured one, then others where a plugin may have left some."""

    def __init__(self, *directories: Path) -> None:
        self.directories = tuple(dict.fromkeys(directories))
        self._made: set[Path] = set()
        self._ignored: dict[Path, int] = {}  # inodes of what stays where it is, and was dealt with
        self._failed: dict[Path, str] = {}  # folders that can't be used, and why

    def make(self) -> None:
        """Make the folders that are missing."""
        for directory in self.directories:
            try:
                directory.mkdir(mode=0o700, parents=True)
            except FileExistsError:
                if directory.is_dir():
                    self._failed.pop(directory, None)
                else:
                    self._failed[directory] = os.strerror(errno.ENOTDIR)
            except OSError as error:
                self._failed[directory] = error.strerror or str(error)
            else:
                self._failed.pop(directory, None)
                if directory in self._made:
                    log.warning("spool.removed", directory=str(directory))
            self._made.add(directory)

    def batches(self, link: str = "") -> Iterator[list[Spooled]]:
        """Waiting releases, oldest first; with `link`, the host link of an attachment, only those for that one. A
        file is complete: the plugin renamed it into place. The folders are listed once, because they may hold
        thousands of files. Each batch is read on demand, and may be empty."""
        waiting = self._listed(f"{link}-" if link else "")
        while waiting:
            yield self._read(waiting)

    def read(self) -> list[Spooled]:
        """The first batch."""
        return next(self.batches(), [])

    def _read(self, waiting: list[Path]) -> list[Spooled]:
        """One batch from the end of the list, which becomes shorter."""
        found: list[Spooled] = []
        odd: list[tuple[Path, str]] = []
        size = 0
        while waiting and len(found) + len(odd) < BATCH and size < BATCH_BYTES:
            file = waiting.pop()
            try:
                inode = file.lstat().st_ino
                if self._ignored.get(file) == inode:
                    continue
                raw = _contents(file)
                size += len(raw)
                found.append(Spooled(file, inode, _understand(raw), _age(file.name)))
            except FileNotFoundError:
                continue
            except _Odd as error:
                self._reject(file, inode)
                odd.append((file, str(error)))
            except OSError as error:
                self._failed[file.parent] = error.strerror or str(error)
        if odd:
            file, reason = odd[0]
            log.error("spool.rejected", file=str(file)[:500], error=reason[:500], files=len(odd))
        return found

    def done(self, spooled: Spooled) -> None:
        """The release was applied. If its file can't be removed, it is skipped from now on."""
        try:
            spooled.file.unlink(missing_ok=True)
        except OSError:
            self._ignored[spooled.file] = spooled.inode

    def waits(self, spooled: Spooled) -> bool:
        """Whether the release must still be applied: another task may have applied it since it was read."""
        try:
            return spooled.file.lstat().st_ino == spooled.inode and spooled.file not in self._ignored
        except OSError:
            return False

    def trouble(self) -> str:
        """The faults of the spool, in sentences; empty if there are none."""
        texts = [f"The folder of DELs {folder} can't be used: {why}." for folder, why in self._failed.items()]
        if texts:
            texts.append("DELs that came while no daemon answered may be lost; their addresses are collected later.")
        if self._ignored:
            first, count = str(next(iter(self._ignored)))[:200], len(self._ignored)
            texts.append(
                f"In the folder of DELs {count} {'files stay' if count > 1 else 'file stays'}, such as {first}: no "
                "DEL, or it can't be removed. Remove what does not belong there, or set cni.spool_dir to a folder of "
                "its own."
            )
        return " ".join(texts)

    def _listed(self, prefix: str = "") -> list[Path]:
        """The plugin's files whose names begin so, youngest first."""
        if not prefix:
            self._forget()
        found: list[Path] = []
        for directory in self.directories:
            try:
                names = os.listdir(directory)  # noqa: PTH208 - thousands of names: a tenth of pathlib's time
            except FileNotFoundError:
                continue
            except OSError as error:
                self._failed[directory] = error.strerror or str(error)
                continue
            self._failed.pop(directory, None)
            found += [
                directory / name
                for name in names
                if name.startswith(prefix) and not name.startswith(".") and not name.endswith(REJECTED)
            ]
        return sorted(found, key=lambda file: _age(file.name))

    def _forget(self) -> None:
        """Forget files that could not be removed and are gone now."""
        for file, inode in list(self._ignored.items()):
            try:
                there = file.lstat().st_ino == inode
            except OSError:
                there = False
            if not there:
                del self._ignored[file]

    def _reject(self, file: Path, inode: int) -> None:
        if _clock(file.name) is None:
            self._ignored[file] = inode
            return
        name = os.fsencode(file.name)
        if len(name) + len(REJECTED) > 255:  # NAME_MAX
            name = name[:200] + b"-%d" % inode
        try:
            file.rename(file.with_name(os.fsdecode(name) + REJECTED))
        except OSError:
            self._ignored[file] = inode


def _contents(file: Path) -> bytes:
    """Raises `_Odd` for what is no regular file of a possible size, FileNotFoundError when it has just gone, and
    OSError for trouble that has nothing to do with the file. Opening it waits for nobody."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise _Odd(error.strerror or str(error)) from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _Odd("it is no regular file")
        if facts.st_size > LARGEST:
            raise _Odd(f"it has {facts.st_size} bytes, and a release at most {LARGEST}")
        return os.read(descriptor, LARGEST)
    finally:
        os.close(descriptor)


def _understand(raw: bytes) -> AttachmentKey:
    """Raises `_Odd`, whatever the contents are."""
    try:
        request = ipam_pb2.ReleaseRequest.FromString(raw)
        caller = request.WhichOneof("caller")
        call = cni.understand(
            request.cni if caller == "cni" else None, request.attachment if caller == "attachment" else None, "DEL"
        )
    except Exception as error:
        raise _Odd(str(error) or type(error).__name__) from None
    return call.key


def _clock(name: str) -> int | None:
    """The plugin names a file LINK-NANOSECONDS-PID, by CLOCK_MONOTONIC, which all processes of one boot share. None:
    the name is not the plugin's."""
    parts = name.rsplit("-", 2)
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) <= 20 for part in parts[1:]):
        return None
    return int(parts[1])


def _age(name: str) -> float:
    # What lies in the future is of another boot, or of a plugin that put the wall clock there.
    return max((time.monotonic_ns() - (_clock(name) or time.monotonic_ns())) / 1e9, 0.0)
