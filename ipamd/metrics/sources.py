"""The parts of the daemon that keep what is told. None of them is imported for it: most are slow to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipamd.api.ipam import IpamService
    from ipamd.api.timing import CallTimes
    from ipamd.cloud.budget import RateBudget
    from ipamd.cloud.ec2 import Ec2
    from ipamd.cloud.port import Identity
    from ipamd.conditions import Conditions
    from ipamd.history import History
    from ipamd.ledger import Ledger
    from ipamd.runner import PoolRunner
    from ipamd.serving import Serving


@dataclass(frozen=True, slots=True)
class Sources:
    runner: PoolRunner
    service: IpamService
    calls: CallTimes
    cloud: Ec2
    ledger: Ledger
    budget: RateBudget
    history: History
    identity: Identity
    conditions: Conditions
    serving: Serving
