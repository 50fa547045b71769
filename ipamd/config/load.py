"""Reads the settings from where they may stand, and keeps for each where it came from.

Order of precedence: command-line flag, environment (`IPAMD_<SECTION>_<KEY>`), environment names of the AWS VPC CNI
(`ipamd.config.vpc_cni`), file (/etc/ipamd/config.toml), default.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from ipamd.config import vpc_cni
from ipamd.config.error import Origin, SettingsError
from ipamd.config.explain import complaints
from ipamd.config.lines import line_of
from ipamd.settings import DEFAULT_PATH, ENVIRONMENT_PREFIX, Settings, contradictions


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force; for each dotted key that is not a default, where its value came from; and the variables
    of the AWS VPC CNI that are set and have no counterpart."""

    settings: Settings
    origins: Mapping[str, Origin]
    unsupported: tuple[vpc_cni.Unsupported, ...] = ()

    def effective(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted key, value as JSON knows it, origin) of every setting."""
        for section, values in self.settings.model_dump(mode="json").items():
            for key, value in values.items():
                dotted = f"{section}.{key}"
                yield dotted, value, str(self.origins.get(dotted, "default"))


@dataclass(slots=True)
class _Sources:
    """All that was found, the strongest source of each key having the last word. `text` is the file's."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    file: str = ""
    text: str = ""

    def put(self, section: str, key: str, value: Any, origin: Origin) -> None:
        keys = self.values.setdefault(section, {})
        if not isinstance(keys, dict):  # the file has a value where a section should be: that is complained about
            keys = self.values[section] = {}
        keys[key] = value
        self.origins[f"{section}.{key}"] = origin

    def located(self, path: tuple[str, ...]) -> Origin | None:
        """The origin of the setting that a complaint is about, with its line."""
        origin = self.origins.get(".".join(path[:2]))
        if origin is not None and origin.source != self.file:
            return origin
        line = line_of(self.text, path[:2]) or line_of(self.text, path[:1])
        return Origin(self.file, line) if line else origin


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read and validate the settings.

    `path` None means the default file, which may be absent; a named file must exist. `flags` maps dotted keys
    ("pool.warm_ips") to values. Raises `SettingsError`, which names all that is wrong.
    """
    environ = os.environ if environ is None else environ
    sources = _Sources(file=str(path or DEFAULT_PATH))
    _read_file(path, sources)
    lines: list[str] = []
    theirs = vpc_cni.translate(environ)
    for dotted, (value, variable) in theirs.values.items():
        section, _, key = dotted.partition(".")
        sources.put(section, key, value, Origin(f"environment {variable}"))
    lines += theirs.errors
    for name, text in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
            try:
                value = _from_text(section, key, text)
            except json.JSONDecodeError:
                lines.append(
                    f"environment {name} = {text}: must be JSON, for instance {_EXAMPLES[_kind(section, key)]}"
                )
                continue
            sources.put(section, key, value, Origin(f"environment {name}"))
    for dotted, value in (flags or {}).items():
        section, _, key = dotted.partition(".")
        sources.put(section, key, value, Origin("command line"))
    try:
        settings = Settings.model_validate(sources.values)
    except ValidationError as error:
        raise SettingsError("\n".join([*lines, *complaints(error, sources.located)])) from None
    for keys, problem in contradictions(settings):
        where = next((origin for key in keys if (origin := sources.located(tuple(key.split("."))))), None)
        lines.append(f"{where}: {problem}" if where else problem)
    if lines:
        raise SettingsError("\n".join(lines))
    return Loaded(settings, sources.origins, theirs.unsupported)


_EXAMPLES = {list: '\'["a", "b"]\'', dict: '\'{"team": "net"}\''}


def _read_file(path: Path | None, sources: _Sources) -> None:
    file = path or DEFAULT_PATH
    try:
        sources.text = file.read_text(encoding="utf-8")
        document = tomllib.loads(sources.text)
    except FileNotFoundError:
        if path is None:
            return
        raise SettingsError(f"{path}: no such file") from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from None
    for section, keys in document.items():
        sources.values[section] = keys
        for key in keys if isinstance(keys, dict) else ():
            sources.origins[f"{section}.{key}"] = Origin(str(file))


def _kind(section: str, key: str) -> Any:
    """list or dict for a setting that is one; None for others and for what is no setting."""
    found = Settings.model_fields.get(section)
    model = found.annotation if found else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or key not in model.model_fields:
        return None
    kind = get_origin(model.model_fields[key].annotation)
    return kind if kind in (list, dict) else None


def _from_text(section: str, key: str, text: str) -> Any:
    """Environment variables hold scalars as they are; lists and tables as JSON."""
    return json.loads(text) if _kind(section, key) else text
