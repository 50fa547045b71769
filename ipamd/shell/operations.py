"""The daemon's hands: what `interpreter` needs to carry an operation out on the real EC2 and on this host.

An EC2 call may wait in the node's rate budget before it is sent. The priority of the operation decides how long, and
the kernel is asked about it after that wait.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Network

import structlog

from ipamd.cloud.port import Cloud, CloudError
from ipamd.cloud.vpc import Vpc
from ipamd.host import HostError, HostNetwork, Reconciler
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import AttachmentKey, CloudErrorKind, CloudFailure
from ipamd.pool.view import View
from ipamd.shell import interpreter
from ipamd.shell.readings import Readings
from ipamd.shell.urgency import priority_of
from ipamd.shell.wanted import WantedNetwork
from ipamd.telemetry.tracing import Tracer

log = structlog.get_logger("ipamd.pool")

# A Nitro instance shows the device within a second or two of the attachment; past this it is worth an alarm.
LINK_TIMEOUT = 60.0


class Operations:
    """`security_groups` are those of new ENIs. It is the `Host` of the interpreter."""

    def __init__(
        self,
        view: View,
        cloud: Cloud,
        network: HostNetwork,
        vpc: Vpc,
        readings: Readings,
        wanted: WantedNetwork,
        reconciler: Reconciler,
        security_groups: tuple[str, ...],
        tracer: Tracer,
    ) -> None:
        self._view = view
        self._cloud = cloud
        self._network = network
        self._vpc = vpc
        self._readings = readings
        self._wanted = wanted
        self._reconciler = reconciler
        self._security_groups = security_groups
        self._tracer = tracer

    async def perform(self, effect: do.Operation) -> on.Event:
        """Raises nothing: a failure is an event as well."""
        waiting = self._view.requests()
        bind = partial(self._cloud.at, priority_of(effect, bool(waiting)))
        try:
            with self._tracer.operation(effect.action, waiting):
                return await interpreter.interpret(effect, bind, self, self._security_groups)
        except CloudError as error:
            return on.OperationFailed(effect.op, error.failure)
        except HostError as error:
            return interpreter.host_failed(effect, str(error))
        except Exception as error:
            log.exception("operation.crashed", effect=type(effect).__name__)
            failure = CloudFailure(
                CloudErrorKind.UNKNOWN_OUTCOME, effect.action, type(error).__name__, f"{error} (see the log)"
            )
            return on.OperationFailed(effect.op, failure)

    async def configure_link(self, effect: do.ConfigureLink) -> tuple[str, IPv4Network]:
        link = await self._network.wait_for_link(effect.mac, LINK_TIMEOUT)
        await self._wanted.learn_subnets(self._cloud)
        await self._reconciler.apply(effect.eni_id)
        subnet = IPv4Network(self._vpc.subnets[effect.subnet_id])
        self._network.uses.read()
        return link.name, subnet

    async def check_unused(self, action: str, addresses: tuple[str, ...]) -> None:
        """Ask the kernel before anything is removed: no route and no other use may lead to one of these addresses."""
        uses, routed = self._network.uses.read()
        used = sorted(set(addresses) & (routed.keys() | uses.hosts.keys()))
        if used:
            message = f"something on this host still leads to {', '.join(used)}"
            raise CloudError(CloudFailure(CloudErrorKind.IN_USE, action, "RouteExists", message))

    async def stop_serving(self, effect: do.DetachEni) -> None:
        """A pod may have got one of the addresses while the host was changed, so they are checked again."""
        await self.check_unused(effect.action, effect.addresses)
        await self._reconciler.apply(effect.eni_id)  # the pool no longer counts it among those that serve
        await self.check_unused(effect.action, effect.addresses)

    async def audit(self, op: int, cloud: Cloud) -> on.Audited:
        subnets = tuple(subnet.id for subnet in self._view.subnets())
        return await self._readings.audit(op, cloud, subnets)

    async def forget_flows(self, addresses: tuple[str, ...]) -> None:
        await self._network.forget_flows(addresses)

    async def gone(self) -> frozenset[AttachmentKey]:
        return await self._readings.gone(self._view.attachments())
