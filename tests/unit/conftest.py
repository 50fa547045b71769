"""What the tests of `ipamctl` share: a daemon that answers as it is told, and its socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.ctl_daemon import Daemon, serving


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def daemon(at: Path) -> Iterator[Daemon]:
    with serving(at) as answers:
        yield answers
