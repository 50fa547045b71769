"""Small systems of Debian packages, which are the lower layers of images.

apt fetches them from the machine's own mirror, with all that they depend on; nothing is installed. They are kept, as
long as their lists of packages stay.
"""

from __future__ import annotations

import asyncio
import compileall
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ipamd.sim.runtimes.docker_archive import Layer
from tests.e2e.debian import Unfetched, unpack_system
from tests.kubernetes.store import Store

# Name -> release and packages. The release of "python" is the one whose Python runs this, for its compiled packages.
_RELEASES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
SYSTEMS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "tools": (
        "bookworm",
        (
            "bash",
            "bind9-dnsutils",
            "bind9-host",
            "busybox-static",
            "conntrack",
            "coreutils",
            "curl",
            "iperf",
            "iproute2",
            "iputils-ping",
            "libc-bin",
            "netcat-openbsd",
            "wget",
        ),
    ),
    "iptables": ("bookworm", ("ipset", "iptables")),
    # dash: of the probes. libstdc++6: of grpc. Debian's own images have both.
    "python": (_RELEASES.get(sys.version_info[:2], ""), ("dash", "libstdc++6", "nftables", "python3")),
}
# What no program needs to run: pages, translations and the like.
_LEFT_OUT: Final = ("usr/share/", "boot/", "var/lib/", "var/cache/")


async def root(name: str) -> Path:
    """The folder of the system `name`, fetched when it is first wanted. Raises `Unfetched`."""
    release, packages = SYSTEMS[name]
    if not release:
        raise Unfetched(f"no Debian release has Python {sys.version_info[0]}.{sys.version_info[1]}, as .venv does")
    store = Store.of("debian")
    key = f"{name}-{release}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:12]}"
    if not store.has(key):
        async with store.locked(key):
            if not store.has(key):
                with store.new(key) as folder:
                    await asyncio.to_thread(unpack_system, release, packages, folder)
                    await asyncio.to_thread(_compile, folder)
                store.prune([key])
    store.used([key])
    return store.directory / key


def _compile(folder: Path) -> None:
    """Python's own modules to bytecode, as the installed package's scripts would: a container can't write it."""
    version = ".".join(map(str, sys.version_info[:2]))
    modules = folder / "usr" / "lib" / f"python{version}"
    if modules.is_dir():
        compileall.compile_dir(modules, maxlevels=10, quiet=2, stripdir=str(folder), prependdir="/", workers=0)


def add(layer: Layer, system: Path) -> None:
    """Add the files of a system, without manual pages, translations and the like."""
    layer.tree(system, wanted=lambda name: not name.startswith(_LEFT_OUT))
