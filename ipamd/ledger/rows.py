"""Rows and records: each row is judged by what it says before anything is believed.

The file may have been edited, half restored, or damaged in a way that SQLite does not see. A row whose identity can't
be true (its key, its address) is left out and named. What only describes it (a time, a pod's name) is mended instead:
to forget a running pod for its label would do more harm than an empty label.
"""

from __future__ import annotations

import ipaddress
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ipamd.ledger import schema
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    Cooling,
    DropAttachment,
    DropCooling,
    DropDrained,
    DropIntent,
    DropLimit,
    DropOwn,
    Intent,
    LearntLimit,
    OwnAddresses,
    Owner,
    PutAttachment,
    PutCooling,
    PutDrained,
    PutIntent,
    PutLimit,
    PutOwn,
    Record,
)

Row = Mapping[str, Any]
T = TypeVar("T")

# EC2's names of the calls that change something.
ACTIONS = frozenset(
    (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "AssignPrivateIpAddresses",
        "UnassignPrivateIpAddresses",
        "DetachNetworkInterface",
    )
)
_LONGEST_TEXT = 4096  # PATH_MAX; nothing else is as long
_MOST_ADDRESSES = 1024  # one call can't take more, by far
_MOST_ENIS = 128


@dataclass(frozen=True, slots=True)
class Contents:
    """All records, as a start of the daemon reads them."""

    attachments: tuple[Attachment, ...]
    cooling: tuple[Cooling, ...]
    intents: tuple[Intent, ...]
    own: tuple[OwnAddresses, ...] = ()
    limit: LearntLimit | None = None
    drained: float | None = None

    def records(self) -> list[Record]:
        """The records that turn an empty ledger into this one."""
        return [
            *map(PutAttachment, self.attachments),
            *map(PutCooling, self.cooling),
            *map(PutIntent, self.intents),
            *map(PutOwn, self.own),
            *(() if self.limit is None else (PutLimit(self.limit),)),
            *(() if self.drained is None else (PutDrained(self.drained),)),
        ]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that can't be true: its table, what it says, and what is wrong with it."""

    table: str
    row: str
    why: str


@dataclass(frozen=True, slots=True)
class Boot:
    """Who wrote the records: boot and instance, empty where that is not known; the lead of the wall clock over the
    monotonic one at that time, None where it is not known."""

    id: str = ""
    instance: str = ""
    clock: float | None = None


@dataclass(slots=True)
class Reading:
    """`mended` counts rows that were kept with a corrected value."""

    contents: Contents
    boot: Boot
    rejected: list[Rejected] = field(default_factory=list)
    mended: int = 0


class _Implausible(Exception):
    """The message says what is wrong."""


def read(connection: sqlite3.Connection, now: float) -> Reading:
    """Every row of the tables that are there, whatever their columns. Texts that are not UTF-8 come with surrogates
    (`text_factory`). Raises `sqlite3.Error` or UnicodeError when the file can't be read on."""
    reader = _Reader(connection, now)
    attachments = _one_holder_each(reader, reader.table("attachments", reader.attachment))
    held = {attachment.address for attachment in attachments}
    cooling = {each.address: each for each in reader.table("cooling", reader.cooling)}
    limits, drained = reader.table("learnt_limit", reader.limit), reader.table("drained", reader.drained)
    contents = Contents(
        tuple(attachments),
        tuple(each for address, each in cooling.items() if address not in held),
        tuple({intent.token: intent for intent in reader.table("intents", reader.intent)}.values()),
        tuple({own.eni_id: own for own in reader.table("own", reader.own)}.values()),
        limits[-1] if limits else None,
        drained[-1] if drained else None,
    )
    reader.mended += len(cooling.keys() & held)
    boots = reader.table("boot", _boot)
    return Reading(contents, boots[0] if len(boots) == 1 else Boot(), reader.rejected, reader.mended)


def _one_holder_each(reader: _Reader, found: list[Attachment]) -> list[Attachment]:
    """Of two attachments with the same address or the same key, keep the later one."""
    keys: dict[AttachmentKey, Attachment] = {}
    holders: dict[str, Attachment] = {}
    for attachment in sorted(found, key=lambda each: each.since):
        for other in (keys.get(attachment.key), holders.get(attachment.address)):
            if other is not None and keys.pop(other.key, None) is not None:
                holders.pop(other.address, None)
                reader.reject("attachments", str(other), f"{attachment.key} has it since")
        keys[attachment.key] = holders[attachment.address] = attachment
    return list(keys.values())


class _Reader:
    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._connection = connection
        self._now = now
        self.rejected: list[Rejected] = []
        self.mended = 0

    def reject(self, table: str, row: str, why: str) -> None:
        self.rejected.append(Rejected(table, row[:200], why))

    def table(self, name: str, judge: Callable[[Row], T]) -> list[T]:
        found: list[T] = []
        columns = schema.columns(self._connection, name)
        if not columns:
            self.reject(name, "", "there is no such table")
            return found
        for values in self._connection.execute(f"SELECT * FROM {name}"):
            row = dict(zip(columns, values, strict=False))
            try:
                found.append(judge(row))
            except _Implausible as why:
                self.reject(name, repr(row), str(why))
        return found

    def attachment(self, row: Row) -> Attachment:
        network, container_id, ifname = (_text(row, name) for name in ("network", "container_id", "ifname"))
        if not container_id:
            raise _Implausible("container_id is empty")
        owner = (self._label(row, name) for name in ("netns", "pod_name", "pod_namespace", "pod_uid"))
        key = AttachmentKey(network, container_id, ifname)
        return Attachment(key, _address(row), self._label(row, "eni_id"), self._time(row, "since"), Owner(*owner))

    def cooling(self, row: Row) -> Cooling:
        return Cooling(_address(row), self._time(row, "released_at"))

    def intent(self, row: Row) -> Intent:
        action = _text(row, "action")
        if action not in ACTIONS:
            raise _Implausible(f"action {action!r} is none")
        token, eni_id, subnet_id = (_text(row, name) for name in ("token", "eni_id", "subnet_id"))
        if not token or not (subnet_id if action == "CreateNetworkInterface" else eni_id):
            raise _Implausible("it does not say what it is about")
        index = row.get("device_index")
        if index is not None:
            index = _number(row, "device_index", _MOST_ENIS)
        # Version 1 had no such column.
        addresses = tuple(map(_canonical, _text(row, "addresses").split())) if "addresses" in row else ()
        count = _number(row, "count", _MOST_ADDRESSES)
        return Intent(token, action, self._time(row, "at"), eni_id, subnet_id, count, index, addresses)

    def own(self, row: Row) -> OwnAddresses:
        eni_id = _text(row, "eni_id")
        if not eni_id:
            raise _Implausible("eni_id is empty")
        others = self._addresses(row, "others")
        return OwnAddresses(eni_id, tuple(ip for ip in self._addresses(row, "addresses") if ip not in others), others)

    def limit(self, row: Row) -> LearntLimit:
        max_enis = _number(row, "max_enis", _MOST_ENIS)
        if not max_enis:
            raise _Implausible("max_enis is 0")
        return LearntLimit(max_enis, self._time(row, "at"))

    def drained(self, row: Row) -> float:
        return self._time(row, "at")

    def _label(self, row: Row, column: str) -> str:
        try:
            return _text(row, column)
        except _Implausible:
            self.mended += 1
            return ""

    def _time(self, row: Row, column: str) -> float:
        value = row.get(column)
        if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value < _NEVER:
            return float(value)
        self.mended += 1
        return self._now

    def _addresses(self, row: Row, column: str) -> tuple[str, ...]:
        """Those that are some: what is not on the list counts as somebody else's, which is the safe mistake."""
        found = []
        for text in dict.fromkeys(self._label(row, column).split()):
            try:
                found.append(_canonical(text))
            except _Implausible:
                self.mended += 1
        return tuple(found)


_NEVER = 1e11  # seconds since the epoch: the year 5138, which no clock shows


def _boot(row: Row) -> Boot:
    boot_id, clock = _text(row, "id"), row.get("clock")
    instance = _text(row, "instance") if "instance" in row else ""
    if not boot_id:
        raise _Implausible("id is empty")
    known = isinstance(clock, (int, float)) and math.isfinite(clock) and abs(clock) < _NEVER
    return Boot(boot_id, instance, float(clock) if known and clock is not None else None)


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise _Implausible(f"{column} is no text")
    if len(value) > _LONGEST_TEXT or "\0" in value or (not value.isascii() and _undecodable(value)):
        raise _Implausible(f"{column} is no text that ipamd writes")
    return value


def _undecodable(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _number(row: Row, column: str, most: int) -> int:
    value = row.get(column)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise _Implausible(f"{column} is no number from 0 to {most}")
    return value


def _address(row: Row) -> str:
    return _canonical(_text(row, "address"))


def _canonical(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or str(address) != text:
        raise _Implausible(f"{text!r} is no address")
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
        raise _Implausible(f"{text} is no address that a pod can have")
    return text


_PUT_ATTACHMENT = """INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (network, container_id, ifname) DO UPDATE SET
    address = excluded.address, eni_id = excluded.eni_id, since = excluded.since, netns = excluded.netns,
    pod_name = excluded.pod_name, pod_namespace = excluded.pod_namespace, pod_uid = excluded.pod_uid"""
_DROP_ATTACHMENT = "DELETE FROM attachments WHERE network = ? AND container_id = ? AND ifname = ?"
_PUT_COOLING = "INSERT OR REPLACE INTO cooling VALUES (?, ?)"
_DROP_COOLING = "DELETE FROM cooling WHERE address = ?"
_PUT_INTENT = "INSERT OR REPLACE INTO intents VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_INTENT = "DELETE FROM intents WHERE token = ?"
_PUT_OWN = "INSERT OR REPLACE INTO own VALUES (?, ?, ?)"
_DROP_OWN = "DELETE FROM own WHERE eni_id = ?"
_PUT_LIMIT = "INSERT OR REPLACE INTO learnt_limit VALUES (1, ?, ?)"
_DROP_LIMIT = "DELETE FROM learnt_limit"
_PUT_DRAINED = "INSERT OR REPLACE INTO drained VALUES (1, ?)"
_DROP_DRAINED = "DELETE FROM drained"

Statement = tuple[str, tuple[Any, ...]]


def replace_boot(boot: Boot) -> Iterable[Statement]:
    yield "DELETE FROM boot", ()
    yield "INSERT INTO boot VALUES (?, ?, ?)", (boot.id, boot.instance, boot.clock)


def forget_boot() -> Iterable[Statement]:
    """Drop the records that do not survive a reboot."""
    for table in schema.OF_A_BOOT:
        yield f"DELETE FROM {table}", ()


def shift_times(seconds: float) -> Iterable[Statement]:
    """The records of this boot, with times moved to the current clock."""
    yield "UPDATE attachments SET since = since + ?", (seconds,)
    yield "UPDATE cooling SET released_at = released_at + ?", (seconds,)
    yield "UPDATE learnt_limit SET at = at + ?", (seconds,)


def statement(record: Record) -> Statement:
    match record:
        case PutAttachment(Attachment(key, address, eni_id, since, owner)):
            place_of = (key.network, key.container_id, key.ifname)
            who = (owner.netns, owner.pod_name, owner.pod_namespace, owner.pod_uid)
            return _PUT_ATTACHMENT, (*place_of, address, eni_id, since, *who)
        case DropAttachment(key):
            return _DROP_ATTACHMENT, (key.network, key.container_id, key.ifname)
        case PutCooling(Cooling(address, released_at)):
            return _PUT_COOLING, (address, released_at)
        case DropCooling(address):
            return _DROP_COOLING, (address,)
        case PutIntent(Intent(token, action, at, eni_id, subnet_id, count, device_index, addresses)):
            return _PUT_INTENT, (token, action, at, eni_id, subnet_id, count, device_index, " ".join(addresses))
        case DropIntent(token):
            return _DROP_INTENT, (token,)
        case PutOwn(OwnAddresses(eni_id, addresses, foreign)):
            return _PUT_OWN, (eni_id, " ".join(addresses), " ".join(foreign))
        case DropOwn(eni_id):
            return _DROP_OWN, (eni_id,)
        case PutLimit(LearntLimit(max_enis, at)):
            return _PUT_LIMIT, (max_enis, at)
        case DropLimit():
            return _DROP_LIMIT, ()
        case PutDrained(at):
            return _PUT_DRAINED, (at,)
        case DropDrained():
            return _DROP_DRAINED, ()
