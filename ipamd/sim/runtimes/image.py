"""A container image made on the spot: busybox and nothing else, so that no registry is needed.

The layout is that of `docker save` (containerd and podman import it): manifest.json names the configuration and the
layers, each of which is a tar file of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path
from typing import Final

from ipamd.sim.runtimes import RuntimeFailure

REFERENCE: Final = "localhost/ipamd-demo:1"

_APPLETS: Final = ("sh", "sleep", "ping", "ip", "wget", "nc", "hostname", "cat", "ls")
_FOLDERS: Final = ("bin", "dev", "proc", "sys", "etc", "tmp", "run")
# Go's names of the architectures, which images use.
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def busybox() -> Path:
    """The machine's busybox, which must need no shared libraries. Raises `RuntimeFailure`."""
    found = shutil.which("busybox")
    if found is None:
        raise RuntimeFailure("busybox: command not found; install the package busybox-static")
    with Path(found).open("rb") as file:
        if b"/ld-" in file.read(4096):  # the dynamic linker's name: program header PT_INTERP, elf(5)
            raise RuntimeFailure(f"{found} needs shared libraries; install the package busybox-static")
    return Path(found)


def write_image(path: Path, command: tuple[str, ...] = ("/bin/sleep", "2147483647")) -> None:
    """Write an image named `REFERENCE` that runs `command`. Raises `RuntimeFailure` and OSError."""
    layer = _layer()
    layer_digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
    }
    config_text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(config_text).hexdigest()}.json"
    layer_name = f"{layer_digest}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [REFERENCE], "Layers": [layer_name]}]
    with tarfile.open(path, "w") as image:
        _add_file(image, config_name, config_text)
        _add_file(image, layer_name, layer)
        _add_file(image, "manifest.json", json.dumps(manifest).encode())


def write_root(directory: Path) -> None:
    """The same as a plain directory tree. Raises `RuntimeFailure` and OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(_layer())) as layer:
        layer.extractall(directory)


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name in _FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(folder)
        _add_file(layer, "bin/busybox", busybox().read_bytes(), 0o755)
        for name in _APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
        _add_file(layer, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))
