"""What can still come, for how many of those who wait, and the words for it when nothing can.

    by itself       an address that is free or on its way, that EC2 can still be asked for, or that cools in time
    by a release    an address that a pod of this node has: its DEL may come, and the address cool, before the
                    deadline. On a full node that is how a replaced pod gets its address, so its ADD waits

No more ADDs wait than addresses can come, in the order in which they arrived, so never more than the node can hold.
An ADD for which none can come is refused at once. Who waits for one address alone (wish.py) takes a share of what
comes, too.

Reads the pool's state, changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

from ipamd.pool import effects as do
from ipamd.pool import wish
from ipamd.pool.backoff import Backoff, action_scope, subnet_scope
from ipamd.pool.model import Counts, EniState, Reason, Refusal
from ipamd.pool.queue import Waiting, WaitsFor
from ipamd.pool.slots import ARRIVING
from ipamd.pool.state import ASSIGN, ATTACH, CREATE, State
from ipamd.pool.words import many

# Calls that bring addresses: the failure of another one is no reason why none came.
GROWTH = (CREATE, ATTACH, ASSIGN, do.DescribeEni.action, do.ConfigureLink.action)

# EC2's words can be long (an encoded authorization failure is), and a refusal has to fit into gRPC's metadata twice.
LONGEST_MESSAGE = 600


def would_refuse(state: State, now: float, unrecorded: str = "") -> Refusal | None:
    """Why an ADD that came now would get no address, unless a pod of this node ends meanwhile; None when it would get
    one, at once or after a wait. Whether the daemon can do its work at all is another question:
    `serving.not_serving`.

    `unrecorded`: why the ledger takes no records; empty when it does.
    """
    if not state.started:
        return Refusal(Reason.NOT_READY, "the daemon has not learnt its ENIs yet", 1.0)
    if state.stopping:
        return Refusal(Reason.DRAINING, "the daemon is stopping", 1.0)
    if state.drained is not None:
        return drained()
    line = Line()
    for waiting in state.waiting.values():
        line.let_in(waiting, state, now)
    if Supply(state, now).until(now + state.targets.allocate_wait) <= line.before:
        return why(state, now)
    return unwritable(unrecorded) if unrecorded else None


def unwritable(error: str) -> Refusal:
    return Refusal(Reason.LEDGER_UNWRITABLE, f"the grant can't be recorded: {error}", 5.0)


def drained() -> Refusal:
    return Refusal(Reason.DRAINED, "this node was drained by an operator (ipamctl undrain ends it)")


@dataclass(slots=True)
class Line:
    """What those before in the queue will take: so many of the addresses that come by themselves (`before`), and of
    those of pods that end (`ends`)."""

    before: int = 0
    ends: int = 0

    def let_in(self, waiting: Waiting, state: State, now: float) -> None:
        verdict = wish.judge(state, waiting, now) if waiting.wanted else None
        if isinstance(verdict, wish.Coming) and verdict.by is WaitsFor.RELEASE:
            self.ends += 1
        else:
            self.before += 1


class Supply:
    """How many more requests could be served at most, as things stand at `now`."""

    def __init__(self, state: State, now: float) -> None:
        counts = state.counts()
        self._cooldown = state.reusable_after(now)
        self._state = state
        self._assigned = counts.assigned
        self._here_or_coming = counts.free + counts.pending + _growable(state, counts, now)
        self.room = state.pod_limit - len(state.inventory.attachments)

    @cached_property
    def _released(self) -> list[float]:
        """In order; not needed while there is enough without what cools."""
        return list(self._state.inventory.cooling.values())

    @property
    def at_least(self) -> int:
        """Without what cools."""
        return min(self._here_or_coming, self.room)

    def until(self, deadline: float) -> int:
        """By itself."""
        return min(self._by_itself(deadline), self.room)

    def for_one(self, waiting: Waiting, hoped_for: int = 0, ends: int = 0) -> int:
        """Of these, that one may be the last in the queue: what comes by itself before its deadline and, where its
        runtime lets it, by releases. `hoped_for`: what may turn out to be there by itself. `ends`: of how many pods
        the address is somebody else's when they end."""
        by_itself = max(self._by_itself(waiting.deadline), hoped_for)
        if waiting.blocks_releases:
            return min(by_itself, max(self.room, hoped_for))
        # A release makes room for a pod at once. Its address is of use to nobody before it has cooled.
        in_time = waiting.since + self._cooldown < waiting.deadline
        return min(by_itself + (max(self._assigned - ends, 0) if in_time else 0), self._state.pod_limit)

    def _by_itself(self, deadline: float) -> int:
        # One whose time comes with the deadline is too late: its flows have to be forgotten yet.
        return self._here_or_coming + bisect_left(self._released, deadline - self._cooldown)


def why_nothing(state: State, waiting: Waiting, before: int, now: float) -> Refusal:
    """Nothing can come for this one any more; `before`: how many wait before it. The sentence is the same at each
    try, so that the runtime's events are."""
    refusal = why(state, now)
    message = refusal.message
    if now > waiting.since:
        message += "; none became free in time"
    elif before:
        message += "; others wait for one already"
    return replace(refusal, message=message, numbers=(*refusal.numbers, ("before", before)))


def why(state: State, now: float) -> Refusal:
    """Nothing can come: say what stands in the way, the most useful to know first."""
    counts = state.counts()
    numbers = _numbers(state, counts)
    if (in_use := len(state.inventory.attachments)) >= state.pod_limit:
        few = "as many as" if in_use == state.pod_limit else "more than"
        message = f"{in_use} addresses are in use, {few} pool.max_pods allows"
        if in_use > state.pod_limit:
            message += f" ({state.pod_limit})"
        return Refusal(Reason.POD_LIMIT, message, state.targets.cooldown or 1.0, numbers)
    slots = state.eni_slots()
    blocked = _creation_blocked(state, now) if slots > 0 else None
    if blocked is None:
        blocked = next(
            (
                backoff
                for eni in state.inventory.ready()
                if eni.room > 0 and (backoff := state.assign_backoff(eni, now)) is not None and backoff.policy.lasting
            ),
            None,
        )
    if blocked is not None:
        return _blocked(blocked, now, numbers)
    if counts.cooling:
        wait = max(next(iter(state.inventory.cooling.values())) + state.reusable_after(now) - now, 0.1)
        message = f"all {counts.total} addresses are in use or cooling; the next one is free in {wait:.0f} s"
        return Refusal(Reason.ALL_COOLING, message, wait, numbers)
    return _full(state, counts, now)


def _full(state: State, counts: Counts, now: float) -> Refusal:
    """No address is free, and there is no room for another."""
    message = f"all {counts.total} addresses are in use, and {barrier(state)}: {enis_in_words(state)}"
    wait = state.targets.cooldown or 1.0
    fewer = any(eni.withheld for eni in state.inventory.enis.values())  # than the instance type's figure
    if state.taken_by_others():
        message += f"; {others_in_words(state)}"
        wait = max(wait, state.audited_at + state.look_again - now)
    reason = Reason.ADDRESS_LIMIT if fewer else Reason.ENI_LIMIT
    return Refusal(reason, message, wait, _numbers(state, counts))


def barrier(state: State) -> str:
    """What bounds the number of ENIs."""
    if state.targets.max_enis and state.max_enis == state.targets.max_enis:
        return "pool.max_enis allows no more"
    return f"the instance{'' if state.learnt_limit else ' type'} takes no more"


def enis_in_words(state: State) -> str:
    """Those that hold a slot, or are about to: for instance "3 ENIs with 9 secondary addresses each"."""
    taken = state.max_enis - state.eni_slots()
    each = many(state.limits.secondary_per_eni, "secondary address", "secondary addresses")
    return f"{many(taken, 'ENI', 'ENIs')} with {each} each"


def others_in_words(state: State) -> str:
    """What somebody else has of the slots that pods could use."""
    enis = [eni for eni in state.inventory.enis.values() if eni.state is not EniState.FOREIGN]
    prefixes, addresses = sum(len(eni.prefixes) for eni in enis), sum(eni.foreign for eni in enis)
    refused = sum(eni.withheld for eni in enis)
    found = [
        (len(state.foreign_enis()), "ENI", "ENIs", "of somebody else"),
        (prefixes, "/28 prefix", "/28 prefixes", "on our ENIs"),
        (addresses, "address", "addresses", "of somebody else on our ENIs"),
        (refused, "slot", "slots", "of our ENIs that EC2 refuses"),
    ]
    return "not for pods: " + ", ".join(f"{many(n, one, more)} {whose}" for n, one, more, whose in found if n)


def why_never(state: State, waiting: Waiting, now: float) -> Refusal | None:
    """Why the one address that it asks for can't come any more; None when it can."""
    verdict = wish.judge(state, waiting, now)
    if isinstance(verdict, wish.Never):
        return wish.refusal(waiting.wanted, verdict, _numbers(state, state.counts()))
    full = len(state.inventory.attachments) >= state.pod_limit
    return why(state, now) if full and not wish.outlasts_a_release(state, waiting, now) else None


def why_late(state: State, waiting: Waiting, obstacle: str, now: float) -> Refusal:
    """The time is up; `obstacle` says what it was waited for, if anything."""
    numbers = _numbers(state, state.counts())
    if not state.started:
        return Refusal(Reason.NOT_READY, "the daemon has not learnt its ENIs yet: see its log", 5.0, numbers)
    if waiting.wanted:
        return wish.late(waiting.wanted, wish.judge(state, waiting, now), now - waiting.since, numbers)
    failing = [b for b in state.backoffs.since(waiting.since) if b.failure.action in GROWTH]
    waited = f"{now - waiting.since:.0f} s"
    if failing:
        return _blocked(max(failing, key=lambda b: b.attempts), now, numbers)
    if Supply(state, now).at_least <= 0:
        return why_nothing(state, waiting, 0, now)
    message = f"no address came within {waited}"
    if obstacle:
        message += f": {obstacle}"
    return Refusal(Reason.TIMEOUT, message, 1.0, numbers)


def _growable(state: State, counts: Counts, now: float) -> int:
    """Addresses that could still be asked for, unless something lasting is in the way."""
    found = 0
    for eni in state.inventory.enis.values():
        if eni.state is EniState.CREATING:
            found += eni.room  # a creation that fails is made again, perhaps in another subnet
        elif eni.state is EniState.READY or (eni.state in ARRIVING and not eni.unfulfilled):
            backoff = state.assign_backoff(eni, now)
            if backoff is None or not backoff.policy.lasting:
                found += eni.room + eni.releasing
        elif eni.state is EniState.CONFIGURING:
            found += len(eni.free) + eni.room  # its interface may still come
    if _creation_blocked(state, now) is None:
        # A slot that an ENI is about to leave is as good as a free one.
        leaving = sum(eni.state is EniState.DETACHING or eni.detached for eni in state.enis_of_card())
        found += max(state.eni_slots() + leaving, 0) * state.addresses_of_new_eni
    return max(min(found, state.allowance(counts)), 0)


def _creation_blocked(state: State, now: float) -> Backoff | None:
    """The lasting back-off that keeps new ENIs from coming."""
    general = state.creation_backoff(now)
    if general is not None:
        return general if general.policy.lasting else None
    subnets = [state.backoffs.active(now, subnet_scope(s)) for s in state.subnets.ids]
    full = [b for b in subnets if b is not None]
    return full[0] if full and len(full) == len(subnets) else None


def _blocked(backoff: Backoff, now: float, numbers: tuple[tuple[str, int], ...]) -> Refusal:
    failure, reason = backoff.failure, backoff.policy.reason
    words = failure.message if len(failure.message) <= LONGEST_MESSAGE else failure.message[:LONGEST_MESSAGE] + "..."
    where = "" if backoff.scope == action_scope(failure.action) else f" ({backoff.scope})"
    message = f"{failure.action}: {failure.code}: {words.rstrip('.')}{where}"
    # EC2 is asked again, but only an operator can make another answer of it.
    retry_after = None if reason is Reason.REQUEST_REFUSED else max(backoff.until - now, 0.1)
    return Refusal(reason, message, retry_after, numbers)


def _numbers(state: State, counts: Counts) -> tuple[tuple[str, int], ...]:
    return (
        ("free", counts.free),
        ("assigned", counts.assigned),
        ("cooling", counts.cooling),
        ("pending", counts.pending),
        ("waiting", counts.waiting),
        ("max_pods", state.max_pods),
    )
