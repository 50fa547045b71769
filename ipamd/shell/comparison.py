"""What EC2, the records and the kernel each say of the node, side by side: the answer to `ipamctl audit`.

The pool's own audit (ipamd/pool/audit.py) acts on what lasts; this one only tells, and at once. What is in the middle
of a change is passed over, and what is left has to show in two looks, so that a change that came in between is no
mismatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ipamd.host.veth import host_link
from ipamd.pool.events import Audited
from ipamd.pool.model import AddressState, Attachment, EniState, ObservedEni, Use
from ipamd.pool.view import AddressView, EniView, View

# An ADD is on record before its route is there, and a DEL's route goes a moment after its record, in seconds.
IN_BETWEEN = 10.0


@dataclass(frozen=True, slots=True)
class Mismatch:
    """As in proto/ipamd/v1/introspection.proto."""

    kind: str
    subject: str
    meaning: str
    remedy: str
    ec2: str = ""
    ledger: str = ""
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    mismatches: tuple[Mismatch, ...]
    enis: int
    addresses: int
    attachments: int
    routes: int


def compare(view: View, recorded: Iterable[Attachment], seen: Audited, now: float) -> Compared:
    """`recorded` are the attachments in the ledger, `seen` what EC2 and the kernel showed after they were read."""
    records = {attachment.address: attachment for attachment in recorded}
    routes = dict(seen.routed)
    mismatches = (
        *_enis(view, seen),
        *_addresses(view, seen),
        *_stranded(view, routes),
        *_uses(view),
        *_records(view, records),
        *_routes(view, records, routes, now),
        *_forwarding(view, records, seen.not_forwarding),
    )
    ours = [eni for eni in seen.enis if eni.owned or eni.primary]
    addresses = sum(len(eni.addresses) for eni in ours)
    return Compared(mismatches, len(ours), addresses, len(records), len(routes))


def _enis(view: View, seen: Audited) -> Iterator[Mismatch]:
    enis = view.enis()
    known = {eni.id for eni in enis}
    creating = any(eni.state is EniState.CREATING for eni in enis)
    for observed in seen.enis:
        if observed.id in known or creating:
            continue
        if observed.device_index is not None and (observed.owned or observed.primary):
            yield Mismatch(
                "eni_unknown", observed.id, "its addresses serve nobody",
                "the daemon takes it over once two of its own audits have seen it",
                ec2=f"attached at index {observed.device_index}", ledger="unknown",
            )  # fmt: skip
        elif observed.owned:
            yield Mismatch(
                "eni_leaked", observed.id, "it costs addresses of its subnet and serves nobody",
                "the daemon deletes it once it is ten minutes old and two of its audits have seen it",
                ec2="not attached, with this node's tag", ledger="unknown",
            )  # fmt: skip
    there = {observed.id: observed for observed in seen.enis if observed.device_index is not None}
    for eni in _settled(view):
        if eni.id not in there:
            yield Mismatch(
                "eni_missing", eni.id, f"{eni.assigned} pods with its addresses are cut off",
                "the daemon reads it again, and attaches it or forgets it",
                ec2="not attached to this node", ledger=f"{eni.state}, {eni.held} addresses", kernel=_link(eni),
            )  # fmt: skip


def _addresses(view: View, seen: Audited) -> Iterator[Mismatch]:
    there: dict[str, ObservedEni] = {eni.id: eni for eni in seen.enis}
    known: dict[str, dict[str, AddressView]] = {}
    for address in view.addresses():
        known.setdefault(address.eni_id, {})[address.ip] = address
    for eni in _settled(view):
        observed = there.get(eni.id)
        if observed is None:
            continue
        recorded = known.get(eni.id, {})
        for ip in sorted(set(observed.addresses) - recorded.keys()):
            yield Mismatch(
                "address_unknown", ip, "it is not given to pods", "the daemon leaves it alone; if nobody wants it: "
                f"aws ec2 unassign-private-ip-addresses --network-interface-id {eni.id} --private-ip-addresses {ip}",
                ec2=f"assigned to {eni.id}", ledger="unknown",
            )  # fmt: skip
        for ip, address in recorded.items():
            if ip not in observed.addresses and address.state is not AddressState.RELEASING:
                held = address.state is AddressState.ASSIGNED
                yield Mismatch(
                    "address_missing", ip,
                    "its pod is cut off" if held else "the next pod that got it would be cut off",
                    "delete the pod" if held else "the daemon forgets it once two of its own audits have missed it",
                    ec2=f"not on {eni.id}", ledger=str(address.state),
                )  # fmt: skip


def _stranded(view: View, routes: dict[str, str]) -> Iterator[Mismatch]:
    """Pods that the daemon knows to be cut off: also those that it knew of before this look."""
    for trouble in view.troubles():
        if trouble.cut_off:
            ip = trouble.attachment.address
            yield Mismatch(
                "attachment_stranded", ip, f"{_holder(trouble.attachment)} is cut off",
                "the daemon attaches the ENI again; ipamctl explain pool says what keeps it from that"
                if trouble.kind == "detached"
                else "delete the pod: its successor gets another address",
                ec2=trouble.cause, ledger=f"held by {_holder(trouble.attachment)}",
                kernel=f"leads to {routes[ip]}" if ip in routes else "no route",
            )  # fmt: skip


def _uses(view: View) -> Iterator[Mismatch]:
    """Of addresses that somebody else has something in the kernel for; a pod of ours may have one as well."""
    for address in view.addresses():
        held = address.state is AddressState.ASSIGNED
        if address.use is not None and (not held or address.contested):
            yield _in_use(address, address.use, held)


def _in_use(address: AddressView, use: Use, held: bool) -> Mismatch:
    on_host = use.kind == "address"
    return Mismatch(
        "address_on_host" if on_host else "address_in_use", address.ip,
        ("the host takes its packets" if on_host else "two have it, and packets reach one of them") if held
        else "the daemon gives it to no pod as long as this lasts",
        "delete the pod, or remove what leads elsewhere" if held
        else "nothing, if its owner uses the address; else remove it, and the daemon grants the address again",
        ec2=f"assigned to {address.eni_id}", ledger=str(address.state), kernel=use.text,
    )  # fmt: skip


def _records(view: View, records: dict[str, Attachment]) -> Iterator[Mismatch]:
    """What the ledger has against what the daemon has in memory: a restart would go by the former."""
    memory = {attachment.address: attachment for attachment in view.attachments()}
    for ip in sorted(memory.keys() | records.keys()):
        if memory.get(ip) != records.get(ip):
            yield Mismatch(
                "record_differs", ip, "a restart of the daemon would forget the one in memory",
                "see whether the log says ledger.unwritable; else restart the daemon and report this as a bug",
                ledger=f"{_holder(records.get(ip))} on record, {_holder(memory.get(ip))} in memory",
            )  # fmt: skip


def _routes(view: View, records: dict[str, Attachment], routes: dict[str, str], now: float) -> Iterator[Mismatch]:
    for ip, attachment in records.items():
        if view.is_lost(ip):
            continue  # reported as stranded
        via, link = routes.get(ip), host_link(attachment.key)
        if via == link or now - attachment.since < IN_BETWEEN:
            continue
        yield Mismatch(
            "route_differs" if via else "route_missing", ip, f"{_holder(attachment)} is cut off",
            "the daemon repairs the route if the pod's interface is there; if it is gone, it collects the attachment "
            "within three minutes (ipamctl collect does so now)",
            ledger=f"held by {_holder(attachment)}", kernel=f"leads to {via}, not {link}" if via else "no route",
        )  # fmt: skip
    for ip, via in routes.items():
        released = view.released_at(ip)
        if ip in records or (released is not None and now - released < IN_BETWEEN):
            continue
        yield Mismatch(
            "route_of_nobody", ip, "a pod may use an address that is on nobody's record",
            "the daemon records it as that pod's once two of its own audits have seen it",
            ledger="nobody's", kernel=f"leads to {via}",
        )  # fmt: skip


def _forwarding(view: View, records: dict[str, Attachment], off: frozenset[str]) -> Iterator[Mismatch]:
    for ip, attachment in records.items():
        if (link := host_link(attachment.key)) in off:
            yield _deaf(ip, f"{_holder(attachment)} reaches nobody outside of the node", link)
    for eni in _settled(view):
        if eni.place.link in off:
            yield _deaf(eni.id, "what comes in by it reaches no pod", eni.place.link)


def _deaf(subject: str, meaning: str, link: str) -> Mismatch:
    return Mismatch(
        "not_forwarded", subject, meaning,
        "the daemon turns it on again; `ipamctl status` tells if somebody keeps turning it off",
        kernel=f"net.ipv4.conf.{link}.forwarding = 0",
    )  # fmt: skip


def _settled(view: View) -> list[EniView]:
    return [eni for eni in view.enis() if eni.settled]


def _link(eni: EniView) -> str:
    return f"link {eni.place.link}" if eni.place.link else ""


def _holder(attachment: Attachment | None) -> str:
    if attachment is None:
        return "nobody"
    owner = attachment.owner
    return f"{owner.pod_namespace}/{owner.pod_name}" if owner.pod_name else str(attachment.key)
