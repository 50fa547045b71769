"""Which partition of AWS a region belongs to: the first part of every ARN after "arn".

From botocore's own data, so that a partition which came later is known with the library ("Amazon Resource Names" in
the IAM User Guide). Another partition's ARN in a policy matches nothing, and nothing says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any


def partition_of(region: str) -> str:
    """Such as "aws-us-gov"; empty for what has the form of no partition's regions."""
    for name, partition in _partitions().items():
        if region in partition["regions"]:
            return name
    for name, partition in _partitions().items():
        if re.fullmatch(partition["regionRegex"], region):
            return name
    return ""


def examples() -> Mapping[str, str]:
    """A region of each partition, by the partition's name."""
    regions = {name: [r for r in p["regions"] if not r.endswith("-global")] for name, p in _partitions().items()}
    return {name: sorted(known)[0] for name, known in regions.items() if known}


@cache
def _partitions() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files("botocore").joinpath("data/partitions.json").read_text("utf-8")
    return {partition["id"]: partition for partition in json.loads(text)["partitions"]}
