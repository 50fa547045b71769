"""`ipamd simulate vpc`: what its options make of the cloud, and what it says to nonsense. Nothing is built."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from ipamd.sim import simulate
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.ec2.consistency import Lags
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.rules.throttle import PUBLISHED, Rate


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the VPC would be built from."""
    seen: dict[str, Any] = {}

    async def run_vpc(**spec: Any) -> None:
        seen.update(spec)

    monkeypatch.setattr(simulate, "_run_vpc", run_vpc)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return seen


def run(*options: str) -> int:
    parser = argparse.ArgumentParser()
    simulate.add_parser(parser.add_subparsers())
    args = parser.parse_args(["simulate", "vpc", "--dir", "/nowhere", "--node", "n1=m5.large", *options])
    code: int = args.run(args)
    return code


def test_ec2_is_quick_and_kind_by_default(built: dict[str, Any]) -> None:
    assert run() == 0
    assert (built["delays"], built["lags"], built["throttle"], built["faults"]) == (Delays(), Lags(), None, [])
    assert built["hop_limit"] == 2


def test_a_hop_limit(built: dict[str, Any]) -> None:
    assert run("--hop-limit", "1") == 0
    assert built["hop_limit"] == 1


def test_seconds(built: dict[str, Any]) -> None:
    assert run("--delay", "attach=2", "--lag", "new_eni=1.5", "--lag", "new_id=3") == 0
    assert built["delays"] == Delays(attach=2)
    assert built["lags"] == Lags(new_eni=1.5, new_id=3)


def test_limits_as_published_or_otherwise(built: dict[str, Any]) -> None:
    assert run("--throttle") == 0
    assert built["throttle"].rates == PUBLISHED
    assert run("--throttle", "CreateNetworkInterface=2/0.5", "--throttle", "mutating=10/1") == 0
    assert built["throttle"].rates == {
        **PUBLISHED,
        "CreateNetworkInterface": Rate(2, 0.5),
        "mutating": Rate(10, 1),
    }


def test_a_script_of_faults(built: dict[str, Any], tmp_path: Path) -> None:
    script = [
        {
            "action": "DescribeSubnets",
            "error": "Unavailable",
            "after_s": 5,
            "for_s": 10,
            "probability": 0.5,
            "seed": 7,
        },
        {"action": "AttachNetworkInterface", "error": "stuck", "after_calls": 2, "times": 1},
    ]
    (tmp_path / "script.json").write_text(json.dumps(script))
    assert run("--faults", str(tmp_path / "script.json")) == 0
    assert built["faults"] == [
        Fault("DescribeSubnets", "Unavailable", after=5, lasting=10, probability=0.5, seed=7),
        Fault("AttachNetworkInterface", "stuck", times=1, after_calls=2),
    ]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--lag", "new_eni"], "--lag new_eni: write it like new_eni=0.5"),
        (["--lag", "new_vpc=1"], "new_vpc is not one of attachment, gone_address"),
        (["--lag", "new_eni=soon"], "not a number of seconds"),
        (["--lag", "new_eni=nan"], "give 0 to 3600 seconds"),
        (["--delay", "attach=-1"], "give 0 to 3600 seconds"),
        (["--throttle", "mutating"], "--throttle mutating: write it like mutating=50/5"),
        (["--throttle", "mutating=50"], "write it like mutating=50/5"),
        (["--throttle", "mutating=50/-1"], "mutating.refill: expected a number"),
        (["--throttle", "EatSubnets=1/1"], "unknown: EatSubnets; known are AssignPrivateIpAddresses"),
        (["--faults", "/nowhere/script.json"], "No such file"),
    ],
)
def test_options_that_make_no_sense(
    built: dict[str, Any], capsys: pytest.CaptureFixture[str], options: list[str], hint: str
) -> None:
    assert run(*options) == 1
    told = capsys.readouterr().err
    assert hint in told and told.count("\n") == 1
    assert not built


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (b"[", "not JSON"),
        (b"{}", "expected a list of faults"),
        (b"\xff", "utf-8"),
        (b'[{"action": "*", "error": "InternalError"}, {"action": "*"}]', "fault 2: a fault needs an error"),
    ],
)
def test_scripts_that_make_no_sense(
    built: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, text: bytes, hint: str
) -> None:
    file = tmp_path / "script.json"
    file.write_bytes(text)
    assert run("--faults", str(file)) == 1
    told = capsys.readouterr().err
    assert hint in told and str(file) in told
    assert not built
