"""Carries out the pool's operations on EC2 and on the host; what came of each is the pool's next event.

An EC2 call may wait in the node's rate budget before it is sent. Whom it is for decides how long, and what the kernel
has to say about it is asked after that wait.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Network
from typing import assert_never

import structlog

from ipamd.cloud.port import Cloud, CloudError
from ipamd.cloud.vpc import Vpc
from ipamd.host import HostError, HostNetwork, Reconciler
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.pool.pool import Pool
from ipamd.shell.readings import Readings
from ipamd.shell.urgency import priority_of
from ipamd.shell.wanted import WantedNetwork
from ipamd.telemetry.tracing import Tracer

log = structlog.get_logger("ipamd.pool")

# A Nitro instance shows the device within a second or two of the attachment; past this it is worth an alarm.
LINK_TIMEOUT = 60.0


class Operations:
    """`security_groups` are those of new ENIs."""

    def __init__(
        self,
        pool: Pool,
        cloud: Cloud,
        network: HostNetwork,
        vpc: Vpc,
        readings: Readings,
        wanted: WantedNetwork,
        reconciler: Reconciler,
        security_groups: tuple[str, ...],
        tracer: Tracer,
    ) -> None:
        self._pool = pool
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
        try:
            with self._tracer.operation(effect.action, self._pool.waiting):
                return await self._perform(effect)
        except CloudError as error:
            return on.OperationFailed(effect.op, error.failure)
        except HostError as error:
            if isinstance(effect, do.ConfigureLink):
                return on.LinkFailed(effect.op, str(error))
            failure = CloudFailure(CloudErrorKind.TRANSIENT, effect.action, "HostError", str(error))
            return on.OperationFailed(effect.op, failure)
        except Exception as error:
            log.exception("operation.crashed", effect=type(effect).__name__)
            failure = CloudFailure(
                CloudErrorKind.UNKNOWN_OUTCOME, effect.action, type(error).__name__, f"{error} (see the log)"
            )
            return on.OperationFailed(effect.op, failure)

    async def _perform(self, effect: do.Operation) -> on.Event:
        priority = priority_of(effect, bool(self._pool.waiting))
        cloud = self._cloud.at(priority)
        match effect:
            case do.CreateEni(op, token, subnet_id, count):
                groups = self._security_groups
                eni = await cloud.create_eni(
                    token=token, subnet_id=subnet_id, security_groups=groups, address_count=count
                )
                return on.EniCreated(op, eni)
            case do.AttachEni(op, eni_id, device_index):
                return on.EniAttached(op, await cloud.attach_eni(eni_id, device_index))
            case do.SetDeleteOnTermination(op, eni_id, attachment_id):
                await cloud.set_delete_on_termination(eni_id, attachment_id)
                return on.OperationDone(op)
            case do.DescribeEni(op, eni_id):
                return on.EniObserved(op, await cloud.describe_eni(eni_id))
            case do.AssignAddresses(op, eni_id, count):
                return on.AddressesAssigned(op, await cloud.assign_addresses(eni_id, count))
            case do.UnassignAddresses(op, eni_id, addresses):
                check = partial(self._check_unrouted, effect.action, addresses)
                await self._cloud.at(priority, check).unassign_addresses(eni_id, addresses)
                return on.OperationDone(op)
            case do.DetachEni(op, _, attachment_id):
                await self._cloud.at(priority, partial(self._stop_serving, effect)).detach_eni(attachment_id)
                return on.OperationDone(op)
            case do.DeleteEni(op, eni_id):
                await cloud.delete_eni(eni_id)
                return on.OperationDone(op)
            case do.ConfigureLink():
                link = await self._configure_link(effect)
                subnet = IPv4Network(self._vpc.subnets[effect.subnet_id])
                self._network.uses.read()
                return on.LinkReady(effect.op, link, subnet)
            case do.DescribeSubnets(op, subnet_ids):
                available = await cloud.available_addresses(subnet_ids)
                return on.SubnetsObserved(op, tuple(available.items()))
            case do.Audit(op):
                return await self._readings.audit(op, cloud, self._pool.subnets.ids)
            case do.ForgetFlows(op, addresses):
                await self._network.forget_flows(addresses)
                return on.OperationDone(op)
            case do.SeekAttachments(op):
                attachments = tuple(self._pool.inventory.attachments.values())
                return on.AttachmentsSought(op, await self._readings.gone(attachments))
            case _:
                assert_never(effect)

    async def _configure_link(self, effect: do.ConfigureLink) -> str:
        link = await self._network.wait_for_link(effect.mac, LINK_TIMEOUT)
        await self._wanted.learn_subnets(self._cloud)
        await self._reconciler.apply(effect.eni_id)
        return link.name

    async def _check_unrouted(self, action: str, addresses: tuple[str, ...]) -> None:
        """The kernel's word before anything is removed: nobody may be reached by one of these addresses."""
        uses, routed = self._network.uses.read()
        used = sorted(set(addresses) & (routed.keys() | uses.hosts.keys()))
        if used:
            message = f"something on this host still leads to {', '.join(used)}"
            raise CloudError(CloudFailure(CloudErrorKind.IN_USE, action, "RouteExists", message))

    async def _stop_serving(self, effect: do.DetachEni) -> None:
        """Take down what the host does for the ENI, if nobody needs it; nobody may have come to meanwhile."""
        await self._check_unrouted(effect.action, effect.addresses)
        await self._reconciler.apply(effect.eni_id)  # the pool no longer counts it among those that serve
        await self._check_unrouted(effect.action, effect.addresses)
