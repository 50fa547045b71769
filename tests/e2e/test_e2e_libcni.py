"""The library that container runtimes use, in the version that runtimes in use are built with and in a recent one.

libcni judges the plugin: it decodes results with its own types, keeps them, and hands them back as prevResult.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ipamd.neighbours.chain import Binaries, chain
from ipamd.shell.serving import Record
from ipamd.sim import netns as namespaces
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.runtimes.process import inside
from tests import golang
from tests.e2e import debian
from tests.e2e.single_node import Box, ask, network, run, single_node

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

LIBRARIES = ("1.1", "1.3")
MAX_PODS = 5
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


class LibcniError(Exception):
    """libcni's own error; `code` is the plugin's, 0 when it did not come from a plugin."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(f"{answer.get('msg', '')}; {answer.get('details', '')}")
        self.code = int(answer.get("code", 0))


@dataclass
class Libcni:
    """libcni on a node, with a cache of its own; `plugins` is a folder of others beside the node's."""

    version: str
    binary: Path
    box: Box
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    plugins: Path | None = None

    @property
    def cache(self) -> Path:
        return self.box.directory / f"cache-{self.id}"

    async def call(
        self, verb: str, configuration: dict[str, Any], *words: str, **capabilities: Any
    ) -> dict[str, Any]:
        """Raises `LibcniError`."""
        file = self.box.directory / f"{secrets.token_hex(4)}.conflist"
        file.write_text(json.dumps(configuration))
        process = await asyncio.create_subprocess_exec(
            *inside(self.box.node.spec.netns, self.binary, verb, file, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "CNI_PATH": os.pathsep.join(map(str, filter(None, (self.box.node.bin_dir, self.plugins)))),
                "CNI_CACHE": str(self.cache),
                "CNI_CAPABILITIES": json.dumps(capabilities) if capabilities else "",
            },
        )
        out, err = await process.communicate()
        file.unlink()
        assert err == b"", err.decode()
        answer: dict[str, Any] = json.loads(out)
        if process.returncode != 0:
            raise LibcniError(answer)
        return answer


@dataclass(frozen=True)
class Container:
    """A network namespace that stands for a container."""

    id: str
    netns: str

    @property
    def words(self) -> tuple[str, str, str]:
        return self.id, str(namespaces.DIRECTORY / self.netns), "eth0"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Box]:
    async with single_node("m5.large", f"[pool]\nmax_pods = {MAX_PODS}") as made:
        # loopback and tuning come after ipamd-cni or before it in some of the tests.
        for plugin in ("loopback", "tuning"):
            (made.node.bin_dir / plugin).symlink_to(Path("/usr/lib/cni") / plugin)
        yield made


@pytest.fixture(params=LIBRARIES)
def libcni(request: pytest.FixtureRequest, box: Box) -> Libcni:
    return Libcni(request.param, golang.build(f"libcni-{request.param}"), box)


@pytest.fixture
def latest(box: Box) -> Libcni:
    return Libcni("1.3", golang.build("libcni-1.3"), box)


NewContainer = Callable[[], Awaitable[Container]]


@pytest_asyncio.fixture(loop_scope="module")
async def new_container(box: Box) -> AsyncIterator[NewContainer]:
    """Makes containers, which are gone again at the end; nothing of them may be left."""
    async with AsyncExitStack() as stack:

        async def make() -> Container:
            id = secrets.token_hex(32)
            name = f"{box.node.spec.netns}-{id[:8]}"
            await namespaces.create(name)
            stack.push_async_callback(namespaces.delete, name)
            return Container(id, name)

        yield make
    await box.assert_nothing_left()


@pytest_asyncio.fixture(loop_scope="module")
async def container(new_container: NewContainer) -> Container:
    return await new_container()


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_of_the_contract(libcni: Libcni, container: Container, box: Box, version: str) -> None:
    configuration = network(box, cniVersion=version, cniVersions=None)
    await libcni.call("validate", configuration)
    if version == "1.1.0" and libcni.version == "1.1":
        with pytest.raises(LibcniError, match="unsupported CNI result version"):
            await libcni.call("add", configuration, *container.words)
        await libcni.call("del", configuration, *container.words)
        return

    added = await libcni.call("add", configuration, *container.words)
    address = (await box.held())[container.id]
    family = "types100" if version >= "1.0.0" else "types040"
    assert (added["type"], added["version"]) == (f"*{family}.Result", version)
    newest = added["newest"]
    host, pod = newest["interfaces"]
    [ip] = newest["ips"]
    [route] = newest["routes"]
    assert (ip["address"], ip["interface"], ip["gateway"]) == (f"{address}/32", 1, "169.254.1.1")
    assert (route["dst"], route["gw"]) == ("0.0.0.0/0", "169.254.1.1")
    assert (pod["name"], pod["sandbox"]) == ("eth0", container.words[1])
    assert "sandbox" not in host
    for interface, where in ((host, box.node.spec.netns), (pod, container.netns)):
        [link] = await ask(where, "ip", "-json", "link", "show", "dev", interface["name"])
        assert interface["mac"] == link["address"]
        assert interface.get("mtu", link["mtu"]) == link["mtu"]
        assert ("mtu" in interface) == (version == "1.1.0")

    if version >= "0.4.0":
        await libcni.call("check", configuration, *container.words)
    for _ in range(2):
        await libcni.call("del", configuration, *container.words)
        assert container.id not in await box.held()


async def test_a_list_of_versions(libcni: Libcni, container: Container, box: Box) -> None:
    """What the daemon writes: old libraries ignore the list, new ones take the newest that both sides know."""
    configuration = network(box)
    assert configuration["cniVersions"] == ["1.0.0", "1.1.0"]
    added = await libcni.call("add", configuration, *container.words)
    assert added["version"] == {"1.1": "1.0.0", "1.3": "1.1.0"}[libcni.version]
    await libcni.call("check", configuration, *container.words)
    await libcni.call("del", configuration, *container.words)


@pytest.mark.parametrize("broken", ["host route", "pod's link", "pod's address", "pod's default route", "attachment"])
async def test_check_finds_what_is_gone(libcni: Libcni, container: Container, box: Box, broken: str) -> None:
    configuration = network(box)
    added = await libcni.call("add", configuration, *container.words)
    host, _ = added["newest"]["interfaces"]
    address = added["newest"]["ips"][0]["address"]
    outside, within = box.node.spec.netns, container.netns
    commands = {
        "host route": (outside, f"link set {host['name']} down"),
        "pod's link": (within, "link delete eth0"),
        "pod's address": (within, f"address delete {address} dev eth0"),
        "pod's default route": (within, "route delete default"),
    }

    async def broken_and_checked() -> LibcniError | None:
        if broken == "attachment":
            async with direct(outside, box.node.bin_dir, box.node.conf_dir) as runtime:
                names = {"CONTAINERID": container.id, "NETNS": "", "IFNAME": "eth0", "ARGS": ""}
                stdin = json.dumps({"cniVersion": "1.0.0", "name": configuration["name"], "type": "ipamd-cni"})
                assert (await runtime.execute("DEL", "ipamd-cni", stdin.encode(), names)).exit_code == 0
        else:
            where, command = commands[broken]
            await namespaces.ip_batch(where, [command])
        try:
            await libcni.call("check", configuration, *container.words)
        except LibcniError as error:
            return error
        return None

    found = await broken_and_checked()
    while found is None and broken == "host route":  # the daemon may have repaired it before CHECK looked
        found = await broken_and_checked()
    assert found is not None
    if broken == "attachment":
        assert found.code == 3  # SPEC.md: the container is unknown
    else:
        assert found.code >= 100
    await libcni.call("del", configuration, *container.words)


async def test_between_other_plugins(libcni: Libcni, container: Container, box: Box) -> None:
    """One before it gives a result, one after it gets the result of both."""
    sysctl = "net.ipv4.conf.eth0.arp_filter"
    plugins = [{"type": "loopback"}, {"type": "ipamd-cni"}, {"type": "tuning", "sysctl": {sysctl: "1"}, "mtu": 1400}]
    configuration = network(box, cniVersion="1.0.0", cniVersions=None, plugins=plugins)
    added = await libcni.call("add", configuration, *container.words)
    result = added["result"]
    names = [interface["name"] for interface in result["interfaces"]]
    assert names == ["lo", result["interfaces"][1]["name"], "eth0"]
    pairs = [(names[ip["interface"]], ip["address"]) for ip in result["ips"]]
    address = (await box.held())[container.id]
    assert pairs == [("lo", "127.0.0.1/8"), ("lo", "::1/128"), ("eth0", f"{address}/32")]
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0"]
    assert result["interfaces"][1]["name"].startswith("ipm")
    [link] = await ask(container.netns, "ip", "-json", "link", "show", "dev", "eth0")
    assert link["mtu"] == 1400
    await libcni.call("check", configuration, *container.words)
    await libcni.call("del", configuration, *container.words)


PORTS = [{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}]


async def _port_rules(box: Box) -> list[str]:
    code, text = await run(box.node.spec.netns, "iptables-save", "-t", "nat")
    assert code == 0, text
    return [line for line in text.splitlines() if "18080" in line]


@pytest.mark.parametrize("release", ["bookworm", "sid"])
async def test_check_del_and_gc_with_portmap_after_it(
    latest: Libcni, new_container: NewContainer, box: Box, release: str
) -> None:
    """In the list that the daemon writes for the release's plugin."""
    plugins = Path("/usr/lib/cni")
    if release == "sid":
        plugins = await asyncio.to_thread(debian.unpacked, release, "containernetworking-plugins") / "usr/lib/cni"
    chained = chain(["portmap"], Binaries().look(["portmap"], plugins), plugins)
    configuration = json.loads(chained.conflist())
    latest.plugins = plugins
    first, second = await new_container(), await new_container()
    added = await latest.call("add", configuration, *first.words, portMappings=PORTS)
    assert added["version"] == {"bookworm": "1.0.0", "sid": "1.1.0"}[release]
    assert len(await _port_rules(box)) > 0
    if release == "sid":  # portmap 1.1.1 looks for an IPv6 chain as well, which a pod with IPv4 alone does not have
        await latest.call("check", configuration, *first.words, portMappings=PORTS)
        code, text = await run(box.node.spec.netns, "iptables", "-t", "nat", "-F", "CNI-HOSTPORT-DNAT")
        assert code == 0, text
        with pytest.raises(LibcniError):
            await latest.call("check", configuration, *first.words, portMappings=PORTS)
    for _ in range(2):
        await latest.call("del", configuration, *first.words, portMappings=PORTS)
    assert await _port_rules(box) == [] and await box.held() == {}

    await latest.call("add", configuration, *second.words, portMappings=PORTS)
    if release == "sid":  # below 1.1.0 there is no GC
        await latest.call("status", configuration)
        await latest.call("gc", configuration)
        assert await _port_rules(box) == [] and await box.held() == {}
    await latest.call("del", configuration, *second.words, portMappings=PORTS)
    assert await _port_rules(box) == [] and await box.held() == {}


async def test_what_a_runtime_wishes(libcni: Libcni, container: Container, box: Box) -> None:
    """Capabilities come as runtimeConfig: a MAC is given, an address of one's own choice is refused."""
    plugins = [{"type": "ipamd-cni", "capabilities": {"mac": True, "ips": True}}]
    configuration = network(box, plugins=plugins)
    with pytest.raises(LibcniError, match=r"10\.0\.0\.77") as caught:
        await libcni.call("add", configuration, *container.words, ips=["10.0.0.77/24"])
    assert caught.value.code == 7  # SPEC.md: invalid network configuration
    added = await libcni.call("add", configuration, *container.words, mac="02:00:00:00:00:77")
    assert added["newest"]["interfaces"][1]["mac"] == "02:00:00:00:00:77"
    [link] = await ask(container.netns, "ip", "-json", "link", "show", "dev", "eth0")
    assert link["address"] == "02:00:00:00:00:77"
    await libcni.call("del", configuration, *container.words)


async def test_gc_releases_what_is_not_listed(latest: Libcni, new_container: NewContainer, box: Box) -> None:
    """Of a runtime that has forgotten: its cache is lost, so that libcni itself sends no DEL."""
    configuration = network(box)
    containers = [await new_container() for _ in range(4)]
    listed, forgotten, of_another_network, young = containers
    other = network(box, name="other")
    for one in containers[:3]:
        await latest.call("add", other if one is of_another_network else configuration, *one.words)
    _age(box, 61)
    await box.restart_daemon()
    await latest.call("add", configuration, *young.words)

    amnesiac = Libcni(latest.version, latest.binary, box)
    await amnesiac.call("gc", configuration, f"{listed.id}/eth0")
    assert forgotten.id not in await box.held()
    assert set(await box.held()) == {listed.id, of_another_network.id, young.id}
    await latest.call("check", configuration, *listed.words)

    # The same name with another interface is another attachment.
    await amnesiac.call("gc", configuration, f"{listed.id}/eth1")
    assert set(await box.held()) == {of_another_network.id, young.id}
    # A runtime that remembers sends DEL first, whatever the age.
    await latest.call("gc", configuration, f"{listed.id}/eth0")
    assert set(await box.held()) == {of_another_network.id}
    await latest.call("del", other, *of_another_network.words)


async def test_gc_of_a_runtime_without_containers(latest: Libcni, container: Container, box: Box) -> None:
    """It lists none, which Go writes as null."""
    configuration = network(box)
    await latest.call("add", configuration, *container.words)
    try:
        await latest.call("gc", configuration)
        assert await box.held() == {}
    finally:
        await latest.call("del", configuration, *container.words)


def _age(box: Box, seconds: float) -> None:
    """Make all attachments so much older."""
    with sqlite3.connect(box.node.spec.dir / "ledger.db") as ledger:
        ledger.execute("UPDATE attachments SET since = since - ?", (seconds,))
    ledger.close()


async def test_status(latest: Libcni, container: Container, new_container: NewContainer, box: Box) -> None:
    """A daemon that is away and a full node are no reason to report the node, whose pods run on."""
    configuration = network(box)
    await latest.call("add", configuration, *container.words)
    await box.node.stop()
    await latest.call("status", configuration)
    Record(box.node.spec.socket).remove()  # as after a boot: nothing says that the node has ever served
    with pytest.raises(LibcniError, match="is ipamd running") as caught:
        await latest.call("status", configuration)
    assert caught.value.code == 50
    # Below 1.1.0 libcni itself says that all is well.
    await latest.call("status", network(box, cniVersion="1.0.0", cniVersions=None))

    await box.node.start()
    await box.node.wait_until_ready()
    await latest.call("status", configuration)

    others = [await new_container() for _ in range(MAX_PODS - 1)]
    for one in others:
        await latest.call("add", configuration, *one.words)
    late = await new_container()
    with pytest.raises(LibcniError, match="POD_LIMIT"):
        await latest.call("add", configuration, *late.words)
    await latest.call("status", configuration)
    await latest.call("del", configuration, *late.words)
    await latest.call("gc", configuration, f"{container.id}/eth0")
    await latest.call("del", configuration, *container.words)
