"""Where the metrics come from. Imported for type checking only, because most of these modules are slow to import."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipamd.api.ipam import IpamService
    from ipamd.api.timing import CallTimes
    from ipamd.cloud.budget import RateBudget
    from ipamd.cloud.ec2 import Ec2
    from ipamd.cloud.port import Identity
    from ipamd.host import Reconciler
    from ipamd.ledger import Ledger
    from ipamd.pool.model import Reason
    from ipamd.process.start import Start
    from ipamd.shell.serving import Serving
    from ipamd.shell.turn import PoolRunner
    from ipamd.telemetry.conditions import Conditions
    from ipamd.telemetry.history import History


@dataclass(frozen=True, slots=True)
class Standing:
    """Sources that exist from the beginning of a start on."""

    start: Start
    calls: CallTimes
    refusals: Counter[Reason]
    ledger: Ledger
    history: History
    conditions: Conditions


@dataclass(frozen=True, slots=True)
class Sources:
    """Sources that exist once the pool does."""

    runner: PoolRunner
    reconciler: Reconciler
    service: IpamService
    cloud: Ec2
    budget: RateBudget
    identity: Identity
    serving: Serving
    started: float  # seconds since the epoch
