"""What every test on a real kernel needs: root, and namespace names that no other run uses."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from ipamd.sim import netns
from ipamd.sim.fabric import Fabric


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    """These tests fail, rather than skip, for anybody but root: a skipped suite looks like a passed one."""
    if os.geteuid() != 0:
        pytest.fail("tests/netns make network namespaces: run them as root", pytrace=False)


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix for the names of this test's namespaces; the test fails if it leaves one behind."""
    name = f"t{secrets.token_hex(4)}"
    yield name
    left = sorted(path.name for path in netns.DIRECTORY.glob(f"{name}*"))
    for namespace in left:
        subprocess.run(["ip", "netns", "delete", namespace], check=True)
    assert left == []


@pytest.fixture
async def fabric(prefix: str) -> AsyncIterator[Fabric]:
    """A VPC 10.0.0.0/16 with the subnets 10.0.0.0/24 and 10.0.1.0/24, and no node."""
    async with Fabric("10.0.0.0/16", prefix) as made:
        await made.add_subnet("10.0.0.0/24")
        await made.add_subnet("10.0.1.0/24")
        yield made
