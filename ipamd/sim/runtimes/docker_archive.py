"""Container images as docker archives, so that no registry is needed: containerd and podman import them.

The layout is that of `docker save`: manifest.json names the images, with their configurations and their layers. Each
layer is a tar file of its own. Images of one archive may share layers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

# Go's names of the architectures, which images use.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Layer:
    """Files of an image. Of several with one name the first one counts. All belong to root."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115

    def folder(self, name: str, mode: int = 0o755) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, mode
        self._add(member)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), mode
        self._add(member, content)

    def link(self, name: str, target: str) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        self._add(member)

    def copy(self, source: Path, name: str) -> None:
        """A file, with its mode and its time of modification; a link is followed."""
        self._tar.add(source.resolve(), name, filter=self._new)

    def tree(self, directory: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """All that is in the directory and has a name that is `wanted`, as in `copy`; links stay links."""
        for entry in sorted(directory.iterdir()):
            self._tar.add(entry, entry.name, filter=lambda member: self._new(member) if wanted(member.name) else None)

    def closed(self) -> IO[bytes]:
        """The whole tar file, at its start. Nothing can be added any more."""
        self._tar.close()
        self._file.seek(0)
        return self._file

    def digest(self) -> str:
        """SHA-256 of the tar file."""
        content, digest = self.closed(), hashlib.sha256()
        while part := content.read(2**20):
            digest.update(part)
        return digest.hexdigest()

    def extract(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=self.closed()) as archive:
            # As it is, since it is our own: Python 3.14 would leave out absolute links, and 3.13 warns of it.
            archive.extraction_filter = lambda member, path: member
            archive.extractall(directory)

    def _new(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name in self.names and not member.isdir():
            return None
        self.names.add(member.name)
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)  # tar would put a fraction into a header of its own
        return member

    def _add(self, member: tarfile.TarInfo, content: bytes = b"") -> None:
        if member.name not in self.names:
            self.names.add(member.name)
            self._tar.addfile(member, io.BytesIO(content))


@dataclass(frozen=True)
class Image:
    """Its layers are named as in `write`, the lowest first."""

    references: tuple[str, ...]
    layers: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    path: str = PATH

    def config(self, digests: Iterable[str]) -> bytes:
        """The OCI image configuration, by the layers' SHA-256 digests."""
        run: dict[str, object] = {"Env": [f"PATH={self.path}"]}
        if self.entrypoint:
            run["Entrypoint"] = list(self.entrypoint)
        if self.command:
            run["Cmd"] = list(self.command)
        config = {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
        return json.dumps(config).encode()


def write(path: Path, images: Iterable[Image], layers: dict[str, Layer]) -> None:
    """Write an archive with the images; `layers` by the names that the images have for them. Raises OSError."""
    manifest = []
    with tarfile.open(path, "w") as archive:
        digests = {}
        for name, layer in layers.items():
            digests[name] = layer.digest()
            member = tarfile.TarInfo(f"{digests[name]}/layer.tar")
            content = layer.closed()
            member.size = content.seek(0, os.SEEK_END)
            content.seek(0)
            archive.addfile(member, content)
        for image in images:
            config = image.config(digests[name] for name in image.layers)
            config_name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, config_name, config)
            parts = [f"{digests[name]}/layer.tar" for name in image.layers]
            manifest.append({"Config": config_name, "RepoTags": list(image.references), "Layers": parts})
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
