"""The unit under a real systemd, on a booted machine of its own: start, watchdog, reload, restart, stop, reboot,
uninstall; and that the sandbox lets the daemon do all its work, and nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from ipamd.sim.demo.checks import ControlClient, host_links
from ipamd.sim.fabric import PEER_HOST
from ipamd.sim.vpc import SimulatedVpc
from tests.e2e.booted import BIN_DIR, COMMAND, CONFLIST, Machine, machine
from tests.e2e.single_node import until

pytestmark = pytest.mark.e2e

DROP_INS = Path("etc/systemd/system/ipamd.service.d")
CAP_NET_ADMIN = 1 << 12
WARM = 5  # pool.warm_ips, by default


@pytest.fixture
def types() -> Mapping[str, str]:
    return {"n1": "m5.large"}  # 3 ENIs of 9 addresses for pods


@pytest.fixture
async def booted(vpc: SimulatedVpc) -> AsyncIterator[Machine]:
    async with machine(vpc.nodes[0]) as made:
        await made.run(COMMAND, "install", "--systemd")
        yield made


async def started(booted: Machine, **drop_ins: str) -> Machine:
    """`drop_ins`: sections of the unit by name of file."""
    folder = booted.root / DROP_INS
    for name, text in drop_ins.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.conf").write_text(f"{text}\n")
    await booted.run("systemctl", "daemon-reload")
    await booted.run("systemctl", "enable", "--now", "ipamd.service")
    return booted


async def settled(booted: Machine, free: int = WARM) -> None:
    async def quiet() -> bool:
        status = await booted.ask("status")
        return status["free"] == free and not (status["pending"] or status["waiting"] or status["releasing"])

    await until(quiet, "the pool is at rest")


async def test_ready_only_when_an_address_can_be_granted(booted: Machine, control: ControlClient) -> None:
    with (booted.root / "etc/ipamd/config.toml").open("a") as config:
        config.write('[api]\nread_group = "ipamd"\n')
    await control.fault("AssignPrivateIpAddresses", error="held")
    await booted.run("systemctl", "start", "--no-block", "ipamd.service")

    async def asked() -> bool:
        code, status = await booted.attempt(COMMAND.with_name("ipamctl"), "status", "-o", "json")
        return code in (0, 3) and json.loads(status)["pending"] > 0

    await until(asked, "EC2 is asked for addresses")
    assert (await booted.show("ActiveState"))["ActiveState"] == "activating"
    assert not booted.path(CONFLIST).exists()
    await control.clear_faults()
    await booted.run("systemctl", "start", "ipamd.service")  # waits for the job that is there
    shown = await booted.show("ActiveState", "StatusText")
    assert shown == {"ActiveState": "active", "StatusText": f"{booted.node.instance_id}: serving"}
    assert booted.path(CONFLIST).exists()
    assert (await booted.ask("status"))["free"] > 0

    # Others of the group may look, and change nothing.
    ipamctl = COMMAND.with_name("ipamctl")
    reader = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    assert (await booted.attempt(*reader, ipamctl, "status"))[0] != 0
    reader = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=ipamd")
    assert json.loads(await booted.run(*reader, ipamctl, "status", "-o", "json"))["ready"]
    assert (await booted.attempt(*reader, ipamctl, "drain"))[0] != 0


async def test_the_sandbox_permits_the_daemons_work_and_nothing_else(booted: Machine, control: ControlClient) -> None:
    shutil.copy(Path(__file__).with_name("forbidden.py"), booted.root / "opt")
    (booted.root / "root/secret").write_text("")
    booted.path(BIN_DIR).mkdir(parents=True, exist_ok=True)
    shutil.copy("/usr/lib/cni/portmap", booted.path(BIN_DIR))
    tries = "/usr/bin/python3 /opt/forbidden.py"
    # What runs after the daemon has started runs in the same sandbox as the daemon.
    await started(booted, tries=f"[Service]\nExecStartPost=/bin/sh -c '{tries} > /run/ipamd/tries'")

    free = json.loads(await booted.run(*tries.split()))
    inside = json.loads(await booted.run("cat", "/run/ipamd/tries"))
    assert {name for name, outcome in free.items() if outcome != "done"} == set()
    assert {name for name, outcome in inside.items() if outcome == "done"} == set()
    status = await booted.run("cat", f"/proc/{(await booted.show('MainPID'))['MainPID']}/status")
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {CAP_NET_ADMIN}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")

    # It asks the plugins of its chain which versions of CNI they speak.
    document = json.loads(booted.path(CONFLIST).read_text())
    assert [plugin["type"] for plugin in document["plugins"]] == ["ipamd-cni", "portmap"]
    assert document["cniVersions"] == ["1.0.0"]

    # More pods than the first ENI has addresses for: a second one is made, found, and set up.
    pods = {f"p{number}": await booted.add(f"p{number}") for number in range(12)}
    assert len(await control.enis(booted.node.instance_id)) == 2
    assert await booted.run("sysctl", "-n", "net.ipv4.ip_forward") == "1"
    assert "saddr" in await booted.run("nft", "list", "table", "inet", "ipamd")
    first, last = pods["p0"], pods["p11"]
    assert await booted.pings("p0", last) and await booted.pings("p11", first)
    assert await booted.pings("p11", PEER_HOST)
    # Tracked connections go with the pod.
    assert last in await booted.run("conntrack", "-L")
    await booted.delete("p11")

    async def forgotten() -> bool:
        return last not in await booted.run("conntrack", "-L")

    await until(forgotten, "the pod's tracked connections are gone")
    # Nothing of a namespace stays behind in the daemon's own mount namespace, where it would live on.
    before = await host_links(booted.node.netns)
    await booted.run("ip", "netns", "delete", "p9")

    async def torn_down() -> bool:
        return len(await host_links(booted.node.netns)) == len(before) - 1

    await until(torn_down, "the pod's link is gone with its namespace")

    # What others break is noticed and mended.
    await booted.run("ip", "route", "flush", "table", "1501")
    await booted.run("nft", "delete", "table", "inet", "ipamd")
    await booted.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")

    async def mended() -> bool:
        routes = (await booted.attempt("ip", "route", "show", "table", "1501"))[1]
        table = (await booted.attempt("nft", "list", "table", "inet", "ipamd"))[0]
        forward = await booted.run("sysctl", "-n", "net.ipv4.ip_forward")
        return "default" in routes and table == 0 and forward == "1"

    await until(mended, "what was removed is there again")
    assert await booted.pings("p10", PEER_HOST)


async def test_a_hung_daemon_is_replaced_and_a_reload_changes_targets(booted: Machine) -> None:
    # Behind a link, as fleet tools leave it.
    config, elsewhere = booted.root / "etc/ipamd/config.toml", booted.root / "srv/ipamd.toml"
    shutil.move(config, elsewhere)
    config.symlink_to("/srv/ipamd.toml")
    on_disk = "Environment=IPAMD_LEDGER_PATH=/var/lib/ipamd/ledger.db"
    await started(booted, watchdog="[Service]\nWatchdogSec=2", ledger=f"[Service]\n{on_disk}")
    address = await booted.add("p1")
    pid = (await booted.show("MainPID"))["MainPID"]
    last = await booted.show("WatchdogTimestampMonotonic")

    async def beaten() -> bool:
        return await booted.show("WatchdogTimestampMonotonic") != last

    await until(beaten, "the watchdog hears a beat")
    assert (await booted.show("NRestarts"))["NRestarts"] == "0"

    text = elsewhere.read_text()
    elsewhere.write_text(text.replace("slack = 0", "slack = 0\nwarm_ips = 7"))
    await booted.run("systemctl", "reload", "ipamd.service")

    async def reloaded() -> bool:
        return bool(await booted.events("settings.changed"))

    await until(reloaded, "the settings are read again")
    assert (await booted.show("MainPID"))["MainPID"] == pid
    await settled(booted, free=7)

    # Settings that can't be used fail the reload, and nothing else.
    good = elsewhere.read_text()
    elsewhere.write_text(good + "x = [")
    assert (await booted.attempt("systemctl", "reload", "ipamd.service"))[0] != 0

    async def shown() -> bool:
        return any(c["name"] == "settings.rejected" for c in (await booted.ask("status"))["conditions"])

    await until(shown, "the file that can't be used is shown")
    elsewhere.write_text(good)
    await booted.run("systemctl", "reload", "ipamd.service")
    assert (await booted.show("MainPID", "ActiveState")) == {"MainPID": pid, "ActiveState": "active"}

    await booted.run("kill", "-STOP", pid)
    waiting = asyncio.ensure_future(booted.add("p2"))  # while nobody answers

    async def replaced() -> bool:
        shown = await booted.show("NRestarts", "ActiveState")
        return shown["NRestarts"] != "0" and shown["ActiveState"] == "active"

    await until(replaced, "systemd has started another one", 40)
    assert await waiting not in ("", address)
    journal = await booted.journal()
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal  # and below it, where it stood
    assert {pod["container_id"]: pod["ip"] for pod in await booted.ask("pods")}["p1"] == address
    assert booted.path("/var/lib/ipamd/ledger.db").exists() and not booted.path("/run/ipamd/ledger.db").exists()


async def test_restarts_under_load_fail_no_add_and_stop_keeps_pods(booted: Machine, control: ControlClient) -> None:
    await started(booted)
    for round in range(2):
        adding = [asyncio.ensure_future(booted.add(f"r{round}-{number}")) for number in range(5)]
        await booted.run("systemctl", "restart", "ipamd.service")
        adding.append(asyncio.ensure_future(booted.add(f"r{round}-last")))
        await asyncio.gather(*adding)
    held = {pod["container_id"]: pod["ip"] for pod in await booted.ask("pods")}
    assert len(held) == len(set(held.values())) == 12

    await settled(booted)
    enis = await control.enis(booted.node.instance_id)
    await booted.run("systemctl", "stop", "ipamd.service")
    assert (await booted.show("ActiveState", "Result")) == {"ActiveState": "inactive", "Result": "success"}
    assert await control.enis(booted.node.instance_id) == enis
    assert booted.path("/run/ipamd/ledger.db").exists()
    assert await booted.pings("r0-0", held["r1-last"]) and await booted.pings("r1-last", PEER_HOST)
    await booted.delete("r0-0")  # into the spool
    await booted.run("systemctl", "start", "ipamd.service")
    del held["r0-0"]
    assert {pod["container_id"]: pod["ip"] for pod in await booted.ask("pods")} == held


async def test_reboot_and_uninstall(booted: Machine, control: ControlClient) -> None:
    await started(booted)
    await booted.add("before")
    await settled(booted)
    enis = await control.enis(booted.node.instance_id)
    await booted.reboot()

    # Enabled, it came up by itself; the pods of the last boot are gone and so is what the ledger knew of them.
    await booted.run("systemctl", "start", "ipamd.service")
    assert await booted.ask("pods") == []
    await settled(booted, free=WARM + 1)
    assert await control.enis(booted.node.instance_id) == enis
    first, second = await booted.add("p1"), await booted.add("p2")

    told = await booted.run(COMMAND, "uninstall")
    assert "2 of them run on" in told and "ipamd.io/instance" in told
    removed = [Path(line.split()[1]) for line in told.splitlines() if line.startswith("removed")]
    assert CONFLIST in removed and Path("/opt/cni/bin/ipamd-cni") in removed
    assert not any(booted.path(path).exists() for path in removed)
    assert await booted.run("find", "/etc", "/opt/cni", "-name", "*ipamd*", "-not", "-path", "/etc/ipamd*") == ""
    assert (await booted.attempt("systemctl", "cat", "ipamd.service"))[0] != 0
    assert await booted.run(COMMAND, "uninstall") == "nothing that `ipamd install` writes is here"
    # Pods and network interfaces are as they were.
    assert await booted.pings("p1", second) and await booted.pings("p2", PEER_HOST)
    await booted.run(COMMAND, "install", "--systemd")
    await booted.run("systemctl", "start", "ipamd.service")
    assert {pod["container_id"]: pod["ip"] for pod in await booted.ask("pods")} == {"p1": first, "p2": second}
