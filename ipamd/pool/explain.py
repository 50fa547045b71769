"""Why the pool is as it is, and why a request waits: the state in sentences, for the operator on call at night.

Reads the pool, changes nothing. The numbers are those that the decisions rest on, so that a sentence can't say
something else than what is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipamd.pool import effects as do
from ipamd.pool import wish
from ipamd.pool.awaited import waits
from ipamd.pool.backoff import Backoff
from ipamd.pool.explain_slots import others, room
from ipamd.pool.model import Attachment, Counts, EniState, Reason
from ipamd.pool.outlook import Supply, would_refuse
from ipamd.pool.pool import Pool
from ipamd.pool.queue import Waiting, WaitsFor
from ipamd.pool.trouble import trouble_of
from ipamd.pool.words import many, sentence, span

# What an operator can do about a reason (docs/refusals.md says more).
ADVICE = {
    Reason.SUBNET_EXHAUSTED: "Name further subnets in ec2.subnets, or free addresses in this one; a lower "
    "pool.warm_ips on its nodes frees some soon.",
    Reason.ENI_LIMIT: "Use a larger instance type or fewer pods on this node (ipamctl capacity TYPE); if EC2 named "
    "the account's quota, have it raised.",
    Reason.ADDRESS_LIMIT: "EC2 allows fewer addresses than it publishes: its words are in the log.",
    Reason.POD_LIMIT: "Raise pool.max_pods, or run fewer pods here.",
    Reason.THROTTLED: "Find out who else calls EC2 in this account and region (CloudTrail); a higher pool.warm_ips "
    "makes bursts cheaper.",
    Reason.NOT_AUTHORIZED: "Add the action to the node's role: ipamctl iam-policy prints what it needs.",
    Reason.SECURITY_GROUP_INVALID: "Correct ec2.security_groups.",
    Reason.REQUEST_REFUSED: "Correct what EC2 refuses, by its words: the settings under [ec2], as a rule.",
    Reason.CLOUD_UNAVAILABLE: "Check the way from this node to EC2's endpoint, and EC2's own health.",
    Reason.LEDGER_UNWRITABLE: "Make room on the file system of ledger.path.",
    Reason.DRAINED: "ipamctl undrain ends it.",
}


@dataclass(slots=True)
class Explanation:
    """As in proto/ipamd/v1/introspection.proto."""

    state: str
    headline: str
    because: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def explain_pool(pool: Pool, now: float, unrecorded: str = "") -> Explanation:
    """`unrecorded`: why the ledger takes no records; empty when it does."""
    counts = pool.counts()
    explanation = _verdict(pool, counts, now, unrecorded)
    explanation.numbers = _numbers(pool, counts, now)
    if pool.started:
        _add_circumstances(explanation, pool, counts, now, unrecorded)
        explanation.because += others(pool)
    return explanation


def explain_waiting(pool: Pool, waiting: Waiting, who: str, now: float) -> Explanation:
    counts = pool.counts()
    queue = list(pool.waiting)
    place = queue.index(waiting.request) + 1
    explanation = Explanation("waiting", f"{who} has waited {span(now - waiting.since)} for an address.")
    explanation.numbers = {**_numbers(pool, counts, now), "place": place}
    if len(queue) > 1:
        explanation.because.append(f"It is number {place} of {len(queue)} in the queue, which is served in order.")
    explanation.because.append(_awaited(pool, counts, waiting, place, now))
    _add_circumstances(explanation, pool, counts, now)
    explanation.next.append(
        f"If none has come in {span(waiting.deadline - now)}, it is refused, and the runtime tries again."
    )
    return explanation


def _awaited(pool: Pool, counts: Counts, waiting: Waiting, place: int, now: float) -> str:
    """What is to become its address. `place` in the queue, from 1."""
    if waiting.wanted:
        return f"It asked for {waiting.wanted} and takes no other: {wish.judge(pool, waiting, now).why}."
    if place <= counts.pending and not pool.queue.wished:
        return f"{many(counts.pending, 'address is', 'addresses are')} on the way: one is for it."
    if pool.forgetting or pool.cooled:
        return "A cooled address is made ready for it: the kernel forgets its old connections first."
    match {each.request: what for each, what in waits(pool, now)}[waiting.request]:
        case WaitsFor.EC2:
            return "No address that is on the way is for it yet."
        case WaitsFor.COOLDOWN:
            return "It gets an address that was released a moment ago, as soon as that has cooled."
        case WaitsFor.RELEASE:
            after = f", {span(pool.reusable_after(now))} after its end" if pool.reusable_after(now) else ""
            return f"It gets the address of a pod of this node that ends{after}."


def explain_attachment(pool: Pool, attachment: Attachment, who: str, now: float) -> Explanation:
    address, trouble = pool.inventory.addresses.get(attachment.address), trouble_of(pool, attachment)
    explanation = Explanation("attached", f"{who} has {attachment.address}, for {span(now - attachment.since)}.")
    if trouble is not None and trouble.cut_off:
        explanation.state = "cut_off"
        explanation.headline = f"{who} is cut off: {trouble.cause}, found {span(now - trouble.since)} ago."
    elif trouble is not None:
        explanation.state = "contested"
        explanation.because.append(f"But {trouble.cause}: two may use it.")
        explanation.advice.append(
            "Remove what leads elsewhere, or delete the pod: its successor gets another address."
        )
    if address is None:
        where = f", which was on {attachment.eni_id}" if attachment.eni_id else ""
        explanation.because.append(f"It has {attachment.address} on record{where}.")
        explanation.advice.append("Delete the pod: its successor gets another address.")
        return explanation
    eni = address.eni
    where = "the primary ENI" if eni.primary else "a secondary ENI"
    explanation.because.append(f"It is one of {eni.id}, {where} (link {eni.link or 'not known yet'}).")
    seen = f"EC2 last showed it there {span(now - eni.read_at)} ago"
    explanation.because.append(f"{seen}; ipamctl audit looks now.")
    if eni.state is not EniState.READY:
        explanation.because.append(f"That ENI is {eni.state} at present.")
    if trouble is not None and trouble.kind == "detached":
        explanation.next.append("The daemon attaches the ENI again as soon as EC2 lets it.")
    return explanation


def _add_circumstances(
    explanation: Explanation, pool: Pool, counts: Counts, now: float, unrecorded: str = ""
) -> None:
    """What the pool's state has to do with it; the same for every question."""
    explanation.because.append(_arithmetic(pool, counts))
    if pool.drained is None:
        explanation.because += [room(pool), *_held_back(pool, now), *_subnets(pool, now)]
    explanation.next += _under_way(pool, now) + _to_come(pool, counts, now)
    explanation.advice += _advice(pool, now, unrecorded)


def _verdict(pool: Pool, counts: Counts, now: float, unrecorded: str) -> Explanation:
    if not pool.started:
        return Explanation("starting", "The daemon has not learnt its ENIs yet: it asks EC2 for them.")
    if pool.drained is not None:
        return Explanation(
            "drained",
            f"An operator drained this node {span(now - pool.drained)} ago: nothing new is granted, and what is free "
            "goes back to EC2.",
        )
    short = max(_wanted(pool, counts) - counts.free - counts.pending, 0)
    refusal = would_refuse(pool, now, unrecorded)
    if refusal is not None:
        until = " before one of the node's pods ends" if counts.assigned else ""
        return Explanation("blocked", sentence(f"No further pod can get an address{until}: {refusal.message}"))
    obstacles = pool.backoffs.all_active(now)
    if short and obstacles:
        headline = f"{many(short, 'address is', 'addresses are')} missing, and EC2 gives none at present"
        headline += f"; {counts.free} are free." if counts.free else "."
        return Explanation("blocked", headline)
    if counts.pending or counts.waiting or pool.deficit():
        return Explanation("growing", _growing(pool, counts))
    if counts.releasing or pool.excess():
        going = counts.releasing or pool.excess()
        return Explanation("shrinking", f"{many(going, 'address is', 'addresses are')} more than is needed.")
    if pool.headroom > counts.free:
        return Explanation(
            "steady",
            f"The pool holds all that it may: {many(counts.free, 'address is', 'addresses are')} free, "
            f"{pool.headroom} would be wanted free.",
        )
    return Explanation(
        "steady", f"The pool is as it should be: {many(counts.free, 'address is', 'addresses are')} free."
    )


def _growing(pool: Pool, counts: Counts) -> str:
    if counts.pending:
        return f"{many(counts.pending, 'address is', 'addresses are')} on the way."
    if deficit := pool.deficit():
        return f"{many(deficit, 'more address is', 'more addresses are')} wanted of EC2."
    if pool.queue.for_any:
        some = many(pool.queue.for_any, "pod waits for an address that cools", "pods wait for addresses that cool")
        return f"{some}."
    return f"{many(counts.waiting, 'pod waits', 'pods wait')} for the one address that it asked for."


def _wanted(pool: Pool, counts: Counts) -> int:
    """Addresses that should be free or on the way."""
    return min(pool.queue.for_any + pool.headroom, pool.allowance(counts) + counts.free + counts.pending)


def _numbers(pool: Pool, counts: Counts, now: float) -> dict[str, float]:
    room = Supply(pool, now).at_least if pool.started else 0
    return {
        "free": counts.free,
        "assigned": counts.assigned,
        "cooling": counts.cooling,
        "releasing": counts.releasing,
        "pending": counts.pending,
        "waiting": counts.waiting,
        "headroom": pool.headroom,
        "deficit": pool.deficit() if pool.started else 0,
        "excess": pool.excess(),
        "could_still_serve": max(room, 0),
        "max_pods": pool.max_pods,
        "max_enis": pool.max_enis,
        "enis": len(pool.inventory.enis),
    }


def _arithmetic(pool: Pool, counts: Counts) -> str:
    parts = [f"{pool.queue.for_any} for waiting pods"] if pool.queue.for_any else []
    targets = pool.targets
    if targets.warm_enis:
        parts.append(f"{pool.headroom} to keep warm (pool.warm_enis {targets.warm_enis})")
    else:
        parts.append(f"{pool.headroom} to keep warm (pool.warm_ips)")
    text = f"Wanted: {' and '.join(parts)}. There: {counts.free} free"
    if counts.pending:
        text += f", {counts.pending} on the way"
    if counts.cooling:
        text += f", {counts.cooling} cooling (not free yet)"
    text += f"; {counts.assigned} in use"
    if targets.minimum_ips:
        text += f"; at least {targets.minimum_ips} in all (pool.minimum_ips)"
    return text + "."


def _held_back(pool: Pool, now: float) -> list[str]:
    return [_sentence(backoff, now) for backoff in pool.backoffs.all_active(now)]


def _sentence(backoff: Backoff, now: float) -> str:
    failure = backoff.failure
    times = "failed" if backoff.attempts == 1 else f"failed {backoff.attempts} times in a row"
    return (
        f"{failure.action} {times}, {failure.code}: {sentence(failure.message)} "
        f"It concerns {backoff.scope}, which is left alone for another {span(backoff.until - now)}."
    )


def _subnets(pool: Pool, now: float) -> list[str]:
    found = []
    for subnet_id in pool.subnets.ids:
        subnet = pool.subnets[subnet_id]
        if subnet.in_doubt and subnet.refused is not None:
            asked = many(subnet.refused, "address", "addresses")
            found.append(f"Subnet {subnet_id} did not have {asked} when asked: it is read again.")
        elif subnet.available is not None:
            free = many(subnet.available, "free address", "free addresses")
            found.append(f"Subnet {subnet_id} showed {free} {span(now - subnet.read_at)} ago.")
    return found


def _under_way(pool: Pool, now: float) -> list[str]:
    found = []
    for operation in sorted(pool.under_way(), key=lambda operation: operation.since):
        effect, since = operation.effect, span(now - operation.since)
        match effect:
            case do.CreateEni():
                what = f"EC2 is asked for a new ENI with {many(effect.count, 'address', 'addresses')}"
            case do.AttachEni():
                what = f"{effect.eni_id} is being attached"
            case do.ConfigureLink():
                what = f"the host waits for the interface of {effect.eni_id}"
            case do.AssignAddresses():
                what = f"EC2 is asked for {many(effect.count, 'address', 'addresses')} for {effect.eni_id}"
            case do.UnassignAddresses():
                what = f"EC2 takes {many(len(effect.addresses), 'address', 'addresses')} of {effect.eni_id} back"
            case do.DetachEni() | do.DeleteEni():
                what = f"{effect.eni_id} is given back"
            case do.DescribeEni():
                what = f"{effect.eni_id} is read"
            case _:
                continue
        found.append(f"Now, since {since}: {what} ({effect.action}).")
    return found


def _to_come(pool: Pool, counts: Counts, now: float) -> list[str]:
    found = []
    if pool.grow_at is not None and pool.grow_at > now:
        found.append(f"In {span(pool.grow_at - now)} EC2 is asked for {pool.deficit()} (pool.coalesce).")
    cooling = pool.inventory.cooling
    if cooling:
        oldest = next(iter(cooling.values()))
        free = max(oldest + pool.targets.cooldown - now, 0)
        text = f"In {span(free)} the first cooling address is free again"
        early = max(oldest + pool.reusable_after(now) - now, 0)
        if early < free:
            text += f", in {span(early)} if pods wait for it"
        found.append(text + ".")
    shrink_at = pool.shrink_at
    if shrink_at is not None and pool.excess():
        going = many(pool.excess(), "address goes", "addresses go")
        found.append(f"In {span(max(shrink_at - now, 0))} {going} back to EC2, if nobody needs them until then.")
    return found


def _advice(pool: Pool, now: float, unrecorded: str) -> list[str]:
    found: dict[Reason, list[str]] = {}
    refusal = would_refuse(pool, now, unrecorded)
    if refusal is not None:
        found[refusal.reason] = []
    for backoff in pool.backoffs.all_active(now):
        found.setdefault(backoff.policy.reason, []).append(backoff.failure.advice)
    advice = (text or ADVICE.get(reason, "") for reason, texts in found.items() for text in texts or [""])
    return [text for text in dict.fromkeys(advice) if text]
