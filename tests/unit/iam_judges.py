"""Two judges of IAM policies, by other people: Parliament knows AWS's list of actions, resources and conditions,
Principal Mapper evaluates policies. Both still look for names that newer releases of what they stand on have dropped.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

for _name in ("Mapping", "MutableMapping"):
    vars(collections).setdefault(_name, getattr(collections.abc, _name))  # Python 3.10

if importlib.util.find_spec("pkg_resources") is None:  # setuptools 82
    _resources = ModuleType("pkg_resources")
    vars(_resources)["resource_filename"] = lambda package, name: str(
        Path(str(sys.modules[package].__file__)).with_name(name)
    )
    sys.modules["pkg_resources"] = _resources

import parliament  # noqa: E402
from principalmapper.querying import local_policy_simulation  # noqa: E402
from principalmapper.util.case_insensitive_dict import CaseInsensitiveDict  # noqa: E402


def findings(policy: Mapping[str, Any]) -> list[str]:
    """What Parliament has against it. It looks at one statement at a time, so that a kind of resource which another
    one names for the same action is no finding."""
    named = {
        (action, _kind(resource))
        for statement in policy["Statement"]
        for action in _list(statement["Action"])
        for resource in _list(statement["Resource"])
    }
    found = []
    for finding in parliament.analyze_policy_string(json.dumps(policy)).findings:
        details = finding.detail
        if finding.issue == "RESOURCE_MISMATCH":
            details = [each for each in details if (each["action"], _kind(each["required_format"])) not in named]
        if details:
            found.append(f"{finding.issue}: {details}")
    return found


def _kind(arn: str) -> str:
    return arn.rpartition(":")[2].partition("/")[0]


def _list(one_or_more: str | list[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def allows(policy: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    """Whether one of its statements does, by Principal Mapper. `context` has the values of condition keys."""
    return bool(
        local_policy_simulation.policy_has_matching_statement(
            policy, "Allow", action, resource, CaseInsensitiveDict(dict(context))
        )
    )
