"""What the daemon and its pods live on: port, plugin, disk, connection tracking, and how many pods the kubelet
believes to fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipamd.install.hosting import SYSTEMD, Hosting, hosting
from ipamd.install.installed import Installed, installed
from ipamd.install.placing import below
from ipamd.neighbours import kubelet
from ipamd.neighbours.chain import PLUGIN
from ipamd.neighbours.kubelet import Kubelet
from ipamd.neighbours.peer import listener
from ipamd.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """`daemon`: the process id of who serves `api.socket`, None if nobody does. `port_owner`: who listens at
    `metrics.listen`, as "name (pid 12)", empty if nobody does; `port_is_ours`: it is that daemon. `plugin`: None if
    there is no file; `plugin_path`: where it is or should be, None where no folder for plugins is seen.
    `ledger_free`: bytes on the file system of `ledger.path`, None if unknown; `ledger_read_only`: it takes
    no writes. `tracked`: connections and their limit, None without the module;
    `hosting`: where the daemon runs."""

    daemon: int | None = None
    port_owner: str = ""
    port_is_ours: bool = False
    plugin: Installed | None = None
    plugin_path: Path | None = None
    ledger_free: int | None = None
    ledger_read_only: bool = False
    tracked: tuple[int, int] | None = None
    kubelet: Kubelet | None = None
    hosting: Hosting = SYSTEMD


def gather(settings: Settings, root: Path) -> NodeFacts:
    """Raises nothing."""
    daemon = listener(settings.api.socket)
    owner = _listener(settings.metrics.listen)
    plugin = _plugin(settings, root)
    free, read_only = _space(settings.ledger.path)
    return NodeFacts(
        daemon,
        _named(owner) if owner is not None else "",
        owner is not None and owner == daemon,
        installed(below(root, plugin)) if plugin is not None else None,
        plugin,
        free,
        read_only,
        _tracked(),
        kubelet.find(root),
        hosting(plugin=below(root, plugin) if plugin is not None else None),
    )


def _plugin(settings: Settings, root: Path) -> Path | None:
    folders = [folder for folder in settings.cni.bin_dirs if below(root, folder).is_dir()]
    there = [folder / PLUGIN for folder in folders if below(root, folder / PLUGIN).exists()]
    return next(iter(there or [folder / PLUGIN for folder in folders]), None)


def _listener(listen: str) -> int | None:
    """The id of the process that listens at the port of "address:port" in this network namespace; 0 if unknown."""
    port = listen.rpartition(":")[2]
    if not port.isdigit():
        return None
    inodes = set(_listening(int(port)))
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) in wanted:
                return int(descriptor.parts[2])
        except OSError:
            continue  # it has ended meanwhile
    return 0


def _listening(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen there; proc(5), /proc/net/tcp: state 0A is LISTEN."""
    for name in ("tcp", "tcp6"):
        for line in _text(Path("/proc/net") / name).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _named(pid: int) -> str:
    return (
        f"{_text(Path(f'/proc/{pid}/comm')).strip() or 'a process'} (pid {pid})" if pid else "a process unseen here"
    )


def _space(ledger: Path) -> tuple[int | None, bool]:
    """Of the folder that is to hold it, or the nearest one that is there."""
    folder = next((each for each in ledger.parents if each.is_dir()), None)
    if folder is None:
        return None, False
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize, bool(status.f_flag & os.ST_RDONLY)


def _tracked() -> tuple[int, int] | None:
    folder = Path("/proc/sys/net/netfilter")
    count, most = _text(folder / "nf_conntrack_count"), _text(folder / "nf_conntrack_max")
    return (int(count), int(most)) if count and most else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
