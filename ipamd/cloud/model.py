"""What botocore knows of EC2, cut down to the calls that ipamd makes.

A client of EC2 is made from two files: the model, with 800 operations and 4300 shapes, and the table of every
service's endpoints. All of it takes 24 MiB for as long as the client lives, what is needed of it 5. It is cut when it
is read, from the files of the botocore that is installed, so it is never older than that.
"""

from __future__ import annotations

import gc
import json
import os.path
from collections.abc import Iterator
from functools import cache
from threading import Lock
from typing import Any

from botocore.loaders import JSONFileLoader, Loader  # type: ignore[import-untyped]

# The client has no method for any other.
ACTIONS = (
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "DeleteNetworkInterface",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeNetworkInterfaces",
    "DescribeSubnets",
    "DetachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "UnassignPrivateIpAddresses",
)

# The others are where credentials may come from.
SERVICES = ("ec2", "sts", "sso", "oidc", "portal.sso")

_warming = Lock()


@cache
def loader() -> Loader:
    """The one of this process, for sessions that make clients of EC2. It searches where botocore's own does."""
    return Loader(file_loader=_CutFiles())


def warm() -> None:
    """Read what a client is made from, unless that is done. It takes some 90 ms: call it in a thread."""
    with _warming:
        loader().load_service_model("ec2", "service-2")
        loader().load_data("endpoints")


class _CutFiles(JSONFileLoader):  # type: ignore[misc]
    def load_file(self, file_path: str) -> Any:
        """None when there is no such file. The path is without its extension."""
        found = super().load_file(file_path)
        folder, name = os.path.split(file_path)
        if found is None or (name, "/ec2/" in folder) not in (("service-2", True), ("endpoints", False)):
            return found
        # The rest goes back to the system only when nothing that stays lies in between: what is kept is written
        # and read again, which packs it, after the lists of free objects were emptied. This saves 11 MiB.
        kept = json.dumps(_model(found) if name == "service-2" else _endpoints(found))
        del found
        gc.collect()
        return json.loads(kept)


def _model(model: dict[str, Any]) -> dict[str, Any]:
    operations = {name: model["operations"][name] for name in ACTIONS}
    shapes: dict[str, Any] = {}
    ahead = list(_shapes_in(operations))
    while ahead:
        name = ahead.pop()
        if name not in shapes:
            shapes[name] = model["shapes"][name]
            ahead += _shapes_in(shapes[name])
    return {**model, "operations": _undocumented(operations), "shapes": _undocumented(shapes)}


def _shapes_in(part: Any) -> Iterator[str]:
    """The names of all shapes that this part of the model refers to. Members may be called "shape", too."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "shape" and isinstance(value, str):
                yield value
            else:
                yield from _shapes_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from _shapes_in(value)


def _undocumented(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return {k: _undocumented(v) for k, v in part.items() if k != "documentation" or not isinstance(v, str)}


def _endpoints(table: dict[str, Any]) -> dict[str, Any]:
    partitions = [
        {
            **partition,
            "services": {name: partition["services"][name] for name in SERVICES if name in partition["services"]},
        }
        for partition in table["partitions"]
    ]
    return {**table, "partitions": partitions}
