"""The example file and the reference page, both generated from `settings` so that neither gets stale."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ipamd.settings import DEFAULT_PATH, ENVIRONMENT_PREFIX, Settings

_WIDTH = 100


def example() -> str:
    """A file in which every setting stands with its default, commented out."""
    lines = [
        f"# Settings of ipamd: {DEFAULT_PATH}. Each is commented out, and shows its default.",
        f"# Each can also come from the environment, as {ENVIRONMENT_PREFIX}<SECTION>_<KEY>.",
    ]
    for section, meaning, fields in _sections():
        lines += ["", *_comment(meaning), f"[{section}]"]
        for key, field in fields:
            lines += ["", *_comment(_explained(field)), f"# {key} = {toml_value(_default(field))}"]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The same as Markdown: a table for each section."""
    lines = [
        "# Settings",
        "",
        f"`{DEFAULT_PATH}`, in TOML ([an example](../config.toml.example)). Each key can also come from the",
        f"environment as `{ENVIRONMENT_PREFIX}<SECTION>_<KEY>`, lists and tables as JSON, and some as a variable of",
        "the [AWS VPC CNI](vpc-cni-settings.md). A flag beats the environment, our names beat theirs, and the",
        "environment beats the file. `ipamd config check` says what is in force and where it came from. This page is",
        "made by `ipamd config reference`.",
    ]
    for section, meaning, fields in _sections():
        lines += ["", f"## [{section}]", "", meaning, "", "| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | `{toml_value(_default(field))}` | {_explained(field)} |" for key, field in fields]
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, str, list[tuple[str, FieldInfo]]]]:
    """Name, meaning and fields of each."""
    for name, field in Settings.model_fields.items():
        section: Any = field.annotation
        yield name, " ".join(section.__doc__.split()), list(section.model_fields.items())


def _explained(field: FieldInfo) -> str:
    """The meaning, and the allowed values."""
    bounds = []
    for rule in field.metadata:
        for name, word in (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most")):
            limit = getattr(rule, name, None)
            if limit is not None and (name, limit) != ("ge", 0):
                bounds.append(f"{word} {limit:g}" if limit < 1e6 else f"{word} {limit}")
    choices = [str(choice) for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    if choices:
        bounds.append("one of " + ", ".join(choices))
    text = field.description or ""
    return f"{text} ({', '.join(bounds)})" if bounds else text


def _default(field: FieldInfo) -> Any:
    return to_jsonable_python(field.get_default(call_default_factory=True))


def toml_value(value: Any) -> str:
    """JSON is TOML for texts, numbers and booleans."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    # But JSON has halves of characters, and leaves DEL as it is.
    return json.dumps("" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
