"""A daemon whose role may not do all: it serves, and its log names what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from tests.netns.boxed import box, control

pytestmark = pytest.mark.netns


async def test_a_denied_action_is_named_once_and_pods_are_served(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, EC2_CHECK_PERMISSIONS="true", POOL_WARM_IPS=3) as (daemon, vpc):
        for action in ("CreateNetworkInterface", "DescribeSubnets"):
            await control(vpc, "faults", {"action": action, "error": "UnauthorizedOperation"})
        await daemon.ready()
        checked = await daemon.seen("iam.checked")
        assert (checked["allowed"], checked["unknown"]) == ([], {})
        names = [event["event"] for event in daemon.events()]
        assert names.index("daemon.ready") < names.index("iam.denied")
        denied = daemon.events("iam.denied")
        assert {(event["action"], event["level"]) for event in denied} == {
            ("ec2:CreateNetworkInterface", "error"),
            ("ec2:DescribeSubnets", "error"),
        }
        assert all("ec2:" in event["missing"] and event["without"] for event in denied)
        node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
        shown = {action.action: action.consequence for action in node.denied}
        assert set(shown) == {"CreateNetworkInterface", "DescribeSubnets"} and all(shown.values())
        assert await daemon.address("a")
