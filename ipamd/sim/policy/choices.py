"""The settings to compare, as they are written after --set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product

from pydantic import ValidationError

from ipamd.config.error import Origin
from ipamd.config.explain import complaints
from ipamd.pool.model import Targets
from ipamd.settings import PoolSettings, Settings

DEFAULTS = "defaults"

# A word for several settings. The AWS VPC CNI keeps one ENI's worth of addresses free (WARM_ENI_TARGET=1, its
# README); the rest of its behaviour is not taken over.
PRESETS = {"vpc-cni-default": {"warm_enis": "1"}}

# More would neither fit into a table nor onto a picture.
MOST = 10


class ChoiceError(Exception):
    """What stands after --set can't be used; the message has one line for each thing that is wrong."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One column: `name` is what was written."""

    name: str
    pool: PoolSettings

    @property
    def targets(self) -> Targets:
        return Targets(**self.pool.model_dump())


def choices(texts: list[str]) -> list[Choice]:
    """The defaults, and one choice for each text, for instance "warm_ips=5 minimum_ips=20"; with several values to a
    name ("warm_ips=5,10") one for each combination. What was there already is not repeated. Raises `ChoiceError`."""
    found = [Choice(DEFAULTS, PoolSettings())]
    for text in texts:
        for each in _combinations(text):
            same = next((n for n, choice in enumerate(found) if choice.pool == each.pool), None)
            if same is None:
                found.append(each)
            elif found[same].name == DEFAULTS:
                found[same] = replace(each, name=f"{each.name} ({DEFAULTS})")
    if len(found) > MOST:
        raise ChoiceError(f"--set: {len(found)} choices, the defaults included; compare at most {MOST} at a time")
    return found


def _combinations(text: str) -> list[Choice]:
    alternatives: dict[str, list[tuple[str, str]]] = {}  # by name: how it is written, and its value
    for word in text.split():
        name, separator, values = word.partition("=")
        if word in PRESETS:
            alternatives |= {each: [(word, value)] for each, value in PRESETS[word].items()}
        elif not separator:
            raise ChoiceError(f"--set {text!r}: {word} is neither NAME=VALUE nor {' or '.join(PRESETS)}")
        else:
            name = name.removeprefix("pool.")
            if name not in PoolSettings.model_fields:
                raise ChoiceError(f"--set {text!r}: {_unknown(name)}")
            alternatives[name] = [(f"{name}={value}", value) for value in values.split(",")]
    if not alternatives:
        raise ChoiceError("--set: nothing stands after it; write it like --set warm_ips=5,10")
    return [
        Choice(" ".join(word for word, _ in chosen), _validated(text, dict(zip(alternatives, chosen, strict=True))))
        for chosen in product(*alternatives.values())
    ]


def _validated(text: str, chosen: dict[str, tuple[str, str]]) -> PoolSettings:
    values = {name: value for name, (_, value) in chosen.items()}
    try:
        return Settings.model_validate({"pool": values}).pool
    except ValidationError as error:
        origin = Origin(f"--set {text!r}")
        raise ChoiceError("\n".join(complaints(error, lambda path: origin))) from None


def _unknown(name: str) -> str:
    near = get_close_matches(name, PoolSettings.model_fields, n=1)
    known = ", ".join(PoolSettings.model_fields)
    return f"{name}: no such setting of the pool; " + (f"did you mean {near[0]}?" if near else f"there are {known}")
