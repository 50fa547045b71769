"""Between the HTTP response and botocore's parser: is this an answer of EC2 at all, and is it read item by item?

A proxy, a load balancer or a captive portal answers in EC2's place with HTML or nothing, which botocore reports as
XML that retries may cure. It would read an answer without an end until memory is used up. And for botocore one number
that is none, of one interface, spoils the whole reply: here it is left as text for the one who needs it
(`ipamd.cloud.replies`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse  # type: ignore[import-untyped]
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from aiobotocore.parsers import AioEC2QueryParser, AioResponseParserFactory  # type: ignore[import-untyped]

# The name of the first element, after a declaration and comments.
_ROOT = re.compile(rb"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<([A-Za-z][\w.:-]*)", re.S)
_BEGINNING = 4096
_SHOWN = 100

# Bytes of one answer: a page of a thousand interfaces with 50 addresses each is 18 MB.
LONGEST = 32 << 20
_PART = 1 << 16

# Errors: EC2's own, and that of other services of AWS, which some stand-ins for EC2 use.
_ERRORS = (b"Response", b"ErrorResponse")


class NotEc2(Exception):
    """Somebody else answered. `status` and `content_type` are HTTP's, `beginning` is that of the body, for people."""

    def __init__(self, status: int, content_type: str, beginning: str) -> None:
        described = f"HTTP {status}, {content_type or 'no content type'}"
        super().__init__(f"{described}: {beginning!r}" if beginning else f"{described}, with an empty body")
        self.status = status


def check_answer(response_dict: Mapping[str, Any], operation_model: Any, **_: Any) -> None:
    """A handler of botocore's event before-parse. Raises `NotEc2`. A server that fails (5xx) need not speak XML."""
    status, body = response_dict["status_code"], response_dict["body"] or b""
    root = _ROOT.match(body[:_BEGINNING])
    names = _ERRORS if status >= 300 else (f"{operation_model.name}Response".encode(),)
    if root is None or root[1].rpartition(b":")[2] not in names:
        content_type = str(response_dict["headers"].get("content-type", ""))
        raise NotEc2(status, content_type[:_SHOWN], body[:_SHOWN].decode("utf-8", "replace").strip())


class TooLong(Exception):
    """The answer is longer than any of EC2's."""

    def __init__(self) -> None:
        super().__init__(f"the answer has more than {LONGEST} bytes")


class BoundedSession(AIOHTTPSession):  # type: ignore[misc]
    """botocore's HTTP client (`http_session_cls`), which by itself reads an answer of any length."""

    async def send(self, request: Any) -> Any:
        """Raises `TooLong`, and while the body is read aiohttp's errors and TimeoutError."""
        request.stream_output = True  # leaves the body unread
        response = await super().send(request)
        body = await _body(response.raw)
        return AioAWSResponse(response.url, response.status_code, response.headers, _Whole(body))


class AgentSession(BoundedSession):
    """The same, as botocore's fetcher of a container agent's credentials uses it: for one request at a time."""

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[AgentSession]:
        async with self:
            yield self


async def _body(response: Any) -> bytes:
    read = bytearray()
    try:
        async for part in response.content.iter_chunked(_PART):
            read += part
            if len(read) > LONGEST:
                raise TooLong
    except BaseException:
        response.close()
        raise
    return bytes(read)


class _Whole:
    """A body that was read."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


class Parsers(AioResponseParserFactory):  # type: ignore[misc]
    """botocore's component response_parser_factory."""

    def create_parser(self, protocol_name: str) -> Any:
        if protocol_name == "ec2":
            return _ItemByItem(timestamp_parser=str)
        return super().create_parser(protocol_name)


class _ItemByItem(AioEC2QueryParser):  # type: ignore[misc]
    def _parse_shape(self, shape: Any, node: Any) -> Any:
        text = getattr(node, "text", None) or ""
        if shape.type_name == "boolean" and text not in ("true", "false"):
            return text
        try:
            return super()._parse_shape(shape, node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return text
