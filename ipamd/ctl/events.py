"""`ipamctl events`: the daemon's events, as lines for people or one JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.command import DONE, USAGE, Failed, manual
from ipamd.ctl.connection import introspection
from ipamd.ctl.event import datum, line
from ipamd.ctl.following import Numbers, follow

LEVELS = ("info", "warning", "error")
_LAST = 30


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    parser.add_argument(
        "-n",
        "--last",
        type=int,
        default=_LAST,
        metavar="N",
        help="of those kept, oldest first (default: %(default)s)",
    )
    parser.add_argument("--level", choices=LEVELS, default="info", help="the least (default: %(default)s)")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the coming and going of pods until Ctrl-C; gzipped if named .gz",
    )
    manual(
        parser,
        "The daemon keeps the last lines of its log in memory, since its start. Each has a number, a time, a level, "
        "a stable name and fields. With --follow a restart of the daemon is waited for; events that the daemon had "
        "to leave out, because this end was too slow, are counted on standard error. "
        "--record writes a trace: the pods that are here, then each that comes or goes (docs/simulate-policy.md).",
        examples={
            "ipamctl events -n 100 --level warning": "what went wrong lately",
            "ipamctl events -f": "what happens now",
            "ipamctl events -f -n 0 -o json | jq -r .name": "one JSON object a line",
            "ipamctl events --record monday.jsonl.gz": "for ipamd simulate policy --trace",
        },
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.output not in ("table", "json"):
        raise Failed("events are shown as a table or as JSON", USAGE)
    if args.last < 0:
        raise Failed("-n: 0 or more", USAGE)
    if args.record is not None:
        from ipamd.ctl.record import record

        return record(args.socket, args.record)
    numbers = Numbers()
    try:
        for event in follow(args.socket, args.last, args.level) if args.follow else _kept(args.socket, args):
            # With a level, missing numbers are events that were filtered out.
            if args.level == "info" and (lost := numbers.lost_before(event.number)):
                print(f"ipamctl: {lost} events lost: they came faster than they were read", file=sys.stderr)
            text = json.dumps(datum(event)) if args.output == "json" else line(event)
            print(text, flush=args.follow)
    except KeyboardInterrupt:
        pass
    return DONE


def _kept(socket: Path, args: argparse.Namespace) -> Iterator[pb.Event]:
    with introspection(socket) as stub:
        yield from stub.WatchEvents(pb.WatchEventsRequest(last=args.last, level=args.level))
