"""The command line of `ipamd install`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_shim.names import SPOOL
from ipamd.install.commands import FOLDER, link_commands
from ipamd.install.files import (
    BIN_DIR,
    ETC,
    SYSUSERS,
    TMPFILES,
    UNIT,
    UNIT_DIR,
    own_command,
    write_conflist,
    write_drop_ins,
    write_systemd_files,
    write_unit,
)
from ipamd.install.hosting import in_pod
from ipamd.install.placing import InstallError, below
from ipamd.install.plugin import SOCKET, InstalledPlugin, Packaging, install_plugin
from ipamd.install.running import booted, tell
from ipamd.neighbours.chain import DEFAULT, Binaries, Chain, chain

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "install",
        help="install the CNI plugin, its configuration and the systemd unit",
        description="Install the CNI plugin on this node. A second run renews it.",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="the node's file system, below which everything is written, for an image (default: %(default)s)",
    )
    parser.add_argument(
        "--bin-dir", type=Path, default=BIN_DIR, help="the runtime's CNI plugins (default: %(default)s)"
    )
    parser.add_argument(
        "--conf-dir",
        type=Path,
        help="write 10-ipamd.conflist here now (default: the daemon does it once it can serve, see cni.conf_dir)",
    )
    parser.add_argument("--socket", type=Path, default=SOCKET, help="the daemon's socket (default: %(default)s)")
    parser.add_argument(
        "--spool-dir",
        type=Path,
        help="the daemon's spool (default: 'released' beside the socket, where every daemon looks)",
    )
    parser.add_argument(
        "--plugin",
        choices=("auto", "launcher", "static"),
        help="the packaging: a launcher for an installed Python, one static executable that needs none, or whichever "
        "starts quickest on this host (auto, the default)",
    )
    parser.add_argument(
        "--interpreter",
        type=Path,
        metavar="PYTHON",
        help="the Python for a launcher, 3.11 or later (default: /usr/bin/python3 or the one that runs this)",
    )
    parser.add_argument(
        "--executable",
        type=Path,
        metavar="FILE",
        help="the static executable (default: what `make shim` built here, or what came with the wheel)",
    )
    parser.add_argument(
        "--plugin-log",
        type=Path,
        metavar="FILE",
        help="a file for one line of JSON about each run of the plugin (default: none)",
    )
    parser.add_argument(
        "--systemd",
        action="store_true",
        help=f"write {UNIT_DIR / UNIT} and what goes with it, drop-ins for other managers of the network, and links "
        f"to the commands in {FOLDER}",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; 1 after an error, which is on standard error."""
    try:
        plugin = install_plugin(
            below(args.root, args.bin_dir),
            args.socket,
            args.spool_dir,
            packaging=_packaging(args),
            interpreter=args.interpreter,
            executable=args.executable,
            log=args.plugin_log,
            daemon_set=in_pod() and not args.systemd,
        )
        for line in _described(plugin, args.socket):
            _say(line)
        if args.spool_dir not in (None, args.socket.parent / SPOOL):
            _say(
                f"         leaves DELs in {args.spool_dir}: the daemon looks there with cni.spool_dir set to the same"
            )
        found = _chained(below(args.root, args.bin_dir))
        _say(f"chain    {', '.join(found.names) or 'no portmap there, so hostPort of a pod does nothing'}")
        if args.conf_dir is not None:
            _say(f"network  {write_conflist(below(args.root, args.conf_dir), found)}")
        if args.systemd:
            _install_unit(args.root)
            _install_drop_ins(args.root)
    except InstallError as error:
        sys.stderr.write(f"ipamd install: {error}\n")
        return 1
    return 0


def _chained(bin_dir: Path) -> Chain:
    """As the daemon does it unless cni.chain says otherwise."""
    return chain(DEFAULT, Binaries().look(DEFAULT, bin_dir), bin_dir)


def _packaging(args: argparse.Namespace) -> Packaging:
    """An interpreter or an executable that was named says which packaging is meant. Raises InstallError."""
    if args.interpreter is not None and (args.executable is not None or args.plugin == "static"):
        raise InstallError("--interpreter is for a launcher; leave it out for the static executable")
    if args.executable is not None and args.plugin == "launcher":
        raise InstallError("--executable is for --plugin static; leave it out for a launcher")
    if args.plugin is not None:
        chosen: Packaging = args.plugin
        return chosen
    if args.interpreter is not None:
        return "launcher"
    return "auto" if args.executable is None else "static"


def _described(plugin: InstalledPlugin, socket: Path) -> list[str]:
    if plugin.interpreter is not None:
        version = ".".join(map(str, plugin.interpreter.version))
        kind = f"launcher, Python {version}"
    else:
        kind = "static executable"
    lines = [f"plugin   {plugin.launcher} ({kind}, socket {socket})"]
    for number, (name, milliseconds) in enumerate(plugin.measured):
        lines.append(f"         {milliseconds:.1f} ms a start: {name}{', the quickest' if number == 0 else ''}")
    if plugin.kept:
        lines.append("         kept: it is of this version, and was chosen before (--plugin names another)")
    return lines + [f"         no choice: {reason}" for reason in plugin.passed_over]


def _install_unit(root: Path) -> None:
    """Raises InstallError."""
    _say(f"unit     {write_unit(below(root, UNIT_DIR), root=root)}")
    for line in link_commands(root, own_command(root)):
        _say(line)
    for path in write_systemd_files(below(root, ETC)):
        _say(f"file     {path}")
    if booted(root):
        tell("systemd-sysusers", str(ETC / SYSUSERS))
        tell("systemd-tmpfiles", "--create", str(ETC / TMPFILES))
        tell("systemctl", "daemon-reload")
        _say(f"next     systemctl enable {UNIT} && systemctl restart {UNIT}")
    else:
        _say(f"next     systemctl --root={root} enable {UNIT}")


def _install_drop_ins(root: Path) -> None:
    """Raises InstallError."""
    etc = below(root, ETC)
    written = write_drop_ins(etc)
    for path in written:
        _say(f"drop-in  {path}")
    if not written:
        _say(f"drop-ins in {etc}: as they should be")
    elif booted(root):
        # While it runs with its old settings it removes our rules with the next link that it configures.
        _say("         in force once their readers are restarted: before pods run, where active,")
        _say("next     systemctl restart systemd-networkd; systemctl reload NetworkManager; udevadm control --reload")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
