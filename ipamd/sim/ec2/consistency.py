"""Eventual consistency: what Describe calls see of the ENIs, which may be behind what is true.

AWS, "Eventual consistency in the Amazon EC2 API"
(https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html): the result of a call "might not be
immediately visible to all subsequent commands". On record: an ENI whose id is not found right after its creation
(hashicorp/terraform-provider-aws#35568, aws/aws-sdk#301), and addresses that a Describe does not show for minutes
after they were assigned (Netflix/titus-executor#145). Changes act on the truth all the same.

Times are in seconds of the clock of `SimulatedCloud`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import astuple, dataclass, replace

from ipamd.sim.ec2.rules import Attachment, Eni, Registry


@dataclass(frozen=True, slots=True)
class Lags:
    """For how many seconds what is new or gone isn't seen to be so.

    `new_eni`: a created ENI is missing from Describe calls; `gone_eni`: a deleted one is still in them.
    `new_address`, `gone_address`: the same for a secondary address of an ENI that stays; the addresses that an ENI
    is created with come with it. `attachment`: the state of an attachment, or that there is none.
    `new_id`: calls that change a new ENI answer InvalidNetworkInterfaceID.NotFound.
    """

    new_eni: float = 0.0
    gone_eni: float = 0.0
    new_address: float = 0.0
    gone_address: float = 0.0
    attachment: float = 0.0
    new_id: float = 0.0

    @property
    def longest(self) -> float:
        seconds: tuple[float, ...] = astuple(self)
        return max(seconds)


@dataclass(frozen=True, slots=True)
class _Moment:
    """What an ENI was like from `at` on."""

    at: float
    addresses: tuple[str, ...]
    attachment: Attachment | None


class Sight:
    """Keeps the past of each ENI for as long as `lags` needs it. After a change of `lags` it grows from then on."""

    def __init__(self, lags: Lags) -> None:
        self.lags = lags
        self._past: dict[str, deque[_Moment]] = {}
        self._deleted: dict[str, tuple[float, Eni]] = {}  # in the order of their deletion

    def note(self, eni: Eni, now: float) -> None:
        """To be called after every change of addresses or attachment, and after creation."""
        past = self._past.setdefault(eni.id, deque())
        past.append(_Moment(now, tuple(eni.addresses), replace(eni.attachment) if eni.attachment else None))
        while len(past) > 1 and past[1].at <= now - self.lags.longest:
            past.popleft()

    def bury(self, eni: Eni, now: float) -> None:
        """To be called at its deletion, while it still has its addresses."""
        del self._past[eni.id]
        for id, (at, _) in list(self._deleted.items()):
            if at > now - self.lags.gone_eni:
                break
            del self._deleted[id]
        self._deleted[eni.id] = (now, replace(eni, addresses=list(eni.addresses)))

    def knows(self, eni: Eni, now: float) -> bool:
        """Whether calls that change the ENI find its id."""
        return now >= eni.created + self.lags.new_id

    def described(self, enis: Registry[Eni], now: float) -> Registry[Eni]:
        """The ENIs as Describe calls see them. `enis` are those that exist."""
        if not self.lags.longest:
            return enis
        seen = [self._seen(eni, now) for eni in enis if now >= eni.created + self.lags.new_eni]
        ghosts = [eni for at, eni in self._deleted.values() if now < at + self.lags.gone_eni]
        return enis.of((eni.id, eni) for eni in (*seen, *ghosts))

    def _seen(self, eni: Eni, now: float) -> Eni:
        past = self._past[eni.id]
        earlier = _at(past, now - self.lags.new_address).addresses
        addresses = [address for address in eni.addresses if address in earlier or address == eni.addresses[0]]
        start = past.index(_at(past, now - self.lags.gone_address))
        lately = dict.fromkeys(address for moment in list(past)[start:] for address in moment.addresses)
        addresses += [address for address in lately if address not in eni.addresses]
        return replace(eni, addresses=addresses, attachment=_at(past, now - self.lags.attachment).attachment)


def _at(past: deque[_Moment], time: float) -> _Moment:
    """What was true then; before the beginning, what was true first."""
    return next((moment for moment in reversed(past) if moment.at <= time), past[0])
