"""`ipamctl status`: the node on one screen. What needs somebody's attention comes first, in words.

The keys of its data are a promise: more may come, none is renamed or removed (docs/ipamctl.md).
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from ipamd.ctl.attention import concerns
from ipamd.ctl.command import ATTENTION, DONE, NOT_DONE, Failed, manual
from ipamd.ctl.connection import TIMEOUT, Unavailable, introspection
from ipamd.ctl.event import datum as event_datum
from ipamd.ctl.event import words
from ipamd.ctl.output import Answer, aligned, printable, show
from ipamd.ctl.slots import enis_and_pods
from ipamd.ctl.terminal import styled, width
from ipamd.neighbours.kubelet import Kubelet, find, fitting

COUNTS = ("free", "assigned", "cooling", "releasing", "pending", "waiting", "total")
TARGETS = (
    "warm_ips", "minimum_ips", "max_pods", "warm_enis", "max_enis", "slack", "release_delay", "cooldown",
    "allocate_wait",
)  # fmt: skip
SLOTS = ("enis", "foreign", "eni_limit", "pod_limit")
BUCKET = ("action", "rate", "tokens", "waiting", "throttled")
WAITS = ("waiting", "count", "delayed", "total", "longest")

# By the values of Waiting.waits_for.
WAITS_FOR = {
    "ec2": "an address of EC2",
    "cooldown": "the end of a cooldown",
    "release": "the end of a pod",
    "start": "the daemon's start",
}

# The seconds of --wait without a time, and those between two looks.
_WAIT, _PAUSE = 300.0, 0.5

Reading = tuple[pb.Node, Sequence[pb.Eni], Sequence[pb.Waiting]]

# Warnings and errors that one screen has room for; the daemon knows more (ipamctl events --level warning).
_TROUBLES = 5
# Characters that an event's field has at least to be a sentence, not a name.
_SENTENCE = 40


def set_up(parser: argparse.ArgumentParser) -> None:
    manual(
        parser,
        "First what needs attention: pods that wait, calls that EC2 refuses, a network that others changed, subnets "
        "that are full. Then the pool, its targets, the ENIs, the calls to EC2 that had to wait, the last warnings.",
        examples={
            "ipamctl status": "one screen",
            "ipamctl status -o json": "the same for programs; the keys stay",
            "ipamctl status --wait 2m": "in a boot script: go on once the node can serve pods",
            "watch ipamctl status": "again and again; ipamctl top shows more",
        },
        codes={
            DONE: "nothing needs attention",
            NOT_DONE: "the daemon is not there or refused; with --wait: the node is not ready in time",
            ATTENTION: "something needs attention: the first lines say what",
        },
    )
    parser.add_argument(
        "--wait",
        nargs="?",
        type=times.duration,
        const=_WAIT,
        metavar="TIME",
        help="wait until the node can serve pods, at most so long: 90s, 5m (the default), 1h",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    node, enis, waiting = _read(args.socket) if args.wait is None else _read_once_ready(args.socket, args.wait)
    now = time.time()
    kubelet = find(Path("/"))
    lines = screen(node, enis, waiting, now, width(), kubelet) if args.output == "table" else []
    found = data(node, waiting, now, kubelet)
    show(Answer(found, lines=tuple(lines)), args.output)
    return ATTENTION if found["attention"] else DONE


def _read(socket: Path) -> Reading:
    """Raises `Failed`."""
    with introspection(socket) as stub:
        node = stub.GetNode(pb.GetNodeRequest(), timeout=TIMEOUT)
        # A daemon that has not learnt who its node is has not learnt its ENIs either.
        enis = stub.ListEnis(pb.ListEnisRequest(), timeout=TIMEOUT).enis if node.instance_id else ()
        return node, enis, stub.ListWaiting(pb.ListWaitingRequest(), timeout=TIMEOUT).waiting


def _read_once_ready(socket: Path, at_most: float) -> Reading:
    """`at_most` is in seconds. Raises `Failed` when the node is not ready by then."""
    until = time.monotonic() + at_most
    while True:
        try:
            reading = _read(socket)
        except Unavailable as absent:
            obstacle = str(absent)
        else:
            if reading[0].ready:
                return reading
            obstacle = reading[0].not_ready_reason
        if time.monotonic() >= until:
            raise Failed(f"not ready after {times.span(at_most)}: {obstacle}")
        time.sleep(_PAUSE)


def data(node: pb.Node, waiting: Sequence[pb.Waiting], now: float, kubelet: Kubelet | None = None) -> dict[str, Any]:
    """`kubelet`: that of this node, None if it is not visible."""
    return {
        "attention": concerns(node, waiting, now, kubelet),
        "instance_id": node.instance_id,
        "instance_type": node.instance_type,
        "availability_zone": node.availability_zone,
        "version": node.version,
        "started": times.iso(node.started),
        "ready": node.ready,
        "not_ready_reason": node.not_ready_reason or None,
        "would_refuse": node.would_refuse or None,
        "start": _start(node.start) if node.HasField("start") else None,
        "drained": times.iso(node.drained) if node.HasField("drained") else None,
        **{name: getattr(node.counts, name) for name in COUNTS},
        "targets": {name: getattr(node.targets, name) for name in TARGETS},
        "kubelet": None if kubelet is None else _kubelet(node, kubelet),
        "limits": {"enis": node.max_enis, "addresses_per_eni": node.addresses_per_eni},
        "slots": {name: getattr(node.slots, name) for name in SLOTS},
        "subnets": [
            {"id": s.id, "available": s.available, "seen": times.iso(s.seen)}
            if s.HasField("seen")
            else {"id": s.id, "available": None, "seen": None}
            for s in node.subnets
        ],
        "backoffs": [
            {"scope": b.scope, "reason": b.reason, "message": b.message, "until": times.iso(b.until)}
            for b in node.backoffs
        ],
        "denied": [{"action": d.action, "consequence": d.consequence} for d in node.denied],
        "attachment_troubles": [
            {
                "kind": t.kind,
                "namespace": t.attachment.pod_namespace,
                "pod": t.attachment.pod_name,
                "container_id": t.attachment.container_id,
                "ip": t.attachment.ip,
                "eni": t.attachment.eni,
                "cause": t.cause,
                "since": times.iso(t.since),
            }
            for t in node.attachment_troubles
        ],
        "withheld": node.withheld,
        "conditions": [{"name": c.name, "text": c.text, "since": times.iso(c.since)} for c in node.conditions],
        "budget": [
            {
                **{name: getattr(bucket, name) for name in BUCKET},
                "waits": {w.priority: {name: getattr(w, name) for name in WAITS} for w in bucket.waits},
            }
            for bucket in node.budget
        ],
        "host": _host(node.host),
        "troubles": [event_datum(event) for event in node.troubles],
    }


def _kubelet(node: pb.Node, kubelet: Kubelet) -> dict[str, Any]:
    fits = fitting(node.targets.max_pods) if node.targets.max_pods else None
    return {"max_pods": kubelet.max_pods, "origin": kubelet.origin, "fits": fits}


def _start(start: pb.Start) -> dict[str, Any]:
    return {
        "phase": start.phase,
        "text": start.text,
        "since": times.iso(start.since),
        "tries": start.tries,
        "last_error": start.last_error or None,
    }


def _host(host: pb.HostNetwork) -> dict[str, Any]:
    return {
        "in_order": not (host.error or host.disputes),
        "error": host.error or None,
        "repairs": host.repairs,
        "last_repair": times.iso(host.last_repair) if host.HasField("last_repair") else None,
        "last_what": host.last_what or None,
        "last_by": host.last_by or None,
        "disputes": [
            {
                "what": dispute.what,
                "by": dispute.by,
                "since": times.iso(dispute.since),
                "last": times.iso(dispute.last),
                "repairs": dispute.repairs,
                "delay": dispute.delay,
            }
            for dispute in host.disputes
        ],
    }


def screen(
    node: pb.Node,
    enis: Sequence[pb.Eni],
    waiting: Sequence[pb.Waiting],
    now: float,
    width: int,
    kubelet: Kubelet | None = None,
) -> list[str]:
    up = times.span(now - times.seconds(node.started))
    counts, targets = node.counts, node.targets
    state = "drained" if node.HasField("drained") else "ready" if node.ready else "not ready"
    if node.HasField("start"):
        state = "starting"
    place = f"{node.instance_id}  {node.instance_type}  {node.availability_zone}  " if node.instance_id else ""
    head = f"{place}ipamd {node.version}, up {up}"
    lines = [f"{styled(head, 'bold')}  {styled(state, 'good' if state == 'ready' else 'bad')}", ""]
    found = concerns(node, waiting, now, kubelet)
    for concern in found:
        first, *rest = textwrap.wrap(printable(concern), width - 2, break_on_hyphens=False)
        lines += [styled(f"! {first}", "bad"), *(styled(f"  {line}", "bad") for line in rest)]
    if not found:
        lines.append(styled("Nothing needs attention.", "good"))
    if not node.instance_id:
        return [*lines, "", *_on_record(counts, waiting, now), *_last(node, found, now, width)]
    warm = f"{targets.warm_enis} ENIs" if targets.warm_enis else str(targets.warm_ips)
    rows = [
        (
            "pool",
            f"{counts.free} free, {counts.assigned} assigned, {counts.cooling} cooling, {counts.releasing} "
            f"releasing: {counts.total} in all; {counts.pending} asked from EC2",
        ),
        ("waiting", _waiting(waiting, now)),
        (
            "targets",
            f"warm {warm}, minimum {targets.minimum_ips}, cooldown {targets.cooldown:g} s, wait at most "
            f"{targets.allocate_wait:g} s",
        ),
        (
            "ENIs",
            enis_and_pods(node),
        ),
        *(("subnet", _subnet(subnet, now)) for subnet in node.subnets),
        *(("EC2", text) for bucket in node.budget if (text := _budget(bucket))),
        *(("network", text) for text in _repairs(node.host, now)),
    ]
    last = ""
    lines.append("")
    for name, text in rows:
        wrapped = textwrap.wrap(printable(text), max(20, width - 9), break_on_hyphens=False)
        for index, part in enumerate(wrapped):
            lines.append(f"{styled(f'{name:9}', 'dim') if name != last and not index else ' ' * 9}{part}")
        last = name
    return [*lines, "", *_enis(enis), *_last(node, found, now, width)]


def _on_record(counts: pb.Counts, waiting: Sequence[pb.Waiting], now: float) -> list[str]:
    """What a daemon knows that has asked nobody yet."""
    return [
        f"{styled('pods', 'dim')}     {counts.assigned} with an address, as the records say",
        f"{styled('waiting', 'dim')}  {_waiting(waiting, now)}",
    ]


def _last(node: pb.Node, concerns: Sequence[str], now: float, width: int) -> list[str]:
    """Those that tell more than the lines above: what lasts is there already."""
    events = [event for event in node.troubles if not _is_said(event, concerns)]
    if not events:
        return []
    return ["", styled("last warnings and errors", "dim"), *_troubles(events[-_TROUBLES:], now, width)]


def _is_said(event: pb.Event, concerns: Sequence[str]) -> bool:
    values = (value.string_value for value in event.fields.fields.values())
    return any(len(value) >= _SENTENCE and value in concern for value in values for concern in concerns)


def _troubles(events: Sequence[pb.Event], now: float, width: int) -> list[str]:
    lines = []
    for event in events:
        text = f"{times.age(event.at, now):>6} ago  {event.name}  {words(event)}"
        first, *rest = textwrap.wrap(
            printable(text),
            width,
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            max_lines=2,
            placeholder=" ...",
        )
        lines += [styled(each, "bad" if event.level == "error" else "warn") for each in (first, *rest)]
    return lines


def _waiting(waiting: Sequence[pb.Waiting], now: float) -> str:
    if not waiting:
        return "none"
    longest = max(now - times.seconds(w.since) for w in waiting)
    counts = Counter(w.waits_for for w in waiting)
    parts = [f"{counts[what]} for {words}" for what, words in WAITS_FOR.items() if counts[what]]
    return f"{len(waiting)}, the longest for {times.span(longest)}{': ' * bool(parts)}{', '.join(parts)}"


def _subnet(subnet: pb.Subnet, now: float) -> str:
    if not subnet.HasField("seen"):
        return f"{subnet.id}: free addresses not asked for yet"
    return f"{subnet.id}: {subnet.available} free addresses, as EC2 said {times.age(subnet.seen, now)} ago"


def _budget(bucket: pb.Bucket) -> str:
    """One line about an action that met its limit; none about the others."""
    delayed = sum(waits.delayed for waits in bucket.waits)
    if not (bucket.waiting or delayed or bucket.throttled):
        return ""
    longest = max((waits.longest for waits in bucket.waits), default=0.0)
    parts = [f"{bucket.action} {bucket.rate:.3g}/s", f"{bucket.waiting} waiting", f"{delayed} waited"]
    if delayed:
        parts[-1] += f" (longest {longest:.1f} s)"
    if bucket.throttled:
        parts.append(f"throttled {bucket.throttled} time" + "s" * (bucket.throttled > 1))
    return ", ".join(parts)


def _repairs(host: pb.HostNetwork, now: float) -> list[str]:
    """Empty if only ipamd has changed the network."""
    if not host.repairs:
        return []
    return [
        f"{host.repairs} repair{'s' * (host.repairs > 1)}, the last {times.age(host.last_repair, now)} ago: "
        f"{host.last_what}, changed by {host.last_by}"
    ]


def _enis(enis: Sequence[pb.Eni]) -> list[str]:
    counts = ["free", "assigned", "cooling", "pending"] + ["foreign"] * any(eni.foreign for eni in enis)
    prefixes = any(eni.prefixes for eni in enis)
    rows = [
        (
            eni.id or "(being created)",
            _state(eni),
            eni.link or "-",
            *(str(getattr(eni, name)) for name in counts),
            *([str(len(eni.prefixes))] if prefixes else []),
            str(eni.room),
        )
        for eni in sorted(enis, key=lambda eni: (eni.network_card, eni.device_index, eni.id))
    ]
    heads = (head.upper() for head in ("eni", "state", "link", *counts, *["prefixes"] * prefixes, "room"))
    return aligned([tuple(heads), *rows]) if rows else ["no ENIs"]


def _state(eni: pb.Eni) -> str:
    card = f", card {eni.network_card}" if eni.network_card else ""
    return eni.state + (", primary" if eni.primary else "") + card
