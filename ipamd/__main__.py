"""The `ipamd` command. Each subcommand's module is imported only when it is asked for."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import ipamd
from ipamd import install


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ipamd", description="VPC addresses for containers on EC2.")
    parser.add_argument("--version", action="version", version=f"ipamd {ipamd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the daemon in the foreground")
    _add_config(run)
    run.set_defaults(run=_run)

    config = commands.add_parser("config", help="look at the settings")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="validate the settings and show the effective values with their origin")
    _add_config(check)
    check.set_defaults(run=_config_check)
    for name, text in (
        ("example", "print a settings file in which every setting stands with its default"),
        ("reference", "print every setting with its default and meaning, as Markdown (docs/config.md)"),
    ):
        actions.add_parser(name, help=text).set_defaults(run=_config_explain)

    install.add_parser(commands)
    if "simulate" in (argv or sys.argv) or "demo" in (argv or sys.argv) or _wants_help(argv):
        try:
            from ipamd.sim import demo, simulate
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.startswith("ipamd"):
                raise
            message = f"the simulator needs the package {missing.name}: pip install 'ipamd[sim]'"
            if not _wants_help(argv):
                parser.error(message)
        else:
            simulate.add_parser(commands)
            demo.add_parser(commands)

    args = parser.parse_args(argv)
    result: int = args.run(args)
    return result


def _wants_help(argv: list[str] | None) -> bool:
    words = sys.argv[1:] if argv is None else argv
    return not words or words[0] in ("-h", "--help")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: /etc/ipamd/config.toml if it exists)"
    )


def _run(args: argparse.Namespace) -> int:
    # Before grpc is imported: its fork handlers would slow down and endanger every subprocess (nft).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from ipamd import logs, settings
    from ipamd.history import History
    from ipamd.reload import LiveSettings

    try:
        live = LiveSettings(lambda: settings.load(args.config), args.config or settings.DEFAULT_PATH)
    except settings.SettingsError as error:
        return _fail(str(error))
    history = History()
    logs.set_up(live.loaded.settings.log, history)
    if os.geteuid() != 0:
        return _fail("the daemon writes routes, rules and nftables: run it as root")

    from ipamd import daemon
    from ipamd.api.server import SocketUnusable
    from ipamd.host import HostError
    from ipamd.ledger import LedgerError

    try:
        asyncio.run(daemon.run(live, history))
    except (LedgerError, HostError, SocketUnusable) as error:
        return _fail(str(error))
    return 0


def _config_check(args: argparse.Namespace) -> int:
    from ipamd import settings

    try:
        loaded = settings.load(args.config)
    except settings.SettingsError as error:
        return _fail(str(error))
    for key, value, origin in loaded.effective():
        sys.stdout.write(f"{key} = {value!r}  ({origin})\n")
    return 0


def _config_explain(args: argparse.Namespace) -> int:
    from ipamd import reference

    sys.stdout.write(reference.example() if args.action == "example" else reference.page())
    return 0


def _fail(message: str) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"ipamd: {line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
