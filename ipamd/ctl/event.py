"""One of the daemon's events, as a line for people and as data."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from ipamd.ctl.output import printable
from ipamd.ctl.terminal import styled

_STYLES = {"warning": "warn", "error": "bad"}
_FIRST = ("pod", "container", "key", "ip", "eni", "action", "reason")


def datum(event: pb.Event) -> dict[str, Any]:
    return {
        "number": event.number,
        "at": times.iso(event.at, "milliseconds"),
        "level": event.level,
        "name": event.name,
        "fields": fields(event),
    }


def fields(event: pb.Event) -> dict[str, Any]:
    """A Struct has neither integers nor an order: whole numbers become integers again; the subject comes first."""
    found: dict[str, Any] = MessageToDict(event.fields)
    names = sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    values = ((name, found[name]) for name in names)
    return {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in values}


def line(event: pb.Event) -> str:
    """2026-01-31T12:00:00.125Z warning attachment.refused        pod=shop/web-0 reason=TIMEOUT"""
    level = styled(f"{event.level:7}", _STYLES.get(event.level, "dim"))
    at, name = times.iso(event.at, "milliseconds"), styled(f"{printable(event.name):24}", "bold")
    return f"{at} {level} {name} {words(event)}".rstrip()


def words(event: pb.Event) -> str:
    """Its fields: pod=shop/web-0 reason=TIMEOUT"""
    return printable(" ".join(f"{name}={_word(value)}" for name, value in fields(event).items()))


def _word(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return value if value and not any(c in value for c in " \"'=") else json.dumps(value, ensure_ascii=False)
