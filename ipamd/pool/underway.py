"""What the pool has asked for and not been answered yet, and what it has to say meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from ipamd.pool import effects as do
from ipamd.pool.eni import Eni
from ipamd.pool.model import Record
from ipamd.pool.state import Setup, State

# A call that EC2 has accepted takes effect, and shows, within so many seconds. What a process that was killed had
# asked to be taken away is not granted to anybody before.
TAKES_EFFECT = 5.0

# Of those who wait, so many are named in the log.
REQUESTS_NAMED = 5


@dataclass(slots=True)
class Operation:
    effect: do.EniOperation
    eni: Eni
    since: float
    count: int = 0
    token: str = ""
    requests: str = ""  # who waited when it was sent


class UnderWay(State):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._operations: dict[int, Operation] = {}
        self._unbound: dict[int, do.UnboundOperation] = {}  # those that concern no single ENI
        self._last_op = 0
        self._records: list[Record] = []
        self._effects: list[do.Effect] = []

    def _next_op(self) -> int:
        self._last_op += 1
        return self._last_op

    def _send(self, effect: do.EniOperation, eni: Eni, now: float, count: int = 0, token: str = "") -> None:
        bringing = isinstance(effect, do.CreateEni | do.AssignAddresses)
        requests = self._who_waits() if bringing else ""
        self._operations[effect.op] = Operation(effect, eni, now, count, token, requests)
        self._effects.append(effect)

    def _send_unbound(self, effect: do.UnboundOperation) -> None:
        self._unbound[effect.op] = effect
        self._effects.append(effect)

    def under_way(self) -> tuple[Operation, ...]:
        """The operations on ENIs that have not been answered yet."""
        return tuple(self._operations.values())

    def _under_way(self, kind: type[do.UnboundOperation]) -> bool:
        """Whether one of this kind, that concerns no single ENI, has not been answered yet."""
        return any(isinstance(effect, kind) for effect in self._unbound.values())

    def _gives_back(self, eni: Eni) -> bool:
        """Whether a call that takes away addresses of it, or itself, is under way."""
        operation = self._operations.get(eni.busy)
        return operation is not None and isinstance(operation.effect, do.UnassignAddresses | do.DetachEni)

    def _slowest(self, now: float) -> str:
        """What has been waited for longest, of all that brings addresses, in words."""
        bringing = (do.CreateEni, do.AttachEni, do.ConfigureLink, do.AssignAddresses)
        under_way = [o for o in self._operations.values() if isinstance(o.effect, bringing)]
        if not under_way:
            missing = [eni.id for eni in self.inventory.enis.values() if eni.link_failures]
            return f"the interface of {missing[0]} can't be set up: see the log" if missing else ""
        slowest = min(under_way, key=lambda operation: operation.since)
        time = f"{now - slowest.since:.0f} s"
        match slowest.effect:
            case do.CreateEni():
                return f"{slowest.effect.action} has been under way for {time}"
            case do.ConfigureLink():
                return f"the interface of {slowest.eni.id} is not there after {time}"
            case _:
                return f"{slowest.effect.action} for {slowest.eni.id} has been under way for {time}"

    def _who_waits(self) -> str:
        """For the log, so that a pod's request leads to the calls that were made for it: "1f-7 1f-8 and 12 more"."""
        first = list(islice(self.waiting, REQUESTS_NAMED))
        more = len(self.waiting) - len(first)
        return " ".join(first) + (f" and {more} more" if more else "")

    def _write(self, record: Record) -> None:
        self._records.append(record)

    def _note(self, event: str, level: str, **fields: str | int | float) -> None:
        """Fields that are empty are left out."""
        self._effects.append(do.Note(event, level, tuple((k, v) for k, v in fields.items() if v != "")))
