"""The drop-ins that are shipped, against the distribution's own systemd-networkd.

It runs in a network namespace and a mount namespace of its own, with empty folders where its configuration and state
are. Without the drop-ins it removes our rule and takes a pod's link over; with them it does neither: so what the
doctor says about networkd is true, and what it proposes helps.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipamd.install.files import write_drop_ins
from tests.netns.boxed import box, until

pytestmark = pytest.mark.netns

NETWORKD = Path("/lib/systemd/systemd-networkd")

# What it is given to manage: links like an instance's, with addresses of their own so that nothing is asked for.
ETHERNET = (
    "[Match]\nName=eth* ipm*\n[Network]\nDHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nAddress=10.7.0.1/24\n"
)

# /sys read-only tells networkd that there is no udev to wait for. Its own files are put in place of the host's.
_ENTER = """
set -e
mount --make-rprivate /
mount -o remount,bind,ro /sys
for place in /run/systemd /etc/systemd; do mkdir -p $place; mount -t tmpfs none $place; done
cp -r "$1"/etc/systemd/. /etc/systemd/
for place in "" links leases lldp; do install -d -o systemd-network -g systemd-network /run/systemd/netif/$place; done
SYSTEMD_LOG_LEVEL=debug exec "$2"
"""


class Networkd:
    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace, self.folder, self.log = namespace, folder, folder / "networkd.log"

    def ip(self, command: str) -> str:
        return subprocess.run(
            ["ip", "-n", self.namespace, *command.split()], check=True, capture_output=True, text=True
        ).stdout

    def until(self, words: str, patience: float = 10.0) -> None:
        """Its log has them; the log is written line by line."""
        end = time.monotonic() + patience
        while words not in self.log.read_text(errors="replace"):
            assert time.monotonic() < end, f"{words!r} is not in the log of networkd"
            time.sleep(0.05)

    @contextmanager
    def running(self) -> Iterator[None]:
        argv = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", "-c", _ENTER, "sh"]
        with self.log.open("w") as log:
            process = subprocess.Popen([*argv, str(self.folder), str(NETWORKD)], stdout=log, stderr=log)
        try:
            self.until("Enumeration completed")
            # A link that comes now, as an ENI does: to configure one is when networkd clears up.
            self.ip("link add eth5 type veth peer name far5")
            self.ip("link set far5 up")
            self.until("eth5: State changed: configuring -> configured")
            yield
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def networkd(prefix: str, tmp_path: Path) -> Iterator[Networkd]:
    if not NETWORKD.exists() or shutil.which("unshare") is None:
        pytest.skip("this machine has no systemd-networkd")
    name = f"{prefix}-n"
    subprocess.run(["ip", "netns", "add", name], check=True)
    (tmp_path / "etc/systemd/network").mkdir(parents=True)
    (tmp_path / "etc/systemd/network/20-ethernet.network").write_text(ETHERNET)
    stage = Networkd(name, tmp_path)
    stage.ip("link set lo up")
    stage.ip("link add ipm1 address 0a:59:00:00:00:01 type veth peer name pod1")
    stage.ip("link set ipm1 up")
    stage.ip("rule add lookup 1500 priority 500 protocol 158")
    stage.ip("route add 10.1.1.1 dev ipm1 table 1500 protocol 158")
    yield stage
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_networkd_without_drop_ins_takes_our_rule_and_pod_link(networkd: Networkd) -> None:
    with networkd.running():
        networkd.until("Removing foreign routing policy rule (configured,marked): priority: 500")
        networkd.until("ipm1: State changed: initialized -> configuring")
        networkd.until("foreign routing policy rule (n/a): priority: 500")  # "Forgetting", and "removed" since 256
        assert "lookup 1500" not in networkd.ip("rule show")


def test_with_them_it_leaves_ours_alone(networkd: Networkd) -> None:
    write_drop_ins(networkd.folder / "etc")
    with networkd.running():
        assert "ipm1: State changed: initialized -> unmanaged" in networkd.log.read_text(errors="replace")
    assert "Removing foreign routing policy rule" not in networkd.log.read_text(errors="replace")
    assert "500:	from all lookup 1500 proto 158" in networkd.ip("rule show")
    assert "10.1.1.1" in networkd.ip("route show table 1500")
    assert "10.7.0.1" not in networkd.ip("addr show dev ipm1")
    assert "10.7.0.1" in networkd.ip("addr show dev eth5")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_reads_the_drop_in(tmp_path: Path) -> None:
    write_drop_ins(tmp_path / "etc")
    (tmp_path / "etc/systemd/networkd.conf").write_text("[Network]\nManageForeignRoutes=yes\n")
    done = subprocess.run(
        ["systemd-analyze", "cat-config", "--root", str(tmp_path), "systemd/networkd.conf"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.index("ManageForeignRoutes=yes") < done.stdout.index("ManageForeignRoutes=no")


async def test_networkd_is_named_and_its_removals_are_repaired(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_MINIMUM_IPS=12) as (daemon, _vpc):
        await daemon.ready()
        await daemon.settled(12)
        networkd = Networkd(daemon.node.netns, tmp_path)
        (tmp_path / "etc/systemd/network").mkdir(parents=True)
        (tmp_path / "etc/systemd/network/20-other.network").write_text(ETHERNET.replace("eth* ipm*", "eth5"))
        rules = networkd.ip("rule show")
        assert "1501:" in rules
        enter = networkd.running()
        await asyncio.to_thread(enter.__enter__)
        try:
            await asyncio.to_thread(networkd.until, "Removing foreign routing policy rule")
            told = await daemon.seen("host.repaired")
            assert told["by"].startswith("systemd-network (pid "), told

            async def restored() -> bool:
                return networkd.ip("rule show") == rules

            await until(restored, "the rules are back")
        finally:
            await asyncio.to_thread(enter.__exit__, None, None, None)
