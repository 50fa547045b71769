"""HPACK's Huffman code (RFC 7541, Appendix B): imported only if a server compresses its header strings.

The code is canonical: among codes of one length the values are consecutive, in the order of the symbols, and the
first one of a length follows from the lengths before. So the symbols by length are the whole table.
"""

# Symbols by code length; the end-of-string symbol, last of the 30-bit codes, must not occur and is left out.
_SYMBOLS = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf"
    b"\xc5\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
    b"\x7f\xdc\xf9",
    30: b"\n\r\x16",
}


def _table() -> dict[tuple[int, int], int]:
    table = {}
    code = length = 0
    for following, symbols in _SYMBOLS.items():
        code <<= following - length
        length = following
        for symbol in symbols:
            table[length, code] = symbol
            code += 1
    return table


_TABLE = _table()


def decode(data: bytes) -> bytes:
    """The plain string. Raises ValueError for what no encoder writes (RFC 7541, section 5.2)."""
    out = bytearray()
    code = length = 0
    for byte in data:
        for shift in (7, 6, 5, 4, 3, 2, 1, 0):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = _TABLE.get((length, code))
            if symbol is not None:
                out.append(symbol)
                code = length = 0
            elif length == 30:
                raise ValueError("no such Huffman code")
    if length > 7 or code != (1 << length) - 1:  # padded with the first bits of the end-of-string symbol: ones
        raise ValueError("wrong Huffman padding")
    return bytes(out)
