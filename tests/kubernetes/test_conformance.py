"""Kubernetes' own network tests, unmodified, on pods whose addresses come from ipamd.

`make test-kubernetes` leaves out what is marked slow: all specs in each mode.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kubernetes.conformance import MODES, PROGRAMS, drift_of, run
from tests.kubernetes.pinned import GROUPS, pinned
from tests.kubernetes.programs import built
from tests.kubernetes.skipping import skipped_if_unbuilt

pytestmark = pytest.mark.e2e

CI = ("conformance", "granular", "hostport")


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@pytest.fixture
async def programs() -> AsyncIterator[Path]:
    with skipped_if_unbuilt():
        yield await built(PROGRAMS, say)


async def test_the_lists_name_every_network_spec(programs: Path) -> None:
    assert await drift_of(programs) == []


async def test_conformance_hostport_and_granular_checks_pass(programs: Path, tmp_path: Path) -> None:
    outcome = await run(MODES["mixed"], pinned(CI), tmp_path, say)
    assert outcome.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["nftables", "iptables", "killed"])
async def test_every_network_spec_does_what_its_list_says(programs: Path, tmp_path: Path, mode: str) -> None:
    outcome = await run(MODES[mode], pinned(GROUPS), tmp_path, say)
    assert outcome.problems == []
