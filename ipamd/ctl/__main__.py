"""`ipamctl`: what the daemon on this node knows, as tables for people and JSON for programs.

Each command has a module of this package, which is imported only when it is asked for: somebody waits. Its `set_up`
gives the command's parser its arguments and, as the default of `run`, the function that carries it out.

Exit codes: 0 done, 1 not done: the daemon is not there or refused, 2 the command line is wrong. Some commands have
more (ipamd.ctl.command, docs/ipamctl.md).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import ipamd
from ipamd.cli import command_word, streams
from ipamd.ctl.command import USAGE, Failed
from ipamd.ctl.output import FORMATS
from ipamd.ctl.sockets import DEFAULT_SOCKET, daemon_socket, socket_path

# Name: module and what it is for, in the order of the help.
COMMANDS = {
    "status": ("status", "the node on one screen: what needs attention, the pool, the ENIs"),
    "top": ("top", "the same live: gauge, curves, each ENI's addresses, events"),
    "explain": ("explain", "why a pod waits, or why the pool does not grow, in plain sentences"),
    "enis": ("lists", "the network interfaces and how full they are"),
    "addresses": ("lists", "every address, its state and since when"),
    "pods": ("lists", "the attachments: which container has which address"),
    "waiting": ("lists", "the pods that wait for an address"),
    "events": ("events", "what happened, and what happens now"),
    "audit": ("audit", "compare EC2, the records and the kernel"),
    "config": ("lists", "every setting in force and where its value came from"),
    "release": ("changes", "take the address from one attachment"),
    "collect": ("changes", "release attachments that have left no trace in the kernel"),
    "drain": ("changes", "grant no more addresses and give back what is free"),
    "undrain": ("changes", "grant addresses again"),
    "cleanup": ("cleanup", "remove what another pod network left on this host; no daemon needed"),
    "doctor": (
        "doctor",
        "find what on this host will keep pods from working, and say what helps; no daemon needed",
    ),
    "capacity": ("capacity", "how many pods an instance type has addresses for; neither daemon nor AWS needed"),
    "plan": ("plan", "will the subnets hold the nodes' pools, and until when; neither daemon nor AWS needed"),
    "iam-policy": ("iam_policy", "the least IAM policy that the daemon needs; neither daemon nor AWS needed"),
    "support-bundle": ("bundle", "all that helps to find a fault, in one file; no daemon needed"),
    "completion": ("completion", "what makes a shell complete ipamctl's words"),
}

_EPILOG = """each command has more to say: ipamctl COMMAND --help

examples:
  ipamctl status                    is all well?
  ipamctl explain pod shop/web-0    why has this pod no address?
  ipamctl events -f                 what happens now?
  ipamctl doctor                    is this host fit for ipamd?

Who may not open the daemon's socket, but the one beside it that setting api.read_group gives
to a group, looks through that one. Changes are root's.

exit codes:
  0  done
  1  not done: the daemon is not there or refused; audit: a mismatch; doctor: something fails
  2  wrong command line
  3  done, and it calls for attention: status, doctor, explain
  4  audit: unknown"""


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return streams.run("ipamctl", lambda: _carry_out(words))


def _carry_out(words: Sequence[str]) -> int:
    if not all(map(_is_text, words)):
        print("ipamctl: a word of the command line is not UTF-8", file=sys.stderr)
        return USAGE
    parser = make_parser(words)
    if (code := command_word.wrong(parser, COMMANDS, _from_command_on(words))) is not None:
        return code
    args = parser.parse_args(words, argparse.Namespace(socket=None, output="table"))
    try:
        args.socket = args.socket or daemon_socket()
        code = int(args.run(args))
    except Failed as failure:
        print(*(f"ipamctl: {line}" for line in str(failure).splitlines()), sep="\n", file=sys.stderr)
        return failure.code
    return code


def _is_text(word: str) -> bool:
    """Python takes bytes of any kind from a command line; a request to the daemon does not."""
    return word.isascii() or word.encode(errors="replace").decode() == word


def _from_command_on(words: Sequence[str]) -> Sequence[str]:
    """Without the options before it that have a value of their own."""
    at = 0
    while at + 1 < len(words) and words[at] in ("--socket", "-o", "--output"):
        at += 2
    while at < len(words) and words[at].startswith(("--socket=", "--output=")):
        at += 1
    return words[at:]


def make_parser(wanted: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """With the arguments of the commands that are `wanted`, and the names of the others."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--socket",
        type=socket_path,
        default=argparse.SUPPRESS,
        metavar="S",
        help=f"the daemon's (default: what IPAMD_API_SOCKET or its settings say, or {DEFAULT_SOCKET})",
    )
    common.add_argument("-o", "--output", choices=FORMATS, default=argparse.SUPPRESS, help="(default: table)")
    parser = argparse.ArgumentParser(
        prog="ipamctl",
        description="See what the address pool daemon on this node does, find out why, and change it by hand.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"ipamctl {ipamd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=description, parents=[common])
        if name in wanted:
            import_module(f"ipamd.ctl.{module}").set_up(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
