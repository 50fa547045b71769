"""Who this instance is, by what the metadata service says: judged before anything rests on it.

One wrong answer of one moment would be asked for ever: the type decides how many interfaces there may be, the region
whom to ask, the id what is tagged and attached. So each value must have its form, and what two parts of the service
both say must agree ("Instance identity documents" in the Amazon EC2 User Guide).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ipamd.cloud.port import Identity
from ipamd.pool.quoting import quoted


def _address(text: str) -> str:
    return str(IPv4Address(text))


def _network(text: str) -> str:
    return str(IPv4Network(text))


def _id(prefix: str) -> object:
    return Field(pattern=rf"^{prefix}-[0-9a-z]{{1,32}}$")


class _Told(BaseModel):
    """`Identity`, with the form of each value."""

    model_config = ConfigDict(extra="forbid")

    instance_id: Annotated[str, _id("i")]
    instance_type: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}\.[a-z0-9-]{1,32}$")]
    region: Annotated[str, Field(pattern=r"^[a-z]{2,8}(-[a-z]{1,32})+-[0-9]{1,2}$")]
    availability_zone: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    primary_mac: Annotated[str, Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
    primary_eni_id: Annotated[str, _id("eni")]
    primary_ip: Annotated[str, AfterValidator(_address)]
    subnet_id: Annotated[str, _id("subnet")]
    subnet_cidr: Annotated[str, AfterValidator(_network)]
    vpc_id: Annotated[str, _id("vpc")]
    vpc_cidrs: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(min_length=1)]
    security_groups: tuple[Annotated[str, _id("sg")], ...]


# Names in the identity document.
_DOCUMENT = {
    "instance_id": "instanceId",
    "instance_type": "instanceType",
    "region": "region",
    "primary_ip": "privateIp",
}


def networks(texts: Iterable[str]) -> tuple[str, ...]:
    """The CIDRs of a VPC: at least one, with 16 to 28 bits each ("VPC CIDR blocks" in the Amazon VPC User Guide).
    Raises ValueError."""
    found = tuple(IPv4Network(text) for text in texts)
    for each in found:
        if not 16 <= each.prefixlen <= 28:
            raise ValueError(f"{each} is no CIDR of a VPC")
    if not found:
        raise ValueError("no CIDR")
    return tuple(map(str, found))


def identity_of(values: Mapping[str, str | tuple[str, ...]]) -> Identity:
    """Raises ValueError for what can't be true."""
    try:
        return Identity(**_Told.model_validate(values).model_dump())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = first["loc"][0] if first["loc"] else "it"
        raise ValueError(f"{field} is {quoted(first['input'])}: {first['msg']}") from None


def contradiction(identity: Identity, document: str) -> str:
    """Where the identity document says something else; empty when it does not, or is no such document."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(found, Mapping):
        return ""
    for field, name in _DOCUMENT.items():
        said, other = getattr(identity, field), found.get(name)
        if isinstance(other, str) and other != said:
            return f"{field} is {said}, and {quoted(other)} in the identity document"
    return ""
