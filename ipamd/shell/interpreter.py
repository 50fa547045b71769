"""What each operation of the pool asks of EC2 and of the host, and which event its outcome is.

The daemon, the nodes in virtual time and the pool's property test all carry operations out by this, each with its own
`Cloud` and `Host`. So a new operation is understood in one place, and one that is missing is an error of mypy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv4Network
from typing import Protocol, assert_never

from ipamd.cloud.port import Cloud
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import AttachmentKey, CloudErrorKind, CloudFailure


class Bind(Protocol):
    """`Cloud.at` for the priority of the operation."""

    def __call__(self, *, before: Callable[[], Awaitable[None]] | None = None) -> Cloud: ...


class Host(Protocol):
    """The node, as operations need it. Each method may raise `CloudError`, and an error of the host's own."""

    async def configure_link(self, effect: do.ConfigureLink) -> tuple[str, IPv4Network]:
        """Wait for the ENI's link and set the host up for it: its name, and the CIDR of its subnet."""

    async def check_unused(self, action: str, addresses: tuple[str, ...]) -> None:
        """Raises `CloudError` of kind `IN_USE` if anything on the host leads to one of them."""

    async def stop_serving(self, effect: do.DetachEni) -> None:
        """Take down what the host does for the ENI, unless one of its addresses is in use, as in `check_unused`."""

    async def audit(self, op: int, cloud: Cloud) -> on.Audited:
        """Read all that the pool believes."""

    async def forget_flows(self, addresses: tuple[str, ...]) -> None: ...

    async def gone(self) -> frozenset[AttachmentKey]:
        """The attachments that have left no trace."""


def host_failed(effect: do.Operation, why: str) -> on.Event:
    """What the pool hears when the host refused its part of the operation."""
    if isinstance(effect, do.ConfigureLink):
        return on.LinkFailed(effect.op, why)
    failure = CloudFailure(CloudErrorKind.TRANSIENT, effect.action, "HostError", why)
    return on.OperationFailed(effect.op, failure)


async def interpret(effect: do.Operation, bind: Bind, host: Host, security_groups: tuple[str, ...]) -> on.Event:
    """`security_groups` are those of new ENIs. Raises `CloudError`, and what the host raises."""
    match effect:
        case do.CreateEni(op, token, subnet_id, count):
            eni = await bind().create_eni(
                token=token, subnet_id=subnet_id, security_groups=security_groups, address_count=count
            )
            return on.EniCreated(op, eni)
        case do.AttachEni(op, eni_id, device_index):
            return on.EniAttached(op, await bind().attach_eni(eni_id, device_index))
        case do.SetDeleteOnTermination(op, eni_id, attachment_id):
            await bind().set_delete_on_termination(eni_id, attachment_id)
            return on.OperationDone(op)
        case do.DescribeEni(op, eni_id):
            return on.EniObserved(op, await bind().describe_eni(eni_id))
        case do.AssignAddresses(op, eni_id, count):
            return on.AddressesAssigned(op, await bind().assign_addresses(eni_id, count))
        case do.UnassignAddresses(op, eni_id, addresses):
            check = partial(host.check_unused, effect.action, addresses)
            await bind(before=check).unassign_addresses(eni_id, addresses)
            return on.OperationDone(op)
        case do.DetachEni(op, _, attachment_id):
            await bind(before=partial(host.stop_serving, effect)).detach_eni(attachment_id)
            return on.OperationDone(op)
        case do.DeleteEni(op, eni_id):
            await bind().delete_eni(eni_id)
            return on.OperationDone(op)
        case do.ConfigureLink(op):
            link, subnet = await host.configure_link(effect)
            return on.LinkReady(op, link, subnet)
        case do.DescribeSubnets(op, subnet_ids):
            available = await bind().available_addresses(subnet_ids)
            return on.SubnetsObserved(op, tuple(available.items()))
        case do.Audit(op):
            return await host.audit(op, bind())
        case do.ForgetFlows(op, addresses):
            await host.forget_flows(addresses)
            return on.OperationDone(op)
        case do.SeekAttachments(op):
            return on.AttachmentsSought(op, await host.gone())
        case _:
            assert_never(effect)
