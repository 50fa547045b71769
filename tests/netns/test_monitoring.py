"""Dashboard and alerts ask for what a daemon tells, in Prometheus' own judgement."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipamd.metrics.catalogue import ALERTED, METRICS
from tests.e2e import debian
from tests.netns.boxed import box
from tests.netns.test_metrics import get

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
RULES = [
    rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [rule["expr"] for rule in RULES]


@pytest.fixture
def promtool() -> Path:
    return debian.unpacked("bookworm", "prometheus") / "usr" / "bin" / "promtool"


def judged(promtool: Path, *words: str, stdin: str | None = None) -> str:
    done = subprocess.run([promtool, *words], input=stdin, capture_output=True, text=True, cwd=MONITORING, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_rules_and_each_alert_fires(promtool: Path) -> None:
    assert f"{len(RULES)} rules found" in judged(promtool, "check", "rules", "rules.yml")
    assert "SUCCESS" in judged(promtool, "test", "rules", "rules_test.yml")
    tested = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tested for each in test["alert_rule_test"] if each.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}, "each alert is seen to fire"


async def test_promtool_has_nothing_to_say_about_a_scrape(promtool: Path, tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        await daemon.address("a")
        code, body = await get(daemon, "/metrics")
    assert code == 200 and judged(promtool, "check", "metrics", stdin=body) == ""


def test_what_is_asked_for_is_told() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for expression in EXPRESSIONS:
        for name in re.findall(r"\bipamd[a-z_:0-9]+", re.sub(r'"[^"]*"', "", expression)):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            histogram = plain in METRICS and METRICS[plain].kind == "histogram"
            assert name in METRICS or name in recorded or histogram, (name, expression)
        for labels in re.findall(r"(ipamd_\w+?)(?:_bucket|_sum|_count)?\{([^}]*)\}", expression):
            asked = set(re.findall(r"(\w+)\s*[=!]", labels[1])) - {"job", "instance", "le"}
            assert asked <= set(METRICS[labels[0]].labels), expression


def test_the_first_event_that_an_alert_waits_for_is_a_rise() -> None:
    asked = set()
    for expression in (rule["expr"] for rule in RULES if "alert" in rule):
        for events, level in re.findall(r'ipamd_events_total\{event=~?"([^"]*)",level="([^"]*)"', expression):
            asked |= {(event, level) for event in events.split("|")}
    assert asked == set(ALERTED), "each of them is exported as 0 from the start"


def test_the_dashboard_is_sound() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and panel["targets"]
        for target in (panel, *panel["targets"]):
            assert target["datasource"]["uid"] == "${datasource}"
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken)), "no panel lies on another"
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == defined


def test_every_alert_says_what_to_do() -> None:
    commands = {"ipamctl", "ipamd", "systemctl", "journalctl", "df", "top", "CloudTrail"}
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert rule["annotations"]["summary"] and commands & set(
                re.findall(r"\w+", rule["annotations"]["runbook"])
            )
