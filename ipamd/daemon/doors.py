"""Opens what the daemon answers at: the socket, the reading group's socket, and the metrics port. They are open from
settings and ledger on, and callers learn how far the daemon is while it starts.

gRPC takes 60 ms to import and the metrics 20 ms: in threads, while others are asked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from ipamd.daemon.surroundings import Surroundings
from ipamd.pool.model import Reason
from ipamd.process.supervision import keep
from ipamd.shell.serving import Record

if TYPE_CHECKING:
    from ipamd.api.server import ApiServer, Services
    from ipamd.api.starting import StartingIpam
    from ipamd.api.timing import CallTimes
    from ipamd.metrics.sources import Sources, Standing

# Seconds that the metadata service gets before metrics are imported: as a rule they then come while EC2 is asked.
METRICS_AFTER = 0.3


class Doors:
    """`server`, `calls` and `ipam` are there once `open` has returned."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._sources: Sources | None = None
        self.refusals: Counter[Reason] = Counter()
        self.server: ApiServer
        self.calls: CallTimes
        self._waiting: StartingIpam

    async def open(self, stack: AsyncExitStack, stop_grace: float) -> None:
        """Raises `SocketUnusable`."""
        await asyncio.to_thread(import_module, "ipamd.api.starting")
        await asyncio.to_thread(import_module, "ipamd.api.server")
        from ipamd.api.server import ApiServer, Services
        from ipamd.api.starting import StartingAdministration, StartingIntrospection, StartingIpam
        from ipamd.api.timing import CallTimes

        around, api = self._around, self._around.live.loaded.settings.api
        self.calls = CallTimes()
        self._waiting = StartingIpam(
            around.start,
            self.refusals,
            lambda: around.live.loaded.settings.pool.allocate_wait,
            Record(api.socket).holds,
        )
        self.server = ApiServer(api, self.calls)
        stack.push_async_callback(self.server.stop, stop_grace)
        stack.callback(self._waiting.close)
        introspection = StartingIntrospection(
            around.live, around.history, around.conditions, around.start, around.ledger, self._waiting, around.began
        )
        self.server.use(Services(self._waiting, introspection, StartingAdministration(around.start)))
        await self.server.start()

    def keep_open(self, tasks: asyncio.TaskGroup) -> None:
        """The main door, and those beside it, which may be late."""
        settings, conditions = self._around.live.loaded.settings, self._around.conditions
        tasks.create_task(keep(conditions, "api.not_served", self.server.keep_served, "serving api.socket"))
        if settings.api.read_group:
            tasks.create_task(
                keep(conditions, "api.readers_not_served", self.server.serve_readers, "serving api.read_socket")
            )
        if settings.metrics.listen:
            tell = partial(self._tell_metrics, settings.metrics.listen)
            tasks.create_task(keep(conditions, "metrics.not_served", tell, "serving metrics"))

    def hand_over(self, services: Services, sources: Sources) -> None:
        """The start is over as far as callers see it: who waits goes on, who comes is served."""
        self._sources = sources
        self.server.use(services)
        self._waiting.hand_over(services.ipam)

    async def _tell_metrics(self, listen: str, well: Callable[[], None]) -> None:
        await asyncio.sleep(METRICS_AFTER)
        await asyncio.to_thread(import_module, "ipamd.metrics.server")
        from ipamd.metrics.collector import DaemonCollector
        from ipamd.metrics.server import serving

        collector = DaemonCollector(self._standing(), lambda: self._sources)
        async with serving(listen, collector, self._obstacle):
            well()
            await asyncio.Event().wait()

    def _standing(self) -> Standing:
        from ipamd.metrics.sources import Standing

        around = self._around
        return Standing(around.start, self.calls, self.refusals, around.ledger, around.history, around.conditions)

    def _obstacle(self) -> str:
        """Why the node is not ready, with the reason first."""
        if self._sources is None:
            refusal = self._around.start.refusal()
            return f"{refusal.reason}: {refusal.message}"
        return str(self._sources.serving.obstacle() or "")
