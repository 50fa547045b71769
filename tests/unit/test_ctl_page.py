"""docs/ipamctl.md has every command, every key and every exit code, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import audit, explain, lists, status
from ipamd.ctl.__main__ import COMMANDS
from tests.unit.ctl_daemon import ill

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ipamctl.md").read_text()


def keys(heading: str) -> list[str]:
    """Those in the first column of the section's table."""
    text = re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S)
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    table = section.split("| key | |\n", 1)[1]
    return [key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize(("name", "listing"), lists.LISTINGS.items())
def test_the_keys_of_lists(name: str, listing: lists.Listing) -> None:
    assert keys(name) == list(listing.keys)


def test_the_keys_of_objects() -> None:
    node = ill()
    node.host.disputes.add(what="x")
    data = status.data(node, (), 0)
    assert keys("status") == list(data)
    for outer in ("targets", "limits", "host"):
        row = re.search(rf"^\| `{outer}` \| (.*) \|$", PAGE, re.M)
        assert row and re.findall(r"`(\w+)`", row[1])[: len(data[outer])] == list(data[outer])
    for outer in ("subnets", "backoffs", "denied", "budget"):
        row = re.search(rf"^\| `{outer}` \| (.*) \|$", PAGE, re.M)
        assert row and re.findall(r"`(\w+)`", row[1])[: len(data[outer][0])] == list(data[outer][0])
    assert sorted(keys("explain")) == sorted(explain.data(pb.Explanation()))
    assert keys("audit") == list(audit.data(pb.AuditReply()))
    row = re.search(r"^\| `mismatches` \| (.*) \|$", PAGE, re.M)
    assert row and re.findall(r"`(\w+)`", row[1]) == list(audit.MISMATCH)


def test_every_command() -> None:
    missing = [name for name in COMMANDS if f"`{name}`" not in PAGE and f"ipamctl {name}" not in PAGE]
    assert not missing
    assert set(re.findall(r"# ipamctl ([a-z-]+)", PAGE)) <= COMMANDS.keys()
