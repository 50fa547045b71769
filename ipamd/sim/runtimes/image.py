"""The image of the simulator's pods, made on the spot: busybox and nothing else, so that no registry is needed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from ipamd.sim.runtimes import RuntimeFailure
from ipamd.sim.runtimes.docker_archive import Image, Layer, write

REFERENCE: Final = "localhost/ipamd-demo:1"

_APPLETS: Final = ("sh", "sleep", "ping", "ip", "wget", "nc", "hostname", "cat", "ls")
_FOLDERS: Final = ("bin", "dev", "proc", "sys", "etc", "tmp", "run")


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
    image = Image((REFERENCE,), ("busybox",), entrypoint=command, path="/bin")
    write(path, [image], {"busybox": _layer()})


def write_root(directory: Path) -> None:
    """The same as a plain directory tree. Raises `RuntimeFailure` and OSError."""
    _layer().extract(directory)


def _layer() -> Layer:
    layer = Layer()
    for name in _FOLDERS:
        layer.folder(name)
    layer.file("bin/busybox", busybox().read_bytes(), 0o755)
    for name in _APPLETS:
        layer.link(f"bin/{name}", "busybox")
    layer.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    return layer
