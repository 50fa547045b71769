"""What each command shows. The keys of `data` are a promise: more may come, none is renamed or removed."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl.connection import TIMEOUT, introspection
from ipamd.ctl.output import Answer, show


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with introspection(args.socket) as stub:
        answer = VIEWS[args.command](stub, TIMEOUT)
    show(answer, args.output)
    return 0


def status(stub: IntrospectionStub, timeout: float) -> Answer:
    node: pb.Node = stub.GetNode(pb.GetNodeRequest(), timeout=timeout)
    counts, targets = node.counts, node.targets
    data = {
        "instance_id": node.instance_id,
        "instance_type": node.instance_type,
        "availability_zone": node.availability_zone,
        "version": node.version,
        "started": _when(node.started),
        "ready": node.ready,
        "not_ready_reason": node.not_ready_reason or None,
        **{name: getattr(counts, name) for name in (*STATES, "total")},
        "targets": {
            "warm_ips": targets.warm_ips,
            "minimum_ips": targets.minimum_ips,
            "max_pods": targets.max_pods,
            "warm_enis": targets.warm_enis,
            "max_enis": targets.max_enis,
            "slack": targets.slack,
            "release_delay": targets.release_delay,
            "cooldown": targets.cooldown,
            "allocate_wait": targets.allocate_wait,
        },
        "limits": {"enis": node.max_enis, "addresses_per_eni": node.addresses_per_eni},
        "backoffs": [
            {"scope": b.scope, "reason": b.reason, "message": b.message, "until": _when(b.until)}
            for b in node.backoffs
        ],
        "budget": [
            {
                **{name: getattr(bucket, name) for name in ("action", "rate", "tokens", "waiting", "throttled")},
                "waits": {w.priority: {name: getattr(w, name) for name in WAITS} for w in bucket.waits},
            }
            for bucket in node.budget
        ],
    }
    data["host"] = _host(node.host)
    lines = [
        f"{node.instance_id}  {node.instance_type}  {node.availability_zone}  ipamd {node.version}",
        "ready" if node.ready else f"NOT READY: {node.not_ready_reason}",
        f"limits   {node.max_enis} ENIs with {node.addresses_per_eni} secondary addresses each",
        f"targets  warm {targets.warm_ips}, minimum {targets.minimum_ips}, pods at most {targets.max_pods}, "
        f"cooldown {targets.cooldown:g} s, wait at most {targets.allocate_wait:g} s",
    ]
    lines += [f"HELD BACK until {_when(b.until)}: {b.scope}: {b.message}" for b in node.backoffs]
    lines += [line for bucket in node.budget if (line := _budget(bucket))]
    lines += _host_lines(node.host)
    row = tuple(str(getattr(counts, name)) for name in (*STATES, "total"))
    return Answer(data, (*STATES, "total"), (row,), (*lines, ""))


def enis(stub: IntrospectionStub, timeout: float) -> Answer:
    reply: pb.ListEnisReply = stub.ListEnis(pb.ListEnisRequest(), timeout=timeout)
    names = (
        "id", "device_index", "primary", "state", "link", "primary_ip", "subnet_id", "mac",
        "free", "assigned", "cooling", "releasing", "foreign", "pending", "capacity",
    )  # fmt: skip
    data = [{name: getattr(eni, name) for name in names} for eni in reply.enis]
    counts = ("free", "assigned", "cooling", "foreign", "pending", "capacity")
    columns = ("eni", "index", "state", "link", "address", *counts)
    rows = tuple(
        (
            (eni.id or "(being created)") + (" (primary)" if eni.primary else ""),
            str(eni.device_index),
            eni.state,
            eni.link or "-",
            eni.primary_ip or "-",
            *(str(getattr(eni, name)) for name in counts),
        )
        for eni in reply.enis
    )
    return Answer(data, columns, rows)


def pods(stub: IntrospectionStub, timeout: float) -> Answer:
    reply: pb.ListAttachmentsReply = stub.ListAttachments(pb.ListAttachmentsRequest(), timeout=timeout)
    attachments = sorted(reply.attachments, key=lambda a: (a.pod_namespace, a.pod_name, a.container_id, a.ifname))
    data = [
        {
            "container_id": a.container_id,
            "ifname": a.ifname,
            "network": a.network,
            "ip": a.ip,
            "eni": a.eni,
            "pod": a.pod_name,
            "namespace": a.pod_namespace,
            "since": _when(a.since),
            "host_ifname": a.host_ifname,
            "netns": a.netns,
        }
        for a in attachments
    ]
    columns = ("namespace", "pod", "container", "ifname", "ip", "eni", "host link", "since")
    rows = tuple(
        (
            a.pod_namespace or "-",
            a.pod_name or "-",
            a.container_id[:12],
            a.ifname,
            a.ip,
            a.eni,
            a.host_ifname,
            _when(a.since),
        )
        for a in attachments
    )
    return Answer(data, columns, rows)


def config(stub: IntrospectionStub, timeout: float) -> Answer:
    reply: pb.GetSettingsReply = stub.GetSettings(pb.GetSettingsRequest(), timeout=timeout)
    data = [{"key": s.key, "value": json.loads(s.value), "origin": s.origin, "live": s.live} for s in reply.settings]
    rows = tuple((s.key, s.value, s.origin, "at once" if s.live else "at restart") for s in reply.settings)
    return Answer(data, ("key", "value", "origin", "a change works"), rows)


STATES = ("free", "assigned", "cooling", "releasing", "pending", "waiting")
WAITS = ("waiting", "count", "delayed", "total", "longest")


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
    return "EC2 budget: " + ", ".join(parts)


def _host(host: pb.HostNetwork) -> dict[str, Any]:
    repaired = host.HasField("last_repair")
    return {
        "in_order": not (host.error or host.disputes),
        "error": host.error or None,
        "repairs": host.repairs,
        "last_repair": _when(host.last_repair) if repaired else None,
        "last_what": host.last_what or None,
        "last_by": host.last_by or None,
        "disputes": [
            {
                "what": dispute.what,
                "by": dispute.by,
                "since": _when(dispute.since),
                "last": _when(dispute.last),
                "repairs": dispute.repairs,
                "delay": dispute.delay,
            }
            for dispute in host.disputes
        ],
    }


def _host_lines(host: pb.HostNetwork) -> list[str]:
    """Nothing about a network that nobody but ipamd changed."""
    lines = []
    if host.error:
        lines.append(f"NETWORK NOT IN ORDER: {host.error}")
    lines += [
        f"DISPUTED: {dispute.what}: repaired {dispute.repairs} times since {_when(dispute.since)}, changed by "
        f"{dispute.by} (see ipamctl doctor)"
        for dispute in host.disputes
    ]
    if host.repairs:
        lines.append(
            f"network  {host.repairs} repair{'s' * (host.repairs > 1)}, the last at {_when(host.last_repair)}: "
            f"{host.last_what}, changed by {host.last_by}"
        )
    return lines


def _when(stamp: Timestamp) -> str:
    """UTC, to the second: 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(stamp.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


VIEWS = {"status": status, "enis": enis, "pods": pods, "config": config}
