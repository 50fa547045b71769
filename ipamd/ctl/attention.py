"""Sentences about what needs attention, worst first: for `status` and `top`."""

from __future__ import annotations

from collections.abc import Sequence

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from ipamd.neighbours.kubelet import HOST_NETWORK_PODS, Kubelet, fitting


def concerns(node: pb.Node, waiting: Sequence[pb.Waiting], now: float, kubelet: Kubelet | None = None) -> list[str]:
    """Empty if all is well. `kubelet`: that of this node, None if it is not visible."""
    return [
        *_troubles(node.attachment_troubles),
        *_pods(node, waiting, now),
        *(condition.text for condition in node.conditions),
        *_cloud(node, now),
        *_network(node.host, now),
        *_room(node),
        *_scheduled(node, kubelet),
        *_withheld(node),
    ]


# Most pods to name in one sentence.
_NAMED = 3


def _troubles(troubles: Sequence[pb.AttachmentTrouble]) -> list[str]:
    """One line for each kind of trouble; first the pods that an operator has to delete."""
    found = []
    for kind, what, remedy in (
        ("lost", "cut off", "delete {them}, the successor gets another address"),
        ("detached", "cut off", "the daemon attaches the ENI again; if that fails, ipamctl explain pool says why"),
        ("contested", "in doubt", "ipamctl audit says what leads elsewhere; remove that, or delete {them}"),
    ):
        of_kind = [trouble for trouble in troubles if trouble.kind == kind]
        if not of_kind:
            continue
        names = [f"{_who(t.attachment)} ({t.cause})" for t in of_kind[:_NAMED]]
        more = f" and {len(of_kind) - _NAMED} more (ipamctl pods)" if len(of_kind) > _NAMED else ""
        many = "1 pod is" if len(of_kind) == 1 else f"{len(of_kind)} pods are"
        advice = remedy.format(them="it" if len(of_kind) == 1 else "them")
        found.append(f"{many} {what}: {', '.join(names)}{more}: {advice}.")
    return found


def _who(attachment: pb.AttachmentInfo) -> str:
    if attachment.pod_name:
        return f"{attachment.pod_namespace}/{attachment.pod_name}"
    return f"container {attachment.container_id[:12]}"


def _withheld(node: pb.Node) -> list[str]:
    if not node.withheld:
        return []
    many = "1 address is" if node.withheld == 1 else f"{node.withheld} addresses are"
    return [
        f"{many} granted to no pod, as others on this host use them: {node.withheld_for} (ipamctl addresses has all)."
    ]


def _pods(node: pb.Node, waiting: Sequence[pb.Waiting], now: float) -> list[str]:
    found = []
    if node.HasField("drained"):
        since = times.age(node.drained, now)
        found.append(f"Drained by an operator {since} ago: no pod gets an address here (ipamctl undrain ends it).")
    elif node.HasField("start"):
        found.append(f"Starting: {starting(node.start, now)}")
    elif not node.ready:
        found.append(f"Not ready: {node.not_ready_reason}")
    elif node.would_refuse:
        what = "waits for one of the node's pods to end" if node.counts.assigned else "would be refused"
        found.append(f"A further pod {what}: {node.would_refuse}")
    if waiting:
        first = min(waiting, key=lambda w: times.seconds(w.since))
        who = f"{first.pod_namespace}/{first.pod_name}" if first.pod_name else f"container {first.container_id[:12]}"
        many = f"{len(waiting)} pods wait" if len(waiting) > 1 else "1 pod waits"
        longest = f"{who} for {times.age(first.since, now)}"
        found.append(f"{many} for an address, {longest} (why: ipamctl explain pool).")
    return found


def starting(start: pb.Start, now: float) -> str:
    text = f"{start.text} for {times.age(start.since, now)}"
    if start.tries:
        text += f", {start.tries} {'try' if start.tries == 1 else 'tries'}; last answer: {start.last_error}"
    return text


def _cloud(node: pb.Node, now: float) -> list[str]:
    held = [
        f"Held back for another {times.span(times.seconds(b.until) - now)}: {b.scope}, {b.reason}: {b.message}"
        for b in node.backoffs
    ]
    return held + [f"The node's role may not call {d.action}: {d.consequence}" for d in node.denied]


def _network(host: pb.HostNetwork, now: float) -> list[str]:
    found = [f"The node's network is not in order: {host.error}"] if host.error else []
    return found + [
        f"{dispute.by} changes {dispute.what} again and again: repaired {dispute.repairs} times in "
        f"{times.age(dispute.since, now)} (see ipamctl doctor)."
        for dispute in host.disputes
    ]


def _room(node: pb.Node) -> list[str]:
    found = []
    for subnet in node.subnets:
        if not subnet.HasField("seen"):
            continue
        if not subnet.available:
            found.append(f"Subnet {subnet.id} is full: no ENI here can get another address of it.")
        elif subnet.available <= node.addresses_per_eni:
            found.append(
                f"Subnet {subnet.id} is nearly full: {subnet.available} free, fewer than a new ENI can hold."
            )
    return found


def _scheduled(node: pb.Node, kubelet: Kubelet | None) -> list[str]:
    """What the scheduler believes of a node whose addresses are known."""
    addresses = node.targets.max_pods
    if kubelet is None or not addresses or not kubelet.beyond(addresses):
        return []
    return [
        f"The kubelet takes {kubelet.max_pods} pods ({kubelet.origin}), and there are addresses for {addresses}: "
        f"with {HOST_NETWORK_PODS} of the host's network those beyond {fitting(addresses)} wait for others to end "
        f"(set max-pods: ipamctl capacity {node.instance_type} --as kubelet)."
    ]
