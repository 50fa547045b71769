"""The runtime's network configuration: written once the node can serve, and kept right while it does.

It chains the plugins of `cni.chain`. One that appears is chained from then on. One that disappears fails every pod
and is taken out, but not at once: a package that is being renewed is gone for a moment, and a pod that starts or ends
without the plugin lacks its work, or leaves it behind. A file of another network that comes first, or ours removed by
hand, gives new pods another network or none, and no ADD comes any more that would show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from asyncinotify import Mask

from ipamd.install.files import CONFLIST, write_conflist
from ipamd.install.network_files import others
from ipamd.install.placing import InstallError
from ipamd.neighbours.chain import Binaries, Chain, chain, folder_of_plugins, names
from ipamd.process.directory_watch import DirectoryWatch
from ipamd.process.supervision import Unserved
from ipamd.settings import CniSettings
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.daemon")

# Seconds between two looks where the kernel does not tell of changes.
_INTERVAL = 30.0
# The mode as well: a copied plugin may become executable last.
_CHANGES = Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.CLOSE_WRITE | Mask.ATTRIB

# Seconds for which the file of a chained plugin may be gone, and the plugin stays in the chain.
GONE_FOR = 20.0


class Conflist:
    """For one folder, `cni.conf_dir`."""

    def __init__(self, settings: CniSettings, conf_dir: Path, conditions: Conditions) -> None:
        self._settings = settings
        self._conf_dir = conf_dir
        self._conditions = conditions
        self._binaries = Binaries()
        # The default is what a node may well do without. What was named, or chained before, is missed.
        self._needed = set(names(settings.chain) if "chain" in settings.model_fields_set else ())
        self._chain = Chain()
        self._gone_since: float | None = None

    async def offer(self, well: Callable[[], None]) -> None:
        """Write it. Its appearing tells the runtime that the node's network is there. Raises `Unserved`: pods that
        run need no conflist, and the next try may succeed."""
        await self._write(await asyncio.to_thread(self._look))
        well()

    async def follow(self) -> None:
        """Compare after each change, for ever. Raises `Unserved`."""
        watch = DirectoryWatch(self._directories, _CHANGES, _INTERVAL, self._conditions, "conflist.polled")
        pause: float | None = None
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await watch.changed()
                pause = await self._renew()
                compare(self._conf_dir, self._conditions)
        finally:
            watch.close()

    async def _renew(self) -> float | None:
        """Write it anew if the chain has changed; seconds until the next look is due in any case, None: no such."""
        found = await asyncio.to_thread(self._look)
        now = asyncio.get_running_loop().time()
        if set(self._chain.names) - set(found.names):
            self._gone_since = now if self._gone_since is None else self._gone_since
            left = self._gone_since + GONE_FOR - now
            if left > 0:
                return left
        self._gone_since = None
        if found.conflist() != self._chain.conflist() and await asyncio.to_thread(self._is_as_written):
            await self._write(found)
        else:
            self._chain = found
            self._show()
        return None

    def _look(self) -> Chain:
        folder = folder_of_plugins(self._settings.bin_dirs)
        binaries = self._binaries.look(self._settings.chain, folder) if folder else {}
        return chain(self._settings.chain, binaries, folder, self._needed)

    def _is_as_written(self) -> bool:
        """Else somebody has edited or removed it, and meant it."""
        try:
            return (self._conf_dir / CONFLIST).read_bytes() == self._chain.conflist()
        except OSError:
            return False

    async def _write(self, found: Chain) -> None:
        """Raises `Unserved`."""
        try:
            path = await asyncio.to_thread(write_conflist, self._conf_dir, found)
        except InstallError as error:
            raise Unserved(
                f"The runtime's network configuration is not written, so it may start no pods: cni.conf_dir: {error}."
            ) from None
        self._chain = found
        self._needed |= set(found.names)
        log.info("conflist.written", file=str(path), chain=list(found.names))
        self._show()

    def _show(self) -> None:
        if self._chain.left_out:
            self._conditions.begin(
                "conflist.plugins_left_out",
                f"Pods start without plugins of cni.chain: {'; '.join(self._chain.left_out)}. Install them, which "
                "takes effect at once, or change cni.chain.",
            )
        else:
            self._conditions.end("conflist.plugins_left_out")

    def _directories(self) -> list[Path]:
        """Of the folders for plugins the one that counts; while there is none, those that are there."""
        folders = self._settings.bin_dirs
        if (folder := folder_of_plugins(folders)) is not None:
            return [self._conf_dir, folder]
        return [self._conf_dir, *([each for each in folders if each.is_dir()] or folders[:1])]


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
