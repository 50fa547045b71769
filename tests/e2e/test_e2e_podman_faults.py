"""What podman does to a running container's network, and what it forgets: nothing of it costs an address."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from ipamd.install.files import CONFLIST
from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import DaemonSilent, Node
from ipamd.sim.netns import command
from ipamd.sim.runtimes.process import Child, inside
from tests.e2e.podman import Podman
from tests.e2e.single_node import assert_each_has_its_way_out, run, until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("podman_with_cni")]

SECOND = "second"
OUTSIDE = "192.0.2.1"
LIBCNI_CACHE = Path("/var/lib/cni/results")


@pytest.fixture
def types() -> Mapping[str, str]:
    return {"n1": "m5.large"}


@pytest.fixture
async def podman(node: Node, control: ControlClient) -> AsyncIterator[Podman]:
    """Nothing may be left at the end."""
    made = Podman.prepare(node)
    yield made
    await made("rm", "--all", "--force", "--time", "0")
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def start(podman: Podman, name: str, network: str = "ipamd") -> None:
    code, text = await podman.run(f"--detach --name {name}", "/bin/sleep", "600", network=network)
    assert code == 0, text


async def answers(podman: Podman, *ips: str) -> None:
    """The node reaches each of them."""
    for ip in ips:
        code, text = await run(podman.node.spec.netns, "ping", "-n", "-c1", "-W2", ip)
        assert code == 0, text


async def held(podman: Podman) -> dict[tuple[str, str], str]:
    """Address by network and interface."""
    return {(line["network"], line["ifname"]): line["ip"] for line in await podman.node.pods()}


async def test_reload(podman: Podman) -> None:
    """DEL and ADD in the same namespace; podman asks for the address and the MAC that the container had."""
    await start(podman, "web")
    [before] = await podman.node.pods()
    await podman.must("network", "reload", "web")
    [line] = await podman.node.pods()
    assert (line["netns"], line["ip"]) == (before["netns"], before["ip"])
    assert await podman.address_of("web") == before["ip"]
    await answers(podman, line["ip"])
    await podman.must("rm", "--force", "--time", "0", "web")


async def test_disconnect_connect_restart(podman: Podman) -> None:
    await start(podman, "web")
    netns = (await podman.node.pods())[0]["netns"]
    await answers(podman, await podman.address_of("web"))

    await podman.must("network", "disconnect", "ipamd", "web")
    assert await podman.node.pods() == []
    await podman.must("network", "connect", "ipamd", "web")
    [line] = await podman.node.pods()
    await answers(podman, line["ip"])

    await podman.must("restart", "--time", "0", "web")
    [line] = await podman.node.pods()
    assert line["netns"] != netns
    await answers(podman, line["ip"])
    await podman.must("rm", "--force", "--time", "0", "web")
    assert await podman.node.pods() == []


async def test_two_networks(podman: Podman) -> None:
    document = json.loads((podman.node.conf_dir / CONFLIST).read_bytes()) | {"name": SECOND}
    (podman.node.conf_dir / "20-second.conflist").write_text(json.dumps(document))
    await start(podman, "both", f"ipamd,{SECOND}")
    addresses = await podman.networks_of("both")
    assert set(addresses) == {"ipamd", SECOND}
    given = await held(podman)
    assert {network: ip for (network, _), ip in given.items()} == addresses
    assert {ifname for _, ifname in given} == {"eth0", "eth1"}
    await answers(podman, *addresses.values())
    netns = (await podman.node.pods())[0]["netns"]
    for ip in addresses.values():
        code, text = await run(netns, "ping", "-n", "-c1", "-W2", "-I", ip, podman.node.spec.primary_ip)
        assert code == 0, text
    await assert_each_has_its_way_out(netns, {ifname: ip for (_, ifname), ip in given.items()}, OUTSIDE)

    # One goes, the other works on.
    await podman.must("network", "disconnect", SECOND, "both")
    assert {network for network, _ in await held(podman)} == {"ipamd"}
    await answers(podman, addresses["ipamd"])
    await podman.must("rm", "--force", "--time", "0", "both")


async def test_a_conflist_that_is_removed_meanwhile(podman: Podman, control: ControlClient) -> None:
    await start(podman, "old")
    conflist = podman.node.conf_dir / CONFLIST
    kept = conflist.read_bytes()
    conflist.unlink()
    code, text = await podman("rm", "--force", "--time", "0", "old")
    assert (code, await podman.node.pods()) == (0, []), text
    conflist.write_bytes(kept)


# The daemon, except that it looks for attachments without a namespace more often than once a minute.
HASTY = """
import sys
from ipamd.pool import audit
audit.SEARCH_INTERVAL = 1.0
from ipamd.__main__ import main
sys.exit(main())
"""


async def test_a_namespace_that_goes_behind_podmans_back(podman: Podman) -> None:
    """podman sends no DEL for it, so only the daemon can find the address."""
    node = podman.node
    await node.stop()
    argv = inside(node.spec.netns, sys.executable, "-c", HASTY, "run", "--config", node.spec.config)
    daemon = await Child.start(argv, node.log, {"PATH": os.environ["PATH"], "HOME": str(node.spec.dir)})
    try:
        await until(partial(_serves, node), "the daemon serves")
        await start(podman, "lost")
        await start(podman, "kept")
        [lost] = [line for line in await node.pods() if line["pod"] == "lost"]
        netns = Path(lost["netns"])
        await command("umount", str(netns))
        netns.unlink()
        await podman("rm", "--force", "--time", "0", "lost")
        # What libcni keeps until DEL is lost for good as well.
        (LIBCNI_CACHE / f"{lost['network']}-{lost['container_id']}-{lost['ifname']}").unlink()

        async def collected() -> bool:
            return [line["pod"] for line in await node.pods()] == ["kept"]

        await until(collected, "the daemon collects the address")
        assert "attachment.collected" in node.log.read_text()
        assert (await node.status())["cooling"] == 1
        await answers(podman, await podman.address_of("kept"))
        await podman.must("rm", "--force", "--time", "0", "kept")
    finally:
        await daemon.stop(10.0)
        await node.start()
        await node.wait_until_ready()


async def _serves(node: Node) -> bool:
    try:
        return bool((await node.status())["ready"])
    except DaemonSilent:
        return False
