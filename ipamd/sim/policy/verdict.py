"""Which of the settings is best, which depends on what is dear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ipamd.pool.model import Reason
from ipamd.sim.policy.figures import Figures

# Of the pods, so many may wait where addresses count as well.
TOLERATED = 0.01

# Reasons that are the instance type's doing, whatever is kept warm.
_NO_ROOM = (Reason.ADDRESS_LIMIT, Reason.POD_LIMIT, Reason.ENI_LIMIT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`best` are the names of the settings that are best under this view: more than one where they are equal."""

    view: str
    best: tuple[str, ...]
    why: str


def verdicts(found: Mapping[str, Figures]) -> list[Verdict]:
    """`found` maps names to figures; the first one is what the others are compared with."""
    first = next(iter(found))

    def best(
        of: Mapping[str, Figures], view: str, key: Callable[[Figures], Any], say: Callable[[Figures], str]
    ) -> Verdict:
        least = min(key(figures) for figures in of.values())
        names = tuple(name for name, figures in of.items() if key(figures) == least)
        why = say(found[names[0]])
        return Verdict(view, names, why if first in names else f"{why}; {first}: {say(found[first])}")

    waits = best(found, "pods that must start at once", _waiting, _said_of_waits)
    good = {name: figures for name, figures in found.items() if _good(figures)}
    both = (
        best(good, "both waits and addresses", _idle, _said_of_both)
        if good
        else Verdict("both waits and addresses", (), _none_is_good(found))
    )
    return [
        waits,
        best(found, "a subnet with few addresses left", _idle, _said_of_idle),
        best(found, "an account short of EC2 calls", lambda figures: figures.calls.total, _said_of_calls),
        both,
    ]


def warnings(found: Mapping[str, Figures]) -> list[str]:
    """What none of the settings can mend."""
    reasons = {reason for figures in found.values() for reason in figures.waits.refusals}
    if all(set(figures.waits.refusals) & set(_NO_ROOM) for figures in found.values()):
        return [
            "With each of the settings pods were refused for want of room on the instance "
            f"({', '.join(sorted(reasons & set(_NO_ROOM)))}): that takes a larger type, or fewer pods."
        ]
    return []


def _good(figures: Figures) -> bool:
    return figures.waits.share <= TOLERATED and not figures.waits.refusals


def _waiting(figures: Figures) -> tuple[float, ...]:
    waits = figures.waits
    return (waits.asked - waits.served, sum(waits.refusals.values()), waits.share, waits.max, _idle(figures))


def _idle(figures: Figures) -> float:
    return round(figures.addresses.idle_hours, 1)


def _said_of_waits(figures: Figures) -> str:
    waits = figures.waits
    lost = waits.asked - waits.served
    if not waits.share:
        return _said_of_share(figures)
    return f"{_said_of_share(figures)}, {waits.max:.1f} s at most" + (f"; {lost} got no address" if lost else "")


def _said_of_share(figures: Figures) -> str:
    share = figures.waits.share
    return f"{share:.1%} of the pods waited" if share else "no pod waited"


def _said_of_idle(figures: Figures) -> str:
    return f"{figures.addresses.idle_hours:.0f} address-hours idle"


def _said_of_calls(figures: Figures) -> str:
    return f"{figures.calls.per_hour:.1f} calls an hour"


def _said_of_both(figures: Figures) -> str:
    return f"{_said_of_idle(figures)}, {_said_of_share(figures)}"


def _none_is_good(found: Mapping[str, Figures]) -> str:
    least = min(figures.waits.share for figures in found.values())
    return f"with none did less than {TOLERATED:.0%} of the pods wait; {least:.1%} at the least"
