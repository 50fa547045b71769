"""The folder of network configurations, as a runtime sees it: it takes the first file in the order of their names."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipamd.install.files import CONFLIST
from ipamd.neighbours.chain import PLUGIN

# What libcni takes for a configuration; containerd and CRI-O use one of them (max_conf_num 1).
_SUFFIXES = (".conf", ".conflist", ".json")

_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """`plugins`: the entries of its list, or the one plugin; none if it can't be read. `ours`: pods come to our
    plugin by it: in a chain, or passed on by one such as Multus. `versions`: of CNI, those that it names."""

    name: str
    plugins: tuple[dict[str, Any], ...] = ()
    ours: bool = False
    versions: tuple[str, ...] = ()

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(str(plugin.get("type")) for plugin in self.plugins)


def files(conf_dir: Path) -> list[NetworkFile]:
    """In the order in which runtimes take them. Raises nothing."""
    try:
        names = sorted(path.name for path in conf_dir.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return []
    return [_read(conf_dir / name) for name in names]


def others(conf_dir: Path) -> tuple[list[str], list[str]]:
    """The names of the files that runtimes take before ours, and of those that they would take without it. Files that
    use our plugin themselves, in a chain for instance, are in neither. Raises nothing."""
    found = [file.name for file in files(conf_dir) if file.name != CONFLIST and not file.ours]
    return [name for name in found if name < CONFLIST], [name for name in found if name > CONFLIST]


def _read(file: Path) -> NetworkFile:
    try:
        document = json.loads(_contents(file))
        plugins = tuple(document.get("plugins", [document]))
        versions = (document.get("cniVersion", ""), *document.get("cniVersions", ()))
        ours = any(_leads_to_us(each) for each in _tables(plugins))
        return NetworkFile(file.name, tuple(dict(plugin) for plugin in plugins), ours, tuple(map(str, versions)))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return NetworkFile(file.name)


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    """All, however deep."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _tables(each)


def _leads_to_us(table: dict[str, Any]) -> bool:
    """By its type, or as Multus names the network that it passes pods on to: by its name or its file."""
    network = table.get("clusterNetwork")
    return table.get("type") == PLUGIN or (isinstance(network, str) and Path(network).name in ("ipamd", CONFLIST))


def _contents(file: Path) -> bytes:
    """No more than a configuration has, and from no pipe: the daemon looks here while it serves. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LARGEST) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
