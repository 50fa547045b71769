"""The static executable of the plugin, built for the tests that run it."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from cni_shim.static import build


@functools.cache
def static_executable() -> Path:
    """Built once for each run of the tests, in half a second. Skips the test where the tools are missing."""
    try:
        build.find_library()
    except build.BuildError as missing:
        pytest.skip(f"the static executable can't be built here: {missing}")
    folder = tempfile.mkdtemp(prefix="ipamd-static-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Path(folder) / "ipamd-cni"
    build.build(made)
    return made
