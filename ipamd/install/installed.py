"""Which plugin stands on a node: of what version, and with what settings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cni_shim.static import block
from ipamd.install.launcher import STAMP, folder_of_versions


@dataclass(frozen=True, slots=True)
class Installed:
    """`settings` as `ipamd install` fixed them, None if unknown. `current`: it was built from the sources that are
    here; None if unknown. `problem`: why it can't run at all, to follow its path in a sentence."""

    settings: block.Settings | None = None
    current: bool | None = None
    problem: str = ""


def installed(plugin: Path) -> Installed | None:
    """None: there is no such file. Raises nothing."""
    try:
        if not plugin.stat().st_mode & 0o111:
            return Installed(problem="is not executable")
        image = plugin.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Installed(problem=f"can't be read: {error.strerror}")
    if image.startswith(b"#!"):
        return _launcher(plugin, image.decode(errors="replace"))
    try:
        settings, digest = block.read(image)
    except block.BlockError as error:
        return Installed(problem=f"is not ipamd's plugin, or of another version: {error}")
    return Installed(settings, digest == block.digest(block.sources()))


def _launcher(plugin: Path, text: str) -> Installed:
    interpreter = Path(text[2:].split(None, 1)[0]) if text[2:].split() else Path("/nowhere")
    if not interpreter.exists():
        return Installed(problem=f"needs {interpreter}, which is not there")
    version = re.search(r"\.d/([0-9a-f]+)'", text)
    folder = folder_of_versions(plugin) / (version[1] if version else "none")
    if not folder.is_dir():
        return Installed(problem=f"needs {folder}, which is not there")
    try:
        stamp = json.loads((folder / STAMP).read_text())
        settings = block.Settings(**stamp["settings"])
        digest = str(stamp["sources"])
    except (OSError, ValueError, KeyError, TypeError):
        return Installed()
    return Installed(settings, digest == block.digest(block.sources()))
