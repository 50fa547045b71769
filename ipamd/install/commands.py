"""The commands `ipamd` and `ipamctl` on the node's PATH: links to those of the environment that has ipamd."""

from __future__ import annotations

import os
from pathlib import Path

from ipamd.install.placing import below, not_writable

FOLDER = Path("/usr/local/bin")
NAMES = ("ipamd", "ipamctl")


def link_commands(root: Path, own: Path) -> list[str]:
    """Lines that say what was done. `own` is the `ipamd` command as the node sees it; what stands in the place of a
    link and is no link to an ipamd stays. Raises InstallError."""
    said = []
    for name in NAMES:
        link, target = FOLDER / name, own.with_name(name)
        there = below(root, link)
        if target == link or not below(root, target).exists():
            continue
        if os.path.lexists(there) and not _is_ours(there, name):
            said.append(f"left     {link}: not a link of ipamd's; the command is {target}")
            continue
        try:
            there.parent.mkdir(parents=True, exist_ok=True)
            beside = there.with_name(f".{name}-new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(target)
            beside.replace(there)
        except OSError as error:
            raise not_writable(there.parent, error) from None
        said.append(f"command  {link} -> {target}")
    return said


def unlink_commands(root: Path) -> list[Path]:
    """Those that were there. Raises InstallError."""
    removed = []
    for name in NAMES:
        link = below(root, FOLDER / name)
        if _is_ours(link, name):
            try:
                link.unlink()
            except OSError as error:
                raise not_writable(link.parent, error) from None
            removed.append(link)
    return removed


def _is_ours(path: Path, name: str) -> bool:
    """A link to a command of the same name elsewhere, also when that is gone."""
    return path.is_symlink() and path.readlink().name == name
