"""The folder of network configurations, as a runtime sees it: it takes the first file in the order of their names."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from ipamd.install.files import CONFLIST
from ipamd.install.plugin import PLUGIN

# What libcni takes for a configuration; containerd and CRI-O use one of them (max_conf_num 1).
_SUFFIXES = (".conf", ".conflist", ".json")

_LARGEST = 1 << 20  # bytes


def others(conf_dir: Path) -> tuple[list[str], list[str]]:
    """The names of the files that runtimes take before ours, and of those that they would take without it. Files that
    use our plugin themselves, in a chain for instance, are in neither. Raises nothing."""
    try:
        names = sorted(path.name for path in conf_dir.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return [], []
    found = [name for name in names if name != CONFLIST and not _uses_ours(conf_dir / name)]
    return [name for name in found if name < CONFLIST], [name for name in found if name > CONFLIST]


def _uses_ours(file: Path) -> bool:
    try:
        document = json.loads(_contents(file))
        plugins = document.get("plugins", [document])
        return any(plugin.get("type") == PLUGIN for plugin in plugins)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def _contents(file: Path) -> bytes:
    """No more than a configuration has, and from no pipe: the daemon looks here while it serves. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LARGEST) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
