"""The chain of CNI plugins in the network configuration: ours, then those of `cni.chain` that can work on this node.

A runtime takes the whole list or none of it. A plugin that is not there, can't be run or does not speak the list's
version would fail every pod of the node, so it is left out, and the reason is kept.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLUGIN = "ipamd-cni"

Wanted = Sequence[str | Mapping[str, Any]]

# Host ports work with most networks for Kubernetes, and their pods start without them in silence.
DEFAULT: tuple[str, ...] = ("portmap",)

# What the plugins of containernetworking need to do their work, where the setting has a name alone. A runtime passes
# host ports and rates only to a plugin whose entry asks for them (containernetworking/cni, CONVENTIONS.md).
_CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "portmap": {"capabilities": {"portMappings": True}, "snat": True},
    "bandwidth": {"capabilities": {"bandwidth": True}},
}

# These make an interface or give addresses, so that they can't come after a plugin that has done both.
_FIRST = frozenset(
    (
        *("bridge", "dummy", "host-device", "ipvlan", "macvlan", "ptp", "tap", "vlan", "aws-cni", "egress-cni"),
        *("dhcp", "host-local", "static"),
    )
)
# What libcni and runtimes fill in, or read in a form of their own: a wrong one makes the whole list unreadable.
_NOT_SET_HERE = ("cniVersion", "dns", "ipam", "name", "prevResult", "runtimeConfig")

# Of CNI: what we speak, and the newest that every runtime takes. containerd 1.6 and podman 4 refuse results of 1.1.0.
# libcni takes the highest version that it knows from `cniVersions` since 1.2 (and STATUS and GC with 1.1.0), and
# ignores that list before.
_VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
_EVERYWHERE = "1.0.0"

_PATIENCE = 5.0  # seconds for a plugin to tell its versions: it needs some milliseconds


@dataclass(frozen=True, slots=True)
class Binary:
    """`versions`: of CNI, which it speaks; none: `problem` says why it can't be used."""

    versions: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """`plugins`: the entries of the list, ours first. `versions`: of CNI, those that all of them speak, the first one
    for runtimes that know no list of versions. `left_out`: which entries of the setting are not chained, and why,
    each a sentence without its full stop."""

    plugins: tuple[Mapping[str, Any], ...] = ({"type": PLUGIN},)
    versions: tuple[str, ...] = _VERSIONS[1:]
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the plugins after ours."""
        return tuple(plugin["type"] for plugin in self.plugins[1:])

    def conflist(self) -> bytes:
        """The network configuration list."""
        document = {
            "cniVersion": self.versions[0],
            "cniVersions": self.versions,
            "name": "ipamd",
            "plugins": self.plugins,
        }
        return json.dumps(document, indent=2).encode() + b"\n"


def names(wanted: Wanted) -> list[str]:
    """Of the plugins that are asked for, whether they work or not."""
    return [each if isinstance(each, str) else str(each.get("type")) for each in wanted]


def faults(wanted: Wanted) -> list[str]:
    """What works on no node, whatever is installed there."""
    return [fault for _, _, fault in _examined(wanted) if fault]


def chain(
    wanted: Wanted, binaries: Mapping[str, Binary], folder: Path | None, needed: Collection[str] | None = None
) -> Chain:
    """As much of the setting as works. `binaries`: those that are in `folder`, by name; None: no folder holds our own
    plugin. `needed`: the names whose absence is worth a sentence; None: all."""
    plugins: list[Mapping[str, Any]] = [{"type": PLUGIN}]
    versions: tuple[str, ...] = _VERSIONS
    left_out = []
    for name, plugin, fault in _examined(wanted):
        binary = binaries.get(name)
        if fault:
            left_out.append(fault)
        elif binary is None:
            if needed is None or name in needed:
                where = f"is not in {folder}" if folder else f"is not looked for: cni.bin_dirs have no {PLUGIN}"
                left_out.append(f"{name} {where}")
        elif binary.problem:
            left_out.append(f"{name}: {binary.problem}")
        elif common := _common(versions, binary.versions):
            plugins.append(plugin)
            versions = common
        else:
            left_out.append(f"{name} speaks CNI {', '.join(binary.versions)}, and the others do not")
    first = max(version for version in versions if version <= _EVERYWHERE)
    return Chain(tuple(plugins), tuple(v for v in versions if v >= first), tuple(left_out))


def _common(versions: tuple[str, ...], spoken: tuple[str, ...]) -> tuple[str, ...]:
    common = tuple(version for version in versions if version in spoken)
    return common if common and common[0] <= _EVERYWHERE else ()


def _examined(wanted: Wanted) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """(name, entry of the list, what is wrong with it) of each."""
    seen: set[str] = set()
    for given in wanted:
        own: Mapping[str, Any] = {"type": given} if isinstance(given, str) else given
        name = own.get("type")
        if not isinstance(name, str):
            yield "", own, f"{json.dumps(own)[:60]} has no `type`, the name of a plugin"
            continue
        yield name, {"type": name} | dict(_CONFIGURATIONS.get(name, {})) | dict(own), _fault(name, own, seen)
        seen.add(name)


def _fault(name: str, own: Mapping[str, Any], seen: Collection[str]) -> str:
    capabilities = own.get("capabilities", {})
    if not name or not name.isprintable() or "/" in name or name in (".", ".."):
        return f"{name!r} is not the name of a plugin's file"
    if name == PLUGIN:
        return f"{PLUGIN} is in the list by itself"
    if name in seen:
        return f"{name} is there twice"
    if name in _FIRST:
        return f"{name} makes interfaces or gives addresses, so it can't come after {PLUGIN}"
    if taken := [key for key in _NOT_SET_HERE if key in own]:
        return f"{name}: `{taken[0]}` is not for a chained plugin to set"
    if not isinstance(capabilities, Mapping) or not all(isinstance(on, bool) for on in capabilities.values()):
        return f"{name}: `capabilities` must be a table of true and false"
    return ""


def folder_of_plugins(bin_dirs: Sequence[Path], root: Path = Path("/")) -> Path | None:
    """The first that holds our own plugin: runtimes look there, whatever else they are set to. A path of the node
    whose file system is at `root`."""
    return next((each for each in bin_dirs if (root / each.relative_to("/") / PLUGIN).exists()), None)


def absent(wanted: Wanted, folder: Path) -> list[str]:
    """The names that have no file there."""
    return [name for name, _, fault in _examined(wanted) if not fault and not _exists(folder / name)]


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # also of a name that is too long, which Path.exists() raises
        return False
    return True


class Binaries:
    """The plugins in a folder. Each is asked for its versions once for each change of its file."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], Binary]] = {}

    def look(self, wanted: Wanted, folder: Path) -> dict[str, Binary]:
        """Those of the chain that are there, by name. Blocks for milliseconds; for seconds if one hangs. Raises
        nothing."""
        found = {}
        for name in {name for name, _, fault in _examined(wanted) if not fault}:
            try:
                status = (folder / name).stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[name] = self._asked(folder / name, status)
        return found

    def _asked(self, path: Path, status: os.stat_result) -> Binary:
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
        known, binary = self._known.get(path, ((), Binary()))
        if known == signature:
            return binary
        binary = _ask(path)
        if not binary.problem:  # one that is still being written fails, and its times may not change any more
            self._known[path] = (signature, binary)
        return binary


def _ask(path: Path) -> Binary:
    """The one call of CNI's that takes no pod."""
    if not os.access(path, os.X_OK):
        return Binary(problem=f"{path} is not executable")
    try:
        done = subprocess.run(
            [path], input=b"{}", env={"CNI_COMMAND": "VERSION"}, capture_output=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return Binary(problem=f"{path} did not tell its versions within {_PATIENCE:g} s")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
            # It is there, and not for us to run: its libraries are the host's, we are in a container. What everybody
            # speaks is safe to assume.
            return Binary(_VERSIONS[:2])
        return Binary(problem=f"{path} does not run: {error.strerror}")
    try:
        versions = json.loads(done.stdout)["supportedVersions"]
    except (ValueError, LookupError, TypeError, RecursionError):
        versions = None
    if done.returncode or not isinstance(versions, list):
        return Binary(problem=f"{path} does not tell its versions: it ended with status {done.returncode}")
    return Binary(tuple(str(version) for version in versions))
