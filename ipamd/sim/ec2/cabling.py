"""The cloud's side of `Wiring`: says it everything in the order in which it became true, one thing at a time."""

from __future__ import annotations

import asyncio

from ipamd.sim.ec2.rules import Attachment, Eni
from ipamd.sim.wiring import Wiring

# More than any card has device indexes.
CARD_STEP = 100


class Cabling:
    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._one_at_a_time = asyncio.Lock()

    async def plug(self, eni: Eni, attachment: Attachment) -> None:
        async with self._one_at_a_time:
            await self._wiring.plug(attachment.instance_id, eni.id, eni.mac, _number(attachment))
            eni.plugged = True
        await self.deliver(eni)

    async def unplug(self, eni: Eni) -> None:
        async with self._one_at_a_time:
            if eni.plugged:
                await self._wiring.unplug(eni.id)
                eni.plugged = False

    async def deliver(self, eni: Eni) -> None:
        async with self._one_at_a_time:  # the addresses are read inside, so that the last call tells the latest ones
            await self._wiring.deliver(eni.id, tuple(eni.delivered))


def _number(attachment: Attachment) -> int:
    """Of the link: device indexes come again on each network card."""
    return attachment.device_index + CARD_STEP * attachment.network_card
