"""The resolver of the simulated internet, message by message (RFC 1035, section 4)."""

from __future__ import annotations

import struct

import pytest

from ipamd.sim.internet import Resolver

RESOLVER = Resolver({"google.com"}, "203.0.113.80")
A, PTR, AAAA = 1, 12, 28
NAME_ERROR = 3


def question(name: str, kind: int = A, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 0xBEEF, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def answered(name: str, kind: int = A) -> tuple[int, int, bytes]:
    """Response code, number of answers, the last four bytes."""
    asked = question(name, kind)
    reply = RESOLVER.answer(asked)
    assert reply is not None
    number, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert (number, questions) == (0xBEEF, 1)
    assert flags & 0x8180 == 0x8180  # a reply, recursion desired and available
    assert reply[12 : len(asked)] == asked[12:]
    return flags & 0xF, answers, reply[-4:]


@pytest.mark.parametrize("name", ["google.com", "GooGle.COM"])
def test_a_known_name_has_the_web_servers_address(name: str) -> None:
    assert answered(name) == (0, 1, bytes([203, 0, 113, 80]))


def test_a_known_name_has_no_ipv6_address() -> None:
    assert answered("google.com", AAAA)[:2] == (0, 0)


def test_the_resolver_knows_its_own_address() -> None:
    asked = question("8.8.8.8.in-addr.arpa", PTR)
    reply = RESOLVER.answer(asked)
    assert reply is not None
    assert struct.unpack_from("!HHHHHH", reply)[3] == 1
    assert reply[len(asked) :] == struct.pack("!HHHIH", 0xC00C, PTR, 1, 30, 12) + b"\x03dns\x06google\0"
    assert answered("8.8.8.8.in-addr.arpa", A)[:2] == (0, 0)


@pytest.mark.parametrize("name", ["www.google.com", "nobody.example", "com"])
def test_another_name_does_not_exist(name: str) -> None:
    assert answered(name)[:2] == (NAME_ERROR, 0)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 11,
        question("google.com")[:-3],
        question("google.com", flags=0x8100),  # a reply
        struct.pack("!HHHHHH", 1, 0, 2, 0, 0, 0) + question("google.com")[12:],
        struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x3fshort",
        struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x01\xff\0\0\1\0\1",
    ],
)
def test_what_is_no_question_gets_no_answer(message: bytes) -> None:
    assert RESOLVER.answer(message) is None
