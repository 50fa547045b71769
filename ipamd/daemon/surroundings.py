"""What the daemon has before it has asked anybody: settings, records, and what it tells of itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from ipamd.api.spool import Spool
from ipamd.ledger import Ledger
from ipamd.process.reload import LiveSettings
from ipamd.process.service_manager import ServiceManager
from ipamd.process.start import Start
from ipamd.shell.turn import Clock
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History

# Seconds that answers and EC2 calls under way get at the end; systemd's TimeoutStopSec is longer.
STOP_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`began`: seconds since the epoch. `changed` is set whenever the pool may have changed."""

    live: LiveSettings
    history: History
    ledger: Ledger
    spool: Spool
    clock: Clock
    conditions: Conditions
    manager: ServiceManager
    start: Start
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.time)
