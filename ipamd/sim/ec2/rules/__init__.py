"""EC2's rules, written once: limits, ownership of addresses, states of attachments, idempotency, error codes.

`Ec2Rules` is pure and synchronous. It reads no clock: a call that needs the time takes it as an argument, in seconds
of any clock that only goes forward. It has no delays: attaching, detaching and terminating each have a method that
begins them and one that ends them, and the caller decides when.

Its faces add what the rules leave open: `ipamd.sim.ec2` real time, HTTP and packets; `ipamd.sim.virtual` virtual
time; the property test of the pool an adversary.
"""

from ipamd.sim.ec2.rules.book import Ec2Rules
from ipamd.sim.ec2.rules.errors import Ec2Error
from ipamd.sim.ec2.rules.registry import Registry
from ipamd.sim.ec2.rules.resources import NOTHING, Ask, Attachment, Eni, Instance, SecurityGroup
from ipamd.sim.ec2.rules.subnet import RESERVED, Subnet

__all__ = [
    "NOTHING",
    "RESERVED",
    "Ask",
    "Attachment",
    "Ec2Error",
    "Ec2Rules",
    "Eni",
    "Instance",
    "Registry",
    "SecurityGroup",
    "Subnet",
]
