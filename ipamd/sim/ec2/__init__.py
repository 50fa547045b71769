"""A double of EC2 that is as strict as EC2 about what an address allocator lives by: limits, ownership, time.

moto answers the same calls without limits, delays, ClientToken or unique addresses, so an allocator that is wrong
passes there. From the rules outwards: `rules` (state, rules and limits of requests, pure), `cloud` (all of it in real
time, with packets), `consistency` and `metadata` (what is seen of it how late), `actions` and `views` (calls and
replies), `wire` (the Query protocol), `faults` (what else befalls a call), `api` (HTTP). `sim/servers.py` serves it
together with instance metadata and control.
"""

from ipamd.sim.ec2.cloud import Delays, SimulatedCloud, new_id
from ipamd.sim.ec2.consistency import Lags
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.rules import Ec2Error
from ipamd.sim.ec2.rules.throttle import Throttle

__all__ = [
    "Delays",
    "Ec2Error",
    "Fault",
    "Lags",
    "SimulatedCloud",
    "Throttle",
    "new_id",
]
