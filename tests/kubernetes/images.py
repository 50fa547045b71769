"""The container images of a cluster's tests, as docker archives: nodes import them, and no registry is needed.

They have the names that Kubernetes' own tests ask for (its test/utils/image/manifest.go) and the programs that these
tests call: built from Go modules, or Debian's. ipamd's own image is made from the checkout.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ipamd.sim.runtimes import docker_archive
from ipamd.sim.runtimes.docker_archive import Image, Layer
from ipamd.sim.runtimes.image import busybox
from tests.kubernetes import debian_system, ipamd_image
from tests.kubernetes.store import Store

_TESTS: Final = "registry.k8s.io/e2e-test-images"


def until_terminated(command: str) -> tuple[str, ...]:
    """A container's first process ignores SIGTERM unless it handles it: its pod would end after its grace period."""
    return ("/bin/sh", "-c", f"trap 'exit 0' TERM INT; {command} & wait")


_SLEEP: Final = until_terminated("sleep 2147483647")
_WEB: Final = until_terminated("httpd -f -p 80 -h /www")

IMAGES: Final[Mapping[str, Image]] = {
    "pause": Image(("registry.k8s.io/pause:3.10.1",), ("busybox",), entrypoint=_SLEEP),
    "busybox": Image((f"{_TESTS}/busybox:1.37.0-1",), ("busybox",), command=("/bin/sh",)),
    # A web server at port 80 is all that the tests want of these.
    "nginx": Image((f"{_TESTS}/nginx:1.14-4", f"{_TESTS}/nginx:1.15-4"), ("busybox",), command=_WEB),
    "httpd": Image((f"{_TESTS}/httpd:2.4.38-4", f"{_TESTS}/httpd:2.4.39-4"), ("busybox",), command=_WEB),
    "agnhost": Image((f"{_TESTS}/agnhost:2.56",), ("tools", "agnhost"), entrypoint=("/agnhost",), command=("pause",)),
    "jessie-dnsutils": Image((f"{_TESTS}/jessie-dnsutils:1.7",), ("tools", "agnhost"), command=("/bin/bash",)),
    # Asked for sleep, sh, grep and conntrack alone.
    "distroless-iptables": Image(("registry.k8s.io/build-image/distroless-iptables:v0.7.14",), ("tools",)),
    "regression-issue-74839": Image(
        (f"{_TESTS}/regression-issue-74839:1.2",),
        ("regression-issue-74839",),
        entrypoint=("/regression-issue-74839",),
    ),
    "coredns": Image(("localhost/coredns:1.13.1",), ("coredns",), entrypoint=("/coredns",)),
    "netpol": Image(("localhost/netpol:2.1.0",), ("iptables", "netpol"), entrypoint=("/netpol",)),
    "ipamd": ipamd_image.IMAGE,
}

# Images that share most of their files are in one archive.
ARCHIVES: Final = (
    ("pause", "busybox", "nginx", "httpd"),
    ("agnhost", "jessie-dnsutils", "distroless-iptables"),
    ("regression-issue-74839",),
    ("coredns",),
    ("netpol",),
    ("ipamd",),
)


def reference(name: str) -> str:
    """The full name that a pod gives, such as registry.k8s.io/pause:3.10.1."""
    return IMAGES[name].references[0]


async def archive(name: str, programs: Path) -> Path:
    """The docker archive that has the image `name` of `IMAGES`, and perhaps others: `ctr images import` takes it.

    `programs` is the folder of `programs.built`. An archive is made once and kept until something in it changes.
    Raises `Unfetched` and `Unmade` if this machine can't make it, `RuntimeFailure` and OSError.
    """
    (group,) = (group for group in ARCHIVES if name in group)
    store = Store.of("images")
    key = f"{group[0]}-{await asyncio.to_thread(_digest, group, programs)}"
    if not store.has(key):
        async with store.locked(key):
            if not store.has(key):
                systems = {
                    layer: await debian_system.root(layer) for layer in _layers(group) & debian_system.SYSTEMS.keys()
                }
                with store.new(key) as folder:
                    await asyncio.to_thread(_write, folder / "image.tar", group, programs, systems)
                store.prune([key], versions=4)
    store.used([key])
    return store.directory / key / "image.tar"


def _layers(group: tuple[str, ...]) -> set[str]:
    return {layer for name in group for layer in IMAGES[name].layers}


def _write(path: Path, group: tuple[str, ...], programs: Path, systems: Mapping[str, Path]) -> None:
    layers = {name: _layer(name, programs, systems) for name in sorted(_layers(group))}
    docker_archive.write(path, [IMAGES[name] for name in group], layers)


def _layer(name: str, programs: Path, systems: Mapping[str, Path]) -> Layer:
    match name:
        case "busybox":
            return _busybox()
        case "tools":
            return _tools(systems[name])
        case "iptables":
            return _iptables(systems[name])
        case "python":
            return _python(systems[name])
        case "agnhost":
            return _agnhost(programs)
        case "ipamd":
            return ipamd_image.layer()
        case _:
            layer = Layer()
            layer.copy(programs / name, name)
            return layer


def _digest(group: tuple[str, ...], programs: Path) -> str:
    """It changes with the programs in the images, with the packages of Debian and with the code that makes them."""
    parts: list[str] = [str(debian_system.SYSTEMS)]
    if group == ("ipamd",):
        parts.append(ipamd_image.digest())
    for layer in _layers(group):
        program = programs / layer
        if program.exists():
            state = program.stat()
            parts.append(f"{program.resolve()} {state.st_size} {state.st_mtime_ns}")
    for module in (__file__, debian_system.__file__, ipamd_image.__file__, docker_archive.__file__):
        parts.append(Path(module).read_text())
    return hashlib.sha256("\0".join(sorted(parts)).encode()).hexdigest()[:12]


def _busybox() -> Layer:
    layer = _base()
    for name in ("bin", "sbin"):
        layer.link(name, f"usr/{name}")
    add_busybox(layer, busybox())
    return layer


def _tools(system: Path) -> Layer:
    """What tests call in a pod. The shell is bash: busybox's shell prefers its own nc, ip and wget to others."""
    layer = _base()
    layer.link("usr/bin/sh", "bash")
    layer.link("usr/bin/nc", "nc.openbsd")
    debian_system.add(layer, system)
    add_busybox(layer, system / "usr" / "bin" / "busybox")
    return layer


def _agnhost(programs: Path) -> Layer:
    """As its Dockerfile has it. Its server of TLS has a certificate for "localhost" that its clients do not check."""
    layer = Layer()
    layer.copy(programs / "agnhost", "agnhost")
    layer.link("agnhost-2", "agnhost")
    layer.copy(programs / "coredns", "coredns")
    for name, content in zip(("localhost.crt", "localhost.key"), certificate(), strict=True):
        layer.file(name, content)
    layer.folder("uploads")
    return layer


def _iptables(system: Path) -> Layer:
    """With the alternatives that the installed package would choose."""
    layer = _base()
    for family in ("iptables", "ip6tables"):
        for part in ("", "-save", "-restore"):
            layer.link(f"usr/sbin/{family}{part}", "xtables-nft-multi")
    debian_system.add(layer, system)
    return layer


def _python(system: Path) -> Layer:
    layer = _base()
    layer.link("usr/bin/sh", "dash")
    debian_system.add(layer, system)
    return layer


def _base() -> Layer:
    """The folders that a runtime mounts on, and the accounts that tests name."""
    layer = Layer()
    for name in ("dev", "etc", "proc", "root", "run", "sys", "usr", "usr/bin", "usr/sbin", "var", "www"):
        layer.folder(name)
    layer.folder("tmp", 0o1777)
    layer.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n",
    )
    layer.file(
        "etc/group",
        b"root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
    )
    layer.file("etc/nsswitch.conf", b"hosts: files dns\npasswd: files\ngroup: files\n")
    return layer


def add_busybox(layer: Layer, executable: Path) -> None:
    """busybox and its applets, except those that the layer already has as programs."""
    layer.copy(executable, "usr/bin/busybox")
    listed = subprocess.run([executable, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in listed.split():
        if f"usr/sbin/{applet}" not in layer.names:
            layer.link(f"usr/bin/{applet}", "busybox")


def certificate() -> tuple[bytes, bytes]:
    """One for "localhost" that signs itself, and its key, in PEM."""
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "3650", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    key, begin, rest = made.partition(b"-----BEGIN CERTIFICATE-----")
    return begin + rest, key
