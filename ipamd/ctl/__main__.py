"""`ipamctl`: what the daemon on this node knows, as tables for people and JSON for programs.

Exit codes: 0 done, 1 the daemon is not there or refused, 2 the command line is wrong. `ipamctl capacity` and
`ipamctl doctor` need no daemon; see `ipamd.ctl.doctor` for the latter's own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

import ipamd
from ipamd.api.v1 import introspection_pb2_grpc
from ipamd.ctl import views
from ipamd.ctl.table import render

DEFAULT_SOCKET = Path("/run/ipamd/ipamd.sock")
TIMEOUT = 5.0

COMMANDS = {
    "status": (views.status, "the pool at a glance: counts, targets, what it waits for"),
    "enis": (views.enis, "the network interfaces and how full they are"),
    "config": (views.config, "every setting in force and where its value came from"),
    "pods": (views.pods, "the attachments: which container has which address"),
}


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    if args.command == "doctor":
        return _doctor(args)
    if args.command == "capacity":
        return _capacity(args)
    view, _ = COMMANDS[args.command]
    with grpc.insecure_channel(f"unix:{args.socket}") as channel:
        try:
            answer = view(introspection_pb2_grpc.IntrospectionStub(channel), TIMEOUT)
        except grpc.RpcError as error:
            print(f"ipamctl: {_explain(error, args.socket)}", file=sys.stderr)
            return 1
    _show_answer(answer, args.output)
    return 0


def _capacity(args: argparse.Namespace) -> int:
    from ipamd.ctl import capacity

    try:
        if args.type is None:
            answer = capacity.listed(args.fits, prefixes=args.prefixes)
        else:
            answer = capacity.of(args.type, prefixes=args.prefixes)
    except capacity.UnknownType as error:
        print(f"ipamctl: {error}", file=sys.stderr)
        return 1
    _show_answer(answer, args.output)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    # Only here: the other commands need neither the settings nor what reads the kernel.
    from ipamd.ctl import doctor
    from ipamd.settings import SettingsError

    try:
        text, code = doctor.examined(args.config, as_json=args.output == "json")
    except SettingsError as error:
        print(*(f"ipamctl: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return 1
    _show(text)
    return code


def _show_answer(answer: views.Answer, output: str) -> None:
    _show(json.dumps(answer.data, indent=2) if output == "json" else render(answer))


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # `ipamctl pods | head`: the reader has seen enough. What is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--socket",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="S",
        help=f"the daemon's (default: {DEFAULT_SOCKET})",
    )
    common.add_argument(
        "-o", "--output", choices=("table", "json"), default=argparse.SUPPRESS, help="(default: table)"
    )
    parser = argparse.ArgumentParser(
        prog="ipamctl",
        description="See what the address pool daemon on this node does.",
        epilog="exit codes: 0 done, 1 the daemon is not there or refused, 2 wrong command line",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"ipamctl {ipamd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, help_text) in COMMANDS.items():
        commands.add_parser(name, help=help_text, description=help_text.capitalize() + ".", parents=[common])
    text = "how many pods an instance type has addresses for; needs no daemon"
    capacity = commands.add_parser(
        "capacity", help=text, description=text.capitalize() + ", and no AWS.", parents=[common]
    )
    which = capacity.add_mutually_exclusive_group(required=True)
    which.add_argument("type", nargs="?", metavar="TYPE", help="for instance m5.large")
    which.add_argument("--list", action="store_true", help="all types that are known, the smallest first")
    capacity.add_argument(
        "--fits", type=int, default=0, metavar="PODS", help="with --list: those with addresses for so many pods"
    )
    capacity.add_argument("--prefixes", action="store_true", help="with a /28 prefix in the place of each address")
    text = "look for what on this host will keep pods from working, and say what helps; needs no daemon"
    doctor = commands.add_parser(
        "doctor",
        help=text,
        description=text.capitalize() + ". Run it as root.",
        epilog="exit codes: 0 nothing to do, 1 something fails, 2 wrong command line, 3 something warns",
        parents=[common],
    )
    doctor.add_argument(
        "--config", type=Path, metavar="FILE", help="the daemon's settings (default: /etc/ipamd/config.toml)"
    )
    args = parser.parse_args(argv, argparse.Namespace(socket=DEFAULT_SOCKET, output="table"))
    if args.command == "capacity" and args.fits and not args.list:
        capacity.error("--fits goes with --list")
    return args


def _explain(error: grpc.RpcError, socket: Path) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.UNAVAILABLE:
        if not socket.exists():
            why = "there is no such socket"
        elif not os.access(socket, os.R_OK | os.W_OK):
            why = "you may not open it (try as root)"
        else:
            why = "nobody answers"
        return f"no daemon at {socket}: {why}. Is it running? (systemctl status ipamd; another place: --socket)"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the daemon at {socket} did not answer within {TIMEOUT:.0f} s"
    return str(error.details() if isinstance(error, grpc.Call) else error)


if __name__ == "__main__":
    sys.exit(main())
