"""What several tests share: for `ipamctl` a daemon with prepared answers, for the EC2 adapter a cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.cloud_world import World, serving_world, shut_out
from tests.unit.ctl_daemon import Daemon, serving


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def daemon(at: Path) -> Iterator[Daemon]:
    with serving(at) as answers:
        yield answers


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[World]:
    shut_out(monkeypatch, tmp_path)
    async with serving_world() as world:
        yield world
