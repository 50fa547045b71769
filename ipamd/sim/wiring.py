"""What the simulated cloud says to the part that moves the packets.

The cloud half of the VPC in a box decides (which ENI sits where, which address belongs to whom); the packet half
carries it out. This interface is all that the one knows of the other, so the cloud also runs without packets, and
without root.
"""

from __future__ import annotations

from typing import Protocol


class Wiring(Protocol):
    """Called in the order in which things happen, and one call at a time."""

    async def plug(self, instance_id: str, eni_id: str, mac: str, device_index: int) -> None:
        """The ENI's link appears on the instance. `deliver` follows at once."""

    async def unplug(self, eni_id: str) -> None:
        """The ENI's link vanishes from its instance."""

    async def deliver(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        """From now on the ENI has exactly these private addresses, primary first; none: it was deleted.

        Called after every change, whether the ENI is plugged or not.
        """


class NoWiring:
    """A cloud without packets."""

    async def plug(self, instance_id: str, eni_id: str, mac: str, device_index: int) -> None:
        pass

    async def unplug(self, eni_id: str) -> None:
        pass

    async def deliver(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        pass
