"""Go programs that tests run as their peers, built from the folders below tests/peers.

Their modules come from the Go module proxy, by the versions and checksums in go.mod and go.sum. Where Go or the
modules can't be had the tests that need them are skipped, with the reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PEERS = Path(__file__).with_name("peers")
# Root executes what is in it, so it is no folder that others may have made, as in /tmp.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipamd-tests" / "peers"
_SECONDS = 600.0  # for a first build, with its downloads, on a busy machine
_PLACES = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")


def executables() -> list[str]:
    """The go commands of this machine, that of PATH first."""
    on_path = shutil.which("go")
    return ([on_path] if on_path else []) + [place for place in _PLACES if os.access(place, os.X_OK)]


class Unbuilt(Exception):
    """The program can't be made on this machine; the message says why."""


def build(folder: str) -> Path:
    """The executable made from tests/peers/`folder`, once for each run of the tests; what has been compiled before
    comes from Go's own cache. Skips the test when it can't be made."""
    made = _built(folder)
    if isinstance(made, Unbuilt):
        pytest.skip(str(made))
    return made


@functools.cache
def _built(folder: str) -> Path | Unbuilt:
    """What can't be made is not tried again for each test: without a network that takes its time."""
    try:
        return _build(folder)
    except Unbuilt as why:
        return why


def _build(folder: str) -> Path:
    go = next(iter(executables()), None)
    if go is None:
        raise Unbuilt("Go is not installed")
    _CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = _CACHE / f"{folder}-{os.getpid()}"
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [go, *arguments],
                cwd=PEERS / folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise Unbuilt(f"go {arguments[0]} in tests/peers/{folder} takes longer than {_SECONDS:.0f} s") from None

    loaded = run("list", "-deps", ".")  # fetches the modules; too old a Go ends here as well
    if loaded.returncode:
        raise Unbuilt(f"Go modules for tests/peers/{folder} can't be had: {loaded.stderr.strip()[-300:]}")
    built = run("build", "-trimpath", "-buildvcs=false", "-o", str(made), ".")
    if built.returncode:
        pytest.fail(f"tests/peers/{folder} does not compile:\n{built.stderr}", pytrace=False)
    final = _CACHE / folder
    made.replace(final)  # whole at any moment: workers of one run build it side by side
    return final
