"""The runtime's network configuration while the daemon serves: is it there, and is it the one that runtimes take?

A file of another network that comes first, or ours removed by hand, gives new pods another network or none, and
nothing in the daemon would notice: no ADD comes any more.
"""

from __future__ import annotations

from pathlib import Path

from asyncinotify import Mask

from ipamd.conditions import Conditions
from ipamd.directory_watch import DirectoryWatch
from ipamd.install import CONFLIST
from ipamd.install.network_files import others

# Seconds between two looks where the kernel does not tell of changes.
_INTERVAL = 30.0
_CHANGES = Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.CLOSE_WRITE


async def follow_conflist(conf_dir: Path, conditions: Conditions) -> None:
    """Compare after each change of the folder, for ever."""
    watch = DirectoryWatch(lambda: [conf_dir], _CHANGES, _INTERVAL, conditions, "conflist.polled")
    try:
        while True:
            await watch.changed()
            compare(conf_dir, conditions)
    finally:
        watch.close()


def compare(conf_dir: Path, conditions: Conditions) -> None:
    before, after = others(conf_dir)
    if before:
        text = (
            f"Runtimes take {conf_dir / before[0]} before {CONFLIST}, so new pods get another network. Once that "
            f"network's pods are gone: mv {conf_dir / before[0]} {conf_dir / before[0]}.off"
        )
    elif not (conf_dir / CONFLIST).is_file():
        instead = f"runtimes take {conf_dir / after[0]}" if after else "runtimes start no pods"
        text = f"{conf_dir / CONFLIST} is gone: {instead}. A restart of ipamd writes it again."
    else:
        conditions.end("conflist.not_in_force")
        return
    conditions.begin("conflist.not_in_force", text)
