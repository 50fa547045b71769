"""Network interfaces as DescribeNetworkInterfaces shows them: read one by one, so that a strange one hides no other.

A foreign interface that can't be read is left out, and a condition names it while it exists. One of ours is never
left out: a list without it would say that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime

from ipamd.cloud.ownership import CREATED_TAG, INSTANCE_TAG
from ipamd.cloud.port import Identity
from ipamd.cloud.replies import NetworkInterface, UnreadableReply, id_of, read, tags_of
from ipamd.pool.model import ObservedEni
from ipamd.telemetry.conditions import Conditions

Item = Mapping[str, object]

STRANGE = "ec2.strange_interface"


class Sightings:
    """For one instance. `conditions` None: strange interfaces are not reported."""

    def __init__(self, identity: Identity, conditions: Conditions | None) -> None:
        self._identity = identity
        self._conditions = conditions
        self._own = {identity.primary_eni_id}  # ids of all that were ours when they could be read

    def all_of(self, items: Iterable[Item]) -> list[ObservedEni]:
        """Those that can be read. Raises `UnreadableReply` for one that can't, and is ours or may be."""
        found, strange = [], []
        for item in items:
            try:
                found.append(self.one(item))
            except UnreadableReply as error:
                if self._may_be_ours(item):
                    raise
                strange.append(str(error))
        self._tell(strange)
        return found

    def of_others(self, items: Iterable[Item]) -> list[ObservedEni]:
        """Those that can be read, of interfaces that this instance has nothing to do with."""
        found = []
        for item in items:
            with suppress(UnreadableReply):
                found.append(self.one(item))
        return found

    def one(self, item: Item) -> ObservedEni:
        """Raises `UnreadableReply`."""
        eni = read(NetworkInterface, item, id_of(item, "NetworkInterfaceId") or "an interface without an id")
        observed = _observed(eni, self._identity.instance_id)
        if observed.owned or observed.primary:
            self._own.add(observed.id)
        return observed

    def _may_be_ours(self, item: Item) -> bool:
        eni_id = id_of(item, "NetworkInterfaceId")
        return not eni_id or eni_id in self._own or tags_of(item).get(INSTANCE_TAG) == self._identity.instance_id

    def _tell(self, strange: list[str]) -> None:
        if self._conditions is None:
            return
        if strange:
            text = f"{strange[0]}, which is not ipamd's: it is left out, and its slot of the instance is not counted."
            if len(strange) > 1:
                text += f" So are {len(strange) - 1} more."
            self._conditions.begin(STRANGE, text)
        else:
            self._conditions.end(STRANGE)


def _observed(eni: NetworkInterface, instance_id: str) -> ObservedEni:
    """An ENI attached elsewhere is not ours, whatever its tag; nor is one on another network card, which has device
    indexes of its own."""
    attachment = eni.attachment
    tagged = eni.tags.get(INSTANCE_TAG) == instance_id
    here = attachment is not None and attachment.instance_id == instance_id
    card = attachment.network_card_index if attachment else 0
    return ObservedEni(
        id=eni.network_interface_id,
        mac=eni.mac_address,
        subnet_id=eni.subnet_id,
        primary_ip=eni.private_ip_address or "",
        addresses=eni.secondary_addresses,
        device_index=attachment.device_index if attachment else None,
        attachment_id=attachment.attachment_id if attachment else "",
        attachment_status=attachment.status if attachment else "",
        owned=tagged and (attachment is None or (here and card == 0)),
        primary=here and attachment is not None and attachment.device_index == card == 0,
        delete_on_termination=attachment.delete_on_termination if attachment else True,
        created_at=_seconds(eni.tags.get(CREATED_TAG, "")),
        network_card=card,
        prefixes=tuple(prefix.ipv4_prefix for prefix in eni.ipv4_prefixes),
    )


def _seconds(text: str) -> float | None:
    """Since the epoch, from ISO 8601; None when it is not that, or does not say its offset from UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None
