"""Messages about settings that can't be used: the place of each, what is wrong, and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ipamd.config.error import Origin
from ipamd.settings import ENVIRONMENT_PREFIX, Settings

# By pydantic's type of an error (docs.pydantic.dev, "Validation errors"); `ctx` has the bounds.
_ALLOWED = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text, in quotes",
    "path_type": "must be a path, in quotes",
    "list_type": 'must be a list, for instance ["a", "b"]',
    "dict_type": 'must be a table, for instance {{ team = "net" }}',
    "literal_error": "must be one of {expected}",
    "finite_number": "must be a finite number",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "string_pattern_mismatch": "must match {pattern}",
}


def complaints(error: ValidationError, located: Callable[[tuple[str, ...]], Origin | None]) -> Iterator[str]:
    """`located` finds where the setting of a path stands."""
    for details in error.errors():
        path = tuple(str(part) for part in details["loc"])
        origin = located(path)
        name = ".".join(path)
        variable = ""
        if origin is not None:
            variable = origin.source.removeprefix("environment ") if origin.source.startswith("environment ") else ""
            name = str(origin) if variable else f"{origin}: {name}"
        yield _complaint(name, path, details, variable)


def _complaint(name: str, path: tuple[str, ...], details: ErrorDetails, variable: str) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        return f"{name}: {_unknown(path, details['input'], variable)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{name} = {_shown(details['input'])}: it is a section: write [{path[0]}], and its keys below"
    if kind == "value_error":
        allowed = str(details["ctx"]["error"])
    elif kind in _ALLOWED:
        allowed = _ALLOWED[kind].format_map(details.get("ctx", {}))
    else:
        allowed = details["msg"]
    meaning = _meaning(path)
    return f"{name} = {_shown(details['input'])}: {allowed}" + (f" ({meaning})" if meaning else "")


def _unknown(path: tuple[str, ...], value: Any, variable: str) -> str:
    """`variable`: the one of the environment that it comes from."""
    if len(path) == 1:
        return _no_section(path[0], value, variable)
    meant = nearest(".".join(path[:2]))
    if not meant:
        return "no such setting; ipamd config reference lists them"
    return f"no such setting; did you mean {_variable(meant) if variable else meant}?"


def _no_section(name: str, value: Any, variable: str) -> str:
    """A key that lacks its section looks like one: `warm_ips = 3` above all sections, or IPAMD_WARM_IPS."""
    key = variable.removeprefix(ENVIRONMENT_PREFIX).lower() if variable else name
    if variable or not isinstance(value, dict):
        homes = [section for section, fields in _sections() if key in fields]
        if homes and variable:
            return f"no such setting; did you mean {' or '.join(_variable(f'{home}.{key}') for home in homes)}?"
        if homes:
            return f"no such section; the key {key} belongs below [{'] or ['.join(homes)}]"
    if variable:
        like = nearest(key.replace("_", ".", 1))
        return "no such setting; " + (
            f"did you mean {_variable(like)}?" if like else "ipamd config reference lists them"
        )
    near = get_close_matches(name, Settings.model_fields, n=1)
    sections = ", ".join(f"[{section}]" for section in Settings.model_fields)
    return "no such section; " + (f"did you mean [{near[0]}]?" if near else f"there are {sections}")


def _variable(dotted: str) -> str:
    return ENVIRONMENT_PREFIX + dotted.replace(".", "_").upper()


def nearest(dotted: str) -> str:
    """The setting with the most similar name; one of the same section if any is similar at all."""
    section, _, key = dotted.partition(".")
    names = [f"{name}.{field}" for name, fields in _sections() for field in fields]
    own = [name.partition(".")[2] for name in names if name.startswith(f"{section}.")]
    if like := get_close_matches(key, own, n=1, cutoff=0.6):
        return f"{section}.{like[0]}"
    elsewhere = [name for name in names if name.endswith(f".{key}")]
    return next(iter(elsewhere or get_close_matches(dotted, names, n=1)), "")


def _meaning(path: tuple[str, ...]) -> str:
    fields = dict(_sections()).get(path[0], {})
    found = fields.get(path[1]) if len(path) > 1 else None
    return (found.description or "") if found is not None else ""


def _sections() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in Settings.model_fields.items():
        section: Any = field.annotation
        yield name, section.model_fields


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else text[:60] + "..."
