"""Every exported metric: its name, kind, labels and meaning. docs/metrics.md is made from this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` as it is written in a query, a histogram's without _bucket, _sum and _count."""

    name: str
    kind: Literal["gauge", "counter", "histogram", "info"]
    meaning: str
    labels: tuple[str, ...] = ()


_ALL = (
    Metric(
        "ipamd_addresses",
        "gauge",
        "Addresses by state: free, assigned, cooling, releasing.",
        ("state",),
    ),
    Metric(
        "ipamd_addresses_pending",
        "gauge",
        "Addresses asked from EC2 and not here yet.",
    ),
    Metric(
        "ipamd_addresses_foreign",
        "gauge",
        "Addresses on our ENIs that somebody else put there.",
    ),
    Metric(
        "ipamd_addresses_max",
        "gauge",
        "Most addresses that may be in use at once on this node.",
    ),
    Metric(
        "ipamd_addresses_wanted_free",
        "gauge",
        "Addresses that should be free: pool.warm_ips or warm_enis.",
    ),
    Metric(
        "ipamd_addresses_room",
        "gauge",
        "How many more pods could get an address now, waits included.",
    ),
    Metric(
        "ipamd_enis",
        "gauge",
        "ENIs on network card 0 by state; those on other cards take no slot that pods could use.",
        ("state",),
    ),
    Metric(
        "ipamd_enis_max",
        "gauge",
        "Most ENIs that the node may have on network card 0, the primary and somebody else's included.",
    ),
    Metric(
        "ipamd_prefixes_foreign",
        "gauge",
        "/28 prefixes that somebody else put on the pool's ENIs, each in the place of an address.",
    ),
    Metric(
        "ipamd_subnet_available_addresses",
        "gauge",
        "Free addresses of a subnet, as EC2 said last: after a refusal, and once an hour.",
        ("subnet",),
    ),
    Metric(
        "ipamd_waiting",
        "gauge",
        "ADDs that wait for an address.",
    ),
    Metric(
        "ipamd_waiting_oldest_seconds",
        "gauge",
        "How long the oldest of them has waited; 0: none waits.",
    ),
    Metric(
        "ipamd_waiting_for",
        "gauge",
        "ADDs by what they wait for: ec2 (an address that comes or will be asked for), cooldown (one that was "
        "released a moment ago), release (one that a pod of this node still has).",
        ("what",),
    ),
    Metric(
        "ipamd_waiting_for_oldest_seconds",
        "gauge",
        "How long the oldest of these has waited; 0: none waits.",
        ("what",),
    ),
    Metric(
        "ipamd_time_to_address_seconds",
        "histogram",
        "From a pod's first try, over all retries, to its address.",
    ),
    Metric(
        "ipamd_refusals_total",
        "counter",
        "Refused ADDs by reason (docs/refusals.md).",
        ("reason",),
    ),
    Metric(
        "ipamd_cooling_oldest_seconds",
        "gauge",
        "How long the oldest cooling address has cooled; 0: none cools.",
    ),
    Metric(
        "ipamd_cooling_reused_early_total",
        "counter",
        "Cooling addresses given to waiting pods before pool.cooldown.",
    ),
    Metric(
        "ipamd_ready",
        "gauge",
        "1 if the daemon can do its work on this node, which may be full; else 0.",
    ),
    Metric(
        "ipamd_would_refuse",
        "gauge",
        "1 while no address can come for this reason but by the end of a pod; else 0.",
        ("reason",),
    ),
    Metric(
        "ipamd_drained",
        "gauge",
        "1 if an operator has drained the node.",
    ),
    Metric(
        "ipamd_rpc_seconds",
        "histogram",
        "Calls of the gRPC services by outcome.",
        (
            "method",
            "code",
        ),
    ),
    Metric(
        "ipamd_ec2_call_seconds",
        "histogram",
        "EC2 calls; outcome is ok or EC2's error code.",
        (
            "action",
            "outcome",
        ),
    ),
    Metric(
        "ipamd_ec2_throttled_total",
        "counter",
        "Calls that EC2 refused for their rate.",
        ("action",),
    ),
    Metric(
        "ipamd_ec2_budget_rate",
        "gauge",
        "Calls a second that the node allows itself at present.",
        ("action",),
    ),
    Metric(
        "ipamd_ec2_budget_waiting",
        "gauge",
        "Calls that wait in the node's rate budget.",
        (
            "action",
            "priority",
        ),
    ),
    Metric(
        "ipamd_ec2_budget_calls_total",
        "counter",
        "Calls that have left the queue.",
        (
            "action",
            "priority",
        ),
    ),
    Metric(
        "ipamd_ec2_budget_delayed_total",
        "counter",
        "Of these, the ones that had to wait.",
        (
            "action",
            "priority",
        ),
    ),
    Metric(
        "ipamd_ec2_budget_wait_seconds_total",
        "counter",
        "What they waited, together.",
        (
            "action",
            "priority",
        ),
    ),
    Metric(
        "ipamd_backoffs",
        "gauge",
        "What is left alone after an error of EC2, by reason.",
        ("reason",),
    ),
    Metric(
        "ipamd_host_repairs_total",
        "counter",
        "Objects of the node's network put right that others had changed.",
    ),
    Metric(
        "ipamd_host_disputes",
        "gauge",
        "Objects that somebody changes again and again.",
    ),
    Metric(
        "ipamd_host_in_order",
        "gauge",
        "0 if the kernel refuses a part of the node's network; else 1.",
    ),
    Metric(
        "ipamd_ledger_commit_seconds",
        "histogram",
        "Commits of the ledger.",
    ),
    Metric(
        "ipamd_ledger_writable",
        "gauge",
        "0 while records can't be written; else 1.",
    ),
    Metric(
        "ipamd_loop_lag_seconds",
        "histogram",
        "How late the event loop came to what was due, once a turn.",
    ),
    Metric(
        "ipamd_attachments",
        "gauge",
        "Attachments on record, those of lost addresses included.",
    ),
    Metric(
        "ipamd_attachments_stranded",
        "gauge",
        "Pods that are cut off: EC2 has taken their address, or their ENI is not attached.",
    ),
    Metric(
        "ipamd_attachments_contested",
        "gauge",
        "Pods whose address something else on the host leads to as well.",
    ),
    Metric(
        "ipamd_addresses_withheld",
        "gauge",
        "Addresses granted to nobody, as others use them on this host; counted as foreign, too.",
    ),
    Metric(
        "ipamd_events_total",
        "counter",
        "Events by name (docs/events.md), debug left out.",
        (
            "event",
            "level",
        ),
    ),
    Metric(
        "ipamd_condition",
        "gauge",
        "1 while something lasts that is wrong beside the main job; else 0.",
        ("condition",),
    ),
    Metric(
        "ipamd_started",
        "gauge",
        "1 once the daemon's start is over; 0 while it waits for metadata, EC2 or the kernel.",
    ),
    Metric(
        "ipamd_start_phase",
        "gauge",
        "1 for the phase that the start is in: metadata, ec2, host, address; all 0 once it is over.",
        ("phase",),
    ),
    Metric(
        "ipamd_start_tries",
        "gauge",
        "Tries that failed in this phase of the start.",
    ),
    Metric(
        "ipamd_started_timestamp_seconds",
        "gauge",
        "When the daemon's pool started, in seconds since the epoch.",
    ),
    Metric(
        "ipamd_build_info",
        "info",
        "Always 1.",
        (
            "version",
            "instance_id",
            "instance_type",
            "availability_zone",
        ),
    ),
)

# Events (name, level) that alerts wait for. They are exported as 0 from the start: `increase()` does not count a
# series that begins with 1.
ALERTED = (
    ("attachment.collected", "warning"),
    ("attachment.recovered", "warning"),
    ("eni.leaked", "warning"),
)

METRICS = {metric.name: metric for metric in _ALL}


def page() -> str:
    """docs/metrics.md's table."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in _ALL:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"
