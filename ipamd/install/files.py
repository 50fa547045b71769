"""All files but the plugin itself: network configuration, systemd unit and what goes with it, drop-ins for others."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from ipamd.install.placing import InstallError, not_writable, remove, replace, replace_in_watched, shipped
from ipamd.neighbours.chain import Chain

CONFLIST = "10-ipamd.conflist"
UNIT = "ipamd.service"
BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
UNIT_DIR = Path("/etc/systemd/system")
ETC = Path("/etc")
# Below /etc, and in the source tree below systemd/etc. Each tells in its own words what it is for. First what systemd
# reads for ipamd's sake, then what keeps other managers of the network off it.
TMPFILES = "tmpfiles.d/ipamd.conf"
SYSUSERS = "sysusers.d/ipamd.conf"
PRESET = "systemd/system-preset/50-ipamd.preset"
DROP_INS = (
    "systemd/networkd.conf.d/50-ipamd.conf",
    "systemd/network/05-ipamd-pods.network",
    "systemd/network/05-ipamd-pods.link",
    "NetworkManager/conf.d/50-ipamd.conf",
)

# The command that the shipped unit starts and reloads by.
_SHIPPED_COMMAND = "/usr/bin/ipamd"

# The unit has an empty /home, /root and /tmp (ProtectHome=, PrivateTmp= in systemd.exec(5)).
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))


def write_conflist(conf_dir: Path, chain: Chain = Chain()) -> Path:  # noqa: B008 - it is frozen
    """Write the network configuration; its appearing is what tells a runtime that the node's network is there.

    Raises InstallError.
    """
    path = conf_dir / CONFLIST
    try:
        conf_dir.mkdir(parents=True, exist_ok=True)
        replace_in_watched(path, chain.conflist(), 0o644)
    except OSError as error:
        raise not_writable(conf_dir, error) from None
    return path


def write_unit(unit_dir: Path = UNIT_DIR, command: Path | None = None, root: Path = Path("/")) -> Path:
    """Write the systemd unit for `command`, by default the `ipamd` command in use, as seen by the node whose file
    system is at `root`. Raises InstallError."""
    executable = _systemd_quoted(str(command or own_command(root)))
    shipped = _shipped(UNIT, f"lib/systemd/system/{UNIT}").read_text()
    unit = shipped.replace(f"={_SHIPPED_COMMAND} ", f"={executable} ")
    path = unit_dir / UNIT
    try:
        unit_dir.mkdir(parents=True, exist_ok=True)
        replace(path, unit.encode(), 0o644)
    except OSError as error:
        raise not_writable(unit_dir, error) from None
    return path


def write_systemd_files(etc: Path = ETC) -> list[Path]:
    """Write what makes ipamd's folders and its group at boot, and what `systemctl preset` goes by. As
    `write_drop_ins`."""
    return _write_shipped((TMPFILES, SYSUSERS, PRESET), etc)


def write_drop_ins(etc: Path = ETC) -> list[Path]:
    """Write what keeps systemd-networkd, udev and NetworkManager off our rules and links. Those that were written
    now: none of them by a second run. Raises InstallError."""
    return _write_shipped(DROP_INS, etc)


def remove_files(conf_dir: Path, unit_dir: Path, etc: Path) -> list[Path]:
    """Remove all that the functions above write, and what `systemctl enable` made of the unit. Those that were there;
    the network configuration is the first of them to go. Raises InstallError."""
    paths = [
        conf_dir / CONFLIST,
        *(wants / UNIT for wants in sorted(unit_dir.glob("*.wants"))),
        unit_dir / UNIT,
        *(etc / name for name in (TMPFILES, SYSUSERS, PRESET, *DROP_INS)),
    ]
    return [path for path in paths if remove(path)]


def _write_shipped(names: Iterable[str], etc: Path) -> list[Path]:
    written = []
    for name in names:
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


def own_command(root: Path) -> Path:
    """The `ipamd` script: the one that runs, else the one beside this interpreter, else the one in PATH."""
    candidates = [Path(sys.argv[0]), Path(sys.executable).with_name("ipamd"), Path(shutil.which("ipamd") or "")]
    for path in candidates:
        if path.name == "ipamd" and path.is_file():
            own, python = (_seen_from(root, each) for each in (path.absolute(), Path(sys.executable).resolve()))
            _refuse_hidden(own)
            _refuse_hidden(python)
            return own
    raise InstallError("the ipamd command is not to be found; install ipamd again, for instance with pip")


def _seen_from(root: Path, path: Path) -> Path:
    return Path("/", path.relative_to(root)) if path.is_relative_to(root) else path


def _refuse_hidden(path: Path) -> None:
    for folder in HIDDEN:
        if path.is_relative_to(folder):
            raise InstallError(
                f"{path}: the unit does not see {folder}, so that the daemon has no way to what is there; install "
                "ipamd elsewhere, for instance in /opt/ipamd, with a Python that all users have"
            )


def _systemd_quoted(path: str) -> str:
    """For ExecStart=: systemd.service(5), section "Command lines"; specifiers begin with %."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(character.isspace() or character in "\\\"'" for character in path) else escaped
