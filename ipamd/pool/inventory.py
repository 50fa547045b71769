"""The ENIs and addresses of the node, with the indexes that make each look-up independent of the pool's size.

Only bookkeeping: which address is in which state on which ENI. Why it changes is the pool's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ipamd.pool.eni import Address, Eni
from ipamd.pool.model import (
    AddressState,
    Attachment,
    AttachmentKey,
    EniState,
    Use,
    Uses,
)


@dataclass(frozen=True, slots=True)
class Lost:
    """Since when a pod's address is not on the node, and what is known of it."""

    at: float
    cause: str


class Inventory:
    def __init__(self) -> None:
        self.enis: dict[str, Eni] = {}
        self.addresses: dict[str, Address] = {}
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self.holders: dict[str, AttachmentKey] = {}
        # Insertion order is the order of release, hence of expiry.
        self.cooling: dict[str, float] = {}
        # ENIs whose own addresses became other ones since this was last emptied.
        self.altered: dict[str, Eni] = {}
        # What others have in the kernel, the routes of ours to pods, and the addresses that were found to be used
        # when they would have become free, since this was last emptied.
        self.uses = Uses()
        self.routed: dict[str, str] = {}
        self.found_used: dict[str, Use] = {}
        # Of the addresses of pods that no ENI here has.
        self.lost: dict[str, Lost] = {}

    # ENIs

    def add_eni(self, eni: Eni) -> None:
        self.enis[eni.id] = eni

    def name_eni(self, eni: Eni, eni_id: str) -> None:
        """EC2 gave the ENI its id."""
        del self.enis[eni.id]
        eni.id = eni_id
        self.enis[eni_id] = self.altered[eni_id] = eni

    def remove_eni(self, eni: Eni) -> list[str]:
        """Returns its addresses that were cooling. Attachments that point at its addresses stay: a running pod keeps
        its record."""
        cooling = [ip for ip in eni.addresses if self.cooling.pop(ip, None) is not None]
        for ip in eni.addresses:
            del self.addresses[ip]
            self.found_used.pop(ip, None)
        self.enis.pop(eni.id, None)
        self.altered.pop(eni.id, None)
        return cooling

    def ready(self) -> Iterator[Eni]:
        return (eni for eni in self.enis.values() if eni.state is EniState.READY)

    # Addresses

    def add(self, ip: str, eni: Eni, now: float) -> None:
        """EC2 gave the address to the ENI, and so took it from any other. It is free, unless a pod holds it or it
        cools: that stays true wherever it is."""
        known = self.addresses.get(ip)
        if known is not None and known.eni is eni:
            return
        released_at = self.cooling.get(ip)
        if known is not None:
            self._leave_behind(known)
        if ip in self.holders:
            self.add_assigned(self.attachments[self.holders[ip]], eni)
        elif released_at is not None:
            self.add_cooling(ip, eni, released_at)
        else:
            self._let_go(self._put(ip, eni, AddressState.FREE, now), now)

    def owner_of(self, ip: str) -> Eni | None:
        """The ENI whose own address it is."""
        return next((eni for eni in self.enis.values() if eni.primary_ip == ip), None)

    def use_of(self, address: Address) -> Use | None:
        """Why nobody may be given the address: an ENI has it as its own, or something in the kernel leads to it."""
        if (owner := self.owner_of(address.ip)) is not None:
            return Use("eni", f"{owner.id}'s own address")
        if (elsewhere := address.eni.contradicted.get(address.ip)) is not None:
            return Use("eni", f"EC2 has named it on {elsewhere}")
        if (link := self.routed.get(address.ip)) is not None:
            return Use("route", f"a route of ipamd's to {link}, on nobody's record", link)
        return self.uses.of(address.ip, address.eni.subnet)

    def _let_go(self, address: Address, now: float) -> None:
        """Nobody has it any more: it is free, unless it is used all the same, or goes back with its ENI."""
        use = self.use_of(address)
        if use is None and address.eni.state is EniState.DELETING:
            address.state, address.since = AddressState.RELEASING, now
            address.eni.leaving[address.ip] = address
        elif use is None:
            address.state, address.since = AddressState.FREE, now
            address.eni.free[address.ip] = address
        else:
            address.state, address.since = AddressState.FOREIGN, now
            address.eni.foreign += 1
            self.found_used[address.ip] = use

    def withheld(self) -> dict[str, Use]:
        """The addresses of ours that are granted to nobody because somebody uses them, and how."""
        found = {}
        for eni in self.enis.values():
            for address in eni.addresses.values() if eni.foreign else ():
                if address.state is AddressState.FOREIGN and not address.theirs:
                    found[address.ip] = self.use_of(address) or Use("route", "no longer used")
        return found

    def withhold(self, address: Address, use: Use, now: float) -> None:
        """Somebody uses this address, which is free or cools."""
        if address.state is AddressState.FREE:
            del address.eni.free[address.ip]
        else:
            del self.cooling[address.ip]
            address.eni.cooling -= 1
        address.state, address.since = AddressState.FOREIGN, now
        address.eni.foreign += 1
        self.found_used[address.ip] = use

    def _put(self, ip: str, eni: Eni, state: AddressState, since: float) -> Address:
        address = Address(ip, eni, state, since)
        self.addresses[ip] = eni.addresses[ip] = address
        self.altered[eni.id] = eni
        return address

    def _leave_behind(self, address: Address) -> None:
        eni = address.eni
        del eni.addresses[address.ip]
        self.altered[eni.id] = eni
        self.found_used.pop(address.ip, None)
        match address.state:
            case AddressState.FREE:
                del eni.free[address.ip]
            case AddressState.ASSIGNED:
                eni.assigned -= 1
            case AddressState.COOLING:
                eni.cooling -= 1
            case AddressState.RELEASING:
                del eni.leaving[address.ip]
                eni.unsure = eni.unsure or eni.in_limbo  # another look ends the call that may have its effect yet
            case AddressState.FOREIGN:
                eni.foreign -= 1

    def add_assigned(self, attachment: Attachment, eni: Eni) -> None:
        self._put(attachment.address, eni, AddressState.ASSIGNED, attachment.since)
        self.lost.pop(attachment.address, None)
        eni.assigned += 1
        self._hold(attachment)

    def add_cooling(self, ip: str, eni: Eni, released_at: float) -> None:
        self._put(ip, eni, AddressState.COOLING, released_at)
        self.cooling[ip] = released_at
        eni.cooling += 1

    def add_foreign(self, ip: str, eni: Eni, now: float) -> None:
        """Somebody else's address."""
        known = self.addresses.get(ip)
        if known is not None:
            self._leave_behind(known)
        self.cooling.pop(ip, None)
        self._put(ip, eni, AddressState.FOREIGN, now).theirs = True
        eni.foreign += 1

    def lose(self, address: Address) -> None:
        """EC2 no longer has it on this ENI. Its attachment stays, if it has one: a running pod keeps its record."""
        self._leave_behind(address)
        del self.addresses[address.ip]
        self.cooling.pop(address.ip, None)

    def add_stranded(self, attachment: Attachment) -> None:
        """A recorded attachment whose address no ENI of ours holds."""
        self._hold(attachment)

    def take(self, wished: Collection[str] = ()) -> Address | None:
        """The next address to grant: from the ENI with the most assigned addresses, so that others can drain;
        within it the one that has been free longest. One that is `wished` only if nothing else is free. None when
        nothing is free."""
        best = max((eni for eni in self.ready() if eni.free), key=lambda eni: eni.assigned, default=None)
        if best is None or not wished:
            return None if best is None else next(iter(best.free.values()))
        enis = sorted((eni for eni in self.ready() if eni.free), key=lambda eni: -eni.assigned)
        free = [address for eni in enis for address in eni.free.values()]
        return next((address for address in free if address.ip not in wished), free[0])

    def assign(self, address: Address, attachment: Attachment, now: float) -> None:
        """`address` is free; or it cools, or is withheld, while a pod turns out to have it."""
        eni = address.eni
        match address.state:
            case AddressState.FREE:
                del eni.free[address.ip]
            case AddressState.FOREIGN:
                eni.foreign -= 1
            case _:
                del self.cooling[address.ip]
                eni.cooling -= 1
        eni.assigned += 1
        address.state, address.since = AddressState.ASSIGNED, now
        self._hold(attachment)

    def unassign(self, attachment: Attachment) -> Address | None:
        """Forget the attachment; returns its address if an ENI of ours still holds it."""
        del self.attachments[attachment.key]
        del self.holders[attachment.address]
        self.lost.pop(attachment.address, None)
        address = self.addresses.get(attachment.address)
        if address is not None:
            address.eni.assigned -= 1
            address.last_key = attachment.key
        return address

    def cool(self, address: Address, now: float) -> None:
        """It is released, or somebody else's use of it has ended."""
        if address.state is AddressState.FOREIGN:
            address.eni.foreign -= 1
        address.state, address.since = AddressState.COOLING, now
        address.eni.cooling += 1
        self.cooling[address.ip] = now

    def free_again(self, address: Address, now: float) -> None:
        if self.cooling.pop(address.ip, None) is not None:
            address.eni.cooling -= 1
        self._let_go(address, now)

    def leave_all(self, eni: Eni, now: float) -> None:
        """Mark all that is free on it for giving back."""
        self.leave_these(eni, tuple(eni.free), now)

    def leave(self, eni: Eni, count: int, now: float) -> None:
        """Mark free addresses for giving back: those that became free last, as they would be granted last."""
        self.leave_these(eni, list(eni.free)[len(eni.free) - count :], now)

    def leave_these(self, eni: Eni, ips: Iterable[str], now: float) -> None:
        """They are free."""
        for ip in ips:
            address = eni.free.pop(ip)
            address.state, address.since = AddressState.RELEASING, now
            eni.leaving[ip] = address

    def stay(self, eni: Eni, now: float) -> None:
        """Take back what was leaving; of an ENI that is being deleted, only what is used all the same."""
        eni.unverify()
        leaving, eni.leaving = eni.leaving, {}
        for address in leaving.values():
            self._let_go(address, now)

    def gone(self, eni: Eni, ips: list[str]) -> None:
        """EC2 has taken these leaving addresses back."""
        for ip in ips:
            self.lose(eni.leaving[ip])
        if not eni.leaving:
            eni.unverify()

    def _hold(self, attachment: Attachment) -> None:
        self.attachments[attachment.key] = attachment
        self.holders[attachment.address] = attachment.key
