"""The plugin as one static executable, which was built beforehand (`make shim`, see cni_shim/static): one file.

What is fixed for the node is written into a block of it that is kept for that, so a node needs no compiler.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from cni_shim.static import block
from ipamd.install.launcher import remove_versions, used_before
from ipamd.install.placing import InstallError, replace, shipped

if TYPE_CHECKING:
    from pathlib import Path

_BUILD = "build one with `make shim`"


def find_executable(wanted: Path | None, modules: dict[str, str]) -> Path:
    """`wanted`, else the one that `make shim` built or that came with the wheel.

    Raises InstallError if there is none, or if it does not run on this machine or holds other modules than `modules`.
    """
    path = wanted or shipped("build/ipamd-cni", "libexec/ipamd/ipamd-cni")
    if path is None:
        raise InstallError(f"there is no static executable of the plugin; {_BUILD}, or name it with --executable")
    try:
        _, digest = block.read(path.read_bytes())
        if digest != block.digest(modules):
            raise InstallError(f"{path} was built from other sources than this ipamd's; {_BUILD}")
        run = ask_version(path)
    except block.BlockError as error:
        raise InstallError(f"{path}: {error}; {_BUILD}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{path} does not run here: {getattr(error, 'strerror', None) or error}") from None
    if run.returncode or b"supportedVersions" not in run.stdout:
        raise InstallError(f"{path} does not run here: it ended with status {run.returncode}")
    return path


def ask_version(plugin: Path) -> subprocess.CompletedProcess[bytes]:
    """The one call of CNI's that takes no pod and no daemon. Raises OSError, subprocess.TimeoutExpired."""
    return subprocess.run(
        [plugin], input=b"{}", env={"CNI_COMMAND": "VERSION"}, capture_output=True, timeout=30, check=False
    )


def install_executable(plugin: Path, executable: Path, settings: block.Settings) -> None:
    """Install it as `plugin`. Raises InstallError, OSError."""
    try:
        image = block.fill(executable.read_bytes(), settings)
    except block.BlockError as error:
        raise InstallError(f"{executable}: {error}") from None
    plugin.parent.mkdir(parents=True, exist_ok=True)
    before = used_before(plugin)
    replace(plugin, image, 0o755)
    remove_versions(plugin, keep=lambda name: name in before)
