"""A copy of all committed records in memory: if the file vanishes or is damaged under a running daemon, it is written
anew from here. The pool holds the same record objects, so the copy costs little more than its indexes.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipamd.ledger.rows import Contents
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    Cooling,
    DropAttachment,
    DropCooling,
    DropDrained,
    DropIntent,
    DropLimit,
    DropOwn,
    Intent,
    LearntLimit,
    OwnAddresses,
    PutAttachment,
    PutCooling,
    PutDrained,
    PutIntent,
    PutLimit,
    PutOwn,
    Record,
)


class Memory:
    def __init__(self, contents: Contents) -> None:
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self._cooling: dict[str, Cooling] = {}
        self._intents: dict[str, Intent] = {}
        self._own: dict[str, OwnAddresses] = {}
        self._limit: LearntLimit | None = None
        self._drained: float | None = None
        self.apply(contents.records())

    def contents(self) -> Contents:
        return Contents(
            tuple(self.attachments.values()),
            tuple(self._cooling.values()),
            tuple(self._intents.values()),
            tuple(self._own.values()),
            self._limit,
            self._drained,
        )

    def contradicted_by(self, records: Iterable[Record]) -> bool:
        """Whether they would give one address two holders, in this order."""
        holders = {each.address: key for key, each in self.attachments.items()}
        addresses = {key: address for address, key in holders.items()}
        for record in records:
            if isinstance(record, DropAttachment):
                holders.pop(addresses.pop(record.key, ""), None)
            elif isinstance(record, PutAttachment):
                key, address = record.attachment.key, record.attachment.address
                if holders.get(address, key) != key:
                    return True
                holders.pop(addresses.get(key, ""), None)
                holders[address], addresses[key] = key, address
        return False

    def apply(self, records: Iterable[Record]) -> None:
        for record in records:
            match record:
                case PutAttachment(attachment):
                    self.attachments[attachment.key] = attachment
                case DropAttachment(key):
                    self.attachments.pop(key, None)
                case PutCooling(cooling):
                    self._cooling[cooling.address] = cooling
                case DropCooling(address):
                    self._cooling.pop(address, None)
                case PutIntent(intent):
                    self._intents[intent.token] = intent
                case DropIntent(token):
                    self._intents.pop(token, None)
                case PutOwn(own):
                    self._own[own.eni_id] = own
                case DropOwn(eni_id):
                    self._own.pop(eni_id, None)
                case PutLimit(limit):
                    self._limit = limit
                case DropLimit():
                    self._limit = None
                case PutDrained(at):
                    self._drained = at
                case DropDrained():
                    self._drained = None
