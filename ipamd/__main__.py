"""The `ipamd` command. Each subcommand's module is imported only when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict

import ipamd
from ipamd.cli import command_word, streams
from ipamd.config import command as config_command


def main(argv: list[str] | None = None) -> int:
    return streams.run("ipamd", lambda: _carry_out(argv))


def _carry_out(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="ipamd", description="VPC addresses for containers on EC2.")
    parser.add_argument("--version", action="version", version=f"ipamd {ipamd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the daemon in the foreground")
    config_command.add_config(run)
    run.set_defaults(run=_run)

    words = sys.argv[1:] if argv is None else argv
    if words[:1] != ["run"]:
        from ipamd.install import command as install_command
        from ipamd.install import uninstall

        config_command.add_parser(commands)
        install_command.add_parser(commands)
        uninstall.add_parser(commands)
    if "simulate" in (argv or sys.argv) or "demo" in (argv or sys.argv) or _wants_help(argv):
        try:
            from ipamd.sim import simulate
            from ipamd.sim.demo import command as demo
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.startswith("ipamd"):
                raise
            message = (
                f"the simulator needs the package {missing.name}: pip install '.[sim]' in the copy of the repository "
                "that ipamd was installed from"
            )
            if not _wants_help(argv):
                parser.error(message)
        else:
            simulate.add_parser(commands)
            demo.add_parser(commands)

    if (code := command_word.wrong(parser, (*commands.choices, "simulate", "demo"), words)) is not None:
        return code
    args = parser.parse_args(words)
    result: int = args.run(args)
    return result


def _wants_help(argv: list[str] | None) -> bool:
    words = sys.argv[1:] if argv is None else argv
    return not words or words[0] in ("-h", "--help")


def _run(args: argparse.Namespace) -> int:
    # Before grpc is imported: its fork handlers would slow down and endanger every subprocess (nft).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import asyncio
    import faulthandler

    from ipamd.process.startup import quick_imports

    with quick_imports():
        import structlog

        from ipamd.api.place import SocketUnusable
        from ipamd.config.error import SettingsError
        from ipamd.config.load import load
        from ipamd.daemon.run import run as serve
        from ipamd.host import HostError
        from ipamd.ledger import LedgerError
        from ipamd.process.descriptors import raise_limit
        from ipamd.process.event_loop import EventLoop
        from ipamd.process.reload import LiveSettings
        from ipamd.settings import DEFAULT_PATH
        from ipamd.telemetry import logs
        from ipamd.telemetry.conditions import Conditions
        from ipamd.telemetry.history import History

    conditions = Conditions()
    try:
        live = LiveSettings(lambda: load(args.config), args.config or DEFAULT_PATH, conditions)
    except SettingsError as error:
        return config_command.fail(str(error))
    history = History()
    logs.set_up(live.loaded.settings.log, history)
    for each in live.loaded.unsupported:
        structlog.get_logger("ipamd.settings").warning("settings.not_supported", **asdict(each))
    if os.geteuid() != 0:
        return config_command.fail("the daemon writes routes, rules and nftables: run it as root")

    raise_limit()

    # systemd's watchdog sends SIGABRT: the journal then has where every thread stood.
    faulthandler.enable()

    try:
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(serve(live, history, conditions))
    except (LedgerError, HostError, SocketUnusable) as error:
        return config_command.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
