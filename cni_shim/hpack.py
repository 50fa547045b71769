"""HPACK header blocks (RFC 7541), as far as one gRPC call needs them.

Requests are written as literals that enter no table. The plugin tells the server that its table has size 0, so no
block of the answer may refer to an earlier one: the decoder keeps no state, and of the static table it needs only
`:status`, for the other names that matter are not in it.
"""

_STATIC_ENTRIES = 61  # RFC 7541, Appendix A
_STATUS_ENTRIES = {8: b"200", 9: b"204", 10: b"206", 11: b"304", 12: b"400", 13: b"404", 14: b"500"}
_LARGEST = 1 << 24  # of any length or index


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that enters no table (section 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def literal_indexed(index: int, value: bytes) -> bytes:
    """The same with its name taken from the static table."""
    return _integer(index, 4) + _string(value)


def _string(value: bytes) -> bytes:
    return _integer(len(value), 7) + value


def _integer(number: int, bits: int) -> bytes:
    limit = (1 << bits) - 1
    if number < limit:
        return bytes((number,))
    out = bytearray((limit,))
    number -= limit
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode(block: bytes) -> dict[bytes, bytes]:
    """The fields of one header block, without those whose names come from the static table (but with `:status`).
    The values of a name that occurs several times are joined by commas, as gRPC's protocol has it.

    Raises ValueError.
    """
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # indexed field, section 6.1
            index, at = _read_integer(block, at, 7)
            _check_static(index)
            if index in _STATUS_ENTRIES:
                _add(fields, b":status", _STATUS_ENTRIES[index])
            continue
        if first & 0xE0 == 0x20:  # table size update, section 6.3
            size, at = _read_integer(block, at, 5)
            if size:
                raise ValueError("a table larger than allowed")
            continue
        index, at = _read_integer(block, at, 6 if first & 0x40 else 4)
        if index:
            _check_static(index)
            name = b":status" if index in _STATUS_ENTRIES else b""
        else:
            name, at = _read_string(block, at)
        value, at = _read_string(block, at)
        if name:
            _add(fields, name, value)
    return fields


def _add(fields: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    if name not in fields:
        fields[name] = value
    elif name == b":status":
        raise ValueError("a header block with more than one status")
    else:
        fields[name] += b"," + value


def _check_static(index: int) -> None:
    if not 0 < index <= _STATIC_ENTRIES:
        raise ValueError("no header field number %d" % index)


def _read_integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    if at >= len(block):
        raise ValueError("a header block is cut short")
    limit = (1 << bits) - 1
    number = block[at] & limit
    at += 1
    if number < limit:
        return number, at
    shift = 0
    while number < _LARGEST and at < len(block):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 28:
            break
    raise ValueError("a number in a header block is too large or cut short")


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = at < len(block) and block[at] & 0x80
    length, at = _read_integer(block, at, 7)
    if at + length > len(block):
        raise ValueError("a header string is cut short")
    value = block[at : at + length]
    if coded:
        from cni_shim.huffman import decode as plain  # rarely needed: gRPC's own server never compresses here

        value = plain(value)
    return value, at + length
