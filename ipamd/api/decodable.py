"""Checks that a runtime can decode the parts of a result that it sent itself.

A result holds the result of the previous plugins, and DNS settings. Runtimes are written in Go, which decodes a
result into fixed types (containernetworking/cni, pkg/types/100/types.go and pkg/types/types.go, with keys of any
case): a number where a text belongs fails the whole ADD after it was done. So this is checked before an address is
taken.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Bytes of a previous result: a message has at most 4 MiB and holds it twice.
LARGEST = 512 << 10

# Depth of nested objects and lists: Go takes 10,000, this daemon's encoder some hundreds.
DEEPEST = 64
_TOO_DEEP = f"objects and lists in one another more than {DEEPEST} times"

_compact = json.JSONEncoder(separators=(",", ":")).encode


class _Leaf(NamedTuple):
    fits: Callable[[Any], bool]
    meaning: str


def _is_cidr(value: Any) -> bool:
    try:
        ipaddress.ip_interface(value)
    except ValueError:
        return False
    return isinstance(value, str) and "/" in value and "%" not in value and value.partition("/")[2].isdecimal()


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and "%" not in value and (not value or bool(ipaddress.ip_address(value)))
    except ValueError:
        return False


_TEXT = _Leaf(lambda value: isinstance(value, str), "a text")
_NUMBER = _Leaf(lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63, "a whole number of 64 bits")
_CIDR = _Leaf(_is_cidr, "an address with its prefix length")
_ADDRESS = _Leaf(_is_address, "an address")

DNS = {"nameservers": [_TEXT], "domain": _TEXT, "search": [_TEXT], "options": [_TEXT]}
RESULT = {
    "interfaces": [
        {"name": _TEXT, "mac": _TEXT, "mtu": _NUMBER, "sandbox": _TEXT, "socketPath": _TEXT, "pciID": _TEXT}
    ],
    "ips": [{"version": _TEXT, "interface": _NUMBER, "address": _CIDR, "gateway": _ADDRESS}],
    "routes": [
        {
            "dst": _CIDR,
            "gw": _ADDRESS,
            "mtu": _NUMBER,
            "advmss": _NUMBER,
            "priority": _NUMBER,
            "table": _NUMBER,
            "scope": _NUMBER,
        }
    ],
    "dns": DNS,
}


def fault(value: Any, shape: Any, where: str) -> str:
    """The first part that can't be decoded, in words that begin with `where`; empty if all can. `shape` is `DNS` or
    `RESULT`. JSON's null is accepted for everything except an object in a list."""
    if value is None:
        return ""
    if isinstance(shape, _Leaf):
        return "" if shape.fits(value) else f"{where} is not {shape.meaning}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is not a list"
        if isinstance(shape[0], dict) and None in value:
            return f"{where} is not a list of objects"
        found = (fault(item, shape[0], f"{where}[{number}]") for number, item in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return f"{where} is not an object"
    return next(filter(None, _faults(value, shape, where)), "")


def _faults(value: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> Any:
    for name, wanted in shape.items():
        for key in value:
            if key.lower() == name.lower():
                yield fault(value[key], wanted, f"{where}.{name}")


def is_too_large(value: Any) -> bool:
    return len(_compact(value)) > LARGEST


def parse(raw: bytes) -> Any:
    """A JSON document as Go has it: UTF-8, with numbers that fit. Raises ValueError."""
    try:
        document = json.loads(raw.decode(), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and _is_deep(document):
        raise ValueError(_TOO_DEEP)
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _is_deep(document: Any) -> bool:
    level = [document]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
