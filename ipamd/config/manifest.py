"""Reads the settings of the AWS VPC CNI in the forms that they stand in, and writes our file for them.

`ipamd config import-vpc-cni` takes what people have at hand: a manifest or an object of the cluster, the values of
the Helm chart, the configuration of the EKS add-on (alone, as the AWS CLI shows it, or as Terraform's jsonencode made
it), and lines NAME=VALUE.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ipamd.config import vpc_cni
from ipamd.config.load import load
from ipamd.config.reference import toml_value

# The containers whose variables count, in their manifest and Helm chart: the second has none that matter alone.
MAIN, INIT = "aws-node", "aws-vpc-cni-init"

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")

# Where the add-on's configuration stands as one text: in the AWS CLI's and CloudFormation's words, and Terraform's.
_CONFIGURATION = ("configurationValues", "ConfigurationValues", "configuration_values")

_DEEPEST = 12

_READ = (
    "this command reads the DaemonSet or a Pod aws-node (kubectl -n kube-system get daemonset aws-node -o yaml), the "
    "values of the Helm chart, the configuration of the add-on vpc-cni, or lines NAME=VALUE"
)


class NoManifest(Exception):
    """The text has none of the known forms; the message lists them."""


@dataclass(slots=True)
class Variables:
    """`elsewhere`: those whose value stands in another object, and where."""

    values: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)


def variables(text: str) -> Variables:
    """Variables with a value; null and empty ones are left out. Raises `NoManifest`."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assignments = [_ASSIGNMENT.fullmatch(line) for line in lines]
    if lines and all(assignments):
        found = Variables()
        for match in assignments:
            _set(found, match[1] if match else "", match[2].strip("\"'") if match else None)
        return _known(found)
    containers = list(_environments(_documents(text), 0, {}))
    if not containers:
        raise NoManifest(f"there is nothing of the AWS VPC CNI in it: {_READ}")
    if all(name == INIT for name, _ in containers):
        raise NoManifest(f"only the container {INIT} is in it, which has no settings of the pool: {_READ}")
    found = Variables()
    for name in (INIT, MAIN):  # the main container wins
        for _, container in (each for each in containers if each[0] == name):
            _read_container(container, found)
    return found


def _known(found: Variables) -> Variables:
    if not vpc_cni.KNOWN & (found.values.keys() | found.elsewhere.keys()):
        raise NoManifest(f"no variable of the AWS VPC CNI is set in it: {_READ}")
    return found


class _Loader(yaml.SafeLoader):
    """CloudFormation's tags, such as !Ref and !Sub, stand before ordinary values."""


def _untagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    match node:
        case yaml.MappingNode():
            return loader.construct_mapping(node, deep=True)
        case yaml.SequenceNode():
            return loader.construct_sequence(node, deep=True)
        case _:
            return node.value


_Loader.add_multi_constructor("!", _untagged)


def _documents(text: str) -> list[Any]:
    with suppress(ValueError, RecursionError):
        return [json.loads(text)]  # YAML includes JSON, except for characters that JSON writes as surrogate pairs
    try:
        return list(yaml.load_all(text, _Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise NoManifest(f"neither YAML, JSON nor lines NAME=VALUE: {why}") from None


def _environments(node: Any, depth: int, seen: dict[int, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Whatever has an `env`: (name of the container, container). Values of Helm and of the add-on have one of their
    own, and one for `init`; they may stand below the name of the chart, or in a text. YAML's aliases can name one
    node without end: it is `seen` once."""
    if depth > _DEEPEST or id(node) in seen:
        return
    if isinstance(node, (Mapping, list)):
        seen[id(node)] = node
    if isinstance(node, list):
        for item in node:
            yield from _environments(item, depth + 1, seen)
    elif isinstance(node, str) and depth <= 1:  # the whole document is a text that was quoted once more
        yield from _configured(node, depth, seen)
    elif isinstance(node, Mapping):
        name = node.get("name")
        if name in (MAIN, INIT) and ("env" in node or "envFrom" in node or "image" in node):
            yield str(name), node
            return
        if _is_values(node):
            yield MAIN, node
            if isinstance(node.get("init"), Mapping):
                yield INIT, node["init"]
            return
        for key, value in node.items():
            if key in _CONFIGURATION and isinstance(value, str):
                yield from _configured(value, depth, seen)
            elif isinstance(value, (Mapping, list)):
                yield from _environments(value, depth + 1, seen)


def _is_values(node: Mapping[str, Any]) -> bool:
    env, init = node.get("env"), node.get("init")
    inner = init.get("env") if isinstance(init, Mapping) else None
    names = {*(env if isinstance(env, Mapping) else ()), *(inner if isinstance(inner, Mapping) else ())}
    return bool(names & vpc_cni.KNOWN)


def _configured(text: str, depth: int, seen: dict[int, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for document in _documents(text):
        if not isinstance(document, str) or document != text:
            yield from _environments(document, depth + 2, seen)


def _read_container(container: Mapping[str, Any], found: Variables) -> None:
    env = container.get("env") or ()
    if isinstance(env, Mapping):
        for name, value in env.items():
            _set(found, str(name), value)
    for entry in env if isinstance(env, list) else ():
        if not isinstance(entry, Mapping):
            continue
        source = entry.get("valueFrom")
        if source:
            found.elsewhere[str(entry.get("name"))] = (
                ", ".join(source) if isinstance(source, Mapping) else str(source)
            )
        else:
            _set(found, str(entry.get("name")), entry.get("value"))
    sources = container.get("envFrom")
    for source in sources if isinstance(sources, list) else ():
        for kind, reference in source.items() if isinstance(source, Mapping) else ():
            name = reference.get("name", "") if isinstance(reference, Mapping) else ""
            found.elsewhere[f"all of {kind} {name}"] = "envFrom"


def _set(found: Variables, name: str, value: Any) -> None:
    """As Kubernetes gives it to the container; an earlier value goes, for a later one that is empty as well."""
    found.values.pop(name, None)
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, (Mapping, list)):
        inner = value.values() if isinstance(value, Mapping) else value
        if any(isinstance(each, (Mapping, list)) for each in inner):
            raise NoManifest(
                f"{name} holds lists or mappings in one another, which no variable of the AWS VPC CNI does"
            )
        value = json.dumps(value, default=str)
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and str(value).strip():
        found.values[name] = str(value)


def imported(found: Variables) -> str:
    """Our file, with a comment for each variable that changes something. Raises `SettingsError` for values that can't
    be used."""
    load(Path(os.devnull), environ=found.values)  # raises as the daemon would
    translation = vpc_cni.translate(found.values)
    lines = ["# Settings of ipamd, from those of the AWS VPC CNI. Others have their defaults."]
    sections: dict[str, list[str]] = {}
    for dotted, (value, variable) in translation.values.items():
        section, _, key = dotted.partition(".")
        line = f"{key} = {toml_value(value)}"
        sections.setdefault(section, []).append(f"{line:30} # {variable}={_shown(found.values[variable])}")
    for section, keys in sections.items():
        lines += ["", f"[{section}]", *keys]
    for title, entries in (
        ("No counterpart; see to these before you switch:",
         [f"{each.variable}={_shown(each.value)}: {each.meaning}" for each in translation.unsupported]),
        ("Not known, because they stand elsewhere:", [f"{name} ({at})" for name, at in found.elsewhere.items()]),
        ("Of no meaning here, or already what ipamd does:", sorted(translation.unneeded)),
        ("Unknown to this command:", sorted(found.values.keys() - vpc_cni.KNOWN)),
    ):  # fmt: skip
        if entries:
            lines += ["", f"# {title}", *(f"#   {_shown(entry)}" for entry in entries)]
    return "\n".join(lines) + "\n"


def _shown(value: str) -> str:
    """On one line, as a comment has to be."""
    text = " ".join(value.split())
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
