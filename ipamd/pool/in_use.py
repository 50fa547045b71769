"""Nothing that somebody uses is granted.

An address of ours may be in use by somebody whom no record here knows: the pods of another CNI that ran on this node
before or still does, a link of the host, a route or a static neighbour that an administrator made, a pod of ours
whose release was a mistake. The kernel tells (ipamd/host/uses.py) at the start, as it happens, and in each audit.

    free          and used: foreign, as long as the use lasts
    cooling       and used: the same. A route of ours counts only when it has cooled: a DEL's goes a moment later
    on its way    back to EC2, and used: stays; the call that takes it away looks at the kernel before it is sent
    assigned      to a pod of ours, and led elsewhere as well: the pod keeps it, and an event tells of it
    foreign       and no longer used: cools, then it is free

A route of ipamd's own to an address of nobody is a pod's whose record is lost: it is recorded as that pod's.
"""

from __future__ import annotations

from ipamd.pool import events as on
from ipamd.pool.eni import Address
from ipamd.pool.life.states import Configuring
from ipamd.pool.model import AddressState, Attachment, AttachmentKey, EniState, Use
from ipamd.pool.reuse import Reuse
from ipamd.pool.state import Setup


class InUse(Reuse):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.contested: dict[str, Use] = {}  # addresses of pods that something else leads to as well

    def _use_seen(self, event: on.UseSeen, now: float) -> None:
        self.inventory.uses = self.inventory.uses.having(event.network, event.use)
        for address in list(self.inventory.addresses.values()):
            if self.inventory.uses.of(address.ip, address.eni.subnet) is event.use:
                self._judge(address, now)

    def _uses_read(self, event: on.UsesRead, now: float) -> None:
        self.inventory.uses, self.inventory.routed = event.uses, dict(event.routed)
        self._judge_all(now)

    def _judge_all(self, now: float) -> None:
        for address in list(self.inventory.addresses.values()):
            self._judge(address, now)

    def _route_matters(self, event: on.PodRouteSeen) -> bool:
        """Whether more follows from it than that it is known: the route of a pod with a record comes, and goes as a
        rule while its address cools."""
        address = self.inventory.addresses.get(event.ip)
        return address is not None and address.state not in (AddressState.ASSIGNED, AddressState.COOLING)

    def _note_route(self, event: on.PodRouteSeen) -> None:
        if event.link:
            self.inventory.routed[event.ip] = event.link
        else:
            self.inventory.routed.pop(event.ip, None)

    def _judge(self, address: Address, now: float) -> None:
        use, inventory = self.inventory.use_of(address), self.inventory
        match address.state:
            case AddressState.FREE if use is not None:
                inventory.withhold(address, use, now)
            case AddressState.COOLING if inventory.uses.of(address.ip, address.eni.subnet) is not None:
                self._withhold_cooling(address, now)
            case AddressState.RELEASING if use is not None and not self._gives_back(address.eni):
                eni = address.eni
                inventory.stay(eni, now)
                if eni.state is EniState.DRAINING:
                    eni.become(Configuring(), now)
            case AddressState.FOREIGN if use is None and not address.theirs:
                self._end_use(address, now)
            case AddressState.ASSIGNED:
                self._judge_assigned(address)

    def _judge_assigned(self, address: Address) -> None:
        """A rule for a pod's address is no contest: egress gateways and the like make some."""
        use = self.inventory.uses.of(address.ip, address.eni.subnet)
        ours = use is None or use.kind == "rule" or use.link == self.inventory.routed.get(address.ip, "")
        if ours or use is None:
            self.contested.pop(address.ip, None)
        elif self.contested.get(address.ip) != use:
            self.contested[address.ip] = use
            key = str(self.inventory.holders[address.ip])
            self._note("address.contested", "error", eni=address.eni.id, ip=address.ip, key=key, by=use.text)

    def _tell_found_used(self, now: float) -> None:
        """Of the addresses that turned out to be used when they would have been free."""
        inventory = self.inventory
        for ip, use in list(inventory.found_used.items()):
            address, link = inventory.addresses[ip], inventory.routed.get(ip)
            if link is not None and self._recover(address, link, now):
                continue
            self._note("address.foreign", "warning", eni=address.eni.id, ip=ip, cause=use.text)
        inventory.found_used.clear()
        if self.contested:
            self.contested = {ip: use for ip, use in self.contested.items() if ip in inventory.holders}

    def _recover(self, address: Address, link: str, now: float) -> bool:
        """Keep it for the pod that a route of ours leads to. False: another address is on record as that pod's."""
        attachment = recovered(address.ip, link, address.eni.id, now)
        if attachment.key in self.inventory.attachments or address.theirs:
            return False
        self._hold(address, attachment, now)
        self._note("attachment.recovered", "warning", ip=address.ip, link=link)
        return True


def recovered(ip: str, link: str, eni_id: str, now: float) -> Attachment:
    """The ledger was lost, the pod was not: keep the address for the pod that has it. Its DEL will name the same host
    interface."""
    return Attachment(AttachmentKey("", link, ""), ip, eni_id, now)
