"""The way to EC2: botocore's client with the credentials of this instance."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]

from ipamd.cloud import model
from ipamd.cloud.credentials import Credentials, for_call, variables
from ipamd.cloud.imds import Imds
from ipamd.cloud.port import CloudError
from ipamd.cloud.proxies import ProxyUnusable, proxy_for
from ipamd.cloud.wire import BoundedSession, Parsers, check_answer
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.pool.quoting import cut
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.telemetry.conditions import Conditions

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client

# EC2 closes idle connections; one that is reused just then fails with an unknown outcome.
KEEP_ALIVE = 12
CONNECTIONS = 16


class Connection:
    """The client is built when it is first asked for, which blocks the loop for some 15 ms: make a call before
    serving."""

    def __init__(
        self, settings: Ec2Settings, imds: ImdsSettings, region: str, conditions: Conditions | None = None
    ) -> None:
        self._settings = settings
        self._region = region
        self._imds = Imds(imds.endpoint)
        self._session = _session()
        self.credentials = Credentials(self._session, _session, self._imds, region, conditions)
        self._session.register_component("credential_provider", self.credentials)
        self._client: EC2Client | None = None
        self._building = asyncio.Lock()
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """EC2's endpoint; empty before there is a client, unless the settings name it."""
        return self._client.meta.endpoint_url if self._client else self._settings.endpoint

    async def close(self) -> None:
        await self.credentials.close()
        await self._stack.aclose()

    async def client(self, action: str) -> EC2Client:
        """The client, with credentials that are good for a call now. Raises `CloudError` for this action, which was
        not sent: getting credentials takes its own time, not the call's."""
        async with self._building:
            if self._client is None:
                self._client = await self._build(action)
        try:
            await self.credentials.ready()
        except CloudError as error:
            raise for_call(error, action) from error
        return self._client

    async def _build(self, action: str) -> EC2Client:
        await asyncio.to_thread(model.warm)
        try:
            await asyncio.to_thread(_check_bundle, self._session.get_config_variable("ca_bundle"))
            config = AioConfig(
                # So that a call that found nobody is known not to be sent.
                connect_timeout=self._settings.timeout / 2,
                read_timeout=self._settings.timeout,
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=CONNECTIONS,
                connector_args={"keepalive_timeout": KEEP_ALIVE},
                user_agent_extra="ipamd",
                defaults_mode="legacy",  # another one would ask the metadata service, by way of a proxy
                proxies=self._proxies(),
            )
            opening = self._session.create_client(
                "ec2", region_name=self._region, endpoint_url=self._settings.endpoint or None, config=config
            )
            # Not kept before all of it works: what is found wrong may be mended.
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._imds)
                client = cast("EC2Client", await stack.enter_async_context(opening))
                proxy_for(client.meta.endpoint_url)
                self._stack = stack.pop_all()
        except Exception as error:  # botocore reads files and variables of many forms
            raise _unusable(action, error) from error
        client.meta.events.register("before-parse.ec2.*", check_answer)
        return client

    def _proxies(self) -> dict[str, str] | None:
        """None leaves the choice to botocore, which differs only in that it ignores networks in NO_PROXY."""
        endpoint = self._settings.endpoint
        return None if not endpoint or proxy_for(endpoint) else {}


def _session() -> AioSession:
    """Takes some 15 ms."""
    session = AioSession()
    session.register_component("data_loader", model.loader())
    session.register_component("response_parser_factory", Parsers())
    # Also of the clients that botocore makes to get credentials.
    session.set_default_client_config(AioConfig(http_session_cls=BoundedSession))
    return session


class _BundleUnusable(Exception):
    """The text says which, and why."""


def _check_bundle(bundle: str | None) -> None:
    """Certificates of one's own for EC2's endpoint: read here, since aiohttp's error names no file. Raises
    `_BundleUnusable`."""
    if not bundle:
        return
    try:
        ssl.create_default_context(cafile=bundle)
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or str(error)
        raise _BundleUnusable(f"the certificates in {bundle} (AWS_CA_BUNDLE) can't be used: {why}") from error


def _unusable(action: str, error: Exception) -> CloudError:
    described = (
        str(error) if isinstance(error, (ProxyUnusable, _BundleUnusable)) else f"{type(error).__name__}: {error}"
    )
    configuration = variables() or "~/.aws/config"
    message = f"{cut(described, 400)}; check the settings under [ec2] and the AWS configuration ({configuration})"
    return CloudError(CloudFailure(CloudErrorKind.INVALID, action, type(error).__name__, message))
