"""A clash that appears while the daemon serves is reported soon after, and so is its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipamd.sim import netns
from tests.netns.boxed import box
from tests.netns.test_starting import condition

pytestmark = pytest.mark.netns

# The second look in this test is not to wait for half a minute.
EAGER = "import sys\nfrom ipamd.process import clashes\nclashes.PAUSE = clashes.SHARE = 0\n"
EAGER += "from ipamd.__main__ import main\nsys.exit(main())"

CHAIN = "type filter hook prerouting priority mangle; meta mark set meta mark | 0x1;"
WAYS = {
    "a rule": ("ip rule add priority 1100 lookup 77", "ip rule delete priority 1100 lookup 77", "1100"),
    "a route": ("ip route add blackhole 10.9.9.9 table 1510", "ip route delete 10.9.9.9 table 1510", "10.9.9.9"),
    "a mark": (f"nft 'table inet other {{ chain c {{ {CHAIN} }}; }}'", "nft delete table inet other", "other"),
    "another family's mark": (
        f"nft 'table ip other {{ chain c {{ {CHAIN} }}; }}'",
        "nft delete table ip other",
        "other",
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_clash_that_comes_is_told_until_it_is_gone(tmp_path: Path, prefix: str, way: str) -> None:
    comes, goes, word = WAYS[way]
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.python = ("-c", EAGER)
        await daemon.ready()
        await netns.command("ip", "netns", "exec", daemon.node.netns, "sh", "-ec", comes)
        assert word in await condition(daemon, "host.shared")
        await netns.command("ip", "netns", "exec", daemon.node.netns, "sh", "-ec", goes)
        await condition(daemon, "host.shared", there=False)
        assert await daemon.address("a")
