"""The plugin beside processes without privilege in the host's network namespace: they can't delay or fail it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cni_shim.names import host_ifname
from cni_shim.turn import FILE
from ipamd.sim import netns
from tests.netns.nobody import nobody
from tests.netns.test_plugin import CONFIG, Daemon, Node, daemon, node, plan

__all__ = ["daemon", "node"]
pytestmark = pytest.mark.netns

ADDS = 40

# Takes every name that the plugin might use before it does; then, until it is killed, sends a datagram to every named
# socket and tries to open the files of the daemon's folder. Says so if it can.
ATTACK = """
import os, socket, sys
folder, links = sys.argv[1], sys.argv[2:]
held = []
for link in links:
    for name in (b"\\0ipamd-cni/" + link.encode(), b"\\0" + link.encode()):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            taken = socket.socket(socket.AF_UNIX, kind)
            taken.bind(name)
            held.append(taken)
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.setblocking(False)
print("at work", flush=True)
while True:
    for entry in open("/proc/net/unix").read().splitlines()[1:]:
        fields = entry.split(maxsplit=7)
        if len(fields) == 8:
            path = fields[7].encode()
            try:
                sender.sendto(b"DEL", b"\\0" + path[1:] if path.startswith(b"@") else path)
            except OSError:
                pass
    for name in ("turns", "ipamd.sock", "released", "ledger.db", "new"):
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):
            try:
                os.open(os.path.join(folder, name), flags)
                print("opened", name, flush=True)
            except OSError:
                pass
"""


async def test_neighbours_can_neither_fail_nor_undo_an_add(node: Node, daemon: Daemon) -> None:
    containers = [f"{number:064x}" for number in range(ADDS)]
    links = {container: host_ifname(container, "eth0") for container in containers}
    daemon.plans = {container: plan(host_ifname=link) for container, link in links.items()}
    node.directory.chmod(0o755)  # as /run/ipamd is
    async with nobody(node.host, ATTACK, str(node.directory), *links.values()) as attacker:
        for container in containers:
            added = await node.cni("ADD", CONTAINERID=container)
            assert (added.status, added.err) == (0, b""), added
            deleted = await node.cni("DEL", CONTAINERID=container)
            assert (deleted.status, deleted.out, deleted.err) == (0, b"", b"")
            await node.sweep()
        assert attacker.returncode is None
    assert attacker.stdout is not None and await attacker.stdout.read() == b""
    assert daemon.made() == ["Allocate", "Release"] * ADDS, "no ADD was undone"
    assert await node.bare()


async def test_del_works_where_nothing_can_be_written(node: Node) -> None:
    server = await node.serve(Daemon())
    assert (await node.cni("ADD")).status == 0
    # The same folder, read-only, in the mount namespace of the plugin alone.
    command = f'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec {node.directory}/bin/ipamd-cni'
    argv = ["unshare", "--mount", "sh", "-c", command, "sh", str(node.directory)]
    environment = {"PATH": os.defpath, "CNI_CONTAINERID": "7d0f" * 16, "CNI_IFNAME": "eth0", "CNI_PATH": "/opt"}
    for verb, status, word in (("DEL", 0, b""), ("ADD", 1, FILE.encode())):
        run = await asyncio.to_thread(
            subprocess.run,
            ["nsenter", f"--net=/run/netns/{node.host}", *argv],
            input=CONFIG,
            env={**environment, "CNI_COMMAND": verb, "CNI_NETNS": node.pod_path},
            capture_output=True,
            timeout=60,
        )
        assert run.returncode == status and word in run.stdout, run
    await server.stop(None)
    assert await node.bare()


async def test_del_works_on_a_full_disk_and_ends_an_add(node: Node, daemon: Daemon, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    await netns.command("mount", "-t", "tmpfs", "-o", "size=256k", "ipamd-test", str(disk))
    try:
        node.install_plugin(node.directory / "bin", disk / "ipamd.sock", add_seconds=8.0)
        (disk / "ipamd.sock").symlink_to(node.socket)
        assert (await node.cni("ADD")).status == 0
        with pytest.raises(OSError, match="No space"), (disk / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        daemon.calls.clear()
        daemon.called.clear()
        adding = await node.start("ADD")
        assert adding.stdin is not None
        adding.stdin.write(CONFIG)
        adding.stdin.close()
        await daemon.called.wait()
        os.kill(adding.pid, signal.SIGSTOP)
        assert (await node.cni("DEL")).status == 0
        os.kill(adding.pid, signal.SIGCONT)
        out, _ = await adding.communicate()
        assert adding.returncode == 0 or b"DEL" in out
        assert await node.bare()
    finally:
        await netns.command("umount", str(disk))
