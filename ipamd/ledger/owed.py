"""A place for releases that the ledger has no room for: a DEL that was answered must survive the daemon's end.

The file is as large from the start as it ever becomes, and is written in place, which needs no room: a full file
system takes it. Each release is a line with its checksum; a line that was cut off, by a kill in the middle of it, was
not answered yet. Nothing is synced but on a disk: a release speaks of this boot alone.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ipamd.ledger import place
from ipamd.pool.model import AttachmentKey

# The pods of the largest instance types, some 740, with some room.
SIZE = 128 * 1024
_PAGE = b"\0" * 4096


@dataclass(frozen=True, slots=True)
class Release:
    key: AttachmentKey
    address: str
    at: float


class Owed:
    """Raises OSError from `open`, `add`, `replace` and `clear`. Without room for the file at the start there is
    none, and `add` says so."""

    def __init__(self, path: Path, synced: bool) -> None:
        self._path = path
        self._synced = synced
        self._end = 0
        self._kept: set[AttachmentKey] = set()
        self._descriptor: int | None = None

    def open(self) -> list[Release]:
        """What was left behind; `clear` once it is elsewhere."""
        self._descriptor = place.open_own(self._path)
        left = os.pread(self._descriptor, SIZE, 0)
        found, self._end = _parse(left)
        if any(rest := left[self._end :]):  # of a kill in the middle of `add` or `clear`
            os.pwrite(self._descriptor, b"\0" * len(rest), self._end)
        try:
            # Written rather than allocated: not every file system has the one, and a hole would need room later.
            for offset in range(len(left), SIZE, len(_PAGE)):
                os.pwrite(self._descriptor, _PAGE, offset)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.ftruncate(self._descriptor, len(left))
        return found

    def add(self, releases: Iterable[Release]) -> None:
        """When this returns, the releases are in the file, each once."""
        new = {release.key: release for release in releases if release.key not in self._kept}
        line = b"".join(map(_line, new.values()))
        if self._descriptor is None or self._displaced(self._descriptor):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self._end + len(line) > os.fstat(self._descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.pwrite(self._descriptor, line, self._end)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._synced:
            os.fdatasync(self._descriptor)
        self._end += written
        self._kept |= new.keys()

    @property
    def any(self) -> bool:
        return self._end > 0

    def clear(self) -> None:
        """Call this once all of them are on record elsewhere."""
        if self._descriptor is None or not self._end:
            return
        # From the front: what is left of it after a kill in the middle says nothing.
        os.pwrite(self._descriptor, b"\0" * self._end, 0)
        self._end = 0
        self._kept.clear()

    def replace(self) -> None:
        """Make the file again if somebody removed it."""
        if self._descriptor is not None and self._displaced(self._descriptor):
            os.close(self._descriptor)
            self._descriptor = None
            self._kept.clear()
            self.open()

    def _displaced(self, descriptor: int) -> bool:
        """Whether the file has no name any more, so that no start would find it."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(found, os.fstat(descriptor))

    def close(self) -> None:
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None
        if not self._end:
            self._path.unlink(missing_ok=True)


def _line(release: Release) -> bytes:
    key = release.key
    text = json.dumps([key.network, key.container_id, key.ifname, release.address, release.at]).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(data: bytes) -> tuple[list[Release], int]:
    """The releases, and where the next one goes."""
    found: list[Release] = []
    end = 0
    for line in data.split(b"\n")[:-1]:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            break
        try:
            network, container_id, ifname, address, at = json.loads(text)
            found.append(Release(AttachmentKey(network, container_id, ifname), str(address), float(at)))
        except (ValueError, TypeError):
            break
        end += len(line) + 1
    return found, end
