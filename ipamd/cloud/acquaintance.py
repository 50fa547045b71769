"""How the daemon learns who its node is: by the metadata service, and only once EC2 says the same.

What the metadata service says in a bad moment would otherwise be asked of EC2 for ever: another region's endpoint,
another type's limits, another instance's interfaces. So each failure of EC2 at the start throws doubt on it, and it
is read again; and the instance's primary interface must be what both say it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

import structlog

from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind, CloudFailure, Limits, ObservedEni

log = structlog.get_logger("ipamd.cloud")


@dataclass(frozen=True, slots=True)
class Acquainted:
    """`cloud` is the client for this identity."""

    identity: Identity
    limits: Limits
    enis: tuple[ObservedEni, ...]
    cloud: Ec2


class Acquaintance:
    """Use it as an asynchronous context manager: it closes the client in the end."""

    def __init__(self, imds: Imds, identity: Identity, client: Callable[[Identity], Ec2]) -> None:
        self._imds = imds
        self._identity = identity
        self._client = client
        self._cloud = client(identity)
        self._doubtful = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cloud.close()

    async def make(self) -> Acquainted:
        """One try. Raises `CloudError`."""
        if self._doubtful:
            await self._look_again()
        self._doubtful = True
        limits = await self._cloud.instance_limits(self._identity.instance_type)
        await self._cloud.connect()
        enis = await self._cloud.describe_enis()
        _compare(self._identity, enis)
        return Acquainted(self._identity, limits, tuple(enis), self._cloud)

    async def _look_again(self) -> None:
        try:
            found = await self._imds.identity()
        except CloudError as error:
            log.debug("imds.not_read_again", error=str(error))  # EC2 is asked all the same
            return
        if found == self._identity:
            return
        before, now = asdict(self._identity), asdict(found)
        changes = {name: f"{before[name]} -> {now[name]}" for name in now if now[name] != before[name]}
        log.warning("node.identity_changed", **changes)
        await self._cloud.close()
        self._identity, self._cloud = found, self._client(found)


def _compare(identity: Identity, enis: list[ObservedEni]) -> None:
    """Raises `CloudError` when EC2 does not show the primary interface that the metadata service describes."""
    primary = next((eni for eni in enis if eni.id == identity.primary_eni_id), None)
    if primary is None or not primary.primary:
        found = "is not attached as its first one"
    elif primary.primary_ip != identity.primary_ip:
        found = f"has {primary.primary_ip}, not {identity.primary_ip}"
    elif primary.subnet_id != identity.subnet_id:
        found = f"is in {primary.subnet_id}, not in {identity.subnet_id}"
    else:
        return
    message = (
        f"the metadata service says that {identity.primary_eni_id} is the primary interface of "
        f"{identity.instance_id}, and EC2 that it {found}; both are asked again. If it lasts, check imds.endpoint "
        "and ec2.endpoint"
    )
    raise CloudError(CloudFailure(CloudErrorKind.TRANSIENT, "DescribeNetworkInterfaces", "Contradiction", message))
