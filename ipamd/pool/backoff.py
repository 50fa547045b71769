"""Who is left alone after an error, and for how long.

A failure of EC2 concerns a scope: one action, one subnet, one ENI, the instance. Each scope has its own back-off,
exponential with full jitter, so that one full subnet never stops another and a throttled action never stops a
different one. A success in the scope ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ipamd.pool.model import CloudErrorKind, CloudFailure, Reason


@dataclass(frozen=True, slots=True)
class Policy:
    """`base` and `cap` in seconds. `lasting`: waiting requests are refused at once instead of hoping for it."""

    base: float
    cap: float
    reason: Reason
    lasting: bool


POLICIES: dict[CloudErrorKind, Policy] = {
    CloudErrorKind.THROTTLED: Policy(1.0, 30.0, Reason.THROTTLED, lasting=False),
    CloudErrorKind.TRANSIENT: Policy(0.5, 15.0, Reason.CLOUD_UNAVAILABLE, lasting=False),
    CloudErrorKind.UNKNOWN_OUTCOME: Policy(0.5, 30.0, Reason.CLOUD_UNAVAILABLE, lasting=False),
    CloudErrorKind.SUBNET_FULL: Policy(15.0, 120.0, Reason.SUBNET_EXHAUSTED, lasting=True),
    CloudErrorKind.ENI_ADDRESS_LIMIT: Policy(1.0, 600.0, Reason.ADDRESS_LIMIT, lasting=False),
    CloudErrorKind.ATTACHMENT_LIMIT: Policy(30.0, 600.0, Reason.ENI_LIMIT, lasting=True),
    CloudErrorKind.ACCOUNT_ENI_LIMIT: Policy(30.0, 300.0, Reason.ENI_LIMIT, lasting=True),
    CloudErrorKind.NOT_FOUND: Policy(1.0, 60.0, Reason.CLOUD_UNAVAILABLE, lasting=False),
    CloudErrorKind.INCORRECT_STATE: Policy(1.0, 120.0, Reason.CLOUD_UNAVAILABLE, lasting=False),
    CloudErrorKind.NOT_AUTHORIZED: Policy(10.0, 120.0, Reason.NOT_AUTHORIZED, lasting=True),
    CloudErrorKind.SECURITY_GROUP_INVALID: Policy(10.0, 120.0, Reason.SECURITY_GROUP_INVALID, lasting=True),
    CloudErrorKind.SUBNET_INVALID: Policy(10.0, 120.0, Reason.REQUEST_REFUSED, lasting=True),
    CloudErrorKind.INVALID: Policy(10.0, 120.0, Reason.REQUEST_REFUSED, lasting=True),
    CloudErrorKind.IN_USE: Policy(60.0, 600.0, Reason.CLOUD_UNAVAILABLE, lasting=False),
    CloudErrorKind.UNRECORDED: Policy(1.0, 10.0, Reason.LEDGER_UNWRITABLE, lasting=True),
}


@dataclass(frozen=True, slots=True)
class Backoff:
    scope: str
    failure: CloudFailure
    since: float
    until: float
    attempts: int

    @property
    def policy(self) -> Policy:
        return POLICIES[self.failure.kind]


def scope_of(failure: CloudFailure, *, subnet_id: str, eni_id: str) -> str:
    """What a failure of a call on this subnet and ENI says something about."""
    match failure.kind:
        case CloudErrorKind.SUBNET_FULL | CloudErrorKind.SUBNET_INVALID:
            return subnet_scope(subnet_id)
        case CloudErrorKind.ENI_ADDRESS_LIMIT | CloudErrorKind.NOT_FOUND | CloudErrorKind.INCORRECT_STATE:
            return eni_scope(eni_id) if eni_id else action_scope(failure.action)
        case CloudErrorKind.ACCOUNT_ENI_LIMIT:
            return NEW_ENI
        case CloudErrorKind.ATTACHMENT_LIMIT:
            return SLOTS
        case CloudErrorKind.IN_USE:
            return release_scope(eni_id)
        case _:
            return action_scope(failure.action)


NEW_ENI = "new ENIs"
SLOTS = "slots of the instance"

# Nobody waits for these: what is refused for good is tried again once an hour in the end.
PATIENT = ("ModifyNetworkInterfaceAttribute", "DeleteNetworkInterface")
PATIENT_CAP = 3600.0


def subnet_scope(subnet_id: str) -> str:
    return f"subnet {subnet_id}"


def eni_scope(eni_id: str) -> str:
    return f"eni {eni_id}"


def release_scope(eni_id: str) -> str:
    return f"release from {eni_id}"


def action_scope(action: str) -> str:
    return f"action {action}"


class Backoffs:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._by_scope: dict[str, Backoff] = {}

    def failed(self, scope: str, failure: CloudFailure, now: float) -> Backoff:
        """Returns the back-off that now holds: between a tenth and the whole of the exponential step."""
        previous = self._by_scope.get(scope)
        if previous is not None and previous.until > now and previous.failure.kind is failure.kind:
            return previous  # of calls that were under way together: one step, not several
        attempts = 1 if previous is None else previous.attempts + 1
        policy = POLICIES[failure.kind]
        cap = PATIENT_CAP if policy.lasting and failure.action in PATIENT else policy.cap
        step = min(cap, policy.base * 2 ** min(attempts - 1, 16))
        until = now + self._random.uniform(step / 10, step)
        backoff = Backoff(scope, failure, now, until, attempts)
        self._by_scope[scope] = backoff
        return backoff

    def succeeded(self, *scopes: str) -> None:
        for scope in scopes:
            self._by_scope.pop(scope, None)

    def attempts(self, *scopes: str) -> int:
        """How often in a row calls in one of these scopes have failed, up to now."""
        return max((b.attempts for scope in scopes if (b := self._by_scope.get(scope)) is not None), default=0)

    def active(self, now: float, *scopes: str) -> Backoff | None:
        """The longest back-off in force on any of these scopes."""
        found = [b for scope in scopes if (b := self._by_scope.get(scope)) is not None and b.until > now]
        return max(found, key=lambda b: b.until, default=None)

    def all_active(self, now: float) -> list[Backoff]:
        return [b for b in self._by_scope.values() if b.until > now]

    def since(self, time: float) -> list[Backoff]:
        """Those in force at some time since then that no success has ended."""
        return [b for b in self._by_scope.values() if b.until > time]

    def next_end(self, now: float) -> float | None:
        return min((b.until for b in self._by_scope.values() if b.until > now), default=None)
