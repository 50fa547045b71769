"""The instance metadata service, version 2: a client that knows no proxy and believes nothing.

IMDSv2 wants a session token with each read, got by a PUT whose answer the hypervisor sends with a small IP TTL
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html). IMDS lags EC2, and
nothing here is ever taken as a proof that something is gone.
"""

from __future__ import annotations

import asyncio
import re
import time
from types import TracebackType
from typing import Self

import aiohttp
import structlog

from ipamd.cloud.identity import contradiction, identity_of, networks
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.pool.quoting import quoted

log = structlog.get_logger("ipamd.imds")

TOKEN_SECONDS = 21600  # the longest that IMDS grants
TIMEOUT = 2.0
ATTEMPTS = 5
FIRST_PAUSE = 0.1
BELIEVED_AFTER = 4  # times
LONGEST = 1 << 18  # bytes: all CIDRs of a VPC and all groups of an interface are far fewer

# What can stand in a header.
_TOKEN = re.compile(r"[!-~]{1,4096}")
_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ANOTHER = "Check imds.endpoint, and who answers there"

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
        self._contradicted = 0  # times in a row
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
        mac = (await self.read("mac")).lower()
        if _MAC.fullmatch(mac) is None:
            raise _nonsense(f"mac is {quoted(mac)}")
        eni = f"network/interfaces/macs/{mac}"
        try:
            identity = identity_of(
                {
                    "instance_id": await self.read("instance-id"),
                    "instance_type": await self.read("instance-type"),
                    "region": await self.read("placement/region"),
                    "availability_zone": await self.read("placement/availability-zone"),
                    "primary_mac": mac,
                    "primary_eni_id": await self.read(f"{eni}/interface-id"),
                    "primary_ip": await self.read("local-ipv4"),
                    "subnet_id": await self.read(f"{eni}/subnet-id"),
                    "subnet_cidr": await self.read(f"{eni}/subnet-ipv4-cidr-block"),
                    "vpc_id": await self.read(f"{eni}/vpc-id"),
                    "vpc_cidrs": tuple((await self.read(f"{eni}/vpc-ipv4-cidr-blocks")).split()),
                    "security_groups": tuple((await self.read(f"{eni}/security-group-ids")).split()),
                }
            )
        except ValueError as error:
            raise _nonsense(str(error)) from None
        await self._compare(identity)
        return identity

    async def vpc_cidrs(self, mac: str) -> tuple[str, ...]:
        """All IPv4 CIDRs of the VPC that the ENI with this MAC is in. Raises `CloudError` with action "IMDS"."""
        try:
            return networks((await self.read(f"network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks")).split())
        except ValueError as error:
            raise _nonsense(f"vpc-ipv4-cidr-blocks: {error}") from None

    async def _compare(self, identity: Identity) -> None:
        """With the identity document, where there is one. A difference that stays is no slip of a moment: after some
        tries the values are believed. Raises `CloudError`."""
        try:
            found = contradiction(identity, await self.get("dynamic/instance-identity/document"))
        except CloudError as error:
            if error.failure.kind is not CloudErrorKind.NOT_FOUND:
                raise
            found = ""
        self._contradicted = self._contradicted + 1 if found else 0
        if not found:
            return
        if self._contradicted < BELIEVED_AFTER:
            message = f"the metadata service contradicts itself: {found}. {_ANOTHER}"
            raise imds_error(CloudErrorKind.TRANSIENT, "Contradiction", message)
        log.warning("imds.contradiction", what=found)

    async def read(self, path: str) -> str:
        """One value below latest/meta-data, without surrounding blanks. Raises `CloudError` with action "IMDS"."""
        return await self.get(f"meta-data/{path}")

    async def get(self, path: str) -> str:
        """The same below latest."""
        try:
            token = await self._current_token()
            status, text = await self._request("GET", path, {_TOKEN_HEADER: token})
            if status not in (200, 404):
                # 401 says that the token is no longer good. Another refusal may come of it, too.
                token = await self._current_token(refused=token)
                status, text = await self._request("GET", path, {_TOKEN_HEADER: token})
            if status != 200:
                raise _refused(path, status)
        except CloudError:
            self._renew_at = 0.0  # whatever it was, the next read does not rest on this token
            raise
        if not text.strip():
            raise imds_error(CloudErrorKind.NOT_FOUND, "Empty", f"{path}: the metadata service answered nothing")
        return text.strip()

    async def _current_token(self, refused: str = "") -> str:
        """A token with at least half its life before it, and never the refused one."""
        async with self._token_lock:
            if self._token == refused or time.monotonic() >= self._renew_at:
                asked_at = time.monotonic()
                lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
                status, token = await self._request("PUT", "api/token", lifetime)
                if status == 404:
                    message = f"api/token: HTTP 404: the metadata service has no tokens. {_ANOTHER}"
                    raise imds_error(CloudErrorKind.TRANSIENT, "404", message)
                if status != 200:
                    raise _refused("api/token", status)
                if _TOKEN.fullmatch(token.strip()) is None:
                    message = "the metadata service gave a token that is none: is another one answering for it?"
                    raise imds_error(CloudErrorKind.TRANSIENT, "UnreadableToken", f"{message} {_ANOTHER}")
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
                async with self._session.request(method, url, headers=headers, allow_redirects=False) as response:
                    text = await _body(response)
                    if response.status < 500 and response.status != 429:
                        return response.status, text
                    failure = _refused(path, response.status)
            except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
                message = f"imds.endpoint {self._endpoint!r} is not a URL such as http://169.254.169.254"
                raise imds_error(CloudErrorKind.INVALID, "InvalidURL", message) from error
            except TimeoutError:
                message = f"{url}: no answer within {TIMEOUT:g} s, {attempt + 1} times; {_HOP_LIMIT}"
                failure = imds_error(CloudErrorKind.TRANSIENT, "Timeout", message)
            except aiohttp.ClientError as error:
                message = f"{url}: {error}; check the route to the metadata service and imds.endpoint"
                failure = imds_error(CloudErrorKind.TRANSIENT, type(error).__name__, message)
            log.debug("imds.retry", path=path, attempt=attempt + 1, error=str(failure))
        assert failure is not None
        raise failure


async def _body(response: aiohttp.ClientResponse) -> str:
    """No more of it than metadata can have."""
    read = bytearray()
    async for part in response.content.iter_chunked(LONGEST):
        read += part
        if len(read) > LONGEST:
            message = f"{response.url.path}: more than {LONGEST} bytes: this is not the metadata service. {_ANOTHER}"
            raise imds_error(CloudErrorKind.INVALID, "TooLong", message)
    return read.decode("utf-8", "replace")


def _refused(path: str, status: int) -> CloudError:
    kind = _KINDS.get(status, CloudErrorKind.TRANSIENT if status >= 500 else CloudErrorKind.INVALID)
    remedy = _REMEDIES.get(status, "the metadata service is out of order: try again later")
    return imds_error(kind, str(status), f"{path}: HTTP {status}: {remedy}")


def _nonsense(what: str) -> CloudError:
    return imds_error(
        CloudErrorKind.INVALID, "Nonsense", f"the metadata service answered nonsense: {what}. {_ANOTHER}"
    )


def imds_error(kind: CloudErrorKind, code: str, message: str) -> CloudError:
    return CloudError(CloudFailure(kind, "IMDS", code, message))
