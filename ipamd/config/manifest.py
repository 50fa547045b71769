"""Reads a DaemonSet of the AWS VPC CNI, and writes our file for it: `ipamd config import-vpc-cni`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ipamd.config import vpc_cni
from ipamd.config.load import load
from ipamd.config.reference import toml_value

# The containers whose variables count, in their manifest and Helm chart.
CONTAINERS = ("aws-node", "aws-vpc-cni-init")

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


class NoManifest(Exception):
    """The text is nothing that this command reads; the message says what it reads."""


@dataclass(slots=True)
class Variables:
    """`elsewhere`: those whose value stands in another object, and where."""

    values: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)


def variables(text: str) -> Variables:
    """From a DaemonSet in YAML or JSON, alone, in a List or among other documents; or from lines NAME=VALUE, as
    `kubectl set env daemonset/aws-node --list` prints them. Raises `NoManifest`."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assignments = [_ASSIGNMENT.fullmatch(line) for line in lines]
    if lines and all(assignments):
        return Variables({match[1]: match[2].strip("\"'") for match in assignments if match})
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise NoManifest(f"neither YAML, JSON nor lines NAME=VALUE: {' '.join(str(error).split())}") from None
    found = Variables()
    containers = [container for document in documents for container in _containers(document)]
    if not containers:
        raise NoManifest(
            f"no DaemonSet with a container {' or '.join(CONTAINERS)} in it; try: kubectl -n kube-system get "
            "daemonset aws-node -o yaml"
        )
    for container in containers:
        for entry in container.get("env") or ():
            if "valueFrom" in entry:
                found.elsewhere[str(entry.get("name"))] = ", ".join(entry["valueFrom"] or ())
            else:
                found.values[str(entry.get("name"))] = str(entry.get("value", ""))
        for source in container.get("envFrom") or ():
            kind, reference = next(iter(source.items()))
            found.elsewhere[f"all of {kind} {(reference or {}).get('name', '')}"] = "envFrom"
    return found


def _containers(document: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(document, Mapping):
        return
    if isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _containers(item)
        return
    spec = document
    for key in ("spec", "template", "spec"):
        spec = spec.get(key) or {}
        if not isinstance(spec, Mapping):
            return
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        if isinstance(container, Mapping) and container.get("name") in CONTAINERS:
            yield container


def imported(found: Variables) -> str:
    """Our file, with a comment for each variable that asked for something. Raises `SettingsError` for values that
    can't be used."""
    load(Path(os.devnull), environ=found.values)  # names all that is wrong, as the daemon would
    translation = vpc_cni.translate(found.values)
    lines = ["# Settings of ipamd, from the environment of an AWS VPC CNI DaemonSet. Others have their defaults."]
    sections: dict[str, list[str]] = {}
    for dotted, (value, variable) in translation.values.items():
        section, _, key = dotted.partition(".")
        line = f"{key} = {toml_value(value)}"
        sections.setdefault(section, []).append(f"{line:30} # {variable}={found.values[variable]}")
    for section, keys in sections.items():
        lines += ["", f"[{section}]", *keys]
    for title, entries in (
        ("No counterpart; see to these before you switch:",
         [f"{each.variable}={each.value}: {each.meaning}" for each in translation.unsupported]),
        ("Not known, because they stand elsewhere:", [f"{name} ({at})" for name, at in found.elsewhere.items()]),
        ("Of no meaning here, or already what ipamd does:", sorted(translation.unneeded)),
        ("Unknown to this command:", sorted(found.values.keys() - vpc_cni.KNOWN)),
    ):  # fmt: skip
        if entries:
            lines += ["", f"# {title}", *(f"#   {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"
