"""`ipamd uninstall`: removes what `ipamd install` and the daemon have put on the node, and nothing that pods use.

The plugin stays while pods exist, since the runtime needs it for DEL; the number of pods is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_shim.names import served_record
from ipamd.install.commands import unlink_commands
from ipamd.install.files import BIN_DIR, CONF_DIR, ETC, UNIT, UNIT_DIR, remove_files
from ipamd.install.installed import installed
from ipamd.install.placing import InstallError, below, remove
from ipamd.install.plugin import SOCKET, remove_plugin
from ipamd.install.running import booted, tell
from ipamd.neighbours.chain import PLUGIN

if TYPE_CHECKING:
    import argparse

_LEFT = """\
left     pods: {pods} of them run on, with their addresses. Without the plugin the runtime can't take one down: drain
         the node and reboot it, or install ipamd again
left     in the kernel: nftables table inet ipamd, rules and routes of protocol 158; gone with the next boot
left     in /run/ipamd: ledger and spool; gone with the next boot
left     in EC2: network interfaces with the tag ipamd.io/instance; they go with the instance. Once no pod uses them:
         aws ec2 describe-network-interfaces --filters Name=tag:ipamd.io/instance,Values=INSTANCE
         aws ec2 detach-network-interface --attachment-id ATTACHMENT
         aws ec2 delete-network-interface --network-interface-id INTERFACE
left     yours: /etc/ipamd, drop-ins in /etc/systemd/system/ipamd.service.d, the group ipamd, a ledger elsewhere
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "uninstall",
        help="stop the daemon and remove what install has put on the node",
        description="Stop the daemon and remove what `ipamd install` has put on this node. Running pods, network "
        "interfaces, ledger and configuration are left alone. A second run finds nothing to do.",
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="the node's file system (default: %(default)s)")
    parser.add_argument(
        "--bin-dir", type=Path, default=BIN_DIR, help="the runtime's CNI plugins (default: %(default)s)"
    )
    parser.add_argument(
        "--conf-dir",
        type=Path,
        default=CONF_DIR,
        help="where the network configuration is, see cni.conf_dir (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; 1 after an error, which is on standard error."""
    try:
        removed = _remove(args)
    except InstallError as error:
        sys.stderr.write(f"ipamd uninstall: {error}\n")
        return 1
    for path in removed:
        sys.stdout.write(f"removed  {path}\n")
    if not removed:
        sys.stdout.write("nothing that `ipamd install` writes is here\n")
        return 0
    if booted(args.root):
        pods = sum(1 for _ in Path("/sys/class/net").glob("ipm*"))
        sys.stdout.write(_LEFT.format(pods=pods))
    return 0


def _record(bin_dir: Path) -> Path:
    """The record that this node has served, beside the plugin's socket. A node without ipamd has none."""
    found = installed(bin_dir / PLUGIN)
    socket = str(SOCKET) if found is None or found.settings is None else found.settings.socket
    return Path(served_record(socket))


def _remove(args: argparse.Namespace) -> list[Path]:
    """Raises InstallError."""
    unit_dir = below(args.root, UNIT_DIR)
    running = booted(args.root)
    if running and (unit_dir / UNIT).exists():
        # Before the network configuration goes, which a daemon that is only just getting ready would write again.
        tell("systemctl", "disable", "--now", UNIT)
    removed = remove_files(below(args.root, args.conf_dir), unit_dir, below(args.root, ETC))
    record = below(args.root, _record(below(args.root, args.bin_dir)))
    removed += remove_plugin(below(args.root, args.bin_dir))
    if remove(record):
        removed.append(record)
    removed += unlink_commands(args.root)
    if running and removed:
        tell("systemctl", "daemon-reload")
    return removed
