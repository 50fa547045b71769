"""Which IPv4 networks count as the VPC's: what goes there leaves with the pod's own address.

A CIDR that a VPC has got counts at once. One that is no longer named counts for another day: the metadata service is
consistent in the end only, and traffic that is translated by mistake breaks connections, while traffic that is not
translated by mistake only fails to reach a network that the VPC has lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# A CIDR that is missing from every answer for so many seconds counts no longer.
KEPT = 86400.0


@dataclass(frozen=True, slots=True)
class CidrsChanged:
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class VpcCidrs:
    def __init__(self, cidrs: Iterable[str]) -> None:
        self._missing_since: dict[str, float | None] = dict.fromkeys(cidrs)

    @property
    def all(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._missing_since)

    def observed(self, cidrs: Iterable[str], now: float) -> CidrsChanged:
        """`cidrs` are all that the VPC has by the latest answer."""
        named = tuple(dict.fromkeys(cidrs))
        added = tuple(cidr for cidr in named if cidr not in self._missing_since)
        removed = []
        for cidr, since in list(self._missing_since.items()):
            if cidr in named:
                self._missing_since[cidr] = None
            elif since is None:
                self._missing_since[cidr] = now
            elif now - since >= KEPT:
                del self._missing_since[cidr]
                removed.append(cidr)
        self._missing_since |= dict.fromkeys(added)
        return CidrsChanged(added, tuple(removed))
