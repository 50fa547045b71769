"""EC2 as ipamd uses it, on aiobotocore: each method of the port is one call, typed, timed, counted, never repeated.

Ownership is a tag: an ENI belongs to this daemon if it carries `ipamd.io/instance` with this instance's id.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

import structlog
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    CredentialRetrievalError,
    InvalidConfigError,
    NoCredentialsError,
)

from ipamd.cloud.errors import CALL_ERRORS, cloud_error
from ipamd.cloud.limits import limits_of
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind, CreatedEni, Limits, ObservedEni
from ipamd.settings import Ec2Settings, ImdsSettings

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client
    from types_aiobotocore_ec2.literals import InstanceTypeType
    from types_aiobotocore_ec2.type_defs import FilterTypeDef, NetworkInterfaceTypeDef

log = structlog.get_logger("ipamd.ec2")

T = TypeVar("T")

INSTANCE_TAG = "ipamd.io/instance"
PAGE_SIZE = 1000
# EC2 closes idle connections; one that is reused just then fails with an unknown outcome.
KEEP_ALIVE = 12
CONNECTIONS = 16
CREDENTIALS_TIMEOUT, CREDENTIALS_ATTEMPTS = 2, 5


class Ec2:
    """The cloud port (`ipamd.cloud.port.Cloud`) for one instance; use it as an asynchronous context manager.

    The client is built at the first call, which blocks the loop for some 125 ms (the EC2 model is large): make one
    before serving. Nothing is built without credentials, because a client keeps the ones it was born with.

    `calls` counts by action and outcome: "ok", EC2's error code, or the name of the exception.
    """

    def __init__(self, settings: Ec2Settings, imds: ImdsSettings, identity: Identity) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self._settings = settings
        self._identity = identity
        self._session = AioSession()
        self._session.set_config_variable("ec2_metadata_service_endpoint", imds.endpoint)
        self._session.set_config_variable("ec2_metadata_v1_disabled", True)
        self._session.set_config_variable("metadata_service_timeout", CREDENTIALS_TIMEOUT)
        self._session.set_config_variable("metadata_service_num_attempts", CREDENTIALS_ATTEMPTS)
        self._client: EC2Client | None = None
        self._building = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._subnet_cidrs: dict[str, str] = {identity.subnet_id: identity.subnet_cidr}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # Reads

    async def instance_limits(self, instance_type: str) -> Limits:
        known = limits_of(instance_type)
        if known is not None:
            return known
        newer = cast("InstanceTypeType", instance_type)
        reply = await self._call(
            "DescribeInstanceTypes", lambda ec2: ec2.describe_instance_types(InstanceTypes=[newer])
        )
        network = reply["InstanceTypes"][0]["NetworkInfo"]
        card = next(card for card in network["NetworkCards"] if card["NetworkCardIndex"] == 0)
        return Limits(card["MaximumNetworkInterfaces"], network["Ipv4AddressesPerInterface"])

    async def describe_enis(self) -> list[ObservedEni]:
        instance = self._identity.instance_id
        # In this order, so that an ENI that is being attached meanwhile is in one of the two.
        tagged = await self._describe([{"Name": f"tag:{INSTANCE_TAG}", "Values": [instance]}])
        attached = await self._describe([{"Name": "attachment.instance-id", "Values": [instance]}])
        enis = {eni["NetworkInterfaceId"]: eni for eni in tagged if not eni.get("Attachment")}
        enis |= {eni["NetworkInterfaceId"]: eni for eni in attached}
        return [_observed(eni, instance) for eni in enis.values()]

    async def describe_eni(self, eni_id: str) -> ObservedEni | None:
        try:
            reply = await self._call(
                "DescribeNetworkInterfaces", lambda ec2: ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])
            )
        except CloudError as error:
            if error.failure.kind is CloudErrorKind.NOT_FOUND:
                return None
            raise
        return next((_observed(eni, self._identity.instance_id) for eni in reply["NetworkInterfaces"]), None)

    async def subnet_cidr(self, subnet_id: str) -> str:
        known = self._subnet_cidrs.get(subnet_id)
        if known is None:
            reply = await self._call("DescribeSubnets", lambda ec2: ec2.describe_subnets(SubnetIds=[subnet_id]))
            known = self._subnet_cidrs[subnet_id] = reply["Subnets"][0]["CidrBlock"]
        return known

    async def _describe(self, filters: list[FilterTypeDef]) -> list[NetworkInterfaceTypeDef]:
        """All pages; one that filters have emptied may still name a next one."""
        found: list[NetworkInterfaceTypeDef] = []
        token = ""
        while True:
            page, token = await self._describe_page(filters, token)
            found += page
            if not token:
                return found

    async def _describe_page(
        self, filters: list[FilterTypeDef], token: str
    ) -> tuple[list[NetworkInterfaceTypeDef], str]:
        reply = await self._call(
            "DescribeNetworkInterfaces",
            lambda ec2: (
                ec2.describe_network_interfaces(Filters=filters, MaxResults=PAGE_SIZE, NextToken=token)
                if token
                else ec2.describe_network_interfaces(Filters=filters, MaxResults=PAGE_SIZE)
            ),
        )
        return reply["NetworkInterfaces"], reply.get("NextToken", "")

    # Mutations

    async def create_eni(
        self, *, token: str, subnet_id: str, security_groups: tuple[str, ...], address_count: int
    ) -> CreatedEni:
        description = f"ipamd {self._identity.instance_id}"
        tags = {"Name": description, **self._settings.tags, INSTANCE_TAG: self._identity.instance_id}
        reply = await self._call(
            "CreateNetworkInterface",
            lambda ec2: ec2.create_network_interface(
                ClientToken=token,
                SubnetId=subnet_id,
                Groups=list(security_groups),
                Description=description,
                SecondaryPrivateIpAddressCount=address_count,
                TagSpecifications=[
                    {
                        "ResourceType": "network-interface",
                        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                    }
                ],
            ),
        )
        eni = reply["NetworkInterface"]
        addresses = _secondary(eni)
        if len(addresses) != address_count:
            log.warning("ec2.other_count", eni=eni["NetworkInterfaceId"], asked=address_count, got=len(addresses))
        return CreatedEni(
            eni["NetworkInterfaceId"], eni["MacAddress"], eni["SubnetId"], eni["PrivateIpAddress"], addresses
        )

    async def attach_eni(self, eni_id: str, device_index: int) -> str:
        reply = await self._call(
            "AttachNetworkInterface",
            lambda ec2: ec2.attach_network_interface(
                NetworkInterfaceId=eni_id, InstanceId=self._identity.instance_id, DeviceIndex=device_index
            ),
        )
        return reply["AttachmentId"]

    async def set_delete_on_termination(self, eni_id: str, attachment_id: str) -> None:
        await self._call(
            "ModifyNetworkInterfaceAttribute",
            lambda ec2: ec2.modify_network_interface_attribute(
                NetworkInterfaceId=eni_id, Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True}
            ),
        )

    async def assign_addresses(self, eni_id: str, count: int) -> tuple[str, ...]:
        reply = await self._call(
            "AssignPrivateIpAddresses",
            lambda ec2: ec2.assign_private_ip_addresses(
                NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=count
            ),
        )
        return tuple(assigned["PrivateIpAddress"] for assigned in reply["AssignedPrivateIpAddresses"])

    async def unassign_addresses(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        await self._call(
            "UnassignPrivateIpAddresses",
            lambda ec2: ec2.unassign_private_ip_addresses(
                NetworkInterfaceId=eni_id, PrivateIpAddresses=list(addresses)
            ),
        )

    async def detach_eni(self, attachment_id: str) -> None:
        await self._call(
            "DetachNetworkInterface", lambda ec2: ec2.detach_network_interface(AttachmentId=attachment_id)
        )

    async def delete_eni(self, eni_id: str) -> None:
        await self._call(
            "DeleteNetworkInterface", lambda ec2: ec2.delete_network_interface(NetworkInterfaceId=eni_id)
        )

    # One call

    async def _call(self, action: str, send: Callable[[EC2Client], Awaitable[T]]) -> T:
        """Raises `CloudError`, and nothing else for whatever EC2, the network or the credentials do."""
        outcome = "cancelled"
        started = time.monotonic()
        try:
            client = await self._connected()
            async with asyncio.timeout(self._settings.timeout):
                answer = await send(client)
            outcome = "ok"
        except CALL_ERRORS as error:
            failed = cloud_error(action, error)
            outcome = failed.failure.code
            raise failed from error
        finally:
            self.calls[action, outcome] += 1
            elapsed = round((time.monotonic() - started) * 1000, 1)
            log.debug("ec2.call", action=action, ms=elapsed, outcome=outcome)
        return answer

    async def _connected(self) -> EC2Client:
        """The client, with credentials that are good for a call now.

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
                "ec2",
                region_name=self._identity.region,
                endpoint_url=self._settings.endpoint or None,
                config=config,
            )
            return cast("EC2Client", await self._stack.enter_async_context(opening))
        except ValueError as error:
            raise InvalidConfigError(error_msg=str(error)) from error


def _observed(eni: NetworkInterfaceTypeDef, instance_id: str) -> ObservedEni:
    """One item of DescribeNetworkInterfaces' reply. An ENI attached elsewhere is not ours, whatever its tag."""
    attachment = eni.get("Attachment")
    tagged = any(tag["Key"] == INSTANCE_TAG and tag["Value"] == instance_id for tag in eni.get("TagSet", ()))
    here = attachment is not None and attachment.get("InstanceId") == instance_id
    index = attachment["DeviceIndex"] if attachment else None
    return ObservedEni(
        id=eni["NetworkInterfaceId"],
        mac=eni["MacAddress"],
        subnet_id=eni["SubnetId"],
        primary_ip=eni.get("PrivateIpAddress", ""),  # an EFA-only interface has none
        addresses=_secondary(eni),
        device_index=index,
        attachment_id=attachment["AttachmentId"] if attachment else "",
        attachment_status=attachment["Status"] if attachment else "",
        owned=tagged and (attachment is None or here),
        primary=here and index == 0 and attachment is not None and attachment.get("NetworkCardIndex", 0) == 0,
        delete_on_termination=attachment["DeleteOnTermination"] if attachment else True,
    )


def _secondary(eni: NetworkInterfaceTypeDef) -> tuple[str, ...]:
    return tuple(
        address["PrivateIpAddress"] for address in eni.get("PrivateIpAddresses", ()) if not address["Primary"]
    )
