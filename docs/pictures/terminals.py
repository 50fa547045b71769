"""Makes the pictures of terminals in this folder: what ipamctl says on a node of the VPC in a box whose EC2 begins to
refuse calls for their rate. As root: `python docs/pictures/terminals.py`, some 40 s."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from cni_shim.names import host_ifname  # noqa: E402
from ipamd.api.v1 import introspection_pb2 as pb  # noqa: E402
from ipamd.api.v1 import ipam_pb2  # noqa: E402
from ipamd.sim import netns  # noqa: E402
from ipamd.sim.runtimes.process import inside  # noqa: E402
from tests.netns.boxed import Daemon, add_route, box, cni_call, control, text  # noqa: E402
from tests.unit.terminal import Terminal  # noqa: E402

WIDTH = 110
COLOURS = {"black": 30, "red": 31, "green": 32, "brown": 33, "blue": 34, "magenta": 35, "cyan": 36, "white": 37}
MUTATING = ("AssignPrivateIpAddresses", "CreateNetworkInterface")


def draw(name: str, title: str, ansi: str, width: int = WIDTH) -> None:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi(ansi.replace("\r", "").rstrip("\n")), no_wrap=True, crop=True)
    # The same picture for the same text: nothing in it depends on the moment.
    (HERE / f"{name}.svg").write_text(console.export_svg(title=title, unique_id=name))


def ipamctl(daemon: Daemon, *words: str | Path) -> list[str]:
    command = [sys.executable, "-m", "ipamd.ctl", *map(str, words), "--socket", str(daemon.node.socket)]
    return inside(daemon.node.netns, *command)


async def shown(name: str, title: str, command: list[str], width: int = WIDTH) -> None:
    """What the command prints on a terminal."""
    terminal = Terminal(command, width, 60)
    try:
        await asyncio.to_thread(terminal.ended)
        draw(name, title, terminal.raw.decode(), width)
    finally:
        terminal.close()


def screen(terminal: Terminal) -> str:
    """The emulated screen as text with colours."""
    lines = []
    for number in range(terminal.screen.lines):
        row: dict[int, pyte.screens.Char] = terminal.screen.buffer[number]
        line, before = "", ""
        for column in range(terminal.screen.columns):
            char = row[column]
            codes = [str(COLOURS[char.fg])] if char.fg in COLOURS else []
            style = f"\x1b[0;{';'.join(codes + ['1'] * char.bold) or '0'}m"
            line += (style if style != before else "") + char.data
            before = style
        lines.append(f"{line}\x1b[0m")
    return "\n".join(lines)


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with box(Path(directory), f"pic{os.getpid()}", POOL_COOLDOWN=8) as (daemon, vpc):
            await daemon.ready()
            await daemon.settled(free=5)

            async def add(name: str) -> None:
                request = ipam_pb2.AllocateRequest(cni=cni_call(name), deadline_ms=30_000)
                reply = await daemon.ipam.Allocate(request, timeout=40)
                await add_route(daemon.node, name, text(reply.address))

            async def remove(name: str) -> None:
                await netns.command("ip", "-n", daemon.node.netns, "link", "delete", host_ifname(name, "eth0"))
                await daemon.ipam.Release(ipam_pb2.ReleaseRequest(cni=cni_call(name)), timeout=5)

            top = Terminal(ipamctl(daemon, "top"), WIDTH, 36)
            for n in range(16):
                await add(f"web-{n}")
                if n % 4 == 3:
                    await remove(f"web-{n - 2}")
                await asyncio.to_thread(top.watch, 1.0)
            throttled = [{"action": action, "error": "RequestLimitExceeded"} for action in MUTATING]
            await control(vpc, "faults", throttled)
            late = [asyncio.ensure_future(add(f"batch-{n}")) for n in range(14)]
            await asyncio.to_thread(top.watch, 6.0)
            draw("top", "ipamctl top", screen(top))
            await shown("status", "ipamctl status", ipamctl(daemon, "status"))
            last = (await daemon.introspection.ListWaiting(pb.ListWaitingRequest())).waiting[-1].pod_name
            command = ipamctl(daemon, "explain", "pod", f"shop/{last}")
            await shown("explain", f"ipamctl explain pod shop/{last}", command)
            top.type("q")
            await asyncio.to_thread(top.ended)
            top.close()
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            await netns.command(*inside(daemon.node.netns, "sysctl", "-qw", "net.ipv4.conf.eth1.rp_filter=1"))
            await shown(
                "doctor", "ipamctl doctor", ipamctl(daemon, "doctor", "--config", daemon.node.config), WIDTH + 40
            )
            await shown("capacity", "ipamctl capacity m5.large", ipamctl(daemon, "capacity", "m5.large"))


if __name__ == "__main__":
    asyncio.run(main())
