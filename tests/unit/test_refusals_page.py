"""A refusal reason has a status code, a name in the wire contract, and a row in docs/refusals.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipamd.api.errors import CODES
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import Reason

PAGE = Path(__file__).resolve().parents[2] / "docs" / "refusals.md"


@pytest.mark.parametrize("reason", Reason)
def test_reason_is_known_to_callers_and_readers(reason: Reason) -> None:
    assert reason in CODES
    assert f"REASON_{reason}" in ipam_pb2.Reason.keys()  # noqa: SIM118 (an enum wrapper, not a dict)
    assert re.search(rf"(?m)^\| `{reason}` \|", PAGE.read_text())


def test_page_has_no_reason_that_nobody_gives() -> None:
    named = re.findall(r"(?m)^\| `([A-Z_]+)` \|", PAGE.read_text())
    assert {f"REASON_{name}" for name in named} <= set(ipam_pb2.Reason.keys())
