"""`ipamd simulate policy`: its output, and what it says to nonsense."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipamd.__main__ import main
from ipamd.pool.model import Targets
from ipamd.sim.policy.choices import MOST, ChoiceError, choices
from ipamd.sim.policy.figures import Figures, figures
from ipamd.sim.policy.replay import Outcome, Sample, Wait
from ipamd.sim.policy.verdict import Verdict, verdicts, warnings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def policy(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error."""

    def run(*options: str) -> tuple[int, str, str]:
        try:
            code = main(["simulate", "policy", *options])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    return run


SHORT = ("--type", "m5.large", "--profile", "web", "--hours", "6")


def test_the_table_has_a_column_for_each_setting(policy: Run) -> None:
    code, out, err = policy(*SHORT, "--set", "warm_ips=2,5", "--set", "vpc-cni-default max_enis=2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "6 hours of profile web, at most 16 pods, seed 1, on m5.large (3 ENIs, addresses for 27 pods)"
    )
    assert "create 1, attach 2, assign 0.3" in lines[1]
    assert lines[3].split() == ["warm_ips=5", "warm_ips=2", "vpc-cni-default"]
    assert lines[4].split() == ["(defaults)", "max_enis=2"]
    asked = next(line for line in lines if "asked for an address" in line)
    assert len(set(asked.split()[4:])) == 1 and len(asked.split()) == 7
    assert out.endswith(
        "vpc-cni-default is ipamd's pool with the AWS VPC CNI's target (warm_enis=1), not its code.\n"
    )


def test_the_figures_for_programs_add_up(policy: Run) -> None:
    code, out, _ = policy(*SHORT, "--set", "warm_ips=1", "--delay", "attach=7.5", "-o", "json")
    assert code == 0
    document = json.loads(out)
    assert document["workload"] == {
        "type": "m5.large",
        "profile": "web",
        "pods": 16,
        "hours": 6.0,
        "seed": 1,
        "seconds": 21600.0,
    }
    assert document["delays"]["attach"] == 7.5
    assert [setting["name"] for setting in document["settings"]] == ["defaults", "warm_ips=1"]
    assert document["settings"][1]["pool"]["warm_ips"] == 1
    for setting in document["settings"]:
        waits, calls = setting["waits"], setting["calls"]
        assert waits["asked"] == waits["served"] + waits["withdrawn"] + waits["unserved"] > 0
        assert calls["total"] == sum(calls["by_action"].values())
    assert [verdict["best"] for verdict in document["verdicts"]]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_drawn_and_is_the_same_each_time(policy: Run, tmp_path: Path, suffix: str) -> None:
    pictures = [tmp_path / f"{name}{suffix}" for name in ("one", "other")]
    for picture in pictures:
        assert policy(*SHORT, "--set", "warm_ips=1", "--plot", str(picture))[0] == 0
    content = pictures[0].read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert content == pictures[1].read_bytes()


def test_a_trace_is_played(policy: Run, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"t": 0, "event": "add", "id": "a"}\n{"t": 30.5, "event": "add", "id": "b"}\n')
    code, out, _ = policy("--type", "m5.large", "--trace", str(file), "-o", "json")
    document = json.loads(out)
    assert code == 0
    assert document["workload"] == {"type": "m5.large", "trace": str(file), "seconds": 90.5}
    assert document["settings"][0]["waits"]["asked"] == 1
    assert document["settings"][0]["addresses"]["used_peak"] == 2


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (
            ["--type", "m5.lagre", "--profile", "web"],
            2,
            "m5.lagre: no instance type of that name is known; did you mean m5.l",
        ),
        (["--type", "m5.large"], 2, "one of the arguments --trace --profile is required"),
        (["--type", "m5.large", "--profile", "night"], 2, "invalid choice: 'night'"),
        (
            [*SHORT, "--set", "warm_ip=3"],
            2,
            "--set 'warm_ip=3': warm_ip: no such setting of the pool; did you mean warm_ips?",
        ),
        ([*SHORT, "--set", "warm_ips=-1"], 2, "--set 'warm_ips=-1': pool.warm_ips = \"-1\": must be at least 0"),
        ([*SHORT, "--set", "warm_ips=many"], 2, 'pool.warm_ips = "many": must be a whole number'),
        ([*SHORT, "--set", "warm_ips"], 2, "warm_ips is neither NAME=VALUE nor vpc-cni-default"),
        ([*SHORT, "--set", ""], 2, "--set: nothing stands after it"),
        ([*SHORT, "--hours", "0"], 2, "--hours 0: more than 0"),
        ([*SHORT, "--hours", "nan"], 2, "--hours nan: more than 0"),
        ([*SHORT, "--pods", "0"], 2, "--pods 0: 1 to 54 on m5.large, half of that it holds"),
        ([*SHORT, "--delay", "atach=1"], 2, "--delay atach=1: atach is not one of create, attach"),
        ([*SHORT, "--delay", "attach=soon"], 2, "--delay attach=soon: not a number of seconds"),
        ([*SHORT, "--delay", "attach=-1"], 2, "--delay attach=-1: give 0 to 3600 seconds"),
        ([*SHORT, "--plot", "x.pdf"], 1, "--plot x.pdf: the name must end in .png or .svg"),
        ([*SHORT, "--plot", "/nowhere/x.png"], 1, "--plot /nowhere/x.png: /nowhere is no directory"),
        (["--type", "m5.large", "--trace", "/nowhere"], 1, "/nowhere: No such file or directory"),
        (["--type", "m5.large", "--trace", "/dev/null"], 1, "/dev/null: no pod comes after its beginning"),
        (["--type", "m5.large", "--trace", "/dev/null", "--pods", "3"], 2, "--hours and --pods go with --profile"),
    ],
)
def test_nonsense_is_named(policy: Run, options: list[str], code: int, complaint: str) -> None:
    found, out, err = policy(*options)
    assert (found, out) == (code, "")
    assert complaint in err


def test_a_missing_matplotlib_is_named_before_any_work(policy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = policy(*SHORT, "--plot", "x.png")
    assert (code, out) == (1, "")
    assert err.startswith("ipamd simulate policy: --plot needs the package matplotlib: pip install '.[sim]'")


def test_choices_are_combined_and_never_repeated() -> None:
    found = choices(["warm_ips=5,10 minimum_ips=0,20", "vpc-cni-default", "pool.warm_ips=10"])
    assert [choice.name for choice in found] == [
        "warm_ips=5 minimum_ips=0 (defaults)",
        "warm_ips=5 minimum_ips=20",
        "warm_ips=10 minimum_ips=0",
        "warm_ips=10 minimum_ips=20",
        "vpc-cni-default",
    ]
    assert found[0].targets == Targets()
    assert found[3].targets == Targets(warm_ips=10, minimum_ips=20)
    assert found[4].targets == Targets(warm_enis=1)


def test_more_choices_than_anybody_reads_are_refused() -> None:
    with pytest.raises(ChoiceError, match=f"compare at most {MOST}"):
        choices(["warm_ips=" + ",".join(map(str, range(10, 10 + MOST)))])


def ran(waits: list[float], idle: int, calls: int, *, unserved: int = 0, **refusals: int) -> Figures:
    """An hour in which so many addresses idle."""
    return figures(
        Outcome(
            3600.0,
            len(waits) + unserved,
            tuple(Wait(1.0, wait) for wait in waits),
            0,
            unserved,
            Counter(refusals),
            Counter(DescribeNetworkInterfaces=calls),
            0,
            (Sample(0.0, 0, idle, 0, idle, 1),),
        )
    )


def test_each_view_has_its_best() -> None:
    found = {
        "middle": ran([0.0] * 199 + [4.0], 10, 7),
        "mean": ran([0.0] * 150 + [4.0] * 50, 2, 9),
        "lavish": ran([0.0] * 200, 30, 5),
        "as lavish": ran([0.0] * 200, 30, 5),
    }
    assert verdicts(found) == [
        Verdict(
            "pods that must start at once",
            ("lavish", "as lavish"),
            "no pod waited; middle: 0.5% of the pods waited, 4.0 s at most",
        ),
        Verdict("a subnet with few addresses left", ("mean",), "2 address-hours idle; middle: 10 address-hours idle"),
        Verdict(
            "an account short of EC2 calls", ("lavish", "as lavish"), "5.0 calls an hour; middle: 7.0 calls an hour"
        ),
        Verdict("both waits and addresses", ("middle",), "10 address-hours idle, 0.5% of the pods waited"),
    ]


def test_pods_without_an_address_weigh_more_than_any_wait() -> None:
    found: dict[str, Figures] = {"slow": ran([60.0] * 10, 5, 5), "short": ran([0.0] * 9, 5, 5, unserved=1)}
    waits, *_, both = verdicts(found)
    assert waits.best == ("slow",)
    assert (both.best, both.why) == ((), "with none did less than 1% of the pods wait; 10.0% at the least")


def test_what_no_setting_mends_is_said() -> None:
    full: Any = ran([0.0], 0, 0, ENI_LIMIT=3, ALL_COOLING=1)
    assert "(ENI_LIMIT): that takes a larger type" in warnings({"one": full, "other": full})[0]
    assert warnings({"one": full, "other": ran([0.0], 0, 0)}) == []


def test_picture_that_cannot_be_written_is_named_below_table(policy: Run, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    code, out, err = policy(*SHORT, "--plot", str(tmp_path / "x.png"))
    assert (code, err) == (1, f"ipamd simulate policy: --plot {tmp_path}/x.png: Is a directory\n")
    assert "asked for an address" in out
