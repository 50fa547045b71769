"""The messages of proto/ipamd/v1/ipam.proto that the plugin needs, in the protobuf wire format.

The protobuf runtime takes 30-40 ms to import; these flat messages take a few lines. Tests compare every message with
the generated classes, byte for byte. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class DecodeError(Exception):
    """The bytes are no message of the expected shape."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH) + _varint(len(value)) + value


def _bytes(field: int, value: bytes) -> bytes:
    """A string or bytes field; proto3 leaves the empty ones out."""
    return _message(field, value) if value else b""


def cni_call(container_id: bytes, ifname: bytes, netns: bytes, args: bytes, path: bytes, config: bytes) -> bytes:
    """CniCall. All but `config` have to be valid UTF-8, as the fields are of type string."""
    return (
        _bytes(1, container_id)
        + _bytes(2, ifname)
        + _bytes(3, netns)
        + _bytes(4, args)
        + _bytes(5, path)
        + _bytes(6, config)
    )


def request(call: bytes) -> bytes:
    """Any request but Allocate's: all of them hold the CniCall as field 1."""
    return _message(1, call)


def allocate_request(call: bytes, deadline_ms: int) -> bytes:
    return _message(1, call) + (_varint(3 << 3 | _VARINT) + _varint(deadline_ms) if deadline_ms else b"")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:  # a 64-bit number takes ten bytes at most
        if at >= len(data):
            raise DecodeError("a number is cut short")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise DecodeError("a number is too long")


def decode(data: bytes) -> dict[int, int | bytes]:
    """Fields by number, the last of each, those of a later contract too. Raises DecodeError."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag < 8:
            raise DecodeError("a field with the number 0")
        kind = tag & 7
        if kind == _VARINT:
            fields[tag >> 3], at = _read_varint(data, at)
            continue
        if kind == _LENGTH:
            length, at = _read_varint(data, at)
        elif kind == _FIXED64:
            length = 8
        elif kind == _FIXED32:
            length = 4
        else:
            raise DecodeError("unknown wire type %d" % kind)
        if at + length > len(data):
            raise DecodeError("a field is cut short")
        if kind == _LENGTH:
            fields[tag >> 3] = data[at : at + length]
        at += length
    return fields


# PolicyMode: whether to ask the daemon for network policies, and whether the ADD fails without them.
POLICY_NONE, POLICY_STANDARD, POLICY_STRICT = 0, 1, 2


class Plan:
    """AllocateReply: what to build. Addresses and MACs are in network order.

    Checked is what the kernel would not refuse by itself, or would take for something else.
    """

    __slots__ = (
        "address",
        "gateway",
        "host_ifname",
        "host_mac",
        "ifname",
        "link_group",
        "mac",
        "mtu",
        "policy",
        "prefix_length",
        "request_id",
        "result",
        "result_beside",
        "route_protocol",
        "table",
    )

    def __init__(self, reply: bytes) -> None:
        """Raises DecodeError for anything that could not be carried out."""
        fields = decode(reply)
        self.address = _address(fields, 1, "address")
        self.prefix_length = _number(fields, 2, "prefix_length", 1, 32)
        self.gateway = _address(fields, 3, "gateway")
        self.ifname = _interface(fields, 4, "ifname")
        self.host_ifname = _interface(fields, 5, "host_ifname")
        self.mac = _sized(fields, 6, "mac", 6, 6)
        self.host_mac = _sized(fields, 7, "host_mac", 6, 6)
        self.mtu = _number(fields, 8, "mtu", 1, 65535)
        self.link_group = _number(fields, 9, "link_group", 0, 0xFFFFFFFF)
        self.table = _number(fields, 10, "table", 1, 1 << 31)  # plus an interface's index: 32 bits
        self.route_protocol = _number(fields, 11, "route_protocol", 0, 255)
        self.result = _object(fields, 13, "result")
        self.request_id = _sized(fields, 14, "request_id", 0, 1 << 10)
        self.result_beside = _object(fields, 15, "result_beside") if fields.get(15) else b""
        self.policy = _number(fields, 16, "policy", 0, POLICY_STRICT)


def checked(reply: bytes) -> tuple[bytes, bytes]:
    """CheckReply: the address and the gateway, both in network order. Raises DecodeError."""
    fields = decode(reply)
    return _sized(fields, 1, "address", 4, 4), _sized(fields, 4, "gateway", 4, 4)


def _sized(fields: dict[int, int | bytes], field: int, name: str, least: int, most: int) -> bytes:
    value = fields.get(field, b"")
    if isinstance(value, int) or not least <= len(value) <= most:
        raise DecodeError("%s is not %d to %d bytes long" % (name, least, most))
    return value


def _address(fields: dict[int, int | bytes], field: int, name: str) -> bytes:
    value = _sized(fields, field, name, 4, 4)
    if not 0 < value[0] < 224 or value[0] == 127:
        raise DecodeError("%s is not a unicast address" % name)
    return value


def _interface(fields: dict[int, int | bytes], field: int, name: str) -> bytes:
    """The kernel ends a name at a NUL, and makes one up from a name with a percent sign."""
    value = _sized(fields, field, name, 1, 15)
    if value in (b".", b"..") or min(value) <= 0x20 or b"/" in value or b":" in value or b"%" in value:
        raise DecodeError("%s is not a name for an interface" % name)
    return value


def _object(fields: dict[int, int | bytes], field: int, name: str) -> bytes:
    value = _sized(fields, field, name, 2, 1 << 22)
    if value[0] != 0x7B or value[-1] != 0x7D:  # { and }; the daemon writes JSON with a library
        raise DecodeError("%s is not a JSON object" % name)
    return value


def _number(fields: dict[int, int | bytes], field: int, name: str, least: int, most: int) -> int:
    value = fields.get(field, 0)
    if not isinstance(value, int) or not least <= value <= most:
        raise DecodeError("%s is not a number from %d to %d" % (name, least, most))
    return value
