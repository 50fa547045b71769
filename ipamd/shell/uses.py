"""What the kernel shows of addresses in use, as events of the pool. Networks outside of the VPC are none of its
concern."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network

from ipamd.cloud.vpc import Vpc
from ipamd.pool import events as on
from ipamd.pool.model import Use, Uses


class UsesSeen:
    """Listens to `host.uses`; `tell` takes an event without another look at the kernel."""

    def __init__(self, vpc: Vpc, tell: Callable[[on.Event], None]) -> None:
        self._vpc = vpc
        self._tell = tell

    def use_seen(self, network: IPv4Network, use: Use) -> None:
        if self._vpc.overlaps(network):
            self._tell(on.UseSeen(network, use))

    def pod_route_seen(self, ip: str, link: str) -> None:
        self._tell(on.PodRouteSeen(ip, link))

    def uses_read(self, uses: Uses, routed: dict[str, str]) -> None:
        networks = {network: use for network, use in uses.networks.items() if self._vpc.overlaps(network)}
        self._tell(on.UsesRead(Uses(uses.hosts, networks), tuple(routed.items())))
