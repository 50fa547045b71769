"""DELs that the plugin could not deliver: it leaves each as a file holding a serialized `ReleaseRequest`.

The daemon applies them at start, before anything is granted, and on sight afterwards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from asyncinotify import Inotify, Mask
from google.protobuf.message import DecodeError

from ipamd.api import cni
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import AttachmentKey

log = structlog.get_logger("ipamd.spool")

# A file that makes no sense is kept for whoever wants to know why, out of the way of the next look.
REJECTED = ".rejected"


@dataclass(frozen=True, slots=True)
class Spooled:
    file: Path
    key: AttachmentKey
    released_at: float


class Spool:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self) -> list[Spooled]:
        """Everything that waits, oldest first. A file is a plugin's whole word: it was renamed into place."""
        found = []
        for file in self._directory.iterdir():
            if file.name.startswith(".") or file.suffix == REJECTED:
                continue
            try:
                found.append(_understand(file))
            except FileNotFoundError:
                continue
            except (OSError, DecodeError, cni.InvalidCall) as error:
                log.error("spool.rejected", file=str(file), error=str(error))
                file.rename(file.with_name(file.name + REJECTED))
        return sorted(found, key=lambda spooled: spooled.released_at)

    def done(self, spooled: Spooled) -> None:
        spooled.file.unlink(missing_ok=True)

    async def watch(self) -> AsyncIterator[list[Spooled]]:
        """What waits now, and again whenever a file arrives."""
        with Inotify() as inotify:
            inotify.add_watch(self._directory, Mask.MOVED_TO | Mask.CLOSE_WRITE)
            yield self.read()
            async for _ in inotify:
                yield self.read()


def _understand(file: Path) -> Spooled:
    raw = file.read_bytes()
    request = ipam_pb2.ReleaseRequest.FromString(raw)
    caller = request.WhichOneof("caller")
    call = cni.understand(
        request.cni if caller == "cni" else None, request.attachment if caller == "attachment" else None
    )
    return Spooled(file, call.key, file.stat().st_mtime)
