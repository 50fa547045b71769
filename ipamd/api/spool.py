"""DELs that the plugin could not deliver: it leaves each as a file holding a serialized `ReleaseRequest`.

The daemon applies them at start, before anything is granted, and on sight afterwards. The plugin makes the
directory when it is missing, so does this side, and both go on when somebody removes it meanwhile.
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
from ipamd.host import HostError
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
    """The directory of releases. Every method raises `HostError` when it can't be used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._make()

    def read(self) -> list[Spooled]:
        """Everything that waits, oldest first. A file is a plugin's whole word: it was renamed into place."""
        found = []
        for file in self._files():
            if file.name.startswith(".") or file.suffix == REJECTED:
                continue
            try:
                found.append(_understand(file))
            except FileNotFoundError:
                continue
            except (OSError, DecodeError, cni.InvalidCall) as error:
                log.error("spool.rejected", file=str(file), error=str(error))
                self._reject(file)
        return sorted(found, key=lambda spooled: spooled.released_at)

    def done(self, spooled: Spooled) -> None:
        try:
            spooled.file.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    async def watch(self) -> AsyncIterator[list[Spooled]]:
        """What waits now, and again whenever a file arrives."""
        while True:
            with Inotify() as inotify:
                self._make()
                try:
                    inotify.add_watch(self._directory, Mask.MOVED_TO | Mask.CLOSE_WRITE | Mask.ONLYDIR)
                except OSError as error:
                    raise self._unusable(error) from None
                yield self.read()
                async for event in inotify:
                    if Mask.IGNORED in event.mask:
                        log.warning("spool.removed", directory=str(self._directory))
                        break
                    yield self.read()

    def _files(self) -> list[Path]:
        try:
            return list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from None

    def _reject(self, file: Path) -> None:
        try:
            file.rename(file.with_name(file.name + REJECTED))
        except OSError as error:
            raise self._unusable(error) from None

    def _make(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> HostError:
        return HostError(f"cni.spool_dir {self._directory} can't be used: {error.strerror or error}; set another one")


def _understand(file: Path) -> Spooled:
    raw = file.read_bytes()
    request = ipam_pb2.ReleaseRequest.FromString(raw)
    caller = request.WhichOneof("caller")
    call = cni.understand(
        request.cni if caller == "cni" else None, request.attachment if caller == "attachment" else None, "DEL"
    )
    return Spooled(file, call.key, file.stat().st_mtime)
