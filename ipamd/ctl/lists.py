"""`ipamctl enis`, `addresses`, `pods`, `waiting`, `config`: one record for each thing, as a table or as data.

The keys of the records are a promise, and the names of the tables' columns: more may come, none is renamed or removed
(docs/ipamctl.md has them all, and a test compares).
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl import times
from ipamd.ctl.command import USAGE, Failed, manual
from ipamd.ctl.connection import TIMEOUT, introspection
from ipamd.ctl.output import Answer, show

Record = dict[str, Any]

# Characters of a container id that runtimes' own tools show.
SHORT_ID = 12


@dataclass(frozen=True, slots=True)
class Listing:
    """`keys` are those of each record, `shown` the columns of the table if no others are asked for, `name` what
    `-o name` prints of one, and `named` says what that is."""

    fetch: Callable[[IntrospectionStub], list[Record]]
    keys: tuple[str, ...]
    shown: tuple[str, ...]
    name: Callable[[Record], str]
    named: str
    order: str

    def data(self, stub: IntrospectionStub) -> list[Record]:
        """The data of `-o json`."""
        return [_plain(record) for record in self.fetch(stub)]


def _enis(stub: IntrospectionStub) -> list[Record]:
    reply: pb.ListEnisReply = stub.ListEnis(pb.ListEnisRequest(), timeout=TIMEOUT)
    enis = sorted(reply.enis, key=lambda eni: (eni.network_card, eni.device_index, eni.id))
    return [{name: getattr(eni, name) for name in ENIS.keys} | {"prefixes": list(eni.prefixes)} for eni in enis]


def _addresses(stub: IntrospectionStub) -> list[Record]:
    reply: pb.ListAddressesReply = stub.ListAddresses(pb.ListAddressesRequest(), timeout=TIMEOUT)
    addresses = sorted(reply.addresses, key=lambda address: ipaddress.ip_address(address.ip).packed)
    return [{name: getattr(address, name) for name in ADDRESSES.keys} for address in addresses]


def _pods(stub: IntrospectionStub) -> list[Record]:
    reply: pb.ListAttachmentsReply = stub.ListAttachments(pb.ListAttachmentsRequest(), timeout=TIMEOUT)
    attachments = sorted(reply.attachments, key=lambda a: (a.pod_namespace, a.pod_name, a.container_id, a.ifname))
    return [
        {
            "container_id": a.container_id,
            "ifname": a.ifname,
            "network": a.network,
            "ip": a.ip,
            "eni": a.eni,
            "pod": a.pod_name,
            "namespace": a.pod_namespace,
            "uid": a.pod_uid,
            "since": a.since,
            "host_ifname": a.host_ifname,
            "netns": a.netns,
            "trouble": a.trouble,
        }
        for a in attachments
    ]


def _waiting(stub: IntrospectionStub) -> list[Record]:
    reply: pb.ListWaitingReply = stub.ListWaiting(pb.ListWaitingRequest(), timeout=TIMEOUT)
    return [
        {
            "container_id": w.container_id,
            "ifname": w.ifname,
            "network": w.network,
            "pod": w.pod_name,
            "namespace": w.pod_namespace,
            "since": w.since,
            "deadline": w.deadline,
            "request_id": w.request_id,
            "waits_for": w.waits_for,
        }
        for w in sorted(reply.waiting, key=lambda w: times.seconds(w.since))
    ]


def _config(stub: IntrospectionStub) -> list[Record]:
    reply: pb.GetSettingsReply = stub.GetSettings(pb.GetSettingsRequest(), timeout=TIMEOUT)
    return [{"key": s.key, "value": json.loads(s.value), "origin": s.origin, "live": s.live} for s in reply.settings]


def _owner(record: Record) -> str:
    return f"{record['namespace']}/{record['pod']}" if record["pod"] else str(record["container_id"])


ENIS = Listing(
    _enis,
    (
        "id", "device_index", "primary", "state", "link", "primary_ip", "subnet_id", "mac",
        "free", "assigned", "cooling", "releasing", "foreign", "pending", "capacity", "network_card", "prefixes",
        "room",
    ),
    (
        "id", "primary", "state", "link", "primary_ip", "free", "assigned", "cooling", "foreign", "pending",
        "capacity", "prefixes", "room",
    ),
    itemgetter("id"),
    "id",
    "by network card and device index, the primary one first",
)  # fmt: skip
ADDRESSES = Listing(
    _addresses,
    ("ip", "eni", "state", "since", "cause"),
    ("ip", "state", "since", "eni"),
    itemgetter("ip"),
    "address",
    "by number",
)
PODS = Listing(
    _pods,
    (
        "container_id", "ifname", "network", "ip", "eni", "pod", "namespace", "uid", "since", "host_ifname", "netns",
        "trouble",
    ),
    ("namespace", "pod", "container_id", "ifname", "ip", "eni", "host_ifname", "since"),
    _owner,
    "pod, or container id where there is no pod,",
    "by namespace and name",
)  # fmt: skip
WAITING = Listing(
    _waiting,
    ("container_id", "ifname", "network", "pod", "namespace", "since", "deadline", "request_id", "waits_for"),
    ("namespace", "pod", "container_id", "ifname", "waits_for", "since", "deadline", "request_id"),
    _owner,
    "pod, or container id where there is no pod,",
    "the one that has waited longest first",
)
CONFIG = Listing(
    _config,
    ("key", "value", "origin", "live"),
    ("key", "value", "origin", "live"),
    itemgetter("key"),
    "key",
    "as in docs/config.md",
)
LISTINGS = {"enis": ENIS, "addresses": ADDRESSES, "pods": PODS, "waiting": WAITING, "config": CONFIG}


# Keys that are columns only if one of the records has a value there.
_REASONS = ("cause", "trouble")


def set_up(parser: argparse.ArgumentParser) -> None:
    name = parser.prog.split()[-1]
    listing = LISTINGS[name]
    parser.add_argument(
        "--columns", metavar="A,B,..", help=f"of the table, in this order (default: {', '.join(listing.shown)})"
    )
    examples = {
        f"ipamctl {name} --columns {','.join(listing.keys[:3])}": "these columns",
        f"ipamctl {name} -o json": "all keys; they stay, others may come",
        f"ipamctl {name} -o name": f"each {listing.named} on a line, for xargs",
    }
    columns = ", ".join(listing.keys)
    manual(parser, f"Sorted {listing.order}. A table shows how long ago a moment was.", examples=examples)
    parser.epilog = f"columns: {columns}\n\n{parser.epilog}"
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    listing = LISTINGS[args.command]
    columns = _columns(listing, args.columns)
    with introspection(args.socket) as stub:
        records = listing.fetch(stub)
    if args.columns is None:
        # A fault of one of them must not be overlooked.
        columns += tuple(key for key in _REASONS if any(record.get(key) for record in records))
    show(answer(listing, records, columns, time.time()), args.output)
    return 0


def answer(listing: Listing, records: list[Record], columns: tuple[str, ...], now: float) -> Answer:
    return Answer(
        [_plain(record) for record in records],
        columns,
        tuple(tuple(_cell(column, record[column], now) for column in columns) for record in records),
        names=tuple(dict.fromkeys(filter(None, map(listing.name, records)))),
    )


def _columns(listing: Listing, wanted: str | None) -> tuple[str, ...]:
    if wanted is None:
        return listing.shown
    columns = tuple(filter(None, (word.strip() for word in wanted.lower().split(","))))
    unknown = [column for column in columns if column not in listing.keys]
    if unknown or not columns:
        what = f"no column {', '.join(unknown)}" if unknown else "no column is named"
        raise Failed(f"--columns: {what}; there are {', '.join(listing.keys)}", USAGE)
    return columns


def _plain(record: Record) -> Record:
    return {key: times.iso(value) if isinstance(value, Timestamp) else value for key, value in record.items()}


def _cell(column: str, value: Any, now: float) -> str:
    if isinstance(value, Timestamp):
        return times.age(value, now)
    if column == "value":
        return json.dumps(value)
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column == "container_id":
        return str(value)[:SHORT_ID]
    return str(value) or "-"
