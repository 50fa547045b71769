"""The figures of a plan are those of the pool itself; the words and charts follow from them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ipamd.cloud.limits import limits_of
from ipamd.ctl.__main__ import main
from ipamd.pool.footprint import footprint
from ipamd.pool.model import Limits, Targets
from ipamd.sim.virtual.fleet import Fleet
from ipamd.sim.virtual.incumbent import IncumbentTargets

BASE = ("plan", "--subnet", "10.0.0.0/20", "--nodes", "40", "--type", "m5.xlarge", "--pods-per-node", "25")


def at_rest(instance_type: str, targets: Targets | IncumbentTargets, pods: int) -> tuple[int, int]:
    """(addresses for pods, ENIs) of a node in virtual time, long after its pods have come."""
    fleet = Fleet()
    kubelet = fleet.add(instance_type, targets)
    kubelet.boot()
    fleet.clock.run_until(60.0)
    for number in range(pods):
        kubelet.run(f"pod-{number}")
        fleet.clock.run_until(fleet.clock() + 1.0)
    fleet.clock.run_until(fleet.clock() + 4 * 3600.0)
    instance = kubelet.node.instance
    assert instance.meter.used == pods
    enis = len(instance.enis())
    return instance.meter.held - (enis - 1), enis  # it also counts the addresses of further ENIs themselves


@pytest.mark.parametrize("pods", [0, 1, 8, 9, 10, 20, 27])
@pytest.mark.parametrize(
    "targets",
    [
        Targets(),
        Targets(warm_ips=1, slack=0),
        Targets(warm_ips=0, minimum_ips=12),
        Targets(warm_enis=1),
        Targets(warm_ips=3, max_enis=2, max_pods=12),
        Targets(warm_ips=9, slack=2),
    ],
    ids=["default", "tight", "minimum", "warm ENI", "limits", "wide"],
)
def test_a_node_at_rest_has_what_the_plan_says(targets: Targets, pods: int) -> None:
    limits = limits_of("m5.large")
    assert limits is not None
    planned = footprint(targets, limits, pods)
    if pods > planned.most_pods:
        return
    held, enis = at_rest("m5.large", targets, pods)
    assert planned.least <= held <= planned.most
    assert planned.enis_least <= enis <= planned.enis_most


@pytest.mark.parametrize("pods", [1, 9, 10, 25])
def test_the_incumbents_default_is_what_its_model_takes(pods: int, capsys: pytest.CaptureFixture[str]) -> None:
    args = (*BASE[:-1], str(pods), "-o", "json")
    main(list(args))
    options = {option["name"]: option for option in json.loads(capsys.readouterr().out)["options"]}
    held, enis = at_rest("m5.xlarge", IncumbentTargets(), pods)
    assert options["AWS VPC CNI, default"]["subnet_most"] == held + enis


def test_what_cools_comes_on_top() -> None:
    limits = Limits(3, 10)
    calm, busy = footprint(Targets(), limits, 10), footprint(Targets(), limits, 10, cooling=2.2)
    assert busy.least - calm.least == busy.most - calm.most == 3


def test_a_plan_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(BASE)) == 0
    text = capsys.readouterr().out
    assert "room for 4091 addresses; 40 nodes take up to 1640, 40% of it." in text
    assert "An upgrade with 1 more takes up to 1681, which fits." in text
    assert "It holds 99 such nodes." in text
    assert "25 pods, 5 warm, up to 8 that are not worth a call" in text
    assert "up to 3 ENIs of 14" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("slack = 0")]
    assert row == ["slack", "=", "0", "33", "1320", "123"]


def test_a_plan_that_does_not_fit_says_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*BASE, "--subnet", "10.0.32.0/24=60", "--grow", "10%", "--surge", "200%", "--churn", "200")
    assert main(list(words)) == 1
    text = capsys.readouterr().out
    assert "The 2 subnets together have room for 4282 addresses; 40 nodes take up to 1720" in text
    assert "An upgrade with 80 more would take 5160, 878 more than there are." in text
    assert "2 cooling" in text
    assert "What helps most: warm_ips = 1, slack = 0, 13 addresses less per node" in text
    assert "further subnets" in text
    assert "it is full in 9.6 months, with 99 nodes." in text


def test_it_is_full_when_one_more_node_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    main([*BASE, "--grow", "5", "--months", "24", "-o", "json"])
    data = json.loads(capsys.readouterr().out)
    assert data["nodes_that_fit"] == 99 and data["months_until_full"] == 12.0  # the hundredth node
    assert data["months"][11]["taken"] <= data["room"] < data["months"][12]["taken"]


def test_settings_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    main([*BASE, "--set", "warm_enis=1", "--set", "pool.slack=0", "-o", "json"])
    data = json.loads(capsys.readouterr().out)
    assert data["node"]["least"] == data["node"]["most"] == 25 + 14
    assert "warm_enis = 0, warm_ips = 5" in {option["name"] for option in data["options"]}


def test_the_picture_has_a_line_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.svg"
    main([*BASE, "--grow", "10%", "--chart", str(file)])
    svg = ElementTree.parse(file).getroot()
    names = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"as planned", "warm_ips = 1, slack = 0", "AWS VPC CNI, default", "room in the subnets"} <= names
    lines = list(svg.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(line.attrib["points"].split()) for line in lines] == [13, 13, 13]
    for line in lines:
        heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
        assert heights == sorted(heights, reverse=True) and min(heights) >= 0
    assert main([*BASE, "--chart", str(tmp_path / "none" / "plan.svg")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("--subnet", "10.0.0.0/8"), 2, "a subnet of AWS is a /16 to a /28"),
        (("--subnet", "10.0.0.1/24"), 2, "has host bits set"),
        (("--subnet", "10.0.1.0/24"), 2, "--subnet 10.0.0.0/20 and 10.0.1.0/24 overlap"),
        (("--subnet", "10.9.0.0/24=300"), 2, "300 is no number of addresses up to 251"),
        (("--subnet", "10.9.0.0/24=many"), 2, "many is no number"),
        (("--type", "m5.xlarg"), 1, "did you mean m5.xlarge"),
        (("--pods-per-node", "57"), 1, "an m5.xlarge has addresses for 56 pods, not for 57"),
        (("--set", "warm_ip=3"), 2, "did you mean warm_ips?"),
        (("--set", "warm_ips=x"), 2, "takes a number of at least 0"),
        (("--set", "warm_ips"), 2, "takes a number"),
        (("--grow", "fast"), 2, "a number of nodes, or a percentage such as 10%"),
        (("--surge=-1%",), 2, "a number of nodes"),
        (("--churn=-1",), 2, "can't be less than 0"),
    ],
)
def test_bad_words(words: tuple[str, ...], code: int, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *words]) == code
    assert complaint in capsys.readouterr().err
