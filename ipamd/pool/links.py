"""The host's side of an ENI: its interface comes, can't be set up, or vanishes."""

from __future__ import annotations

from ipaddress import IPv4Network

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.belief import is_usable
from ipamd.pool.eni import Eni
from ipamd.pool.life.states import Configuring, Ready
from ipamd.pool.model import EniState
from ipamd.pool.underway import TAKES_EFFECT, UnderWay

# How long an ENI whose link could not be set up is left before the next try, in seconds; doubled each time.
LINK_RETRY, LINK_RETRY_CAP = 5.0, 60.0

# An ENI whose interface vanishes again within this time is read less and less often, in seconds.
STEADY_AFTER = 600.0


class Links(UnderWay):
    def _device_gone(self, event: on.DeviceGone, now: float) -> None:
        """Somebody detached the ENI, or its driver let go of it: EC2 knows. Until that is known, and the interface is
        back, its addresses are granted to nobody and not counted on."""
        eni = self.inventory.enis.get(event.eni_id)
        if eni is None:
            return
        if eni.state is EniState.READY:
            again = now < eni.device_gone_at + STEADY_AFTER
            eni.device_losses = eni.device_losses + 1 if again else 0
            if eni.device_losses:
                pause = min(LINK_RETRY * 2.0 ** (eni.device_losses - 1), LINK_RETRY_CAP)
                eni.retry_at = max(eni.retry_at, now + pause)
            eni.device_gone_at = now
            eni.become(Configuring(), now)
            self._note("eni.device_gone", "warning", eni=eni.id, link=eni.link)
        elif eni.state is not EniState.CONFIGURING or not self._seeks_link(eni):
            return
        eni.last_op_before_loss = self._last_op
        eni.unsure = eni.unfulfilled = True

    def _seeks_link(self, eni: Eni) -> bool:
        """Whether its interface is being set up; what comes of that says nothing of a device that has gone since."""
        under_way = self._operations.get(eni.busy)
        return under_way is not None and isinstance(under_way.effect, do.ConfigureLink)

    def _link_ready(self, event: on.LinkReady, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        if event.op <= eni.last_op_before_loss:
            eni.busy, eni.retry_at = 0, now + self._link_pause(eni)
            return  # it has vanished since
        eni.become(Ready(), now)
        eni.busy, eni.link_failures = 0, 0
        if eni.in_limbo:
            eni.retry_at = now + TAKES_EFFECT
        if eni.unaccounted:
            eni.unsure = True  # what became of these assignments was not to be read meanwhile
        eni.link = event.link
        self._learn_subnet(eni, event.subnet, now)
        self._note("eni.ready", "info", eni=eni.id, link=event.link, addresses=eni.held)

    def _learn_subnet(self, eni: Eni, subnet: IPv4Network, now: float) -> None:
        """From now on it is known which addresses the ENI can have. A CIDR that does not even hold the ENI's own
        address says nothing."""
        if eni.primary_ip and not is_usable(eni.primary_ip, subnet):
            self._note("ec2.reply_doubted", "warning", eni=eni.id, doubts=f"its own address is not one of {subnet}")
            return
        eni.subnet = subnet
        for address in list(eni.free.values()):
            if not is_usable(address.ip, subnet):
                self.inventory.lose(address)
                eni.unsure = True
                doubt = f"{address.ip}: not an address for {subnet}"
                self._note("ec2.reply_doubted", "warning", eni=eni.id, doubts=doubt)
            elif (use := self.inventory.use_of(address)) is not None:
                self.inventory.withhold(address, use, now)

    def _link_failed(self, event: on.LinkFailed, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        # Perhaps it has no link because it is no longer attached.
        eni.busy, eni.unfulfilled, eni.unsure, eni.retry_at = 0, True, True, now + self._link_pause(eni)
        self._note("eni.link_failed", "error", eni=eni.id, mac=eni.mac, error=event.message)

    def _link_pause(self, eni: Eni) -> float:
        """Longer each time, until its interface is there."""
        eni.link_failures = min(eni.link_failures + 1, 10)
        return min(LINK_RETRY * 2.0 ** (eni.link_failures - 1), LINK_RETRY_CAP)
