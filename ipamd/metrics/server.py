"""A small HTTP server: /metrics for Prometheus, /healthz and /readyz for kubelet's probes and load balancers.

It starts right after the settings are read, because it is needed most while the daemon can't start. It never ends the
daemon: if its port is taken, that is a condition, and the server tries again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from ipamd.metrics.collector import DaemonCollector
from ipamd.metrics.door import Door
from ipamd.process.supervision import Unserved

log = structlog.get_logger("ipamd.metrics")


# Seconds for which a page is used again, and how many of them: one for each content type that is asked for.
PAGE_LASTS = 0.1
MOST_PAGES = 4

# Characters of a scraper's Accept header; Prometheus sends 200.
LONGEST_ACCEPT = 1000


@asynccontextmanager
async def serving(listen: str, collector: DaemonCollector, obstacle: Callable[[], str]) -> AsyncIterator[None]:
    """`listen` is "address:port", or "[address]:port" for IPv6. `obstacle`: why the node is not ready; empty: it is.
    Raises `Unserved`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    host, _, port = listen.rpartition(":")
    application = web.Application(middlewares=[_Failures().told_once])
    application.on_response_prepare.append(_answer_once)
    application.add_routes(
        [
            web.get("/metrics", _Metrics(registry)),
            web.get("/healthz", _alive),
            web.get("/readyz", _Ready(obstacle)),
        ]
    )
    running = web.AppRunner(
        application, access_log=None, handle_signals=False, shutdown_timeout=0.1, lingering_time=0, logger=_SILENT
    )
    await running.setup()
    door = None
    try:
        try:
            assert running.server is not None
            door = Door(host.strip("[]"), int(port), running.server)
            log.info("metrics.serving", listen=listen)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            place = "an address of this host, with a port that nobody else has"
            text = f"Metrics are not served at {listen}: {reason}. metrics.listen must be {place}."
            raise Unserved(text, listen=listen, error=reason) from None
        yield
    finally:
        if door is not None:
            door.close()
        await running.cleanup()


# The library logs a traceback for each malformed request: any process on the node could fill the log.
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)


class _Failures:
    """Logs a fault of the daemon's own code, once until another one occurs."""

    def __init__(self) -> None:
        self._last = ""

    @web.middleware
    async def told_once(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if text != self._last:
                self._last = text
                log.exception("metrics.failed", path=request.path, error=text)
            return web.Response(status=500, text="the daemon's log says why\n")


async def _answer_once(request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()


class _Metrics:
    """Reuses a page for a moment: making one takes as long as ten ADDs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._pages: dict[str, bytes] = {}  # by content type
        self._made_at = -PAGE_LASTS

    async def __call__(self, request: web.Request) -> web.Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", "")[:LONGEST_ACCEPT])
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        now = time.monotonic()
        if now - self._made_at >= PAGE_LASTS:
            self._pages.clear()
            self._made_at = now
        if content_type not in self._pages and len(self._pages) < MOST_PAGES:
            self._pages[content_type] = encode(self._registry)
        page = self._pages.get(content_type)
        if page is None:
            return web.Response(status=503, text="too many content types at once\n")
        return web.Response(body=page, headers={"Content-Type": content_type})


async def _alive(request: web.Request) -> web.Response:
    """An answer proves that the event loop turns. A pool that has failed ends the process."""
    return web.Response(text="alive\n")


class _Ready:
    def __init__(self, obstacle: Callable[[], str]) -> None:
        self._obstacle = obstacle

    async def __call__(self, request: web.Request) -> web.Response:
        """Whether the daemon can do its work: also on a full node, where no rollout of ipamd should hang."""
        if obstacle := self._obstacle():
            return web.Response(status=503, text=f"{obstacle}\n")
        return web.Response(text="ready\n")
