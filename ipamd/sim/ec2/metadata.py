"""What instance metadata shows of an instance's ENIs: what EC2 knew some time ago."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ipamd.sim.ec2.rules import Attachment, Eni, SecurityGroup, Subnet


@dataclass(frozen=True, slots=True)
class EniMetadata:
    """One ENI as instance metadata shows it."""

    id: str
    mac: str
    device_index: int
    addresses: tuple[str, ...]
    subnet: Subnet
    groups: tuple[SecurityGroup, ...]
    network_card: int = 0
    prefixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, eni: Eni, attachment: Attachment) -> EniMetadata:
        return cls(
            eni.id,
            eni.mac,
            attachment.device_index,
            tuple(eni.addresses),
            eni.subnet,
            eni.groups,
            attachment.network_card,
            tuple(eni.prefixes),
        )

    @property
    def primary(self) -> bool:
        return self.device_index == self.network_card == 0


class Lagging:
    """The ENIs of one instance as seen with a delay: what was true `lag` seconds ago."""

    def __init__(self, lag: float) -> None:
        self._lag = lag
        self._history: deque[tuple[float, tuple[EniMetadata, ...]]] = deque()

    def record(self, now: float, enis: tuple[EniMetadata, ...]) -> None:
        self._history.append((now, enis))

    def read(self, now: float) -> tuple[EniMetadata, ...]:
        """The first record is there from the start: an instance that boots finds its primary ENI."""
        while len(self._history) > 1 and self._history[1][0] + self._lag <= now:
            self._history.popleft()
        return self._history[0][1] if self._history else ()


class Metadata:
    """Of one instance. `forced_off` are ENIs, by id, that were detached by force and that it goes on showing."""

    def __init__(self, lag: float) -> None:
        self.forced_off: dict[str, EniMetadata] = {}
        self._shown = Lagging(lag)

    def publish(self, enis: dict[str, Eni], now: float) -> None:
        """An ENI is in metadata from `attached` until it is gone."""
        shown = {
            eni.id: EniMetadata.of(eni, eni.attachment)
            for eni in enis.values()
            if eni.attachment and eni.attachment.status != "attaching"
        }
        self._shown.record(now, tuple((shown | self.forced_off).values()))

    def read(self, now: float) -> tuple[EniMetadata, ...]:
        return self._shown.read(now)
