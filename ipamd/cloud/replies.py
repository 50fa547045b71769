"""What EC2's replies must hold: each field that is used, with its type, and nothing else of them.

botocore gives whatever fields came, of any shape. Here a reply is checked against the shape that the work needs,
before anything rests on it. What is missing or strange is named by its field and by the thing that it belongs to.
Names are those of the Amazon EC2 API Reference ("Data types").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_pascal
from pydantic_core import ErrorDetails

# Of a strange value, so many characters are shown.
SHOWN = 60


class UnreadableReply(Exception):
    """A reply of EC2 lacks a field, or holds something else than the field promises; the text says which."""


def _address(text: str) -> str:
    return str(IPv4Address(text))


def _network(text: str) -> str:
    return str(IPv4Network(text))


# An id stands in logs, on screens and in further calls: printable, without blanks.
Id = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
Mac = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"), AfterValidator(str.lower)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
# Far above every published figure, and below what would make a pool calculate for long.
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Limit = Annotated[int, Field(ge=1, le=1000)]
Index = Annotated[int, Field(ge=0, le=255)]


class Shape(BaseModel):
    """A structure of the API; a field without a default has to be there."""

    model_config = ConfigDict(alias_generator=to_pascal, frozen=True)


class Tag(Shape):
    key: str
    value: str = ""


class Attachment(Shape):
    """`instance_id` is empty for an interface that a service of AWS holds."""

    attachment_id: Id
    device_index: Index
    status: str
    delete_on_termination: bool
    instance_id: str = ""
    network_card_index: Index = 0


class PrivateAddress(Shape):
    private_ip_address: Address
    primary: bool


class Prefix(Shape):
    ipv4_prefix: Network


class NetworkInterface(Shape):
    """`private_ip_address` is None for an EFA-only interface."""

    network_interface_id: Id
    mac_address: Mac
    subnet_id: Id
    private_ip_address: Address | None = None
    private_ip_addresses: tuple[PrivateAddress, ...] = ()
    ipv4_prefixes: tuple[Prefix, ...] = ()
    attachment: Attachment | None = None
    tag_set: tuple[Tag, ...] = ()

    @property
    def secondary_addresses(self) -> tuple[str, ...]:
        return tuple(
            one.private_ip_address
            for one in self.private_ip_addresses
            if not one.primary and one.private_ip_address != self.private_ip_address
        )

    @property
    def tags(self) -> dict[str, str]:
        return {tag.key: tag.value for tag in self.tag_set}


class NewInterface(NetworkInterface):
    """Of CreateNetworkInterface: it has a primary address, always."""

    private_ip_address: Address


class Subnet(Shape):
    subnet_id: Id
    cidr_block: Network


class SubnetRoom(Shape):
    subnet_id: Id
    available_ip_address_count: Count


class NetworkCard(Shape):
    network_card_index: Index
    maximum_network_interfaces: Limit


class NetworkInfo(Shape):
    ipv4_addresses_per_interface: Limit
    network_cards: tuple[NetworkCard, ...]


class InstanceTypeInfo(Shape):
    network_info: NetworkInfo


class InstanceState(Shape):
    name: str


class Instance(Shape):
    instance_id: Id
    state: InstanceState


class Reservation(Shape):
    instances: tuple[Instance, ...]


# Replies as a whole. Items that may be strange one by one are left as they came.


class Anything(Shape):
    """A reply whose content does not matter."""


class Page(Shape):
    next_token: str = ""


class NetworkInterfaces(Page):
    network_interfaces: tuple[Mapping[str, object], ...]


class Subnets(Page):
    subnets: tuple[Mapping[str, object], ...]


class Instances(Page):
    reservations: tuple[Reservation, ...]


class InstanceTypes(Shape):
    instance_types: tuple[InstanceTypeInfo, ...]


class CreatedInterface(Shape):
    network_interface: Mapping[str, object]


class Attached(Shape):
    attachment_id: Id


class AssignedAddress(Shape):
    private_ip_address: Address


class AssignedAddresses(Shape):
    assigned_private_ip_addresses: tuple[AssignedAddress, ...]


AnyShape = TypeVar("AnyShape", bound=Shape)


def read(shape: type[AnyShape], value: object, of: str) -> AnyShape:
    """The part of a reply as this shape; `of`: whose it is, for people. Raises `UnreadableReply`."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        raise UnreadableReply(f"EC2's reply {_words(found)} for {of}") from None


def id_of(item: object, name: str) -> str:
    """The field `name` of an item that can't be read as a whole; empty when that can't be read, either."""
    value = item.get(name) if isinstance(item, Mapping) else None
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else ""


def tags_of(item: Mapping[str, object]) -> dict[str, str]:
    """Those tags of an interface that can be read, of one that can't be as a whole."""
    found = item.get("TagSet")
    tags = found if isinstance(found, Sequence) and not isinstance(found, str) else ()
    return {id_of(tag, "Key"): id_of(tag, "Value") for tag in tags}


def _words(error: ErrorDetails) -> str:
    field = next((part for part in reversed(error["loc"]) if isinstance(part, str)), "")
    if error["type"] == "missing":
        return f"lacks {field}"
    return f"has {field or 'a value'} {shown(error['input'])} ({error['msg']})"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
