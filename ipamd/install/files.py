"""All files but the plugin itself: network configuration, systemd unit, drop-ins."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ipamd.install.placing import InstallError, not_writable, replace, shipped
from ipamd.install.plugin import PLUGIN

CONFLIST = "10-ipamd.conflist"
UNIT = "ipamd.service"
BIN_DIR = Path("/opt/cni/bin")
UNIT_DIR = Path("/etc/systemd/system")
ETC = Path("/etc")
# Below /etc, and in the source tree below systemd/etc. Each tells in its own words what it is for.
DROP_INS = (
    "systemd/networkd.conf.d/50-ipamd.conf",
    "systemd/network/05-ipamd-pods.network",
    "systemd/network/05-ipamd-pods.link",
    "NetworkManager/conf.d/50-ipamd.conf",
)

# 1.0.0 is understood by all runtimes in use; containerd 1.6 and podman 4 refuse results of 1.1.0. libcni takes
# the highest version that it knows from the list since 1.2 (and STATUS and GC with it), and ignores the list before.
_NETWORK = {
    "cniVersion": "1.0.0",
    "cniVersions": ["1.0.0", "1.1.0"],
    "name": "ipamd",
    "plugins": [{"type": PLUGIN}],
}


def write_conflist(conf_dir: Path) -> Path:
    """Write the network configuration; its appearing is what tells a runtime that the node's network is there.

    Raises InstallError.
    """
    path = conf_dir / CONFLIST
    try:
        conf_dir.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(_NETWORK, indent=2).encode() + b"\n", 0o644)
    except OSError as error:
        raise not_writable(conf_dir, error) from None
    return path


def write_unit(unit_dir: Path = UNIT_DIR, command: Path | None = None) -> Path:
    """Write the systemd unit for `command`, by default the `ipamd` command in use. Raises InstallError."""
    executable = _systemd_quoted(str(command or _own_command()))
    lines = [
        f"ExecStart={executable} run" if line.startswith("ExecStart=") else line
        for line in _shipped(UNIT, f"lib/systemd/system/{UNIT}").read_text().splitlines()
    ]
    path = unit_dir / UNIT
    try:
        unit_dir.mkdir(parents=True, exist_ok=True)
        replace(path, "\n".join([*lines, ""]).encode(), 0o644)
    except OSError as error:
        raise not_writable(unit_dir, error) from None
    return path


def write_drop_ins(etc: Path = ETC) -> list[Path]:
    """Write what keeps systemd-networkd, udev and NetworkManager off our rules and links. Those that were written
    now: none of them by a second run. Raises InstallError."""
    written = []
    for name in DROP_INS:
        path = etc / name
        text = _shipped(f"etc/{name}", f"share/ipamd/etc/{name}").read_bytes()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if replace(path, text, 0o644):
                written.append(path)
        except OSError as error:
            raise not_writable(etc, error) from None
    return written


def _shipped(in_tree: str, in_wheel: str) -> Path:
    """Raises InstallError."""
    path = shipped(f"systemd/{in_tree}", in_wheel)
    if path is None:
        raise InstallError(f"{in_wheel} is not where this package was installed; install ipamd again")
    return path


def _own_command() -> Path:
    """The `ipamd` script: the one that runs, else the one beside this interpreter, else the one in PATH."""
    candidates = [Path(sys.argv[0]), Path(sys.executable).with_name("ipamd"), Path(shutil.which("ipamd") or "")]
    for path in candidates:
        if path.name == "ipamd" and path.is_file():
            return path.absolute()
    raise InstallError("the ipamd command is not to be found; install ipamd again, for instance with pip")


def _systemd_quoted(path: str) -> str:
    """For ExecStart=: systemd.service(5), section "Command lines"; specifiers begin with %."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(character.isspace() or character in "\\\"'" for character in path) else escaped
