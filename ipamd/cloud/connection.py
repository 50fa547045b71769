"""The way to EC2: botocore's client with the credentials of this instance."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    CredentialRetrievalError,
    InvalidConfigError,
    NoCredentialsError,
)

from ipamd.cloud import model
from ipamd.cloud.wire import Parsers, check_answer
from ipamd.settings import Ec2Settings, ImdsSettings

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client

# EC2 closes idle connections; one that is reused just then fails with an unknown outcome.
KEEP_ALIVE = 12
CONNECTIONS = 16
CREDENTIALS_TIMEOUT, CREDENTIALS_ATTEMPTS = 2, 5


class Connection:
    """The client is built when it is first asked for, which blocks the loop for some 15 ms: make a call before
    serving. Nothing is built without credentials, because a client keeps the ones it was born with."""

    def __init__(self, settings: Ec2Settings, imds: ImdsSettings, region: str) -> None:
        self._settings = settings
        self._region = region
        self._session = AioSession()
        self._session.register_component("data_loader", model.loader())
        self._session.register_component("response_parser_factory", Parsers())
        self._session.set_config_variable("ec2_metadata_service_endpoint", imds.endpoint)
        self._session.set_config_variable("ec2_metadata_v1_disabled", True)
        self._session.set_config_variable("metadata_service_timeout", CREDENTIALS_TIMEOUT)
        self._session.set_config_variable("metadata_service_num_attempts", CREDENTIALS_ATTEMPTS)
        self._client: EC2Client | None = None
        self._building = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def close(self) -> None:
        await self._stack.aclose()

    async def client(self) -> EC2Client:
        """The client, with credentials that are good for a call now. Raises one of `CALL_ERRORS`.

        Renewing them takes its time from IMDS, not from the call's: a call that was never sent is not in doubt.
        """
        credentials = await self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        try:
            await credentials.get_frozen_credentials()
        except RuntimeError as error:  # botocore's word for renewed credentials that have expired already
            raise CredentialRetrievalError(provider=credentials.method, error_msg=str(error)) from error
        async with self._building:
            if self._client is None:
                self._client = await self._build()
            return self._client

    async def _build(self) -> EC2Client:
        await asyncio.to_thread(model.warm)
        config = AioConfig(
            connect_timeout=self._settings.timeout / 2,  # so that a call that found nobody is known not to be sent
            read_timeout=self._settings.timeout,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=CONNECTIONS,
            connector_args={"keepalive_timeout": KEEP_ALIVE},
            user_agent_extra="ipamd",
        )
        try:
            opening = self._session.create_client(
                "ec2", region_name=self._region, endpoint_url=self._settings.endpoint or None, config=config
            )
            client = cast("EC2Client", await self._stack.enter_async_context(opening))
        except ValueError as error:
            raise InvalidConfigError(error_msg=str(error)) from error
        client.meta.events.register("before-parse.ec2.*", check_answer)
        return client
