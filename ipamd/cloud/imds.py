"""The instance metadata service, version 2: it is asked once, at start, who this instance is.

IMDSv2 wants a session token with each read, got by a PUT whose answer the hypervisor sends with a small IP TTL
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html). IMDS lags EC2, and
nothing here is ever taken as a proof that something is gone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from types import TracebackType
from typing import Self

import aiohttp
import structlog

from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind, CloudFailure

log = structlog.get_logger("ipamd.imds")

TOKEN_SECONDS = 21600  # the longest that IMDS grants
TIMEOUT = 2.0
ATTEMPTS = 5
FIRST_PAUSE = 0.1

_HOP_LIMIT = (
    "if ipamd runs in a container with its own network, raise the hop limit (aws ec2 "
    "modify-instance-metadata-options --http-put-response-hop-limit 2); otherwise check the route to it and "
    "imds.endpoint"
)
_REMEDIES = {
    400: "the metadata service did not understand the request: check imds.endpoint",
    401: "the metadata service refuses the token it has just given: is another one answering for it?",
    403: "the metadata service is off for this instance: aws ec2 modify-instance-metadata-options --http-endpoint "
    "enabled",
    404: "the metadata service does not have this: is this an EC2 instance in a VPC, and imds.endpoint right?",
}
_KINDS = {
    401: CloudErrorKind.NOT_AUTHORIZED,
    403: CloudErrorKind.NOT_AUTHORIZED,
    404: CloudErrorKind.NOT_FOUND,
    429: CloudErrorKind.THROTTLED,
}


class Imds:
    """A client for the life of the daemon; use it as an asynchronous context manager."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token = ""
        self._renew_at = 0.0
        self._token_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def identity(self) -> Identity:
        """This instance and its primary ENI. Raises `CloudError` with action "IMDS"."""
        mac = await self.read("mac")
        eni = f"network/interfaces/macs/{mac}"
        identity = Identity(
            instance_id=await self.read("instance-id"),
            instance_type=await self.read("instance-type"),
            region=await self.read("placement/region"),
            availability_zone=await self.read("placement/availability-zone"),
            primary_mac=mac,
            primary_eni_id=await self.read(f"{eni}/interface-id"),
            primary_ip=await self.read("local-ipv4"),
            subnet_id=await self.read(f"{eni}/subnet-id"),
            subnet_cidr=await self.read(f"{eni}/subnet-ipv4-cidr-block"),
            vpc_id=await self.read(f"{eni}/vpc-id"),
            vpc_cidrs=tuple((await self.read(f"{eni}/vpc-ipv4-cidr-blocks")).split()),
            security_groups=tuple((await self.read(f"{eni}/security-group-ids")).split()),
        )
        _check(identity)
        return identity

    async def read(self, path: str) -> str:
        """One value below latest/meta-data, without surrounding blanks. Raises `CloudError`."""
        token = await self._current_token()
        status, text = await self._request("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": token})
        if status == 401:
            token = await self._current_token(refused=token)
            status, text = await self._request("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": token})
        if status != 200:
            raise _refused(path, status)
        if not text.strip():
            raise _error(CloudErrorKind.NOT_FOUND, "Empty", f"{path}: the metadata service answered nothing")
        return text.strip()

    async def _current_token(self, refused: str = "") -> str:
        """A token with at least half its life before it, and never the refused one."""
        async with self._token_lock:
            if self._token == refused or time.monotonic() >= self._renew_at:
                asked_at = time.monotonic()
                lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
                status, token = await self._request("PUT", "api/token", lifetime)
                if status != 200:
                    raise _refused("api/token", status)
                self._token, self._renew_at = token.strip(), asked_at + TOKEN_SECONDS / 2
            return self._token

    async def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body. Repeats what a moment can mend: no connection, no answer, 429, 5xx."""
        url = f"{self._endpoint}/latest/{path}"
        failure = None
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                async with self._session.request(method, url, headers=headers) as response:
                    text = await response.text(errors="replace")
                    if response.status < 500 and response.status != 429:
                        return response.status, text
                    failure = _refused(path, response.status)
            except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
                message = f"imds.endpoint {self._endpoint!r} is not a URL such as http://169.254.169.254"
                raise _error(CloudErrorKind.INVALID, "InvalidURL", message) from error
            except TimeoutError:
                message = f"{url}: no answer within {TIMEOUT:g} s, {attempt + 1} times; {_HOP_LIMIT}"
                failure = _error(CloudErrorKind.TRANSIENT, "Timeout", message)
            except aiohttp.ClientError as error:
                message = f"{url}: {error}; check the route to the metadata service and imds.endpoint"
                failure = _error(CloudErrorKind.TRANSIENT, type(error).__name__, message)
            log.debug("imds.retry", path=path, attempt=attempt + 1, error=str(failure))
        assert failure is not None
        raise failure


def _check(identity: Identity) -> None:
    """What the kernel and the pool will calculate with must be what it claims to be."""
    try:
        ipaddress.IPv4Address(identity.primary_ip)
        for cidr in (identity.subnet_cidr, *identity.vpc_cidrs):
            ipaddress.IPv4Network(cidr)
    except ValueError as error:
        message = f"the metadata service answered nonsense: {error}; check imds.endpoint"
        raise _error(CloudErrorKind.INVALID, "Nonsense", message) from None


def _refused(path: str, status: int) -> CloudError:
    kind = _KINDS.get(status, CloudErrorKind.TRANSIENT if status >= 500 else CloudErrorKind.INVALID)
    remedy = _REMEDIES.get(status, "the metadata service is out of order: try again later")
    return _error(kind, str(status), f"{path}: HTTP {status}: {remedy}")


def _error(kind: CloudErrorKind, code: str, message: str) -> CloudError:
    return CloudError(CloudFailure(kind, "IMDS", code, message))
