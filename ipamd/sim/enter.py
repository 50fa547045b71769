"""`ipamd simulate enter`: a command inside a node, a host or another part of a VPC in a box that runs."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Sequence
from pathlib import Path

from ipamd.sim import machine, machine_init, netns
from ipamd.sim.runtimes.process import inside


class NoPlace(Exception):
    """No part of a running VPC, or several of them, is called so; the message says what there is."""


def add_parser(kinds: _SubParsersAction[ArgumentParser]) -> None:
    enter = kinds.add_parser(
        "enter",
        help="run a command on a node of a VPC in a box (needs root)",
        description="Run a command (default: a shell) on a node or a host of a VPC in a box that runs, or in its "
        "router, its internet or the network that it is peered with. Exit code: the command's.",
    )
    enter.add_argument("place", metavar="NODE", help="its name, or its namespace's where several nodes are called so")
    enter.add_argument("command", nargs=REMAINDER, metavar="-- CMD", help="the command and its arguments")
    enter.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Become the command; 1, with one line on standard error, when that is not possible."""
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    try:
        argv = command_line(args.place, words or [os.environ.get("SHELL", "/bin/sh")])
        os.execvp(argv[0], argv)
    except (NoPlace, OSError) as error:
        sys.stderr.write(f"ipamd simulate enter: {error}\n")
        return 1


def command_line(place: str, argv: Sequence[str]) -> list[str]:
    """Raises `NoPlace` and OSError."""
    namespace = find(place, [path.name for path in netns.DIRECTORY.glob("*")])
    if pid := first_process(namespace):
        return machine.inside(pid, *argv)
    return inside(namespace, *argv)


def find(place: str, namespaces: Sequence[str]) -> str:
    """The namespace of that name, or of the node or part of a VPC that is called so. Raises `NoPlace`."""
    if place in namespaces:
        return place
    found = sorted(name for name in namespaces if name.endswith((f"-{place}", f".{place}")))
    match found:
        case [one]:
            return one
        case []:
            known = f"there are {', '.join(sorted(namespaces))}" if namespaces else "none runs"
            raise NoPlace(f"no VPC in a box has a {place}: {known}")
        case _:
            raise NoPlace(f"several are called {place}: give one of {', '.join(found)}")


def first_process(namespace: str) -> int:
    """The first process of the machine in this network namespace; 0 when the node is no machine, or is off."""
    wanted = (netns.DIRECTORY / namespace).stat()
    program = Path(machine_init.__file__).name.encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # unshare(1), which has started it, has the same words, and is the first of nothing.
            if (
                program in (entry / "cmdline").read_bytes().replace(b"/", b"\0").split(b"\0")
                and _is_first(entry)
                and os.path.samestat((entry / "ns/net").stat(), wanted)
            ):
                return int(entry.name)
        except OSError:
            continue  # it ended meanwhile
    return 0


def _is_first(process: Path) -> bool:
    """Whether it is number 1 in its PID namespace: proc_pid_status(5)."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1"
    return False
