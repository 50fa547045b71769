"""What EC2's replies bring in, and what they take away.

What a reply says is judged first (belief.py). What is doubted stays out, and the ENI is read again; what the call has
brought without naming it is there then, and its number distinguishes it from what others put on the ENI.
"""

from __future__ import annotations

from dataclasses import replace

from ipamd.pool.belief import brought, is_address, is_usable, shown
from ipamd.pool.eni import Address, Eni
from ipamd.pool.inventory import Lost
from ipamd.pool.life.states import Configuring
from ipamd.pool.links import Links
from ipamd.pool.model import (
    AddressState,
    Cooling,
    DropCooling,
    EniState,
    Intent,
    ObservedEni,
    PutCooling,
    PutIntent,
)
from ipamd.pool.state import ASSIGN, CREATE
from ipamd.pool.underway import Operation


class Replies(Links):
    def _take_in(self, eni: Eni, addresses: tuple[str, ...], operation: Operation, now: float) -> int:
        """What a call says that it has brought; returns how many are taken in. Whatever is not as it was asked for,
        the ENI is read again: what the call brought and did not name will be there, known by its number."""
        reply = brought(addresses, operation.count, eni, self.inventory)
        for ip in reply.believed:
            self.inventory.add(ip, eni, now)
        missing = operation.count - len(reply.believed)
        if missing:
            token = operation.token
            eni.unaccounted[token] = Intent(token, ASSIGN, now, eni.id, count=missing)
            self._write(PutIntent(eni.unaccounted[token]))
        for address in reply.contradicted:
            self._contradict(address, eni, now)
        if missing or reply.doubts:
            self._doubt(eni, reply.doubted or "fewer addresses than were asked for", operation.effect.action)
        return len(reply.believed)

    def _doubt(self, eni: Eni, doubts: str, action: str) -> None:
        eni.unsure = True
        self._note("ec2.reply_doubted", "warning", eni=eni.id, action=action, doubts=doubts)

    def _contradict(self, address: Address, elsewhere: Eni, now: float) -> None:
        """A reply has named it on another ENI than the one that we know it on: nobody gets it until that is read."""
        address.eni.contradicted[address.ip] = elsewhere.id
        address.eni.unsure = True
        if address.state is AddressState.FREE and (use := self.inventory.use_of(address)) is not None:
            self.inventory.withhold(address, use, now)

    def _own_address(self, eni: Eni, ip: str, now: float) -> None:
        """EC2 gave it to the ENI, and so took it from its holder."""
        if not (is_address(ip) and is_usable(ip, eni.subnet)):
            self._doubt(eni, f"own address {ip[:40]!a}", CREATE)
            return
        eni.primary_ip = ip
        known = self.inventory.addresses.get(ip)
        if known is None:
            return
        known.eni.unsure = True
        self._doubt(eni, f"{ip}: on record on {known.eni.id}", CREATE)
        if known.state is not AddressState.RELEASING:
            self._lose(known, f"EC2 has given {ip} to {eni.id} as its own address", now)

    def _believe(self, eni: Eni, observed: ObservedEni, now: float) -> ObservedEni:
        """What may be believed of a reading of this ENI."""
        reply = shown(observed, eni, self.inventory)
        if reply.doubts:
            self._note("ec2.reply_doubted", "warning", eni=eni.id, doubts=reply.doubted)
        if is_address(observed.primary_ip) and is_usable(observed.primary_ip, eni.subnet):
            eni.primary_ip = observed.primary_ip
        eni.read_at = now
        contradicted, eni.contradicted = eni.contradicted, {}
        for ip, elsewhere in contradicted.items():
            address = eni.addresses.get(ip)
            if address is not None and ip not in reply.believed:
                self._lose(address, f"EC2 has given {ip} to {elsewhere}", now)
            elif address is not None and address.state is AddressState.FOREIGN and not address.theirs:
                self._end_use(address, now)
        return replace(observed, addresses=reply.believed)

    def _prefixes_seen(self, eni: Eni, observed: ObservedEni) -> None:
        """Each takes a slot of the ENI. Nobody but others puts one there, or takes it away."""
        if set(eni.prefixes) != set(observed.prefixes):
            eni.prefixes, eni.refused = observed.prefixes, None
            self._note("eni.prefixes", "info", eni=eni.id, prefixes=len(eni.prefixes), room=eni.room)

    def _account(self, eni: Eni, addresses: tuple[str, ...], now: float) -> None:
        """Whose are the addresses found on the ENI? Ours, if calls of unknown outcome explain all that we don't know.

        What somebody else puts on the ENI in the same moment looks like ours in every reading.
        """
        unknown = [ip for ip in addresses if ip not in eni.addresses]
        explained = eni.explain(len(unknown))
        for record in explained or ():
            self._write(record)
        for ip in unknown:
            if explained is None or ip in self.inventory.holders:
                self._find_foreign(ip, eni, now)
            else:
                self.inventory.add(ip, eni, now)

    def _close_accounts(self, eni: Eni, asked_before: float) -> None:
        for record in eni.explain_no_more(asked_before):
            self._write(record)

    def _find_foreign(self, ip: str, eni: Eni, now: float) -> None:
        if ip in self.inventory.holders:
            self._find_held(ip, eni, now)
            return
        self._cools_no_more(ip)
        self.inventory.add_foreign(ip, eni, now)
        self._note("address.foreign", "warning", eni=eni.id, ip=ip, cause="unknown")

    def _find_held(self, ip: str, eni: Eni, now: float) -> None:
        """A pod's, wherever it was; the host serves it on this ENI from now on."""
        if ip in self.inventory.lost:
            self._note("address.found_again", "info", eni=eni.id, ip=ip)
        self.inventory.add(ip, eni, now)
        if eni.state is EniState.READY:
            eni.become(Configuring(), now)

    def _cools_no_more(self, ip: str) -> None:
        """For the ledger; what becomes of the address instead is the caller's to say."""
        if ip in self.inventory.cooling:
            self._write(DropCooling(ip))

    def _end_use(self, address: Address, now: float) -> None:
        """Nobody uses it any more: it cools, as a released one does."""
        self.inventory.cool(address, now)
        self.unflushed[address.ip] = None
        self._write(PutCooling(Cooling(address.ip, now)))
        self._note("address.foreign_ended", "info", eni=address.eni.id, ip=address.ip)

    def _lose(self, address: Address, cause: str, now: float) -> None:
        """EC2 has taken it from its ENI. A pod that has it is cut off, and keeps its record until it goes."""
        ip, held = address.ip, address.state is AddressState.ASSIGNED
        self._cools_no_more(ip)
        self.inventory.lose(address)
        if held:
            self.inventory.lost[ip] = Lost(now, cause)
        level = "error" if held else "warning"
        self._note("address.missing", level, eni=address.eni.id, ip=ip, state=address.state.value, cause=cause)
