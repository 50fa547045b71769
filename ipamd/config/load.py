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
from ipamd.config.service_links import is_service_link
from ipamd.config.text import Unreadable, read
from ipamd.pool.quoting import cut
from ipamd.settings import DEFAULT_PATH, ENVIRONMENT_PREFIX, Settings, contradictions

# The size limit of a ConfigMap. A daemon that reads the file while it serves must not take seconds for it.
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force; for each dotted key that is not a default, where its value came from; the file that was
    read, if there was one; and of the environment what does not become a setting: variables of the AWS VPC CNI
    without a counterpart, and names of variables that Kubernetes sets for Services."""

    settings: Settings
    origins: Mapping[str, Origin]
    file: Path | None = None
    unsupported: tuple[vpc_cni.Unsupported, ...] = ()
    service_links: tuple[str, ...] = ()

    def effective(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted key, value as JSON knows it, origin) of every setting."""
        for section, values in self.settings.model_dump(mode="json").items():
            for key, value in values.items():
                dotted = f"{section}.{key}"
                yield dotted, value, str(self.origins.get(dotted, "default"))


@dataclass(slots=True)
class _Sources:
    """All values found; for each key the strongest source wins. `text` is the file's."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    file: str = ""
    text: str = ""

    def put(self, section: str, key: str, value: Any, origin: Origin) -> None:
        keys = self.values.setdefault(section, {})
        if not isinstance(keys, dict):  # the file has a value where a section should be: reported elsewhere
            keys = self.values[section] = {}
        keys[key] = value
        self.origins[f"{section}.{key}"] = origin

    def located(self, path: tuple[str, ...]) -> Origin | None:
        """The origin of the setting that a complaint is about, with its line."""
        origin = self.origins.get(".".join(path[:2]))
        if origin is not None and origin.source != self.file:
            return origin
        line = line_of(self.text, path[:2]) or line_of(self.text, path[:1])
        if line or origin is not None:
            return Origin(self.file, line) if line else origin
        # A whole section is wrong, and the file does not have it: the first variable or flag that names it.
        return next((found for key, found in self.origins.items() if key.startswith(f"{path[0]}.")), None)


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
    file = _read_file(path, sources)
    theirs = vpc_cni.translate(environ)
    for dotted, (value, variable) in theirs.values.items():
        section, _, key = dotted.partition(".")
        sources.put(section, key, value, Origin(f"environment {variable}"))
    links = tuple(name for name, value in environ.items() if is_service_link(name, value))
    lines = theirs.errors + _read_environment(environ, links, sources)
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
    return Loaded(settings, sources.origins, file, theirs.unsupported, links)


_EXAMPLES = {list: '\'["a", "b"]\'', dict: '\'{"team": "net"}\''}


def _read_environment(environ: Mapping[str, str], ignored: tuple[str, ...], sources: _Sources) -> list[str]:
    """Returns the complaints."""
    lines = []
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in ignored:
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
        if not text and not _takes_nothing(section, key):
            continue  # an empty `value:` of a manifest
        try:
            value = _from_text(section, key, text)
        except (ValueError, RecursionError):
            example = _EXAMPLES[_kind(section, key)]
            lines.append(f"environment {name} = {cut(text, 200)}: must be JSON, for instance {example}")
            continue
        sources.put(section, key, value, Origin(f"environment {name}"))
    return lines


def _read_file(path: Path | None, sources: _Sources) -> Path | None:
    """The file that was read; None if there is none, which is allowed for the default file only."""
    file = path or DEFAULT_PATH
    try:
        sources.text = read(file, MOST_BYTES)
        document = tomllib.loads(sources.text)
    except FileNotFoundError:
        if path is None:
            return None
        raise SettingsError(f"{path}: no such file") from None
    except Unreadable as error:
        raise SettingsError(f"{file}: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise SettingsError(f"{file}: not TOML: {why}") from None
    for section, keys in document.items():
        sources.values[section] = keys
        for key in keys if isinstance(keys, dict) else ():
            sources.origins[f"{section}.{key}"] = Origin(str(file))
    return file


def _kind(section: str, key: str) -> Any:
    """list or dict for a setting that is one; None for others and for what is no setting."""
    found = Settings.model_fields.get(section)
    model = found.annotation if found else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or key not in model.model_fields:
        return None
    kind = get_origin(model.model_fields[key].annotation)
    return kind if kind in (list, dict) else None


def _takes_nothing(section: str, key: str) -> bool:
    """Whether an empty text says something: metrics.listen = "" is nowhere. So it does for what is no setting."""
    found = Settings.model_fields.get(section)
    model: Any = found.annotation if found else None
    if model is None or key not in model.model_fields:
        return True
    try:
        model.model_validate({key: ""})
    except ValidationError:
        return False
    return True


def _from_text(section: str, key: str, text: str) -> Any:
    """Environment variables hold scalars as they are; lists and tables as JSON."""
    return json.loads(text) if _kind(section, key) else text
