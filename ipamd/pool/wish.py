"""An ADD that asks for one address gets that one or none.

    there      free on an ENI that is ready, or released by the same attachment a moment ago: granted at once
    coming     on an ENI that is being made or set up, among those that EC2 was asked for and has not named, cooling,
               a pod's that may end, on its way back to EC2 with the call not answered yet: the ADD waits for it
    never      all else: refused with `Reason.ADDRESS_UNAVAILABLE`

One attachment waits for one address at a time: a second one is refused. It holds up nobody else: who waits for any
address gets another one if there is one, else the wished one, if that pod came first.

Reads the pool's state, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from ipamd.pool.belief import is_usable
from ipamd.pool.eni import Address
from ipamd.pool.model import AddressState, Attachment, AttachmentKey, EniState, Reason, Refusal
from ipamd.pool.queue import Waiting, WaitsFor
from ipamd.pool.state import State
from ipamd.pool.words import many


@dataclass(frozen=True, slots=True)
class Coming:
    """The address may come before the deadline. `why` is a clause that says where it is now."""

    by: WaitsFor
    why: str


@dataclass(frozen=True, slots=True)
class Never:
    """It can't come before the deadline. `retry_after` as in `Refusal`."""

    why: str
    retry_after: float | None = None


def find(state: State, ip: str, key: AttachmentKey) -> Address | None:
    """The address, if this attachment can have it now: it is free, or the attachment itself has released it a moment
    ago. Its own flows need not be forgotten before it goes on with them."""
    address = state.inventory.addresses.get(ip)
    if address is None or address.eni.state is not EniState.READY:
        return None
    return address if address.state is AddressState.FREE or _is_its_own(state, address, key) else None


def _is_its_own(state: State, address: Address, key: AttachmentKey) -> bool:
    return (
        address.state is AddressState.COOLING
        and address.last_key == key
        and state.inventory.uses.of(address.ip, address.eni.subnet) is None
    )


def judge(state: State, waiting: Waiting, now: float) -> Coming | Never:
    """Whether the address that a request in the queue asks for can still come; it is not there (`find`), or too many
    pods have one."""
    inventory, ip = state.inventory, waiting.wanted
    first = state.queue.wished[ip][0]
    if first.key != waiting.key:
        return Never("another pod waits for it already", state.targets.cooldown or 1.0)
    address = inventory.addresses.get(ip)
    if address is None:
        return _unknown(state, ip, waiting)
    eni = address.eni
    if eni.state is EniState.DELETING:
        return Never(f"{eni.id}, which has it, is being deleted")
    match address.state:
        case AddressState.FREE if eni.state is EniState.READY:
            return Coming(WaitsFor.RELEASE, "it is free, but pods have as many addresses as pool.max_pods allows")
        case AddressState.FREE:
            return Coming(WaitsFor.EC2, f"{eni.id}, which has it, is {eni.state}")
        case AddressState.ASSIGNED:
            return _held(state, waiting, now)
        case AddressState.COOLING:
            return _cooling(state, address, waiting, now)
        case AddressState.RELEASING:
            return Coming(WaitsFor.EC2, "it is on its way back to EC2")
        case AddressState.FOREIGN if ip in eni.contradicted:
            return Coming(WaitsFor.EC2, f"EC2 has named it on {eni.contradicted[ip]} as well, and is asked again")
        case AddressState.FOREIGN:
            use = None if address.theirs else inventory.use_of(address)
            return Never("it is somebody else's" + (f": {use.text}" if use is not None else ""))
        case _:
            assert_never(address.state)


def _unknown(state: State, ip: str, waiting: Waiting) -> Coming | Never:
    """No ENI of the node has the address for pods."""
    if (owner := state.inventory.owner_of(ip)) is not None:
        return Never(f"it is the own address of {owner.id}")
    if ip in state.inventory.holders:
        return Never("a pod has it, though no ENI of this node does")
    unnamed = unnamed_addresses(state, ip)
    if unnamed > _wishes_before(state, waiting):
        on_the_way = many(unnamed, "address is", "addresses are")
        return Coming(WaitsFor.EC2, f"{on_the_way} on the way, and EC2 has not said which")
    return Never("no ENI of this node has it")


def _wishes_before(state: State, waiting: Waiting) -> int:
    """How many before it in the queue hope for an address that nobody has named."""
    found = 0
    for other in state.waiting.values():
        if other is waiting:
            break
        found += bool(other.wanted) and other.wanted not in state.inventory.addresses
    return found


def unnamed_addresses(state: State, ip: str) -> int:
    """How many addresses EC2 was asked for and has not named, of subnets that may have this one for an ENI."""
    enis = state.inventory.enis.values()
    networks = {eni.subnet_id: eni.subnet for eni in enis if eni.subnet is not None}
    found = 0
    for eni in enis:
        asked = eni.pending + sum(intent.count for intent in eni.unaccounted.values())
        network = networks.get(eni.subnet_id) if asked else None
        if asked and is_usable(ip, network):
            found += asked
    return found


def _held(state: State, waiting: Waiting, now: float) -> Coming | Never:
    if outlasts_a_release(state, waiting, now):
        return Coming(WaitsFor.RELEASE, "another pod has it")
    return Never("another pod has it", state.targets.cooldown or 1.0)


def outlasts_a_release(state: State, waiting: Waiting, now: float) -> bool:
    """Whether a pod may end, and its address cool, while the request waits."""
    return not waiting.blocks_releases and waiting.since + state.reusable_after(now) < waiting.deadline


def _cooling(state: State, address: Address, waiting: Waiting, now: float) -> Coming | Never:
    if _is_its_own(state, address, waiting.key):
        return Coming(WaitsFor.EC2, f"{address.eni.id}, which has it, is {address.eni.state}")
    ends = state.inventory.cooling[address.ip] + state.reusable_after(now)
    if ends < waiting.deadline:
        return Coming(WaitsFor.COOLDOWN, "it cools after its last pod")
    return Never("it cools after its last pod", max(ends - now, 0.1))


# The answers


def refusal(ip: str, never: Never, numbers: tuple[tuple[str, int], ...]) -> Refusal:
    """The sentence is the same at each try, so that the runtime's events are."""
    message = f"{ip} was asked for, but {never.why}; ask for none to get any"
    return Refusal(Reason.ADDRESS_UNAVAILABLE, message, never.retry_after, numbers)


def has_another(ip: str, held: Attachment) -> Refusal:
    """For an ADD that is repeated and asks for another address than it was given."""
    message = f"{ip} was asked for, but the attachment has {held.address}: it has to be deleted first"
    return Refusal(Reason.ADDRESS_UNAVAILABLE, message)


def late(ip: str, verdict: Coming | Never, waited: float, numbers: tuple[tuple[str, int], ...]) -> Refusal:
    """The time is up."""
    message = f"{ip} was asked for and did not come within {waited:.0f} s: {verdict.why}"
    return Refusal(Reason.ADDRESS_UNAVAILABLE, message, 1.0, numbers)
